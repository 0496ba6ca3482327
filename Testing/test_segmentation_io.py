"""Writing and reading segmentations: opened by us and by 3D Slicer's own libraries; nothing is ever half-written."""

from __future__ import annotations

import copy
import csv
import errno
import importlib.util
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
from builders import least_seconds, to_classes
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAUNetLib.anatomy import PARTS_OFFSET, encodings, structures
from SAUNetLib.errors import InputError, OutOfMemoryError, UsageError
from SAUNetLib.evaluation.evaluate import evaluate, evaluate_files
from SAUNetLib.formats import slicer_segments
from SAUNetLib.formats.atomic import check_writable
from SAUNetLib.formats.endings import SEGMENTATIONS, TABLES, VOLUMES
from SAUNetLib.formats.label_maps import Header, read_in_short, write_label_map
from SAUNetLib.formats.segmentations import read_segmentation, read_truth, write_segmentation, write_table
from SAUNetLib.notices import CODES, Notice
from SAUNetLib.relabel import relabel_file
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry, to_sitk

GRIDS = {
    "sagittal": ((0, 1, 2), (False, False, False), 0.0),
    "permuted": ((2, 0, 1), (False, True, False), 0.0),
    "flipped": ((1, 2, 0), (True, True, True), 0.0),
    "oblique": ((0, 1, 2), (False, False, False), 17.0),
    "oblique-left-handed": ((1, 0, 2), (False, True, True), 9.0),
    "one-slice": ((0, 1, 2), (False, False, False), 5.0),
    "empty": ((0, 1, 2), (True, False, False), 3.0),
}


def sample(kind: str) -> Segmentation:
    """A segmentation on the grid of this kind, with everything that a header can carry."""
    order, flips, oblique = GRIDS[kind]
    size = (48, 64, 1) if kind == "one-slice" else (48, 64, 7)
    grid = builders.geometry(order, flips, oblique, size)
    labels = builders.labels_at(builders.points(grid), oblique)
    return Segmentation(
        labels * 0 if kind == "empty" else labels,
        grid,
        provenance={"model": "t2 \u2013 first", "version": "0.1.0", "device": "cpu"},
        warnings=(Notice("LEVELS_ASSUMED", "The lowest complete vertebra\nwas taken for L5."),),
        partial=frozenset() if kind == "empty" else frozenset({32}),
        confidence={} if kind == "empty" else {32: 0.917},
    )


def class_sample() -> Segmentation:
    grid = builders.geometry(size=(24, 32, 5))
    labels = np.digitize(builders.labels_at(builders.points(grid)), (1, 11, 60)).astype(np.uint8)
    return Segmentation(np.array([0, 3, 1, 2], np.uint8)[labels], grid, encodings()["classes"])


@pytest.fixture(scope="module")
def whole() -> Segmentation:
    return sample("oblique")


def matrix_ras(grid: Geometry) -> np.ndarray:
    """Voxel to RAS (4, 4), as Slicer has it."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(grid.direction) * np.asarray(grid.spacing)
    matrix[:3, 3] = grid.origin
    return np.diag([-1, -1, 1, 1]) @ matrix


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("ending", SEGMENTATIONS)
def test_read_back(tmp_path: Path, kind: str, ending: str) -> None:
    wanted = sample(kind)
    path = tmp_path / "new folder" / f"wirbelsäule 脊椎{ending}"
    write_segmentation(wanted, path)
    found = read_segmentation(path)
    assert np.array_equal(found.labels, wanted.labels)
    assert found.geometry.same_grid(wanted.geometry)
    assert found.encoding is wanted.encoding
    assert [path.name] == [file.name for file in path.parent.iterdir()]
    if ending in (".nrrd", ".mha", ".seg.nrrd"):
        assert found.provenance == {"model": "t2 - first", "version": "0.1.0", "device": "cpu"}
        assert found.warnings == (Notice("LEVELS_ASSUMED", "The lowest complete vertebra was taken for L5."),)
        assert found.partial == wanted.partial
        assert found.confidence == ({} if ending != ".seg.nrrd" or kind == "empty" else {32: 0.92})
        assert np.allclose(found.geometry.direction, wanted.geometry.direction, atol=1e-12)
        assert np.allclose(found.geometry.origin, wanted.geometry.origin, atol=1e-12)


@pytest.mark.parametrize("ending", SEGMENTATIONS)
@pytest.mark.parametrize("values", [(1, 2, 3), (2,)])
def test_classes_stay_classes(tmp_path: Path, ending: str, values: tuple[int, ...]) -> None:
    """Value 2 alone is the disc class here, although it is the canal among the levels."""
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 1, : len(values)] = values
    grid = Geometry((6, 5, 4), (1, 1, 1), (0, 0, 0), np.eye(3))
    write_segmentation(Segmentation(labels, grid, encodings()["classes"]), tmp_path / f"s{ending}")
    found = read_segmentation(tmp_path / f"s{ending}")
    assert found.encoding.name == "classes"
    assert np.array_equal(found.labels, labels)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_labels_on_any_grid(tmp_path: Path, data: st.DataObject) -> None:
    size = tuple(data.draw(st.integers(1, 6)) for _ in range(3))
    values = data.draw(st.lists(st.sampled_from([0, *structures()]), min_size=1, max_size=12))
    labels = np.resize(np.array(values, np.uint8), tuple(reversed(size)))
    spacing = tuple(data.draw(st.floats(0.3, 2.0)) for _ in range(3))
    origin = tuple(data.draw(st.floats(-500, 500)) for _ in range(3))
    direction = builders.rotation(data.draw(st.floats(-180, 180)), (1, -2, 0.5))
    direction = direction * data.draw(st.sampled_from([1.0, -1.0]))
    wanted = Segmentation(labels, Geometry(size, spacing, origin, direction))  # type: ignore[arg-type]
    path = tmp_path / f"s{data.draw(st.sampled_from(SEGMENTATIONS))}"
    write_segmentation(wanted, path)
    found = read_segmentation(path)
    assert np.array_equal(found.labels, labels)
    assert found.geometry.same_grid(wanted.geometry)


def test_a_label_map_on_a_sheared_grid_is_written_whole(tmp_path: Path) -> None:
    """As Slicer exports it for a volume that an acquisition transform shears: not read here, but not damaged."""
    whole = builders.segmentation(builders.geometry())
    sheared = np.asarray(whole.geometry.direction) @ np.array([[1, 0, 0], [0, 1, 0.1], [0, 0, 1]])
    image = to_sitk(whole.labels, replace(whole.geometry, direction=sheared / np.linalg.norm(sheared, axis=0)))
    for ending in (".nrrd", ".mha"):
        write_label_map(image, Header("levels"), tmp_path / f"s{ending}", ending)
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"s{ending}"))), whole.labels)


# --- 3D Slicer's own libraries --------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All grids in all formats, written, then opened by Slicer's libraries."""
    if importlib.util.find_spec("slicer_core") is None:
        pytest.skip("needs the package slicer-core")
    folder = tmp_path_factory.mktemp("opened")
    for kind in GRIDS:
        for ending in SEGMENTATIONS:
            write_segmentation(sample(kind), folder / f"{kind}{ending}")
    write_segmentation(class_sample(), folder / "classes.seg.nrrd")
    script = Path(__file__).with_name("slicer_reader.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", GRIDS)
