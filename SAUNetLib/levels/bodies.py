"""The chain of vertebral bodies between the discs."""

from __future__ import annotations

import numpy as np

from ..anatomy import CANAL, VERTEBRA
from .column import Column
from .discs import REACH_MM, Discs, Interface, valleys
from .grid import Grid, smooth

_SPACINGS_MM = (14.0, 45.0)
"""From one disc to the next, in the neck of a small and in the back of a tall adult."""
_SPACING_PER_DEPTH = 1.05
"""Distance of neighbouring discs by the bodies' anterior-posterior depth; about one from the neck to the sacrum."""
_LONG = 10
"""From this many levels on, the height of a level differs much between top and bottom."""
_HIGHEST = 0.92
"""The highest level's height by that of those below."""
_NEAR_MM = 200.0
"""Within this many mm along the spine bodies are neighbours."""
_SOLID = 0.6
"""Bone with a larger share of its thickness in its waist has no gap there."""
_CERVICAL_MM = 26.0
"""Discs of the neck lie closer together."""
_NO_LEVEL = 0.35
"""Hardly a vertebra is so low, as a share of the usual distance of discs (SPIDER: 0.57): rather one disc in parts."""


class Chain:
    """The interfaces from the top of the spine down, those without a disc among them, and the bodies between.

    Body k lies above interface k; the last one below the last interface.

    Attributes:
        interfaces: all of them.
        spacing_mm: usual distance from one to the next, at the top and at the bottom.
        volume: (len(interfaces) + 1,) mm3 of each body.
        guessed: how many interfaces have no disc of their own.
        odontoid: whether the highest vertebra looks like C2.
        last: number of the lowest vertebra.
        lowest: number of the lowest one that the image's lower border does not cut; 0 where it cuts all.
    """

    def __init__(self, grid: Grid, column: Column, discs: Discs) -> None:
        points = grid.positions(grid.classes == VERTEBRA)
        self._column = column
        self._points = points[self.in_body(points)]
        self._station = column.station(self._points)
        self._voxel = grid.voxel
        self.interfaces = list(discs.interfaces)
        self._join(discs)
        self._drop(discs)
        self.interfaces = self.interfaces or self._gaps_as_interfaces()
        usual = self._usual_spacings()
        self.spacing_mm = float(usual[0]), float(usual[-1])
        self._fill(usual)
        self.odontoid = self._odontoid(grid)
        self._grow()
        self.guessed = sum(one.number == 0 for one in self.interfaces)
        body = self.body(self._points)
        self.volume = np.bincount(body, minlength=len(self.interfaces) + 1) * self._voxel
        at_border = grid.cut_below & (self._points[:, 1] > grid.last_row - 0.5 * grid.spacing[1])
        cut = np.bincount(body[at_border], minlength=len(self.interfaces) + 1) > 0
        self.last = self._last(cut)
        # Of a lordotic spine the border may cut the corners of two.
        self.lowest = next((k for k in range(self.last, 0, -1) if not cut[k]), 0)

    @property
    def last_cut(self) -> bool:
        """Whether the image's lower border cuts the lowest vertebra, and not the only one."""
        return self.lowest < self.last

    def _last(self, cut: np.ndarray) -> int:
        """Number of the lowest vertebra, given which bodies the image's lower border cuts.

        What lies below the lowest disc is a vertebra if the image ends in it or if it is as large as one; otherwise it
        is a rim of the one above or a piece of the sacrum.
        """
        n = len(self.interfaces)
        if n == 0:
            return 0
        usual = float(min(np.median(self.volume[max(0, n - 3) : n]), 2 * self.volume[n - 1]))  # scoliosis leaves slices
        if n == 1 and self.volume[0] < self.volume[1]:
            return n
        large = max(200.0, 0.04 * usual) if cut[n] else max(0.0, 0.5 * usual)
        return n if self.volume[n] > large else n - 1

    def in_body(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3) lie where bodies are: in front of the canal."""
        depth = self._column.depth(points)
        return (depth < 0) & (depth > -REACH_MM)

    def body(self, points: np.ndarray) -> np.ndarray:
        """Number (N,) of the body at points (N, 3) in front of the canal: how many interfaces lie above."""
        if not self.interfaces:
            return np.zeros(len(points), np.int16)
        normals = np.array([one.normal for one in self.interfaces], np.float32)
        offsets = np.array([one.normal @ one.point for one in self.interfaces], np.float32)
        return np.asarray((normals @ points.T > offsets[:, None]).sum(axis=0, dtype=np.int16))

    def _join(self, discs: Discs) -> None:
        """Make one of two neighbours closer than discs are, with next to no bone or no room for it between them."""
        if len(self.interfaces) < 2:
            return
        usual = self._usual_spacings()
        between = np.bincount(self.body(self._points), minlength=len(self.interfaces) + 1) * self._voxel
        typical = float(np.median(between[between > 0])) if between.any() else 0.0
        joined = [self.interfaces[0]]
        apart = self._gaps()
        around = np.concatenate([[np.inf], apart, [np.inf]])
        beside = np.minimum(around[:-2], around[2:])
        gaps = zip(apart, beside, usual, between[1:-1], self.interfaces[1:], strict=True)
        for gap, next_to, expected, bone, one in gaps:
            no_bone = typical > 0 and bone < 0.06 * typical and gap < 0.6 * expected
            # Parts of one disc take from a level beside them what is between them; a collapsed vertebra does not.
            in_parts = gap < _NO_LEVEL * expected and gap + next_to < 1.15 * expected
            if no_bone or in_parts:
                joined[-1] = discs.join(joined[-1], one)
            else:
                joined.append(one)
        self.interfaces = joined

    def _drop(self, discs: Discs) -> None:
        """Without false discs: small, bone around them, between neighbours that are one level apart without them."""
        kept = self.interfaces
        for small in sorted(kept, key=lambda one: one.volume):
            n = next(m for m, one in enumerate(self.interfaces) if one is small)
            if not 0 < n < len(self.interfaces) - 1:
                continue
            volume, depth = (np.median([getattr(one, name) for one in self.interfaces]) for name in ("volume", "depth"))
            apart = float(np.linalg.norm(self.interfaces[n + 1].point - self.interfaces[n - 1].point))
            little = small.volume < 0.4 * volume and small.depth < 0.6 * depth
            if little and apart < 1.35 * self._usual_spacings()[n] and self._waist(small.station, 5.0)[1] > 0.5:
                self.interfaces = [one for one in self.interfaces if one is not small]
                discs.drop(small)

    def _gaps_as_interfaces(self) -> list[Interface]:
        """Interfaces where the row of bodies is interrupted: what there is to go by without any disc."""
        if len(self._station) == 0:
            return []
        cuts = valleys(self._station, least=0.45, apart=10.0)
        return [self._interface_at(float(cut)) for cut in cuts]

    def _interface_at(self, station: float) -> Interface:
        """An interface across the column at a station."""
        point, tangent = self._column.at(station)
        point[2] -= 15  # about the middle of a body
        return Interface(point, tangent, station)

    def _usual_spacings(self) -> np.ndarray:
        """Expected distance of each interface to the next in mm, (max(1, gaps),).

        From the discs where there are enough and from the bodies' depth; where there are too many for a part of the
        spine whose levels are about as high as each other, from those near by.
        """
        depth = self._column.depth(self._points)
        expected = 35.0
        if len(depth):
            row = np.round(self._points[:, 1]).astype(int)
            front = np.zeros(row.max() + 1)
            np.minimum.at(front, row, depth)
            extent = -front[front < -5]
            expected = _SPACING_PER_DEPTH * float(np.median(extent)) if len(extent) else expected
        elif self.interfaces:
            expected = _SPACING_PER_DEPTH * float(np.median([one.depth for one in self.interfaces]))
        expected = float(np.clip(expected, *_SPACINGS_MM))
        gaps = self._gaps()
        if len(gaps) == 0:
            return np.array([expected])
        if len(gaps) < _LONG:
            levels = np.maximum(1, np.round(gaps / expected))
            if np.median(levels) > 1 and self._whole_between():
                levels = np.maximum(1, np.round(gaps / np.median(gaps)))
            return np.full(len(gaps), np.median(gaps / levels))
        near = [slice(max(0, n - 3), n + 4) for n in range(len(gaps))]
        depth = np.array([one.depth for one in self.interfaces])
        deep = np.array([_SPACING_PER_DEPTH * np.median(depth[part]) for part in near])
        deep = np.where(deep > 0, np.clip(deep, *_SPACINGS_MM), expected)  # interfaces without a disc have no depth
        usual = gaps / np.maximum(1, np.round(gaps / deep))
        return np.array([np.median(usual[part]) for part in near])

    def _whole_between(self) -> bool:
        """Whether most neighbouring interfaces have one bone between them, which nothing narrows in its middle.

        Where the slices show only the sides of the bodies, their depth is no measure of their height.
        """
        pairs = zip(self.interfaces, self.interfaces[1:], strict=False)
        waists = [self._waist((a.station + b.station) / 2, 0.2 * (b.station - a.station))[1] for a, b in pairs]
        return float(np.median(waists)) > _SOLID

    def _gaps(self) -> np.ndarray:
        points = np.array([one.point for one in self.interfaces]).reshape(-1, 3)
        return np.linalg.norm(np.diff(points, axis=0), axis=1)

    def _profile(self) -> tuple[float, np.ndarray]:
        """Cross-section of the bodies, mm2 per mm along the spine, and the station at which it starts."""
        low = float(np.floor(self._station.min())) - 1
        profile = np.bincount((self._station - low).astype(int), minlength=3) * self._voxel
        return low, smooth(np.concatenate([profile, [0.0, 0.0]]), 1.0)

    def _fill(self, expected: np.ndarray) -> None:
        """Put an interface where two neighbours lie so far apart that one or more between them are missing."""
        gaps = self._gaps()
        if len(gaps) == 0:
            return
        levels = np.maximum(1, np.round(gaps / expected))
        filled = [self.interfaces[0]]
        for n, (gap, one) in enumerate(zip(gaps, self.interfaces[1:], strict=True)):
            near = [gaps[m] / levels[m] for m in (n - 1, n + 1) if 0 <= m < len(gaps)]
            usual = float(np.mean([expected[n], *near])) * (_HIGHEST if n == 0 else 1.0)
            above, count = filled[-1], self._count(gap / usual, filled[-1], one)
            for step in range(1, count):
                share = step / count
                middle = above.station + share * (one.station - above.station)
                station, _ = self._waist(middle, 0.25 * gap / count)
                apart = one.station - above.station  # 0 beyond the end of the column
                along = (station - above.station) / apart if apart else share
                point = above.point + along * (one.point - above.point)
                normal = (1 - share) * above.normal + share * one.normal
                filled.append(Interface(point, normal / np.linalg.norm(normal), station))
            filled.append(one)
        self.interfaces = filled

    def _count(self, ratio: float, above: Interface, below: Interface) -> int:
        """How many levels lie between two discs whose distance is `ratio` times the usual one.

        No vertebra is so much higher than its neighbours as two are of which one has collapsed.
        """
        if 1.3 < ratio < 1.45:
            _, depth = self._waist((above.station + below.station) / 2, 0.3 * (below.station - above.station) / 2)
            return 2 if depth < 0.4 else 1
        return max(1 if ratio < 1.45 else 2, round(ratio))

    def _waist(self, station: float, within: float) -> tuple[float, float]:
        """The narrowest place of the bodies near a station, and how narrow: its share of what is beside it."""
        if len(self._station) == 0:
            return station, 1.0
        low, profile = self._profile()
        at = np.arange(len(profile)) + low + 0.5
        near = np.abs(at - station) <= within
        if not near.any():
            return station, 0.0
        # Of equally narrow places the middle one: a gap is cut at half its height.
        value = profile[near]
        narrow = np.flatnonzero(value <= value.min() + 0.02 * profile.max())
        place = float(at[near][narrow].mean())
        beside = (np.abs(at - station) <= 1.6 * within + 4) & ~near
        sides = [profile[beside & (at < station)], profile[beside & (at > station)]]
        peak = min((side.max() for side in sides if len(side)), default=0.0)
        return place, float(value.min() / peak) if peak > 0 else 0.0

    def _odontoid(self, grid: Grid) -> bool:
        """Whether the bone above the highest disc is C2 with its odontoid process.

        It is whole, has a neck's sizes and no gap, is at least 1.6 times as high as other levels, and is thinner in its
        upper than in its lower half, or the canal is wider beside it than below.
        """
        own = self._points[self.body(self._points) == 0]
        gaps = self._gaps()
        if len(gaps) == 0 or len(own) == 0 or not self.interfaces[0].number or self.spacing_mm[0] > _CERVICAL_MM:
            return False
        own = own[np.abs(own[:, 0] - self.interfaces[0].point[0]) < 8]
        high = -self.interfaces[0].below(own)
        tall = float(np.percentile(high, 99)) if len(own) else 0.0
        cut = grid.cut_above and len(own) > 0 and bool(own[:, 1].min() < grid.first[1] + 0.5 * grid.spacing[1])
        if cut or not 1.6 < tall / float(self.spacing_mm[0]) < 3.0:
            return False
        if self._waist(float(self.interfaces[0].station - 0.55 * tall), 0.3 * tall)[1] < 0.2:
            return False  # a gap: two vertebrae, whose disc is missing
        upper, lower = ((high > a * tall) & (high <= b * tall) for a, b in ((0.6, 0.85), (0.15, 0.4)))
        canal = grid.positions(grid.classes == CANAL)
        above = -self.interfaces[0].below(canal)
        wide, usual = ((above > a * tall) & (above <= b * tall) for a, b in ((0.6, 1.0), (-2.0, 0.0)))
        widens = wide.sum() / 0.4 > 1.15 * usual.sum() / 2.0 > 0
        return bool(upper.sum() < 0.8 * lower.sum() or widens)

    def _grow(self) -> None:
        """Add interfaces above the first and below the last one while whole bodies stand there without their discs."""
        if len(self._station) == 0:
            return
        if not self.interfaces:
            low, profile = self._profile()
            bulk = np.flatnonzero(profile > 0.3 * np.percentile(profile, 90))
            start = low + bulk[-1] + 1 + 0.12 * self.spacing_mm[1]
            self._march(start, -1)
            return
        if not self.odontoid:
            self._march(self.interfaces[0].station, -1)
        self._march(self.interfaces[-1].station, 1)

    def _march(self, start: float, way: int) -> None:
        """Set interfaces from a station upwards (`way` -1) or downwards (1), a body's height apart."""
        usual, station = self.spacing_mm[0 if way < 0 else 1], start
        low, profile = self._profile()
        at = np.arange(len(profile)) + low + 0.5
        near = np.abs(at - start) < _NEAR_MM
        bulk = at[near & (profile > 0.25 * np.percentile(profile[near], 90))] if near.any() else at[:0]
        for _ in range(40):
            end = float((bulk * way).max() * way) if len(bulk) else station
            left = (end - station) * way
            if left < 0.9 * usual:
                return
            place, narrow = self._waist(station + way * usual, 0.33 * usual)
            beyond = (end - place) * way
            if not (beyond > 0.5 * usual or (narrow < 0.35 and beyond > 0.08 * usual)):
                return
            new = self._interface_at(place)
            self.interfaces.insert(0, new) if way < 0 else self.interfaces.append(new)
            station = place
