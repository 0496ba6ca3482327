"""Which body arches and processes belong to: the one whose wave through the bone arrives first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..anatomy import VERTEBRA
from .bodies import NO_BODY, Chain
from .column import Column
from .grid import Box, Grid, Voxels, bounding_box
from .ladder import Ladder, Located

_GEODESIC_MM = 2.4
"""Grid on which posterior elements are shared out: never finer. On 1.6 mm as many of ten phantoms' voxels go to a wrong
vertebra (3.2 %), and it takes twice as long."""
_WALL_DEPTH = -5.0
"""Waves start from the bodies' voxels behind this many mm."""
_FRONT_DEPTH = -15.0
"""In front of this many mm no arch can be: there is no place to be told (chosen)."""
FARTHEST_ARCH = 90.0
"""Nor farther behind the canal's anterior border than this, mm."""
_SLOW, _SLOWER = 4.0, 12.0
"""How many times as long as through bone a wave takes through background, and through discs and canal (chosen)."""
_LATEST, _CLOSED = 150.0, 1e4
"""When a wave stops (mm through bone), and how slow it is where it must not go: not a voxel's width in that time."""
_NEVER = 1e6
"""Later than any wave."""
_BELOW, _REACH = 0.25, 1.4
"""A wave runs within so many levels (the second) of so many below its body's middle (the first): among its own arch and
processes, and those of both neighbours in part (chosen)."""
_ARCH_HALF = 0.22
"""Half of the extent, in levels, within which a wave is not slowed."""
_ARCH_COST = 80.0
"""How a wave slows down away from there: so many times per squared level."""
_THREADS = 2
"""Waves at once: there are few, and more threads than cores would only hinder each other."""


def shared_out(grid: Grid, column: Column, chain: Chain, numbers: range, voxels: Voxels) -> Located:
    """Voxels (N,) of a grid, given to the vertebrae of some numbers by the waves of their bodies.

    What no wave reached goes to the vertebra whose arch is expected there; far from all arches the number is
    `NO_BODY`. `chain` has one interface or more.
    """
    terrain = _Terrain.of(grid.thinned(_GEODESIC_MM), column, chain)
    where = terrain.where
    number = _first(terrain, numbers)
    missed = (number == NO_BODY) & np.isfinite(where.place)
    if missed.any():
        nearest = where[missed].expected()
        number[missed] = np.clip(nearest, numbers.start, numbers.stop - 1).astype(np.int16)
    near = voxels.nearest(terrain.grid)
    return Located(number.ravel()[near], where.place.ravel()[near], where.depth.ravel()[near])


@dataclass(frozen=True, eq=False)
class _Terrain:
    """What the waves run through, on a coarse grid.

    Attributes:
        grid: the coarse grid.
        ladder: places behind the bodies.
        where: (S, H, W), the numbers being those of the bodies.
        vertebra: (S, H, W) bool, the class.
        pace: (S, H, W) float32, time that a wave takes by that through bone, but for where it is slowed.
    """

    grid: Grid
    ladder: Ladder
    where: Located
    vertebra: np.ndarray
    pace: np.ndarray

    @classmethod
    def of(cls, grid: Grid, column: Column, chain: Chain) -> _Terrain:
        """Of a coarse grid's classes."""
        ladder, shape = Ladder.of(column, chain), grid.classes.shape
        points = grid.positions(np.ones(shape, bool))
        depth = column.depth(points)
        place = np.full(len(points), np.nan, np.float32)
        near = (depth > _FRONT_DEPTH) & (depth < FARTHEST_ARCH)
        place[near] = ladder.place(points[near])
        depth = depth.reshape(shape)
        vertebra = grid.classes == VERTEBRA
        pace = np.where(vertebra, 1.0, np.where(grid.classes == 0, _SLOW, _SLOWER)).astype(np.float32)
        number, body = np.full(shape, NO_BODY, np.int16), vertebra & (depth < 0)
        number[body] = chain.body(points.reshape(*shape, 3)[body])
        return cls(grid, ladder, Located(number, place.reshape(shape), depth), vertebra, pace)


def _first(terrain: _Terrain, numbers: range) -> np.ndarray:
    """Number (S, H, W) of the body whose wave arrives first, the lower number of two; `NO_BODY` where none does."""
    shape = terrain.vertebra.shape
    first, soonest = np.full(shape, NO_BODY, np.int16), np.full(shape, _NEVER, np.float32)
    with ThreadPoolExecutor(_THREADS) as threads:
        # A wave needs nothing of the others, and ITK lets other threads run meanwhile.
        waves = threads.map(lambda k: _wave(terrain, k), numbers)
        for k, (box, arrival) in zip(numbers, waves, strict=True):
            sooner = arrival < soonest[box]
            soonest[box][sooner] = arrival[sooner]
            first[box][sooner] = k
    return first


def _wave(terrain: _Terrain, k: int) -> tuple[Box, np.ndarray]:
    """Arrival times from body k in a box around all that may be its own."""
    where = terrain.where
    beside = np.abs(where.place - (k + _BELOW)) < _REACH
    box = bounding_box(beside & terrain.vertebra | (where.number == k) & (where.depth > _WALL_DEPTH))
    if box is None:
        nowhere = slice(0, 0)
        return (nowhere, nowhere, nowhere), np.zeros((0, 0, 0), np.float32)
    own = where[box]
    slowness = terrain.pace[box] * (1 + _ARCH_COST * np.maximum(own.off(k) - _ARCH_HALF, 0) ** 2)
    # Bodies have their numbers already: no wave needs to run forwards into its own or beside it.
    other = (own.number >= 0) & (own.number != k)
    slowness = np.where(np.isnan(slowness) | other | (own.depth < _WALL_DEPTH), _CLOSED, slowness)
    image = sitk.GetImageFromArray((1 / slowness).astype(np.float32))
    image.SetSpacing([float(size) for size in terrain.grid.spacing[::-1]])
    return box, sitk.GetArrayFromImage(sitk.FastMarching(image, _seeds(terrain, k, box), 1.0, _LATEST))


def _seeds(terrain: _Terrain, k: int, box: Box) -> list[list[int]]:
    """Voxels (x, y, z) of a box at which the wave of body k starts: its posterior wall, or where that must be."""
    own = terrain.where[box]
    wall = np.argwhere((own.number == k) & (own.depth > _WALL_DEPTH))
    if len(wall) == 0:
        at = (terrain.ladder.point(k) - terrain.grid.first) / terrain.grid.spacing
        low = np.array([part.start for part in box])
        wall = np.clip(np.round(at) - low, 0, np.array(own.number.shape) - 1).astype(int)[None]
    return wall[:, ::-1].tolist()