def test_slicer_opens_the_segmentation(opened: tuple[Path, dict[str, Any]], kind: str) -> None:
    folder, found = opened
    wanted, got = sample(kind), found[f"{kind}.seg.nrrd"]
    table = wanted.table()
    assert [one["name"] for one in got["segments"]] == [row.structure.name for row in table]
    if kind == "empty":
        return
    assert got["read"] == 1
    assert np.array_equal(np.load(folder / f"{kind}.seg.nrrd.npy"), wanted.labels)
    for one, row in zip(got["segments"], table, strict=True):
        assert one["value"] == row.structure.value
        assert np.allclose(np.array(one["colour"]) * 255, row.structure.colour, atol=0.01)
        assert np.allclose(one["matrix"], matrix_ras(wanted.geometry), atol=1e-6)
        assert one["extent"] == [part for count in wanted.geometry.size for part in (0, count - 1)]
        _, category, kind_of, _, _, _, _ = one["tags"]["TerminologyEntry"].split("~")
        assert category == "SCT^123037004^Anatomical Structure"
        assert kind_of == f"SCT^{row.structure.code}^{row.structure.meaning}"
        assert one["tags"].get("SAUNet.Level", "") == row.structure.level
        assert ("SAUNet.Partial" in one["tags"]) == row.partial
        assert one["status"] == 0  # not started: nobody has looked at it


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("ending", [one for one in SEGMENTATIONS if one != ".seg.nrrd"])
def test_slicer_opens_the_label_map(opened: tuple[Path, dict[str, Any]], kind: str, ending: str) -> None:
    folder, found = opened
    wanted, got = sample(kind), found[f"{kind}{ending}"]
    assert got["read"] == 1
    assert np.allclose(got["spacing"], wanted.geometry.spacing, rtol=1e-6)
    labels, matrix = np.load(folder / f"{kind}{ending}.npy"), np.array(got["matrix"])
    if np.linalg.det(wanted.geometry.direction) < 0:  # Slicer turns left-handed grids round along k
        labels = labels[::-1]
        matrix[:3, 3] += matrix[:3, 2] * (len(labels) - 1)
        matrix[:3, 2] *= -1
    assert np.array_equal(labels, wanted.labels)
    assert np.allclose(matrix, matrix_ras(wanted.geometry), atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in GRIDS if kind != "empty"])
def test_what_slicer_saves_is_read(opened: tuple[Path, dict[str, Any]], kind: str) -> None:
    """A segment renamed (known by its code) and one moved to its own layer, with another label value."""
    folder, found = opened
    assert found[f"{kind}.seg.nrrd"]["written"] == 1
    wanted = sample(kind)
    got = read_segmentation(folder / "resaved" / f"{kind}.seg.nrrd")
    assert np.array_equal(got.labels, wanted.labels)
    assert got.geometry.same_grid(wanted.geometry)
    assert got.partial == wanted.partial
    assert got.confidence == {32: 0.92}


def test_what_the_header_calls_cut_is_of_the_encoding_that_is_read(tmp_path: Path, whole: Segmentation) -> None:
    """The header is kept where the values are changed: 2 is the canal among the levels and a disc among the classes."""
    path = tmp_path / "s.nrrd"
    write_segmentation(replace(whole, partial=frozenset({2, 32})), path)
    image = sitk.ReadImage(str(path))
    image.SetMetaData("SAUNet_partial", "2 7 32 999 x")
    sitk.WriteImage(image, str(path))
    assert read_segmentation(path).partial == {2, 32}
    classes = to_sitk(to_classes(whole.labels), whole.geometry)
    for key in image.GetMetaDataKeys():
        classes.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(classes, str(path))
    read = read_segmentation(path)
    assert read.encoding.name == "classes" and not read.partial


@pytest.mark.parametrize("said", ["sure", "1.5", "nan", "-1", ""])
def test_a_confidence_that_is_none_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    plain = slicer_segments._segment
    monkeypatch.setattr(slicer_segments, "_segment", lambda *row: plain(*row) | {"tags": {"SAUNet.Confidence": said}})
    write_segmentation(sample("sagittal"), tmp_path / "a.seg.nrrd")
    assert read_segmentation(tmp_path / "a.seg.nrrd").confidence == {}


def test_what_slicer_saves_of_classes(opened: tuple[Path, dict[str, Any]]) -> None:
    """Slicer drops header fields that it does not know, so the names alone tell classes from levels."""
    got = read_segmentation(opened[0] / "resaved" / "classes.seg.nrrd")
    assert got.encoding.name == "classes"
    assert np.array_equal(got.labels, class_sample().labels)


def test_a_label_map_with_a_segmentation_s_name_is_a_label_map(tmp_path: Path, whole: Segmentation) -> None:
    sitk.WriteImage(to_sitk(whole.labels, whole.geometry), str(tmp_path / "s.seg.nrrd"))
    assert np.array_equal(read_segmentation(tmp_path / "s.seg.nrrd").labels, whole.labels)
    noise = np.random.default_rng(1).normal(100, 30, whole.labels.shape).astype(np.float32)
    sitk.WriteImage(to_sitk(noise, whole.geometry), str(tmp_path / "i.seg.nrrd"))
    assert refusal(tmp_path / "i.seg.nrrd").code == "INPUT_LABELS"


