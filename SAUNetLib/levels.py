"""Classes to vertebrae and discs one by one, each with its level."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cc3d
import numpy as np
import SimpleITK as sitk

from .anatomy import CANAL, DISC, VERTEBRA, structures, value_of, vertebra_levels
from .errors import UsageError
from .segmentation import Notice
from .volume import SagittalStack

CANAL_VALUE = 2

_ISLAND_MM3 = 60.0
"""Smaller components are specks."""
_WORKING_MM = 0.9
"""Grid on which discs are found and profiles measured: never finer."""
_GEODESIC_MM = 1.6
"""Grid on which posterior elements are shared out: never finer."""
_REACH_MM = 65.0
"""A body lies within this distance in front of the canal's anterior border."""
_SPACING_PER_DEPTH = 1.05
"""Distance of neighbouring discs by the bodies' anterior-posterior depth; about one from the neck to the sacrum."""


@dataclass(frozen=True)
class Levels:
    """Instances with their level.

    Attributes:
        labels: (S, H, W) uint8 in the encoding of `anatomy.structures`.
        partial: label values of structures that the border of the field of view cuts.
        notices: what the user should know.
    """

    labels: np.ndarray
    partial: frozenset[int]
    notices: tuple[Notice, ...]


def name_structures(stack: SagittalStack, lowest: str = "L5") -> Levels:
    """Tell vertebrae and discs apart and name them, counting upwards from the lowest complete vertebra.

    A class never changes: a voxel keeps its class or, in a speck, becomes background. Discs are found first, and give
    the planes between which the bodies lie; a level without its disc is found by the distance of the others. Posterior
    elements go to the body that reaches them soonest through the vertebra's own mask, where a body's pace falls off
    away from the place at which its own arch and processes are expected.

    Args:
        stack: its slices are classes (S, H, W): 0 background, 1 vertebra, 2 disc, 3 canal.
        lowest: level of the lowest vertebra that the field of view does not cut.

    Raises:
        UsageError: USAGE, `lowest` is no vertebra.
    """
    lowest = lowest.strip().upper()
    if lowest not in vertebra_levels():
        raise UsageError(
            "USAGE", f"{lowest or 'nothing'} is not a vertebra", f"Choose one of {', '.join(vertebra_levels())}"
        )
    labels = np.zeros(stack.slices.shape, np.uint8)
    box = _bounding_box(stack.slices)
    if box is None:
        return Levels(labels, frozenset(), (Notice("NOTHING_FOUND", "No part of the spine was found in this volume."),))
    grid = _Grid.of(stack, box)
    if not grid.classes.any():
        return Levels(labels, frozenset(), (Notice("NOTHING_FOUND", "Only specks were found in this volume."),))
    spine = _Spine(grid)
    vertebrae, discs, notices = _names(spine, lowest)
    labels[box] = _labels(spine, vertebrae, discs)
    return Levels(labels, _partial(labels), tuple(notices))


