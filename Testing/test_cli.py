"""The command line: exit statuses, one clear line for each failure, several images, JSON."""

import argparse
import csv
import errno
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from builders import CLASS_OF, SLICES_TO_LEFT, block_spine, geometry, picture, volume, write_dicom_series
from conftest import ROOT

from SAUNetLib.anatomy import value_of
from SAUNetLib.cli import STAGES, _parser, main
from SAUNetLib.command import run_command, tool
from SAUNetLib.errors import CancelledError, InputError, out_of_memory
from SAUNetLib.formats.segmentations import read_segmentation, write_segmentation
from SAUNetLib.masks import cut_structures
from SAUNetLib.measurements import split_parts
from SAUNetLib.model import load_model, save_model
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.stages import SHARES, done
from SAUNetLib.volume import Geometry, SagittalStack, Volume


@pytest.fixture
def image(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    sitk.WriteImage(picture().to_sitk(), str(folder / "a.nii.gz"))
    return folder / "a.nii.gz"


@pytest.fixture
def run(tiny_model, capsys):
    """`saunet segment ...` with the tiny model: exit status, stdout, stderr."""

    def call(*arguments):
        status = main(["segment", "--model", str(tiny_model), "--device", "cpu", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return call


def test_segment_writes_label_map_table_and_preview(run, image, tmp_path):
    output = tmp_path / "out" / "b.seg.nrrd"
    status, out, err = run(
        image, "--output", output, "--table", tmp_path / "out/b.csv", "--preview", tmp_path / "out/b.png"
    )
    assert status == 0 and err == ""
    assert sorted(path.name for path in output.parent.iterdir()) == ["b.csv", "b.png", "b.seg.nrrd"]
    result = read_segmentation(output)
    assert result.geometry.same_grid(picture().geometry)
    for row in result.table():
        assert row.structure.name in out
    assert str(output) in out


def test_quiet_prints_nothing_and_classes_gives_three_values(run, image, tmp_path):
    status, out, err = run(image, "--output", tmp_path / "b.mha", "--classes", "--quiet")
    assert (status, out, err) == (0, "", "")
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "b.mha")))
    assert set(np.unique(found)) <= {0, 1, 2, 3} and found.any()


def test_json_is_one_object_with_the_result(run, image, tmp_path):
    status, out, err = run(image, "--output", tmp_path / "b.nrrd", "--json")
    answer = json.loads(out)
    assert status == 0 and err == ""
    assert answer["structures"] and answer["provenance"]["model"] == "tiny 1" and "warnings" in answer


def test_of_a_dicom_folder_the_series_that_was_taken_is_told(run, image, tmp_path):
    write_dicom_series(tmp_path / "study", volume(geometry()), 7, "T2 [sag]")
    name = "series 7 (T2 [sag])"
    status, out, _ = run(tmp_path / "study", "--output", tmp_path / "b.seg.nrrd")
    assert status == 0 and f"Image:     {name}" in out.splitlines()
    # Files have the number alone: a description is free text, and may name the patient.
    assert read_segmentation(tmp_path / "b.seg.nrrd").provenance["series"] == "series 7"
    assert b"[sag]" not in (tmp_path / "b.seg.nrrd").read_bytes()
    status, out, _ = run(tmp_path / "study", image, "--output", tmp_path / "out", "--json")
    assert [found["provenance"].get("series") for found in json.loads(out)] == ["series 7", None]
    status, out, _ = run(tmp_path / "study", image, "--output", tmp_path / "more")
    assert [name in line for line in out.splitlines() if line[:1] != " "] == [True, False]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_what_files_and_headers_hold_does_nothing_to_a_terminal(run, image, tmp_path, tiny_model, monkeypatch, capsys):
    write_dicom_series(tmp_path / "study", volume(geometry()), 7, "T2\x1b[2J sag")
    named = tmp_path / "a\x1b[2J.nii.gz"
    shutil.copy(image, named)
    (tmp_path / "b\x1b[2J.nrrd").write_bytes(b"NRRD")
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "\x1b[2J"))
    card = json.loads(tiny_model.with_suffix(".json").read_text())
    (tmp_path / "\x1b[2J").mkdir()
    shutil.copy(tiny_model, tmp_path / "\x1b[2J" / "own.safetensors")
    (tmp_path / "\x1b[2J" / "own.json").write_text(json.dumps(card | {"description": "\x1b[2J", "version": "\x1b[2J"}))
    shown = run(tmp_path / "study", "--output", tmp_path / "c.nii.gz")
    shown += run(tmp_path / "study", named, tmp_path / "b\x1b[2J.nrrd", "--output", tmp_path / "out")
    assert main(["models"]) == 0
    shown += tuple(capsys.readouterr())
    for text in (shown[1], *shown[4:7]):
        assert "\x1b" not in text and "\\x1b[2J" in text


def test_two_results_are_not_written_to_one_file(run, image, tmp_path):
    one = tmp_path / "b.csv"
    status, out, err = run(image, "--output", tmp_path / "b.nrrd", "--table", one, "--measurements", one)
    assert status == 2 and out == "" and err.startswith("error USAGE: two results would be written to ")
    assert not one.exists() and not (tmp_path / "b.nrrd").exists()


def spoil(name: str, image, tmp_path):
    """A bad input of a kind, and the arguments to call with."""
    source = picture()
    path = tmp_path / "in" / f"{name}.nrrd"
    if name == "truncated":
        path = image.with_name("truncated.nii.gz")
        path.write_bytes(image.read_bytes()[:2000])
    elif name == "4D":
        sitk.WriteImage(sitk.JoinSeries([source.to_sitk(), source.to_sitk()]), str(path))
    elif name == "colour":
        sitk.WriteImage(sitk.Compose([source.to_sitk()] * 3), str(path))
    elif name == "axial":
        axial = Volume(source.voxels, Geometry(source.geometry.size, (1.2, 1.2, 4.0), (0, 0, 0), np.eye(3)))
        sitk.WriteImage(axial.to_sitk(), str(path))
    elif name == "sheared":
        content = (
            "NRRD0004\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 48 64 4\nspace directions: "
            "(0,1.2,0) (0,0.4,-1.2) (4,0,0)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\n\n"
        )
        path.write_bytes(content.encode() + source.voxels.tobytes())
    elif name == "empty folder":
        path = tmp_path / "in" / "folder"
        path.mkdir()
    elif name == "missing":
        pass
    return path


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("truncated", "INPUT_UNREADABLE"),
        ("4D", "INPUT_DIMENSION"),
        ("colour", "INPUT_PIXEL_TYPE"),
        ("axial", "INPUT_NOT_SAGITTAL"),
        ("sheared", "INPUT_DIRECTION"),
        ("empty folder", "INPUT_EMPTY"),
        ("missing", "INPUT_NOT_FOUND"),
    ],
)
def test_bad_input_gives_its_status_one_line_and_no_file(run, image, tmp_path, name, code):
    path = spoil(name, image, tmp_path)
    status, out, err = run(path, "--output", tmp_path / "out" / "b.nii.gz", "--table", tmp_path / "out" / "b.csv")
    assert status == 3 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"error {code}: ")
    assert not (tmp_path / "out").exists()