@pytest.mark.parametrize(("extent", "turned"), [
    ("0;4194303;" * 3, False), ("nan;1;" * 3, False), ("0;1e30;" * 3, False), ("5;1;" * 3, False), ("1;2;3;", False),
    ("0;99;" * 3, True),
])  # fmt: skip
def test_a_reference_grid_that_is_none_changes_nothing(
    tmp_path: Path, whole: Segmentation, extent: str, turned: bool
) -> None:
    """Nor does one that is turned, with the same first voxel."""
    write_segmentation(whole, tmp_path / "s.seg.nrrd")
    head, data = (tmp_path / "s.seg.nrrd").read_bytes().split(b"\n\n", 1)
    stated = re.search(rb"Reference image geometry\|((?:[^;|]*;){16})([^|]*)\|", head)
    assert stated is not None
    rows = np.array(stated[1].split(b";")[:16]).reshape(4, 4)
    matrix = b"".join(number + b";" for number in (rows[:, [1, 0, 2, 3]] if turned else rows).ravel().tolist())
    changed = head.replace(stated[1] + stated[2], matrix + extent.encode())
    (tmp_path / "t.seg.nrrd").write_bytes(changed + b"\n\n" + data)
    read = read_segmentation(tmp_path / "t.seg.nrrd")
    assert np.array_equal(read.labels, whole.labels) and read.geometry.same_grid(whole.geometry)


def test_a_label_map_of_twos_is_what_the_other_one_says(tmp_path: Path, whole: Segmentation) -> None:
    """Nothing but the canal, or in the three classes nothing but discs."""
    made = to_classes(whole.labels)
    sitk.WriteImage(to_sitk(made, whole.geometry), str(tmp_path / "classes.nrrd"))
    sitk.WriteImage(to_sitk(np.where(made == 2, np.uint8(2), np.uint8(0)), whole.geometry), str(tmp_path / "twos.nrrd"))
    for pair in (("classes.nrrd", "twos.nrrd"), ("twos.nrrd", "classes.nrrd")):
        assert evaluate_files(*(tmp_path / name for name in pair)).agreements[2].dice == 1
    write_segmentation(whole, tmp_path / "levels.nrrd")
    canal = np.where(whole.labels == 2, np.uint8(2), np.uint8(0))
    sitk.WriteImage(to_sitk(canal, whole.geometry), str(tmp_path / "canal.nrrd"))
    assert evaluate_files(tmp_path / "levels.nrrd", tmp_path / "canal.nrrd").agreements[2].dice == 1


def test_segments_in_layers(tmp_path: Path, whole: Segmentation) -> None:
    """Overlapping segments, as Slicer keeps them in layers: the later one wins."""
    matrix = np.diag([-1, -1, 1, 1]) @ matrix_ras(whole.geometry)
    content = slicerio.create_segmentation(whole.geometry.size, matrix)
    masks = [whole.labels.transpose(2, 1, 0) == value for value in (41, 2)]
    masks[0][:, :5] = masks[1][:, :5] = True
    for mask, name in zip(masks, ("L1 vertebra", "spinal CANAL"), strict=True):
        slicerio.add_segment(content, mask, {"name": name})
    assert content["voxels"].ndim == 4
    path = tmp_path / "s.seg.nrrd"
    slicerio.write_segmentation(str(path), content)
    got = read_segmentation(path)
    expected = np.where(masks[1], 2, np.where(masks[0], 41, 0)).transpose(2, 1, 0)
    assert np.array_equal(got.labels, expected)
    shared = (masks[0] & masks[1]).transpose(2, 1, 0)
    (notice,) = got.warnings
    assert notice.code == "OVERLAP" and notice.text.startswith(f"{shared.sum()} voxels")
    assert "L1 vertebra, spinal CANAL" in notice.text
    truth, left_out = read_truth(path)
    assert np.array_equal(left_out, shared) and np.array_equal(truth.labels, np.where(shared, 0, expected))
    assert [one.code for one in evaluate_files(path, path).warnings] == ["OVERLAP", "OVERLAP"]


def test_overlapping_segments_are_not_lost_in_passing(tmp_path: Path, whole: Segmentation) -> None:
    path, other = tmp_path / "s.seg.nrrd", tmp_path / "other.seg.nrrd"
    write_segmentation(whole, path)
    content = slicerio.read_segmentation(str(path))
    twice = whole.labels.transpose(2, 1, 0) == 2
    content["voxels"] = np.stack([content["voxels"], (twice | (content["voxels"] == 43)).astype(np.uint8)])
    for one in content["segments"]:
        if one["name"] == "L3 vertebra":
            one.update(layer=1, labelValue=1)
    slicerio.write_segmentation(str(path), content)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="segments that overlap") as failure:
        relabel_file(path, {"L3": "L2"})
    assert path.read_bytes() == before and "--output" in failure.value.remedy
    assert "OVERLAP" in [one.code for one in relabel_file(path, {"L3": "L2"}, other).warnings]
    assert "OVERLAP" not in [one.code for one in read_segmentation(other).warnings]


def test_segments_are_read_about_as_fast_as_a_label_map(tmp_path: Path) -> None:
    labels = np.tile(builders.block_spine(), (3, 2, 5))
    fine = Segmentation(labels, Geometry(labels.shape[::-1], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)))
    segments, label_map = tmp_path / "s.seg.nrrd", tmp_path / "s.nrrd"
    for path in (segments, label_map):
        write_segmentation(fine, path)
        assert np.array_equal(read_segmentation(path).labels, labels)
    taken, usual = (least_seconds(lambda path=path: read_segmentation(path)) for path in (segments, label_map))
    assert taken < 5 * usual


# --- what cannot be read --------------------------------------------------------------------------


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_segmentation(path)
    return caught.value


