"""Derive all interfaces of the spine from the discs found: merge fragments, drop false discs, insert missing ones.

Every function takes interfaces from the top down and returns new ones; none is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .bone import Bone
from .discs import Interface, valleys

_SPACINGS_MM = (14.0, 45.0)
"""Limits of the distance from one disc to the next: in the neck of a small and the lower back of a tall adult."""
_SPACING_MM = 35.0
"""That distance where nothing shows it: about that of lumbar discs, which most scans show."""
_SPACING_PER_DEPTH = 1.05
"""Distance between discs relative to the bodies' anterior-posterior depth; about one from the neck to the sacrum."""
_LONG = 10
"""From this many levels on, level heights differ much between top and bottom."""
_AROUND = 3
"""Then the height of a level is taken from this many levels above and below."""
_SOLID = 0.6
"""Bone has no gap at a waist that is above this share of what is beside it."""
_MIDDLE = 0.2
"""That waist is sought within this share of two interfaces' distance around the middle between them."""

_NO_BONE, _NO_ROOM = 0.06, 0.6
"""Two discs with less than the first share of the usual bone and the second of the usual distance between them are
fragments of one (chosen by hand)."""
_NO_LEVEL = 0.35
"""Hardly any vertebra is this low, as a share of the usual disc distance (SPIDER: 0.57): likelier, a disc in parts."""
_ONE_LEVEL = 1.15
"""Such a gap and the level that it was cut from are together lower than this share of one level (chosen by hand)."""

_LITTLE, _SHALLOW = 0.4, 0.6
"""A false disc has less than these shares of the usual volume and depth (chosen by hand)."""
_STILL_ONE = 1.35
"""A false disc's neighbours are no farther apart than this many usual distances: one level (chosen by hand)."""
_FEW, _NO_VERTEBRA = 4, 0.5
"""Of at least this many discs the highest and lowest may be false, too, if closer to the next one than this share of
the usual distance (chosen by hand)."""
_FALSE_WITHIN_MM, _FALSE_BONE = 5.0, 0.5
"""Bone surrounds a false disc: within this distance the thinnest place has more than this share of that beside it."""

_GAP = 0.45
"""Without any disc, the row of bodies is divided where its cross-section falls below this share of the peaks beside it
(chosen by hand)."""
_MIDDLE_MM = 15.0
"""Distance from the posterior wall forwards to about the middle of a body."""

_HIGHEST = 0.92
"""Height of the highest level relative to those below."""
_ONE_OR_TWO = (1.3, 1.45)
"""Up to the first, in usual distances, is one level, from the second on two or more; between them the waist decides."""
_TWO_WAIST = 0.4
"""If the waist is below this share of the bone beside it, there are two (chosen by hand)."""
_TWO_TOLERANCE = 0.15
"""That waist is sought within this share of the discs' distance around the middle between them (chosen by hand)."""
_WAIST_TOLERANCE = 0.25
"""A missing disc is sought within this fraction of a level around where it is expected (chosen by hand)."""

_STEP_TOLERANCE = 0.33
"""The same for the next disc beyond the last one found, whose distance is less certain."""
_ROOM, _WHOLE = 0.9, 0.5
"""Beyond the last interface another is added if this many levels of bone are left, and this many beyond the new one."""
_GAP_BEYOND, _PIECE = 0.35, 0.08
"""Or the second beyond it, if the waist there is below the first and so a gap (chosen by hand)."""
_MOST = 40
"""More levels than any spine has."""
_LAST_DISC = 0.12
"""Levels from the lowest body's lower end to the interface that would follow, half a disc below."""


def count_above(interfaces: Sequence[Interface], points: np.ndarray) -> np.ndarray:
    """Number (N,) int16 of interfaces above points (N, 3) in front of the canal, which is the body's number."""
    if not interfaces:
        return np.zeros(len(points), np.int16)
    normals = np.array([interface.normal for interface in interfaces], np.float32)
    offsets = np.array([interface.normal @ interface.point for interface in interfaces], np.float32)
    return np.asarray((normals @ points.T > offsets[:, None]).sum(axis=0, dtype=np.int16))


def volumes(interfaces: Sequence[Interface], bone: Bone) -> np.ndarray:
    """Volumes (len(interfaces) + 1,) in mm3 of the bodies above, between and below interfaces."""
    return np.bincount(count_above(interfaces, bone.points), minlength=len(interfaces) + 1) * bone.voxel


