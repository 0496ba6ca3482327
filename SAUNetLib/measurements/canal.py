"""The canal's diameter from front to back, perpendicular to its centreline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..masks import connected_components
from .centreline import STEP
from .landmarks import Landmarks
from .outline import edges
from .results import FEW_SLICES, LOW_CONFIDENCE, MISSING, PARTIAL, Measure
from .space import AnatomicalFrame, LabelSpace, SamplingGrid

_BAND_MM = 2.0
"""Half the width, mm, over which the mask is averaged about the midline."""
_LENGTH_MM = 1.5
"""Half the length, mm, over which the mask is averaged along the canal."""
_END_MM = 3.0
"""Within this distance, mm, of its centreline's end the canal is cut, or begins or ends."""
_AROUND_MM, _PIECE = 8.0, 0.05
"""How far up and down, mm, gaps are looked for, and the least share of the mask there in a piece (chosen by hand)."""
_LEAST_MARGIN_MM = 0.5
"""A diameter that ends within this distance, mm, of the image's upper or lower border, or a pixel of any, is cut."""


@dataclass(frozen=True)
class Diameter:
    """The canal's diameter at one place; `ends` (2, 3) are its front and back, mm in the space, or None."""

    measure: Measure
    ends: np.ndarray | None = None


def canal_diameter(
    space: LabelSpace, canal: int | None, landmarks: Landmarks, place: AnatomicalFrame | None
) -> Diameter:
    """Anterior-posterior diameter of the canal behind a body or disc, in the plane perpendicular to its centreline.

    The plane is taken where the middle plane of the body or disc (`place`) meets the centreline. The diameter is
    that of the canal's mask in the midline, averaged over 4 mm from side to side and 3 mm along the canal.
    """
    line = landmarks.line
    if canal is None or line is None or not landmarks.canal_seen:
        return Diameter(Measure.none(MISSING))
    if place is None:
        return Diameter(Measure.none(LOW_CONFIDENCE))
    station = line.crossing(place.origin, place.axes[2])
    if station is None or not line.seen(station):
        return Diameter(Measure.none(_why_not_seen(space, canal)))
    frame = AnatomicalFrame.facing(line.at(station), -line.tangent(station), place.axes[1])
    nodes = _nodes(space, _LENGTH_MM)
    share, alone = _middle_run(space.sample(canal, frame, nodes).mean(axis=(0, 2)), nodes.y)
    front, back = float(edges(share, nodes.y, last=False)), float(edges(share, nodes.y, last=True))
    if not back - front > 0:
        return Diameter(Measure.none(MISSING))
    ends = np.stack([frame.point(0, front, 0), frame.point(0, back, 0)])
    flags = set() if alone and not _has_gap(space, canal, frame) else {LOW_CONFIDENCE}
    # The plane is oblique: the diameter may leave the image above or below although the centreline is well inside.
    margin = np.maximum(space.spacing[1:], (_LEAST_MARGIN_MM, 0.0))
    at_border = (ends[:, 1:] < margin) | (ends[:, 1:] > space.last[1:] - margin)
    if min(station - line.first, line.last - station) * STEP < _END_MM or at_border.any():
        flags.add(PARTIAL)
    if line.sided[round(station)]:
        flags.add(FEW_SLICES)
    return Diameter(Measure.of(back - front, flags), ends)


def _nodes(space: LabelSpace, length: float) -> SamplingGrid:
    """Nodes about the midline, `length` mm up and down."""
    step = max(0.25, space.pixel / 2)
    return SamplingGrid.spanning((-_BAND_MM, _BAND_MM, 1.0), (-20, 20, step), (-length, length, 0.75))


def _has_gap(space: LabelSpace, canal: int, frame: AnatomicalFrame) -> bool:
    """Whether the mask about a plane is in pieces: a gap that crosses the plane obliquely shortens the diameter."""
    inside = space.sample(canal, frame, _nodes(space, _AROUND_MM)).mean(axis=0) >= 0.5
    sizes = np.bincount(connected_components(inside[None]).ravel())[1:]
    return bool((sizes >= _PIECE * sizes.sum()).sum() > 1)


def _middle_run(share: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, bool]:
    """The share (Y,) reduced to the run nearest to the centreline, and whether that was the only one."""
    inside = np.concatenate([[False], share >= 0.5, [False]])
    starts, ends = (np.flatnonzero(np.diff(inside.astype(np.int8)) == sign) for sign in (1, -1))
    if len(starts) < 2:
        return share, True
    off = [max(float(y[a]), -float(y[b - 1]), 0.0) for a, b in zip(starts, ends, strict=True)]
    own = int(np.argmin(off))
    kept = share.copy()
    for a, b in (run for n, run in enumerate(zip(starts, ends, strict=True)) if n != own):
        kept[a:b] = 0
    return kept, False


def _why_not_seen(space: LabelSpace, canal: int) -> str:
    return PARTIAL if space.touches(canal, 1) else MISSING
