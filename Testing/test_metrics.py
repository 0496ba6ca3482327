"""Agreement and detection against values computed by hand."""

import math

import numpy as np
import pytest
from builders import geometry, labelled, least_seconds
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from SAUNetLib import metrics
from SAUNetLib.anatomy import value_of
from SAUNetLib.errors import InputError
from SAUNetLib.evaluation.evaluate import evaluate, evaluate_files
from SAUNetLib.formats.volumes import write_volume
from SAUNetLib.metrics import Detection, agreement, compare_labels, detect
from SAUNetLib.segmentation import Segmentation, count_labels
from SAUNetLib.volume import Volume


def cube(start: int, stop: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size, size), bool)
    mask[start:stop, 5:15, 5:15] = True
    return mask


def test_the_same_mask_agrees_perfectly():
    one = agreement(cube(5, 15), cube(5, 15), (1.0, 1.0, 1.0))
    assert (one.dice, one.precision, one.recall, one.jaccard) == (1, 1, 1, 1)
    assert one.hausdorff_mm == one.hausdorff95_mm == one.surface_distance_mm == 0


def test_overlap_by_hand():
    one = agreement(cube(5, 15), cube(10, 20, 20), (1.0, 1.0, 1.0))
    assert one.dice == pytest.approx(0.5) and one.jaccard == pytest.approx(1 / 3)
    assert one.precision == one.recall == pytest.approx(0.5)


def test_precision_and_recall_are_not_confused():
    one = agreement(cube(5, 15), cube(5, 10), (1.0, 1.0, 1.0))
    assert one.precision == pytest.approx(0.5) and one.recall == 1


@pytest.mark.parametrize("spacing", [1.0, 3.5])
def test_distances_are_in_millimetres_along_the_right_axis(spacing):
    one = agreement(cube(5, 15), cube(5, 17), (spacing, 0.5, 0.7))
    assert one.hausdorff_mm == pytest.approx(2 * spacing, rel=0.05)
    assert 0 < one.surface_distance_mm < one.hausdorff_mm


def test_the_mean_distance_is_weighted_by_area():
    """In thick slices the many small elements of a face count less than the few large ones of the contours."""
    found = agreement(cube(5, 15), cube(5, 17), (8.0, 0.5, 0.5))
    assert found.surface_distance_mm == pytest.approx(0.80, abs=0.02)


def test_empty_masks():
    empty = np.zeros((20, 20, 20), bool)
    both = agreement(empty, empty, (1.0, 1.0, 1.0))
    assert both.dice == both.jaccard == 1 and math.isnan(both.precision) and math.isnan(both.recall)
    assert np.isnan([both.hausdorff_mm, both.hausdorff95_mm, both.surface_distance_mm]).all()
    missed = agreement(empty, cube(5, 15), (1.0, 1.0, 1.0))
    assert missed.dice == missed.recall == 0 and math.isinf(missed.hausdorff_mm)
    assert math.isnan(missed.precision)


def test_masks_that_fill_the_volume_have_a_surface_too():
    full = np.ones((6, 7, 8), bool)
    assert agreement(full, full, (1.0, 1.0, 1.0)).hausdorff_mm == 0


def test_one_slice():
    one = agreement(np.ones((1, 9, 9), bool), np.ones((1, 9, 9), bool), (4.0, 1.0, 1.0))
    assert one.dice == 1 and one.hausdorff_mm == 0


def test_the_95th_percentile_leaves_out_a_small_part_of_the_surface():
    """A spike of 4 % of the surface is in the largest distance and not in HD95, one of 8 % is in both."""
    truth = np.zeros((1, 40, 130), bool)
    truth[:, 10:20, 10:110] = True  # a contour of 220 mm
    for width, inside in ((9, True), (18, False)):
        predicted = truth.copy()
        predicted[:, 20:26, 20 : 20 + width] = True
        found = agreement(predicted, truth, (4.0, 1.0, 1.0))
        assert found.hausdorff_mm == pytest.approx(6, abs=0.5)
        assert (found.hausdorff95_mm < 4.5) is inside


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_compared_by_its_contour(axis):
    """Its two faces always agree and would make any distance small."""
    rows, columns = np.mgrid[:120, :120]
    away = np.hypot(rows - 60, columns - 60) * 0.5
    masks = [np.expand_dims(away < radius, axis) for radius in (15, 17)]
    spacing = np.insert([0.5, 0.5], axis, 4.0)
    assert agreement(*masks, tuple(spacing)).surface_distance_mm == pytest.approx(2.0, abs=0.25)


@settings(max_examples=30, deadline=None)
@given(arrays(bool, (4, 6, 5)), arrays(bool, (4, 6, 5)))
def test_dice_and_distances_are_symmetric(first, second):
    forth, back = agreement(first, second, (2.0, 1.0, 1.0)), agreement(second, first, (2.0, 1.0, 1.0))
    assert forth.dice == back.dice and forth.jaccard == back.jaccard
    assert forth.hausdorff_mm == pytest.approx(back.hausdorff_mm, nan_ok=True)
    assert forth.surface_distance_mm == pytest.approx(back.surface_distance_mm, nan_ok=True)
    assert forth.jaccard == pytest.approx(forth.dice / (2 - forth.dice))


