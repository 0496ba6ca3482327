"""The bone of the vertebral bodies as a profile along the spine: waists, ends, depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..anatomy import VERTEBRA
from .column import Column
from .grid import Grid, smooth

_SHALLOW_MM = 5.0
"""A row whose bone reaches no farther than this in front of the canal shows only the posterior wall, no body."""
_NARROWEST = 0.02
"""Cross-sections that differ by less than this share of the largest are equally narrow: a gap has a flat bottom."""
_BESIDE = (1.6, 4.0)
"""A waist is compared with the bone beyond the search distance, out to this many times that distance plus this many
mm."""
_BULK, _BULK_NEAR = 0.3, 0.25
"""Shares of the 90th percentile of the cross-section above which there is a body: along the whole spine, and within
`_NEAR_MM`."""
_NEAR_MM = 200.0
"""Distance along the spine within which bodies are compared."""


@dataclass(frozen=True, eq=False)
class Bone:
    """The voxels of the class vertebra in the bodies' region, on the working grid.

    Attributes:
        column: the line along the posterior wall.
        points: (N, 3) mm, its voxels.
        station: (N,) mm, their positions along the column.
        voxel: volume of one, mm3.
    """

    column: Column
    points: np.ndarray
    station: np.ndarray
    voxel: float

    @classmethod
    def of(cls, grid: Grid, column: Column) -> Bone:
        """The bone of the bodies on a grid; it may be empty."""
        points = grid.positions(grid.classes == VERTEBRA)
        points = points[column.in_bodies(points)]
        return cls(column, points, column.station(points), grid.voxel)

    @cached_property
    def extents(self) -> np.ndarray:
        """Distances (M,) in mm from the canal to the front of the bodies, for each 1 mm row that contains bodies."""
        if len(self.points) == 0:
            return np.zeros(0)
        row = np.round(self.points[:, 1]).astype(int)
        front = np.zeros(row.max() + 1)
        np.minimum.at(front, row, self.column.depth(self.points))
        return -front[front < -_SHALLOW_MM]

    @cached_property
    def _first(self) -> float:
        """Station at which the profile starts."""
        return float(np.floor(self.station.min())) - 1

    @cached_property
    def _profile(self) -> np.ndarray:
        """Cross-section (M,) in mm2 by mm along the spine, smoothed."""
        profile = np.bincount((self.station - self._first).astype(int), minlength=3) * self.voxel
        return smooth(np.concatenate([profile, [0.0, 0.0]]), 1.0)

    @cached_property
    def _at(self) -> np.ndarray:
        """Stations (M,) of the profile's bins."""
        return np.arange(len(self._profile)) + self._first + 0.5

    def waist(self, station: float, within: float) -> tuple[float, float]:
        """The narrowest place within a given distance of a station, and its cross-section relative to its surroundings.

        Without any bone, the station itself and a cross-section of 1.
        """
        if len(self.station) == 0:
            return station, 1.0
        profile, at = self._profile, self._at
        away = np.abs(at - station)
        near = away <= within
        if not near.any():
            return station, 0.0
        # The middle of equally narrow places: a gap is cut at half its height.
        value = profile[near]
        narrow = np.flatnonzero(value <= value.min() + _NARROWEST * profile.max())
        place = float(at[near][narrow].mean())
        beside = (away <= _BESIDE[0] * within + _BESIDE[1]) & ~near
        sides = [profile[beside & (at < station)], profile[beside & (at > station)]]
        peak = min((side.max() for side in sides if len(side)), default=0.0)
        return place, float(value.min() / peak) if peak > 0 else 0.0

    def foot(self) -> float:
        """Station at which the lowest body ends; there must be bone."""
        bulk = self._at[self._profile > _BULK * np.percentile(self._profile, 90)]
        return float(bulk[-1]) + 0.5

    def end(self, start: float, way: int) -> float | None:
        """Station where bodies near a station end upwards (`way` -1) or downwards (1); None where there are none."""
        near = np.abs(self._at - start) < _NEAR_MM
        if not near.any():
            return None
        bulk = self._at[near & (self._profile > _BULK_NEAR * np.percentile(self._profile[near], 90))]
        return float((bulk * way).max() * way) if len(bulk) else None