def test_a_tampered_model_gives_status_4(image, tmp_path, tiny_model, capsys):
    spoilt = tmp_path / "spoilt.safetensors"
    spoilt.write_bytes(tiny_model.read_bytes()[:-1] + b"\x00")
    spoilt.with_suffix(".json").write_bytes(tiny_model.with_suffix(".json").read_bytes())
    assert main(["segment", str(image), "--output", str(tmp_path / "b.nrrd"), "--model", str(spoilt)]) == 4
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error MODEL_DAMAGED: ")
    assert not (tmp_path / "b.nrrd").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["segment"],
        ["segment", "a.nrrd"],
        ["segment", "a.nrrd", "--output", "b.nrrd", "--device", "abacus"],
        ["segment", "a.nrrd", "--output", "b.nrrd", "--classes", "--levels"],
        ["evaluate", "a.nrrd"],
    ],
)
def test_usage_errors_give_status_2_and_one_line(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error USAGE: ")


def test_an_unknown_level_gives_status_2(run, image, tmp_path):
    status, _, err = run(image, "--output", tmp_path / "b.nrrd", "--lowest", "Q7")
    assert status == 2 and "Q7" in err and "L5" in err and not (tmp_path / "b.nrrd").exists()


def test_errors_in_json_too(run, tmp_path):
    status, out, _ = run(tmp_path / "none.nrrd", "--output", tmp_path / "b.nrrd", "--json")
    error = json.loads(out)["error"]
    assert status == 3 and error["code"] == "INPUT_NOT_FOUND" and error["remedy"] and error["exit_status"] == 3


def test_a_pattern_that_no_shell_has_expanded_means_its_files(run, image, tmp_path, monkeypatch):
    shutil.copy(image, image.with_name("b[1].nii.gz"))
    monkeypatch.setattr("SAUNetLib.cli.sys", SimpleNamespace(platform="win32", stderr=sys.stderr))
    written = {"*.nii.gz": ["a.nii.gz", "b[1].nii.gz"], "b[1].nii.gz": ["b[1].nii.gz"]}
    for number, (pattern, names) in enumerate(written.items()):
        (tmp_path / f"many{number}").mkdir()
        assert run(image.parent / pattern, "--output", tmp_path / f"many{number}", "--quiet")[0] == 0
        assert sorted(path.name for path in (tmp_path / f"many{number}").iterdir()) == names
    assert "INPUT_NOT_FOUND" in run(image.parent / "*.mha", "--output", tmp_path / "c.nrrd")[2]


def test_several_images_one_failure_does_not_stop_the_rest(run, image, tmp_path):
    second = image.with_name("study.1.nrrd")
    sitk.WriteImage(picture((2, 40, 40)).to_sitk(), str(second))
    status, out, err = run(image, tmp_path / "none.nrrd", second, "--output", tmp_path / "many")
    assert status == 3
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["a.nii.gz", "study.1.nii.gz"]
    assert err.count("\n") == 1 and "none.nrrd" in err and "INPUT_NOT_FOUND" in err
    assert [line for line in out.splitlines() if not line.startswith("  note ")] == [
        str(tmp_path / "many" / name) for name in ("a.nii.gz", "study.1.nii.gz")
    ]
    assert "  note FEW_STRUCTURES: " in out, "what a single image's result says is said here too"


def test_a_bug_in_one_of_several_images_does_not_stop_the_rest(run, image, tmp_path, monkeypatch):
    from SAUNetLib import pipeline

    def broken(path, *arguments, **options):
        if path.name == image.name:
            raise ZeroDivisionError("a bug")
        return whole(path, *arguments, **options)

    whole = pipeline.segment_file
    monkeypatch.setattr(pipeline, "segment_file", broken)
    second = image.with_name("b.nii.gz")
    second.write_bytes(image.read_bytes())
    status, out, err = run(image, second, "--output", tmp_path / "many")
    assert status == 1 and out.splitlines()[0] == str(tmp_path / "many" / "b.nii.gz")
    assert err.count("\n") == 1 and "error INTERNAL" in err and "ZeroDivisionError" in err
    assert "Traceback" in run(image, second, "--output", tmp_path / "many", "--debug")[2]


def test_results_are_called_as_the_links_that_were_given(run, image, tmp_path):
    """Archives like DataLad's are made of links to files with names of their own."""
    links = [tmp_path / name for name in ("sub-01.nii.gz", "sub-02.nii.gz", "loop.nii.gz")]
    for link in links:
        link.symlink_to(link if link.name.startswith("loop") else image)
    status, _, err = run(*links, "--output", tmp_path / "many", "--quiet")
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["sub-01.nii.gz", "sub-02.nii.gz"]
    assert status == 3 and "loop.nii.gz" in err and "INPUT_" in err and err.count("\n") == 1


def test_a_name_of_two_lines_is_told_in_one(run, image, tmp_path):
    status, _, err = run(image, tmp_path / "a\nb.nii.gz", "--output", tmp_path / "many", "--quiet")
    assert status == 3 and err.count("\n") == 1


def test_what_was_done_before_cancelling_is_told(run, image, tmp_path, monkeypatch):
    from SAUNetLib import pipeline

    def interrupted(path, *arguments, **options):
        if path.name == "b.nii.gz":
            raise CancelledError
        return whole(path, *arguments, **options)

    whole = pipeline.segment_file
    monkeypatch.setattr(pipeline, "segment_file", interrupted)
    others = [image.with_name(name) for name in ("b.nii.gz", "c.nii.gz")]
    for other in others:
        other.write_bytes(image.read_bytes())
    status, out, err = run(image, *others, "--output", tmp_path / "many", "--json")
    first, second = json.loads(out)
    assert status == 6 and "structures" in first and second["error"]["code"] == "CANCELLED"
    assert err.count("\n") == 1 and "error CANCELLED" in err
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize(("second", "wanted"), [(CancelledError(), 6), (out_of_memory(), 3)])
def test_of_several_failures_the_first_counts_unless_the_run_was_cancelled(
    run, image, tmp_path, monkeypatch, second, wanted
):
    from SAUNetLib import pipeline

    def failing(path, *arguments, **options):
        raise InputError("INPUT_EMPTY", "nothing", "nothing") if path.name == image.name else second

    monkeypatch.setattr(pipeline, "segment_file", failing)
    other = image.with_name("b.nii.gz")
    other.write_bytes(image.read_bytes())
    assert run(image, other, "--output", tmp_path / "many")[0] == wanted


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "", "--output", "x.nii.gz"],
        ["segment", "a.nii.gz", "--output", ""],
        ["segment", "a.nii.gz", "--output", "b.nii.gz", "--model="],
        ["measure", "a.nii.gz", "--image", "", "--output", "b.csv"],
        ["dataset", "check", ""],
        ["train", "", "--output", "run"],
        ["phantom", ""],
    ],
)
def test_what_is_empty_is_refused(arguments, capsys):
    """As of a shell's variable that is not set; a path would be the current folder, a name the default."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error USAGE: ") and ("is empty" in err or "--model has no value" in err)


@pytest.mark.parametrize("output", [".", "/", "here/..", "folder"])
def test_a_phantom_needs_the_name_of_a_file(output, capsys):
    assert main(["phantom", output]) == 2 and capsys.readouterr().err.startswith("error OUTPUT_FORMAT: ")


def test_no_result_replaces_what_is_read(run, image, tmp_path, capsys):
    """Whatever links lead there; it is refused before anything is written."""
    folder, other, voxels = tmp_path / "out", tmp_path / "out" / "a.nii.gz", tmp_path / "in" / "v.nii"
    folder.mkdir()
    shutil.copyfile(image, other)
    (tmp_path / "b.nii.gz").symlink_to(other)
    for name in ("t.csv", "p.png"):
        (tmp_path / name).symlink_to(image)
    array = picture().voxels
    voxels.write_bytes(array.tobytes())
    head = (
        "NRRD0004\ntype: {}\ndimension: 3\nspace: left-posterior-superior\nsizes: 48 64 4\nspace directions: "
        "(0,1.2,0) (0,0,-1.2) (4,0,0)\nspace origin: (0,0,0)\nencoding: raw\nendian: little\ndata file: v.nii\n"
    )
    voxels.with_suffix(".nhdr").write_text(head.format({"f4": "float", "i2": "short"}[array.dtype.str[1:]]))
    study = tmp_path / "study"
    study.mkdir()
    (study / "IM1.nii").write_bytes(bytes(128) + b"DICM" + bytes(100))
    kept = {path: path.read_bytes() for path in (image, other, voxels, study / "IM1.nii")}
    for arguments in (
        [image, tmp_path / "b.nii.gz", "--output", folder],
        [image, "--output", tmp_path / "o.nii.gz", "--table", tmp_path / "t.csv"],
        [image, "--output", tmp_path / "o.nii.gz", "--preview", tmp_path / "p.png"],
        [voxels.with_suffix(".nhdr"), "--output", voxels],
        [study, "--output", study / "IM1.nii"],
    ):
        status, out, err = run(*arguments)
        assert status == 2 and out == "" and err.startswith("error OUTPUT_WRITE: ") and "Traceback" not in err
        assert {path: path.read_bytes() for path in kept} == kept and not (tmp_path / "o.nii.gz").exists()


def test_measure_and_relabel_do_not_replace_what_they_read(phantom, tmp_path, capsys):
    image, labels = phantom
    links = [tmp_path / name for name in ("m.csv", "p.png", "t.csv")]
    for link, place in zip(links, (labels, image, labels), strict=True):
        link.symlink_to(place)
    kept = {path: path.read_bytes() for path in phantom}
    measure = ["measure", str(labels), "--image", str(image), "--output"]
    for arguments in (
        [*measure, str(links[0])],
        [*measure, str(tmp_path / "n.csv"), "--picture", str(links[1])],
        ["relabel", str(labels), "--set", "L4=L5", "--table", str(links[2])],
    ):
        assert main(arguments) == 2 and "is the input itself" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in kept} == kept


def test_a_class_is_cut_where_one_of_its_structures_is(phantom, run, tmp_path, tiny_model):
    image, labels = phantom
    whole = read_segmentation(labels)
    cut = frozenset({value_of("L5"), 2})
    assert replace(whole, partial=cut).as_classes().partial == {1, 3}
    assert replace(whole, partial=frozenset({value_of("S1")})).as_classes().partial == frozenset()
    run(image, "--output", tmp_path / "c.nrrd", "--classes", "--quiet")
    run(image, "--output", tmp_path / "l.nrrd", "--quiet")
    levels, classes = (read_segmentation(tmp_path / name) for name in ("l.nrrd", "c.nrrd"))
    assert levels.as_classes().partial == classes.partial and np.array_equal(levels.as_classes().labels, classes.labels)


def test_a_series_needs_the_image_that_it_is_of(capsys):
    assert main(["measure", "a.nrrd", "--output", "a.csv", "--series", "3"]) == 2
    assert "--image" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirections")
@pytest.mark.parametrize("closed, status", [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0),
                                            ("> /dev/full", 2), ("--json > /dev/full", 2)])  # fmt: skip
def test_without_a_stdout_or_stderr_the_result_is_written_all_the_same(image, tmp_path, tiny_model, closed, status):
    command = [sys.executable, "-m", "SAUNetLib", "segment", str(image), "--output", str(tmp_path / "b.nrrd")]
    command += ["--model", str(tiny_model), "--device", "cpu"]
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {closed}"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == status and (tmp_path / "b.nrrd").exists()
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    assert "error OUTPUT_WRITE: standard output or a file" in done.stderr if status else not done.stderr


@pytest.mark.parametrize("place", ["y" * 256, f"{'y' * 200}/" * 30 + "x", "closed/x"])
def test_places_that_the_system_refuses_are_no_bug(run, image, tmp_path, capsys, monkeypatch, place):
    looked_at = os.stat

    def stat(path, *arguments, **options):
        if not isinstance(path, int) and "closed" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return looked_at(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)  # to the one who may do everything nothing is closed
    where = tmp_path / place
    assert run(image, "--output", f"{where}.nii.gz")[0] == 2
    for arguments in (["evaluate", f"{where}.seg.nrrd", f"{where}.seg.nrrd"], ["dataset", "check", str(where)]):
        assert main(arguments) == 3
        written = capsys.readouterr()
        assert "INPUT_" in written.err + written.out and "Traceback" not in written.err
    monkeypatch.setenv("SAUNET_MODELS", str(where))
    assert main(["models"]) == 0 and "saunet-lumbar" in capsys.readouterr().out


def test_several_images_that_would_share_a_name_are_refused(run, image, tmp_path):
    status, _, err = run(image, image, "--output", tmp_path / "many")
    assert status == 2 and "a.nii.gz" in err and not (tmp_path / "many").exists()


@pytest.mark.parametrize("one, other", [("scan.nii.gz", "Scan.nii.gz"), ("M\u00fcller.nrrd", "Mu\u0308ller.mha")])
def test_two_spellings_of_a_name_are_one_file_on_some_systems(run, tmp_path, one, other):
    images = [tmp_path / folder / name for folder, name in (("first", one), ("second", other))]
    for path in images:
        path.parent.mkdir()
        path.touch()
    status, _, err = run(*images, "--output", tmp_path / "many")
    assert status == 2 and "two images" in err and not (tmp_path / "many").exists()


def test_evaluate_compares_structure_by_structure(run, image, tmp_path, capsys):
    run(image, "--output", tmp_path / "b.seg.nrrd", "--quiet")
    run(image, "--output", tmp_path / "c.nii.gz", "--quiet")
    assert main(["evaluate", str(tmp_path / "b.seg.nrrd"), str(tmp_path / "c.nii.gz"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["structures"]
    assert all(one["dice"] == 1 and one["hausdorff_mm"] == 0 for one in report["structures"])
    assert not report["instances"]["vertebra"]["missed"]
    assert main(["evaluate", str(tmp_path / "b.seg.nrrd"), str(tmp_path / "c.nii.gz")]) == 0
    assert "1.000" in capsys.readouterr().out


def test_evaluate_takes_parts_for_their_vertebrae(phantom, tmp_path, capsys):
    labels = read_segmentation(phantom[1])
    write_segmentation(split_parts(labels), tmp_path / "parts.nrrd")
    for pair in ((tmp_path / "parts.nrrd", phantom[1]), (phantom[1], tmp_path / "parts.nrrd")):
        assert main(["evaluate", *map(str, pair), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert len(report["structures"]) > 8 and all(one["dice"] == 1 for one in report["structures"])
        assert report["instances"]["vertebra"] and not report["instances"]["vertebra"]["missed"]
    parts = str(tmp_path / "parts.nrrd")
    assert main(["evaluate", parts, parts, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["structures"]) > 15, "bodies and posterior elements apart"
    whole = [row.structure.level for row in labels.table() if row.structure.kind == "vertebra"]
    assert len(report["instances"]["vertebra"]["matched"]) == len(whole), "a vertebra is one instance"


def test_evaluate_refuses_two_grids(tmp_path, capsys):
    labels = np.ones((3, 20, 20), np.uint8)
    for name, origin in (("a", 0.0), ("b", 5.0)):
        geometry = Geometry((20, 20, 3), (1.0, 1.0, 4.0), (origin, 0.0, 0.0), SLICES_TO_LEFT)
        sitk.WriteImage(Volume(labels, geometry).to_sitk(), str(tmp_path / f"{name}.nrrd"))
    assert main(["evaluate", str(tmp_path / "a.nrrd"), str(tmp_path / "b.nrrd")]) == 3
    assert capsys.readouterr().err.startswith("error INPUT_GEOMETRY: ")


def test_a_bug_gives_status_1_without_a_traceback_unless_asked(run, image, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", broken)
    status, _, err = run(image, "--output", tmp_path / "b.nrrd")
    assert status == 1 and err.count("\n") == 1 and "INTERNAL" in err and "Traceback" not in err
    status, _, err = run(image, "--output", tmp_path / "b.nrrd", "--debug")
    assert status == 1 and "Traceback" in err


@pytest.mark.parametrize("name, status", [("cc3d.fastmerge", 2), ("SAUNetLib.gone", 1)])
def test_an_installation_without_a_package_is_no_bug(run, image, tmp_path, monkeypatch, name, status):
    def incomplete(*_, **__):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", incomplete)
    code, _, err = run(image, "--output", tmp_path / "b.nrrd")
    assert code == status and err.count("\n") == 1
    assert ("error NOT_INSTALLED: the package cc3d is missing" in err) == (status == 2)


@pytest.mark.parametrize(
    "failure, code",
    [
        (ModuleNotFoundError("No module named 'monai'", name="monai"), "NOT_INSTALLED"),
        (ImportError("cannot import name 'X' from 'monai'", name="monai"), "INTERNAL"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "MEMORY"),
    ],
)
def test_a_package_that_is_there_is_not_called_missing(monkeypatch, capsys, tmp_path, failure, code):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise failure

    monkeypatch.setitem(sys.modules, "SAUNetLib.training.checks", Broken("checks"))
    assert main(["dataset", "check", str(tmp_path)]) != 0
    assert capsys.readouterr().err.startswith(f"error {code}: ")


def test_interrupting_gives_status_6(run, image, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", interrupted)
    status, _, err = run(image, "--output", tmp_path / "b.nrrd")
    assert status == 6 and err.startswith("error CANCELLED: ")


def test_a_name_that_stdout_cannot_show_is_no_failure(image, tmp_path, tiny_model):
    """As on Windows, where what is not a console takes the letters of one part of the world."""
    foreign = image.with_name("\u810a\u690e.nii.gz")
    image.rename(foreign)
    arguments = ["segment", str(foreign), "--output", str(tmp_path / "many"), "--model", str(tiny_model)]
    (tmp_path / "many").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "SAUNetLib", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "\\u810a\\u690e.nii.gz" in done.stdout and (tmp_path / "many" / foreign.name).exists()


def test_models_lists_and_adds(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    assert main(["models", "add", str(tiny_model)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tiny 1: ") and str(tmp_path / "own" / "tiny.safetensors") in out
    for command in (["models", "--json"], ["models", "list", "--json"]):
        assert main(command) == 0
        assert "tiny" in [card["name"] for card in json.loads(capsys.readouterr().out)]
    assert main(["models", "list"]) == 0 and "tiny 1: " in capsys.readouterr().out
    with open(tmp_path / "own" / "tiny.safetensors", "ab") as file:
        file.write(b"x")
    assert main(["models"]) == 0  # one damaged file hides none of the others
    out = capsys.readouterr().out
    assert "saunet-lumbar" in out and "MB of weights" in out and "cannot be used" in out and "Remove the model" in out
    assert main(["models", "add", str(tmp_path / "none.safetensors")]) == 4


def test_models_are_listed_and_verified_without_building_a_network(monkeypatch, capsys):
    monkeypatch.setattr("SAUNetLib.network.SAUNet.__init__", lambda *_, **__: pytest.fail("this takes seconds"))
    assert main(["models"]) == 0 and "saunet-lumbar" in capsys.readouterr().out


def test_another_model_of_one_name_and_version_replaces_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    assert main(["models", "add", str(tiny_model)]) == main(["models", "add", str(tiny_model)]) == 0
    network, card = load_model(tiny_model).network, json.loads(tiny_model.with_suffix(".json").read_text())
    with torch.no_grad():
        next(network.parameters()).add_(1)
    del card["sha256"]
    save_model(network, tmp_path / "other.safetensors", card)
    before = (tmp_path / "own" / "tiny.safetensors").read_bytes()
    assert main(["models", "add", str(tmp_path / "other.safetensors")]) == 2
    assert "another model tiny 1" in capsys.readouterr().err
    assert (tmp_path / "own" / "tiny.safetensors").read_bytes() == before
    save_model(network, tmp_path / "other.safetensors", card | {"version": "2"})
    assert main(["models", "add", str(tmp_path / "other.safetensors")]) == 0
    (tmp_path / "other.json").unlink()
    assert main(["models", "add", str(tmp_path / "other.safetensors")]) == 4
    assert "no card other.json beside" in capsys.readouterr().err


def test_a_model_whose_files_were_renamed_is_listed_by_their_name(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path))
    for path in (tiny_model, tiny_model.with_suffix(".json")):
        shutil.copy(path, tmp_path / f"renamed{path.suffix}")
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "renamed 1: " in out and "saunet-lumbar" in out and out.count("MB of weights") == 2


def test_an_option_is_not_guessed_from_its_beginning(capsys):
    assert main(["models", "--js"]) == 2 and "--js" in capsys.readouterr().err


def test_brackets_in_a_note_are_shown_as_they_are(run, image, tmp_path, monkeypatch):
    from SAUNetLib import engine

    notice = engine.Notice("GPU_FAILED", "The GPU failed ([enforce fail at x.cpp:75] . [/red]); went on")
    monkeypatch.setattr(engine.Engine, "_seems_turned", lambda *_: True)
    monkeypatch.setattr(engine, "FRONT_AND_BACK", notice)
    status, out, _ = run(image, "--output", tmp_path / "b.nrrd")
    assert status == 0 and notice.text in " ".join(out.split())


def test_a_phantom_s_place_is_checked_before_it_is_made(tmp_path, capsys, monkeypatch):
    from SAUNetLib.training import phantom
    from SAUNetLib.training.phantom import dataset

    written = []
    monkeypatch.setattr(phantom, "make_phantom", lambda *_: pytest.fail("made before its place was checked"))
    monkeypatch.setattr(dataset, "write_phantom", lambda _, *paths: written.extend(paths))
    for name in ("x.png", "x.seg.nrrd"):
        assert main(["phantom", str(tmp_path / name)]) == 2 and "OUTPUT_FORMAT" in capsys.readouterr().err
    (tmp_path / "x_labels.nii.gz").mkdir()
    assert main(["phantom", str(tmp_path / "x.nrrd")]) == 2 and "OUTPUT_WRITE" in capsys.readouterr().err
    monkeypatch.setattr(phantom, "make_phantom", lambda *_: None)
    assert main(["phantom", str(tmp_path / "UP.NII.GZ")]) == 0
    assert [path.name for path in written] == ["UP.NII.GZ", "UP_labels.nii.gz"]


def test_every_option_says_what_it_is():
    def options(parser: argparse.ArgumentParser, name: str) -> list[str]:
        unsaid = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one, child in action.choices.items():
                    unsaid += options(child, f"{name} {one}")
            elif not action.help:
                unsaid.append(f"{name} {action.dest}")
        return unsaid

    assert options(_parser(), "saunet") == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "`saunet COMMAND --help` explains a command"),
        ("batch", "(extra `cluster`)"),
        ("dataset", "(extra `train`)"),
        ("dataset check", "(extra `train`)"),
        ("train", "(extra `train`)"),
        ("train", "first folder also provides the validation cases"),
        ("compare", "(extra `train`)"),
        ("benchmark", "extra `peers`"),
        ("phantom", "with --count, the folder to write to"),
        ("bundle", "https://download.pytorch.org/whl/cu"),
        ("segment", "not with --classes"),
        ("segment", "for a single image"),
    ],
)
def test_help_says_what_a_command_needs(capsys, command, said):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert said in " ".join(capsys.readouterr().out.split())


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom SAUNetLib.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'SimpleITK', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_what_extras_bring_is_needed_by_their_commands_alone(tmp_path):
    """And those say which extra that is."""
    code = (
        "import importlib, sys\n"
        "for name in ('pydantic', 'monai', 'torchio', 'lightning', 'tensorboard', 'distributed', 'filelock'):\n"
        "    sys.modules[name] = None\n"
        "from SAUNetLib.cli import main\n"
        "for name in sys.argv[2:]:\n    importlib.import_module(name)\n"
        "from SAUNetLib.evaluation import validation\nfrom SAUNetLib.training import self_training\n"
        "dataset, train = (main([*one, sys.argv[1]]) for one in (['dataset', 'check'], ['train', '--output', 'r']))\n"
        "validated = validation.main([sys.argv[1], '--patients', '1', '--scans', '1'])\n"
        "taught = self_training.main(['saunet-lumbar', sys.argv[1], 'out'])\n"
        "print(dataset, train, validated, taught, main(['batch', '.', '--output', sys.argv[1]]))"
    )
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "SAUNetLib").rglob("*.py"))
    modules = [".".join(path.parts) for path in files if path.stem != "__main__"]
    extra = re.compile(r"training\.(?!phantom|self_training)|evaluation\.comparison")
    base = [name for name in modules if not extra.search(name)]
    for name in ("spider_t2space/1_image.nii.gz", "spider_tse_slices/1_image.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    arguments = [sys.executable, "-c", code, str(tmp_path), *base]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout == "2 2 2 2 2\n", done.stderr
    needed = re.findall(r'error NOT_INSTALLED: .*"(.+)" -m pip install .*"\.\[(\w+)]"', done.stderr)
    assert [extra for _, extra in needed] == ["train"] * 4 + ["cluster"]
    assert all(Path(python).samefile(sys.executable) for python, _ in needed), "not another Python's pip"


def test_an_installed_wheel_names_its_own_pins(monkeypatch, capsys, tmp_path):
    """It has no folder to install from; its pins lie beside its code, where the wheel puts them."""
    package = ROOT / "SAUNetLib"
    with open(ROOT / "pyproject.toml", "rb") as file:
        placed = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert package.parent / placed["constraints.txt"] == package / "constraints.txt"
    monkeypatch.setattr("SAUNetLib.command.resource", lambda: package / "Resources")
    monkeypatch.setitem(sys.modules, "SAUNetLib.training.checks", None)
    assert main(["dataset", "check", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "folder run" not in said
    assert f'Run: "{sys.executable}" -m pip install -c "{package / "constraints.txt"}" "saunet[train]".' in said


def test_segmenting_opens_no_connection(image, tmp_path, tiny_model):
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__):\n    raise OSError('no network')\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
        "from SAUNetLib.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ["segment", str(image), "--output", str(tmp_path / "b.nrrd"), "--model", str(tiny_model), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.nrrd").exists()


@pytest.fixture(scope="module")
def made_phantom(tmp_path_factory):
    """The folder of a phantom and its true label map."""
    folder = tmp_path_factory.mktemp("phantom")
    assert main(["phantom", str(folder / "p.nii.gz"), "--seed", "4"]) == 0
    return folder


@pytest.fixture
def phantom(made_phantom, tmp_path, capsys):
    """A phantom and its true label map, as files of the test's own."""
    capsys.readouterr()  # what was said while it was made
    return tuple(Path(shutil.copy(made_phantom / name, tmp_path)) for name in ("p.nii.gz", "p_labels.nii.gz"))


