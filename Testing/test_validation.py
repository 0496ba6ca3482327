"""Validation sets of the project: figures with intervals over patients, on data made up for the test."""

import importlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
from builders import SLICES_TO_LEFT, labelled, write_pair

from SAUNetLib.evaluation import validation
from SAUNetLib.evaluation.fine_tuning import body_labels
from SAUNetLib.evaluation.intervals import interval
from SAUNetLib.volume import Geometry, Volume, to_sitk


def test_an_interval_is_that_of_patients_drawn_with_replacement():
    values = [0.7, 0.8, 0.9, 0.95, 0.6]
    one, two = validation.mean_of(values), validation.mean_of(values)
    assert one == two, "the same seed"
    assert one.value == pytest.approx(np.mean(values)) and one.deviation == pytest.approx(np.std(values, ddof=1))
    assert min(values) <= one.low < one.value < one.high <= max(values)
    # The percentiles of the mean of five draws, by drawing them here.
    drawn = np.random.default_rng(5).choice(values, (20000, 5)).mean(1)
    assert (one.low, one.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.01)


def test_one_patient_has_no_interval():
    figure = validation.mean_of([0.9])
    assert figure.value == 0.9 and np.isnan(figure.low) and np.isnan(figure.high)
    assert json.loads(validation.as_json({"a": {"b": figure}}))["a"]["b"]["low"] is None


def test_a_pooled_figure_weighs_patients_by_their_voxels():
    counts = np.array([[90, 100, 100], [0, 10, 10]])
    assert validation._pooled(counts).value == pytest.approx(2 * 90 / 220)
    assert np.isnan(validation._pooled(counts * 0).value)


def test_a_patient_without_voxels_is_no_patient_of_a_pooled_figure():
    """Drawn alone it counted as Dice 0: the interval of two scans, one without lateral slices, began at 0."""
    counts = np.array([[90, 100, 100], [80, 100, 100], [0, 0, 0]])
    assert validation._pooled(counts) == validation._pooled(counts[:2])
    assert validation._pooled(counts).low == pytest.approx(0.8)
    assert np.isnan(validation._pooled(counts[1:]).low)


@pytest.mark.parametrize("missed", [np.inf, np.nan])
def test_a_figure_that_is_not_finite_has_no_interval(missed):
    figure = validation.mean_of([12.0, 15.0, missed])
    assert np.isnan(figure.low) and np.isnan(figure.high)
    written = json.loads(validation.as_json({"a": {"b": figure}}))["a"]["b"]
    assert written["value"] is None and written["low"] is None and written["high"] is None


@pytest.fixture
def sets(tmp_path):
    """The folders of the data, with one or two small cases each."""
    spider, routine, others = (tmp_path / name for name in ("spider_t2space", "spider_tse_slices", "external_bodies"))
    for folder in (spider, routine, others):
        folder.mkdir()
    for number, name in enumerate(("001", "002")):
        volume, labels = labelled(number)
        write_pair(spider, name, volume, labels)
        for prefix in ("VB2", "VB3"):
            sitk.WriteImage(volume.to_sitk(), str(others / f"{prefix}_{name}_image.nii.gz"))
            bodies = np.where(labels == 1, 7 + number, 0).astype(np.uint8)
            sitk.WriteImage(to_sitk(bodies, volume.geometry), str(others / f"{prefix}_{name}_bodies.nii.gz"))
        for slice_number, lateral in ((3, False), (5, True)):
            scan = f"{('10010', '10008')[number]}_{slice_number}"
            truth = (labels[5] == 1).astype(np.uint8)
            truth[7 if lateral else 48 :] = 0
            sitk.WriteImage(sitk.GetImageFromArray(volume.voxels[5]), str(routine / f"{scan}_image.png"))
            sitk.WriteImage(sitk.GetImageFromArray(truth), str(routine / f"{scan}_vertebra.png"))
    return tmp_path


def test_every_set_is_reported_with_what_it_consists_of(sets, tiny_engine):
    result = validation.validate_all(tiny_engine, sets, ["001", "002"], leave_out=["VB3_001"])
    assert list(result) == [
        "SPIDER T2 SPACE, native slices", "SPIDER T2 SPACE, 4 slices averaged", "SPIDER routine T1/T2 slices",
        "other scanners, T2 TSE", "other scanners, water-fat",
    ]  # fmt: skip
    routine = result["SPIDER routine T1/T2 slices"]
    assert routine["scans"] == ["10010", "10019", "10025", "10031"] and routine["slices"] == 2
    assert validation.routine_slices(tiny_engine, sets / "spider_tse_slices", ["10010", "10008"])["slices"] == 4
    pixels = routine["lateral pixels"]
    assert pixels["true"] > 0
    pooled = 2 * pixels["both"] / (pixels["found"] + pixels["true"])
    assert routine["dice vertebra lateral"].value == pytest.approx(pooled)
    assert result["other scanners, T2 TSE"]["patients"] == 2 and result["other scanners, T2 TSE"]["bodies"] == 2
    assert result["other scanners, water-fat"]["patients"] == 1
    native = result["SPIDER T2 SPACE, native slices"]
    assert native["patients"] == ["001", "002"] and "below 40 mm3" in native["truth"]
    assert native["dice mean"].low <= native["dice mean"].value <= native["dice mean"].high
    assert "NaN" not in validation.as_json(result) and json.loads(validation.as_json(result))


