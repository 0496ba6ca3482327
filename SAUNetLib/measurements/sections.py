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
"""A mid-sagittal section is the mean of what lies this close to the midline on either side."""
_LATERAL_MM, _LATERAL_STEP_MM = 14.0, 2.0
"""Endplates are followed sideways so far, in such steps."""
_FINEST_MM, _COARSE = 0.35, 2.0
"""Within a section nodes lie a pixel apart, no less than this; so many times as far where it is only looked for."""
_BONE_STEP, _DISC_STEP = 0.75, 0.5
"""Up and down they lie closer by this factor: there heights are measured, and a disc's are the smallest."""
_BONE_ENDS, _BONE_MARGIN_MM = (0.5, 99.5), 5.0
_DISC_ENDS, _DISC_MARGIN_MM = (0.2, 99.8), 3.0
"""A section reaches from the first to the second percentile of a structure's points, and so far beyond."""
_LEAST_WIDTH_MM = 14.0
"""A narrower band tells no sideways slope, and is no whole body or disc."""
_PLATE_FROM, _PLATE_TO = 0.15, 0.75
"""The slope is that of this part of an endplate from front to back: without its rims, and pedicles behind (chosen)."""
_ON_PLATE_MM = 6.0
"""What lies farther from the mid-sagittal section's surface is not the endplate (chosen)."""
_LEAST_NODES = 30
"""Fewer nodes tell no sideways slope."""
_OUTLIER_MM, _OUTLIER = 0.6, 2.5
"""A node is left out of the slope from so far off the surface on, and from so many times the median (chosen)."""
_BORDER_MM = 5.0
"""An endplate this close to the upper or lower border may be the border: resampled images often end in empty rows."""
_ROUGH_MM = 1.5
"""A body or disc whose surfaces stray further from parabolas (rms) is no regular one."""
_SEEN = 0.5
"""Of a section's planes at least this part lies within the slices, or there are too few of them."""
_BEYOND_MM = 10.0
"""A body's centre lies no farther beyond the last of what tells the canal's line (chosen; half of the way from a disc
to the next one is 17 mm)."""
_SACRUM_MM = 16.0
"""So far down the sacrum's front and back are looked at."""
_PROMONTORY_MM = 8.0
"""So far up its endplate may rise above the disc's middle (chosen)."""
_SACRUM_AP_MM = 30.0
"""So far in front of and behind the disc's middle (chosen)."""
_FEW = 20
"""Fewer points of a sacrum are none."""
STRAY, DOUBTFUL = 0.5, 0.01
"""A piece apart is left out below this part of the largest one, and from this part on the structure is doubtful."""

Reach = tuple[tuple[float, float], tuple[float, float]]
"""From where to where a section is sampled in its frame: y and z, mm."""


@dataclass(frozen=True, eq=False)
class SectionFinder:
    """Finds the sections of structures.

    Attributes:
        space: the labels.
        line: the canal's centreline.
        doubtful: values of structures of which too much lies apart.
    """

    space: LabelSpace
    line: Centreline
    doubtful: frozenset[int]

    def body(self, value: int, cloud: np.ndarray, up: np.ndarray, turn: float) -> Section | None:
        """A vertebral body, from its points (N, 3) in front of the canal; first roughly, then in its own frame."""
        frame = self._frame(cloud.mean(axis=0), up, turn)
        section = None
        for fine in (False, True):
            section = self._section(value, frame, _around(frame, cloud, _BONE_ENDS, _BONE_MARGIN_MM), fine, bone=True)
            if section is None:
                return None
            frame = self._frame(section.centre, section.frame.axes[2], turn)
        return section.doubted() if section is not None and self._is_beyond(section.centre) else section

    def _is_beyond(self, centre: np.ndarray) -> bool:
        """Whether a body lies where neither canal nor discs tell its back: a straight line may run through it."""
        first, last = self.line.told
        station = float(self.line.station(centre[None])[0])
        return not first - _BEYOND_MM / STEP <= station <= last + _BEYOND_MM / STEP

    def disc(
        self, value: int, cloud: np.ndarray, turn: float, above: Section | None, below: Section | None
    ) -> Section | None:
        """A disc, in the frame half-way between its neighbours' endplates, or its own where one is missing."""
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
        """The uppermost part of the sacrum, for its upper endplate; what is called its lower one has no meaning."""
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
        """The finder without pieces of the sacrum that are not its upper end, of which the disc faces the most.

        Its largest piece may be another one, since a sacrum is often drawn in pieces from S1 down.
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
        """A frame that looks back by `turn` and whose mid-sagittal plane holds the canal's middle."""
        frame = AnatomicalFrame.facing(origin, up, np.cos(turn) * BACK + np.sin(turn) * LEFT)
        station = self.line.crossing(frame.origin, frame.axes[2])
        if station is None:
            return frame
        aside = float(frame.local(self.line.at(station))[0])
        return AnatomicalFrame(frame.point(aside, 0, 0), frame.axes)

    def _section(self, value: int, frame: AnatomicalFrame, reach: Reach, fine: bool, bone: bool) -> Section | None:
        """The section in a frame, of bone only what lies in front of the canal; None where it has no outline."""
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
        """Whether fewer than two slices, or few of its planes (X,), are in a section."""
        slices = np.unique(np.round((frame.origin[0] + x[slab] * frame.axes[0, 0]) / self.space.spacing[0]))
        return bool(len(slices) < 2 or slab.sum() < _SEEN * (np.abs(x) <= SLAB_MM).sum())

    def _aside(self, value: int, frame: AnatomicalFrame) -> bool:
        """Whether the middle is not to be seen: the canal's at a structure's height, or without a canal its own."""
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
    """The reach of points (N, 3) in a frame, from one percentile to another and so many mm beyond."""
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
        share: (X, Y, Z) of the structure at the nodes, in the planes within the slices.
        x: (X,) mm of these planes.
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
    """dz/dx in the middle of a smooth surface through points (N,), outliers left out."""
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y], axis=1)
    kept = np.ones(len(z), bool)
    for _ in range(3):
        solution = np.linalg.lstsq(terms[kept], z[kept], rcond=None)[0]
        off = np.abs(terms @ solution - z)
        kept = off <= max(_OUTLIER_MM, _OUTLIER * float(np.median(off)))
    return float(solution[1])
