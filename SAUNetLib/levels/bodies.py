"""The chain of vertebral bodies between the discs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..anatomy import DISC
from .bone import Bone
from .column import Column
from .discs import Interface
from .grid import Grid, rows_with
from .interfaces import (
    count_above,
    distances,
    drop_false_discs,
    extend_to_ends,
    insert_missing,
    interfaces_at_gaps,
    merge_fragments,
    usual_spacings,
    volumes,
)
from .odontoid import shows_odontoid

NO_BODY = -9
"""Number of what belongs to no vertebra: below -1, which is the vertebra above the highest body."""
_WHOLE_SHARE = 0.5
"""What lies below the lowest disc is a vertebra if it has more than this share of the usual volume (chosen by hand)."""
_CUT_SHARE, _CUT_MM3 = 0.04, 200.0
"""The same where the image's lower border cuts it: more than this share, and than this volume (chosen by hand)."""
_USUAL_OF, _USUAL_MOST = 3, 2.0
"""The usual volume is the median of this many bodies above, but at most this many times that of the next one."""
_PIECE, _SLIVER, _BORDER_MM = 0.35, 0.1, 5.0
"""A body below the first share of the usual volume is a piece of the top of the sacrum if the disc below it is under
the second share of the others' and nearer than the third to the image's lower border (chosen by hand): 0.21 and 0.07 in
one of 47 volumes. One of 425 slices has 0.32 and 0.06 for a lumbar vertebra and its disc, far from the border."""
_HALF = 0.65
"""Two neighbours both lower than this share of nearby levels may be one vertebra in two parts. No two of 425 slices, 47
volumes and 56 phantoms are both lower than 0.68."""
_BESIDE, _BESIDE_LEAST = 3, 2
"""Nearby levels are up to this many on either side, and at least this many in all (chosen by hand)."""
_FAR_SMALLER = 0.35
"""A body below this share of its neighbours' volume is not whole: all have 0.45 or more in SPIDER's label maps,
fractures included, except one that leaves the slices."""
_TALL = 2.2
"""A disc this many times as thick as nearby ones may contain a collapsed vertebra: at most 1.85 in 47 volumes and 2.12
in 40 rotated or cropped copies, 2.5 and more where one was squeezed until the network labelled it as disc."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The interfaces from the top of the spine down, including those without a disc, and the bodies between them.

    Body k lies above interface k; the last one below the last interface.

    Attributes:
        interfaces: all of them.
        spacing_mm: usual distance from one to the next, at the top and at the bottom.
        volume: (len(interfaces) + 1,) mm3 of each body.
        odontoid: whether the highest vertebra looks like C2.
        last: number of the lowest vertebra.
        lowest: number of the lowest one that the image's lower border does not cut; 0 where it cuts all.
    """

    interfaces: tuple[Interface, ...]
    spacing_mm: tuple[float, float]
    volume: np.ndarray
    odontoid: bool
    last: int
    lowest: int

    @classmethod
    def of(cls, grid: Grid, column: Column, discs: Sequence[Interface]) -> Chain:
        """Build the chain from the classes on the working grid and the discs found in them, from the top down."""
        bone = Bone.of(grid, column)
        true_discs = drop_false_discs(merge_fragments(discs, bone), bone)
        separating = _without_sacral(true_discs, bone, grid) or interfaces_at_gaps(bone)
        usual = usual_spacings(separating, bone)
        spacing_mm = float(usual[0]), float(usual[-1])
        interfaces_within = insert_missing(separating, bone, usual)
        odontoid = shows_odontoid(interfaces_within, bone, spacing_mm[0], grid)
        interfaces = extend_to_ends(interfaces_within, bone, spacing_mm, upwards=not odontoid)
        volume = volumes(interfaces, bone)
        cut = _cut_below(interfaces, bone, grid)
        last = _last(volume, cut)
        # In a lordotic spine the border may cut the corners of two.
        lowest = next((k for k in range(last, 0, -1) if not cut[k]), 0)
        return cls(tuple(interfaces), spacing_mm, volume, odontoid, last, lowest)

    @property
    def guessed(self) -> int:
        """How many interfaces have no disc of their own."""
        return sum(interface.number == 0 for interface in self.interfaces)

    @property
    def last_cut(self) -> bool:
        """Whether the image's lower border cuts the lowest vertebra, and it is not the only one."""
        return self.lowest < self.last

    @property
    def halved(self) -> list[int]:
        """Interfaces between two bodies that are each little more than half as high as nearby levels.

        Both have collapsed, or they are one, in which a dark band was taken for a disc.
        """
        height = distances(self.interfaces)  # from interface k to the next: of body k + 1
        low = []
        for k in range(1, min(len(height), self.last)):
            near = np.concatenate([height[max(0, k - 1 - _BESIDE) : k - 1], height[k + 1 : k + 1 + _BESIDE]])
            half = len(near) >= _BESIDE_LEAST and bool((height[k - 1 : k + 1] < _HALF * np.median(near)).all())
            if half and self.interfaces[k].number:
                low.append(k)
        return low

    @property
    def small(self) -> list[int]:
        """Numbers of the complete vertebrae whose bodies are far smaller than up to two neighbours on each side."""
        volume = self.volume[: self.lowest + 1]
        small = []
        for k in range(1, len(volume)):
            beside = [volume[n] for n in (k - 2, k - 1, k + 1, k + 2) if 1 <= n < len(volume)]
            if beside and volume[k] < _FAR_SMALLER * np.median(beside):
                small.append(k)
        return small

    @property
    def tall(self) -> list[int]:
        """Interfaces with a disc far thicker than nearby ones: it may include a collapsed vertebra.

        By the slice that shows most of it: by volume a whole disc between ones cut by the border would be, too.
        """
        thickness = np.array([one.section / max(one.depth, 1.0) if one.number else np.nan for one in self.interfaces])
        found = []
        for k, own in enumerate(thickness):
            near = np.concatenate([thickness[max(0, k - _BESIDE) : k], thickness[k + 1 : k + 1 + _BESIDE]])
            near = near[np.isfinite(near)]
            if len(near) >= _BESIDE_LEAST and own > _TALL * np.median(near):
                found.append(k)
        return found

    def arch_numbers(self, cut_above: bool) -> range:
        """Numbers of the vertebrae whose arches may be visible.

        Of visible bodies, and the one above if the image's upper border cuts something (`cut_above`) or C2 is visible.
        """
        above = cut_above or self.odontoid
        first = 0 if self.volume[0] > 0 or above else 1
        return range(first - int(above), self.last + 1)

    def body(self, points: np.ndarray) -> np.ndarray:
        """Number (N,) int16 of the body at points (N, 3) in front of the canal."""
        return count_above(self.interfaces, points)