def test_one_picture_is_written_for_each_set(sets, tiny_engine, tmp_path):
    written = validation.write_pictures(tiny_engine, sets, ["001"], validation.SCANS, tmp_path / "pictures")
    assert len(written) == 5 and all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert sum(path.name.startswith("look-only-") for path in written) == 2


def test_help_says_which_model_is_used_and_which_pictures_may_be_shared(capsys):
    with pytest.raises(SystemExit):
        validation.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--model NAME|FILE model to use" in said and "share only those of SPIDER" in said


def test_what_nobody_drew_is_not_taught_as_background():
    """One body drawn, one seen by the model only, a disc between them; 1 mm voxels, nothing else in the picture."""
    classes = np.zeros((1, 80, 30), np.uint8)
    classes[0, 10:20, 5:25], classes[0, 20:25, 5:25], classes[0, 25:35, 5:25] = 1, 2, 1
    bodies = np.zeros_like(classes)
    bodies[0, 26:36, 5:25] = 4
    volume = Volume(classes, Geometry((30, 80, 1), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.eye(3)))
    labels = body_labels(volume, bodies, classes)[0]
    assert (labels[26:36, 5:25] == 1).all() and (labels[20:25, 5:25] == 2).all()
    assert (labels[10:20, 5:25] == 255).all(), "the body that nobody drew"
    assert (labels[25, 5:25] == 255).all(), "called vertebra by the model alone"
    assert (labels[2:10, 5:25] == 255).all() and (labels[:5] == 255).any(), "background near it may be missed vertebra"
    assert (labels[36:, 10] == 0).all(), "below the drawn body the model's background is believed"


def test_the_first_and_the_last_slice_of_each_body_are_left_out_of_the_inner_recall():
    bodies = np.zeros((10, 20, 20), np.uint8)
    bodies[1:5, 2:8, 5:15], bodies[3:8, 12:18, 5:15] = 1, 2
    volume = Volume(bodies, Geometry((20, 20, 10), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT))
    ends = np.zeros(bodies.shape, bool)
    ends[[1, 4], 2:8, 5:15] = ends[[3, 7], 12:18, 5:15] = True
    assert validation._inner_recall(volume, ends, bodies) == 0
    assert validation._inner_recall(volume, (bodies > 0) & ~ends, bodies) == 1


def test_stray_vertebra_lies_far_in_front_of_the_bodies_or_far_beside_them():
    """Pixels of 1 x 2 mm, slices 5 mm apart: within reach are 5 columns in front, and 8 slices beside the middle."""
    bodies = np.zeros((30, 20, 40), bool)
    bodies[13:16, 5:15, 20:30] = True
    volume = Volume(bodies, Geometry((40, 20, 30), (2.0, 1.0, 5.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT))

    def stray(*place: int) -> int:
        labels = np.zeros(bodies.shape, bool)
        labels[place] = True
        return validation._stray(volume, labels, bodies)

    assert [stray(14, 8, column) for column in (14, 15)] == [1, 0]
    assert [stray(number, 8, 25) for number in (5, 6, 22, 23)] == [1, 0, 0, 1]
    assert stray(0, 2, 25) == 0, "where no body was drawn, nothing is known"


def test_draws_without_a_figure_do_not_count_for_its_interval():
    values = np.array([1.0, np.nan, 3.0, 2.0])
    low, high = interval(lambda drawn: float(np.mean(drawn)), values)
    assert 1 <= low < high <= 3
    assert all(np.isnan(bound) for bound in interval(lambda drawn: float("nan"), values))


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [
        ("evaluation.validation", ["DATA", "--patients", "9"], "INPUT_NOT_FOUND"),
        ("evaluation.validation", ["DATA", "--leave-out", "VB9_01"], "INPUT_NOT_FOUND"),
        ("evaluation.fine_tuning", ["DATA", "VB9_01", "--output", "out"], "INPUT_NOT_FOUND"),
        ("evaluation.readings", ["DATA"], "INPUT_NOT_FOUND"),
        ("evaluation.phantom_measures", ["--count", "0"], "USAGE"),
        ("training.self_training", ["none", "DATA", "out"], "MODEL_NOT_FOUND"),
        ("training.self_training", ["saunet-lumbar", "DATA/none", "out"], "INPUT_NOT_FOUND"),
        ("training.self_training", ["saunet-lumbar", "DATA", "out", "--leave-out", "9"], "INPUT_NOT_FOUND"),
    ],
)
def test_a_mistyped_name_ends_no_tool_in_a_traceback(tool, arguments, code, tmp_path, monkeypatch, capsys):
    (tmp_path / "DATA" / "spider_tse_slices").mkdir(parents=True)
    (tmp_path / "DATA" / "spider_tse_slices" / "10010_image.png").touch()
    monkeypatch.chdir(tmp_path)
    scans = ["--scans", "10010"] if tool.endswith("validation") else []
    assert importlib.import_module(f"SAUNetLib.{tool}").main([*arguments, *scans]) in (2, 3, 4)
    out, err = capsys.readouterr()
    assert err.startswith(f"error {code}: ") and err.count("\n") == 1 and not out
    assert not (tmp_path / "out").exists()