def test_measure_writes_figures_with_units_and_a_picture(phantom, tmp_path, capsys):
    image, labels = phantom
    table, picture = tmp_path / "m.csv", tmp_path / "m.png"
    status = main(["measure", str(labels), "--output", str(table), "--image", str(image), "--picture", str(picture)])
    assert status == 0 and capsys.readouterr().out.split() == [str(table), str(picture)]
    with open(table, newline="", encoding="utf-8") as file:
        rows = {row["level"]: row for row in csv.DictReader(file)}
    assert 4 < float(rows["L3/L4"]["height_middle_mm"]) < 20
    assert "not for diagnosis" in rows["L3/L4"]["note"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["measure", str(labels), "--output", str(table), "--picture", str(picture)]) == 2


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_what_the_image_cuts_is_flagged_from_every_kind_of_file(phantom, tmp_path, ending):
    labels = read_segmentation(phantom[1])
    middle = labels.labels.shape[1] // 2  # the phantom's rows: a vertebra or two are cut there
    upper = np.ascontiguousarray(labels.labels[:, :middle])
    geometry = replace(labels.geometry, size=upper.shape[::-1])
    half = Segmentation(upper, geometry)
    half = replace(half, partial=cut_structures(SagittalStack.of(Volume(half.labels, geometry)).slices))
    write_segmentation(half, tmp_path / f"half{ending}")
    assert main(["measure", str(tmp_path / f"half{ending}"), "--output", str(tmp_path / "m.csv")]) == 0
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        flagged = {row["level"] for row in csv.DictReader(file) if "volume_mm3: partial" in row["quality"]}
    assert flagged == {row.structure.level for row in half.table() if row.partial} != set()


