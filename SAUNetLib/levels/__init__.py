"""Classes to vertebrae and discs one by one, each with its level."""

from .naming import Levels, check_lowest, cut_structures, name_structures

__all__ = ["Levels", "check_lowest", "cut_structures", "name_structures"]
