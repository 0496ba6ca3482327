"""Turn the network's classes into individual vertebrae and discs, each with its level.

The modules in order of processing: `grid` (the classes cropped to the spine), `wall` (finds the `column`), `discs`,
`bodies` (the chain of `interfaces` and of bodies by their `bone`, with or without an `odontoid`), `fast_marching` and
`components` (posterior elements, by their position on the `level_axis`), together a `spine`; then `anchor` and
`profile` (the evidence for names) and `naming`. Each step uses the results of earlier ones and changes none of them.
"""

from .naming import Levels, check_lowest, name_structures

__all__ = ["Levels", "check_lowest", "name_structures"]
