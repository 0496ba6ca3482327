"""Mid-sagittal sections through bodies and discs, from which their endplates are found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..masks import connected_components, cut_by_slices
from .centreline import STEP, Centreline
from .endplates import EVEN, Endplate, Section
from .outline import Outline, edges, outline
from .results import FEW_SLICES, LOW_CONFIDENCE
from .space import BACK, LEFT, AnatomicalFrame, LabelSpace, SamplingGrid

SLAB_MM = 4.0
"""Half-width, mm, of the slab about the midline whose mean is the mid-sagittal section."""
_LATERAL_MM, _LATERAL_STEP_MM = 14.0, 2.0
"""How far to either side endplates are followed, and in what steps."""
_FINEST_MM, _COARSE = 0.35, 2.0
"""A section's nodes lie a pixel apart, but at least this far, mm; the first, coarse pass uses this multiple."""
_BONE_STEP, _DISC_STEP = 0.75, 0.5
"""Factors on the nodes' distance in the vertical, along which heights are measured; a disc's are the smallest."""
_BONE_ENDS, _BONE_MARGIN_MM = (0.5, 99.5), 5.0
_DISC_ENDS, _DISC_MARGIN_MM = (0.2, 99.8), 3.0
"""A section spans a structure's points from the first to the second percentile, and this margin beyond."""
_LEAST_WIDTH_MM = 14.0
"""A narrower band gives no sideways slope, and is not the whole of a body or disc."""
_PLATE_FROM, _PLATE_TO = 0.15, 0.75
"""Fractions of an endplate's depth between which its slope is taken, without rims and pedicles (chosen by hand)."""
_ON_PLATE_MM = 6.0
"""Points farther than this from the surface of the mid-sagittal section are not the endplate (chosen by hand)."""
_LEAST_NODES = 30
"""Fewest nodes that give a sideways slope."""
_OUTLIER_MM, _OUTLIER = 0.6, 2.5
"""A node farther off the surface than this and this multiple of the median is left out (chosen by hand)."""
_BORDER_MM = 5.0
"""An endplate this close to the upper or lower border may be the border: resampled images often end in empty rows."""
_ROUGH_MM = 1.5
"""A body or disc with a surface that deviates more than this (rms) from a parabola is irregular."""
_SEEN = 0.5
"""Fewest of a section's planes, as a fraction, that must lie within the slices."""
_BEYOND_MM = 10.0
"""How far a body's centre may lie beyond what the canal's line rests on (chosen by hand; half the distance between two
discs is 17 mm)."""
_SACRUM_MM = 16.0
"""How far down the sacrum's front and back are examined."""
_PROMONTORY_MM = 8.0
"""How far the sacrum's endplate may rise above the disc's middle (chosen by hand)."""
_SACRUM_AP_MM = 30.0
"""How far in front of and behind the disc's middle the sacrum is looked for (chosen by hand)."""
_FEW = 20
"""Fewest points of a sacrum that are used."""
STRAY, DOUBTFUL = 0.5, 0.01
"""Fractions of the largest piece below which a detached one is left out, and from which on it is a cause for doubt."""

Reach = tuple[tuple[float, float], tuple[float, float]]
"""First and last y and first and last z, mm, at which a section is sampled in its frame."""


