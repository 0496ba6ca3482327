"""Folders to train on: layouts, encodings, what was not drawn, and what `saunet dataset check` says of them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
import torch
from builders import SLICES_TO_LEFT, labelled, read_pair, to_classes, write_pair
from hypothesis import assume, given
from hypothesis import strategies as st

from SAUNetLib.anatomy import structures
from SAUNetLib.cli import main
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats.segmentations import read_segmentation
from SAUNetLib.training.checks import check_dataset
from SAUNetLib.training.datasets import StackDataset, check_drawn, check_unseen, load_cases
from SAUNetLib.training.folders import (
    ANY_OF,
    UNKNOWN,
    CaseFiles,
    DatasetInfo,
    LabelMap,
    as_classes,
    case_names,
    image_hash,
    patients,
    patients_of,
    read_info,
    read_label_map,
    reading_of,
    without_specks,
)
from SAUNetLib.training.train import TrainingConfig, train
from SAUNetLib.volume import Geometry, SagittalStack, Volume, to_sitk

SMALL = {
    "network": {"widths": (2, 2, 2, 2, 2)},
    "pixel_mm": 3.0,
    "crop": (32, 32),
    "slices": 2,
    "stacks": 1,
    "steps": 1,
}
SPIDER = np.array([0, 3, 203, 100], np.uint8)
LEVELS = np.array([0, 43, 93, 2], np.uint8)


def write(folder, name, labels=None, voxels=None, ending=".nii.gz", seed=0, geometry=None):
    """One pair of files of a folder; what is not given is made up."""
    volume, made = labelled(seed)
    image = Volume(volume.voxels if voxels is None else voxels, geometry or volume.geometry)
    write_pair(folder, name, image, made if labels is None else labels, ending)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_every_readable_format_is_a_case(tmp_path, ending):
    write(tmp_path / "d", "a", ending=ending)
    assert case_names(tmp_path / "d") == ["a"]
    volume, labels = read_pair(tmp_path / "d", "a")
    assert np.array_equal(labels, labelled(0)[1]) and np.array_equal(volume.voxels, labelled(0)[0].voxels)


def test_spider_s_own_layout_and_values(tmp_path):
    """images/N_t2.mha and masks/N_t2.mha; the images of a patient are not split between training and validation."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for patient in (1, 2):
        volume, labels = labelled(patient)
        for series in ("t1", "t2"):
            sitk.WriteImage(volume.to_sitk(), str(tmp_path / "images" / f"{patient}_{series}.mha"))
            mask = SPIDER[labels]
            mask[:, 14:20, 8:20] = 104  # a vertebra that the image cuts off
            sitk.WriteImage(
                to_sitk(mask.astype(np.int16), volume.geometry), str(tmp_path / "masks" / f"{patient}_{series}.mha")
            )
    assert case_names(tmp_path) == ["1_t1", "1_t2", "2_t1", "2_t2"]
    assert patients(tmp_path) == {"1": ["1_t1", "1_t2"], "2": ["2_t1", "2_t2"]}
    found = read_pair(tmp_path, "2_t2")[1]
    assert set(np.unique(found)) == {0, 1, 2, 3} and (found[1:-1, 14:20, 8:20] == 1).all()
    assert load_cases(tmp_path, ["1_t1"], 1.5)[0].encoding == "spider"
    from SAUNetLib.training.run import _with_validation
    from SAUNetLib.training.train import TrainingConfig

    kept = _with_validation(TrainingConfig(), patients(tmp_path)).validation
    assert kept in (("1_t1", "1_t2"), ("2_t1", "2_t2"))
    stated = _with_validation(TrainingConfig(validation=("1_t2",)), patients(tmp_path))
    assert stated.validation == ("1_t2",) and patients_of(stated.validation, patients(tmp_path)) == {"1"}
    with pytest.raises(InputError, match=r"no case is left.* two patients in the first folder"):
        _with_validation(TrainingConfig(validation=("1_t2", "2_t1")), patients(tmp_path))


def test_what_never_occurs_is_not_taught_as_background(tmp_path):
    for name in ("a", "b"):
        labels = labelled(1)[1]
        write(tmp_path / "d", name, labels=np.where(labels == 1, labels, 0).astype(np.uint8))
    cases = load_cases(tmp_path / "d", ["a", "b"], 1.5)
    with pytest.raises(InputError) as caught:
        check_drawn(cases, tmp_path / "d")
    assert caught.value.code == "INPUT_LABELS" and '{"draws": ["vertebra"]}' in caught.value.remedy
    (tmp_path / "d" / "dataset.json").write_text('{"draws": ["vertebra"]}')
    check_drawn(cases, tmp_path / "d")