def distances(interfaces: Sequence[Interface]) -> np.ndarray:
    """Distances (len(interfaces) - 1,) in mm from each interface to the next."""
    points = np.array([interface.point for interface in interfaces]).reshape(-1, 3)
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


def usual_spacings(interfaces: Sequence[Interface], bone: Bone) -> np.ndarray:
    """Expected distance of each interface to the next in mm, (max(1, gaps),).

    From the discs where there are enough and from the bodies' depth; where there are too many for their levels to be
    about equally high, from those near by.
    """
    depth = np.array([interface.depth for interface in interfaces])
    known = bone.extents if len(bone.points) else depth
    expected = _SPACING_PER_DEPTH * float(np.median(known)) if len(known) else _SPACING_MM
    expected = float(np.clip(expected, *_SPACINGS_MM))
    gaps = distances(interfaces)
    if len(gaps) == 0:
        return np.array([expected])
    if len(gaps) < _LONG:
        levels = np.maximum(1, np.round(gaps / expected))
        if levels.max() > 1 and _whole_between(interfaces, bone):
            levels = np.maximum(1, np.round(gaps / np.median(gaps)))
        return np.full(len(gaps), np.median(gaps / levels))
    neighbourhoods = [slice(max(0, n - _AROUND), n + _AROUND + 1) for n in range(len(gaps))]
    deep = np.array([_SPACING_PER_DEPTH * np.median(depth[around]) for around in neighbourhoods])
    deep = np.where(deep > 0, np.clip(deep, *_SPACINGS_MM), expected)  # interfaces without a disc have no depth
    usual = gaps / np.maximum(1, np.round(gaps / deep))
    return np.array([np.median(usual[around]) for around in neighbourhoods])


def _whole_between(interfaces: Sequence[Interface], bone: Bone) -> bool:
    """Whether most neighbouring interfaces have a single bone between them, without a waist in its middle.

    Where the slices show only the sides of the bodies, their depth is no measure of their height.
    """
    waists = [
        bone.waist((above.station + below.station) / 2, _MIDDLE * (below.station - above.station))[1]
        for above, below in pairwise(interfaces)
    ]
    return float(np.median(waists)) > _SOLID


def merge_fragments(discs: Sequence[Interface], bone: Bone) -> list[Interface]:
    """Merge neighbours that are fragments of one disc: almost no bone between them, or no room for a vertebra."""
    if len(discs) < 2:
        return list(discs)
    between = volumes(discs, bone)
    typical = float(np.median(between[between > 0])) if between.any() else 0.0
    apart = distances(discs)
    around = np.concatenate([[np.inf], apart, [np.inf]])
    beside = np.minimum(around[:-2], around[2:])
    merged = [discs[0]]
    gaps = zip(apart, beside, usual_spacings(discs, bone), between[1:-1], discs[1:], strict=True)
    for gap, next_to, expected, volume, disc in gaps:
        no_bone = typical > 0 and volume < _NO_BONE * typical and gap < _NO_ROOM * expected
        # Fragments of one disc shorten the level beside them by their gap; a collapsed vertebra does not.
        no_room = gap < _NO_LEVEL * expected and gap + next_to < _ONE_LEVEL * expected
        if no_bone or no_room:
            merged[-1] = merged[-1].merged_with(disc)
        else:
            merged.append(disc)
    return merged


def drop_false_discs(discs: Sequence[Interface], bone: Bone) -> list[Interface]:
    """Drop false discs: small, surrounded by bone, between neighbours that are one level apart without them."""
    kept = list(discs)
    for disc in sorted(discs, key=lambda disc: disc.volume):
        index = next(n for n, kept_disc in enumerate(kept) if kept_disc is disc)
        if _is_false(kept, index, bone):
            del kept[index]
    return kept


def _is_false(discs: Sequence[Interface], index: int, bone: Bone) -> bool:
    """Whether the disc at that index is false: a small one within bone, or at an end of many and too near the next."""
    candidate = discs[index]
    volume, depth = np.median([disc.volume for disc in discs]), np.median([disc.depth for disc in discs])
    if not (candidate.volume < _LITTLE * volume and candidate.depth < _SHALLOW * depth):
        return False
    if not 0 < index < len(discs) - 1:
        beside = 0 if index == 0 else -1
        few = len(discs) < _FEW
        return not few and bool(distances(discs)[beside] < _NO_VERTEBRA * usual_spacings(discs, bone)[beside])
    apart = float(np.linalg.norm(discs[index + 1].point - discs[index - 1].point))
    if not apart < _STILL_ONE * usual_spacings(discs, bone)[index]:
        return False
    return bone.waist(candidate.station, _FALSE_WITHIN_MM)[1] > _FALSE_BONE


