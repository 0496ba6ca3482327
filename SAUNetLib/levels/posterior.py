"""Which body arches and processes belong to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cc3d
import numpy as np
import SimpleITK as sitk

from ..anatomy import VERTEBRA
from .bodies import Chain
from .column import Column
from .grid import Box, Grid, Voxels, bounding_box

_GEODESIC_MM = 1.6
"""Grid on which posterior elements are shared out: never finer."""
_WALL_DEPTH = -5.0
"""Waves start from the bodies' voxels behind this many mm."""
_DEEPEST_BODY, _FARTHEST_ARCH = 50.0, 90.0
"""What lies wholly farther in front of the canal, or behind it, is bone of the chest or none (mm)."""
_LATEST, _CLOSED = 150.0, 1e4
"""When a wave stops (mm through bone), and how slow it is where it must not go: not a voxel's width in that time."""
_THREADS = 2
"""Waves at once: there are few, and more threads than cores would only hinder each other."""


class Ladder:
    """Place behind the bodies counted in levels: k at the middle of body k, half-way at interfaces.

    It runs down the posterior wall, since the planes of the discs may meet behind a lordotic spine; for the same reason
    its rungs lean only half as much as the canal does, which fits the processes best.
    """

    LEAN = 0.5

    def __init__(self, column: Column, chain: Chain) -> None:
        self._column = column
        rungs = [column.crossing(one.point, one.normal, one.station) for one in chain.interfaces]
        rungs = list(np.maximum.accumulate(rungs) + 1e-3 * np.arange(len(rungs)))
        top, bottom = chain.spacing_mm
        self._rungs = np.array([rungs[0] - 2 * top, rungs[0] - top, *rungs, rungs[-1] + bottom])
        self._levels = np.arange(len(self._rungs)) - 1.5  # the first disc lies half a level below body 0

    def place(self, points: np.ndarray) -> np.ndarray:
        """Levels (N,) of points (N, 3)."""
        station = self._column.station(points, self.LEAN)
        return np.interp(station, self._rungs, self._levels).astype(np.float32)

    def point(self, level: float) -> np.ndarray:
        """The point (3,) of the posterior wall at a level."""
        return self._column.at(float(np.interp(level, self._levels, self._rungs)))[0]


_ARCH_DEPTH = (0.0, 6.0, 10.0, 14.0, 18.0, 22.0)
_ARCH_PLACE = (-0.15, -0.16, 0.0, 0.23, 0.34, 0.36)
"""Where the middle of a vertebra's own arch and processes lies, in levels below its body's middle, by mm behind the
canal's anterior border: pedicles above, inferior articular and spinous processes below. Medians over those vertebrae of
the 30 patients of SPIDER's T2 SPACE scans that touch no other."""
_ARCH_HALF = 0.22
"""Half of the extent, in levels, within which a wave is not slowed."""
_ARCH_COST = 80.0
"""How a wave slows down away from there: so many times per squared level."""


def _off_place(place: np.ndarray, depth: np.ndarray, number: int) -> np.ndarray:
    """How many levels points lie away from where the arch of a vertebra is expected, by their place and depth."""
    usual = np.interp(depth, _ARCH_DEPTH, _ARCH_PLACE).astype(np.float32)
    return np.abs(place - (usual + number))


def _misfit(place: np.ndarray, depth: np.ndarray, number: int) -> float:
    """Mean square of `_off_place` over points (N,), N > 0."""
    return float(np.mean(_off_place(place, depth, number) ** 2))