def _bounding_box(classes: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box around everything that is not background."""
    rows = np.asarray(classes.any(axis=2))
    spans = (rows.any(axis=1), rows.any(axis=0), classes.any(axis=(0, 1)))
    if not spans[0].any():
        return None
    ends = [np.flatnonzero(span)[[0, -1]] for span in spans]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)  # type: ignore[return-value]


def _without_specks(classes: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """A copy of classes (S, H, W) without components below `_ISLAND_MM3`, or less where there are only a few mm."""
    least = _ISLAND_MM3 * min(1.0, classes.shape[0] * spacing[0] / 10)
    found = cc3d.connected_components(classes, connectivity=6)
    small = np.bincount(found.ravel()) * np.prod(spacing) < least
    small[0] = False
    cleaned = classes.copy()
    if small.any():
        cleaned[small[found]] = 0
    return cleaned


@dataclass(frozen=True)
class _Grid:
    """Classes (S, H, W) cut to what is not background; spacing (3,) in mm; mm of image left above and below."""

    classes: np.ndarray
    spacing: np.ndarray
    above_mm: float
    below_mm: float

    @property
    def cut_above(self) -> bool:
        """Whether the image's upper border cuts something."""
        return self.above_mm == 0

    @property
    def cut_below(self) -> bool:
        """Whether the image's lower border cuts something."""
        return self.below_mm == 0

    @classmethod
    def of(cls, stack: SagittalStack, box: tuple[slice, slice, slice]) -> _Grid:
        spacing = np.array([stack.slice_spacing, *stack.pixel])
        classes = _without_specks(np.ascontiguousarray(stack.slices[box], np.uint8), spacing)
        rows = stack.slices.shape[1]
        return cls(classes, spacing, box[1].start * spacing[1], (rows - box[1].stop) * spacing[1])

    def thinned(self, least_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every n-th voxel, for voxels of about `least_mm` or more: classes, spacing (3,), first position (3,)."""
        step = np.maximum(1, np.round(least_mm / self.spacing)).astype(int)
        step = np.minimum(step, np.maximum(1, np.array(self.classes.shape)))
        first = np.minimum(step // 2, np.array(self.classes.shape) - 1)
        part = self.classes[tuple(slice(int(a), None, int(n)) for a, n in zip(first, step, strict=True))]
        return part, self.spacing * step, self.spacing * first

    def positions(self, mask: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in mm, slice, row, column, of a mask's voxels on this grid."""
        return _positions(mask, self.spacing, 0)


def _positions(mask: np.ndarray, spacing: np.ndarray, first: np.ndarray | float) -> np.ndarray:
    return (np.argwhere(mask) * spacing + first).astype(np.float32)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (N,) on an even grid smoothed by a Gaussian of `sigma` steps; straight lines stay straight at the ends."""
    reach = max(1, int(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    ends = np.arange(reach, 0, -1)
    near = min(len(values) - 1, max(1, int(2 * sigma)))
    before = values[0] - ends * (values[near] - values[0]) / max(near, 1)
    after = values[-1] + ends[::-1] * (values[-1] - values[-1 - near]) / max(near, 1)
    return np.convolve(np.concatenate([before, values, after]), kernel / kernel.sum(), mode="valid")


class _Column:
    """The line down the posterior wall of the bodies, which is the canal's anterior border.

    Rows are in mm; the line goes on straight beyond what was seen.
    """

    MARGIN = 80.0

    def __init__(self, rows: np.ndarray, back: np.ndarray, side: np.ndarray) -> None:
        """From rows (N,) in mm, increasing, with the column `back` and the slice `side` of the line there, in mm."""
        self.rows = np.arange(rows[0] - self.MARGIN, rows[-1] + self.MARGIN + 1.0)
        self.back = _smooth(_extended(self.rows, rows, back), 3.0)
        self.side = _smooth(_extended(self.rows, rows, side), 8.0)
        straight = _smooth(self.back, 12.0)
        aside = np.gradient(_smooth(self.side, 12.0))
        tangent = np.stack([aside, np.ones_like(straight), np.gradient(straight)], axis=1)
        length = np.linalg.norm(tangent, axis=1)
        self._tangent = tangent / length[:, None]
        self._straight = straight
        self._station = np.concatenate([[0.0], np.cumsum((length[1:] + length[:-1]) / 2)])

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How far points (N, 3) lie behind the line, mm."""
        return points[:, 2] - np.interp(points[:, 1], self.rows, self.back)

    def tangent(self, row: float) -> np.ndarray:
        """Unit vector (3,) down the spine."""
        vector = np.array([np.interp(row, self.rows, self._tangent[:, axis]) for axis in range(3)])
        return vector / np.linalg.norm(vector)

    def station(self, points: np.ndarray, lean: float = 1.0) -> np.ndarray:
        """Place (N,) of points (N, 3) along the line, mm: the foot of the perpendicular.

        With a smaller `lean`, perpendicular to a line that leans forwards and backwards by that much less.
        """
        first, last = float(self.rows[0]), len(self.rows) - 1
        row = points[:, 1].astype(np.float32)
        line = np.stack([self.side, self.rows, self._straight], axis=1).astype(np.float32)
        tangent = (self._tangent * (1, 1, lean)).astype(np.float32)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        for _ in range(4):
            at = np.clip(row - first + 0.5, 0, last).astype(np.int32)
            row += 0.8 * np.einsum("ij,ij->i", points - line[at], tangent[at]) - 0.8 * (row - line[at, 1])
            np.clip(row, first, first + last, out=row)
        return np.interp(row, self.rows, self._station)

    def crossing(self, point: np.ndarray, normal: np.ndarray, station: float) -> float:
        """Station at which a plane meets the line, not far from the given one."""
        line = np.stack([self.side, self.rows, self._straight], axis=1)
        off = np.abs((line - point) @ normal)
        off[np.abs(self._station - station) > 25] = np.inf
        return float(self._station[np.argmin(off)])

    def at(self, station: float) -> tuple[np.ndarray, np.ndarray]:
        """The line's point (3,) at a station and its tangent (3,)."""
        row = float(np.interp(station, self._station, self.rows))
        point = np.array([np.interp(row, self.rows, self.side), row, np.interp(row, self.rows, self._straight)])
        return point, self.tangent(row)


def _extended(rows: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at rows, linear between and, by the slope of the last 40 mm (at most 45 degrees), beyond those seen."""
    result = np.interp(rows, seen, values)
    for outside, inside in ((rows < seen[0], seen <= seen[0] + 40), (rows > seen[-1], seen >= seen[-1] - 40)):
        if inside.sum() > 3 and np.ptp(seen[inside]) > 10:
            slope = float(np.clip(np.polyfit(seen[inside], values[inside], 1)[0], -1, 1))
            result[outside] = values[inside].mean() + slope * (rows[outside] - seen[inside].mean())
    return result


def _column(grid: _Grid) -> _Column:
    """The posterior wall from the canal, where there is none from the discs, and without both from the vertebrae."""
    canal, discs = _main(grid.classes == CANAL), grid.classes == DISC
    points = [_edge(canal, first=True, spacing=grid.spacing), _disc_ends(discs, grid.spacing)]
    if len(points[0]):
        far = np.abs(points[1][:, :1] - points[0][None, :, 0]).min(axis=1, initial=np.inf) > 4
        points[1] = points[1][far]
    line = np.concatenate(points)
    if len(points[0]) * grid.spacing[1] < 3 and len(points[1]) < 2:
        cores = _cores(grid.classes == VERTEBRA, grid.spacing)
        line = _inliers(_edge(cores, first=False, spacing=grid.spacing)) if cores.any() else line
    line = line[np.argsort(line[:, 0], kind="stable")]
    return _Column(line[:, 0], line[:, 1], line[:, 2])


def _inliers(line: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a line, row, column and slice in mm, without those far from a cubic through most of them."""
    if len(line) < 8:
        return line
    row = (line[:, 0] - line[:, 0].mean()) / max(float(np.ptp(line[:, 0])), 1.0)
    weight = np.ones(len(line))
    off = np.zeros(len(line))
    for _ in range(20):
        off = np.abs(line[:, 1] - np.polyval(np.polyfit(row, line[:, 1], 3, w=weight), row))
        weight = 1 / np.sqrt(np.maximum(off, 0.5))  # least absolute distance
    near = off < max(6.0, float(np.median(off)))
    return line[near]


def _main(mask: np.ndarray) -> np.ndarray:
    """The components (S, H, W) of at least a tenth of the largest one's size."""
    found, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    if count < 2:
        return mask
    size = np.bincount(found.ravel())
    size[0] = 0
    return (size >= 0.1 * size.max())[found]


def _without_stray_canal(grid: _Grid, column: _Column) -> _Grid:
    """Without components of the canal that lie away from the column."""
    found, count = cc3d.connected_components(grid.classes == CANAL, connectivity=26, return_N=True)
    if count < 2:
        return grid
    statistics = cc3d.statistics(found)
    centres = statistics["centroids"][1:] * grid.spacing
    volume = statistics["voxel_counts"][1:]
    aside = np.abs(centres[:, 0] - np.interp(centres[:, 1], column.rows, column.side))
    depth = column.depth(centres)
    stray = (volume < 0.5 * volume.max()) & ((aside > 20) | (depth < -8) | (depth > 30))
    if not stray.any():
        return grid
    classes = grid.classes.copy()
    classes[np.concatenate([[False], stray])[found]] = 0
    return replace(grid, classes=classes)


def _disc_ends(discs: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Per component of the discs (N, 3): row, column and slice in mm of its posterior end."""
    found, count = cc3d.connected_components(discs, connectivity=6, return_N=True)
    voxels = np.flatnonzero(found)
    part = found.ravel()[voxels]
    points = np.stack(np.unravel_index(voxels, discs.shape), axis=1) * spacing
    volume = np.bincount(part, minlength=count + 1) * np.prod(spacing)
    ends = []
    for n in np.flatnonzero(volume > 0.1 * volume.max(initial=0)):
        own = points[part == n]
        end = own[own[:, 2] >= np.percentile(own[:, 2], 96)]
        ends.append([end[:, 1].mean(), end[:, 2].mean(), own[:, 0].mean()])
    return np.array(ends).reshape(-1, 3)


def _edge(mask: np.ndarray, first: bool, spacing: np.ndarray) -> np.ndarray:
    """Per row with a mask (N, 3): mm of the row, of the first or last column (median), of the mean slice."""
    any_column = np.asarray(mask.any(axis=2))
    seen = np.flatnonzero(any_column.any(axis=0))
    if len(seen) == 0:
        return np.zeros((0, 3))
    rows, there = mask[:, seen], any_column[:, seen]
    column = rows.argmax(axis=2) if first else mask.shape[2] - 1 - rows[:, :, ::-1].argmax(axis=2)
    edge = np.nanmedian(np.where(there, column, np.nan), axis=0)
    slices = (there * np.arange(len(mask))[:, None]).sum(axis=0) / there.sum(axis=0)
    return np.stack([seen * spacing[1], edge * spacing[2], slices * spacing[0]], axis=1)


def _cores(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The bodies (S, H, W), roughly: what an opening that thin posterior elements do not survive leaves in front."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    radius = [round(7.5 / size) for size in spacing[[2, 1]]]
    opened = sitk.BinaryMorphologicalOpening(image, [*radius, 0], sitk.sitkBox)
    cores = sitk.GetArrayFromImage(opened).astype(bool)
    if not cores.any():
        cores = mask.copy()
    # A large spinous process survives too: keep the foremost run of every row.
    behind = np.maximum.accumulate(np.maximum.accumulate(cores, axis=2) & ~cores, axis=2)
    return cores & ~behind


@dataclass
class _Interface:
    """Where two vertebrae meet: a plane by its point (3,) in mm and its normal (3,) down the spine.

    A disc has a number, at least 1; an interface without a disc, because it was not segmented, has 0.
    """

    point: np.ndarray
    normal: np.ndarray
    station: float
    volume: float = 0.0
    depth: float = 0.0
    number: int = 0

    def below(self, points: np.ndarray) -> np.ndarray:
        """Distance (N,) of points (N, 3) below the plane, mm."""
        return (points - self.point.astype(np.float32)) @ self.normal.astype(np.float32)


class _Discs:
    """The discs from the top down, each with its voxels on the working grid.

    Attributes:
        interfaces: one per disc.
        map: (S', H', W') uint8, a disc's number; 0 elsewhere.
    """

    def __init__(self, grid: _Grid, column: _Column) -> None:
        classes, self.spacing, self.first = grid.thinned(_WORKING_MM)
        self._voxel = float(np.prod(self.spacing))
        mask = classes == DISC
        self.map = np.zeros(classes.shape, np.uint8)
        self.interfaces: list[_Interface] = []
        if not mask.any():
            return
        points = _positions(mask, self.spacing, self.first)
        station, depth = column.station(points), column.depth(points)
        part = self._parts(mask, points, station)
        kept = self._plausible(part, points, depth, column)
        groups = self._grouped([self._interface(points[part == n], depth[part == n], column, n) for n in kept])
        number = np.zeros(int(part.max()) + 1, np.uint8)
        for count, group in enumerate(groups, 1):
            number[[one.number for one in group]] = count
        numbers = number[part]
        self.map[mask] = numbers
        for count in range(1, len(groups) + 1):
            own = numbers == count
            self.interfaces.append(self._interface(points[own], depth[own], column, count))

    def join(self, one: _Interface, other: _Interface) -> _Interface:
        """Make two parts one disc, which keeps the larger part's plane."""
        larger, smaller = (one, other) if one.volume >= other.volume else (other, one)
        self.map[self.map == smaller.number] = larger.number
        volume = one.volume + other.volume
        point = (one.point * one.volume + other.point * other.volume) / volume
        station = (one.station * one.volume + other.station * other.volume) / volume
        return replace(larger, point=point, station=station, volume=volume, depth=max(one.depth, other.depth))

    def drop(self, one: _Interface) -> None:
        """Make what is no disc background."""
        self.map[self.map == one.number] = 0

    @staticmethod
    def _parts(mask: np.ndarray, points: np.ndarray, station: np.ndarray) -> np.ndarray:
        """Number (N,) of the component of each voxel; a component of several discs is cut where it is thin."""
        part = cc3d.connected_components(mask, connectivity=6)[mask].astype(np.int32)
        following = int(part.max()) + 1
        order = np.argsort(part, kind="stable")
        for own in np.split(order, np.cumsum(np.bincount(part)[1:])[:-1]):
            if np.ptp(station[own]) < 14 or _thickness(points[own]) < 15:
                continue
            cuts = _valleys(station[own], least=0.35, apart=10.0)
            piece = np.searchsorted(cuts, station[own])
            part[own] = np.where(piece > 0, following + piece, part[own])
            following += len(cuts) + 1
        return part

    def _plausible(self, part: np.ndarray, points: np.ndarray, depth: np.ndarray, column: _Column) -> list[int]:
        """Components that may be discs: not tiny among the others, in front of the canal, near the column."""
        volume = np.bincount(part) * self._voxel
        large = np.median(volume[volume > 0.2 * volume.max()])
        kept = []
        for n in np.flatnonzero(volume > 0.06 * large):
            own = part == n
            centre, behind = points[own].mean(axis=0), float(depth[own].mean())
            aside = abs(centre[0] - np.interp(centre[1], column.rows, column.side))
            if -_REACH_MM < behind < 6 and aside < 30:
                kept.append(int(n))
        return kept

    def _interface(self, points: np.ndarray, depth: np.ndarray, column: _Column, number: int) -> _Interface:
        """Centre, plane and size of one disc from its voxels (N, 3)."""
        centre = points.mean(axis=0).astype(float)
        tangent = column.tangent(centre[1])
        station = float(column.station(centre[None].astype(np.float32))[0])
        low, high = np.percentile(depth, [3, 97])
        normal = _plane(points, tangent)
        return _Interface(centre, normal, station, len(points) * self._voxel, float(high - low), number)

    @staticmethod
    def _grouped(parts: list[_Interface]) -> list[list[_Interface]]:
        """Parts of one disc together, from the top down: the smaller lies in the larger one's plane."""
        groups: list[list[_Interface]] = []
        for part in sorted(parts, key=lambda one: -one.volume):
            near = next((g for g in groups if abs(float(g[0].below(part.point[None])[0])) < 6.0), None)
            if near and (part.volume < 0.7 * near[0].volume or abs(near[0].station - part.station) < 5):
                near.append(part)
            else:
                groups.append([part])
        return sorted(groups, key=lambda group: group[0].station)


def _plane(points: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Normal (3,) of a flat set of points (N, 3), down the spine, or `tangent` where that is not clear.

    Within the slices the direction of least spread; across them the slope of what is left, since there are often too
    few slices for the three axes of spread to be told apart.
    """
    if len(points) < 20:
        return tangent
    offset = (points - points.mean(axis=0)).astype(float)
    across = float((offset[:, 0] ** 2).sum())
    slope = offset[:, 0] @ offset[:, 1:] / across if across > 0 else np.zeros(2)
    flat = offset[:, 1:] - offset[:, :1] * slope
    spread, axes = np.linalg.eigh(flat.T @ flat)
    normal = axes[:, 0] * (np.sign(axes[:, 0] @ tangent[1:]) or 1.0)
    normal = np.array([-float(slope @ normal), *normal])
    normal /= np.linalg.norm(normal)
    ratio, along = spread[0] / max(spread[1], 1e-9), float(normal @ tangent)
    clear = (ratio < 0.5 and along > 0.6) or (ratio < 0.2 and along > 0.25)
    return normal if clear else tangent


def _thickness(points: np.ndarray) -> float:
    """Least width in mm of points (N, 3) within their slices."""
    flat = (points[:, 1:] - points[:, 1:].mean(axis=0)).astype(float)
    axis = np.linalg.eigh(flat.T @ flat)[1][:, 0]
    low, high = np.percentile(flat @ axis, [2, 98])
    return float(high - low)


def _valleys(station: np.ndarray, least: float, apart: float) -> np.ndarray:
    """Stations (M,) at which a profile of voxels' stations (N,) falls below `least` of the peaks on either side.

    Peaks closer than `apart` mm are one.
    """
    low = station.min()
    profile = _smooth(np.bincount((station - low).astype(int)).astype(float), 1.0)
    high = profile > least * profile.max()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], high.view(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    cuts = []
    end = ends[0]
    centre = (starts[0] + ends[0]) / 2
    for start, after in zip(starts[1:], ends[1:], strict=True):
        if (start + after) / 2 - centre >= apart:
            cuts.append(low + end + int(np.argmin(profile[end : start + 1])) + 0.5)
            centre = (start + after) / 2
        end = after
    return np.array(cuts)


class _Chain:
    """The interfaces from the top of the spine down, those without a disc among them, and the bodies between.

    Body k lies above interface k; the last one below the last interface.

    Attributes:
        interfaces: all of them.
        spacing_mm: usual distance from one to the next.
        volume: (len(interfaces) + 1,) mm3 of each body.
        guessed: how many interfaces have no disc of their own.
    """

    def __init__(self, grid: _Grid, column: _Column, discs: _Discs) -> None:
        classes, self._spacing, self._first = grid.thinned(_WORKING_MM)
        points = _positions(classes == VERTEBRA, self._spacing, self._first)
        self._column = column
        self._points = points[self.in_body(points)]
        self._station = column.station(self._points)
        self._voxel = float(np.prod(self._spacing))
        self.interfaces = list(discs.interfaces)
        self._join(discs)
        self._drop(discs)
        self.interfaces = self.interfaces or self._gaps_as_interfaces()
        self.spacing_mm = self._usual_spacing()
        self._fill()
        self._grow()
        self.guessed = sum(one.number == 0 for one in self.interfaces)
        body = self.body(self._points)
        self.volume = np.bincount(body, minlength=len(self.interfaces) + 1) * self._voxel
        self.last, self.last_cut = self._last(grid, body)

    def _last(self, grid: _Grid, body: np.ndarray) -> tuple[int, bool]:
        """Number of the lowest vertebra, and whether the image's lower border cuts it.

        What lies below the lowest disc is a vertebra if the image ends in it or if it is as large as one; otherwise it
        is a rim of the one above or a piece of the sacrum.
        """
        n = len(self.interfaces)
        if n == 0:
            return 0, False
        own = self._points[body == n]
        end = (grid.classes.shape[1] - 1) * grid.spacing[1] - self._spacing[1]
        cut = grid.cut_below and len(own) > 0 and bool((own[:, 1] >= end).any())
        usual = float(np.median(self.volume[max(0, n - 3) : n]))
        if n == 1 and self.volume[0] < self.volume[1]:
            return n, cut
        if cut and self.volume[n] > max(200.0, 0.04 * usual):
            return n, True
        return (n, False) if self.volume[n] > 0.5 * usual and self.volume[n] > 0 else (n - 1, False)

    def in_body(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3) lie where bodies are: in front of the canal."""
        depth = self._column.depth(points)
        return (depth < 0) & (depth > -_REACH_MM)

    def body(self, points: np.ndarray) -> np.ndarray:
        """Number (N,) of the body at points (N, 3) in front of the canal: how many interfaces lie above."""
        count = np.zeros(len(points), np.int16)
        for one in self.interfaces:
            count += one.below(points) > 0
        return count

    def _join(self, discs: _Discs) -> None:
        """Make one of two neighbours that are closer than discs are and have next to no bone between them."""
        if len(self.interfaces) < 2:
            return
        usual = self._usual_spacing()
        between = np.bincount(self.body(self._points), minlength=len(self.interfaces) + 1) * self._voxel
        typical = float(np.median(between[between > 0])) if between.any() else 0.0
        joined = [self.interfaces[0]]
        for gap, bone, one in zip(self._gaps(), between[1:-1], self.interfaces[1:], strict=True):
            if typical > 0 and bone < 0.06 * typical and gap < 0.6 * usual:
                joined[-1] = discs.join(joined[-1], one)
            else:
                joined.append(one)
        self.interfaces = joined

    def _drop(self, discs: _Discs) -> None:
        """Without false discs: small, bone around them, between neighbours that are one level apart without them."""
        kept = self.interfaces
        for small in sorted(kept, key=lambda one: one.volume):
            n = next(m for m, one in enumerate(self.interfaces) if one is small)
            if not 0 < n < len(self.interfaces) - 1:
                continue
            volume, depth = (np.median([getattr(one, name) for one in self.interfaces]) for name in ("volume", "depth"))
            apart = float(np.linalg.norm(self.interfaces[n + 1].point - self.interfaces[n - 1].point))
            little = small.volume < 0.4 * volume and small.depth < 0.6 * depth
            if little and apart < 1.35 * self._usual_spacing() and self._waist(small.station, 5.0)[1] > 0.5:
                self.interfaces = [one for one in self.interfaces if one is not small]
                discs.drop(small)

    def _gaps_as_interfaces(self) -> list[_Interface]:
        """Interfaces where the row of bodies is interrupted: what there is to go by without any disc."""
        if len(self._station) == 0:
            return []
        cuts = _valleys(self._station, least=0.45, apart=10.0)
        return [self._interface_at(float(cut)) for cut in cuts]

    def _interface_at(self, station: float) -> _Interface:
        """An interface across the column at a station."""
        point, tangent = self._column.at(station)
        point[2] -= 15  # about the middle of a body
        return _Interface(point, tangent, station)

    def _usual_spacing(self) -> float:
        """Distance of neighbouring discs in mm, from the discs where there are enough and from the bodies' depth."""
        depth = self._column.depth(self._points)
        expected = 35.0
        if len(depth):
            row = np.round(self._points[:, 1]).astype(int)
            front = np.zeros(row.max() + 1)
            np.minimum.at(front, row, depth)
            extent = -front[front < -5]
            expected = _SPACING_PER_DEPTH * float(np.median(extent)) if len(extent) else expected
        elif self.interfaces:
            expected = _SPACING_PER_DEPTH * float(np.median([one.depth for one in self.interfaces]))
        expected = float(np.clip(expected, 14, 45))
        gaps = self._gaps()
        if len(gaps) == 0:
            return expected
        return float(np.median(gaps / np.maximum(1, np.round(gaps / expected))))

    def _gaps(self) -> np.ndarray:
        points = np.array([one.point for one in self.interfaces]).reshape(-1, 3)
        return np.linalg.norm(np.diff(points, axis=0), axis=1)

    def _profile(self) -> tuple[float, np.ndarray]:
        """Cross-section of the bodies, mm2 per mm along the spine, and the station at which it starts."""
        low = float(np.floor(self._station.min())) - 1
        profile = np.bincount((self._station - low).astype(int), minlength=3) * self._voxel
        return low, _smooth(np.concatenate([profile, [0.0, 0.0]]), 1.0)

    def _fill(self) -> None:
        """Put an interface where two neighbours lie so far apart that one or more between them are missing."""
        gaps = self._gaps()
        if len(gaps) == 0:
            return
        levels = np.maximum(1, np.round(gaps / self.spacing_mm))
        filled = [self.interfaces[0]]
        for n, (gap, one) in enumerate(zip(gaps, self.interfaces[1:], strict=True)):
            near = [gaps[m] / levels[m] for m in (n - 1, n + 1) if 0 <= m < len(gaps)]
            usual = float(np.mean([self.spacing_mm, *near]))
            above, count = filled[-1], self._count(gap / usual, filled[-1], one)
            for step in range(1, count):
                share = step / count
                middle = above.station + share * (one.station - above.station)
                station, _ = self._waist(middle, 0.25 * gap / count)
                along = (station - above.station) / (one.station - above.station)
                point = above.point + along * (one.point - above.point)
                normal = (1 - share) * above.normal + share * one.normal
                filled.append(_Interface(point, normal / np.linalg.norm(normal), station))
            filled.append(one)
        self.interfaces = filled

    def _count(self, ratio: float, above: _Interface, below: _Interface) -> int:
        """How many levels lie between two discs whose distance is `ratio` times the usual one."""
        if 1.3 < ratio < 1.75:
            _, depth = self._waist((above.station + below.station) / 2, 0.3 * (below.station - above.station) / 2)
            return 2 if depth < 0.4 else 1
        return max(1, round(ratio))

    def _waist(self, station: float, within: float) -> tuple[float, float]:
        """The narrowest place of the bodies near a station, and how narrow: its share of what is beside it."""
        if len(self._station) == 0:
            return station, 1.0
        low, profile = self._profile()
        at = np.arange(len(profile)) + low + 0.5
        near = np.abs(at - station) <= within
        if not near.any():
            return station, 0.0
        # Of equally narrow places the middle one: a gap is cut at half its height.
        value = profile[near]
        narrow = np.flatnonzero(value <= value.min() + 0.02 * profile.max())
        place = float(at[near][narrow].mean())
        beside = (np.abs(at - station) <= 1.6 * within + 4) & ~near
        sides = [profile[beside & (at < station)], profile[beside & (at > station)]]
        peak = min((side.max() for side in sides if len(side)), default=0.0)
        return place, float(value.min() / peak) if peak > 0 else 0.0

    def _grow(self) -> None:
        """Add interfaces above the first and below the last one while whole bodies stand there without their discs."""
        if len(self._station) == 0:
            return
        usual = self.spacing_mm
        if not self.interfaces:
            low, profile = self._profile()
            bulk = np.flatnonzero(profile > 0.3 * np.percentile(profile, 90))
            start = low + bulk[-1] + 1 + 0.12 * usual
            self._march(start, -1)
            return
        self._march(self.interfaces[0].station, -1)
        self._march(self.interfaces[-1].station, 1)

    def _march(self, start: float, way: int) -> None:
        """Set interfaces from a station upwards (`way` -1) or downwards (1), a body's height apart."""
        usual, station = self.spacing_mm, start
        low, profile = self._profile()
        at = np.arange(len(profile)) + low + 0.5
        bulk = at[profile > 0.25 * np.percentile(profile, 90)]
        for _ in range(40):
            end = float((bulk * way).max() * way) if len(bulk) else station
            left = (end - station) * way
            if left < 0.9 * usual:
                return
            place, narrow = self._waist(station + way * usual, 0.33 * usual)
            beyond = (end - place) * way
            if not (beyond > 0.5 * usual or (narrow < 0.35 and beyond > 0.08 * usual)):
                return
            new = self._interface_at(place)
            self.interfaces.insert(0, new) if way < 0 else self.interfaces.append(new)
            station = place


class _Ladder:
    """Place behind the bodies counted in levels: k at the middle of body k, half-way at interfaces.

    It runs down the posterior wall, since the planes of the discs may meet behind a lordotic spine; for the same reason
    its rungs lean only half as much as the canal does, which fits the processes best.
    """

    LEAN = 0.5

    def __init__(self, column: _Column, chain: _Chain) -> None:
        self._column = column
        rungs = [column.crossing(one.point, one.normal, one.station) for one in chain.interfaces]
        rungs = list(np.maximum.accumulate(rungs) + 1e-3 * np.arange(len(rungs)))
        usual = chain.spacing_mm
        self._rungs = np.array([rungs[0] - 2 * usual, rungs[0] - usual, *rungs, rungs[-1] + usual])
        self._levels = np.arange(len(self._rungs)) - 1.5  # the first disc lies half a level below body 0

    def place(self, points: np.ndarray) -> np.ndarray:
        """Levels (N,) of points (N, 3)."""
        station = self._column.station(points, self.LEAN)
        return np.interp(station, self._rungs, self._levels).astype(np.float32)

    def point(self, level: float) -> np.ndarray:
        """The point (3,) of the posterior wall at a level."""
        return self._column.at(float(np.interp(level, self._levels, self._rungs)))[0]


_ARCH_DEPTH = (0.0, 6.0, 10.0, 14.0, 18.0, 22.0)
_ARCH_PLACE = (-0.15, -0.16, 0.0, 0.23, 0.34, 0.36)
"""Where the middle of a vertebra's own arch and processes lies, in levels below its body's middle, by mm behind the
canal's anterior border: pedicles above, inferior articular and spinous processes below. Medians over those vertebrae of
the 30 patients of SPIDER's T2 SPACE scans that touch no other."""
_ARCH_HALF = 0.22
"""Half of the extent, in levels, within which a wave is not slowed."""
_ARCH_COST = 80.0
"""How a wave slows down away from there: so many times per squared level."""


def _off_place(place: np.ndarray, depth: np.ndarray, number: int) -> np.ndarray:
    """How many levels points lie away from where the arch of a vertebra is expected, by their place and depth."""
    usual = np.interp(depth, _ARCH_DEPTH, _ARCH_PLACE).astype(np.float32)
    return np.abs(place - (usual + number))


class _Posterior:
    """Which body the posterior elements belong to: the one whose wave arrives first, on a coarse grid."""

    def __init__(self, grid: _Grid, column: _Column, chain: _Chain) -> None:
        self._classes, self._spacing, self._first = grid.thinned(_GEODESIC_MM)
        self._chain, self._ladder = chain, _Ladder(column, chain)
        shape = self._classes.shape
        points = _positions(np.ones(shape, bool), self._spacing, self._first)
        depth = column.depth(points)
        self._depth = depth.reshape(shape)
        place = np.full(len(points), np.nan, np.float32)
        near = (depth > -15) & (depth < 90)
        place[near] = self._ladder.place(points[near])
        self._place = place.reshape(shape)
        vertebra = self._classes == VERTEBRA
        self._pace = np.where(vertebra, 1.0, np.where(self._classes == 0, 4.0, 12.0)).astype(np.float32)
        self._body = np.full(shape, _NONE, np.int16)
        body = vertebra & (self._depth < 0)
        self._body[body] = chain.body(points.reshape(*shape, 3)[body])
        self._arrival = np.full(shape, 1e6, np.float32)
        self.level = np.full(shape, _NONE, np.int16)
        for k in self.candidates(grid):
            self._wave(k)
        self._fill(self.candidates(grid))

    def candidates(self, grid: _Grid) -> range:
        """Bodies that have posterior elements: those seen, and the one above where the image ends above."""
        first = 0 if self._chain.volume[0] > 0 or grid.cut_above else 1
        return range(first - int(grid.cut_above), self._chain.last + 1)

    def _fill(self, numbers: range) -> None:
        """Give what no wave reached to the vertebra whose arch is expected there."""
        missed = (self.level == _NONE) & np.isfinite(self._place)
        if missed.any():
            usual = np.interp(self._depth[missed], _ARCH_DEPTH, _ARCH_PLACE)
            nearest = np.round(self._place[missed] - usual)
            self.level[missed] = np.clip(nearest, numbers.start, numbers.stop - 1).astype(np.int16)

    def _wave(self, k: int) -> None:
        """Arrival times from body k; voxels that it reaches first become its own."""
        beside = np.abs(self._place - (k + 0.25)) < 1.4
        wanted = beside & (self._classes == VERTEBRA) | (self._body == k) & (self._depth > -12)
        spans = [np.flatnonzero(wanted.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if len(spans[0]) == 0:
            return
        box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
        off = np.maximum(_off_place(self._place[box], self._depth[box], k) - _ARCH_HALF, 0)
        slowness = self._pace[box] * (1 + _ARCH_COST * off**2)
        body = self._body[box]
        slowness = np.where(np.isnan(slowness) | (body >= 0) & (body != k), 100, slowness)
        seeds = self._seeds(k, body, self._depth[box], box)
        image = sitk.GetImageFromArray((1 / slowness).astype(np.float32))
        image.SetSpacing([float(size) for size in self._spacing[::-1]])
        arrival = sitk.GetArrayFromImage(sitk.FastMarching(image, seeds, 1.0, 150.0))
        sooner = arrival < self._arrival[box]
        self._arrival[box][sooner] = arrival[sooner]
        self.level[box][sooner] = k

    def _seeds(self, k: int, body: np.ndarray, depth: np.ndarray, box: tuple[slice, ...]) -> list[list[int]]:
        """Voxels (x, y, z) at which the wave of body k starts: its posterior wall, or where that must be."""
        wall = np.argwhere((body == k) & (depth > -5))
        if len(wall) == 0:
            at = (self._ladder.point(k) - self._first) / self._spacing
            low = np.array([part.start for part in box])
            wall = np.clip(np.round(at) - low, 0, np.array(body.shape) - 1).astype(int)[None]
        return wall[:, ::-1].tolist()

    def at(self, grid: _Grid, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At a mask's voxels on the full grid (N,): level, `_NONE` where no wave came; place; depth."""
        return tuple(
            _nearest(coarse, grid, self._spacing, self._first)[mask]
            for coarse in (self.level, self._place, self._depth)
        )


_NONE = -9
_RIM = 0.05
"""Below this share of its neighbour a body is a rim of the neighbour's that reaches past the disc."""


@dataclass
class _Part:
    """A component of the vertebrae: which vertebra it is of, if of one, and what that rests on.

    Attributes:
        voxels: where its voxels are in the list of the vertebrae's voxels.
        volume: mm3.
        body: the one body that it holds, if it holds one and no other.
        number: the vertebra that all of it belongs to, or None where waves share it out.
        place: mean place in levels of what lies well behind the bodies, NaN if nothing does.
        span: extent of that along the slices, mm.
        cost: by vertebra, how far it lies from where that one's arch is expected.
    """

    voxels: np.ndarray
    volume: float
    body: int | None
    number: int | None
    place: float
    span: tuple[float, float]
    cost: dict[int, float]


_PROCESS_DEPTH = 14.0
"""Behind this many mm of the canal's anterior border there are laminae and processes only."""


class _Parts:
    """Gives each component of the vertebrae that is one vertebra's to it whole.

    Waves cut what touches. Where nothing touches they may still cut a process that lies half-way between two bodies; so
    a component that holds one body and reaches no further than its own processes, or holds none and is no longer than
    one vertebra's, is not cut, and spinous processes one below the other belong to vertebrae one below the other.
    """

    def __init__(self, mask: np.ndarray, points: np.ndarray, bodies: np.ndarray, numbers: range, voxel: float) -> None:
        """Of a mask (S, H, W) with N voxels at points (N, 3) mm, some of them bodies (N,)."""
        part = cc3d.connected_components(mask, connectivity=6)[mask]
        self._order = np.argsort(part, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(part)[1:])])
        self._points, self._bodies, self._numbers, self._voxel = points, bodies, numbers, voxel

    def settle(self, number: np.ndarray, place: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Numbers (N,), given those of bodies and waves and the voxels' places and depths (N,)."""
        parts = [
            self._part(self._order[start:end], number, place, depth)
            for start, end in zip(self._starts[:-1], self._starts[1:], strict=True)
        ]
        self._line_up([one for one in parts if one.number is not None and np.isfinite(one.place) and one.volume > 400])
        result = number.copy()
        for one in parts:
            if one.number is not None:
                result[one.voxels] = one.number
        return result

    def _part(self, voxels: np.ndarray, number: np.ndarray, place: np.ndarray, depth: np.ndarray) -> _Part:
        """What is known of one component."""
        own, behind = self._bodies[voxels], voxels[depth[voxels] > _PROCESS_DEPTH]
        volume = len(voxels) * self._voxel
        low, high = np.percentile(place[behind], [3, 97]) if len(behind) else (np.nan, np.nan)
        span = (float(self._points[behind, 0].min()), float(self._points[behind, 0].max())) if len(behind) else (0, 0)
        middle = float(place[behind].mean()) if len(behind) else np.nan
        if own.sum() * self._voxel > max(300.0, 0.02 * volume):
            held = np.bincount(number[voxels[own]] - _NONE)
            body = int(held.argmax()) + _NONE
            alone = held.max() > 0.97 * held.sum() and body > _NONE
            near = len(behind) == 0 or (low > body - 0.7 and high < body + 1.25)
            share = float((number[voxels] == body).mean())
            whole = body if alone and (near or share > 0.9) else None
            return _Part(voxels, volume, body if alone else None, whole, middle, span, {})
        sample = voxels[:: max(1, len(voxels) // 500)]
        cost = {k: float(np.mean(_off_place(place[sample], depth[sample], k) ** 2)) for k in self._numbers}
        single = len(behind) == 0 or high - low < 1.1
        return _Part(voxels, volume, None, min(cost, key=cost.__getitem__) if single else None, middle, span, cost)

    def _line_up(self, parts: list[_Part]) -> None:
        """Choose the vertebrae of parts behind the canal together, by dynamic programming down the spine."""
        parts.sort(key=lambda one: one.place)
        best: list[dict[int, tuple[float, int]]] = []
        for n, one in enumerate(parts):
            options: dict[int, tuple[float, int]] = {}
            for k in self._numbers:
                cost = one.cost.get(k, np.inf) if one.body is None else (0.0 if k == one.number else np.inf)
                cost *= np.sqrt(one.volume)
                if n == 0:
                    options[k] = (cost, k)
                    continue
                apart = self._apart(parts[n - 1], one)
                before = [(best[-1][m][0], m) for m in self._numbers if m <= k - apart]
                if before:
                    options[k] = (min(before)[0] + cost, min(before)[1])
                else:
                    options[k] = (np.inf, k)
            best.append(options)
        if not parts or not np.isfinite(min(cost for cost, _ in best[-1].values())):
            return
        k = min(best[-1], key=lambda option: best[-1][option][0])
        for one, options in zip(reversed(parts), reversed(best), strict=True):
            one.number = k
            k = options[k][1]

    @staticmethod
    def _apart(above: _Part, below: _Part) -> int:
        """Whether two parts lie one below the other, so that they cannot be one vertebra's: 1, otherwise 0."""
        beside = min(above.span[1], below.span[1]) < max(above.span[0], below.span[0])
        return int(not beside and below.place - above.place > 0.5)


class _Spine:
    """All instances on the full grid, numbered from the top.

    Attributes:
        vertebra: (S, H, W) int16, number of the vertebra + `FIRST`, 0 elsewhere. Vertebra k lies above interface k;
            of -1 only the arch is seen.
    """

    FIRST = 2

    def __init__(self, grid: _Grid) -> None:
        self.column = _column(grid)
        self.grid = grid = _without_stray_canal(grid, self.column)
        self.discs = _Discs(grid, self.column)
        self.chain = _Chain(grid, self.column, self.discs)
        self.vertebra = self._vertebrae()

    def _vertebrae(self) -> np.ndarray:
        grid, chain = self.grid, self.chain
        result = np.zeros(grid.classes.shape, np.int16)
        mask = grid.classes == VERTEBRA
        if not mask.any():
            return result
        points = grid.positions(mask)
        bodies = chain.in_body(points)
        number = np.zeros(len(points), np.int16)
        number[bodies] = self._body_numbers(points[bodies])
        if chain.interfaces and not bodies.all():
            posterior = _Posterior(grid, self.column, chain)
            level, place, depth = posterior.at(grid, mask)
            number[~bodies] = level[~bodies]
            parts = _Parts(mask, points, bodies, posterior.candidates(grid), float(np.prod(grid.spacing)))
            number = parts.settle(number, place, depth)
        result[mask] = np.where(number > _NONE, number + self.FIRST, 0)
        return result

    def _body_numbers(self, points: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the bodies at points (N, 3); a piece of the sacrum has `_NONE`."""
        chain = self.chain
        number = chain.body(points)
        below = number > chain.last
        if below.any():
            rim = chain.volume[-1] < _RIM * chain.volume[chain.last]
            number[below] = chain.last if rim else _NONE
        return number

    def disc_numbers(self) -> np.ndarray:
        """(S, H, W) uint8: number of the disc from 1 for every voxel of a disc, 0 elsewhere and in what is none."""
        mask = self.grid.classes == DISC
        result = np.zeros(mask.shape, np.uint8)
        discs = self.discs
        if not discs.map.any():
            return result
        coarse = _nearest(discs.map, self.grid, discs.spacing, discs.first)[mask].astype(np.int64)
        part = cc3d.connected_components(mask, connectivity=6)[mask].astype(np.int64)
        many = int(discs.map.max()) + 1
        count = np.bincount(part * many + coarse, minlength=(int(part.max()) + 1) * many).reshape(-1, many)
        count[:, 0] = 0
        number = np.where(count.any(axis=1), count.argmax(axis=1), 0)[part]
        joined = ((count > 0).sum(axis=1) > 1)[part]
        if joined.any():  # discs that touch: what the coarse grid missed goes to the nearest plane
            points = self.grid.positions(mask)[joined]
            known = [one for one in self.chain.interfaces if one.number]
            planes = np.array([one.number for one in known])
            nearest = planes[np.argmin([np.abs(one.below(points)) for one in known], axis=0)]
            number[joined] = np.where(coarse[joined] > 0, coarse[joined], nearest)
        result[mask] = number
        return result


def _nearest(coarse: np.ndarray, grid: _Grid, spacing: np.ndarray, first: np.ndarray) -> np.ndarray:
    """A coarse map (S', H', W') seen on the full grid (S, H, W): every voxel has the value of the nearest one."""
    index = [
        np.clip(np.round((np.arange(n) * size - start) / step), 0, m - 1).astype(int)
        for n, size, start, step, m in zip(grid.classes.shape, grid.spacing, first, spacing, coarse.shape, strict=True)
    ]
    return coarse[np.ix_(*index)]


def _upwards(lowest: str) -> list[str]:
    """Levels from `lowest` up to C1; T13 and L6 only where the count starts there."""
    levels = [level for level in vertebra_levels() if level not in ("T13", "L6") or level == lowest]
    return levels[levels.index(lowest) :: -1]


def _downwards(lowest: str) -> list[str]:
    """Levels below `lowest`, the sacrum last."""
    levels = [level for level in vertebra_levels() if level not in ("T13", "L6") or level == lowest]
    return [*levels[levels.index(lowest) + 1 :], "S1"]


def _disc_level(upper: str, lower: str) -> str | None:
    """The disc's level between two vertebrae, or None where the encoding has none."""
    known = {row.level for row in structures().values() if row.kind == "disc"}
    if lower == "S1":
        return "L5/S1"  # the lumbosacral disc, also below L6
    level = {"T13/L1": "T12/L1"}.get(f"{upper}/{lower}", f"{upper}/{lower}")
    return level if level in known else None


def _names(spine: _Spine, lowest: str) -> tuple[dict[int, int], dict[int, int], list[Notice]]:
    """Label values by the number of the vertebra and of the disc, and what to tell about them."""
    chain = spine.chain
    anchor = chain.last - int(chain.last_cut and chain.last > 0)
    up, down = _upwards(lowest), _downwards(lowest)
    level = {anchor - n: name for n, name in enumerate(up)} | {anchor + n: name for n, name in enumerate(down, 1)}
    discs = {}
    for k, one in enumerate(chain.interfaces):
        name = _disc_level(level[k], level[k + 1]) if k in level and k + 1 in level else None
        if one.number and name:
            discs[one.number] = value_of(name)
    present = {int(k) - spine.FIRST for k in np.flatnonzero(np.bincount(spine.vertebra.ravel())) if k}
    vertebrae = {k: value_of(name) for k, name in level.items() if k in present}
    return vertebrae, discs, _notices(spine, lowest, level, present)


def _notices(spine: _Spine, lowest: str, level: dict[int, str], present: set[int]) -> list[Notice]:
    """What the names rest on, given the level by the vertebra's number and the numbers of those seen."""
    chain, notices = spine.chain, []
    discs = [one for one in chain.interfaces if one.number]
    if not present and not discs:
        return [Notice("FEW_STRUCTURES", "No vertebra and no disc was found, so no level could be named.")]
    if len(present) < 2 or not discs:
        notices.append(
            Notice(
                "FEW_STRUCTURES",
                f"Only {_count(len(present), 'vertebra', 'vertebrae')} and {_count(len(discs), 'disc', 'discs')} were "
                "found. Check whether the volume shows the spine.",
            )
        )
    sacrum, why = _sacrum_seen(spine)
    text = f"The lowest complete vertebra was named {lowest} and the others were counted upwards from it: {why}."
    if chain.last_cut:
        text += " A vertebra cut by the lower border lies below it."
    notices.append(Notice("LEVELS_ASSUMED", text))
    if lowest in ("L5", "L6") and not sacrum:
        notices.append(
            Notice(
                "LEVELS_DOUBTFUL",
                f"The sacrum does not show below the lowest complete vertebra, so it may not be {lowest}. State its "
                "level (--lowest) if you know it.",
            )
        )
    if sacrum and _rudimentary(discs):
        notices.append(
            Notice(
                "TRANSITIONAL",
                "The lowest disc is much smaller than the others, as between a transitional vertebra and the sacrum. "
                "Check the number of lumbar vertebrae.",
            )
        )
    if chain.guessed:
        notices.append(
            Notice(
                "DISC_MISSING",
                f"{_count(chain.guessed, 'disc was', 'discs were')} not found and the vertebrae there were told apart "
                "by their height. Check the levels.",
            )
        )
    extra = [k for k in present if k not in level]
    if extra:
        notices.append(
            Notice(
                "TOO_MANY_VERTEBRAE",
                f"{_count(len(extra), 'vertebra', 'vertebrae')} beyond the end of the spine when {lowest} is the "
                "lowest: left without a label. State the right level of the lowest vertebra.",
            )
        )
    return notices


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


_SACRUM_MM = 15.0
"""Image below the lowest disc in which another lumbar vertebra would show."""


def _sacrum_seen(spine: _Spine) -> tuple[bool, str]:
    """Whether what is below the lowest complete vertebra looks like the sacrum, and the reason in words."""
    chain, grid = spine.chain, spine.grid
    if chain.last_cut:
        return False, "the image ends in the vertebra below"
    if chain.last == len(chain.interfaces) or not chain.interfaces[chain.last].number:
        return False, "no disc was found below it"
    below = (grid.classes.shape[1] - 1) * grid.spacing[1] + grid.below_mm - chain.interfaces[-1].point[1]
    if below < _SACRUM_MM:
        return False, "the image ends at the disc below it"
    return True, "a disc lies below it and no further vertebra, as above the sacrum"


def _rudimentary(discs: list[_Interface]) -> bool:
    """Whether the lowest disc is far smaller than the two above it."""
    if len(discs) < 4:
        return False
    last, above = discs[-1], discs[-3:-1]
    return last.volume < 0.25 * min(one.volume for one in above) and last.depth < 0.7 * min(one.depth for one in above)


def _labels(spine: _Spine, vertebrae: dict[int, int], discs: dict[int, int]) -> np.ndarray:
    """Label values (S, H, W) uint8 on the full grid."""
    of_vertebra = np.zeros(256, np.uint8)
    for k, value in vertebrae.items():
        of_vertebra[k + spine.FIRST] = value
    of_disc = np.zeros(256, np.uint8)
    for number, value in discs.items():
        of_disc[number] = value
    labels = of_vertebra[spine.vertebra]
    labels += of_disc[spine.disc_numbers()]
    labels[spine.grid.classes == CANAL] = CANAL_VALUE
    return labels


def _partial(labels: np.ndarray) -> frozenset[int]:
    """Values that the field of view cuts: at rows and columns where they touch its border, at slices where much does.

    A structure ends by itself in the outermost slice if little of it is there; it is cut if that slice shows at least
    two fifths of what its fullest slice shows.
    """
    borders = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    cut = set(np.flatnonzero(sum(np.bincount(border.ravel(), minlength=256) for border in borders)).tolist())
    area = np.stack([np.bincount(one.ravel(), minlength=256) for one in labels])
    outer = np.maximum(area[0], area[-1])
    cut |= set(np.flatnonzero((outer > 0) & (outer >= 0.4 * area.max(axis=0))).tolist())
    return frozenset(cut - {0})
