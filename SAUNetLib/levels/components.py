"""Assign connected components that belong to one vertebra to it as a whole, where fast marching would cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cc3d
import numpy as np

from .bodies import NO_BODY, Chain
from .grid import Grid, Voxels
from .level_axis import VoxelLocations

_DEEPEST_BODY = 50.0
"""A component wholly farther in front of the canal than this many mm is bone of the chest, or no bone."""
_BEHIND_ALL, _BEHIND_MEAN = 45.0, 62.0
"""A component wholly behind the first (mm behind the canal's anterior border) and on average behind the second is a
ghost's, not an arch: in 47 volumes nothing lies wholly behind the first."""
_PROCESS_DEPTH = 14.0
"""More than this many mm behind the canal's anterior border there are only laminae and processes."""
_SPINOUS_DEPTH = 20.0
"""More than this many mm behind it there are only spinous processes."""
_ENDS = (3, 97)
"""Percentiles of position that count as the ends of what lies behind."""

_BODY_MM3, _BODY_SHARE = 300.0, 0.02
"""A component contains a body if more than this, and this share of its volume, is bone of one (chosen by hand)."""
_ALONE = 0.97
"""It contains only one body if more than this share of that bone is one body's (chosen by hand)."""
_UP, _DOWN = 0.7, 1.25
"""A vertebra's own processes reach no more than this many levels above and below its body's middle (chosen by hand)."""
_MOSTLY = 0.9
"""A component that reaches farther is its body's if waves gave it more than this share (chosen by hand)."""
_SAMPLE = 500
"""About this many voxels of a component are used to locate it."""
_ONE_LONG, _ONE_TALL = 1.1, 0.8
"""A component without a body is one vertebra's if shorter than this many levels, or this many times the usual height of
a level (chosen by hand): behind a steep lowest disc a level is only a few mm high."""

_LARGE_MM3 = 400.0
"""Components with less than this behind the canal are not ordered (chosen by hand): the tip of a joint attached to a
body does not lie where that one's arch does."""
_NEXT = 0.5
"""Components in the same slices lie one below the other if more than this many levels apart (chosen by hand)."""
_SACRUM = 0.75
"""Mean square of levels by which a component must fit the sacrum better than the lowest vertebra, behind whose steep
disc a process may lie as low as the sacrum's (chosen by hand)."""
_PROCESS_LONG = 1.3
"""A spinous process is shorter than this many levels (chosen by hand)."""
_MOST = 0.55
"""It goes wholly to a vertebra that already has more than this share of it (chosen by hand)."""


def assign_whole_components(
    grid: Grid, chain: Chain, numbers: range, voxels: Voxels, bodies: np.ndarray, locations: VoxelLocations
) -> np.ndarray:
    """Vertebra numbers (N,) of the voxels, with components that belong to one vertebra left undivided.

    Waves divide vertebrae that touch, but may also cut a process half-way between two bodies. So a component stays
    whole if it contains one body and reaches no farther than that one's own processes, or contains none and is no
    longer than one vertebra's; and spinous processes one below the other belong to vertebrae one below the other, the
    lowest of them perhaps to the sacrum.

    Args:
        grid: the classes and their components.
        chain: the bodies.
        numbers: of the vertebrae whose arches may be visible.
        voxels: the N voxels of the vertebrae.
        bodies: (N,) bool, which of them lie where bodies are.
        locations: (N,), numbered by the discs' planes (bodies) and the waves (all others).
    """
    if not numbers:  # no vertebra's arch can lie in the slices
        return locations.number
    components = [
        _component(own, voxels.points, bodies[own], numbers, locations[own], grid.voxel, chain.spacing_mm)
        for own in _members(voxels.of(grid.components))
    ]
    number = locations.number.copy()
    # Where the image ends within a vertebra, no piece of the sacrum can be seen.
    assigned = _assigned_numbers(components, numbers, sacrum=not chain.last_cut)
    for component, vertebra in zip(components, assigned, strict=True):
        if vertebra is not None:
            number[component.voxels] = vertebra
    return _with_whole_processes(grid, voxels, replace(locations, number=number))


def _members(component: np.ndarray) -> list[np.ndarray]:
    """Indices of each component's voxels in the list, given the component (N,) of each voxel."""
    order = np.argsort(component, kind="stable")
    return [own for own in np.split(order, np.cumsum(np.bincount(component))[:-1]) if len(own)]


@dataclass(frozen=True, eq=False)
class _Component:
    """A component of the vertebrae, the one vertebra that it belongs to, if any, and the evidence.

    Attributes:
        voxels: indices of its voxels in the list of the vertebrae's voxels.
        number: the vertebra that all of it belongs to, `NO_BODY` for none, or None where waves divide it.
        volume: mm3.
        behind: mm3 of what lies well behind the bodies.
        place: mean place in levels of what lies well behind the bodies, NaN if nothing does.
        span: extent of that along the slices, mm.
        cost: by vertebra that it may belong to, its misfit to where that one's arch is expected; without a body also
            for the number that follows, the sacrum's.
    """

    voxels: np.ndarray
    number: int | None
    volume: float = 0.0
    behind: float = 0.0
    place: float = np.nan
    span: tuple[float, float] = (0.0, 0.0)
    cost: dict[int, float] = field(default_factory=dict)

    @property
    def tells_order(self) -> bool:
        """Whether it is one vertebra's and large enough behind the canal to be ordered among others."""
        return self.number is not None and self.behind > _LARGE_MM3

    def apart(self, below: _Component) -> int:
        """1 if `below` lies so far below this one that it cannot be the same vertebra's; 0 if it may be."""
        beside = min(self.span[1], below.span[1]) < max(self.span[0], below.span[0])
        return int(not beside and below.place - self.place > _NEXT)


def _component(
    own: np.ndarray,
    points: np.ndarray,
    bodies: np.ndarray,
    numbers: range,
    locations: VoxelLocations,
    voxel: float,
    spacing_mm: tuple[float, float],
) -> _Component:
    """Describe a component.

    Args:
        own: indices (M,) of its voxels in the list of the vertebrae's.
        points: (N, 3) mm of all of these.
        bodies: (M,) bool, which of its voxels lie where bodies are.
        numbers: of the vertebrae whose arches may be visible.
        locations: (M,) of its voxels.
        voxel: volume of one, mm3.
        spacing_mm: usual height of a level, at the top and at the bottom.
    """
    far_behind = locations.depth.min() > _BEHIND_ALL and locations.depth.mean() > _BEHIND_MEAN
    if locations.depth.max() < -_DEEPEST_BODY or far_behind:
        return _Component(own, NO_BODY)
    volume = len(own) * voxel
    behind = locations.depth > _PROCESS_DEPTH
    arch = locations[behind]
    if bodies.sum() * voxel > max(_BODY_MM3, _BODY_SHARE * volume):
        number = _of_body(locations, bodies, arch)
        cost = {} if number is None else {number: 0.0}
    elif not len(arch.place) and bodies.mean() > _MOSTLY:
        # A rim of a body that is mostly outside the image: the discs' planes have numbered it.
        return _Component(own, None, volume)
    else:
        cost = _costs(locations, range(numbers.start, numbers.stop + 1))
        short = _is_short(arch, points[own[behind], 1], numbers, spacing_mm)
        number = min(numbers, key=cost.__getitem__) if cost and short else None
    if not len(arch.place):
        return _Component(own, number, volume, cost=cost)
    sides = points[own[behind], 0]
    span = float(sides.min()), float(sides.max())
    return _Component(own, number, volume, len(arch.place) * voxel, float(arch.place.mean()), span, cost)


def _of_body(locations: VoxelLocations, bodies: np.ndarray, arch: VoxelLocations) -> int | None:
    """The vertebra that a component with a body belongs to, or None if it is not that one's alone.

    Args:
        locations: its voxels (M,).
        bodies: (M,) bool, which of them are bodies'.
        arch: those well behind the bodies.
    """
    held = np.bincount(locations.number[bodies] - NO_BODY)
    body = int(held.argmax()) + NO_BODY
    if held.max() <= _ALONE * held.sum() or body == NO_BODY:
        return None
    if not len(arch.place):
        return body
    low, high = np.percentile(arch.place, _ENDS)
    near = low > body - _UP and high < body + _DOWN
    if not near and (locations.number == body).mean() <= _MOSTLY:
        return None
    # Where the arch of the vertebra above is incomplete, its processes may be attached to this one's.
    return None if arch.misfit(body - 1) < arch.misfit(body) else body


def _costs(locations: VoxelLocations, numbers: range) -> dict[int, float]:
    """By vertebra, the misfit of a component without a body to its arch; empty for one in front of all arches."""
    sample = locations[:: max(1, len(locations.place) // _SAMPLE)]
    sample = sample[np.isfinite(sample.place)]
    return {k: sample.misfit(k) for k in numbers} if len(sample.place) else {}


def _is_short(arch: VoxelLocations, rows: np.ndarray, numbers: range, spacing_mm: tuple[float, float]) -> bool:
    """Whether what lies well behind the bodies, in rows (M,) in mm, is no longer than one vertebra's."""
    if not len(arch.place):
        return True
    low, high = np.percentile(arch.place, _ENDS)
    top, bottom = np.percentile(rows, _ENDS)
    usual = np.interp((low + high) / 2, (numbers.start, numbers.stop - 1), spacing_mm)
    return bool(high - low < _ONE_LONG or bottom - top < _ONE_TALL * usual)


def _assigned_numbers(components: Sequence[_Component], numbers: range, sacrum: bool) -> list[int | None]:
    """The vertebra of each component; those behind the canal are numbered jointly, with a `sacrum` if asked."""
    assigned = [component.number for component in components]
    order = [n for n, component in enumerate(components) if component.tells_order]
    order.sort(key=lambda n: components[n].place)  # from the top down
    for n, number in zip(order, _lined_up([components[n] for n in order], numbers, sacrum), strict=True):
        assigned[n] = number
    return assigned


def _lined_up(components: Sequence[_Component], numbers: range, sacrum: bool) -> list[int | None]:
    """Numbers of components from the top down, chosen together by dynamic programming down the spine.

    They minimise the sum of costs weighted by size, where numbers never fall, and rise where one component lies below
    the other; if that is impossible, each keeps its own. With a `sacrum` the lowest may be pieces of its crest,
    `NO_BODY`: otherwise one such piece would move all processes above it up a level.
    """
    if not components:
        return []
    states = np.arange(numbers.start, numbers.stop + sacrum)
    more = np.where(states == numbers.stop, _SACRUM, 0.0)
    costs = [
        (np.array([component.cost.get(k, np.inf) for k in states.tolist()]) + more) * np.sqrt(component.volume)
        for component in components
    ]
    total = costs[0]  # by index of a component's number: the least sum down to it
    before: list[np.ndarray] = []  # by the same: the index for the component above in that sum
    rises = states - states[:, None]
    same_bone = (states == numbers.stop) & (states[:, None] == numbers.stop)
    for above, below, cost in zip(components, components[1:], costs[1:], strict=False):
        sums = np.where((rises >= above.apart(below)) | same_bone, total[:, None], np.inf)
        before.append(sums.argmin(axis=0))
        total = sums.min(axis=0) + cost
    if not np.isfinite(total).any():
        return [component.number for component in components]
    chosen = [int(total.argmin())]
    for above_of in reversed(before):
        chosen.append(int(above_of[chosen[-1]]))
    found = [int(states[k]) for k in reversed(chosen)]
    return [NO_BODY if k == numbers.stop else k for k in found]


def _with_whole_processes(grid: Grid, voxels: Voxels, locations: VoxelLocations) -> np.ndarray:
    """Numbers (N,) with spinous processes undivided: in a slice, a piece no longer than one goes to its majority."""
    behind = locations.depth > _SPINOUS_DEPTH
    if not behind.any():
        return locations.number
    piece = _pieces(grid, voxels.flat[behind])
    own = locations[behind]
    low, high = (np.full(int(piece.max()) + 1, sign * np.inf) for sign in (1, -1))
    place = own.place.astype(float)  # of the same type as the others: many times faster
    with np.errstate(invalid="ignore"):  # NaN behind all arches
        np.minimum.at(low, piece, place)
        np.maximum.at(high, piece, place)
    index = own.number - NO_BODY
    many = int(index.max()) + 1
    count = np.bincount(piece * many + index, minlength=len(low) * many).reshape(-1, many)
    most = count.argmax(axis=1)
    whole = (high - low < _PROCESS_LONG) & (count.max(axis=1) > _MOST * count.sum(axis=1)) & (most > 0)
    number = locations.number.copy()
    number[behind] = np.where(whole[piece], most[piece] + NO_BODY, own.number)
    return number


def _pieces(grid: Grid, flat: np.ndarray) -> np.ndarray:
    """Number (M,), from 0, of the in-slice component (4 neighbours) of each voxel of a grid, by flat index (M,)."""
    number, rows, _ = grid.classes.shape
    mask = np.zeros(grid.classes.shape, bool)
    mask.ravel()[flat] = True
    columns = np.flatnonzero(mask.any(axis=0).any(axis=0))
    apart = np.zeros((number, rows + 1, columns[-1] - columns[0] + 1), bool)  # slices stacked, an empty row between
    apart[:, :rows] = mask[:, :, columns[0] : columns[-1] + 1]
    piece = cc3d.connected_components(apart.reshape(-1, apart.shape[2]), connectivity=4)
    return np.asarray(piece[apart.reshape(piece.shape)]).astype(np.int64) - 1
