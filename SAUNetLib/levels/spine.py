"""All vertebrae and discs as instances, numbered from the top."""

from __future__ import annotations

import cc3d
import numpy as np

from ..anatomy import CANAL, DISC, VERTEBRA
from .bodies import Chain
from .column import find_column, without_stray_canal
from .discs import Discs
from .grid import WORKING_MM, Grid
from .posterior import NO_BODY, Parts, Posterior

_CANAL_VALUE = 2
_TRACE_MM2 = 15.0
_RIM = 0.05
"""Below this share of its neighbour a body is a rim of the neighbour's that reaches past the disc."""


class Spine:
    """All instances on the full grid, numbered from the top.

    Attributes:
        vertebra: (S, H, W) int16, number of the vertebra + `FIRST`, 0 elsewhere. Vertebra k lies above interface k;
            of -1 only the arch is seen, or it is C1.
        numbers: of the vertebrae that show.
    """

    FIRST = 2

    def __init__(self, grid: Grid) -> None:
        self.column = find_column(grid)
        self.grid = grid = without_stray_canal(grid, self.column)
        working = grid.thinned(WORKING_MM)
        self.discs = Discs(working, self.column)
        self.chain = Chain(working, self.column, self.discs)
        self.vertebra = self._vertebrae()
        seen = np.flatnonzero(np.bincount(self.vertebra.ravel()))
        self.numbers = frozenset(int(k) - self.FIRST for k in seen if k)

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
            posterior = Posterior(grid, self.column, chain)
            level, place, depth = posterior.at(grid, mask)
            number[~bodies] = level[~bodies]
            parts = Parts(mask, points, bodies, posterior.candidates(grid), grid.voxel)
            number = parts.settle(number, place, depth)
        if chain.odontoid:
            number[self._anterior_arch(mask, points, number)] = -1
        result[mask] = np.where(number > NO_BODY, number + self.FIRST, 0)
        return result

    def _anterior_arch(self, mask: np.ndarray, points: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Which voxels (N,) given to C2 are C1's: components apart from it beside the upper half of its odontoid."""
        part = cc3d.connected_components(mask, connectivity=6)[mask]
        own = number == 0
        if not own.any():
            return own
        high = -self.chain.interfaces[0].below(points)
        size = np.bincount(part[own], minlength=int(part.max()) + 1)
        height = np.bincount(part[own], weights=high[own], minlength=len(size)) / np.maximum(size, 1)
        apart = (height > 0.5 * np.percentile(high[own], 99)) & (np.arange(len(size)) != size.argmax())
        return own & apart[part]

    def _body_numbers(self, points: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the bodies at points (N, 3); a piece of the sacrum has `NO_BODY`."""
        chain = self.chain
        number = chain.body(points)
        below = number > chain.last
        if below.any():
            rim = chain.volume[-1] < _RIM * chain.volume[chain.last]
            number[below] = chain.last if rim else NO_BODY
        return number

    def disc_numbers(self) -> np.ndarray:
        """(S, H, W) uint8: number of the disc from 1 for every voxel of a disc, 0 elsewhere and in what is none."""
        mask = self.grid.classes == DISC
        result = np.zeros(mask.shape, np.uint8)
        discs = self.discs
        if not discs.map.any():
            return result
        coarse = self.grid.nearest(discs.map, discs.grid)[mask].astype(np.int64)
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

    @property
    def lowest(self) -> int:
        """Number of the lowest vertebra that the image does not cut."""
        return self.chain.last - int(self.chain.last_cut and self.chain.last > 0)

    def widths(self) -> dict[int, float]:
        """By number of the vertebra: mm from the first to the last slice that shows more than a trace of it."""
        area = np.prod(self.grid.spacing[1:])
        shown = np.stack([np.bincount(one.ravel(), minlength=256)[:256] * area > _TRACE_MM2 for one in self.vertebra])
        first, last = shown.argmax(axis=0), len(shown) - shown[::-1].argmax(axis=0)
        return {k: float((last - first)[k + self.FIRST] * self.grid.spacing[0]) for k in self.numbers}

    def labels(self, vertebrae: dict[int, int], discs: dict[int, int]) -> np.ndarray:
        """Label values (S, H, W) uint8 on the full grid, given those of the numbers; the others are background."""
        of_vertebra, of_disc = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        for k, value in vertebrae.items():
            of_vertebra[k + self.FIRST] = value
        for number, value in discs.items():
            of_disc[number] = value
        labels = of_vertebra[self.vertebra] + of_disc[self.disc_numbers()]
        labels[self.grid.classes == CANAL] = _CANAL_VALUE
        return labels