@pytest.mark.parametrize(
    "spoil",
    [
        lambda labels: labels.astype(np.float32) + np.float32(0.5),
        lambda labels: labels.astype(np.int16) - 1,
        lambda labels: labels.astype(np.int16) + 300,
        lambda labels: np.where(labels > 0, 7, 0).astype(np.uint8),
        lambda labels: np.arange(labels.size, dtype=np.uint8).reshape(labels.shape),
    ],
)
def test_what_is_no_label_map(tmp_path: Path, whole: Segmentation, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    path = tmp_path / "s.nii.gz"
    sitk.WriteImage(to_sitk(spoil(whole.labels), whole.geometry), str(path))
    failure = refusal(path)
    assert failure.code == "INPUT_LABELS" and failure.exit_status == 3


def test_whole_numbers_in_any_type(tmp_path: Path, whole: Segmentation) -> None:
    for kind in (np.float32, np.float64, np.int32, np.uint16):
        sitk.WriteImage(to_sitk(whole.labels.astype(kind), whole.geometry), str(tmp_path / "s.nrrd"))
        assert np.array_equal(read_segmentation(tmp_path / "s.nrrd").labels, whole.labels)


@pytest.mark.parametrize(("kind", "read"), [(np.int16, True), (np.uint16, True), (np.int32, True), (np.uint8, False)])
def test_values_that_nibabel_scaled(tmp_path: Path, whole: Segmentation, kind: type, read: bool) -> None:
    """As its `Nifti1Image(image.get_fdata(), affine, header)` stores them: 8 bits are too few to tell label values."""
    path, limits = tmp_path / "s.nii", np.iinfo(kind)
    slope = whole.labels.max() / (limits.max - limits.min)
    stored = np.rint(whole.labels / slope + limits.min).astype(kind)
    sitk.WriteImage(to_sitk(stored, whole.geometry), str(path))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<ff", raw, 112, slope, -slope * limits.min)
    path.write_bytes(raw)
    assert not np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), whole.labels)
    if read:
        assert np.array_equal(read_segmentation(path).labels, whole.labels)
    else:
        failure = refusal(path)
        assert failure.code == "INPUT_LABELS" and "scales" in failure.cause and "np.rint" in failure.remedy


def test_other_bad_label_maps(tmp_path: Path, whole: Segmentation) -> None:
    assert refusal(tmp_path / "absent.seg.nrrd").code == "INPUT_NOT_FOUND"
    (tmp_path / "empty.seg.nrrd").touch()
    assert refusal(tmp_path / "empty.seg.nrrd").code == "INPUT_EMPTY"
    image = to_sitk(whole.labels, whole.geometry)
    sitk.WriteImage(image[:, :, 2], str(tmp_path / "flat.nrrd"))
    assert refusal(tmp_path / "flat.nrrd").code == "INPUT_DIMENSION"
    for ending in SEGMENTATIONS:
        write_segmentation(whole, tmp_path / f"whole{ending}")
        raw = (tmp_path / f"whole{ending}").read_bytes()
        (tmp_path / f"cut{ending}").write_bytes(raw[: len(raw) - 400])
        assert refusal(tmp_path / f"cut{ending}").code == "INPUT_UNREADABLE", ending


def test_a_segment_without_a_meaning(tmp_path: Path, whole: Segmentation) -> None:
    path = tmp_path / "s.seg.nrrd"
    write_segmentation(whole, path)
    raw = path.read_bytes().replace(b":=L3 vertebra\n", b":=Tumour\n").replace(b"^36470004^", b"^86049000^")
    path.write_bytes(raw)
    failure = refusal(path)
    assert failure.code == "INPUT_LABELS" and "Tumour" in failure.cause and "without a level" not in failure.remedy


def with_segment(path: Path, whole: Segmentation, name: str, mask: np.ndarray) -> None:
    """Write a result to which somebody added a segment, in a layer of its own as Slicer does."""
    write_segmentation(whole, path)
    content = slicerio.read_segmentation(str(path))
    content["voxels"] = np.stack([content["voxels"], mask.transpose(2, 1, 0).astype(np.uint8)])
    content["segments"].append({"id": "Segment_1", "name": name, "labelValue": 1, "layer": 1, "color": [1.0, 0.0, 0.0]})
    slicerio.write_segmentation(str(path), content)


def test_other_segments_are_left_out_and_said_so(tmp_path: Path, whole: Segmentation) -> None:
    path, other = tmp_path / "s.seg.nrrd", tmp_path / "other.seg.nrrd"
    with_segment(path, whole, "Tumour", whole.labels == 43)
    path.write_bytes(path.read_bytes().replace(b"_Name:=Tumour\n", "_Name:=L\u00e4sion\n".encode()))
    found = read_segmentation(path)
    assert np.array_equal(found.labels, whole.labels) and found.partial == whole.partial
    (notice,) = [one for one in found.warnings if one.code == "SEGMENTS_LEFT_OUT"]
    volume = np.count_nonzero(whole.labels == 43) * whole.geometry.voxel_volume / 1000
    assert f"not known to SAUNet and were left out: L\u00e4sion ({volume:.3g} ml)" in notice.text
    assert [one.code for one in evaluate_files(path, path).warnings] == ["SEGMENTS_LEFT_OUT"] * 2
    before = path.read_bytes()
    with pytest.raises(UsageError, match="segments of other things"):
        relabel_file(path, {"L3": "L2"})
    assert path.read_bytes() == before
    assert "SEGMENTS_LEFT_OUT" in [one.code for one in relabel_file(path, {"L3": "L2"}, other).warnings]
    assert "SEGMENTS_LEFT_OUT" not in [one.code for one in read_segmentation(other).warnings]


@pytest.mark.parametrize("name", [
    "L3_corrected", "vertebra_L3", "Vertebra", "disc L3-4", "Wirbel", "S2", "Canal 2", "T2 lesion", "S1 nerve root",
    "L.3", "4. LWK", "4 LWK", "LV4", "LVB4", "IVD4", "Lumbar 4", "fourth lumbar", "thoracic", "Cervical 3", "Vertebre",
    "vert\u00e8bre", "V\u00e9rtebra", "Spinal cord", "spinal_cord",
    "R\u00fcckenmark", "Myelon", "moelle \u00e9pini\u00e8re", "Disque", "Kreuzbein", "Wervel 4",
])  # fmt: skip
def test_a_segment_that_may_be_a_structure_is_not_left_out(tmp_path: Path, whole: Segmentation, name: str) -> None:
    path = tmp_path / "s.seg.nrrd"
    with_segment(path, whole, "NAME", whole.labels == 43)
    path.write_bytes(path.read_bytes().replace(b"_Name:=NAME\n", f"_Name:={name}\n".encode()))
    failure = refusal(path)
    assert failure.code == "INPUT_LABELS" and "without a level or a word such as disc" in failure.remedy
    with pytest.raises(InputError) as strict:
        read_truth(path, strict=True)
    assert "without a level" not in strict.value.remedy


