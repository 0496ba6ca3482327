"""Frames of vertebral bodies and discs along the spine, and the landmarks on their mid-sagittal sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import label

from .centreline import Centreline
from .outline import Curve, Outline, edges, outline
from .results import FEW_SLICES, LOW_CONFIDENCE
from .space import BACK, LEFT, Frame, Grid, Space

SLAB_MM = 4.0
"""A mid-sagittal section is the mean of what lies this close to the midline on either side."""
_LATERAL_MM = 14.0
"""Endplates are followed sideways so far."""
_LEAST_WIDTH_MM = 14.0
"""A narrower band tells no sideways slope."""
_BORDER_MM = 5.0
"""An endplate this close to the upper or lower border may be the border: resampled images often end in empty rows."""
_ROUGH_MM = 1.5
"""A body or disc whose surfaces stray further from parabolas (rms) is no regular one."""
_EVEN = 0.7
"""So is a body one of whose endplates is shorter than this part of the other one, and an estimated endplate."""
_HALF_CANAL_MM = 8.0
_SACRUM_MM = 16.0
"""So far down the sacrum's front and back are looked at."""
_STRAY, _DOUBTFUL = 0.5, 0.01
"""A piece apart is left out below this part of the largest one; from this part on the structure is doubtful."""
_NEIGHBOUR_MM, _APART_MM = 34.0, 8.0
"""A disc's neighbours have their centres within this distance of its own, and no wider gap between them and it."""


@dataclass(frozen=True)
class Plate:
    """An endplate in the mid-sagittal plane.

    Attributes:
        front, back, middle: (3,) mm in the space: the rims, and the surface half-way between them.
        along: (3,) unit vector from front to back along the whole surface, which a rim's spur does not turn.
        frame: the axes of the body or disc that it was seen in.
        tilt: slope toward the left against the frame's left axis, mm per mm; None where too little is seen.
        cut: the border of the field of view cuts it.
        flags: what its section's figures must be read with.
        estimated: taken from the disc's border, since the bone below is not segmented.
    """

    front: np.ndarray
    back: np.ndarray
    middle: np.ndarray
    along: np.ndarray
    frame: Frame
    tilt: float | None
    cut: bool = False
    flags: frozenset[str] = frozenset()
    estimated: bool = False

    @property
    def depth(self) -> float:
        """mm from rim to rim."""
        return float(np.linalg.norm(self.back - self.front))

    @property
    def across(self) -> np.ndarray | None:
        """Unit vector (3,) within the endplate toward the left."""
        if self.tilt is None:
            return None
        vector = self.frame.axes[0] + self.tilt * self.frame.axes[2]
        return np.asarray(vector / np.linalg.norm(vector))

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) upwards, perpendicular to the endplate."""
        left = self.across if self.across is not None else self.frame.axes[0]
        vector = np.cross(left, self.along)
        vector = vector if vector @ self.frame.axes[2] > 0 else -vector
        return np.asarray(vector / np.linalg.norm(vector))


@dataclass(frozen=True)
class Section:
    """A vertebral body or a disc: its label value, its frame, its two endplates or surfaces, and what they rest on.

    Attributes:
        shape: the outline in `seen_in`, the frame that it was sampled in; `frame` follows the surfaces found there.
        flags: what its figures must be read with.
    """

    value: int
    frame: Frame
    upper: Plate
    lower: Plate
    shape: Outline
    seen_in: Frame
    flags: frozenset[str]

    @property
    def centre(self) -> np.ndarray:
        """(3,) mm, the mean of the four corners."""
        return np.asarray((self.upper.front + self.upper.back + self.lower.front + self.lower.back) / 4)

    def as_endplate(self, above: Plate | None) -> Plate:
        """A disc's lower border in the place of the endplate below it.

        The bone is taken to lie as far from the disc's mask as the endplate `above` does from its upper border. Of a
        disc that is much shorter than that endplate only a part is segmented: its corners are not the bone's.
        """
        up = self.frame.axes[2]
        gap = float((above.middle - self.upper.middle) @ up) if above is not None else 0.0
        shift = -float(np.clip(gap, 0.0, 3.0)) * up
        lower, flags = self.lower, self.lower.flags
        if above is not None and lower.depth < _EVEN * above.depth:
            flags = flags | {LOW_CONFIDENCE}
        return replace(
            lower,
            front=lower.front + shift,
            back=lower.back + shift,
            middle=lower.middle + shift,
            flags=flags,
            estimated=True,
        )


@dataclass(frozen=True)
class Landmarks:
    """Everything found along one spine.

    Attributes:
        bodies, discs: by label value; structures without a usable section are left out.
        above, below: by a disc's value, the value of its neighbour.
        lumbosacral: value of the disc above the sacrum; 0 where it is not seen.
        line: the canal's centreline, or where it must be; None where nothing tells.
        canal_seen: whether `line` rests on a canal.
        turn_seen: whether any body's direction to the back is known; without it the slices' is taken.
    """

    bodies: Mapping[int, Section]
    discs: Mapping[int, Section]
    above: Mapping[int, int]
    below: Mapping[int, int]
    lumbosacral: int
    line: Centreline | None
    canal_seen: bool
    turn_seen: bool = False

    def canal_at(self, frame: Frame, z: np.ndarray) -> np.ndarray:
        """y (N,) of the canal's middle in a frame, at heights z (N,)."""
        return _canal_at(self.line, frame, z) if self.line is not None else np.full(len(z), np.inf)


