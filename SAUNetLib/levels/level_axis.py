"""A coordinate along the spine that counts levels, and where on it a vertebra's arch is expected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .bodies import Chain
from .column import Column

_LEAN = 0.5
"""Fraction of the canal's lean that levels behind the bodies take over: the one that fits the processes best."""

_ARCH_DEPTH = (0.0, 6.0, 10.0, 14.0, 18.0, 22.0)
_ARCH_PLACE = (-0.15, -0.16, 0.0, 0.23, 0.34, 0.36)
"""Middle of a vertebra's own arch and processes, in levels below its body's middle, by mm behind the canal's anterior
border: pedicles above, inferior articular and spinous processes below. Medians over the vertebrae of the 30 patients
with T2 SPACE scans in SPIDER that touch no other."""


@dataclass(frozen=True, eq=False)
class LevelAxis:
    """A coordinate along the spine counted in levels: k at the middle of body k, half-way at interfaces.

    It runs down the posterior wall, since the planes of the discs may meet behind a lordotic spine; for the same reason
    its levels lean less than the canal does.

    Attributes:
        column: the line down the posterior wall.
        stations: (R,) mm along the column, increasing: of the interfaces, of two more above and of one below.
        levels: (R,) the coordinate in levels of each.
    """

    column: Column
    stations: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(cls, column: Column, chain: Chain) -> LevelAxis:
        """Build the axis of a chain with at least one interface."""
        crossed = [column.crossing(plane.point, plane.normal, plane.station) for plane in chain.interfaces]
        crossed = list(np.maximum.accumulate(crossed) + 1e-3 * np.arange(len(crossed)))
        top, bottom = chain.spacing_mm
        stations = np.array([crossed[0] - 2 * top, crossed[0] - top, *crossed, crossed[-1] + bottom])
        return cls(column, stations, np.arange(len(stations)) - 1.5)  # the first disc lies half a level below body 0

    def place(self, points: np.ndarray) -> np.ndarray:
        """Levels (N,) float32 of points (N, 3)."""
        station = self.column.station(points, _LEAN)
        return np.interp(station, self.stations, self.levels).astype(np.float32)

    def point(self, level: float) -> np.ndarray:
        """The point (3,) of the posterior wall at a level."""
        return self.column.at(float(np.interp(level, self.levels, self.stations)))[0]


@dataclass(frozen=True, eq=False)
class VoxelLocations:
    """For each voxel, the vertebra that it belongs to and its location behind the bodies.

    Attributes:
        number: (...) int16, of the vertebra; `bodies.NO_BODY` where it is none or not known.
        place: (...) float32, in levels; NaN where no arch can be.
        depth: (...) mm behind the canal's anterior border.
    """

    number: np.ndarray
    place: np.ndarray
    depth: np.ndarray

    def __getitem__(self, chosen: Any) -> VoxelLocations:
        """The locations that an index, a mask or a box selects."""
        return VoxelLocations(self.number[chosen], self.place[chosen], self.depth[chosen])

    @cached_property
    def arch(self) -> np.ndarray:
        """Whose arch is expected there, (...) float32: k in the middle of that of vertebra k; NaN where `place` is."""
        return self.place - np.interp(self.depth, _ARCH_DEPTH, _ARCH_PLACE).astype(np.float32)

    def misfit(self, number: int) -> float:
        """Mean square distance in levels from where the arch of a vertebra is expected; for one voxel or more."""
        return float(np.mean((self.arch - number) ** 2))
