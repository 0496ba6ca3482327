"""Landmarks along one spine: the canal's centreline, and sections of the bodies and discs in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..masks import connected_components
from .centreline import Centreline
from .endplates import EVEN, Section
from .neighbours import Neighbours
from .sections import DOUBTFUL, STRAY, SectionFinder
from .space import LabelSpace

_HALF_CANAL_MM = 8.0
"""Distance, mm, from the discs' posterior ends to the canal's middle, and from there to its border, where no canal is
segmented: more than half a canal's depth (`centreline._HALF_MM`), since it lies some mm behind the discs."""
_POSTERIOR = 92
"""Percentile of a disc's columns from which on they count as its posterior end here; `levels.wall` has its own."""
_FEW = 20
"""Fewest points of a vertebra in front of the canal that make a body."""
_GAP_MM = 4.5
"""A body that ends farther, mm, from a disc's mask is incomplete: median 1.6, at most 4.0 in SPIDER's label maps."""
_SAMPLE = 200
"""About how many voxels of a piece are tested for whether it lies in front of the canal."""


@dataclass(frozen=True)
class Landmarks:
    """Everything found along one spine.

    Attributes:
        bodies, discs: by label value; structures without a usable section are left out.
        above, below: by a disc's value, the value of its neighbour.
        order: values of bodies and discs from the top down, by place and not by name.
        lumbosacral: value of the disc above the sacrum; 0 where it is not seen.
        line: the canal's centreline, or where it must be; None where nothing shows it.
        canal_seen: whether `line` rests on a segmented canal.
        turn_seen: whether any body's direction to the back is known; otherwise that of the slices is used.
        swapped: whether the canal lies in front of the discs; such a spine has no other landmarks.
    """

    bodies: Mapping[int, Section]
    discs: Mapping[int, Section]
    above: Mapping[int, int]
    below: Mapping[int, int]
    order: tuple[int, ...]
    lumbosacral: int
    line: Centreline | None
    canal_seen: bool
    turn_seen: bool = False
    swapped: bool = False


def find_landmarks(
    space: LabelSpace,
    vertebrae: list[int],
    discs: list[int],
    canal: int | None,
    sacrum: int | None = None,
    lumbosacral: int = 0,
) -> Landmarks:
    """Landmarks of structures given by their label values, all present in the space.

    `lumbosacral` is the value of the disc above the sacrum, whether or not it and the sacrum are segmented.
    """
    clouds = [space.points(value) for value in discs]
    behind = _behind_discs(clouds)
    seen = Centreline.of(space, canal, behind) if canal is not None else None
    line = seen or Centreline.behind(behind, _HALF_CANAL_MM)
    if line is None:
        return Landmarks({}, {}, {}, {}, (), 0, None, False)
    if seen is not None and clouds and seen.in_front(np.concatenate(clouds)).mean() < 0.5:
        return Landmarks({}, {}, {}, {}, (), 0, None, False, swapped=True)
    space, doubtful = _without_strays(space, line, vertebrae, discs)
    neighbours = Neighbours.of(line, _bodies(space, line, vertebrae), {value: space.points(value) for value in discs})
    finder = SectionFinder(space, line, doubtful)
    turns = neighbours.turns(space)
    body_sections = _body_sections(finder, neighbours, turns)
    disc_sections = _disc_sections(finder, neighbours, turns, body_sections)
    below = dict(neighbours.below)
    last = lumbosacral if lumbosacral in disc_sections else 0
    if last in below:  # names out of order: below this disc lies a vertebra, not the sacrum
        last = 0
    elif sacrum is not None and last:
        section = finder.sacrum(sacrum, disc_sections[last])
        if section is not None:
            body_sections[sacrum], below[last] = section, sacrum
    for value in _incomplete(body_sections, disc_sections, neighbours, below):
        body_sections[value] = body_sections[value].doubted()
    return Landmarks(
        body_sections,
        disc_sections,
        neighbours.above,
        below,
        neighbours.order,
        last,
        line,
        seen is not None,
        bool(turns),
    )


