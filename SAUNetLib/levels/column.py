"""The line down the posterior wall of the bodies, which is the canal's anterior border."""

from __future__ import annotations

import numpy as np

from .grid import smooth

REACH_MM = 65.0
"""A body lies within this distance in front of the canal's anterior border."""

_BEYOND_MM = 80.0
"""The line is extended this far beyond what was seen: farther than a vertebra and its processes (chosen by hand)."""
_SMOOTH_BACK_MM, _SMOOTH_SIDE_MM = 3.0, 8.0
"""Sigmas of the Gaussians that smooth the line within slices and across them, where it is known more coarsely."""
_SMOOTH_TANGENT_MM = 12.0
"""Sigma for its direction, which is that of a still smoother line, so that no single level turns it."""
_SLOPE_MM, _LEAST_MM, _STEEPEST = 40.0, 10.0, 1.0
"""The line is extended by its slope over the first at each end, if more than the second is known there (chosen by
hand), and no more steeply than the third (45 degrees)."""
_NEWTON_STEPS, _NEWTON_RATE = 4, 0.8
"""Newton steps to the foot of a perpendicular, and the fraction of each taken: full steps may overshoot at a bend."""
_CROSSING_MM = 25.0
"""A disc's plane crosses the line within this distance of the disc's own station (chosen by hand)."""


class Column:
    """The line down the posterior wall of the bodies, which is the canal's anterior border.

    The line continues straight beyond what was seen.

    Attributes:
        rows: (M,) mm, 1 mm apart.
        back, side: (M,) mm, column and slice of the line at each row.
    """

    def __init__(self, rows: np.ndarray, back: np.ndarray, side: np.ndarray) -> None:
        """Create the line from increasing rows (N,) with its column `back` and slice `side` at each row, all in mm."""
        self.rows = np.arange(rows[0] - _BEYOND_MM, rows[-1] + _BEYOND_MM + 1.0)
        self.back = smooth(_extended(self.rows, rows, back), _SMOOTH_BACK_MM)
        self.side = smooth(_extended(self.rows, rows, side), _SMOOTH_SIDE_MM)
        straight = smooth(self.back, _SMOOTH_TANGENT_MM)
        aside = np.gradient(smooth(self.side, _SMOOTH_TANGENT_MM))
        tangent = np.stack([aside, np.ones_like(straight), np.gradient(straight)], axis=1)
        length = np.linalg.norm(tangent, axis=1)
        self._tangent = tangent / length[:, None]
        self._straight = straight
        self._station = np.concatenate([[0.0], np.cumsum((length[1:] + length[:-1]) / 2)])

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Distance of points (N, 3) behind the line, mm."""
        return points[:, 2] - np.interp(points[:, 1], self.rows, self.back)

    def in_bodies(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3) lie where bodies are: in front of the line, but not too far away."""
        depth = self.depth(points)
        return (depth < 0) & (depth > -REACH_MM)

    def tangent(self, row: float) -> np.ndarray:
        """Unit vector (3,) down the spine."""
        vector = np.array([np.interp(row, self.rows, self._tangent[:, axis]) for axis in range(3)])
        return vector / np.linalg.norm(vector)

    def station(self, points: np.ndarray, lean: float = 1.0) -> np.ndarray:
        """Position (N,) of points (N, 3) along the line, mm: the foot of the perpendicular.

        `lean` multiplies the line's forward and backward lean.
        """
        first, last = float(self.rows[0]), len(self.rows) - 1
        line = np.stack([self.side, self.rows, self._straight])
        tangent = self._tangent.T * np.array([[1.0], [1.0], [lean]])
        tangent /= np.linalg.norm(tangent, axis=0)
        # A step down the line is (point - line) . tangent - (row - line's row); its part from the line alone:
        known = ((line * tangent).sum(axis=0) - self.rows).astype(np.float32)
        across, along, back = tangent.astype(np.float32)
        # Separate coordinates: many times faster than gathering vectors of three.
        x, y, z = np.ascontiguousarray(points.T, np.float32)
        row = y.copy()
        for _ in range(_NEWTON_STEPS):
            at = np.clip(row - np.float32(first - 0.5), 0, last).astype(np.intp)
            foot = x * across.take(at) + y * along.take(at) + z * back.take(at) - known.take(at)
            row += np.float32(_NEWTON_RATE) * (foot - row)
            np.clip(row, first, first + last, out=row)
        return np.interp(row, self.rows, self._station)

    def crossing(self, point: np.ndarray, normal: np.ndarray, station: float) -> float:
        """Station at which a plane meets the line, not far from the given one."""
        line = np.stack([self.side, self.rows, self._straight], axis=1)
        off = np.abs((line - point) @ normal)
        off[np.abs(self._station - station) > _CROSSING_MM] = np.inf
        return float(self._station[np.argmin(off)])

    def at(self, station: float) -> tuple[np.ndarray, np.ndarray]:
        """The line's point (3,) at a station and its tangent (3,)."""
        row = float(np.interp(station, self._station, self.rows))
        point = np.array([np.interp(row, self.rows, self.side), row, np.interp(row, self.rows, self._straight)])
        return point, self.tangent(row)


def _extended(rows: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at rows: linear between those seen, and extended beyond by the slope at their ends."""
    result = np.interp(rows, seen, values)
    above, below = seen <= seen[0] + _SLOPE_MM, seen >= seen[-1] - _SLOPE_MM
    for outside, inside in ((rows < seen[0], above), (rows > seen[-1], below)):
        if inside.sum() > 3 and np.ptp(seen[inside]) > _LEAST_MM:
            slope = float(np.clip(np.polyfit(seen[inside], values[inside], 1)[0], -_STEEPEST, _STEEPEST))
            result[outside] = values[inside].mean() + slope * (rows[outside] - seen[inside].mean())
    return result