@pytest.mark.parametrize("direction", [SLICES_TO_LEFT, SLICES_TO_LEFT * [1, 1, -1]])
def test_a_slice_alone_may_be_stored_from_either_side(tmp_path, direction):
    grid = Geometry((48, 64, 1), (1.2, 1.2, 4.0), (0.0, 0.0, 0.0), direction)
    labels = np.zeros((1, 64, 48), np.uint8)
    labels[:, 10:20, 5:25], labels[:, 22:26, 5:25], labels[:, 5:60, 28:34] = 1, 2, 3
    write(tmp_path / "d", "a", labels=labels, geometry=grid, voxels=np.arange(64 * 48.0).reshape(1, 64, 48))
    assert set(load_cases(tmp_path / "d", ["a"], 1.2)[0].labels.unique().tolist()) == {0, 1, 2, 3}


def test_a_description_that_is_no_file_is_refused(tmp_path):
    write(tmp_path / "d", "a", labels=labelled(1)[1])
    info = tmp_path / "d" / "dataset.json"
    info.write_bytes(b"\xef\xbb\xbf" + b'{"encoding": "classes"}')
    assert load_cases(tmp_path / "d", ["a"], 1.5)
    info.unlink()
    info.symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(UsageError, match="is not a file"):
        load_cases(tmp_path / "d", ["a"], 1.5)


def test_a_sagittal_slice_alone_is_a_good_case(tmp_path):
    volume, labels = labelled(1)
    axis = SagittalStack.of(volume).axes[0]
    part = tuple(slice(2, 3) if n == axis else slice(None) for n in range(3))
    box = tuple(slice(*one.indices(count)[:2]) for one, count in zip(part, labels.shape, strict=True))
    for name in ("a", "b"):
        write(
            tmp_path / "d", name, labels=labels[part], geometry=volume.geometry.part(box),
            voxels=volume.voxels[part] * (1.0 if name == "a" else 1.5),
        )  # fmt: skip
    assert [finding.code for case in check_dataset(tmp_path / "d").cases for finding in case.problems] == []


