"""Classes to vertebrae and discs one by one, each with its level."""

from .naming import Levels, name_structures

__all__ = ["Levels", "name_structures"]
