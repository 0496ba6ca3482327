"""All vertebrae and discs as instances, numbered from the top."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from ..anatomy import CANAL, CANAL_VALUE, DISC, VERTEBRA
from .bodies import NO_BODY, Chain
from .components import assign_whole_components
from .discs import Discs
from .fast_marching import assign_by_arrival
from .grid import WORKING_MM, Grid, Voxels
from .wall import find_column

_CANAL_MM = (-30.0, 45.0)
"""Range of a canal component's mean depth behind the canal's anterior border; others are ghosts: all are within 14 mm
of half a canal's width in 47 volumes."""
_SAMPLE = 500
"""About this many of its voxels are used to locate it."""
_TRACE_MM2 = 15.0
"""A slice that shows no more of a vertebra than this shows a trace of it (chosen by hand)."""
_RIM, _RIM_MM = 0.05, 12.0
"""A body below this share of its neighbour's volume is its rim that reaches past the disc, by at most this distance."""
_NEXT_MM, _SEEN, _OTHER = 4.0, 0.2, 0.2
"""A disc's two vertebrae are sought this far above and below it, where more than the second share of its columns show
any; if others have more than the third share of these, something is out of place: at most 0.01 in 47 volumes and 56
phantoms, 0.36 where metal divided a disc in two, 0.48 to 0.74 beside five discs where an image wrapped round."""
_DISCS = 0.5
"""Without a canal, a spine has discs at this share of its interfaces: all 47 volumes do without theirs, and all but 47
of 1,286 single slices and threes of theirs, none of SPIDER's; a synthetic knee had one at one of three."""
_ARCH_MM3 = 300.0
"""An arch this large whose body lies above the image is a vertebra of its own. Less would be a structure of few voxels
and goes to the next vertebra: in 70 crops of a phantom most of it was that one's."""
_UPPER_HALF = 0.5
"""C1's anterior arch lies above this share of C2's height above its disc: beside the odontoid process."""