@given(st.sets(st.sampled_from(sorted(structures())), min_size=1))
def test_our_levels_are_recognised_or_refused_but_never_misread(values):
    try:
        reading = reading_of(values, DatasetInfo(), "a")
    except InputError as error:
        assert error.code == "INPUT_LABELS" and "encoding" in error.remedy
        return
    meant = to_classes(np.array(sorted(values), np.uint8)).tolist()
    assert reading.name == "classes" or [reading.classes[value] for value in sorted(values)] == meant
    assert (reading.name == "classes") == (values == {2}), "1, 2 and 3 alone are the classes"
    stated = reading_of(values, DatasetInfo(), "a", "levels")
    assert [stated.classes[value] for value in sorted(values)] == meant


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({1, 2, 3}, "classes"),
        ({0, 255}, None),
        ({1, 2, 41, 42, 91, 92, 50}, "totalspineseg"),
        ({2, 41, 42, 91, 92, 50}, "levels"),
        ({1, 2, 3, 4, 5, 6, 7, 100, 201, 202, 203}, "spider"),
        ({1, 2, 3, 108, 100}, "spider"),
        ({2, 41, 141, 91, 50}, "parts"),
    ],
)
def test_encodings_are_told_apart(values, kind):
    reading = reading_of(values, DatasetInfo(), "a")
    assert (reading and reading.name) == kind


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({1, 2, 100}, "encodings totalspineseg and spider"),
        ({60}, "unknown label values: 60. Use"),
        ({41, 201}, "single"),
        ({1, 2, 3, 4}, "Slicer's own export"),
        ({4, 5, 6, 99 - 75}, "Slicer's own export"),
        ({17, 18, 19, 20, 21, 22, 23, 24}, "20-24 become 41-45"),  # SPINEPS' vertebrae alone
        ({21, 22, 23, 24, 121, 122, 123}, "SPINEPS"),  # vertebrae L2 to L5 and discs there, T1 to T4 in parts here
    ],
)
def test_what_could_mean_two_things_is_refused_until_it_is_told(values, word):
    with pytest.raises(InputError) as caught:
        reading_of(values, DatasetInfo(), "a")
    assert caught.value.code == "INPUT_LABELS" and word in str(caught.value)
    if values == {1, 2, 100}:
        grid = Geometry((3, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
        read = LabelMap(Volume(np.array([[[1, 2, 100]]], np.uint8), grid))
        assert as_classes(read, DatasetInfo(encoding="spider"), "a")[0].tolist() == [[[1, 1, 3]]]
        assert as_classes(read, DatasetInfo(encoding="totalspineseg"), "a")[0].tolist() == [[[3, 3, 2]]]


def test_the_cord_of_totalspineseg_is_canal(tmp_path):
    labels = LEVELS[labelled(0)[1]]
    labels[:, 20:30, 24:26] = np.where(labels[:, 20:30, 24:26] == 2, 1, 0)
    write(tmp_path / "d", "a", labels)
    assert np.array_equal(read_pair(tmp_path / "d", "a")[1], labelled(0)[1])
    labels[labels == 2] = 0  # nobody drew the canal around it
    write(tmp_path / "d", "b", labels)
    expected = np.where(labels == 1, UNKNOWN, np.where(labelled(0)[1] == 3, 0, labelled(0)[1]))
    assert np.array_equal(read_pair(tmp_path / "d", "b")[1], expected)


VALUES = st.sampled_from([1, 2, 3, 11, 21, 41, 42, 50, 91, 92, 100, 101, 111, 141, 201, 202])


@given(st.sets(VALUES, min_size=1), st.sampled_from(["", "levels", "classes", "parts"]))
def test_a_label_map_means_the_same_to_training_as_to_evaluate(tmp_path_factory, values, stated):
    """But what could mean two things is not trained on, and a cord alone not known where it was left out.

    2 alone is a canal among results and a disc among what is drawn to train on.
    """
    assume(stated or values != {2})
    path = tmp_path_factory.mktemp("d") / "a_labels.nrrd"
    image = sitk.GetImageFromArray(np.array([[sorted(values)]], np.uint8))
    if stated:
        image.SetMetaData("SAUNet_encoding", stated)
    sitk.WriteImage(image, str(path))
    try:
        taught = as_classes(read_label_map(CaseFiles("a", path, path, "a")), DatasetInfo(), "a")[0]
    except InputError as error:
        assert error.code == "INPUT_LABELS"
        return
    measured = read_segmentation(path).as_classes().labels
    assert np.array_equal(measured, np.where(taught == UNKNOWN, 0, taught))


@pytest.mark.parametrize("value", [0, UNKNOWN, 50, "speck"])  # 50: the sacrum
def test_a_volume_in_which_nothing_is_drawn_is_refused(tmp_path, value):
    """It would teach that a whole spine is background; a lone slice may lie beside the spine."""
    write(tmp_path / "d", "a")
    volume, labels = labelled(1)
    drawn = np.full_like(labels, 0 if value == "speck" else value)
    if value == "speck":
        drawn[5, 20, 20] = 1
    write_pair(tmp_path / "d", "b", volume, drawn)
    with pytest.raises(InputError, match="no vertebra, disc or canal is drawn in the label map of b") as caught:
        load_cases(tmp_path / "d", ["a", "b"], 1.5)
    assert caught.value.code == "INPUT_LABELS"
    assert [one.code for one in check_dataset(tmp_path / "d").cases[1].problems] == ["INPUT_LABELS"]
    write_pair(tmp_path / "d", "b", labelled(1, slices=1)[0], np.zeros((1, 48, 40), np.uint8))
    assert [len(case.images) for case in load_cases(tmp_path / "d", ["a", "b"], 1.5)] == [10, 1]


def test_a_folder_in_two_encodings_is_refused(tmp_path):
    write(tmp_path / "d", "a", LEVELS[labelled(0)[1]])
    write(tmp_path / "d", "b", (labelled(1)[1] == 3).astype(np.uint8) * 2, seed=1)  # a canal, read as disc
    with pytest.raises(InputError) as caught:
        load_cases(tmp_path / "d", ["a", "b"], 1.5)
    assert "several encodings" in str(caught.value)
    (tmp_path / "d" / "dataset.json").write_text('{"encoding": "levels"}')
    assert set(load_cases(tmp_path / "d", ["a", "b"], 1.5)[1].labels.unique().tolist()) == {0, 3}


@pytest.mark.parametrize("text", ["{", '{"draws": []}', '{"draws": ["bone"]}', '{"encoding": "mine"}', '{"colour": 1}'])
def test_a_wrong_dataset_json_is_explained(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_info(tmp_path)
    assert "dataset.json" in str(caught.value)


def test_where_vertebrae_alone_are_drawn_the_rest_is_not_called_background(tmp_path):
    labels = labelled(0)[1]
    write(tmp_path / "d", "a", (labels == 1).astype(np.uint8))
    (tmp_path / "d" / "dataset.json").write_text('{"encoding": "classes", "draws": ["vertebra"]}')
    case = load_cases(tmp_path / "d", ["a"], 1.5)[0]
    assert case.drawn == (1,) and case.background == ANY_OF + 0b1101
    stacks = StackDataset([[case]], [1], 16, 3, (48, 32), seed=1)
    seen = {value for number in range(16) for value in stacks[number]["label"].unique().tolist()}
    assert seen == {1, ANY_OF + 0b1101}
    write(tmp_path / "d", "b", labels)
    with pytest.raises(InputError) as caught:
        read_pair(tmp_path / "d", "b")
    assert "disc and canal" in str(caught.value)


def test_the_marginal_loss_is_the_one_computed_by_hand():
    """Two pixels: a vertebra, and one of background, disc and canal; logits are logarithms of the probabilities."""
    from monai.losses import DiceLoss

    from SAUNetLib.training.train import marginal_loss

    share = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.3, 0.2, 0.1, 0.4]])
    scores = share.log().T.reshape(1, 4, 1, 2)
    labels = torch.tensor([[[1, ANY_OF + 0b1101]]])
    loss = marginal_loss(scores, labels, DiceLoss(include_background=False, batch=True))
    entropy = -(math.log(0.6) + math.log(0.3 + 0.1 + 0.4)) / 2
    # Vertebra is decided in both pixels; disc and canal in the first one only, where there is none of them.
    dice = ((1 - 2 * 0.6 / (0.6 + 0.2 + 1)) + 1 + 1) / 3
    assert float(loss) == pytest.approx(entropy + dice, abs=1e-3)


