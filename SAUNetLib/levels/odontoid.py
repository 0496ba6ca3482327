"""Decide whether the highest vertebra is C2, from the shape of its odontoid process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..anatomy import CANAL
from .bone import Bone
from .discs import Interface
from .grid import Grid
from .interfaces import count_above

_CERVICAL_MM = 26.0
"""Cervical discs are less than this apart."""
_MIDLINE_MM = 8.0
"""The odontoid process lies within this distance of the middle of the disc below, across the slices."""
_TALL = (1.6, 3.0)
"""Height of C2 with its process relative to other cervical levels; anything higher is two vertebrae."""
_NECK = (0.55, 0.3)
"""Height above the disc at which C2's waist is sought, and how far above and below, as shares of C2's height."""
_GAP = 0.2
"""A waist in C2's middle below this share of the bone beside it is a gap (chosen by hand)."""
_UPPER, _LOWER = (0.6, 0.85), (0.15, 0.4)
"""Ranges, as shares of C2's height, in which the process and the body are compared in thickness."""
_THINNER = 0.8
"""The process has less than this share of the body's bone (chosen by hand)."""
_BESIDE, _BELOW = (0.6, 1.0), (-2.0, 0.0)
"""Ranges above the disc below, as shares of C2's height, in which the canal is compared in width."""
_WIDENS = 1.15
"""Beside the process the canal is more than this many times as wide as below (chosen by hand)."""


def shows_odontoid(interfaces: Sequence[Interface], bone: Bone, spacing_mm: float, grid: Grid) -> bool:
    """Whether the bone above the highest disc is C2 with its odontoid process.

    It is complete, of cervical size, without a gap and at least 1.6 times as high as other levels; and it is thinner in
    its upper than in its lower half, or the canal is wider beside it than below.

    Args:
        interfaces: from the top down.
        bone: of the bodies.
        spacing_mm: usual distance of interfaces at the top.
        grid: the classes.
    """
    own = bone.points[count_above(interfaces, bone.points) == 0]
    if len(interfaces) < 2 or len(own) == 0 or not interfaces[0].number or spacing_mm > _CERVICAL_MM:
        return False
    disc = interfaces[0]
    own = own[np.abs(own[:, 0] - disc.point[0]) < _MIDLINE_MM]
    if len(own) == 0 or (grid.cut_above and own[:, 1].min() < grid.first[1] + 0.5 * grid.spacing[1]):
        return False
    high = -disc.below(own)
    tall = float(np.percentile(high, 99))
    if not _TALL[0] < tall / spacing_mm < _TALL[1]:
        return False
    if bone.waist(float(disc.station - _NECK[0] * tall), _NECK[1] * tall)[1] < _GAP:
        return False  # two vertebrae, whose disc is missing
    thinner = _within(high, _UPPER, tall) < _THINNER * _within(high, _LOWER, tall)
    return thinner or _canal_widens(-disc.below(grid.positions(grid.classes == CANAL)), tall)


def _canal_widens(high: np.ndarray, tall: float) -> bool:
    """Whether the canal is wider beside the process than below, by its voxels' heights (N,) above the highest disc."""
    beside, below = (_within(high, part, tall) / (part[1] - part[0]) for part in (_BESIDE, _BELOW))
    return beside > _WIDENS * below > 0


def _within(high: np.ndarray, part: tuple[float, float], tall: float) -> int:
    """Number of heights (N,) within a range of shares of a height."""
    return int(((high > part[0] * tall) & (high <= part[1] * tall)).sum())