def interfaces_at_gaps(bone: Bone) -> list[Interface]:
    """Place interfaces where the row of bodies is interrupted: the only evidence if there is no disc at all."""
    if len(bone.station) == 0:
        return []
    return [_across(bone, float(cut)) for cut in valleys(bone.station, least=_GAP)]


def _across(bone: Bone, station: float) -> Interface:
    """An interface across the column at a station."""
    point, tangent = bone.column.at(station)
    return Interface(point - [0.0, 0.0, _MIDDLE_MM], tangent, station)


def insert_missing(interfaces: Sequence[Interface], bone: Bone, expected: np.ndarray) -> list[Interface]:
    """Insert interfaces between neighbours that are so far apart that one or more are missing between them.

    `expected` (gaps,) is the usual distance of each to the next, mm.
    """
    gaps = distances(interfaces)
    if len(gaps) == 0:
        return list(interfaces)
    levels = np.maximum(1, np.round(gaps / expected))
    result = [interfaces[0]]
    for n, (above, below) in enumerate(pairwise(interfaces)):
        near = [gaps[m] / levels[m] for m in (n - 1, n + 1) if 0 <= m < len(gaps)]
        usual = float(np.mean([expected[n], *near])) * (_HIGHEST if n == 0 else 1.0)
        count = _levels_between(above, below, gaps[n] / usual, bone)
        result += [_between(above, below, step / count, gaps[n] / count, bone) for step in range(1, count)]
        result.append(below)
    return result


def _between(above: Interface, below: Interface, share: float, height: float, bone: Bone) -> Interface:
    """The missing interface at a share of the way between two, where levels have this height (mm)."""
    apart = below.station - above.station
    station, _ = bone.waist(above.station + share * apart, _WAIST_TOLERANCE * height)
    along = (station - above.station) / apart if apart else share  # 0 beyond the end of the column
    point = above.point + along * (below.point - above.point)
    normal = (1 - share) * above.normal + share * below.normal
    return Interface(point, normal / np.linalg.norm(normal), station)


def _levels_between(above: Interface, below: Interface, ratio: float, bone: Bone) -> int:
    """How many levels lie between two discs whose distance is `ratio` times the usual one.

    Two vertebrae, even if one has collapsed, are higher relative to their neighbours than any single one.
    """
    most_for_one, least_for_two = _ONE_OR_TWO
    if most_for_one < ratio < least_for_two:
        _, narrow = bone.waist((above.station + below.station) / 2, _TWO_TOLERANCE * (below.station - above.station))
        return 2 if narrow < _TWO_WAIST else 1
    return max(1 if ratio < least_for_two else 2, round(ratio))


def extend_to_ends(
    interfaces: Sequence[Interface], bone: Bone, spacing_mm: tuple[float, float], upwards: bool
) -> list[Interface]:
    """Add interfaces below the last one, and if `upwards` above the first, as long as complete bodies lie there.

    `spacing_mm` is the usual distance at the top and at the bottom. Without any interface they are added from the
    lowest body up.
    """
    top, bottom = spacing_mm
    if len(bone.station) == 0:
        return list(interfaces)
    if not interfaces:
        return _beyond(bone, bone.foot() + _LAST_DISC * bottom, -1, top)[::-1]
    above = _beyond(bone, interfaces[0].station, -1, top)[::-1] if upwards else []
    return [*above, *interfaces, *_beyond(bone, interfaces[-1].station, 1, bottom)]


def _beyond(bone: Bone, start: float, way: int, usual: float) -> list[Interface]:
    """Interfaces from a station upwards (`way` -1) or downwards (1), the nearest first, a body's height apart."""
    end = bone.end(start, way)
    result: list[Interface] = []
    if end is None:
        return result
    station = start
    while len(result) < _MOST and (end - station) * way >= _ROOM * usual:
        station, narrow = bone.waist(station + way * usual, _STEP_TOLERANCE * usual)
        left = (end - station) * way
        if not (left > _WHOLE * usual or (narrow < _GAP_BEYOND and left > _PIECE * usual)):
            break
        result.append(_across(bone, station))
    return result