def test_the_marginal_loss_of_fully_drawn_labels_is_the_ordinary_one():
    """MONAI's Dice and PyTorch's cross-entropy, unknown pixels left out."""
    import torch.nn.functional as F
    from monai.losses import DiceLoss

    from SAUNetLib.training.train import marginal_loss

    torch.manual_seed(0)
    scores, labels = torch.randn(2, 4, 16, 16), torch.randint(0, 4, (2, 16, 16))
    labels[:, :5] = UNKNOWN
    dice = DiceLoss(include_background=False, batch=True)
    known = (labels != UNKNOWN)[:, None]
    truth = F.one_hot(labels.masked_fill(~known[:, 0], 0), 4).movedim(-1, 1)
    expected = dice(scores.softmax(1) * known, truth * known) + F.cross_entropy(scores, labels, ignore_index=UNKNOWN)
    assert float(marginal_loss(scores, labels, dice)) == pytest.approx(float(expected), abs=1e-6)
    assert float(marginal_loss(scores, torch.full_like(labels, UNKNOWN), dice)) < 10, (
        "a batch of which nothing is known"
    )


def test_what_is_not_drawn_pulls_toward_no_class_in_particular():
    from monai.losses import DiceLoss

    from SAUNetLib.training.train import marginal_loss

    scores = torch.zeros(1, 4, 8, 8, requires_grad=True)
    labels = torch.full((1, 8, 8), ANY_OF + 0b1101)
    labels[:, :4] = 1
    marginal_loss(scores, labels, DiceLoss(include_background=False, batch=True)).backward()
    rest = scores.grad[0, :, 4:].mean((1, 2))
    assert rest[1] > 0, "not vertebra"
    assert torch.allclose(rest[[0, 2, 3]], rest[[0]].expand(3), atol=1e-6) and rest[0] < 0