def find_landmarks(
    space: Space,
    vertebrae: list[int],
    discs: list[int],
    canal: int | None,
    sacrum: int | None = None,
    lumbosacral: int = 0,
) -> Landmarks:
    """Landmarks of the structures of the given label values, all present in the space.

    `lumbosacral` is the value of the disc above the sacrum, whether it and the sacrum are segmented or not.
    """
    behind = _behind_discs(space, discs)
    line = Centreline.of(space, canal, behind) if canal is not None else None
    seen = line is not None
    if line is None:
        line = Centreline.behind(behind, _HALF_CANAL_MM)
    if line is None:
        return Landmarks({}, {}, {}, {}, 0, None, False)
    space, doubtful = _without_strays(space, line, vertebrae, discs)
    clouds = {value: space.points(value) for value in vertebrae}
    clouds = {value: cloud[in_front_of_canal(cloud, line)] for value, cloud in clouds.items()}
    clouds = {value: cloud for value, cloud in clouds.items() if len(cloud) >= 20}
    centres = {value: cloud.mean(axis=0) for value, cloud in clouds.items()}
    flat = {value: space.points(value) for value in discs}
    discs_at = {value: cloud.mean(axis=0) for value, cloud in flat.items()}
    order = sorted(centres, key=lambda value: float(line.station(centres[value][None])[0]))
    above, below = _neighbours(line, clouds, flat)
    finder = _Finder(space, line, doubtful)
    ups = {value: _up(value, line, centres, discs_at, above, below) for value in order}
    turns, known = _turns(space, line, order, centres, clouds, ups)
    bodies = {value: finder.body(value, centres[value], ups[value], turns[value], clouds[value]) for value in order}
    found = {value: body for value, body in bodies.items() if body is not None}
    shapes = {}
    for value, centre in discs_at.items():
        beside = [side[value] for side in (above, below) if value in side]
        turn = float(np.mean([turns[one] for one in beside])) if beside else 0.0
        upper, lower = (found.get(side.get(value, 0)) for side in (above, below))
        disc = finder.disc(value, centre, turn, upper, lower)
        if disc is not None:
            shapes[value] = disc
    last = lumbosacral if lumbosacral in shapes else 0
    if sacrum is not None and last and last not in below:
        section = finder.sacrum(sacrum, shapes[last])
        if section is not None:
            found[sacrum], below[last] = section, sacrum
    return Landmarks(found, shapes, above, below, last, line, seen, known)