@pytest.mark.parametrize(
    "dtype, words", [(np.uint8, "is this the image itself?"), (np.int16, "Give a label map, not an image")]
)
def test_an_image_given_for_a_segmentation_is_told_in_one_line(tmp_path, capsys, dtype, words):
    voxels = np.random.default_rng(0).integers(0, 256, (3, 40, 40)) + (dtype == np.int16) * 300
    geometry = Geometry((40, 40, 3), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
    sitk.WriteImage(Volume(voxels.astype(dtype), geometry).to_sitk(), str(tmp_path / "image.nii.gz"))
    assert main(["measure", str(tmp_path / "image.nii.gz"), "--output", str(tmp_path / "m.csv")]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error INPUT_LABELS: ") and words in told and len(told) < 300


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_measure_says_that_there_is_nothing_to_measure(tmp_path, capsys, ending):
    grid = geometry()
    write_segmentation(Segmentation(np.zeros(grid.size[::-1], np.uint8), grid), tmp_path / "empty.nii.gz")
    table = tmp_path / f"m{ending}"
    assert main(["measure", str(tmp_path / "empty.nii.gz"), "--output", str(table)]) == 0
    assert "NOTHING_FOUND" in capsys.readouterr().out and table.exists()


def test_measure_writes_all_or_nothing(phantom, tmp_path, capsys):
    image, labels = phantom
    table = tmp_path / "m.json"
    command = ["measure", str(labels), "--output", str(table), "--image", str(image), "--picture"]
    assert main([*command, str(tmp_path / "m.jpg")]) == 2
    assert "OUTPUT_FORMAT" in capsys.readouterr().err and not table.exists()


def test_a_series_is_chosen_from_a_folder_only(run, image, tmp_path):
    status, _, err = run(image, "--output", tmp_path / "b.nrrd", "--series", "4")
    assert status == 2 and "a series can only be chosen from a folder" in err and not (tmp_path / "b.nrrd").exists()


@pytest.mark.parametrize(("options", "told"), [
    (["many", "--contrast", "t1"], "are drawn at random"), (["many", "--slice-thickness", "1"], "are drawn at random"),
    (["many", "--count", "0"], "--count is 0"), (["many.nii.gz"], "Give a folder"),
])  # fmt: skip
def test_many_phantoms_draw_their_own_options(tmp_path, capsys, options, told):
    name, *options = options
    assert main(["phantom", str(tmp_path / name), "--count", "2", *options]) == 2
    assert told in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_lowest_level_is_refused_where_none_is_named(image, tmp_path, capsys):
    command = ["segment", str(image), "--output", str(tmp_path / "b.nrrd"), "--classes", "--lowest", "L5"]
    assert main(command) == 2
    assert "three classes have no levels" in capsys.readouterr().err and not (tmp_path / "b.nrrd").exists()


def test_a_seed_that_is_none_is_refused(tmp_path, capsys):
    assert main(["phantom", str(tmp_path / "many"), "--count", "1", "--seed", "-5"]) == 2
    assert "USAGE" in capsys.readouterr().err and not (tmp_path / "many").exists()


def test_label_maps_whose_axes_slicer_turned_are_measured_and_compared(phantom, tmp_path, capsys):
    image, labels = phantom
    turned = tmp_path / "slicer.nii.gz"
    sitk.WriteImage(sitk.Flip(sitk.ReadImage(str(labels)), (False, False, True)), str(turned))
    tables = []
    for one in (labels, turned):
        tables.append(tmp_path / f"{one.name}.csv")
        picture = tmp_path / "m.png"
        command = ["measure", str(one), "--output", str(tables[-1]), "--image", str(image), "--picture", str(picture)]
        assert main(command) == 0
    assert tables[0].read_text() == tables[1].read_text()
    capsys.readouterr()
    assert main(["evaluate", str(turned), str(labels), "--json"]) == 0
    assert {one["dice"] for one in json.loads(capsys.readouterr().out)["structures"]} == {1.0}


def test_evaluate_reads_masks_of_spider(tmp_path, capsys):
    """Which tell no levels: the three classes are compared."""
    truth = block_spine()[:, :60]
    spider = np.zeros_like(truth)
    for value in np.unique(truth):
        kind = CLASS_OF[value]
        spider[truth == value] = {0: 0, 1: value % 20 + 1, 2: 201 + value % 20, 3: 100}[int(kind)]
    for name, labels in (("ours", truth), ("spider", spider)):
        sitk.WriteImage(Volume(labels, geometry(size=labels.shape[::-1])).to_sitk(), str(tmp_path / f"{name}.mha"))
    assert main(["evaluate", str(tmp_path / "ours.mha"), str(tmp_path / "spider.mha"), "--json"]) == 0
    found = {one["name"]: one["dice"] for one in json.loads(capsys.readouterr().out)["structures"]}
    assert found == {"Vertebrae": 1.0, "Intervertebral discs": 1.0, "Spinal canal": 1.0}
    discs = Volume(np.where(spider > 200, spider, 0), geometry(size=spider.shape[::-1]))
    sitk.WriteImage(discs.to_sitk(), str(tmp_path / "discs.mha"))
    assert main(["evaluate", str(tmp_path / "ours.mha"), str(tmp_path / "discs.mha"), "--json"]) == 0
    found = {one["name"]: one["dice"] for one in json.loads(capsys.readouterr().out)["structures"]}
    assert found["Intervertebral discs"] == 1.0 and found["Vertebrae"] == 0.0, "alone they are discs, too"
    assert main(["evaluate", str(tmp_path / "ours.mha"), str(tmp_path / "spider.mha")]) == 0
    assert "note SPIDER: spider.mha: This label map has SPIDER's values" in " ".join(capsys.readouterr().out.split())


def test_masks_of_spineps_are_not_taken_for_spider_s(tmp_path, capsys):
    """Its discs are 101-, its endplates 201-, and it has no canal; SPIDER's cut vertebrae are 101-, its discs 201-."""
    labels = np.zeros((4, 40, 30), np.uint8)
    for number, row in enumerate((2, 14, 26), 1):
        labels[1:3, row : row + 6, 5:20] = number
        labels[1:3, row + 6 : row + 8, 5:20] = 200 + number
        labels[1:3, row + 8 : row + 11, 5:20] = 100 + number
    for name in ("a_image.mha", "a_labels.mha"):
        sitk.WriteImage(Volume(labels, geometry(size=(30, 40, 4))).to_sitk(), str(tmp_path / name))
    assert main(["evaluate", str(tmp_path / "a_labels.mha"), str(tmp_path / "a_labels.mha")]) == 3
    assert "error INPUT_LABELS" in capsys.readouterr().err
    assert main(["dataset", "check", str(tmp_path)]) == 3
    assert "SPINEPS" in " ".join(capsys.readouterr().out.split())


def test_tables_are_whole_in_a_pipe(phantom, capsys):
    assert main(["evaluate", str(phantom[1]), str(phantom[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["L3/L4", "disc", *["1.000"] * 4, *["0.000"] * 3] in [line.split() for line in lines]


def test_a_reader_that_has_seen_enough_of_a_table_is_no_failure(phantom, monkeypatch):
    """`saunet evaluate A B | true`: rich ends the process with status 1."""

    class ClosedPipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert main(["evaluate", str(phantom[1]), str(phantom[1])]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder in which a program runs")
def test_a_current_folder_that_was_removed_is_told(phantom, monkeypatch, tmp_path, capsys):
    """oneMKL ended the process with a line of its own, even where every path is absolute."""
    import run

    monkeypatch.setattr(run, "install", lambda extra: pytest.fail("before the installation"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["segment", str(phantom[0]), "--output", str(tmp_path / "o.nrrd")]) == 2
    assert "error USAGE: the current folder cannot be used" in capsys.readouterr().err
    assert run.segment([str(phantom[0])]) == 2
    assert "Run it in another folder" in capsys.readouterr().err


def test_the_folder_for_many_results_may_have_a_dot(run, image, tmp_path):
    shutil.copyfile(image, image.with_name("c.nii.gz"))
    status, _, err = run(image, image.with_name("c.nii.gz"), "--output", tmp_path / "res.2026-11", "--quiet")
    assert (status, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "res.2026-11").iterdir()) == ["a.nii.gz", "c.nii.gz"]


def test_relabel_moves_every_name(phantom, tmp_path, capsys):
    """By one level upwards; the sacrum stays, and its disc with it."""
    labels = phantom[1]
    before = read_segmentation(labels).labels
    assert main(["relabel", str(labels), "--set", "L4/L5=L3/L4", "--output", str(tmp_path / "r.seg.nrrd")]) == 0
    vertebrae = ["T8", "T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5"]
    discs = [f"{upper}/{lower}" for upper, lower in itertools.pairwise(vertebrae)]
    moved = np.arange(256)
    for new, old in (*itertools.pairwise(vertebrae), *itertools.pairwise(discs)):
        moved[value_of(old)] = value_of(new)
    assert {value_of(level) for level in vertebrae[1:]} <= set(np.unique(before).tolist())
    assert np.array_equal(read_segmentation(tmp_path / "r.seg.nrrd").labels, moved[before])
    said = " ".join(capsys.readouterr().err.split())
    assert "existing tables, pictures and measurements keep the old names" in said and "colours" not in said
    assert "note TRANSITIONAL: With these names, four lumbar vertebrae lie above the sacrum. Check" in said
    for name, told in (("s.seg.nrrd", False), ("s.nii.gz", True)):
        again = ["relabel", str(tmp_path / "r.seg.nrrd"), "--set", "L4=L4", "--output", str(tmp_path / name)]
        assert main(again) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert ("a label map does not store colours, status and tags" in said) == told
    shutil.copyfile(tmp_path / "r.seg.nrrd", tmp_path / "r.nrrd")
    assert main(["relabel", str(tmp_path / "r.nrrd"), "--set", "L4=L4", "--output", str(tmp_path / "s.mha")]) == 0
    assert "colours, status and tags" in capsys.readouterr().err
    assert main(["relabel", str(labels), "--set", "nonsense"]) == 2
    assert main(["relabel", str(labels), "--set", "77=L3/L4"]) == 2
    capsys.readouterr()
    assert main(["relabel", str(labels), "--set", "L4=L5", "--set", "L4=L3"]) == 2
    assert "L4 vertebra was given two levels, L5 and L3" in capsys.readouterr().err
    assert np.array_equal(read_segmentation(labels).labels, before)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sub-01.T2.nii.gz", "sub-01.T2"),
        ("1.2.840.113", "1.2.840.113"),
        ("a.NRRD", "a"),
        ("a.dcm", "a"),
        ("IM01", "IM01"),
    ],
)
def test_two_images_whose_names_begin_alike_have_results_of_their_own(monkeypatch, tmp_path, name, stem):
    import run

    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "install", lambda extra: None)
    monkeypatch.setattr(run, "saunet", lambda *arguments: started.append(arguments) or 0)
    assert run.segment([name]) == 0
    assert f"{stem}_spine.seg.nrrd" in [Path(one).name for one in started[0]]


@pytest.mark.parametrize("arguments", [[""], ["a.nii.gz", "--device", ""]])
def test_an_empty_argument_is_no_folder(monkeypatch, tmp_path, capsys, arguments):
    """An unset variable in quotes: the current folder, whoever's image lies there, was segmented."""
    import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "install", lambda extra: pytest.fail("nothing is made for it"))
    assert run.segment(arguments) == 2
    assert "error USAGE" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_run_py_runs_no_files_in_the_current_folder(monkeypatch, tmp_path):
    import run

    monkeypatch.setattr(run, "PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "argparse.py").write_text("raise SystemExit(7)")
    assert run.saunet("--version") == 0


@pytest.mark.parametrize(
    ("arguments", "status", "stream"), [([], 2, "err"), (["learn"], 2, "err"), (["--help"], 0, "out")]
)
def test_run_py_says_how_it_is_used(monkeypatch, capsys, arguments, status, stream):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert ended.value.code == status and "usage: python3 run.py" in getattr(capsys.readouterr(), stream)


@pytest.mark.skipif(sys.platform == "win32", reason="links")
@pytest.mark.parametrize("spoilt", ["python is gone", "stamp"])
def test_an_environment_whose_python_is_gone_is_made_anew(monkeypatch, tmp_path, spoilt):
    """As after an upgrade of the system's Python."""
    import run

    environment = tmp_path / ".venv"
    python = environment / "bin" / "python"
    python.parent.mkdir(parents=True)
    (environment / "installed.txt").write_bytes(b"\xff\xfe")
    if spoilt == "python is gone":
        python.symlink_to("/nowhere/python3.11")
        (python.parent / "python3").symlink_to("/nowhere/python3.11")
    else:
        python.symlink_to(sys.executable)
    called = []

    def called_in(command, cwd=None, **_):
        called.append(command)
        assert cwd == ROOT, "a pip.py in the user's current folder would be run"
        return SimpleNamespace(returncode="--version" in command)

    monkeypatch.setattr(run, "ENVIRONMENT", environment)
    monkeypatch.setattr(run, "PYTHON", python)
    monkeypatch.setattr(run.subprocess, "run", called_in)
    run.install("")
    assert python.exists() and called[0][:4] == [str(python), "-m", "pip", "--version"]
    assert len((environment / "installed.txt").read_text().splitlines()[0]) == 64


def test_an_environment_that_cannot_be_made_is_an_error_of_one_line(monkeypatch, tmp_path):
    (tmp_path / ".venv").write_text("a file")
    shutil.copy(ROOT / "run.py", tmp_path)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "run.py", "segment", "a.nii.gz"],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 1 and "error SETUP" in done.stderr and "Traceback" not in done.stderr
    assert "remove it" in done.stderr and (tmp_path / ".venv").read_text() == "a file"


def test_a_folder_of_models_that_is_a_file_is_told(monkeypatch, tmp_path, tiny_model, capsys):
    (tmp_path / "own").write_text("a file")
    monkeypatch.setenv("SAUNET_MODELS", str(tmp_path / "own"))
    assert main(["models", "add", str(tiny_model)]) == 2
    assert "own is not a folder" in capsys.readouterr().err


def test_an_old_python_is_told_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    monkeypatch.setattr(sys, "argv", ["run.py", "segment"])
    with pytest.raises(SystemExit, match=r"error SETUP: this is Python 3\.9\.18\. Run it with Python 3\.11"):
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")


@pytest.mark.parametrize(("command", "newest"), [("segment", (3, 15)), ("test", (3, 14))])
def test_a_python_that_is_too_new_is_told_before_anything_is_made(monkeypatch, tmp_path, command, newest):
    shutil.copy(ROOT / "run.py", tmp_path)
    monkeypatch.setattr(sys, "version_info", (*newest, 0))
    monkeypatch.setattr(sys, "argv", ["run.py", command])
    with pytest.raises(SystemExit, match="some of the pinned packages are not made"):
        runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("system", "machine", "letters", "told"),
    [
        ("darwin", "x86_64", 9, "Macs with Intel processors"),
        ("darwin", "arm64", 200, "Check the connection"),
        ("win32", "AMD64", 74, "too long for Windows (74 letters)"),
        ("win32", "AMD64", 73, "Check the connection"),
        ("linux", "x86_64", 200, "Check the connection"),
    ],
)
def test_packages_that_cannot_be_installed_there_are_told(monkeypatch, system, machine, letters, told):
    import run

    monkeypatch.setattr(run, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(run, "platform", SimpleNamespace(machine=lambda: machine))
    monkeypatch.setattr(run, "ENVIRONMENT", "x" * letters)
    assert told in run.why_not_installed()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_run_py_ends_the_command_and_waits_for_it(tmp_path, number):
    child = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(6))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    wrapper = f"import os, run, sys; sys.exit(run.run([sys.executable, '-c', {child!r}], cwd=None, env=None))"
    with subprocess.Popen([sys.executable, "-c", wrapper], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(timeout=30) == 6


def test_an_ignored_signal_stays_ignored(monkeypatch):
    """As nohup has it."""
    import run

    called = []
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", lambda *_: called.append(_))
    assert run.run([sys.executable, "-c", "raise SystemExit(3)"], cwd=ROOT, env=dict(os.environ)) == 3
    assert not called


@pytest.mark.parametrize(("folder", "editable"), [("project", True), ("Иван", False)])
def test_a_folder_in_other_letters_gets_no_editable_install(tmp_path, monkeypatch, folder, editable):
    """Python before 3.13 does not start on Windows with what such an install writes."""
    import run

    root = tmp_path / folder
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    for name in ("constraints.txt", "pyproject.toml"):
        (root / name).touch()
    for name, value in {"ROOT": root, "ENVIRONMENT": root / ".venv", "PYTHON": python}.items():
        monkeypatch.setattr(run, name, value)
    commands = []
    monkeypatch.setattr(
        run.subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace(returncode=0)
    )
    run.install("dev")
    assert commands[-1][-1] == ".[dev]" and ("-e" in commands[-1]) == editable


def test_every_stage_has_a_name():
    assert list(STAGES) == list(SHARES)
    assert done("load", 0) == 0 and done("write", 1) == pytest.approx(1)


def test_an_unknown_option_leads_to_the_help_of_its_command(capsys):
    assert main(["batch", "archive", "--output", "out", "--everything"]) == 2
    assert capsys.readouterr().err == ("error USAGE: unrecognized arguments: --everything. See saunet batch --help.\n")
    assert main(["--everything", "models", "list"]) == 2 and "See saunet --help." in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signal")
def test_a_terminal_that_is_closed_cancels_unless_that_is_ignored(capsys):
    def run(options):
        signal.raise_signal(signal.SIGHUP)

    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert run_command(tool(run, None), []) == 6
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert run_command(tool(run, None), []) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("heard_by_itself", [False, True])
def test_a_second_signal_does_not_change_the_exit_status(second, heard_by_itself):
    code = f"""
import atexit, os, signal, sys, time
from SAUNetLib.command import run_command, tool
from SAUNetLib.errors import CancelledError
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
atexit.register(lambda: (os.kill(os.getpid(), {int(second)}), time.sleep(0.2)))
def run(options):
    if {heard_by_itself}:  # as a training does, which ends at its next batch
        raise CancelledError
    try:
        os.kill(os.getpid(), signal.SIGINT), time.sleep(5)
    finally:
        os.kill(os.getpid(), {int(second)}), time.sleep(0.2)
sys.exit(run_command(tool(run, None), []))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 6 and ended.stderr.startswith("error CANCELLED") and ended.stderr.count("\n") == 1
