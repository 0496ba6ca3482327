"""A label map as sagittal slices in millimetres, and its resampling along a structure's own axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import find_objects

from ..volume import Geometry, SagittalStack, Volume

LEFT, _, BACK = np.eye(3)
"""Unit vectors of the space: along slices and columns."""


@dataclass(frozen=True)
class AnatomicalFrame:
    """A structure's own coordinate system in a `LabelSpace`.

    Attributes:
        origin: (3,) mm.
        axes: (3, 3), its rows are the unit vectors toward left, posterior and superior.
    """

    origin: np.ndarray
    axes: np.ndarray

    @classmethod
    def facing(cls, origin: np.ndarray, up: np.ndarray, back: np.ndarray) -> AnatomicalFrame:
        """A frame whose third axis is `up` and whose second one is as near to `back` as that allows."""
        up = up / np.linalg.norm(up)
        back = back - (back @ up) * up
        back = back / np.linalg.norm(back)
        left = np.cross(up, back)
        return cls(np.asarray(origin, float), np.stack([left if left @ LEFT > 0 else -left, back, up]))

    def local(self, points: np.ndarray) -> np.ndarray:
        """Coordinates (..., 3) in this frame of points (..., 3) of the space."""
        return (points - self.origin) @ self.axes.T

    def point(self, *local: float) -> np.ndarray:
        """The point (3,) of the space at local coordinates."""
        return self.origin + np.asarray(local, float) @ self.axes


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """Labels (S, H, W) with positions in mm along slices (to the left), rows (down) and columns (to the back).

    A rigid transform of the patient's space, so that distances and angles in it are the patient's.

    Attributes:
        stack: the labels as sagittal slices.
        grid: the geometry of these slices.
    """

    stack: SagittalStack
    grid: Geometry

    @classmethod
    def of(cls, labels: np.ndarray, geometry: Geometry) -> LabelSpace:
        """From labels (k, j, i) on a grid."""
        stack = SagittalStack.of(Volume(labels, geometry))
        return cls(stack, stack.grid(geometry))

    def without(self, strays: np.ndarray) -> LabelSpace:
        """A copy with the voxels `strays` (S, H, W) bool as background."""
        return LabelSpace(self.stack.with_slices(np.where(strays, 0, self.labels)), self.grid)

    @property
    def labels(self) -> np.ndarray:
        """(S, H, W) uint8."""
        return self.stack.slices

    @cached_property
    def spacing(self) -> np.ndarray:
        """(3,) mm."""
        return np.array([self.stack.slice_spacing, *self.stack.pixel])

    @property
    def pixel(self) -> float:
        """The longer side of a pixel of the slices in mm."""
        return float(self.spacing[1:].max())

    @property
    def last(self) -> np.ndarray:
        """Position (3,) of the last voxel."""
        return (np.array(self.labels.shape) - 1) * self.spacing

    def to_patient(self, points: np.ndarray) -> np.ndarray:
        """Positions (..., 3) in mm, LPS, of points of the space."""
        return self.grid.points((np.asarray(points) / self.spacing)[..., ::-1])

    def from_patient(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the space at positions in mm, LPS."""
        index = np.linalg.solve(self.grid.direction, (np.asarray(points) - self.grid.origin)[..., None])[..., 0]
        return index[..., ::-1]

    @cached_property
    def _boxes(self) -> dict[int, tuple[slice, slice, slice]]:
        return {value: box for value, box in enumerate(find_objects(self.labels), 1) if box is not None}

    @property
    def values(self) -> list[int]:
        """Label values present."""
        return list(self._boxes)

    def box(self, value: int) -> tuple[slice, slice, slice]:
        """The smallest box of voxels around a structure."""
        return self._boxes[value]

    def touches(self, value: int, axis: int) -> bool:
        """Whether a structure reaches the first or the last voxel of an axis."""
        part = self.box(value)[axis]
        return part.start == 0 or part.stop == self.labels.shape[axis]

    def points(self, value: int, apart: float | np.ndarray = 1.5) -> np.ndarray:
        """Positions (N, 3) of a structure's voxels, thinned to about `apart` mm (scalar or (3,) by axis); N > 0."""
        box = self.box(value)
        step = np.maximum(1, np.round(apart / self.spacing)).astype(int)
        step = np.minimum(step, [max(1, (span.stop - span.start) // 2) for span in box])
        first = np.array([span.start for span in box])
        start = first + step // 2
        labels = self.labels[tuple(slice(int(a), b.stop, int(n)) for a, b, n in zip(start, box, step, strict=True))]
        if (labels == value).any():
            return (np.argwhere(labels == value) * step + start) * self.spacing
        # The few voxels of a small structure may all lie between those sampled.
        return (np.argwhere(self.labels[box] == value) + first) * self.spacing

    def sample(self, value: int, frame: AnatomicalFrame, nodes: SamplingGrid) -> np.ndarray:
        """Share of a structure at nodes in a frame: (X, Y, Z) float32, 0 to 1.

        The mask is interpolated linearly between voxels; its outline is where the value is one half.
        """
        box = tuple(
            slice(max(0, p.start - 1), min(n, p.stop + 1))
            for p, n in zip(self.box(value), self.labels.shape, strict=True)
        )
        mask = np.ascontiguousarray(self.labels[box] == value).astype(np.float32)
        # A structure is continued beyond the outermost slices; in the other directions it ends with the image.
        mask = np.pad(np.pad(mask, ((1, 1), (0, 0), (0, 0)), mode="edge"), ((0, 0), (1, 1), (1, 1)))
        first = (np.array([part.start for part in box]) - 1) * self.spacing
        return resample(mask, first, self.spacing, frame, nodes)


@dataclass(frozen=True)
class SamplingGrid:
    """The nodes of a regular grid along a frame's axes: left x (X,), posterior y (Y,), superior z (Z,), mm."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @classmethod
    def spanning(
        cls, x: tuple[float, float, float], y: tuple[float, float, float], z: tuple[float, float, float]
    ) -> SamplingGrid:
        """From each axis' first and last node and step."""
        return cls(*(np.linspace(a, b, max(2, round((b - a) / step) + 1)) for a, b, step in (x, y, z)))


def resample(
    values: np.ndarray, first: np.ndarray, spacing: np.ndarray, frame: AnatomicalFrame, nodes: SamplingGrid
) -> np.ndarray:
    """Values (S, H, W) float32, whose first voxel lies at `first`, at nodes: (X, Y, Z) float32, 0 outside."""
    image = sitk.GetImageFromArray(values)
    image.SetOrigin(first[::-1].tolist())
    image.SetSpacing([float(size) for size in spacing[::-1]])
    axes = (nodes.x, nodes.y, nodes.z)
    # ITK's axes (x fastest) are the space's columns, rows, slices; the output's fastest axis is the nodes' z.
    direction = frame.axes[::-1, ::-1].T
    origin = frame.point(*(axis[0] for axis in axes))[::-1]
    result = sitk.Resample(
        image, [len(axis) for axis in reversed(axes)], sitk.Transform(), sitk.sitkLinear, origin.tolist(),
        [float(axis[1] - axis[0]) for axis in reversed(axes)], direction.ravel().tolist(), 0.0, sitk.sitkFloat32, True,
    )  # fmt: skip
    return sitk.GetArrayFromImage(result)
