"""Turn the network's classes into individual vertebrae and discs, each with its level.

The road through the modules: `grid` (the classes cut to the spine), `wall` (finds the `column`), `discs`, `bodies` (the
chain of `interfaces` over the bodies' `bone`, with or without an `odontoid`), `fast_marching` and `components`
(posterior elements, by their places on the `level_axis`), all of which is a `spine`; then `anchor` and `profile` (what
names rest on) and `naming`. Each step takes what the ones before it made and changes none of it.
"""

from .naming import Levels, check_lowest, name_structures

__all__ = ["Levels", "check_lowest", "name_structures"]