def test_segments_that_another_format_lists_are_refused(tmp_path: Path, whole: Segmentation) -> None:
    """SimpleITK copies what an NRRD header lists; the values in such a file only count the segments."""
    path, copy = tmp_path / "s.seg.nrrd", tmp_path / "s.mha"
    write_segmentation(whole, path)
    sitk.WriteImage(sitk.ReadImage(str(path)), str(copy))
    failure = refusal(copy)
    assert failure.code == "INPUT_LABELS" and "lists 3D Slicer's segments" in failure.cause


@pytest.mark.parametrize("layer", [2, -1])
def test_a_segment_in_no_layer_is_a_damaged_file(tmp_path: Path, whole: Segmentation, layer: int) -> None:
    """One beyond the last was called a fault of ours, and -1 was the last."""
    path = tmp_path / "s.seg.nrrd"
    with_segment(path, whole, "Tumour", whole.labels == 43)
    content = slicerio.read_segmentation(str(path))
    content["segments"][-1]["layer"] = layer
    slicerio.write_segmentation(str(path), content)
    assert refusal(path).code == "INPUT_UNREADABLE"


def test_segments_of_which_none_is_a_structure_are_refused(tmp_path: Path, whole: Segmentation) -> None:
    """But those without a voxel mean nothing."""
    path, content = tmp_path / "s.seg.nrrd", slicerio.create_segmentation(whole.geometry.size, np.eye(4))
    slicerio.add_segment(content, whole.labels.transpose(2, 1, 0) == 43, {"name": "Tumour"})
    slicerio.write_segmentation(str(path), content)
    assert "Tumour" in refusal(path).cause
    with_segment(path, whole, "Segment_1", whole.labels < 0)
    assert np.array_equal(read_segmentation(path).labels, whole.labels)
    assert [one.code for one in read_segmentation(path).warnings] == ["LEVELS_ASSUMED"]


@pytest.mark.parametrize("said", [True, False])
def test_shares_are_no_label_values(tmp_path: Path, whole: Segmentation, said: bool) -> None:
    """As Slicer stores a fractional label map: -108 is nothing, 108 is all of a voxel, one layer for each segment."""
    path = tmp_path / "s.seg.nrrd"
    write_segmentation(whole, path)
    content = slicerio.read_segmentation(str(path))
    layers = [content["voxels"] == one["labelValue"] for one in content["segments"]]
    content["voxels"] = np.stack([layer.astype(np.int8) * 107 + (1 if said else -108) for layer in layers])
    content["masterRepresentation"] = "Fractional labelmap" if said else "Binary labelmap"
    for number, one in enumerate(content["segments"]):
        one.update(layer=number, labelValue=1)
    slicerio.write_segmentation(str(path), content)
    failure = refusal(path)
    assert failure.code == "INPUT_LABELS" and "fractional" in failure.cause and "Representations" in failure.remedy


def test_a_part_among_whole_vertebrae_is_called_so(tmp_path: Path, whole: Segmentation) -> None:
    """It was called a class."""
    with_segment(tmp_path / "s.seg.nrrd", whole, "L3 vertebral body", whole.labels == 43)
    failure = refusal(tmp_path / "s.seg.nrrd")
    assert failure.code == "INPUT_LABELS" and failure.cause.endswith("with other structures: L3 vertebral body.")
    assert "whole vertebrae" in failure.cause


def test_what_would_be_left_out_is_no_part_of_a_mixture(tmp_path: Path, whole: Segmentation) -> None:
    path = tmp_path / "s.seg.nrrd"
    with_segment(path, whole, "L3 vertebral body", whole.labels == 43)
    content = slicerio.read_segmentation(str(path))
    slicerio.add_segment(content, content["voxels"][0] == 43, {"name": "Tumour"})
    slicerio.write_segmentation(str(path), content)
    assert refusal(path).cause.endswith("with other structures: L3 vertebral body.")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_segmentation_in_dicom_is_to_be_converted(tmp_path: Path, kind: str) -> None:
    """The remedy was a folder with a DICOM study, which is no segmentation either."""
    path = tmp_path / "seg"
    if kind == "file":
        path.write_bytes(bytes(128) + b"DICM" + bytes(100))
    else:
        path.mkdir()
    failure = refusal(path)
    assert failure.code == "INPUT_UNREADABLE" and "segimage2itkimage" in failure.remedy


def test_two_segments_of_one_meaning(tmp_path: Path, whole: Segmentation) -> None:
    """A copy kept beside a correction must not swallow it."""
    matrix = np.diag([-1, -1, 1, 1]) @ matrix_ras(whole.geometry)
    content = slicerio.create_segmentation(whole.geometry.size, matrix)
    terminology = {"contextName": "c", "category": ["SCT", "123037004", "Anatomical Structure"],
                   "type": ["SCT", "36470004", "Third lumbar vertebra"]}  # fmt: skip
    for name in ("L3 vertebra", "L3 backup"):
        mask = whole.labels.transpose(2, 1, 0) == 43
        slicerio.add_segment(content, mask, {"name": name, "terminology": terminology})
    slicerio.write_segmentation(str(tmp_path / "s.seg.nrrd"), content)
    failure = refusal(tmp_path / "s.seg.nrrd")
    assert failure.code == "INPUT_LABELS" and "L3 vertebra, L3 backup" in failure.cause


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_totalspineseg_s_cord_lies_in_the_canal(tmp_path: Path, whole: Segmentation, ending: str) -> None:
    labels = whole.labels.copy()
    labels[:, ::2][labels[:, ::2] == 2] = 1
    sitk.WriteImage(to_sitk(labels, whole.geometry), str(tmp_path / f"s{ending}"))
    got = read_segmentation(tmp_path / f"s{ending}")
    assert np.array_equal(got.labels, whole.labels) and got.encoding is whole.encoding
    assert [notice.code for notice in got.warnings] == ["CORD"] and "part of the canal" in got.warnings[0].text