@dataclass(frozen=True, eq=False)
class SectionFinder:
    """Finds the sections of structures.

    Attributes:
        space: the labels.
        line: the canal's centreline.
        doubtful: values of structures with large detached pieces.
    """

    space: LabelSpace
    line: Centreline
    doubtful: frozenset[int]

    def body(self, value: int, cloud: np.ndarray, up: np.ndarray, turn: float) -> Section | None:
        """A vertebral body, from its points (N, 3) in front of the canal; first coarsely, then in its own frame."""
        frame = self._frame(cloud.mean(axis=0), up, turn)
        section = None
        for fine in (False, True):
            section = self._section(value, frame, _around(frame, cloud, _BONE_ENDS, _BONE_MARGIN_MM), fine, bone=True)
            if section is None:
                return None
            frame = self._frame(section.centre, section.frame.axes[2], turn)
        return section.doubted() if section is not None and self._is_beyond(section.centre) else section

    def _is_beyond(self, centre: np.ndarray) -> bool:
        """Whether a body lies beyond canal and discs: the line's straight extension may run through it."""
        first, last = self.line.told
        station = float(self.line.station(centre[None])[0])
        return not first - _BEYOND_MM / STEP <= station <= last + _BEYOND_MM / STEP

    def disc(
        self, value: int, cloud: np.ndarray, turn: float, above: Section | None, below: Section | None
    ) -> Section | None:
        """A disc, in the frame half-way between the adjacent endplates, or in its own where one is missing."""
        plates = [body for body in (above and above.lower, below and below.upper) if body and not body.cut]
        centre = cloud.mean(axis=0)
        station = float(self.line.station(centre[None])[0])
        up = -self.line.tangent(station) if not plates else np.sum([plate.normal for plate in plates], axis=0)
        frame = self._frame(centre, up, turn)
        section = None
        for fine in (False, True):
            section = self._section(value, frame, _around(frame, cloud, _DISC_ENDS, _DISC_MARGIN_MM), fine, bone=False)
            if section is None:
                return None
            if len(plates) < 2:
                frame = self._frame(section.centre, section.frame.axes[2], turn)
        return section

    def sacrum(self, value: int, disc: Section) -> Section | None:
        """The uppermost part of the sacrum, for its upper endplate; the section's lower one has no meaning."""
        local = disc.frame.local(self.space.points(value))
        below = np.abs(local[:, 2] + _SACRUM_MM / 2) < _SACRUM_MM / 2 + 3
        if (below & (np.abs(local[:, 1]) < _SACRUM_AP_MM)).sum() < _FEW:
            return None
        reach = (-_SACRUM_AP_MM, _SACRUM_AP_MM), (-_SACRUM_MM, _PROMONTORY_MM)
        frame, section, finder = disc.frame, None, self._without_strays(value, disc)
        for fine in (False, False, True):
            section = finder._section(value, frame, reach, fine, bone=True)
            if section is None:
                return None
            plate = section.upper
            frame = AnatomicalFrame.facing((plate.front + plate.back) / 2, plate.normal, frame.axes[1])
        return section

    def _without_strays(self, value: int, disc: Section) -> SectionFinder:
        """The finder without pieces of the sacrum other than its upper end, the one that the disc faces most.

        The upper end need not be the largest piece, since a sacrum is often drawn in pieces from S1 down.
        """
        box = self.space.box(value)
        pieces = connected_components(self.space.labels[box] == value)
        if pieces.max() == 1:
            return self
        index = np.argwhere(pieces)
        points = (index + [part.start for part in box]) * self.space.spacing
        local = disc.frame.local(points)
        below = (local[:, 2] < 0) & (local[:, 2] > -_SACRUM_MM) & (np.abs(local[:, 1]) < _SACRUM_AP_MM)
        index = index[below][self.line.in_front(points[below])]
        seen = np.zeros_like(pieces)
        seen[tuple(index.T)] = pieces[tuple(index.T)]
        faced = np.take_along_axis(seen, (seen > 0).argmax(axis=1)[:, None], axis=1)  # of each column the uppermost
        sizes = np.bincount(faced.ravel(), minlength=pieces.max() + 1)[1:]
        strays = np.zeros(self.space.labels.shape, bool)
        strays[box] = np.isin(pieces, np.flatnonzero(sizes < STRAY * sizes.max()) + 1)
        apart = np.count_nonzero(sizes >= max(1.0, DOUBTFUL * sizes.max())) > 1
        doubtful = self.doubtful | {value} if apart else self.doubtful
        return replace(self, space=self.space.without(strays), doubtful=doubtful)

    def _frame(self, origin: np.ndarray, up: np.ndarray, turn: float) -> AnatomicalFrame:
        """A frame that faces back, turned by `turn`, and whose mid-sagittal plane holds the canal's middle."""
        frame = AnatomicalFrame.facing(origin, up, np.cos(turn) * BACK + np.sin(turn) * LEFT)
        station = self.line.crossing(frame.origin, frame.axes[2])
        if station is None:
            return frame
        aside = float(frame.local(self.line.at(station))[0])
        return AnatomicalFrame(frame.point(aside, 0, 0), frame.axes)

    def _section(self, value: int, frame: AnatomicalFrame, reach: Reach, fine: bool, bone: bool) -> Section | None:
        """The section in a frame, for bone only in front of the canal's line; None where it has no outline."""
        step = max(_FINEST_MM, self.space.pixel) * (1.0 if fine else _COARSE)
        tall = step * (_BONE_STEP if bone else _DISC_STEP)
        nodes = SamplingGrid.spanning(
            (-_LATERAL_MM, _LATERAL_MM, _LATERAL_STEP_MM), (*reach[0], step), (*reach[1], tall)
        )
        shown = self._shown(frame, nodes.x)
        slab = shown & (np.abs(nodes.x) <= SLAB_MM)
        if not slab.any():
            return None
        share = self.space.sample(value, frame, nodes)
        if bone:
            share[:, nodes.y[:, None] > self.line.y_at(frame, nodes.z)] = 0
        shape = outline(share[slab].mean(axis=0), nodes.y, nodes.z)
        if shape is None:
            return None
        tilts = [_tilt(share[shown], nodes.x[shown], nodes, shape, last) for last in (True, False)]
        flags = {FEW_SLICES} if self._shows_little(frame, nodes.x, slab) or self._aside(value, frame) else set()
        if shape.residual > _ROUGH_MM or (bone and _is_uneven(shape)) or value in self.doubtful:
            flags.add(LOW_CONFIDENCE)
        return self._made(value, frame, shape, tilts, frozenset(flags))

    def _shown(self, frame: AnatomicalFrame, x: np.ndarray) -> np.ndarray:
        """Which sagittal planes (X,) of a frame lie within the slices."""
        slices = frame.origin[0] + x * frame.axes[0, 0]
        half = self.space.spacing[0] / 2
        return (slices >= -half - 1e-6) & (slices <= self.space.last[0] + half + 1e-6)

    def _shows_little(self, frame: AnatomicalFrame, x: np.ndarray, slab: np.ndarray) -> bool:
        """Whether a section rests on fewer than two slices, or on few of its planes (X,)."""
        slices = np.unique(np.round((frame.origin[0] + x[slab] * frame.axes[0, 0]) / self.space.spacing[0]))
        return bool(len(slices) < 2 or slab.sum() < _SEEN * (np.abs(x) <= SLAB_MM).sum())

    def _aside(self, value: int, frame: AnatomicalFrame) -> bool:
        """Whether the middle is not shown: the canal's at the structure's height, or without a canal its own."""
        line = self.line
        if line.first > line.last:
            return self._is_cut_aside(value)
        station = line.crossing(frame.origin, frame.axes[2])
        return station is not None and (bool(line.sided[round(station)]) or not line.seen(station))

    def _is_cut_aside(self, value: int) -> bool:
        """Whether the slices show only a part of a structure's width."""
        box = self.space.box(value)
        area = np.zeros(len(self.space.labels))
        area[box[0]] = np.count_nonzero(self.space.labels[box] == value, axis=(1, 2))
        return bool(cut_by_slices(area)) or (box[0].stop - box[0].start) * self.space.spacing[0] < _LEAST_WIDTH_MM

    def _made(
        self, value: int, frame: AnatomicalFrame, shape: Outline, tilts: list[float | None], flags: frozenset[str]
    ) -> Section:
        """The section with its frame turned to the mean of its two surfaces."""
        corners = [frame.point(0, y, z) for y, z in shape.corners]
        along = [_unit(rear - front) for front, rear in (corners[:2], corners[2:])]
        known = [tilt for tilt in tilts if tilt is not None]
        left = frame.axes[0] + (np.mean(known) if known else 0.0) * frame.axes[2]
        up = np.cross(left, along[0] + along[1])
        up = up if up @ frame.axes[2] > 0 else -up
        turned = AnatomicalFrame.facing(np.mean(corners, axis=0), up, along[0] + along[1])
        plates = []
        for n in (0, 1):
            front, rear = corners[2 * n], corners[2 * n + 1]
            middle = frame.point(0, float(shape.corners[2 * n : 2 * n + 2, 0].mean()), shape.middles[n])
            cut = self._cut(front, rear, middle)
            plates.append(Endplate(front, rear, middle, along[n], frame, tilts[n], cut, flags))
        return Section(value, turned, plates[0], plates[1], shape, frame, flags)

    def _cut(self, *points: np.ndarray) -> bool:
        """Whether a surface lies at the upper, lower, front or back border of the image."""
        margin = np.array([max(_BORDER_MM, self.space.spacing[1]), self.space.spacing[2]])
        return any(bool((p[1:] < margin).any() or (p[1:] > self.space.last[1:] - margin).any()) for p in points)