def _behind_discs(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Points (N, 3), mm, where the canal must run, from the posterior ends of discs, each given as points (M, 3)."""
    ends = []
    for cloud in clouds:
        back = cloud[:, 2] >= np.percentile(cloud[:, 2], _POSTERIOR)
        ends.append([cloud[:, 0].mean(), cloud[back, 1].mean(), cloud[back, 2].mean() + _HALF_CANAL_MM])
    return np.array(ends).reshape(-1, 3)


def _without_strays(
    space: LabelSpace, line: Centreline, vertebrae: list[int], discs: list[int]
) -> tuple[LabelSpace, frozenset[int]]:
    """The space without small detached pieces of bodies and discs; values of structures with larger ones.

    Behind the canal a vertebra may well be in pieces: slices beside the midline show its arch apart from the body.
    """
    strays, doubtful = np.zeros(space.labels.shape, bool), set()
    for value in (*vertebrae, *discs):
        box = space.box(value)
        pieces = connected_components(space.labels[box] == value)
        sizes = np.bincount(pieces.ravel())[1:]
        for piece in np.flatnonzero(sizes < sizes.max()) + 1:
            mask = pieces == piece
            if value in vertebrae:
                points = np.argwhere(mask)[:: max(1, sizes[piece - 1] // _SAMPLE)] + [part.start for part in box]
                if line.in_front(points * space.spacing).mean() < 0.5:
                    continue
            if sizes[piece - 1] >= DOUBTFUL * sizes.max():
                doubtful.add(value)
            if sizes[piece - 1] < STRAY * sizes.max():
                strays[box] |= mask
    return (space.without(strays) if strays.any() else space), frozenset(doubtful)


def _bodies(space: LabelSpace, line: Centreline, vertebrae: list[int]) -> dict[int, np.ndarray]:
    """By value, the points (N, 3) of vertebrae in front of the canal, where there are enough for a body."""
    clouds = {value: space.points(value) for value in vertebrae}
    bodies = {value: cloud[line.in_front(cloud)] for value, cloud in clouds.items()}
    return {value: cloud for value, cloud in bodies.items() if len(cloud) >= _FEW}


def _body_sections(finder: SectionFinder, neighbours: Neighbours, turns: Mapping[int, float]) -> dict[int, Section]:
    """By value, the bodies' sections, where they have one."""
    sections = {
        value: finder.body(value, cloud, neighbours.up(value), turns.get(value, 0.0))
        for value, cloud in neighbours.bodies.items()
    }
    return {value: section for value, section in sections.items() if section is not None}


def _disc_sections(
    finder: SectionFinder, neighbours: Neighbours, turns: Mapping[int, float], bodies: Mapping[int, Section]
) -> dict[int, Section]:
    """By value, the discs' sections, where they have one; a disc takes the mean turn of its neighbours."""
    result = {}
    for value, cloud in neighbours.discs.items():
        beside = [side[value] for side in (neighbours.above, neighbours.below) if value in side]
        turn = float(np.mean([turns.get(body, 0.0) for body in beside])) if beside else 0.0
        upper, lower = (bodies.get(side.get(value, 0)) for side in (neighbours.above, neighbours.below))
        section = finder.disc(value, cloud, turn, upper, lower)
        if section is not None:
            result[value] = section
    return result


def _incomplete(
    bodies: Mapping[int, Section], discs: Mapping[int, Section], neighbours: Neighbours, below: Mapping[int, int]
) -> set[int]:
    """Bodies labelled only in part: they end far from a disc, or their endplate is much shorter than the one across."""
    result = set()
    for disc, section in discs.items():
        upper, lower = neighbours.beside(disc)
        lower = lower or below.get(disc, 0)
        depths = {}
        for value, plate_name, surface in ((upper, "lower", section.upper), (lower, "upper", section.lower)):
            plate = getattr(bodies.get(value), plate_name, None)
            if plate is None or plate.cut:
                continue
            depths[value] = plate.depth
            if abs(float((plate.middle - surface.middle) @ section.frame.axes[2])) > _GAP_MM:
                result.add(value)
        if len(depths) == 2 and min(depths.values()) < EVEN * max(depths.values()):
            result.add(min(depths, key=depths.__getitem__))
    return result