def test_a_cord_without_a_canal_is_none(tmp_path: Path, whole: Segmentation) -> None:
    labels = np.where(whole.labels == 2, 1, whole.labels).astype(np.uint8)
    sitk.WriteImage(to_sitk(labels, whole.geometry), str(tmp_path / "s.nii.gz"))
    got = read_segmentation(tmp_path / "s.nii.gz")
    assert np.array_equal(got.labels, np.where(labels == 1, 0, labels))
    assert [notice.code for notice in got.warnings] == ["CORD"] and "left out" in got.warnings[0].text


@pytest.mark.parametrize("codes", [(), ("LEVELS_ASSUMED",)])
def test_a_nifti_file_that_is_relabelled_keeps_its_model(tmp_path: Path, whole: Segmentation, codes: tuple) -> None:
    told = tuple(Notice(code, "text") for code in codes)
    one = replace(whole, warnings=told, provenance={"model": "saunet-lumbar 1.4"})
    write_segmentation(one, tmp_path / "s.nii.gz")
    relabel_file(tmp_path / "s.nii.gz", {"L4": "L5"})
    assert sitk.ReadImage(str(tmp_path / "s.nii.gz")).GetMetaData("descrip") == "SAUNet levels; ; saunet-lumbar 1.4"
    assert read_segmentation(tmp_path / "s.nii.gz").provenance["model"] == "saunet-lumbar 1.4"


@pytest.mark.parametrize("text", ["", "FSL5.0; by hand", "SAUNet levels", "levels; somebody's"])
def test_what_others_say_of_a_nifti_file_is_no_model(tmp_path: Path, whole: Segmentation, text: str) -> None:
    image = to_sitk(whole.labels, whole.geometry)
    image.SetMetaData("ITK_FileNotes", text)
    sitk.WriteImage(image, str(tmp_path / "s.nii.gz"))
    assert "model" not in read_segmentation(tmp_path / "s.nii.gz").provenance


def test_a_nifti_file_keeps_that_names_are_in_doubt(tmp_path: Path, whole: Segmentation) -> None:
    """Its header has no room for the texts."""
    told = tuple(Notice(code, "Long and with a ; in it.") for code in ("LEVELS_DOUBTFUL", "OTHER", "LEVELS_ASSUMED"))
    one = replace(whole, warnings=told, provenance={"model": "a-model-with-quite-a-long-name 1.4; SHA-256 0123"})
    write_segmentation(one, tmp_path / "s.nii.gz")
    got = read_segmentation(tmp_path / "s.nii.gz")
    assert [notice.code for notice in got.warnings] == ["LEVELS_ASSUMED", "LEVELS_DOUBTFUL"]
    assert got.encoding is whole.encoding
    assert not read_segmentation(relabel_file(tmp_path / "s.nii.gz", {"L4": "L4"}) and tmp_path / "s.nii.gz").warnings
    write_segmentation(replace(whole, warnings=()), tmp_path / "s.nii.gz")
    assert not read_segmentation(tmp_path / "s.nii.gz").warnings


def test_a_nifti_file_keeps_every_doubt_that_a_label_map_may_have(tmp_path: Path, whole: Segmentation) -> None:
    codes = ["FRONT_AND_BACK", "FEW_STRUCTURES", "SIZES_UNUSUAL", "LEVELS_LOW", "LEVELS_TALL", "LEVELS_MIXED",
             "VERTEBRA_SMALL", "DISC_MISSING", "PIECES_APART"]  # fmt: skip
    one = replace(whole, warnings=tuple(Notice(code, "text") for code in codes), provenance={"model": "m 1.0"})
    write_segmentation(one, tmp_path / "s.nii.gz")
    got = read_segmentation(tmp_path / "s.nii.gz")
    assert [notice.code for notice in got.warnings] == codes and got.provenance["model"] == "m 1.0"
    relabel_file(tmp_path / "s.nii.gz", {"L4": "L5"})
    assert [notice.code for notice in read_segmentation(tmp_path / "s.nii.gz").warnings] == codes
    kept = [name for name, code in CODES.items() if code.word]
    told = tuple(Notice(name, "text") for name in kept)
    write_segmentation(replace(one, warnings=told), tmp_path / "s.nii.gz")
    got = [notice.code for notice in read_segmentation(tmp_path / "s.nii.gz").warnings]
    assert got == kept[: len(got)] and len(got) >= 6  # as many as its 80 bytes hold
    assert "model" not in read_segmentation(tmp_path / "s.nii.gz").provenance  # half a name is another model's


@pytest.mark.parametrize("codes", [(), ("LEVELS_LOW", "DISC_MISSING")])
@pytest.mark.parametrize("model", ["SMALL 1", "TALL", "BACK LOW", ""])
def test_a_models_name_is_no_doubt(tmp_path: Path, whole: Segmentation, model: str, codes: tuple[str, ...]) -> None:
    told = tuple(Notice(code, "text") for code in codes)
    write_segmentation(replace(whole, provenance={"model": model}, warnings=told), tmp_path / "s.nii.gz")
    got = read_segmentation(tmp_path / "s.nii.gz")
    assert got.provenance == ({"model": model} if model else {})
    assert tuple(notice.code for notice in got.warnings) == codes


@pytest.mark.parametrize(
    ("text", "codes", "model"),
    [
        ("SAUNet levels", [], ""),
        ("SAUNet levels; SMALL 1", [], "SMALL 1"),
        ("SAUNet levels; LOW SMALL", ["LEVELS_LOW", "VERTEBRA_SMALL"], ""),
        ("SAUNet levels; LOW; SMALL 1", ["LEVELS_LOW"], "SMALL 1"),
    ],
)
def test_what_earlier_nifti_files_say(text: str, codes: list[str], model: str) -> None:
    """They left out what had nothing to say."""
    encoding, notices, named = read_in_short(text)
    assert (encoding, [notice.code for notice in notices], named) == ("levels", codes, model)


def test_a_nifti_file_keeps_that_its_image_was_upside_down(tmp_path: Path, whole: Segmentation) -> None:
    """No name that is corrected changes that."""
    write_segmentation(replace(whole, warnings=(Notice("HEAD_AND_FEET", "text"),)), tmp_path / "s.nii.gz")
    for _ in range(2):
        (notice,) = read_segmentation(tmp_path / "s.nii.gz").warnings
        assert notice.code == "HEAD_AND_FEET" and "upside down" in notice.text
        relabel_file(tmp_path / "s.nii.gz", {"L4": "L5"})