@pytest.fixture
def spoilt(tmp_path):
    """A folder with one good case and one of every fault."""
    folder = tmp_path / "d"
    write(folder, "good", seed=0)
    write(folder, "twin", seed=0)
    write(folder, "alone", seed=1)
    (folder / "alone_labels.nii.gz").unlink()
    write(folder, "orphan", seed=2)
    (folder / "orphan_image.nii.gz").unlink()
    write(folder, "torn", seed=3)
    (folder / "torn_image.nii.gz").write_bytes((folder / "torn_image.nii.gz").read_bytes()[:500])
    write(folder, "moved", seed=4)
    volume, labels = labelled(4)
    elsewhere = Geometry(volume.geometry.size, volume.geometry.spacing, (9.0, 0.0, 0.0), SLICES_TO_LEFT)
    sitk.WriteImage(Volume(labels, elsewhere).to_sitk(), str(folder / "moved_labels.nii.gz"))
    write(folder, "values", labelled(5)[1] * 60, seed=5)
    write(folder, "empty", np.zeros_like(labelled(6)[1]), seed=6)
    axial = Geometry((40, 48, 10), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.eye(3))
    nan = labelled(7)[0].voxels.astype(np.float32)
    write(folder, "axial", voxels=np.full_like(nan, 7), seed=7, geometry=axial)
    nan[0, 0, 0] = np.nan
    write(folder, "nan", voxels=nan, seed=7)
    hounsfield = labelled(9)[0].voxels.astype(np.int16)
    hounsfield[:, :, 20:], hounsfield[:, 5:9, 5:9] = -1000, -100  # air around it, fat in it
    write(folder, "ct", voxels=hounsfield, seed=9)
    specks = labelled(8)[1].copy()
    specks[5, 45, 35], specks[:, :, 32:] = 1, np.where(specks[:, :, 32:] == 0, UNKNOWN, specks[:, :, 32:])
    specks[5, 45, 5] = 1
    write(folder, "specks", specks, seed=8)
    return folder


FAULTS = {
    "good": set(),
    "twin": {"INPUT_SERIES"},
    "torn": {"INPUT_UNREADABLE"},
    "moved": {"INPUT_GEOMETRY"},
    "values": {"INPUT_LABELS"},
    "empty": {"INPUT_LABELS"},
    "axial": {"INPUT_NOT_SAGITTAL", "INPUT_CONSTANT"},
    "nan": {"INPUT_VALUES"},
    "ct": {"INPUT_MODALITY"},
    "specks": set(),
}