def _without_sacral(discs: list[Interface], bone: Bone, grid: Grid) -> list[Interface]:
    """Drop the lowest disc if it is a sliver of S1/S2 at the image's border: the top of S1 would become a vertebra."""
    usual = volumes(discs, bone)[1:-1][-_USUAL_OF - 1 :]
    if len(usual) < 2:
        return discs
    piece = usual[-1] < _PIECE * np.median(usual[:-1])
    sliver = discs[-1].volume < _SLIVER * np.median([disc.volume for disc in discs[:-1]])
    rows = np.flatnonzero(rows_with(grid.classes == DISC))
    left = grid.last_row + grid.below_mm - (grid.first[1] + rows[-1] * grid.spacing[1])
    return discs[:-1] if piece and sliver and left < _BORDER_MM else discs


def _cut_below(interfaces: Sequence[Interface], bone: Bone, grid: Grid) -> np.ndarray:
    """Which bodies (len(interfaces) + 1,) the image's lower border cuts."""
    if not grid.cut_below:
        return np.zeros(len(interfaces) + 1, bool)
    at_border = bone.points[bone.points[:, 1] > grid.last_row - 0.5 * grid.spacing[1]]
    return np.bincount(count_above(interfaces, at_border), minlength=len(interfaces) + 1) > 0


def _last(volume: np.ndarray, cut: np.ndarray) -> int:
    """Number of the lowest vertebra, given the bodies' volumes and which of them the image's lower border cuts.

    What lies below the lowest disc is a vertebra if the image ends in it or if it is large enough; else it
    is a rim of the one above or a piece of the sacrum.
    """
    n = len(volume) - 1
    if n == 0 or (n == 1 and volume[0] < volume[1]):
        return n
    # A scoliotic spine leaves the slices: the next body says more than those above it.
    usual = float(min(np.median(volume[max(0, n - _USUAL_OF) : n]), _USUAL_MOST * volume[n - 1]))
    large = max(_CUT_MM3, _CUT_SHARE * usual) if cut[n] else _WHOLE_SHARE * usual
    return n if volume[n] > large else n - 1