def test_a_copy_means_what_its_original_does(whole: Segmentation) -> None:
    """Also one that was sent to another process."""
    for one in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert one.encoding is whole.encoding and evaluate(one, whole).detections.keys() == {"vertebra", "disc"}


# --- where nothing can be written -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["s.dcm", "s.nhdr", "s", ".nii.gz", "s.nii.bz2", "s.png"])
def test_unknown_formats(tmp_path: Path, whole: Segmentation, name: str) -> None:
    for act in (
        lambda: check_writable(tmp_path / name, SEGMENTATIONS),
        lambda: write_segmentation(whole, tmp_path / name),
    ):
        with pytest.raises(UsageError) as caught:
            act()
        assert caught.value.code == "OUTPUT_FORMAT"
        assert all(ending in caught.value.remedy for ending in SEGMENTATIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["s.seg.nrrd", "S.SEG.NRRD"])
def test_a_volume_is_not_called_as_a_segmentation(tmp_path: Path, name: str) -> None:
    """Its last ending is one of a volume."""
    with pytest.raises(UsageError, match="name of a segmentation file") as caught:
        check_writable(tmp_path / name, VOLUMES)
    assert caught.value.code == "OUTPUT_FORMAT" and ".seg" not in caught.value.remedy
    assert check_writable(str(tmp_path / name), SEGMENTATIONS) == ".seg.nrrd"
    assert check_writable(tmp_path / "s.nrrd", VOLUMES) == check_writable(tmp_path / "s.nrrd", SEGMENTATIONS)


def test_a_place_is_checked(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "S.NII.GZ", SEGMENTATIONS)
    check_writable(tmp_path / "t.csv", TABLES)
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.nrrd").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.mha")
    for name in ("folder.nrrd", "file/s.nrrd", "pipe.mha"):
        with pytest.raises(UsageError) as caught:
            check_writable(tmp_path / name, SEGMENTATIONS)
        assert caught.value.code == "OUTPUT_WRITE"
        assert caught.value.exit_status == 2


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="paths are UTF-8 there, whatever the locale")
@pytest.mark.parametrize(
    ("folder", "name", "locale", "said"),
    [
        (".", "ü.nii.gz".encode(), "C", "with this locale Python reads paths as ascii. Set the environment variable"),
        ("ü", b"a.nii.gz", "C", "with this locale Python reads paths as ascii. Set the environment variable"),
        (".", b"\xfc.nii.gz", "C.UTF-8", "its path is not valid UTF-8. Choose a name and folder in UTF-8"),
    ],
)
def test_a_path_that_the_locale_makes_unreadable_is_told(tmp_path: Path, folder, name, locale, said) -> None:
    """In the folder, too: what is not UTF-8 makes SimpleITK end the whole process."""
    (tmp_path / "ü").mkdir()
    forced = {"PYTHONPATH": str(ROOT), "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "SAUNetLib", "phantom", name], cwd=tmp_path / folder, env={**os.environ, **forced},
        capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error OUTPUT_WRITE: ") and said in done.stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that takes no files")
