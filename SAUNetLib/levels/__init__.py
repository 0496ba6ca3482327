"""Classes to vertebrae and discs one by one, each with its level."""

from .naming import Levels, cut_structures, name_structures

__all__ = ["Levels", "cut_structures", "name_structures"]
