"""The finely sampled grid on which tissues are painted, and smooth random textures fixed to the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .options import PhantomOptions
from .spine import LocalFrame

SAMPLE_MM = 0.9
"""Samples through a slice lie at most this far apart; their number is odd."""


Point = tuple[float, float, float]


class Canvas:
    """Tissue and label of every sample: sub-slices (S), rows (R) from superior to inferior, columns (C) to posterior.

    The sub-slices of one slice are also shifted within the pixel, so that their mean is smooth at edges.

    Attributes:
        tissue, label: (S, R, C) uint8.
        x: (S,) mm; y: (S, C); z: (S, R), patient coordinates LPS.
        samples: sub-slices per slice.
        origin: (3,) mm, centre of the first voxel (k, j, i) = (0, 0, 0).
    """

    def __init__(self, options: PhantomOptions, centre: np.ndarray) -> None:
        """`centre` is the middle of the field of view, mm, LPS. The first slice is the leftmost one."""
        slices, rows, columns = options.size
        count = max(3, int(np.ceil(options.slice_thickness / SAMPLE_MM)) // 2 * 2 + 1)
        self.samples = count
        place = (np.arange(count) + 0.5) / count - 0.5
        toward_left = (slices - 1) / 2 - np.arange(slices)
        self.x = (centre[0] + options.pitch * toward_left[:, None] - options.slice_thickness * place).ravel()
        step = 2 if count % 3 else 1  # a permutation of the sub-slices' places within the pixel
        shift = place[(np.arange(count) * step + count // 2) % count] * options.pixel
        row = centre[2] + options.pixel * ((rows - 1) / 2 - np.arange(rows))
        column = centre[1] + options.pixel * (np.arange(columns) - (columns - 1) / 2)
        self.row, self.column = row, column
        self.z = np.tile(row[None] + shift[::-1, None], (slices, 1)).astype(np.float32)
        self.y = np.tile(column[None] + shift[:, None], (slices, 1)).astype(np.float32)
        self.origin = np.array((centre[0] + options.pitch * (slices - 1) / 2, column[0], row[0]))
        self.tissue = np.zeros((len(self.x), rows, columns), np.uint8)
        self.label = np.zeros_like(self.tissue)
        self.pixel = options.pixel

    def region(self, low: np.ndarray, high: np.ndarray) -> Region | None:
        """The samples in a box of patient coordinates; None outside the field of view."""
        inside = np.flatnonzero((self.x >= low[0]) & (self.x <= high[0]))
        margin = self.pixel
        rows = np.flatnonzero((self.row >= low[2] - margin) & (self.row <= high[2] + margin))
        columns = np.flatnonzero((self.column >= low[1] - margin) & (self.column <= high[1] + margin))
        if not (len(inside) and len(rows) and len(columns)):
            return None
        where = tuple(slice(int(part[0]), int(part[-1]) + 1) for part in (inside, rows, columns))
        return Region(self, where)

    def around(self, points: Sequence[np.ndarray], margin: float) -> Region | None:
        """The samples within `margin` mm of the box around points."""
        stacked = np.stack(points)
        return self.region(stacked.min(0) - margin, stacked.max(0) + margin)

    def local_box(self, frame: LocalFrame, low: Point, high: Point) -> Region | None:
        """The samples in the axis-aligned box, in patient coordinates, around a box of local coordinates."""
        corners = [frame.at(x, y, z) for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        return self.around(corners, 0.0)


@dataclass(frozen=True)
class Region:
    """A box of samples."""

    canvas: Canvas
    where: tuple[slice, ...]

    def local(self, frame: LocalFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of the samples in a frame, each (s, r, c)."""
        sub, rows, columns = self.where
        x = (self.canvas.x[sub] - frame.centre[0]).astype(np.float32)[:, None, None]
        y = self.canvas.y[sub, columns][:, None, :] - np.float32(frame.centre[1])
        z = self.canvas.z[sub, rows][:, :, None] - np.float32(frame.centre[2])
        axes = frame.axes.astype(np.float32)
        along = [(axis[0] * x + axis[1] * y) + axis[2] * z for axis in axes]
        return along[0], along[1], along[2]

    def paint(self, mask: np.ndarray, tissue: int | None, label: int | None = None) -> None:
        """Set tissue and label where the mask (s, r, c) is true; None leaves them unchanged."""
        if tissue is not None:
            self.canvas.tissue[self.where][mask] = tissue
        if label is not None:
            self.canvas.label[self.where][mask] = label

    @property
    def tissue(self) -> np.ndarray:
        return self.canvas.tissue[self.where]

    @property
    def label(self) -> np.ndarray:
        return self.canvas.label[self.where]


class Texture:
    """Smooth noise of zero mean and unit standard deviation, periodic, fixed to patient coordinates.

    A cube of random numbers interpolated with cubic B-splines, so that it does not depend on the sampling.
    """

    DEVIATION = 0.69  # of white noise interpolated with a cubic B-spline along one axis, mean over positions

    def __init__(self, rng: np.random.Generator, scale: tuple[float, float, float], count: int = 48) -> None:
        """`scale` is the mm between random numbers along x, y, z."""
        self.scale = scale
        self.cube = rng.standard_normal((count, count, count)).astype(np.float32) / np.float32(self.DEVIATION**3)

    def plane(self, x: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Values (R, C) in a sagittal plane, from the matrices of `weights` for rows (z) and columns (y)."""
        count = len(self.cube)
        weight = spline_weights(np.array([x]), self.scale[0], count)[0]
        used = np.flatnonzero(weight)
        return rows @ (np.tensordot(weight[used], self.cube[used], 1) @ columns.T)

    def weights(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Interpolation matrices for positions along z and y in mm."""
        count = len(self.cube)
        return spline_weights(rows, self.scale[2], count), spline_weights(columns, self.scale[1], count)


def spline_weights(at: np.ndarray, scale: float, count: int) -> np.ndarray:
    """(N, count) periodic cubic B-spline weights for positions (N,) in mm over nodes `scale` mm apart."""
    place = np.asarray(at, float) / scale
    base = np.floor(place).astype(int)
    t = place - base
    weights = np.zeros((len(place), count), np.float32)
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    for offset, part in enumerate(parts, -1):
        np.add.at(weights, (np.arange(len(place)), (base + offset) % count), part / 6)
    return weights


def linear_weights(at: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(N, M) linear interpolation weights for positions (N,) between evenly spaced nodes (M,)."""
    place = np.clip((np.asarray(at, float) - nodes[0]) / (nodes[1] - nodes[0]), 0, len(nodes) - 1 - 1e-6)
    base = np.floor(place).astype(int)
    weights = np.zeros((len(place), len(nodes)), np.float32)
    weights[np.arange(len(place)), base] = 1 - (place - base)
    weights[np.arange(len(place)), base + 1] = place - base
    return weights