def test_a_place_is_checked_where_nothing_can_be_made(whole: Segmentation) -> None:
    with pytest.raises(UsageError) as caught:
        write_segmentation(whole, "/proc/s.nrrd")
    assert caught.value.code == "OUTPUT_WRITE"


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("ending", [*SEGMENTATIONS, ".csv"])
def test_full_disk(tmp_path: Path, ending: str, existing: bool) -> None:
    """The system stops every file at 600 bytes: no partial file, no temporary one, the old one untouched."""
    resource = pytest.importorskip("resource")
    values = np.array([0, *structures()], np.uint8)
    labels = np.random.default_rng(1).choice(values, (12, 20, 24))
    big = Segmentation(labels, builders.geometry(size=(24, 20, 12)))
    path = tmp_path / f"s{ending}"
    if existing:
        path.write_bytes(b"the old file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(UsageError) as caught:
            (write_table if ending == ".csv" else write_segmentation)(big, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "OUTPUT_WRITE"
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_bytes() == b"the old file"


def test_failure_while_writing(tmp_path: Path, whole: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(image: object, path: str, *_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sitk, "WriteImage", half)
    with pytest.raises(UsageError) as caught:
        write_segmentation(whole, tmp_path / "s.nii.gz")
    assert caught.value.code == "OUTPUT_WRITE" and os.strerror(errno.ENOSPC) in caught.value.cause
    assert not list(tmp_path.iterdir())

    def cancelled(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sitk, "WriteImage", cancelled)
    with pytest.raises(KeyboardInterrupt):
        write_segmentation(whole, tmp_path / "s.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "failure, raised",
    [
        (MemoryError(), OutOfMemoryError),
        (RuntimeError("std::bad_alloc"), OutOfMemoryError),
        (RuntimeError("could not write"), UsageError),
        (NotImplementedError("later"), NotImplementedError),
        (RecursionError("too deep"), RecursionError),
    ],
)
def test_neither_lack_of_memory_nor_a_fault_of_ours_is_called_a_file_that_cannot_be_written(
    tmp_path: Path, whole: Segmentation, monkeypatch: pytest.MonkeyPatch, failure: Exception, raised: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(Exception) as caught:
        write_segmentation(whole, tmp_path / "s.nii.gz")
    assert caught.type is raised and not list(tmp_path.iterdir())


def test_a_disk_that_says_only_at_the_end_that_it_is_full_keeps_the_old_file(
    tmp_path: Path, whole: Segmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "s.csv").write_text("the old file")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError) as caught:
        write_table(whole, tmp_path / "s.csv")
    assert caught.value.code == "OUTPUT_WRITE" and [file.read_text() for file in tmp_path.iterdir()] == ["the old file"]


def test_a_write_that_fails_without_saying_so(
    tmp_path: Path, whole: Segmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(write: Callable[..., None], place: int) -> Callable[..., None]:
        def half(*given: Any, **more: Any) -> None:
            write(*given, **more)
            path = Path(given[place])
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

        return half

    monkeypatch.setattr(sitk, "WriteImage", short(sitk.WriteImage, 1))
    monkeypatch.setattr(slicerio, "write_segmentation", short(slicerio.write_segmentation, 0))
    for ending in (".nii", ".nii.gz", ".mha", ".seg.nrrd"):
        with pytest.raises(UsageError) as caught:
            write_segmentation(whole, tmp_path / f"s{ending}")
        assert caught.value.code == "OUTPUT_WRITE"
    assert not list(tmp_path.iterdir())


def test_a_link_keeps_pointing(tmp_path: Path, whole: Segmentation) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "s.nrrd"
    target.write_bytes(b"old")
    (tmp_path / "s.nrrd").symlink_to(target)
    write_segmentation(whole, tmp_path / "s.nrrd")
    assert (tmp_path / "s.nrrd").is_symlink()
    assert np.array_equal(read_segmentation(target).labels, whole.labels)


def test_long_paths(tmp_path: Path, whole: Segmentation) -> None:
    folder = tmp_path.joinpath(*["ordner mit sehr langem namen " * 4] * 5)
    for ending in SEGMENTATIONS:
        path = folder / ("x" * (255 - len(ending)) + ending)
        write_segmentation(whole, path)
        assert np.array_equal(read_segmentation(path).labels, whole.labels)


# --- table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oblique", "empty"])
def test_table(tmp_path: Path, kind: str) -> None:
    wanted = sample(kind)
    write_table(wanted, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == ["value", "name", "level", "kind", "voxels", "volume_mm3", "partial", "confidence",
                                 "snomed_code"]  # fmt: skip
    assert len(rows) == len(wanted.table()) == (0 if kind == "empty" else 10)
    for row, line in zip(wanted.table(), rows, strict=True):
        assert int(line["voxels"]) == np.count_nonzero(wanted.labels == int(line["value"])) == row.voxels
        volume = row.voxels * np.prod(wanted.geometry.spacing)
        assert float(line["volume_mm3"]) == pytest.approx(volume, abs=1e-3)
        assert line["partial"] == ("true" if line["value"] == "32" else "false")
        assert line["confidence"] == ("0.92" if line["value"] == "32" else "")
        assert (line["name"], line["snomed_code"]) == (row.structure.name, row.structure.code)
    said = {entry["value"]: entry.get("confidence") for entry in wanted.summary()["structures"]}
    assert all(said[int(line["value"])] == (0.92 if line["confidence"] else None) for line in rows)
    with pytest.raises(UsageError):
        write_table(wanted, tmp_path / "t.xlsx")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
def test_vertebrae_in_parts_are_written_and_read(tmp_path, ending):
    from SAUNetLib.segmentation import Segmentation
    from SAUNetLib.volume import Geometry

    labels = np.zeros((3, 8, 9), np.uint8)
    labels[:, 2:4, 2:4], labels[:, 2:4, 6:8], labels[:, 5:6, 2:4] = 44, 44 + PARTS_OFFSET, 95
    geometry = Geometry((9, 8, 3), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]))
    write_segmentation(Segmentation(labels, geometry, encodings()["parts"]), tmp_path / f"a{ending}")
    found = read_segmentation(tmp_path / f"a{ending}")
    assert found.has_parts and np.array_equal(found.labels, labels)
    assert [row.structure.name for row in found.table()] == [
        "L4 vertebral body", "L4 posterior elements", "L4/L5 disc",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "kind", "said"),
    [
        ((41, 42), "levels", True),
        ((1, 21, 22), "levels", True),
        ((41, 50), "levels", True),
        ((41, 42, 91), "levels", False),
        ((2, 41), "levels", False),
        ((2, 41, 141), "parts", False),
        ((1, 3), "classes", False),
    ],
)
def test_what_only_fits_by_chance_is_told(tmp_path, values, kind, said):
    """SPINEPS numbers L2 to L5 as 21 to 24, which are T1 to T4 here."""
    path, labels = tmp_path / "a.nrrd", np.zeros((3, 8, 8), np.uint8)
    labels[1, 2, : len(values)] = values
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(path))
    found = read_segmentation(path)
    assert (found.encoding.name, "ENCODING_ASSUMED" in [one.code for one in found.warnings]) == (kind, said)
    assert [one.code for one in evaluate_files(path, path).warnings].count("ENCODING_ASSUMED") == 2 * said
    for ending in (".nrrd", ".nii.gz"):  # ours state it
        write_segmentation(replace(found, warnings=()), tmp_path / f"ours{ending}")
        assert "ENCODING_ASSUMED" not in [one.code for one in read_segmentation(tmp_path / f"ours{ending}").warnings]


def test_parts_without_a_disc_or_a_canal_are_believed_where_something_states_them(tmp_path):
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[1, 2, :4] = 21, 22, 121, 122
    grid = Geometry((8, 8, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    write_segmentation(Segmentation(labels, grid, encodings()["parts"]), tmp_path / "stated.nii.gz")
    sitk.WriteImage(to_sitk(labels, grid), str(tmp_path / "unstated.nii.gz"))
    assert read_segmentation(tmp_path / "stated.nii.gz").has_parts
    assert "SPIDER's values, but not its canal" in refusal(tmp_path / "unstated.nii.gz").cause
    (notice,) = evaluate_files(tmp_path / "stated.nii.gz", tmp_path / "unstated.nii.gz").warnings
    assert notice.code == "ENCODING_ASSUMED" and "unstated.nii.gz" in notice.text


def test_parts_that_nothing_confirms_are_called_so(tmp_path):
    """They are an encoding's, although it was said that none has them all."""
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[1, 2, :4] = 41, 42, 141, 142
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "a.nii.gz"))
    failure = refusal(tmp_path / "a.nii.gz")
    assert "without a disc or canal nothing confirms it: 41, 42, 141, 142" in failure.cause
    assert "dataset.json" in failure.remedy and "If SPINEPS made it" in failure.remedy


def test_a_canal_alone_is_a_canal_and_no_discs(tmp_path):
    """As TotalSpineSeg writes one; in a label map of three classes 2 is a disc."""
    voxels = np.zeros((3, 8, 8), np.uint8)
    voxels[1, 2:6, 4] = 2
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "canal.nii.gz"))
    found = read_segmentation(tmp_path / "canal.nii.gz")
    assert [row.structure.kind for row in found.table()] == ["canal"]