class Posterior:
    """Which body the posterior elements belong to: the one whose wave arrives first, on a coarse grid."""

    def __init__(self, grid: Grid, column: Column, chain: Chain) -> None:
        self._grid = grid.thinned(_GEODESIC_MM)
        self._chain, self._ladder = chain, Ladder(column, chain)
        shape = self._grid.classes.shape
        points = self._grid.positions(np.ones(shape, bool))
        depth = column.depth(points)
        self._depth = depth.reshape(shape)
        place = np.full(len(points), np.nan, np.float32)
        near = (depth > -15) & (depth < _FARTHEST_ARCH)
        place[near] = self._ladder.place(points[near])
        self._place = place.reshape(shape)
        self._vertebra = vertebra = self._grid.classes == VERTEBRA
        self._pace = np.where(vertebra, 1.0, np.where(self._grid.classes == 0, 4.0, 12.0)).astype(np.float32)
        self._body = np.full(shape, NO_BODY, np.int16)
        body = vertebra & (self._depth < 0)
        self._body[body] = chain.body(points.reshape(*shape, 3)[body])
        self.level = self._first(self.candidates(grid))
        self._fill(self.candidates(grid))

    def candidates(self, grid: Grid) -> range:
        """Bodies that have posterior elements: those seen, and the one above where the image ends above, or C1."""
        more = grid.cut_above or self._chain.odontoid
        first = 0 if self._chain.volume[0] > 0 or more else 1
        return range(first - int(more), self._chain.last + 1)

    def _fill(self, numbers: range) -> None:
        """Give what no wave reached to the vertebra whose arch is expected there."""
        missed = (self.level == NO_BODY) & np.isfinite(self._place)
        if missed.any():
            usual = np.interp(self._depth[missed], _ARCH_DEPTH, _ARCH_PLACE)
            nearest = np.round(self._place[missed] - usual)
            self.level[missed] = np.clip(nearest, numbers.start, numbers.stop - 1).astype(np.int16)

    def _first(self, numbers: range) -> np.ndarray:
        """Number (S, H, W) of the body whose wave arrives first, the lower number of two; `NO_BODY` where none does."""
        level, soonest = (np.full(self._place.shape, value, kind) for value, kind in ((NO_BODY, np.int16), (1e6, "f4")))
        with ThreadPoolExecutor(_THREADS) as threads:
            # A wave needs nothing of the others, and ITK lets other threads run meanwhile.
            for k, (box, arrival) in zip(numbers, threads.map(self._wave, numbers), strict=True):
                sooner = arrival < soonest[box]
                soonest[box][sooner] = arrival[sooner]
                level[box][sooner] = k
        return level

    def _wave(self, k: int) -> tuple[Box, np.ndarray]:
        """Arrival times from body k in a box around all that may be its own."""
        beside = np.abs(self._place - (k + 0.25)) < 1.4
        box = bounding_box(beside & self._vertebra | (self._body == k) & (self._depth > _WALL_DEPTH))
        if box is None:
            nowhere = slice(0, 0)
            return (nowhere, nowhere, nowhere), np.zeros((0, 0, 0), np.float32)
        off = np.maximum(_off_place(self._place[box], self._depth[box], k) - _ARCH_HALF, 0)
        slowness = self._pace[box] * (1 + _ARCH_COST * off**2)
        body = self._body[box]
        # Bodies have their numbers already: no wave needs to run forwards into its own or beside it.
        closed = np.isnan(slowness) | (body >= 0) & (body != k) | (self._depth[box] < _WALL_DEPTH)
        slowness = np.where(closed, _CLOSED, slowness)
        seeds = self._seeds(k, body, self._depth[box], box)
        image = sitk.GetImageFromArray((1 / slowness).astype(np.float32))
        image.SetSpacing([float(size) for size in self._grid.spacing[::-1]])
        return box, sitk.GetArrayFromImage(sitk.FastMarching(image, seeds, 1.0, _LATEST))

    def _seeds(self, k: int, body: np.ndarray, depth: np.ndarray, box: tuple[slice, ...]) -> list[list[int]]:
        """Voxels (x, y, z) at which the wave of body k starts: its posterior wall, or where that must be."""
        wall = np.argwhere((body == k) & (depth > _WALL_DEPTH))
        if len(wall) == 0:
            at = (self._ladder.point(k) - self._grid.first) / self._grid.spacing
            low = np.array([part.start for part in box])
            wall = np.clip(np.round(at) - low, 0, np.array(body.shape) - 1).astype(int)[None]
        return wall[:, ::-1].tolist()

    def at(self, voxels: Voxels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At voxels of the full grid (N,): level, `NO_BODY` where no wave came; place; depth."""
        near = voxels.nearest(self._grid)
        return self.level.ravel()[near], self._place.ravel()[near], self._depth.ravel()[near]


NO_BODY = -9


@dataclass
class _Part:
    """A component of the vertebrae: which vertebra it is of, if of one, and what that rests on.

    Attributes:
        voxels: where its voxels are in the list of the vertebrae's voxels.
        volume: mm3.
        body: the one body that it holds, if it holds one and no other.
        number: the vertebra that all of it belongs to, `NO_BODY` for none, or None where waves share it out.
        place: mean place in levels of what lies well behind the bodies, NaN if nothing does.
        span: extent of that along the slices, mm.
        cost: by vertebra, how far it lies from where that one's arch is expected.
    """

    voxels: np.ndarray
    volume: float
    body: int | None
    number: int | None
    place: float
    span: tuple[float, float]
    cost: dict[int, float]


_SPINOUS_DEPTH = 20.0
"""Behind this many mm there are spinous processes only."""
_PROCESS_DEPTH = 14.0
"""Behind this many mm of the canal's anterior border there are laminae and processes only."""


class Parts:
    """Gives each component of the vertebrae that is one vertebra's to it whole.

    Waves cut what touches. Where nothing touches they may still cut a process that lies half-way between two bodies; so
    a component that holds one body and reaches no further than its own processes, or holds none and is no longer than
    one vertebra's, is not cut, and spinous processes one below the other belong to vertebrae one below the other.
    """

    def __init__(self, grid: Grid, voxels: Voxels, bodies: np.ndarray, numbers: range) -> None:
        """Of the vertebrae's voxels (N,), some of them the bodies' (N,)."""
        part = voxels.of(grid.parts)
        self._order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part))
        self._spans = [(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if a < b]
        self._shape, self._flat, self._points = grid.classes.shape, voxels.flat, voxels.points
        self._bodies, self._numbers, self._voxel = bodies, numbers, grid.voxel

    def settle(self, number: np.ndarray, place: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Numbers (N,), given those of bodies and waves and the voxels' places and depths (N,)."""
        if not self._numbers:  # no vertebra's arch can lie in the slices
            return number
        parts = [self._part(self._order[start:end], number, place, depth) for start, end in self._spans]
        self._line_up([one for one in parts if one.number is not None and np.isfinite(one.place) and one.volume > 400])
        result = number.copy()
        for one in parts:
            if one.number is not None:
                result[one.voxels] = one.number
        return self._settle_processes(result, place, depth)

    def _settle_processes(self, number: np.ndarray, place: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Spinous processes whole: what is one piece in a slice and no longer than one goes to whom most of it went."""
        behind = depth > _SPINOUS_DEPTH
        if not behind.any():
            return number
        piece = self._pieces(behind)
        own, at = number[behind] - NO_BODY, place[behind]
        low, high = (np.full(int(piece.max()) + 1, sign * np.inf) for sign in (1, -1))
        np.minimum.at(low, piece, at)
        np.maximum.at(high, piece, at)
        many = int(own.max()) + 1
        count = np.bincount(piece * many + own, minlength=len(low) * many).reshape(-1, many)
        most = count.argmax(axis=1)
        whole = (high - low < 1.25) & (count.max(axis=1) > 0.55 * count.sum(axis=1)) & (most > 0)
        result = number.copy()
        result[behind] = np.where(whole[piece], most[piece] + NO_BODY, number[behind])
        return result

    def _pieces(self, chosen: np.ndarray) -> np.ndarray:
        """Number (M,), from 0, of the piece in its slice that each chosen one (N,) of the voxels belongs to."""
        mask = np.zeros(self._shape, bool)
        mask.ravel()[self._flat[chosen]] = True
        columns = np.flatnonzero(mask.any(axis=0).any(axis=0))
        mask = np.ascontiguousarray(mask[:, :, columns[0] : columns[-1] + 1])
        result, count = [], 0
        for one in mask:
            piece, more = cc3d.connected_components(one, connectivity=4, return_N=True)
            result.append(piece[one].astype(np.int64) + count - 1)
            count += more
        return np.concatenate(result)

    def _part(self, voxels: np.ndarray, number: np.ndarray, place: np.ndarray, depth: np.ndarray) -> _Part:
        """What is known of one component."""
        if depth[voxels].max() < -_DEEPEST_BODY or depth[voxels].min() > _FARTHEST_ARCH:
            return _Part(voxels, len(voxels) * self._voxel, None, NO_BODY, np.nan, (0, 0), {})
        own, behind = self._bodies[voxels], voxels[depth[voxels] > _PROCESS_DEPTH]
        volume = len(voxels) * self._voxel
        low, high = np.percentile(place[behind], [3, 97]) if len(behind) else (np.nan, np.nan)
        span = (float(self._points[behind, 0].min()), float(self._points[behind, 0].max())) if len(behind) else (0, 0)
        middle = float(place[behind].mean()) if len(behind) else np.nan
        if own.sum() * self._voxel > max(300.0, 0.02 * volume):
            held = np.bincount(number[voxels[own]] - NO_BODY)
            body = int(held.argmax()) + NO_BODY
            alone = held.max() > 0.97 * held.sum() and body > NO_BODY
            near = len(behind) == 0 or (low > body - 0.7 and high < body + 1.25)
            share = float((number[voxels] == body).mean())
            # Where the arch of the one above is not seen whole, its processes may hang on this body's.
            arch = place[behind], depth[behind]
            others = len(behind) > 0 and _misfit(*arch, body - 1) < _misfit(*arch, body)
            whole = body if alone and (near or share > 0.9) and not others else None
            return _Part(voxels, volume, body if alone else None, whole, middle, span, {})
        sample = voxels[:: max(1, len(voxels) // 500)]
        sample = sample[np.isfinite(place[sample])]
        if len(sample) == 0:  # in front of all arches, too little for a body: as it is
            return _Part(voxels, volume, None, None, middle, span, {})
        cost = {k: _misfit(place[sample], depth[sample], k) for k in self._numbers}
        single = len(behind) == 0 or high - low < 1.1
        return _Part(voxels, volume, None, min(cost, key=cost.__getitem__) if single else None, middle, span, cost)

    def _line_up(self, parts: list[_Part]) -> None:
        """Choose the vertebrae of parts behind the canal together, by dynamic programming down the spine."""
        parts.sort(key=lambda one: one.place)
        best: list[dict[int, tuple[float, int]]] = []
        for n, one in enumerate(parts):
            options: dict[int, tuple[float, int]] = {}
            for k in self._numbers:
                cost = one.cost.get(k, np.inf) if one.body is None else (0.0 if k == one.number else np.inf)
                cost *= np.sqrt(one.volume)
                if n == 0:
                    options[k] = (cost, k)
                    continue
                apart = self._apart(parts[n - 1], one)
                before = [(best[-1][m][0], m) for m in self._numbers if m <= k - apart]
                if before:
                    options[k] = (min(before)[0] + cost, min(before)[1])
                else:
                    options[k] = (np.inf, k)
            best.append(options)
        if not parts or not np.isfinite(min(cost for cost, _ in best[-1].values())):
            return
        k = min(best[-1], key=lambda option: best[-1][option][0])
        for one, options in zip(reversed(parts), reversed(best), strict=True):
            one.number = k
            k = options[k][1]

    @staticmethod
    def _apart(above: _Part, below: _Part) -> int:
        """Whether two parts lie one below the other, so that they cannot be one vertebra's: 1, otherwise 0."""
        beside = min(above.span[1], below.span[1]) < max(above.span[0], below.span[0])
        return int(not beside and below.place - above.place > 0.5)