def test_everything_wrong_is_said_in_one_go(spoilt, capsys):
    report = check_dataset(spoilt)
    assert {case.name: {one.code for one in case.problems} for case in report.cases} == FAULTS
    assert {one.text.split()[0] for one in report.problems} == {"alone_image.nii.gz", "orphan_labels.nii.gz"}
    specks = next(case for case in report.cases if case.name == "specks")
    assert "SPECKS" in {one.code for one in specks.notes} and 0.1 < specks.unknown < 0.3
    good = next(case for case in report.cases if case.name == "good")
    assert good.slices == 10 and good.encoding == "classes" and set(good.volumes_ml) == {"vertebra", "disc", "canal"}
    assert main(["dataset", "check", str(spoilt)]) == 3
    said = capsys.readouterr().out
    assert "not ready" in said and all(name in said for name in FAULTS) and "orphan" in said
    assert main(["dataset", "check", str(spoilt), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert not told["usable"] and len(told["cases"]) == len(FAULTS)


def test_a_good_folder_passes_and_a_missing_one_does_not(tmp_path, capsys, monkeypatch):
    write(tmp_path / "d", "a")
    assert main(["dataset", "check", str(tmp_path / "d")]) == 0
    assert "ready to train on" in capsys.readouterr().out
    write(tmp_path / "d", "twin")
    (tmp_path / "d" / "twin_labels.nii.gz").unlink()
    monkeypatch.chdir(tmp_path / "d")
    assert main(["dataset", "check", "."]) == 3
    assert "twin" in (said := capsys.readouterr().out) and "d: " in said
    assert main(["dataset", "check", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err.startswith("error INPUT_NOT_FOUND: ")
    assert main(["dataset"]) == 2


def test_a_structure_that_nobody_drew_has_to_be_declared(tmp_path):
    write(tmp_path / "d", "a", np.minimum(labelled(0)[1], 2) % 2)
    report = check_dataset(tmp_path / "d")
    assert not report.usable and sum('"draws": ["vertebra"]' in one.text for one in report.problems) == 2
    (tmp_path / "d" / "dataset.json").write_text('{"encoding": "classes", "draws": ["vertebra"]}')
    assert check_dataset(tmp_path / "d").usable
    (tmp_path / "d" / "dataset.json").write_text('{"draws": 3}')
    assert "dataset.json" in check_dataset(tmp_path / "d").problems[0].text


def test_a_structure_that_is_drawn_as_specks_alone_is_missing(tmp_path):
    """The training refused what the check called ready."""
    for seed, name in enumerate("ab"):
        labels = np.where(labelled(seed)[1] == 3, 0, labelled(seed)[1])
        labels[5, 20, 20] = 3
        write(tmp_path / "d", name, labels, seed=seed)
    report = check_dataset(tmp_path / "d")
    assert [one.text.partition(".")[0] for one in report.problems] == ["no case has a canal"]


def test_specks_are_measured_in_mm3():
    labels = np.zeros((6, 20, 20), np.uint8)
    labels[1, 2:7, 2:7], labels[4, 2:5, 2:7] = 1, 2
    assert without_specks(labels, 2.0)[1] == 1, "25 voxels of 2 mm3 are none, 15 are"


def test_what_a_folder_cannot_teach_is_told(tmp_path):
    """One patient leaves none to validate on; without background everything would become spine."""
    labels = labelled(0)[1]
    write(tmp_path / "d", "a", np.where(labels == 0, UNKNOWN, labels))
    report = check_dataset(tmp_path / "d")
    assert [one.code for one in report.notes] == ["PATIENTS"] and report.usable
    assert "after another one (saunet train OTHER DIR)" in report.notes[0].text, "the first one is validated on"
    assert any("none of its voxels is background" in one.text for one in report.cases[0].notes)
    write(tmp_path / "d", "b", seed=1)
    report = check_dataset(tmp_path / "d")
    assert not report.notes and not any("background" in one.text for one in report.cases[1].notes)


@pytest.mark.parametrize(("pixel", "square"), [((1.0, 1.5), False), ((1.5, 1.0), False), ((1.0, 1.15), True)])
def test_pixels_that_are_not_square_are_told_whichever_side_is_longer(tmp_path, pixel, square):
    write(tmp_path, "a", geometry=replace(labelled(0)[0].geometry, spacing=(*pixel, 4.4)))
    told = any("not square" in one.text for one in check_dataset(tmp_path).cases[0].notes)
    assert told is not square


@pytest.mark.parametrize(("columns", "told"), [(slice(12, None), True), (slice(None), False)])
def test_a_case_that_is_mostly_unknown_is_told(tmp_path, columns, told):
    labels = np.full_like(labelled(0)[1], 255)
    drawn = slice(5, 6) if told else slice(3, 8)
    labels[drawn, :, columns] = labelled(0)[1][drawn, :, columns]
    write(tmp_path, "a", labels)
    notes = check_dataset(tmp_path).cases[0].notes
    assert any("of it is labelled 255" in one.text for one in notes) == told


def test_pictures_of_a_patient_who_is_validated_on_teach_nothing(tmp_path):
    """Where the folder says whose they are, whatever they are called."""
    for name in ("005", "127"):
        write(tmp_path / "whole", name, seed=int(name))
    for seed, name in enumerate(("005_t1", "127_t1", "127_t2")):
        write(tmp_path / "pictures", name, seed=seed)
    (tmp_path / "pictures" / "dataset.json").write_text('{"patient_before": "_"}')
    config = TrainingConfig(**SMALL, validation=("127",))
    train([tmp_path / "whole", tmp_path / "pictures"], tmp_path / "run", config, "cpu")
    told = json.loads((tmp_path / "run" / "cases.json").read_text())["cases"]
    assert told == [["005"], ["005_t1"]]
    (tmp_path / "pictures" / "005_t1_image.nii.gz").unlink(), (tmp_path / "pictures" / "005_t1_labels.nii.gz").unlink()
    with pytest.raises(InputError, match="are used for validation") as caught:
        train([tmp_path / "whole", tmp_path / "pictures"], tmp_path / "other", config, "cpu")
    assert caught.value.code == "INPUT_EMPTY"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("anna_t1", "anna_t2", "bert_t1"), True),
        (("case_1", "case_2", "case_3"), False),
        (("a_1", "b_1", "c_1"), False),
    ],
)
def test_names_that_look_like_one_patient_are_told(tmp_path, names, said):
    for seed, name in enumerate(names):
        write(tmp_path, name, seed=seed)
    assert ["patient_before" in one.text for one in check_dataset(tmp_path).notes] == [True] * said
    (tmp_path / "dataset.json").write_text('{"patient_before": "_"}')
    assert not any("patient_before" in one.text for one in check_dataset(tmp_path).notes)


@pytest.mark.parametrize(("left", "word"), [([], None), ([4], "between"), ([0, 1, 2, 3, 6, 7, 8, 9], "only 2 of 10")])
def test_slices_that_were_left_undrawn_are_told(tmp_path, left, word):
    labels = labelled(0)[1].copy()
    labels[left] = 0
    geometry = replace(labelled(0)[0].geometry, spacing=(1.5, 1.5, 4.4))
    write(tmp_path, "a", labels, geometry=geometry)
    told = [one.text for one in check_dataset(tmp_path).cases[0].notes if one.code == "UNDRAWN"]
    assert [word in text for text in told] == [True] * (word is not None)
    labels[left] = UNKNOWN
    write(tmp_path, "a", labels, geometry=geometry)
    assert not any(one.code == "UNDRAWN" for one in check_dataset(tmp_path).cases[0].notes)


def test_a_narrow_stack_has_no_slices_beside_the_spine_to_be_undrawn(tmp_path):
    labels = labelled(0)[1].copy()
    labels[[0, 9]] = 0
    write(tmp_path, "a", labels, geometry=replace(labelled(0)[0].geometry, spacing=(1.5, 1.5, 2.5)))
    assert not any(one.code == "UNDRAWN" for one in check_dataset(tmp_path).cases[0].notes), "25 mm in all"


def test_a_structure_that_only_the_validation_has_is_told_so(tmp_path):
    labels = labelled(0)[1]
    for seed, name in enumerate(("a", "b")):
        write(tmp_path, name, np.where(labels == 2, 0, labels), seed=seed)
    write(tmp_path, "c", seed=2)
    assert check_dataset(tmp_path).usable
    with pytest.raises(InputError, match="a disc") as caught:
        train([tmp_path], tmp_path / "run", TrainingConfig(**SMALL, validation=("c",)), "cpu")
    assert "validat" in caught.value.remedy and "draws" not in caught.value.remedy


@pytest.mark.parametrize("where", ["a", "c"])
def test_what_is_validated_on_has_the_folder_s_encoding(tmp_path, where):
    """A misunderstood label map would falsify the figures of the model."""
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    image = sitk.ReadImage(str(tmp_path / f"{where}_labels.nii.gz"))
    labels = np.array([0, 45, 95, 2], np.uint8)[sitk.GetArrayFromImage(image)]
    changed = sitk.GetImageFromArray(labels)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(tmp_path / f"{where}_labels.nii.gz"))
    with pytest.raises(InputError, match="several encodings"):
        train([tmp_path], tmp_path / "run", TrainingConfig(**SMALL, validation=("c",)), "cpu")


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_two_files_of_one_case_are_refused(tmp_path, kind):
    """A corrected label map beside the old one lost to it by its name."""
    for name in ("a", "b"):
        write(tmp_path, name)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / f"b_{kind}.nii.gz")), str(tmp_path / f"b_{kind}.nrrd"))
    with pytest.raises(InputError, match=f"b_{kind}.nii.gz and b_{kind}.nrrd .* are the same case") as caught:
        load_cases(tmp_path, ["a"], 1.5)
    assert caught.value.code == "INPUT_SERIES"