def _without_strays(
    space: Space, line: Centreline, vertebrae: list[int], discs: list[int]
) -> tuple[Space, frozenset[int]]:
    """The space without the small pieces of bodies and discs that lie apart, and the values of which too much did.

    Behind the canal a vertebra may be in pieces: slices beside the midline show its arch alone.
    """
    strays, doubtful = np.zeros(space.labels.shape, bool), set()
    for value in (*vertebrae, *discs):
        box = space.box(value)
        pieces, _ = label(space.labels[box] == value, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        for piece in np.flatnonzero(sizes < sizes.max()) + 1:
            mask = pieces == piece
            if value in vertebrae:
                points = np.argwhere(mask)[:: max(1, sizes[piece - 1] // 200)] + [part.start for part in box]
                if in_front_of_canal(points * space.spacing, line).mean() < 0.5:
                    continue
            if sizes[piece - 1] >= _DOUBTFUL * sizes.max():
                doubtful.add(value)
            if sizes[piece - 1] < _STRAY * sizes.max():
                strays[box] |= mask
    return (space.without(strays) if strays.any() else space), frozenset(doubtful)


def _behind_discs(space: Space, discs: list[int]) -> np.ndarray:
    """Where the canal must run, from the discs' posterior ends: (N, 3) mm."""
    ends = []
    for value in discs:
        cloud = space.points(value)
        back = cloud[:, 2] >= np.percentile(cloud[:, 2], 92)
        ends.append([cloud[:, 0].mean(), cloud[back, 1].mean(), cloud[back, 2].mean() + _HALF_CANAL_MM])
    return np.array(ends).reshape(-1, 3)


def in_front_of_canal(cloud: np.ndarray, line: Centreline) -> np.ndarray:
    """Which points (N,) of a cloud (N, 3) lie in front of the canal's anterior border."""
    station = line.station(cloud)
    index = np.round(station).astype(int)
    tangent = line.tangents[index]
    back = BACK - tangent * (tangent @ BACK)[:, None]
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    ahead = -np.einsum("ij,ij->i", cloud - line.at(station), back)
    return np.asarray(ahead > line.half[index] - 1)


def _neighbours(
    line: Centreline, bodies: Mapping[int, np.ndarray], discs: Mapping[int, np.ndarray]
) -> tuple[dict[int, int], dict[int, int]]:
    """By disc, the nearest body above and the nearest below, by place along the canal and not by name.

    A body beyond the next disc, or one that the disc does not lie close to, is no neighbour: the one between them is
    not segmented. Both are given as points (N, 3).
    """
    centres = {value: cloud.mean(axis=0) for value, cloud in (*bodies.items(), *discs.items())}
    place = {value: float(line.station(centre[None])[0]) for value, centre in centres.items()}
    above: dict[int, int] = {}
    below: dict[int, int] = {}
    for disc, cloud in discs.items():
        near = [
            value
            for value, other in bodies.items()
            if np.linalg.norm(centres[value] - centres[disc]) < _NEIGHBOUR_MM and _gap(cloud, other) < _APART_MM
        ]
        higher = max((place[other] for other in discs if place[other] < place[disc]), default=-np.inf)
        lower = min((place[other] for other in discs if place[other] > place[disc]), default=np.inf)
        over = [value for value in near if higher < place[value] < place[disc]]
        under = [value for value in near if place[disc] < place[value] < lower]
        if over:
            above[disc] = max(over, key=lambda value: place[value])
        if under:
            below[disc] = min(under, key=lambda value: place[value])
    return above, below


def _gap(cloud: np.ndarray, other: np.ndarray) -> float:
    """mm between two sets of points (N, 3) along the line between their centres, but for a few points of each."""
    line = other.mean(axis=0) - cloud.mean(axis=0)
    line = line / max(float(np.linalg.norm(line)), 1e-6)
    return float(np.percentile(other @ line, 2) - np.percentile(cloud @ line, 98))


def _up(
    value: int, line: Centreline, bodies: Mapping[int, np.ndarray], discs: Mapping[int, np.ndarray],
    above: Mapping[int, int], below: Mapping[int, int],
) -> np.ndarray:  # fmt: skip
    """A body's upward direction (3,), from disc to disc; the canal's where there are none."""
    over = [discs[disc] for disc, body in below.items() if body == value]
    under = [discs[disc] for disc, body in above.items() if body == value]
    if over and under:
        vector = over[0] - under[0]
    elif over or under:
        vector = over[0] - bodies[value] if over else bodies[value] - under[0]
        vector = vector / np.linalg.norm(vector) - line.tangent(float(line.station(bodies[value][None])[0]))
    else:
        vector = -line.tangent(float(line.station(bodies[value][None])[0]))
    return np.asarray(vector / np.linalg.norm(vector))


def _turns(
    space: Space, line: Centreline, order: list[int], centres: Mapping[int, np.ndarray],
    clouds: Mapping[int, np.ndarray], ups: Mapping[int, np.ndarray],
) -> tuple[dict[int, float], bool]:  # fmt: skip
    """By body, radians by which its back is turned from the columns' direction toward the left, smooth along the spine.

    It faces the canal's middle. A body of which slices show only a part tells nothing, its middle is unknown: it is
    turned like the nearest that does, or where none does, not at all; the second value says whether any does.
    """
    angles, weights = np.zeros(len(order)), np.zeros(len(order))
    for n, value in enumerate(order):
        frame = Frame.facing(centres[value], ups[value], BACK)
        station = line.crossing(frame.origin, frame.axes[2])
        if station is None or not line.seen(station):
            continue
        toward = frame.local(line.at(station))
        angles[n] = np.arctan2(toward[0], toward[1])
        outer = np.isin(np.round(clouds[value][:, 0] / space.spacing[0]), (0, len(space.labels) - 1))
        width = np.ptp(clouds[value][:, 0])
        weights[n] = 0.0 if outer.mean() > 0.04 or width < 20 else 1.0
    apart = np.arange(len(order))[:, None] - np.arange(len(order))[None]
    kernel = np.exp(-0.5 * (apart / 0.8) ** 2) * weights
    total = kernel.sum(axis=1)
    known = np.flatnonzero(total > 0.05)
    if not len(known):
        return dict.fromkeys(order, 0.0), False
    smoothed = np.interp(np.arange(len(order)), known, (kernel @ angles)[known] / total[known])
    return dict(zip(order, smoothed.tolist(), strict=True)), True


def _canal_at(line: Centreline, frame: Frame, z: np.ndarray) -> np.ndarray:
    local = frame.local(line.points)
    local = local[np.abs(local[:, 2]) < 60]
    if len(local) == 0:
        return np.full(len(z), np.inf)
    order = np.argsort(local[:, 2])
    return np.interp(z, local[order, 2], local[order, 1])


class _Finder:
    """Sections through bodies and discs."""

    def __init__(self, space: Space, line: Centreline, doubtful: frozenset[int]) -> None:
        self._space, self._line, self._doubtful = space, line, doubtful

    def _frame(self, origin: np.ndarray, up: np.ndarray, turn: float) -> Frame:
        """A frame that looks back by `turn` and whose mid-sagittal plane holds the canal's middle."""
        frame = Frame.facing(origin, up, np.cos(turn) * BACK + np.sin(turn) * LEFT)
        station = self._line.crossing(frame.origin, frame.axes[2])
        if station is None:
            return frame
        aside = float(frame.local(self._line.at(station))[0])
        return Frame(frame.point(aside, 0, 0), frame.axes)

    def body(self, value: int, centre: np.ndarray, up: np.ndarray, turn: float, cloud: np.ndarray) -> Section | None:
        """A vertebral body, from its points (N, 3) in front of the canal."""
        frame = self._frame(centre, up, turn)
        section = None
        for fine in (False, True):
            local = frame.local(cloud)
            reach = [(float(a) - 5, float(b) + 5) for a, b in np.percentile(local[:, 1:], [0.5, 99.5], axis=0).T]
            section = self._section(value, frame, (reach[0], reach[1]), fine, behind=True)
            if section is None:
                return None
            frame = self._frame(section.centre, section.frame.axes[2], turn)
        return section

    def disc(
        self, value: int, centre: np.ndarray, turn: float, above: Section | None, below: Section | None
    ) -> Section | None:
        """A disc, in the frame half-way between its neighbours' endplates, or its own where one is missing."""
        plates = [body for body in (above and above.lower, below and below.upper) if body and not body.cut]
        station = float(self._line.station(centre[None])[0])
        up = -self._line.tangent(station) if not plates else np.sum([plate.normal for plate in plates], axis=0)
        frame = self._frame(centre, up, turn)
        cloud = self._space.points(value)
        section = None
        for fine in (False, True):
            local = frame.local(cloud)
            reach = [(float(a) - 3, float(b) + 3) for a, b in np.percentile(local[:, 1:], [0.2, 99.8], axis=0).T]
            section = self._section(value, frame, (reach[0], reach[1]), fine, behind=False)
            if section is None:
                return None
            if len(plates) < 2:
                frame = self._frame(section.centre, section.frame.axes[2], turn)
        return section

    def sacrum(self, value: int, disc: Section) -> Section | None:
        """The uppermost part of the sacrum, for its upper endplate; what is called its lower one has no meaning."""
        local = disc.frame.local(self._space.points(value))
        near = (np.abs(local[:, 2] + _SACRUM_MM / 2) < _SACRUM_MM / 2 + 3) & (np.abs(local[:, 1]) < 30)
        if near.sum() < 20:
            return None
        frame = disc.frame
        section = None
        for fine in (False, False, True):
            section = self._section(value, frame, ((-30.0, 30.0), (-_SACRUM_MM, 8.0)), fine, behind=True)
            if section is None:
                return None
            plate = section.upper
            frame = Frame.facing((plate.front + plate.back) / 2, plate.normal, frame.axes[1])
        return section

    def _section(
        self, value: int, frame: Frame, reach: tuple[tuple[float, float], tuple[float, float]], fine: bool, behind: bool
    ) -> Section | None:
        space = self._space
        step = max(0.35, space.pixel) * (1.0 if fine else 2.0)
        tall = step * (0.75 if behind else 0.5)
        grid = Grid.spanning((-_LATERAL_MM, _LATERAL_MM, 2.0), (*reach[0], step), (*reach[1], tall))
        there = self._shown(frame, grid.x)
        slab = there & (np.abs(grid.x) <= SLAB_MM)
        if not slab.any():
            return None
        share = space.sample(value, frame, grid)
        if behind:
            share[:, grid.y[:, None] > _canal_at(self._line, frame, grid.z)] = 0
        shape = outline(share[slab].mean(axis=0), grid.y, grid.z)
        if shape is None:
            return None
        tilts = [self._tilt(share, grid, there, shape, last) for last in (True, False)]
        slices = np.unique(np.round((frame.origin[0] + grid.x[slab] * frame.axes[0, 0]) / space.spacing[0]))
        few = len(slices) < 2 or slab.sum() < 0.5 * (np.abs(grid.x) <= SLAB_MM).sum()
        flags = {FEW_SLICES} if few or self._aside(frame) else set()
        depths = np.diff(shape.corners.reshape(2, 2, 2)[:, :, 0])
        uneven = bool(depths.min() < _EVEN * depths.max())
        if shape.residual > _ROUGH_MM or (behind and uneven) or value in self._doubtful:
            flags.add(LOW_CONFIDENCE)
        return self._made(value, frame, shape, tilts, frozenset(flags))

    def _aside(self, frame: Frame) -> bool:
        """Whether there is a canal, but its middle is not to be seen at a body's or disc's height."""
        line = self._line
        station = line.crossing(frame.origin, frame.axes[2])
        if station is None or line.first > line.last:
            return False
        return bool(line.sided[round(station)]) or not line.seen(station)

    def _made(
        self, value: int, frame: Frame, shape: Outline, tilts: list[float | None], flags: frozenset[str]
    ) -> Section:
        """The section with its frame turned to the mean of its two surfaces."""
        corners = [frame.point(0, y, z) for y, z in shape.corners]
        along = [self._along(frame, curve, shape.ends) for curve in (shape.upper, shape.lower)]
        known = [tilt for tilt in tilts if tilt is not None]
        left = frame.axes[0] + (np.mean(known) if known else 0.0) * frame.axes[2]
        up = np.cross(left, along[0] + along[1])
        turned = Frame.facing(np.mean(corners, axis=0), up if up @ frame.axes[2] > 0 else -up, along[0] + along[1])
        plates = []
        for n in (0, 1):
            front, rear = corners[2 * n], corners[2 * n + 1]
            middle = frame.point(0, float(shape.corners[2 * n : 2 * n + 2, 0].mean()), shape.middles[n])
            plates.append(Plate(front, rear, middle, along[n], frame, tilts[n], self._cut(front, rear, middle), flags))
        return Section(value, turned, plates[0], plates[1], shape, frame, flags)

    @staticmethod
    def _along(frame: Frame, curve: Curve, ends: tuple[float, float]) -> np.ndarray:
        vector = (ends[1] - ends[0]) * frame.axes[1] + float(curve(ends[1]) - curve(ends[0])) * frame.axes[2]
        return np.asarray(vector / np.linalg.norm(vector))

    def _shown(self, frame: Frame, x: np.ndarray) -> np.ndarray:
        """Which sagittal planes (X,) of a frame lie within the slices."""
        slices = frame.origin[0] + x * frame.axes[0, 0]
        half = self._space.spacing[0] / 2
        return (slices >= -half - 1e-6) & (slices <= self._space.last[0] + half + 1e-6)

    def _cut(self, *points: np.ndarray) -> bool:
        """Whether a surface lies at the upper, lower, front or back border of the image."""
        margin = np.array([max(_BORDER_MM, self._space.spacing[1]), self._space.spacing[2]])
        return any(bool((p[1:] < margin).any() or (p[1:] > self._space.last[1:] - margin).any()) for p in points)

    def _tilt(self, share: np.ndarray, grid: Grid, there: np.ndarray, shape: Outline, last: bool) -> float | None:
        """Slope of the upper (`last`) or lower surface toward the left, mm per mm."""
        plate = shape.corners[:2, 0] if last else shape.corners[2:, 0]
        low, high = plate[0] + 0.15 * np.ptp(plate), plate[0] + 0.75 * np.ptp(plate)
        inner = (grid.y > low) & (grid.y < high)
        height = edges(share[there][:, inner], grid.z, last)
        x, y = np.meshgrid(grid.x[there], grid.y[inner], indexing="ij")
        expected = (shape.upper if last else shape.lower)(y)
        known = np.isfinite(height) & (np.abs(height - expected) < 6)
        if known.sum() < 30 or np.ptp(x[known]) < _LEAST_WIDTH_MM:
            return None
        x, y, z = x[known], y[known], height[known]
        terms = np.stack([np.ones_like(x), x, y, x * x, y * y], axis=1)
        kept = np.ones(len(z), bool)
        for _ in range(3):
            solution = np.linalg.lstsq(terms[kept], z[kept], rcond=None)[0]
            off = np.abs(terms @ solution - z)
            kept = off <= max(0.6, 2.5 * float(np.median(off)))
        return float(solution[1])