class Spine:
    """All instances on the full grid, numbered from the top.

    Attributes:
        grid: the given one without components of the canal that lie away from the column.
        column: the line down the bodies' posterior wall.
        chain: interfaces and bodies.
        discs: the discs that the chain kept.
        voxels: the N voxels of the class vertebra.
        number: (N,) int16, number of the vertebra each belongs to, `NO_BODY` for none. Vertebra k lies above interface
            k; -1 is C1, or one of which only the arch is visible.
        numbers: of the vertebrae that have voxels.
        apart_mm3: of bone and canal that lie apart from it and belong to no structure, most of it a ghost's.
    """

    def __init__(self, grid: Grid) -> None:
        self.column, self.grid = find_column(grid)
        working = self.grid.thinned(WORKING_MM)
        discs = Discs.of(working, self.column)
        self.chain = Chain.of(working, self.column, discs.interfaces)
        self.discs = discs.only(self.chain.interfaces)
        self.voxels = Voxels(self.grid, self.grid.classes == VERTEBRA)
        self.number = self._vertebrae()
        seen = np.flatnonzero(np.bincount(self.number - NO_BODY)) + NO_BODY
        self.numbers = frozenset(int(k) for k in seen if k > NO_BODY)
        self._canal = self._without_ghosts(np.flatnonzero(self.grid.classes == CANAL))
        # Counted on the given grid: what `find_column` removed lies apart, too.
        apart = np.count_nonzero(grid.classes == CANAL) - len(self._canal) + np.count_nonzero(self.number == NO_BODY)
        self.apart_mm3 = float(apart * grid.voxel)

    def _without_ghosts(self, canal: np.ndarray) -> np.ndarray:
        """The canal's voxels, as indices (N,) into the flattened classes, without components that lie beside the spine.

        `wall.find_column` has removed small ones by narrower limits.
        """
        component = self.grid.components.ravel()[canal]
        numbers = np.unique(component)
        if len(numbers) < 2:
            return canal
        ghosts = [number for number in numbers if not self._may_be_canal(canal[component == number])]
        return canal[~np.isin(component, ghosts)]

    def _may_be_canal(self, component: np.ndarray) -> bool:
        """Whether a component, indices (N,) into the flattened classes, lies where the canal may be."""
        sample = component[:: max(1, len(component) // _SAMPLE)]
        index = np.stack(np.unravel_index(sample, self.grid.classes.shape), axis=1)
        depth = float(self.column.depth(index * self.grid.spacing + self.grid.first).mean())
        return _CANAL_MM[0] < depth < _CANAL_MM[1]

    def _vertebrae(self) -> np.ndarray:
        """Numbers (N,) of the vertebrae's voxels."""
        grid, chain, points = self.grid, self.chain, self.voxels.points
        bodies = self.column.in_bodies(points)
        number = np.zeros(len(points), np.int16)
        number[bodies] = self._body_numbers(points.compress(bodies, axis=0))  # several times faster than indexing
        if chain.interfaces and not bodies.all():
            arches = chain.arch_numbers(grid.cut_above)
            reached = assign_by_arrival(grid, self.column, chain, arches, self.voxels)
            locations = replace(reached, number=np.where(bodies, number, reached.number))
            number = assign_whole_components(grid, chain, arches, self.voxels, bodies, locations)
            above = number == -1
            few = np.count_nonzero(above) * grid.voxel < _ARCH_MM3 * grid.thin
            if few and not chain.odontoid and (number == 0).any():
                number[above] = 0
        if chain.odontoid:
            number[self._anterior_arch(points, number)] = -1
        return number

    def _anterior_arch(self, points: np.ndarray, number: np.ndarray) -> np.ndarray:
        """Which voxels (N,) given to C2 are C1's: components apart from it beside the upper half of its odontoid."""
        component = self.voxels.of(self.grid.components)
        own = number == 0
        if not own.any():
            return own
        high = -self.chain.interfaces[0].below(points)
        size = np.bincount(component[own], minlength=int(component.max()) + 1)
        height = np.bincount(component[own], weights=high[own], minlength=len(size)) / np.maximum(size, 1)
        apart = (height > _UPPER_HALF * np.percentile(high[own], 99)) & (np.arange(len(size)) != size.argmax())
        return own & apart[component]

    def _body_numbers(self, points: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the bodies at points (N, 3); a piece of the sacrum has `NO_BODY`."""
        chain = self.chain
        number = chain.body(points)
        below = number > chain.last
        if below.any():
            rim = chain.volume[-1] < _RIM * chain.volume[chain.last]
            near = chain.interfaces[-1].below(points[below]) < _RIM_MM
            number[below] = np.where(near & rim, chain.last, NO_BODY)
        return number

    def _disc_numbers(self, voxels: Voxels) -> np.ndarray:
        """Number (M,), from 1, of the disc that each voxel belongs to; 0 for none."""
        discs = self.discs
        if not discs.map.any():
            return np.zeros(len(voxels.flat), np.int64)
        coarse = discs.map.ravel()[voxels.nearest(discs.grid)].astype(np.int64)
        component = voxels.of(self.grid.components).astype(np.int64)
        counted = int(discs.map.max()) + 1
        count = np.bincount(component * counted + coarse, minlength=(int(component.max()) + 1) * counted).reshape(
            -1, counted
        )
        count[:, 0] = 0
        number = np.where(count.any(axis=1), count.argmax(axis=1), 0)[component]
        touching = ((count > 0).sum(axis=1) > 1)[component]
        if touching.any():  # discs that touch: what the coarse grid missed goes to the nearest plane
            points = voxels.points[touching]
            with_disc = [interface for interface in self.chain.interfaces if interface.number]
            planes = np.array([interface.number for interface in with_disc])
            nearest = planes[np.argmin([np.abs(interface.below(points)) for interface in with_disc], axis=0)]
            number[touching] = np.where(coarse[touching] > 0, coarse[touching], nearest)
        return np.asarray(number)

    @property
    def few(self) -> bool:
        """Whether too little was found for a spine: one vertebra, no disc, or few discs and no canal."""
        interfaces = self.chain.interfaces
        discs = sum(interface.number > 0 for interface in interfaces)
        alone = not self.has_canal and discs < _DISCS * len(interfaces)
        return len(self.numbers) < 2 or discs == 0 or alone

    @property
    def has_canal(self) -> bool:
        """Whether any of the canal was found beside the bodies."""
        return len(self._canal) > 0

    @cached_property
    def mixed(self) -> list[int]:
        """Interfaces whose disc has vertebrae other than its own directly above or below."""
        grid, discs, last = self.grid, self.discs, self.chain.last
        full = np.full(grid.classes.shape, NO_BODY, np.int16)
        full.ravel()[self.voxels.flat] = self.number
        number: np.ndarray = replace(grid, classes=full).thinned(WORKING_MM).classes
        step = round(_NEXT_MM / float(discs.grid.spacing[1]))
        index = np.argwhere(discs.map)  # each column from the top down
        of_disc = discs.map[tuple(index.T)]
        found = []
        for k, interface in enumerate(self.chain.interfaces):
            own = index[of_disc == interface.number]
            for vertebra, way in ((k, -1), (k + 1, 1)):
                ordered = own[::-way]
                column = np.asarray(ordered[:, 0] * number.shape[2] + ordered[:, 2])
                end = np.unique(column, return_index=True)[1]
                slices, rows, columns = ordered[end].T
                seen = number[slices, (rows + way * step).clip(0, number.shape[1] - 1), columns]
                seen = seen[seen > NO_BODY]
                many = len(seen) > _SEEN * len(end) and vertebra <= last
                if many and np.mean(seen != vertebra) > _OTHER and k not in found:
                    found.append(k)
        return found

    def widths(self, behind_mm: float = np.inf) -> dict[int, float]:
        """Width by vertebra number: mm from the first to the last slice that shows more than a trace of it.

        What lies farther than `behind_mm` behind the canal's anterior border does not count.
        """
        area = np.prod(self.grid.spacing[1:])
        number = self.number
        if np.isfinite(behind_mm):
            number = np.where(self.column.depth(self.voxels.points) < behind_mm, number, NO_BODY)
        ends = np.searchsorted(self.voxels.flat, np.arange(1, len(self.grid.classes)) * self.grid.classes[0].size)
        counts = [np.bincount(own - NO_BODY, minlength=256) for own in np.split(number, ends)]
        shown = np.stack([count[:256] * area > _TRACE_MM2 for count in counts])
        first, last = shown.argmax(axis=0), len(shown) - shown[::-1].argmax(axis=0)
        width = np.where(shown.any(axis=0), last - first, 0)
        return {k: float(width[k - NO_BODY] * self.grid.spacing[0]) for k in self.numbers}

    def labels(self, vertebrae: dict[int, int], discs: dict[int, int]) -> np.ndarray:
        """Label values (S, H, W) uint8 on the full grid, given the value of each number; all others are background."""
        of_vertebra, of_disc = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        for k, value in vertebrae.items():
            of_vertebra[k - NO_BODY] = value
        for number, value in discs.items():
            of_disc[number] = value
        classes = self.grid.classes
        labels = np.zeros(classes.shape, np.uint8)
        labels.ravel()[self._canal] = CANAL_VALUE
        labels.ravel()[self.voxels.flat] = of_vertebra[self.number - NO_BODY]
        voxels = Voxels(self.grid, classes == DISC)
        labels.ravel()[voxels.flat] = of_disc[self._disc_numbers(voxels)]
        return labels