@pytest.mark.parametrize("folder", ["one", "other"])
def test_an_image_that_is_validated_on_is_trained_on_under_no_name(tmp_path, folder):
    for seed, name in enumerate(("a", "b", "c")):
        write(tmp_path / "one", name, seed=seed)
    write(tmp_path / folder, "z", seed=2)
    config = TrainingConfig(**SMALL, validation=("c",))
    with pytest.raises(InputError, match="the image of c, a validation case, is also a training case, as z") as caught:
        train(sorted({tmp_path / "one", tmp_path / folder}), tmp_path / "run", config, "cpu")
    assert caught.value.code == "INPUT_SERIES"


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("order", "flipped"),
    [((0, 1, 2), (False, False, True)), ((2, 0, 1), (True, False, False)), ((0, 1, 2), (False,) * 3)],
)
def test_an_image_is_the_same_however_it_is_stored(tmp_path, order, flipped, kind):
    """Programs change the type of its voxels and turn its axes; what a card keeps and what is compared is one."""
    volume, labels = labelled(0)

    def turned(voxels):
        axes = [2 - axis for axis in reversed(order)]
        backwards = tuple(slice(None, None, -1 if flip else 1) for flip in reversed(flipped))
        return np.ascontiguousarray(voxels.transpose(axes)[backwards])

    other = Volume(turned(volume.voxels).astype(kind), volume.geometry.turned(order, flipped))
    assert image_hash(other) == image_hash(volume) != image_hash(labelled(1)[0])
    write(tmp_path / "d", "a")
    write_pair(tmp_path / "e", "b", other, turned(labels))
    mine, theirs = load_cases(tmp_path / "d", ["a"], 1.5), load_cases(tmp_path / "e", ["b"], 1.5)
    with pytest.raises(InputError, match="the image of a, a validation case, is also a training case, as b"):
        check_unseen(mine, [theirs])