def _around(frame: AnatomicalFrame, cloud: np.ndarray, ends: tuple[float, float], margin: float) -> Reach:
    """The reach of points (N, 3) in a frame, between two percentiles and `margin` mm beyond."""
    low, high = np.percentile(frame.local(cloud)[:, 1:], ends, axis=0)
    y, z = ((float(a) - margin, float(b) + margin) for a, b in zip(low, high, strict=True))
    return y, z


def _is_uneven(shape: Outline) -> bool:
    """Whether one endplate of a body is much shorter than the other."""
    depths = np.diff(shape.corners.reshape(2, 2, 2)[:, :, 0])
    return bool(depths.min() < EVEN * depths.max())


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def _tilt(share: np.ndarray, x: np.ndarray, nodes: SamplingGrid, shape: Outline, last: bool) -> float | None:
    """Slope of the upper (`last`) or lower surface toward the left, mm per mm; None where too little is seen.

    Args:
        share: (X, Y, Z) share of the structure at the nodes, in the planes within the slices.
        x: (X,) mm, positions of these planes.
        nodes: for their y and z.
        shape: the mid-sagittal outline.
        last: which surface.
    """
    plate = shape.corners[:2, 0] if last else shape.corners[2:, 0]
    low, high = plate[0] + _PLATE_FROM * np.ptp(plate), plate[0] + _PLATE_TO * np.ptp(plate)
    inner = (nodes.y > low) & (nodes.y < high)
    height = edges(share[:, inner], nodes.z, last)
    x, y = np.meshgrid(x, nodes.y[inner], indexing="ij")
    expected = (shape.upper if last else shape.lower)(y)
    known = np.isfinite(height) & (np.abs(height - expected) < _ON_PLATE_MM)
    if known.sum() < _LEAST_NODES or np.ptp(x[known]) < _LEAST_WIDTH_MM:
        return None
    return _slope(x[known], y[known], height[known])


def _slope(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """dz/dx in the middle of a quadratic surface fitted to points (N,) without outliers."""
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y], axis=1)
    kept = np.ones(len(z), bool)
    for _ in range(3):
        solution = np.linalg.lstsq(terms[kept], z[kept], rcond=None)[0]
        off = np.abs(terms @ solution - z)
        kept = off <= max(_OUTLIER_MM, _OUTLIER * float(np.median(off)))
    return float(solution[1])