def test_every_label_of_either_side_is_compared():
    first, second = np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8)
    first[0], second[1] = 41, 42
    assert set(compare_labels(first, second, (1.0, 1.0, 1.0))) == {41, 42}
    assert set(compare_labels(first, second, (1.0, 1.0, 1.0), (41,))) == {41}


def many_boxes() -> tuple[np.ndarray, np.ndarray]:
    """Two label maps of 24 structures, each a very small part of the volume; one lies in a single slice."""
    truth = np.zeros((60, 260, 260), np.uint8)
    for number in range(1, 24):
        truth[5:15, 10 * number : 10 * number + 8, 20:30] = number
    truth[7, 2:8, 70:90] = 24
    return np.roll(truth, (1, 2), (1, 2)), truth


def test_a_structure_is_compared_in_its_box_as_in_the_whole_volume(monkeypatch):
    found, truth = many_boxes()
    spacing, sizes = (3.0, 0.5, 0.7), []

    def measured(predicted, true, spacing):
        sizes.append(predicted.size)
        return agreement(predicted, true, spacing)

    monkeypatch.setattr(metrics, "agreement", measured)
    compared = compare_labels(found, truth, spacing)
    assert compared == {value: agreement(found == value, truth == value, spacing) for value in range(1, 25)}
    assert 0 < sum(sizes) < truth.size / 10, "all boxes together"
    assert compare_labels(found, truth, spacing, (99,))[99].dice == 1


def test_instances_are_matched_in_about_the_time_of_counting_them():
    found, truth = many_boxes()
    assert detect(found, truth).matches == {number: number for number in range(1, 25)}
    counting = least_seconds(lambda: (count_labels(found), count_labels(truth)))
    assert least_seconds(lambda: detect(found, truth)) < 25 * counting


def test_instances_are_matched_by_overlap_not_by_number():
    truth, found = np.zeros((1, 10, 10), int), np.zeros((1, 10, 10), int)
    truth[0, :3], truth[0, 4:7], truth[0, 8:] = 1, 2, 3
    found[0, :3], found[0, 4:6], found[0, 9:, :5] = 45, 44, 43
    result = detect(found, truth)
    assert result.matches == {1: 45, 2: 44}
    assert result.missed == (3,) and result.spurious == (43,)


def test_one_prediction_serves_one_instance_only():
    truth, found = np.zeros((1, 10, 10), int), np.ones((1, 10, 10), int)
    truth[0, :4], truth[0, 4:] = 1, 2
    result = detect(found, truth)
    assert result.matches == {2: 1} and result.missed == (1,) and result.spurious == (), "the larger overlap"


def test_nothing_to_find():
    nothing = np.zeros((1, 3, 3), int)
    assert detect(nothing, nothing) == Detection({}, (), ())


@pytest.mark.parametrize(("axis", "mm"), [(0, 3.5), (1, 1.5), (2, 1.2)])
def test_two_segmentations_are_compared_in_mm_along_the_right_axis_and_disc_by_disc(axis, mm):
    """A vertebra and a disc, each one voxel too long at one end."""
    grid = geometry(size=(20, 30, 9))
    labels = np.zeros(grid.size[::-1], np.uint8)
    labels[2:7, 3:12, 4:16], labels[2:7, 14:22, 4:16] = value_of("L2"), value_of("L2/L3")
    longer = np.where(labels == 0, np.roll(labels, 1, axis), labels)
    compared = evaluate(Segmentation(longer, grid), Segmentation(labels, grid))
    assert compared.agreements[value_of("L2")].hausdorff_mm == pytest.approx(mm)
    assert {kind: list(found.matches) for kind, found in compared.detections.items()} == {
        "vertebra": [value_of("L2")], "disc": [value_of("L2/L3")],
    }  # fmt: skip


def test_what_is_not_known_in_the_truth_counts_on_neither_side(tmp_path):
    image, labels = labelled(0)
    truth, found = labels.copy(), labels.copy()
    truth[:, 5:20], found[:, 5:20] = 255, 3  # wrong, but who knows
    for name, voxels in (("truth", truth), ("found", found)):
        write_volume(Volume(voxels, image.geometry), tmp_path / f"{name}.nii.gz")
    compared = evaluate_files(tmp_path / "found.nii.gz", tmp_path / "truth.nii.gz")
    assert {value: one.dice for value, one in compared.agreements.items()} == {2: 1.0, 3: 1.0}
    (notice,) = compared.warnings
    assert notice.code == "UNKNOWN" and f"truth.nii.gz: {(truth == 255).sum()} voxels" in notice.text
    with pytest.raises(InputError, match="unknown label values: 255"):
        evaluate_files(tmp_path / "truth.nii.gz", tmp_path / "found.nii.gz")


def test_only_values_that_no_encoding_has_are_named_as_such(tmp_path):
    image, labels = labelled(0)
    for values, told in (([0, 1, 3, 60], "unknown label values: 60."), ([0, 3, 45, 201], "combines: 3, 45, 201.")):
        write_volume(Volume(np.array(values, np.uint8)[labels], image.geometry), tmp_path / "a.nii.gz")
        with pytest.raises(InputError) as refused:
            evaluate_files(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz")
        assert told in refused.value.cause