@pytest.mark.parametrize("lost", ["image", "labels"])
def test_a_case_without_its_partner_is_not_left_out_unsaid(tmp_path, lost):
    for name in ("a", "b", "c"):
        write(tmp_path, name)
    (tmp_path / f"b_{lost}.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        load_cases(tmp_path, ["a", "c"], 1.5)
    assert caught.value.code == "INPUT_NOT_FOUND" and "b" in caught.value.cause
    assert "dataset check" in caught.value.remedy


SEGMENT_NAMES = ("Spinal canal", "Vertebrae", "Intervertebral discs")


def write_segments(path, names=SEGMENT_NAMES):
    """A label map as Slicer exports it: segments counted from 1 in their order, their names in the header."""
    volume, labels = labelled(0)
    image = to_sitk(np.array([0, 2, 3, 1], np.uint8)[labels], volume.geometry)
    for number, name in enumerate(names):
        for key, value in (("Name", name), ("LabelValue", str(number + 1)), ("Layer", "0"), ("ID", f"S{number}")):
            image.SetMetaData(f"Segment{number}_{key}", value)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize("info", ["{}", '{"encoding": "levels"}'])
def test_segments_are_read_by_their_names_and_not_by_slicer_s_numbers(tmp_path, ending, info):
    """A canal that is the first segment was taught as vertebra."""
    folder = tmp_path / "d"
    write(folder, "a", ending=".nii.gz")
    (folder / "a_labels.nii.gz").unlink()
    (folder / "dataset.json").write_text(info)
    write_segments(folder / f"a_labels{ending}")
    assert np.array_equal(read_pair(folder, "a")[1], labelled(0)[1])
    (report,) = check_dataset(folder).cases
    assert not report.problems and set(report.volumes_ml) == {"vertebra", "disc", "canal"}
    write_segments(folder / f"a_labels{ending}", ("Spinal canal", "Segment_2", "Intervertebral discs"))
    with pytest.raises(InputError, match="segments that are not known structures: Segment_2"):
        read_pair(folder, "a")


def test_a_structure_that_one_case_lacks_is_not_blamed_on_a_file_that_is_not_there(tmp_path):
    labels = labelled(1)[1]
    write(tmp_path, "a", labels=labels)
    write(tmp_path, "b", labels=np.where(labels == 1, labels, 0).astype(np.uint8), seed=1)
    (told,) = [note.text for note in check_dataset(tmp_path).cases[1].notes if note.code == "ABSENT"]
    assert told == "no disc and no canal in it, although the folder counts them as drawn."


def test_what_two_segments_claim_teaches_nothing(tmp_path):
    """The later one was taught, without a word."""
    write(tmp_path, "a")
    (tmp_path / "a_labels.nii.gz").unlink()
    volume, labels = labelled(0)
    image = to_sitk(np.where(labels == 3, np.uint8(1), np.uint8(0)), volume.geometry)
    content = slicerio.create_segmentation(image.GetSize(), np.eye(4))
    masks = [labels == 3, (labels == 1) | (labels == 3), labels == 2]
    for name, mask in zip(SEGMENT_NAMES, masks, strict=True):
        slicerio.add_segment(content, mask.transpose(2, 1, 0), {"name": name})
    content["ijkToLPS"][:3, :3] = np.asarray(volume.geometry.direction) * np.asarray(volume.geometry.spacing)
    content["ijkToLPS"][:3, 3] = volume.geometry.origin
    slicerio.write_segmentation(str(tmp_path / "a_labels.seg.nrrd"), content)
    assert np.array_equal(read_pair(tmp_path, "a")[1], np.where(labels == 3, UNKNOWN, labels))
    (report,) = check_dataset(tmp_path).cases
    assert "OVERLAP" in [note.code for note in report.notes]


def test_a_segmentation_beside_a_label_map_is_the_same_case(tmp_path):
    write(tmp_path / "d", "a")
    write_segments(tmp_path / "d" / "a_labels.seg.nrrd")
    with pytest.raises(InputError, match="are the same case"):
        case_names(tmp_path / "d")
