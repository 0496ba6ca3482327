"""The centreline of the spinal canal, and the points in front of the canal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .space import BACK, AnatomicalFrame, LabelSpace

STEP = 2.0
"""mm between the line's points."""
_LEAST_MM = 10.0
"""Discs that span less than this, mm, from the top down give no line; two of the neck lie about 15 mm apart."""
_FEW, _FEW_MM, _FEW_MEANS = 20, 15.0, 10
"""Fewest voxels and least height, mm, of a canal with a line; most points of an unsmoothed line (chosen by hand)."""
_ROUNDS = 3
"""How often the line is refitted to the mean of the voxels beside each of its points (chosen by hand)."""
_SPARSE = 0.3
"""End steps of a canal with at most this fraction of the median number of voxels are dropped (chosen by hand)."""
_SMOOTH, _SMOOTH_TANGENT, _SMOOTH_BORDER = 3.0, 4.0, 1.5
"""Sigma, in steps, for smoothing the line, its tangents and its distance to the anterior border (chosen by hand)."""
_BEYOND = 60.0
"""mm by which the line is extended straight beyond its ends, enough for a whole vertebra (chosen by hand)."""
_END = 10
"""Steps at the line's end that give the direction of the extension (chosen by hand)."""
_MIDDLE_MM, _FRONT = 5.0, 96
"""The anterior border is this percentile of the voxels within this distance, mm, of the middle on either side."""
_HALF_MM = 7.0
"""Distance, mm, from the line to an anterior border that is not seen: half a usual canal's depth (chosen by hand).
Without any canal, `landmarks._HALF_CANAL_MM` is measured from the discs."""
_ASIDE_MM = 5.0
"""mm up and down over which a canal's depth in a slice is averaged (chosen by hand)."""
_DEEPEST, _FLAT = 0.85, 0.5
"""Fractions of the deepest slice's depth above which an outermost slice counts as deep, and below which as flat."""
_SLAB_MM, _RISING = 9.0, 0.8
"""Where the slices cover less than this (mm, half a canal's width), flat is below this fraction (chosen by hand)."""
_LEAST_SPAN_MM = 4.0
"""Slices that cover less than the width, mm, that the diameter is averaged over cannot tell a side from the middle."""
_APART = 6.0
"""Points above or below the canal count from this distance, mm, on."""
_BORDER_MM = 1.0
"""Points up to this far, mm, behind the canal's anterior border count as in front: voxels of both meet there."""
_NEAR_MM = 60.0
"""How far up and down, mm, the line is followed in a structure's frame."""


