"""The steps from the discs found to all interfaces of a spine, each alone, on a block spine of known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from builders import BLOCK_DISCS, CLASS_OF, block_spine

from SAUNetLib.anatomy import CANAL, VERTEBRA
from SAUNetLib.levels.bodies import Chain
from SAUNetLib.levels.bone import Bone
from SAUNetLib.levels.column import Column
from SAUNetLib.levels.components import _assigned_numbers, _Component
from SAUNetLib.levels.discs import Discs, Interface
from SAUNetLib.levels.grid import WORKING_MM, Grid
from SAUNetLib.levels.interfaces import (
    drop_false_discs,
    extend_to_ends,
    insert_missing,
    interfaces_at_gaps,
    merge_fragments,
    usual_spacings,
    volumes,
)
from SAUNetLib.levels.wall import _beside_spine, _cores, _main, find_column
from SAUNetLib.masks import bounding_box, connected_components
from SAUNetLib.volume import SagittalStack


@pytest.fixture(scope="module")
def grid() -> Grid:
    classes = CLASS_OF[block_spine()]
    box = bounding_box(classes)
    assert box is not None
    return Grid.of(SagittalStack(classes, 4.0, (1.0, 1.0), (0, 1, 2), (False, False, False)), box).thinned(WORKING_MM)


@pytest.fixture(scope="module")
def column(grid: Grid) -> Column:
    return find_column(grid)[0]


@pytest.fixture(scope="module")
def bone(grid: Grid, column: Column) -> Bone:
    return Bone.of(grid, column)


@pytest.fixture(scope="module")
def discs(grid: Grid, column: Column) -> Discs:
    return Discs.of(grid, column)


def in_parts(disc: Interface, number: int) -> tuple[Interface, Interface]:
    """A disc as two parts, the second a smaller one 3 mm below, of that number."""
    small = replace(disc, point=disc.point + 3 * disc.normal, station=disc.station + 3, number=number, discs=(number,))
    return replace(disc, volume=0.7 * disc.volume), replace(small, volume=0.3 * disc.volume)


def test_a_whole_spine_stays_as_it_is(bone: Bone, discs: Discs) -> None:
    found = discs.interfaces
    assert len(found) == len(BLOCK_DISCS)
    for same in (
        merge_fragments(found, bone),
        drop_false_discs(found, bone),
        insert_missing(found, bone, usual_spacings(found, bone)),
    ):
        assert [one.number for one in same] == [one.number for one in found]


def test_parts_of_a_disc_become_one(bone: Bone, discs: Discs) -> None:
    found, many = discs.interfaces, len(discs.interfaces)
    parts = in_parts(found[3], many + 1)
    result = merge_fragments([*found[:3], *parts, *found[4:]], bone)
    assert len(result) == many
    assert result[3].discs == (4, many + 1) and result[3].number == 4
    assert result[3].volume == pytest.approx(found[3].volume)


def test_merged_parts_of_a_disc_lie_at_their_mean_weighted_by_volume() -> None:
    normal, tilted = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.8, 0.6])
    larger = Interface(np.array([0.0, 10.0, 0.0]), normal, 10.0, 300.0, 20.0, 2, (2,), 80.0)
    smaller = Interface(np.array([4.0, 14.0, 8.0]), tilted, 14.0, 100.0, 25.0, 3, (3,), 30.0)
    for merged in (larger.merged_with(smaller), smaller.merged_with(larger)):
        assert merged.point == pytest.approx([1, 11, 2]) and merged.station == pytest.approx(11)
        assert merged.normal is normal and merged.number == 2 and sorted(merged.discs) == [2, 3]
        assert (merged.volume, merged.depth, merged.section) == (400, 25, 110)


def test_a_small_disc_within_bone_is_false(bone: Bone, discs: Discs) -> None:
    above, below = discs.interfaces[2:4]
    speck = Interface(
        (above.point + below.point) / 2, above.normal, (above.station + below.station) / 2, 50.0, 5.0, 99, (99,)
    )
    found = [*discs.interfaces[:3], speck, *discs.interfaces[3:]]
    assert [one.number for one in drop_false_discs(found, bone)] == [one.number for one in discs.interfaces]


@pytest.mark.parametrize("lowest", [True, False])
def test_a_small_disc_too_near_the_last_one_is_false(bone: Bone, discs: Discs, lowest: bool) -> None:
    """It would make a level so low that the usual distance falls, and a whole vertebra is cut in two."""
    found = discs.interfaces[1:-1]
    end, way = (found[-1], 1) if lowest else (found[0], -1)
    speck = replace(end, point=end.point + 8 * way * end.normal, station=end.station + 8 * way, number=99, discs=(99,))
    small = replace(speck, volume=0.1 * end.volume, depth=0.3 * end.depth)
    for last, kept in ((small, False), (speck, True)):
        result = drop_false_discs([*found, last] if lowest else [last, *found], bone)
        assert (last in result) == kept and len(result) == len(found) + kept
    assert small in drop_false_discs([end, small] if lowest else [small, end], bone), (
        "of two it is not known which is false"
    )


def test_a_level_higher_than_the_bodies_are_deep_is_one(bone: Bone, discs: Discs) -> None:
    """Where nothing narrows the bone between two discs, one vertebra lies there, also if the others are lower."""
    shallow = replace(bone)
    vars(shallow)["extents"] = np.full(9, 23.0)
    found = list(discs.interfaces[:5])
    for at in (0, 4):
        one = found[at]
        found[at] = replace(one, point=one.point + 6 * one.normal, station=one.station + 6)
    assert usual_spacings(found, shallow) == pytest.approx(34.0, abs=0.7)
    assert len(insert_missing(found, shallow, usual_spacings(found, shallow))) == len(found)


@pytest.mark.parametrize("gone", [[2], [2, 3]])
def test_missing_discs_are_filled_in_where_they_were(bone: Bone, discs: Discs, gone: list[int]) -> None:
    found = [one for n, one in enumerate(discs.interfaces) if n not in gone]
    result = insert_missing(found, bone, usual_spacings(found, bone))
    assert [n for n, one in enumerate(result) if one.number == 0] == gone
    for n in gone:
        assert result[n].station == pytest.approx(discs.interfaces[n].station, abs=3)


def test_the_highest_level_is_lower_than_those_below_it(bone, discs) -> None:
    """Where no bone tells, 1.4 usual distances at the top are two levels, and one farther down."""
    nothing = replace(bone, points=bone.points[:0], station=bone.station[:0])

    def after(gaps: list[float]) -> int:
        stations = np.cumsum([0.0, *gaps])
        line = [replace(discs.interfaces[0], point=np.array([0.0, at, 0.0]), station=float(at)) for at in stations]
        return len(insert_missing(line, nothing, np.full(len(gaps), 34.0))) - len(line)

    assert after([1.4 * 34, 34, 34, 34]) == 1 and after([34, 34, 1.4 * 34, 34]) == 0


def test_the_ends_grow_to_the_last_bodies(bone: Bone, discs: Discs) -> None:
    spacing = usual_spacings(discs.interfaces, bone)
    ends = float(spacing[0]), float(spacing[-1])
    middle = discs.interfaces[2:5]
    result = extend_to_ends(middle, bone, ends, upwards=True)
    assert np.diff([one.station for one in result]).min() > 0
    for disc in discs.interfaces[:-1]:  # below the last one stands no body
        assert min(abs(disc.station - one.station) for one in result) < 3
    downwards = extend_to_ends(middle, bone, ends, upwards=False)
    assert downwards[0] is middle[0] and len(downwards) > len(middle)


def test_gaps_between_bodies_stand_in_for_discs(bone: Bone, discs: Discs) -> None:
    result = interfaces_at_gaps(bone)
    assert len(result) == len(discs.interfaces) - 1
    for one, disc in zip(result, discs.interfaces, strict=False):
        assert one.number == 0 and one.station == pytest.approx(disc.station, abs=3)


def test_nothing_comes_of_nothing(column: Column, grid: Grid) -> None:
    none = Bone.of(replace(grid, classes=np.zeros_like(grid.classes)), column)
    assert merge_fragments([], none) == drop_false_discs([], none) == interfaces_at_gaps(none) == []
    assert extend_to_ends([], none, (35.0, 35.0), upwards=True) == []
    assert volumes([], none).tolist() == [0.0]


def test_the_chain_changes_no_disc(grid: Grid, column: Column, discs: Discs) -> None:
    before = discs.map.copy()
    parts = in_parts(discs.interfaces[3], len(discs.interfaces) + 1)
    found = [*discs.interfaces[:3], *parts, *discs.interfaces[4:]]
    chain = Chain.of(grid, column, found)
    assert len(chain.interfaces) == len(discs.interfaces)
    np.testing.assert_array_equal(discs.map, before)


def test_discs_are_renumbered_by_the_chain(grid: Grid, discs: Discs) -> None:
    one, two, *others = discs.interfaces
    result = discs.only([one.merged_with(two), *others[1:]])
    kept = one.number if one.volume >= two.volume else two.number
    assert set(np.unique(result.map[np.isin(discs.map, (one.number, two.number))]).tolist()) == {kept}
    assert not result.map[discs.map == others[0].number].any()
    assert len(result.interfaces) == len(discs.interfaces) - 2


def test_the_tip_of_a_joint_tells_nothing_of_the_order_of_processes() -> None:
    """It hangs on its body and lies lower than that one's arch, which is a component of its own."""
    some = np.arange(3)
    body = _Component(some, 5, 19000.0, 60.0, 4.8, (0.0, 0.0), {5: 0.0})
    process = _Component(some, 5, 4200.0, 4200.0, 5.5, (0.0, 22.0), {5: 0.1, 6: 0.8})
    above = _Component(some, 4, 3500.0, 3500.0, 4.5, (0.0, 22.0), {4: 0.1, 5: 0.8})
    assert _assigned_numbers([above, body, process], range(8), sacrum=False) == [4, 5, 5]
    assert _assigned_numbers([above, replace(body, behind=3000.0), process], range(8), sacrum=False) == [4, 5, 6], (
        "as if it were the arch"
    )


