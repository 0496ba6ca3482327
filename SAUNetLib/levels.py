"""Classes to vertebrae and discs one by one, each with its level."""

from __future__ import annotations

from dataclasses import dataclass

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
_GEODESIC_MM = 1.3
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
    spine = _Spine(_Grid.of(stack, box))
    names, notices = _names(spine, lowest)
    labels[box] = spine.labels(names)
    return Levels(labels, _partial(labels), tuple(notices))


def _bounding_box(classes: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box around everything that is not background."""
    rows = classes.any(axis=2)
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
    """Classes (S, H, W) cut to what is not background; spacing (3,) in mm; whether rows end at the image's border."""

    classes: np.ndarray
    spacing: np.ndarray
    cut_above: bool
    cut_below: bool

    @classmethod
    def of(cls, stack: SagittalStack, box: tuple[slice, slice, slice]) -> _Grid:
        spacing = np.array([stack.slice_spacing, *stack.pixel])
        classes = _without_specks(np.ascontiguousarray(stack.slices[box], np.uint8), spacing)
        return cls(classes, spacing, box[1].start == 0, box[1].stop == stack.slices.shape[1])

    def thinned(self, least_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every n-th voxel such that voxels are at least about `least_mm`: classes, spacing (3,), first position (3,)."""
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
        tangent = np.stack([np.gradient(_smooth(self.side, 12.0)), np.ones_like(straight), np.gradient(straight)], axis=1)
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

    def station(self, points: np.ndarray) -> np.ndarray:
        """Place (N,) of points (N, 3) along the line, mm: the foot of the perpendicular."""
        row = points[:, 1].astype(np.float32)
        for _ in range(4):
            along = (points[:, 1] - row) * np.interp(row, self.rows, self._tangent[:, 1])
            along += (points[:, 2] - np.interp(row, self.rows, self._straight)) * np.interp(
                row, self.rows, self._tangent[:, 2]
            )
            along += (points[:, 0] - np.interp(row, self.rows, self.side)) * np.interp(
                row, self.rows, self._tangent[:, 0]
            )
            row = np.clip(row + 0.8 * along, self.rows[0], self.rows[-1])
        return np.interp(row, self.rows, self._station)

    def at(self, station: float) -> tuple[np.ndarray, np.ndarray]:
        """The line's point (3,) at a station and its tangent (3,)."""
        row = float(np.interp(station, self._station, self.rows))
        point = np.array([np.interp(row, self.rows, self.side), row, np.interp(row, self.rows, self._straight)])
        return point, self.tangent(row)


def _extended(rows: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at rows, linear between and, by the slope of the last 40 mm (at most 45 degrees), beyond those seen."""
    result = np.interp(rows, seen, values)
    for outside, inside, end in (
        (rows < seen[0], seen <= seen[0] + 40, 0),
        (rows > seen[-1], seen >= seen[-1] - 40, -1),
    ):
        if inside.sum() > 3 and np.ptp(seen[inside]) > 10:
            slope = float(np.clip(np.polyfit(seen[inside], values[inside], 1)[0], -1, 1))
            result[outside] = values[inside].mean() + slope * (rows[outside] - seen[inside].mean())
    return result


def _column(grid: _Grid) -> _Column:
    """The posterior wall from the canal, where there is none from the discs, and without both from the vertebrae."""
    classes = grid.classes
    canal = classes == CANAL
    rows, back, side = _edge(canal, first=True, spacing=grid.spacing)
    discs = classes == DISC
    if discs.any():
        more = _edge(discs, first=False, spacing=grid.spacing)
        far = np.abs(more[0][:, None] - rows[None, :]).min(axis=1) > 15 if len(rows) else np.ones(len(more[0]), bool)
        rows, back, side = (np.concatenate([a, b[far]]) for a, b in zip((rows, back, side), more, strict=True))
    if len(rows) * grid.spacing[1] < 3 or (not canal.any() and np.ptp(rows) < 15):
        cores = _cores(classes == VERTEBRA, grid.spacing)
        if cores.any():
            rows, back, side = _edge(cores, first=False, spacing=grid.spacing)
    order = np.argsort(rows, kind="stable")
    return _Column(rows[order], back[order], side[order])


def _edge(mask: np.ndarray, first: bool, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row with a mask: mm of the row, of the first or last column (median over slices), of the slices' mean."""
    any_column = mask.any(axis=2)
    seen = np.flatnonzero(any_column.any(axis=0))
    if len(seen) == 0:
        empty = np.zeros(0)
        return empty, empty, empty
    rows, there = mask[:, seen], any_column[:, seen]
    column = rows.argmax(axis=2) if first else mask.shape[2] - 1 - rows[:, :, ::-1].argmax(axis=2)
    edge = np.nanmedian(np.where(there, column, np.nan), axis=0)
    slices = (there * np.arange(len(mask))[:, None]).sum(axis=0) / there.sum(axis=0)
    return seen * spacing[1], edge * spacing[2], slices * spacing[0]


def _cores(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The bulky parts of vertebrae (S, H, W): what an opening leaves that posterior elements do not survive."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    radius = [round(7.5 / size) for size in spacing[[2, 1]]]
    opened = sitk.BinaryMorphologicalOpening(image, [*radius, 0], sitk.sitkBox)
    cores = sitk.GetArrayFromImage(opened).astype(bool)
    return cores if cores.any() else mask
