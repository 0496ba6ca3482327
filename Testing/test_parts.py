"""Vertebrae in two parts: what is cut where, in every orientation, and together again."""

from dataclasses import replace

import numpy as np
import pytest
from builders import axis_orders, geometry, points, rotation, segmentation

from SAUNetLib.anatomy import PARTS_OFFSET, encodings, structures, value_of
from SAUNetLib.errors import UsageError
from SAUNetLib.measurements import measure, merge_parts, split_parts
from SAUNetLib.measurements.parts import _tidied
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.training.phantom import PhantomOptions, make_phantom

FINE = {"size": (56, 76, 25), "spacing": (0.9, 1.25, 1.0)}


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(
        PhantomOptions(
            seed=4, slice_thickness=3.0, gap=0.0, slices=27, pixel=0.9, field_of_view=(210.0, 200.0), ribs=False
        )
    )


def test_names_values_and_colours_are_distinct():
    known = encodings()["parts"].structures
    assert len({one.name for one in known.values()}) == len(known)
    assert all(one.value == value for value, one in known.items())
    assert known[44].name == "L4 vertebral body"
    assert known[144].name == "L4 posterior elements"
    assert known[144].colour != known[44].colour
    assert max(known) < 256


@pytest.mark.parametrize("number", range(0, 48, 9))
@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_the_cut_lies_behind_the_wall_in_any_orientation(number, degrees):
    order, flips = axis_orders()[number]
    whole = segmentation(geometry(order, flips, oblique=degrees, **FINE), degrees)
    parts = split_parts(whole)
    back = (points(whole.geometry) @ rotation(degrees))[..., 1]
    for level in ("L1", "L2", "L3"):
        value = value_of(level)
        body, rear = parts.labels == value, parts.labels == value + PARTS_OFFSET
        np.testing.assert_array_equal(body | rear, whole.labels == value)
        assert rear.sum() > 100
        assert back[rear].min() > 1.5  # the posterior wall lies at 3 mm
        assert np.percentile(back[body], 99) < 5.5


def test_nothing_else_changes():
    whole = segmentation(geometry(**FINE), partial=frozenset({value_of("L4")}))
    before = whole.labels.copy()
    parts = split_parts(whole)
    np.testing.assert_array_equal(whole.labels, before)
    others = [value for value, one in structures().items() if one.kind != "vertebra"]
    np.testing.assert_array_equal(np.isin(parts.labels, others), np.isin(whole.labels, others))
    assert parts.partial == {value_of("L4"), value_of("L4") + PARTS_OFFSET}
    assert [row.structure.name for row in parts.table()][:3] == [
        "Spinal canal", "T12 vertebral body", "T12 posterior elements",
    ]  # fmt: skip


def test_together_again_it_is_what_it_was():
    whole = segmentation(geometry(**FINE), partial=frozenset({value_of("L4")}))
    again = merge_parts(split_parts(whole))
    np.testing.assert_array_equal(again.labels, whole.labels)
    assert again.partial == whole.partial
    assert not again.has_parts
    assert merge_parts(whole) is whole
    twice = split_parts(split_parts(whole))
    np.testing.assert_array_equal(twice.labels, split_parts(whole).labels)


def test_measures_do_not_depend_on_the_parts():
    whole = segmentation(geometry(**FINE))
    assert measure(split_parts(whole)).summary() == measure(whole).summary()


def test_bodies_of_a_phantom_have_the_right_size(phantom):
    parts = split_parts(Segmentation(phantom.labels, phantom.volume.geometry))
    voxel = phantom.volume.geometry.voxel_volume
    for level in ("L2", "L3", "L4"):
        truth = phantom.truth.bodies[level]
        box = truth.depth * truth.width * (truth.anterior + truth.posterior) / 2
        body = np.count_nonzero(parts.labels == value_of(level)) * voxel
        rear = np.count_nonzero(parts.labels == value_of(level) + PARTS_OFFSET) * voxel
        assert 0.62 < body / box < 0.95  # between an ellipse and a rectangle, waisted
        assert 0.1 * body < rear < body


def test_bodies_of_a_phantom_end_at_their_posterior_wall(phantom):
    grid = phantom.volume.geometry
    parts = split_parts(Segmentation(phantom.labels, grid))
    for level in ("L2", "L3", "L4"):
        truth = phantom.truth.bodies[level]
        back = truth.corners[[1, 3]].mean(axis=0)
        toward = back - truth.corners[[0, 2]].mean(axis=0)
        toward = toward / np.linalg.norm(toward)
        for value, sign in ((value_of(level), 1), (value_of(level) + PARTS_OFFSET, -1)):
            index = np.argwhere(parts.labels == value)[:, ::-1]
            beyond = sign * ((grid.points(index) - back) @ toward)
            assert np.percentile(beyond, 97) < 4.0


@pytest.mark.parametrize(("voxel", "kept"), [(100.0, 13), (1.0, 0)])
def test_what_is_too_small_for_a_process_is_so_in_mm3(voxel, kept):
    mask = np.zeros((3, 12, 30), bool)
    mask[:, :, :20] = mask[1, 5, 20:28] = True
    rear = np.zeros_like(mask)
    rear[1, 5, 15:28] = True
    assert _tidied(mask, rear, np.zeros_like(mask), voxel).sum() == kept


def test_empty_and_unusable_input():
    grid = geometry()
    nothing = Segmentation(np.zeros(tuple(reversed(grid.size)), np.uint8), grid)
    assert not split_parts(nothing).labels.any()
    with pytest.raises(UsageError):
        split_parts(replace(nothing, encoding=encodings()["classes"]))
    single = segmentation(geometry(size=(56, 76, 1), spacing=(0.9, 1.25, 4.0)))
    assert np.count_nonzero(split_parts(single).labels) == np.count_nonzero(single.labels)


def test_without_canal_and_discs_nothing_is_cut():
    """And it is said: in a file with parts, all of it would be taken for bodies."""
    whole = segmentation(geometry(**FINE))
    alone = replace(whole, labels=np.where(whole.labels == value_of("L2"), whole.labels, 0).astype(np.uint8))
    np.testing.assert_array_equal(split_parts(alone).labels, alone.labels)
    for times in (split_parts(alone), split_parts(split_parts(alone))):
        assert [notice.code for notice in times.warnings] == ["PARTS_MISSING"]
    assert not split_parts(whole).warnings