@pytest.mark.parametrize(
    ("span", "place", "apart"), [((5.0, 30.0), 3.6, 1), ((5.0, 30.0), 3.4, 0), ((12.0, 30.0), 3.6, 0)]
)
def test_only_components_in_the_same_slices_lie_one_below_the_other(span, place, apart) -> None:
    """Joints on the left and on the right of one vertebra may lie at different heights."""
    above = _Component(np.arange(3), 3, 1000.0, 900.0, 3.0, (0.0, 10.0))
    assert above.apart(_Component(np.arange(3), 4, 1000.0, 900.0, place, span)) == apart


@pytest.mark.parametrize("spacing", [(4.0, 1.0, 1.5), (4.0, 20.0, 0.8), (4.0, 0.5, 0.8)])
def test_cores_are_what_an_opening_by_a_square_leaves(monkeypatch: pytest.MonkeyPatch, spacing: tuple) -> None:
    """As ITK makes it, also at the image's borders; but its threads have been waited for without end."""
    parts = np.random.default_rng(0).random((3, 9, 6)) < 0.6
    mask = parts.repeat(13, axis=1).repeat(17, axis=2)[:, 5:, 3:]
    radius = [round(7.5 / size) for size in spacing[:0:-1]]
    opened = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(mask.astype(np.uint8)), [*radius, 0], sitk.sitkBox)
    bodies = sitk.GetArrayFromImage(opened).astype(bool)
    assert bodies[:, :, 0].any() and (mask & ~bodies).any()
    ends = np.diff(bodies, axis=2, append=False) & bodies
    first_end = np.where(ends.any(axis=2), ends.argmax(axis=2), -1)[..., None]
    monkeypatch.delattr(sitk, "BinaryMorphologicalOpening")
    np.testing.assert_array_equal(_cores(mask, np.array(spacing)), bodies & (np.arange(mask.shape[2]) <= first_end))


def test_canal_below_fat_that_lies_beside_it_is_canal() -> None:
    pieces = np.zeros((3, 60, 120), np.int32)
    pieces[:, :30, 80:92], pieces[:, 5:25, 10:22], pieces[:, 40:55, 80:92] = 1, 2, 3
    assert np.array_equal(_main(pieces, 1.0), (pieces == 1) | (pieces == 3))


def test_where_all_of_the_canal_lies_away_from_the_bodies_all_of_it_counts() -> None:
    """As where only the fronts of the bodies were found."""
    classes = np.zeros((3, 80, 100), np.uint8)
    classes[:, 5:75, 10:30] = VERTEBRA
    classes[:, 5:35, 60:70] = classes[:, 45:75, 60:70] = CANAL
    grid = Grid.of(SagittalStack(classes, 4.0, (1.0, 1.0), (0, 1, 2), (False,) * 3), bounding_box(classes))
    canal = grid.classes == CANAL
    box = bounding_box(canal)
    pieces = connected_components(canal[box])
    assert pieces.max() == 2 and np.array_equal(_beside_spine(grid, pieces, box), pieces)
