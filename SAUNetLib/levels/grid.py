"""The classes cropped to the spine, and the positions of their voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cc3d
import numpy as np

from ..masks import Box
from ..volume import SagittalStack

WORKING_MM = 0.9
"""Approximate least voxel size for finding discs and measuring profiles."""
_ISLAND_MM3 = 60.0
"""Smaller components are specks."""


def rows_with(mask: np.ndarray) -> np.ndarray:
    """Which rows (H,) of a mask (S, H, W) are not empty."""
    seen = np.asarray(mask.any(axis=0))  # slices first: faster than both axes at once
    return np.asarray(seen.any(axis=1))


def _thin(classes: np.ndarray, spacing: np.ndarray) -> float:
    """Factor for least volumes where slices span little and show only part of a structure: 1 from 10 mm on."""
    return float(min(1.0, classes.shape[0] * spacing[0] / 10))


def _remove_specks(classes: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Set components below `_ISLAND_MM3`, or less if slices span only a few mm, to background in classes (S, H, W).

    Returns:
        (S, H, W) the components, numbered from 1 in the order of their first voxels, including those removed.
    """
    least = _ISLAND_MM3 * _thin(classes, spacing)
    components = cc3d.connected_components(classes, connectivity=6)
    seen = np.flatnonzero(classes > 0)  # most of the box is background
    component = components.ravel()[seen]
    small = np.bincount(component) * np.prod(spacing) < least
    if small[1:].any():
        classes.ravel()[seen[small[component]]] = 0
    return components


@dataclass(frozen=True)
class Grid:
    """Classes cropped to everything that is not background.

    Attributes:
        classes: (S, H, W) uint8.
        components: (S, H, W), number of each voxel's single-class component (6 neighbours); meaningless in background.
        spacing: (3,) mm between slices, rows, columns.
        first: (3,) mm, where the first voxel lies.
        above_mm, below_mm: extent of the image above and below.
    """

    classes: np.ndarray
    components: np.ndarray
    spacing: np.ndarray
    first: np.ndarray
    above_mm: float
    below_mm: float

    @classmethod
    def of(cls, stack: SagittalStack, box: Box) -> Grid:
        """A stack's classes within a box, without specks."""
        spacing = np.array([stack.slice_spacing, *stack.pixel])
        classes = np.array(stack.slices[box], np.uint8, order="C")
        components = _remove_specks(classes, spacing)
        rows = stack.slices.shape[1]
        above_mm, below_mm = box[1].start * spacing[1], (rows - box[1].stop) * spacing[1]
        return cls(classes, components, spacing, np.zeros(3), above_mm, below_mm)

    @property
    def cut_above(self) -> bool:
        """Whether the image's upper border cuts something."""
        return self.above_mm == 0

    @property
    def cut_below(self) -> bool:
        """Whether the image's lower border cuts something."""
        return self.below_mm == 0

    @property
    def last_row(self) -> float:
        """Position of the last row, mm."""
        return float(self.first[1] + (self.classes.shape[1] - 1) * self.spacing[1])

    @property
    def thin(self) -> float:
        """Factor for least volumes, see `_thin`."""
        return _thin(self.classes, self.spacing)

    @property
    def voxel(self) -> float:
        """Volume of a voxel, mm3."""
        return float(np.prod(self.spacing))

    def thinned(self, least_mm: float) -> Grid:
        """Subsample to every n-th voxel, for voxels of about `least_mm` or more."""
        shape = np.array(self.classes.shape)
        step = np.clip(np.round(least_mm / self.spacing), 1, shape).astype(int)
        start = np.minimum(step // 2, shape - 1)
        every = tuple(slice(int(a), None, int(n)) for a, n in zip(start, step, strict=True))
        return replace(
            self,
            classes=np.ascontiguousarray(self.classes[every]),
            components=self.components[every],
            spacing=self.spacing * step,
            first=self.first + self.spacing * start,
        )

    def positions(self, mask: np.ndarray) -> np.ndarray:
        """Positions (N, 3) in mm, slice, row, column, of a mask's voxels on this grid."""
        return Voxels(self, mask).points


@dataclass(frozen=True)
class Image:
    """The slices that classes were found in.

    Attributes:
        slices: (S, H, W), the whole field of view.
        spacing: (3,) mm between slices, rows, columns.
        first: (3,) mm, where the first voxel lies on the grid.
    """

    slices: np.ndarray
    spacing: np.ndarray
    first: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Nearest-voxel values (M,) at those of the grid's points (N, 3) that lie inside the image."""
        index = np.round((points - self.first) / self.spacing).astype(int)
        inside = ((index >= 0) & (index < self.slices.shape)).all(axis=1)
        return np.asarray(self.slices[tuple(index[inside].T)])

    @cached_property
    def darkest(self) -> float:
        """The image's black level: 0.5 percentile of every 16th row and column."""
        return float(np.percentile(self.slices[:, ::16, ::16], 0.5))


class Voxels:
    """A list of voxels of a grid, in the array's order: most of a volume is background.

    Attributes:
        flat: (N,) their indices in the flattened array.
    """

    def __init__(self, grid: Grid, mask: np.ndarray) -> None:
        self._grid = grid
        self.flat = np.flatnonzero(mask)
        # Like np.unravel_index, but twice as fast.
        rows, columns = (max(1, count) for count in mask.shape[1:])
        line = self.flat // columns
        number = line // rows
        self._index = number, line - number * rows, self.flat - line * columns

    @cached_property
    def points(self) -> np.ndarray:
        """Positions (N, 3) in mm, slice, row, column, float32."""
        grid = self._grid
        points = np.empty((len(self.flat), 3), np.float32)
        for axis, (count, size, first) in enumerate(zip(grid.classes.shape, grid.spacing, grid.first, strict=True)):
            points[:, axis] = (np.arange(count) * size + first).astype(np.float32)[self._index[axis]]
        return points

    def of(self, values: np.ndarray) -> np.ndarray:
        """Their values (N,) in an array (S, H, W) on their grid."""
        return np.asarray(values.ravel()[self.flat])

    def nearest(self, coarse: Grid) -> np.ndarray:
        """Indices (N,) of the nearest voxels of a coarse grid in its flattened array."""
        grid, shape = self._grid, coarse.classes.shape
        first = coarse.first - grid.first
        at = np.zeros(len(self.flat), np.intp)
        for axis, count in enumerate(grid.classes.shape):
            place = (np.arange(count) * grid.spacing[axis] - first[axis]) / coarse.spacing[axis]
            near = np.clip(np.round(place), 0, shape[axis] - 1).astype(np.intp)
            at += (near * int(np.prod(shape[axis + 1 :])))[self._index[axis]]
        return at


def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (N,) on an even grid smoothed by a Gaussian of `sigma` steps; straight lines stay straight at the ends.

    Beyond the ends they continue with the mean slope of the last steps, since a profile's last row may be a speck;
    `measurements.centreline.smooth` keeps the ends in place.
    """
    reach = max(1, int(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    ends = np.arange(reach, 0, -1)
    near = min(len(values) - 1, max(1, int(2 * sigma)))
    before = values[0] - ends * (values[near] - values[0]) / max(near, 1)
    after = values[-1] + ends[::-1] * (values[-1] - values[-1 - near]) / max(near, 1)
    return np.convolve(np.concatenate([before, values, after]), kernel / kernel.sum(), mode="valid")