@dataclass(frozen=True, eq=False)
class Centreline:
    """A smooth line down the canal's middle, with points about `STEP` mm apart.

    Attributes:
        points: (N, 3) mm, from the top down.
        half: (N,) mm from the line to the canal's anterior border.
        first, last: index of the first and last point at which the canal is seen.
        told: index of the first and last point that rest on the canal or a disc; beyond them the line is straight.
        sided: (N,) whether the slices show one side of the canal rather than its middle.
    """

    points: np.ndarray
    half: np.ndarray
    first: int
    last: int
    told: tuple[int, int]
    sided: np.ndarray

    @cached_property
    def tangents(self) -> np.ndarray:
        """Unit vectors (N, 3) down the canal."""
        tangents = np.gradient(smooth(self.points, _SMOOTH_TANGENT), axis=0)
        return np.asarray(tangents / np.linalg.norm(tangents, axis=1, keepdims=True))

    @classmethod
    def of(cls, space: LabelSpace, value: int, beyond: np.ndarray) -> Centreline | None:
        """The line of the canal's voxels; None where there are too few.

        Above and below the visible canal the line runs through the points `beyond` (M, 3) that lie there.
        """
        cloud = space.points(value).astype(np.float32)
        if len(cloud) < _FEW or np.ptp(cloud[:, 1]) < _FEW_MM:
            return None
        row = cloud[:, 1]
        line = cls._means(cloud, np.floor((row - row.min()) / STEP).astype(int))
        for _ in range(_ROUNDS):
            curve = cls._through(line)
            line = cls._means(cloud, np.round(curve.station(cloud)).astype(int))
        whole = cls._through(line, beyond)
        return replace(whole, half=whole._anterior(cloud), sided=whole._cut_aside(space, value))

    @classmethod
    def behind(cls, points: np.ndarray, half: float) -> Centreline | None:
        """The line through points (M, 3) where a canal must be, `half` mm behind its front; it counts as not seen.

        None where the points span too little height.
        """
        if len(points) < 2 or np.ptp(points[:, 1]) < _LEAST_MM:
            return None
        line = cls._through(points[np.argsort(points[:, 1])])
        return replace(line, half=np.full(len(line.points), half), first=len(line.points), last=-1)

    @classmethod
    def _through(cls, means: np.ndarray, beyond: np.ndarray | None = None) -> Centreline:
        """Through the canal's mean points, and others above and below; `half` and `sided` are still empty."""
        line = smooth(means, _SMOOTH) if len(means) > _FEW_MEANS else means
        ends = line[0], line[-1]
        if beyond is not None and len(beyond):
            beyond = beyond[np.argsort(beyond[:, 1])]
            before, after = beyond[:, 1] < line[0, 1] - _APART, beyond[:, 1] > line[-1, 1] + _APART
            line = np.concatenate([beyond[before], line, beyond[after]])
        told = line[0], line[-1]
        line = _longer(line)
        seen, known = ([int(np.argmin(np.linalg.norm(line - end, axis=1))) for end in both] for both in (ends, told))
        return cls(line, np.zeros(len(line)), seen[0], seen[1], (known[0], known[1]), np.zeros(len(line), bool))

    @staticmethod
    def _means(cloud: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """Mean point of each bin, in order, without sparse bins at the ends."""
        bins = bins - bins.min()
        count = np.bincount(bins)
        full = np.flatnonzero(count > _SPARSE * np.median(count[count > 0]))
        sums = np.stack([np.bincount(bins, cloud[:, axis]) for axis in range(3)], axis=1)
        kept = np.arange(full[0], full[-1] + 1)
        kept = kept[count[kept] > 0]
        return sums[kept] / count[kept, None]

    def station(self, points: np.ndarray) -> np.ndarray:
        """Station (N,) of points (N, 3): the foot of the perpendicular, as a fractional index of the line's points."""
        cloud, line = np.asarray(points, np.float32), self.points.astype(np.float32)
        distance = (line**2).sum(axis=1)[None] - 2 * cloud @ line.T
        nearest = distance.argmin(axis=1)
        step = np.linalg.norm(np.diff(self.points, axis=0), axis=1).mean()
        off = np.einsum("ij,ij->i", cloud - line[nearest], self.tangents[nearest].astype(np.float32)) / step
        return np.clip(nearest + np.clip(off, -1, 1), 0, len(line) - 1)

    def at(self, station: float | np.ndarray) -> np.ndarray:
        """Points (..., 3) at stations (...)."""
        index = np.arange(len(self.points))
        return np.stack([np.interp(station, index, self.points[:, axis]) for axis in range(3)], axis=-1)

    def tangent(self, station: float) -> np.ndarray:
        """Unit vector (3,) down the canal at a station."""
        vector = self.tangents[round(float(np.clip(station, 0, len(self.points) - 1)))]
        return np.asarray(vector)

    def crossing(self, point: np.ndarray, normal: np.ndarray) -> float | None:
        """Station nearest to a point at which the line crosses the plane through the point; None where it does not."""
        side = (self.points - point) @ normal
        change = np.flatnonzero(np.sign(side[:-1]) != np.sign(side[1:]))
        if len(change) == 0:
            return None
        near = change[np.argmin(np.linalg.norm(self.points[change] - point, axis=1))]
        return float(near + side[near] / (side[near] - side[near + 1]))

    def seen(self, station: float) -> bool:
        """Whether the canal itself, not only the line's straight continuation, is there."""
        return self.first <= station <= self.last

    def in_front(self, points: np.ndarray) -> np.ndarray:
        """Which of points (N, 3) lie in front of the canal's anterior border."""
        station = self.station(points)
        index = np.round(station).astype(int)
        tangent = self.tangents[index]
        back = BACK - tangent * (tangent @ BACK)[:, None]
        back /= np.linalg.norm(back, axis=1, keepdims=True)
        ahead = -np.einsum("ij,ij->i", points - self.at(station), back)
        return np.asarray(ahead > self.half[index] - _BORDER_MM)

    def y_at(self, frame: AnatomicalFrame, z: np.ndarray) -> np.ndarray:
        """y (N,) of the line in a frame at heights z (N,), mm; infinite where the line is not near."""
        local = frame.local(self.points)
        local = local[np.abs(local[:, 2]) < _NEAR_MM]
        if len(local) == 0:
            return np.full(len(z), np.inf)
        order = np.argsort(local[:, 2])
        return np.interp(z, local[order, 2], local[order, 1])

    def _cut_aside(self, space: LabelSpace, value: int) -> np.ndarray:
        """Where (N,) the slices miss the canal's middle: it is deepest in one outermost slice and flat in the other.

        A canal is deepest in its middle. Slices centred on it show the greatest depth in their middle; where all of
        them lie on one side, the depth rises towards an outermost one.
        """
        area = (space.labels == value).sum(axis=2).astype(float)  # slices, rows
        near = np.ones(2 * round(_ASIDE_MM / space.spacing[1]) + 1)
        area = np.stack([np.convolve(slice_area, near, mode="same")[: area.shape[1]] for slice_area in area])
        low, high = np.sort(area[[0, -1]], axis=0)
        span = len(area) * space.spacing[0]
        flat = _FLAT if span >= _SLAB_MM else _RISING
        few = len(area) < 3 or span < _LEAST_SPAN_MM
        aside = (high > _DEEPEST * area.max(axis=0)) & ((low < flat * area.max(axis=0)) | few)
        rows = np.clip(np.round(self.points[:, 1] / space.spacing[1]).astype(int), 0, len(aside) - 1)
        return np.asarray(aside[rows])

    def _anterior(self, cloud: np.ndarray) -> np.ndarray:
        """mm (N,) from the line to the canal's anterior border near its middle."""
        station = self.station(cloud)
        off = cloud - self.at(station)
        near = np.abs(off[:, 0]) < _MIDDLE_MM
        bins = np.round(station[near]).astype(int)
        depth = -(off[near] @ BACK)
        front = np.full(len(self.points), np.nan)
        for n in np.unique(bins):
            front[n] = np.percentile(depth[bins == n], _FRONT)
        known = np.isfinite(front)
        known[: self.first] = known[self.last + 1 :] = False
        if not known.any():
            return np.full(len(self.points), _HALF_MM)
        index = np.arange(len(front))
        return smooth(np.interp(index, index[known], front[known])[:, None], _SMOOTH_BORDER)[:, 0]


def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Values (N, D) along an evenly spaced line smoothed by a Gaussian of `sigma` steps; straight lines stay straight.

    The ends are means of many voxels and stay fixed: values are mirrored through them (odd reflection). In
    `levels.grid.smooth` the ends are single rows and are not held.
    """
    reach = min(int(3 * sigma), len(values) - 1)
    if reach < 1:
        return values
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return gaussian_filter1d(padded, sigma, axis=0, radius=reach)[reach:-reach]


def _longer(line: np.ndarray) -> np.ndarray:
    """A line (N, 3) resampled to even steps and extended straight by `_BEYOND` mm at both ends."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    even = np.linspace(0, along[-1], max(2, round(along[-1] / STEP) + 1))
    line = np.stack([np.interp(even, along, line[:, axis]) for axis in range(3)], axis=1)
    reach = min(_END, len(line) - 1)
    step = even[1] - even[0]
    up, down = line[0] - line[reach], line[-1] - line[-1 - reach]
    ahead = np.arange(1, round(_BEYOND / step) + 1)[:, None] * step
    return np.concatenate(
        [line[0] + ahead[::-1] * up / np.linalg.norm(up), line, line[-1] + ahead * down / np.linalg.norm(down)]
    )
