"""`saunet batch`: an archive on real Dask workers; what is done stays done, whatever dies or is refused meanwhile."""

import csv
import errno
import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from socket import gethostname
from threading import Timer
from types import SimpleNamespace

import dask
import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK as sitk
from builders import picture, write_dicom_series
from conftest import ROOT
from distributed import LocalCluster, Security, get_worker
from distributed.client import FutureCancelledError
from filelock import FileLock

import SAUNetLib
from SAUNetLib import batch, batch_cluster, batch_journal, batch_source
from SAUNetLib.batch import find_sources
from SAUNetLib.batch_cluster import WorkerPool, WorkersDied, scheduler_kept
from SAUNetLib.batch_journal import (
    FIGURES,
    JOURNAL,
    LOCK,
    RESULTS,
    SUMMARY,
    Batch,
    Outcome,
    Source,
    SourceRecord,
    _remove_left,
    read_batch,
)
from SAUNetLib.batch_source import BatchTask
from SAUNetLib.cli import _endings, main
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats import atomic
from SAUNetLib.formats.atomic import write_beside
from SAUNetLib.formats.segmentations import read_segmentation
from SAUNetLib.formats.volumes import read_volume
from SAUNetLib.measurements import Measure, Measurements, StructureMeasures, write_measurements


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and a worker in this process: what is replaced here is replaced there."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as one:
        yield one


@pytest.fixture
def archive(tmp_path):
    """Two patients: a DICOM series, two NIfTI images, what is no image, and what is none of ours."""
    folder = tmp_path / "archive"
    (folder / "p2" / ".cache").mkdir(parents=True)
    image = picture()
    write_dicom_series(folder / "p1" / "mr", replace(image, voxels=(1000 * (image.voxels + 9)).astype(np.int16)))
    for place in ("p2/a.nii.gz", "p2/A.mha", "p2/.cache/c.nii.gz"):
        sitk.WriteImage(picture().to_sitk(), str(folder / place))
    (folder / "p1" / "torn.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    (folder / "p1" / "notes.txt").write_text("nothing")
    return folder


@pytest.fixture
def run(archive, tmp_path, tiny_model, cluster, capsys):
    """`saunet batch` on the cluster: exit status, stdout, stderr, and the rows of the summary by place."""

    def call(*more):
        scheduler = [] if "--workers" in more else ["--scheduler", cluster.scheduler_address]
        command = ["batch", str(archive), "--output", str(tmp_path / "out"), "--model", str(tiny_model), *scheduler]
        status = main([*command, "--device", "cpu", *more])
        out, err = capsys.readouterr()
        return status, out, err, rows(tmp_path / "out")

    return call


@pytest.fixture
def fast(monkeypatch):
    """Images are read, and their results are empty files."""

    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", write_empty)


def write_empty(image, output, engine, **beside):
    """`segment_file`, as `fast` has it."""
    read_volume(image)
    for path in (output, *beside.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return SimpleNamespace(warnings=(), confidence={})


def out_of_memory(*rest, **more):
    raise MemoryError


def result_files(output: Path) -> set[str]:
    """What lies below the output folder, but for the files of the batch itself, copies, and a trial still under way."""
    files = [path for path in output.rglob("*") if not atomic.is_temporary(path.name, RESULTS) and path.is_file()]
    names = {path.relative_to(output).as_posix() for path in files if ".edited-" not in path.name}
    return names - {JOURNAL, SUMMARY, LOCK, FIGURES}


def rows(output: Path) -> dict[str, dict[str, str]]:
    with open(output / SUMMARY, newline="", encoding="utf-8-sig") as file:
        return {row["place"]: row for row in csv.DictReader(file)}


def lines(output: Path) -> list[dict]:
    """The journal's records."""
    found = [json.loads(line) for line in (output / JOURNAL).read_text().splitlines() if line]
    return [one for one in found if "place" in one]


def forget(output: Path, place: str) -> None:
    """Take a source's lines out of the journal."""
    whole = (output / JOURNAL).read_text().splitlines(keepends=True)
    (output / JOURNAL).write_text("".join(line for line in whole if f'"place": "{place}"' not in line))
    assert place not in read_batch(output).records


def test_a_directory_of_a_cd_is_no_image(tmp_path):
    write_dicom_series(tmp_path / "cd" / "IMAGES", picture())
    directory = next((tmp_path / "cd" / "IMAGES").iterdir()).read_bytes()
    (tmp_path / "cd" / "DICOMDIR").write_bytes(directory)
    found = [source.place for source in find_sources(tmp_path / "cd", tmp_path / "out")]
    assert found == ["IMAGES"]


def test_files_left_out_that_may_hold_images_are_named_first():
    counts = {".png": 3, ".jpg": 2, ".txt": 2, ".zip": 1, "": 1}
    assert _endings(counts) == "1 .zip, 3 .png, 2 .jpg, ..."
    assert _endings({".txt": 1}) == "1 .txt" and _endings({"": 2}) == "2 without ending"


def test_every_series_gets_its_results_and_a_row(run, tmp_path):
    status, out, err, told = run()
    assert (
        status == 0
        and not err
        and out.splitlines()
        == [
            "4 sources",
            "3 segmented, 1 refused, 0 failed",
            "1 file of another kind was left out (1 .txt)",
            str(tmp_path / "out" / SUMMARY),
        ]
    )
    assert {place: row["status"] for place, row in told.items()} == {
        "p1/mr": "segmented", "p1/torn.nrrd": "refused", "p2/A.mha": "segmented", "p2/a.nii.gz": "segmented",
    }  # fmt: skip
    assert told["p1/torn.nrrd"]["code"] == "INPUT_UNREADABLE" and told["p1/mr"]["series"] == "series 4 (T2 sag)"
    assert told["p2/a.nii.gz"]["output"] == "p2/a.nii.gz.nii.gz"
    for row in told.values():
        if row["output"]:
            label_map = tmp_path / "out" / row["output"]
            assert read_segmentation(label_map).labels.shape == picture().voxels.shape
            stem = label_map.name.removesuffix(".nii.gz")
            beside = {path.name.removeprefix(stem) for path in label_map.parent.glob(f"{stem}.*")}
            assert {".nii.gz", ".csv", ".json", ".png"} <= beside
    assert '"p2/A.mha.nii.gz"' in (tmp_path / "out" / FIGURES).read_text(encoding="utf-8")


def test_the_page_on_batches_explains_every_column_of_the_summary(tmp_path):
    batch_journal.write_summary(batch_journal.Batch(), tmp_path)
    columns = (tmp_path / SUMMARY).read_text(encoding="utf-8-sig").strip().replace('"', "").split(",")
    page = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8")
    assert len(columns) > 10 and [name for name in columns if f"`{name}`" not in page] == []


def test_the_figures_of_all_results_are_in_one_table(run, archive, tmp_path, monkeypatch):
    measures = {"height_middle_mm": Measure(25.5), "slip_mm": Measure(-1.25, ("estimated",)), "depth_mm": Measure(None)}
    found = Measurements((StructureMeasures(44, "L4", "L4 vertebra", "vertebra", measures),))

    def segment(image, output, engine, **beside):
        write_empty(image, output, engine, **beside)
        write_measurements(found, beside["measurements"])
        return SimpleNamespace(warnings=(), confidence={44: 0.5, 45: 0.75})

    def table(path):
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))

    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", segment)
    shutil.copy(archive / "p2" / "A.mha", archive / "=1.mha")
    status, _, _, told = run()
    assert status == 0 and (told["'=1.mha"]["confidence"], told["p1/torn.nrrd"]["confidence"]) == ("0.50", "")
    write_measurements(found, tmp_path / "one.csv")
    (one,) = table(tmp_path / "one.csv")
    outputs = [row["output"] for row in told.values() if row["output"]]
    assert outputs[0] == "'=1.mha.nii.gz" and len(outputs) == 4
    assert table(tmp_path / "out" / FIGURES) == [{"output": output, **one} for output in outputs]
    for text in ("", "[]", "[" * 100_000, '{"note": 1}', '{"note": "", "warnings": [], "structures": [[]]}'):
        (tmp_path / "out" / "p2" / "A.mha.json").write_text(text)
        assert run()[0] == 0
        kept = [row["output"] for row in table(tmp_path / "out" / FIGURES)]
        assert kept == [output for output in outputs if output != "p2/A.mha.nii.gz"]


def test_the_summary_names_series_and_study_as_the_files_do(run, fast, archive, tmp_path, monkeypatch):
    slice_ = pydicom.dcmread(next((archive / "p1" / "mr").iterdir()))
    uids = (str(slice_.SeriesInstanceUID), str(slice_.StudyInstanceUID))

    def told():
        row = run()[3]["p1/mr"]
        return row["series_uid"], row["study_uid"]

    assert told() == uids and run()[3]["p2/A.mha"]["series_uid"] == ""
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "is_done", lambda *rest: False)
        patch.setattr(batch, "segment_source", lambda source, task: [Outcome("failed", code="MEMORY")])
        assert told() == uids
    journal = tmp_path / "out" / JOURNAL  # of a version that did not note them
    journal.write_text(re.sub(r', "(series|study)_uid": "[^"]*"', "", journal.read_text()))
    assert "uid" not in journal.read_text() and len(read_batch(tmp_path / "out").records) == 4


def test_what_is_done_is_not_done_again(run, archive, tmp_path):
    run()
    before = lines(tmp_path / "out")
    assert run()[0] == 0 and lines(tmp_path / "out") == before
    sitk.WriteImage(picture((5, 64, 48)).to_sitk(), str(archive / "p2" / "A.mha"))
    result = tmp_path / "out" / rows(tmp_path / "out")["p1/mr"]["output"]
    result.with_name(result.name.replace(".nii.gz", ".png")).unlink()
    assert run()[0] == 0
    assert {one["place"] for one in lines(tmp_path / "out")[len(before) :]} == {"p1/mr", "p2/A.mha"}
    assert len(rows(tmp_path / "out")) == 4


def test_where_nothing_is_left_neither_pytorch_nor_workers_are_started(run, fast, monkeypatch):
    run()
    for name in ("SAUNetLib.engine.choose_device", "SAUNetLib.model.load_model", "SAUNetLib.batch.connected"):
        monkeypatch.setattr(name, lambda *_, name=name: pytest.fail(f"{name} takes seconds"))
    status, out, _, told = run("--workers", "1")
    assert status == 0 and "3 segmented, 1 refused" in out and len(told) == 4


def test_what_failed_is_told_and_tried_again(run, tmp_path, monkeypatch):
    def full(*rest, **more):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", full)
        status, _, err, told = run()
    assert status == 5 and "4 failed with MEMORY" in err and told["p1/mr"]["status"] == "failed"
    status, _, err, told = run()
    assert status == 0 and not err and told["p1/mr"]["status"] == "segmented"


def test_another_model_begins_anew_and_workers_must_have_the_same(run, tmp_path, tiny_model, monkeypatch):
    run()
    monkeypatch.setattr(batch_source, "_engine", batch_source._engine.__wrapped__)
    done = len(lines(tmp_path / "out"))
    source = Source("p2/A.mha", False, "x")
    archive, output = tmp_path / "archive", tmp_path / "other"
    (found,) = batch_source.segment_source(source, BatchTask(archive, output, str(tiny_model), "0" * 64, "cpu"))
    assert (found.status, found.code) == ("failed", "MODEL_MISMATCH") and not output.exists()
    known = read_batch(tmp_path / "out")
    record = known.records["p2/A.mha"]
    same = Source("p2/A.mha", False, record.stamp)
    assert known.is_done(same, record.model, tmp_path / "out")
    assert not known.is_done(same, "0" * 64, tmp_path / "out") and len(lines(tmp_path / "out")) == done


def test_a_journal_that_was_cut_short_loses_one_line(run, fast, tmp_path):
    run()
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    assert len(read_batch(tmp_path / "out").records) == 3
    run()
    assert len(read_batch(tmp_path / "out").records) == 4


def test_an_editor_that_puts_a_mark_ahead_of_the_journal_spoils_nothing(run, fast, tmp_path):
    run()
    journal = tmp_path / "out" / JOURNAL
    journal.write_text(journal.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert len(read_batch(tmp_path / "out").records) == 4
    assert run()[0] == 0


def test_sources_are_found_in_order_and_results_are_none(archive):
    sitk.WriteImage(picture().to_sitk(), str(archive / "p1" / "mr" / "beside.nrrd"))
    found = list(find_sources(archive, archive / "p2"))
    assert [(one.place, one.dicom) for one in found] == [
        ("p1/torn.nrrd", False), ("p1/mr/beside.nrrd", False), ("p1/mr", True),
    ]  # fmt: skip
    assert list(find_sources(archive / "p1" / "mr", archive))[-1].place == "."
    before = found[-1].stamp
    first = next(path for path in (archive / "p1" / "mr").iterdir() if path.suffix != ".nrrd")
    os.utime(first, ns=(0, 0))
    assert list(find_sources(archive, archive / "p2"))[-1].stamp != before
    assert Batch().counts() == {"segmented": 0, "refused": 0, "failed": 0}


def test_results_of_an_earlier_batch_are_no_images(run, fast, archive, tmp_path):
    """As where everything is to be done again into a new folder."""
    before = run()[3]
    (tmp_path / "out").rename(archive / "p2" / "results")
    _, out, _, told = run()
    assert "\nResults of other batches were left out: p2/results\n" in out and told.keys() == before.keys()
    places = {source.place for source in find_sources(archive / "p2" / "results", tmp_path / "out")}
    assert places == {"p2/A.mha.nii.gz", "p2/a.nii.gz.nii.gz", f"{before['p1/mr']['output']}"}, (
        "unless they are asked for"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_other_voxels_beside_the_same_header_are_another_image(archive, ending):
    def stamp():
        return next(one.stamp for one in find_sources(archive, archive / "p1") if one.place == f"a{ending}")

    sitk.WriteImage(picture().to_sitk(), str(archive / f"a{ending}"))
    before, (voxels,) = stamp(), archive.glob("a.*raw*")
    assert stamp() == before
    os.utime(voxels, ns=(0, 0))
    changed = stamp()
    voxels.unlink()
    assert len({before, changed, stamp()}) == 3
    (archive / f"a{ending}").write_bytes(b"NRRD0004\n\xff")
    assert stamp()
    (archive / f"a{ending}").unlink()
    os.mkfifo(archive / f"a{ending}")
    assert stamp(), "and does not wait"


def test_a_folder_that_cannot_be_read_is_told(run, fast, archive, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("p1"):
            raise PermissionError(errno.EACCES, "closed", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    status, _, _, told = run()
    assert status == 3 and (told["p1"]["status"], told["p1"]["code"]) == ("failed", "INPUT_UNREADABLE")
    monkeypatch.undo()
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", write_empty)
    status, _, _, told = run()
    assert status == 0 and "p1" not in told and told["p1/mr"]["status"] == "segmented"
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    status, out, _, closed = run()
    assert (
        status == 3
        and closed.pop("p1")["status"] == "failed"
        and closed == told
        and "no longer in the archive" not in out
    )


def test_images_that_arrived_empty_are_told(run, archive):
    (archive / "p3").mkdir()
    (archive / "p3" / "1.dcm").touch()
    assert run()[3]["p3"]["code"] == "INPUT_UNREADABLE"


def test_nothing_is_written_outside_of_the_output(run, archive, tmp_path):
    """A series' number is whatever its file says."""
    shutil.rmtree(archive / "p1")
    image = picture()
    voxels = (1000 * (image.voxels + 9)).astype(np.int16)
    write_dicom_series(archive / "p1" / "mr", replace(image, voxels=voxels), number=123456789)
    for path in (archive / "p1" / "mr").iterdir():
        path.write_bytes(path.read_bytes().replace(b"123456789 ", b"../../esc "))
    before = set(tmp_path.rglob("*")) - set((tmp_path / "out").rglob("*"))
    told = run()[3]
    assert told["p1/mr"]["output"].startswith("p1/mr/series-")
    assert set(tmp_path.rglob("*")) - set((tmp_path / "out").rglob("*")) - {tmp_path / "out"} == before


def test_slices_of_one_series_in_two_folders_are_noted(run, fast, archive):
    shutil.copytree(archive / "p1" / "mr", archive / "p1" / "mr2")
    told = run()[3]
    assert all("SERIES_SPLIT" in told[place]["notices"].split() for place in ("p1/mr", "p1/mr2"))
    assert not any("SERIES_SPLIT" in row["notices"] for place, row in told.items() if place.startswith("p2"))
    shutil.rmtree(archive / "p1" / "mr2")
    (archive / "p1" / "mr3").mkdir()
    slices = sorted((archive / "p1" / "mr").iterdir())
    for path in (slices[0], slices[2], slices[3]):  # with a gap: refused, and a part all the same
        path.rename(archive / "p1" / "mr3" / path.name)
    _, out, _, told = run()
    assert told["p1/mr3"]["code"] == "INPUT_SLICES" and "1 series lie in several folders" in out
    assert all("SERIES_SPLIT" in told[place]["notices"].split() for place in ("p1/mr", "p1/mr3"))


def test_odd_names_and_namesakes_get_results_of_their_own(run, archive, tmp_path):
    source = archive / "p2" / "A.mha"
    for name in ("y.mha", "y.mha.nrrd", "batch.mha", f"{'n' * 240}.mha"):
        sitk.WriteImage(
            sitk.ReadImage(str(source)), str(archive / "image.nrrd" if name.endswith("nrrd") else archive / "i.mha")
        )
        (archive / ("image.nrrd" if name.endswith("nrrd") else "i.mha")).rename(archive / name)
    source.rename(os.fsdecode(os.fsencode(archive) + b"/M\xfcller.mha"))
    for name in (JOURNAL, SUMMARY, LOCK, FIGURES):
        shutil.copytree(archive / "p1" / "mr", archive / name)
    shutil.copytree(archive / "p1" / "mr", archive / SUMMARY.upper() / "mr")
    status, _, err, told = run()
    assert status == 0 and not err
    outputs = [row["output"] for row in told.values() if row["output"]]
    assert len(outputs) == len(set(outputs)) == 12
    assert not any(batch_journal.spelling(one.split("/")[0]) in (JOURNAL, SUMMARY, LOCK, FIGURES) for one in outputs)
    assert all((tmp_path / "out" / one).is_file() for one in outputs)
    assert "batch.mha" in told, "the summary is not its table"


def test_results_that_are_not_to_be_seen_are_no_results(run, tmp_path, monkeypatch):
    """As of a worker that has something else mounted there."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    whole = batch.segment_source
    monkeypatch.setattr(
        batch, "segment_source", lambda source, task: whole(source, replace(task, output=tmp_path / "elsewhere"))
    )
    status, _, err, told = run()
    assert status == 2 and "failed with OUTPUT_WRITE" in err and not told["p1/mr"]["output"]


@pytest.mark.parametrize("code", ["DEVICE", "INTERNAL"])
def test_what_ends_source_after_source_ends_the_run(run, monkeypatch, code):
    monkeypatch.setattr(batch, "GIVE_UP", 2)
    monkeypatch.setattr(batch, "segment_source", lambda source, task: [Outcome("failed", code=code, text="gone")])
    status, _, err, _ = run()
    assert status == 2 and f"2 sources in a row failed with {code} (gone)" in err


@pytest.mark.parametrize("first", ["refused", "segmented"])
def test_a_failure_of_ours_ends_the_run_until_an_image_was_segmented(run, fast, monkeypatch, first):
    """What is refused was not segmented; and in a next run what failed comes first."""
    whole = batch.segment_source

    def segment(source, task):
        if source.place != "p1/mr":
            return [Outcome("failed", code="INTERNAL", text="boom", exit_status=1)]
        return whole(source, task) if first == "segmented" else [Outcome("refused", code="INPUT_MODALITY")]

    monkeypatch.setattr(batch, "GIVE_UP", 2)
    monkeypatch.setattr(batch, "segment_source", segment)
    for _ in range(2):
        status, _, err, told = run()
        assert told["p1/mr"]["status"] == first
        assert (status, "in a row" in err) == ((2, True) if first == "refused" else (1, False)), err


def test_failures_with_an_image_between_them_are_not_in_a_row(monkeypatch):
    monkeypatch.setattr(batch, "GIVE_UP", 2)
    streak, failed = batch._FailureStreak(True), [Outcome("failed", code="DEVICE")]
    for outcomes in (failed, [Outcome("segmented")], failed):
        streak.note(outcomes)
    with pytest.raises(UsageError, match="2 sources in a row"):
        streak.note(failed)


def test_images_that_are_not_there_end_no_run_while_the_archive_is(run, monkeypatch):
    """As those whose paths are too long for Windows."""

    def absent(image, *rest, **more):
        raise InputError("INPUT_NOT_FOUND", "there is no file", "Check the path")

    monkeypatch.setattr(batch, "GIVE_UP", 2)
    monkeypatch.setattr(batch_source, "opens", lambda path: "mr" not in str(path) and "p2" not in str(path))
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", absent)
    status, _, err, told = run()
    assert status == 3 and "3 failed with INPUT_NOT_FOUND" in err and "in a row" not in err and len(told) == 4
    monkeypatch.setattr(batch_source, "_holds_anything", lambda folder: False)  # as where nothing is mounted
    assert "2 sources in a row failed with INPUT_NOT_FOUND" in run()[2]


def test_a_lost_file_is_opened_once_for_all_series_that_it_may_belong_to(archive, tmp_path, monkeypatch):
    for number in range(5, 9):
        write_dicom_series(archive / "p1" / "mr", picture(), number=number)
    lost = archive / "p1" / "mr" / "lost.dcm"
    lost.write_bytes(b"")
    opened, asked = batch_source.opens, []
    monkeypatch.setattr(batch_source, "opens", lambda path: asked.append(path) or opened(path))
    source = next(one for one in find_sources(archive, tmp_path / "out") if one.dicom)
    task = BatchTask(archive, tmp_path / "out", "none", "", "cpu")
    outcomes = batch_source.segment_source(source, task)
    assert [outcome.code for outcome in outcomes] == ["INPUT_UNREADABLE"] * 5 and asked.count(lost) == 1
    assert {outcome.status for outcome in outcomes} == {"refused"}
    monkeypatch.setattr(batch_source, "opens", lambda path: path != lost)
    assert {outcome.status for outcome in batch_source.segment_source(source, task)} == {"failed"}


def test_results_in_a_folder_that_the_command_may_not_enter_end_no_run(run, fast, tmp_path, monkeypatch):
    """As those of a worker of another user, whose umask is 077."""
    before, looked = run()[3], os.stat

    def refuse(path, *rest, **more):
        closed = str(path).startswith(str(tmp_path / "out" / "p1" / "mr"))
        if closed and threading.current_thread().name.startswith(("MainThread", "walk")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, *rest, **more)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "stat", refuse)
    status, _, err, told = run()
    assert status == 2 and "1 failed with OUTPUT_WRITE on" in err
    assert "cannot access the worker's result (Permission denied)" in told.pop("p1/mr")["text"]
    assert told == {place: row for place, row in before.items() if place != "p1/mr"}


# --- workers that are no good, come late or are gone -----------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """No waiting for workers."""
    for name, seconds in (("LOOK_S", 0.1), ("OTHERS_S", 0.5), ("TELL_S", 0.3), ("NO_WORKER_S", 1.5), ("ANSWER_S", 1)):
        monkeypatch.setattr(batch_cluster, name, seconds)


@pytest.fixture
def crowd(archive, tmp_path, tiny_model, quick, capsys):
    """`saunet batch` on a cluster of some workers in this process: exit status and stderr; and the cluster."""

    @contextmanager
    def call(workers):
        with LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
        ) as one:

            def go():
                command = ["batch", str(archive), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
                status = main([*command, "--device", "cpu", "--scheduler", one.scheduler_address])
                return status, capsys.readouterr().err

            yield one, go

    return call


USED: list[int] = []
"""Workers of this process, by the sources that they had."""


def noted_source(source, task):
    """`segment_source`; not inside the test, whose list would be pickled."""
    USED.append(get_worker().name)
    return batch_source.segment_source(source, task)


def test_a_worker_that_is_no_good_gets_no_work(crowd, fast, tmp_path, monkeypatch):
    checked = batch_source._check_output

    def check(output):
        if get_worker().name == 0:
            raise UsageError("OUTPUT_WRITE", f"{output} is not there", "Mount it")
        checked(output)

    monkeypatch.setattr(batch_source, "_check_output", check)
    monkeypatch.setattr(batch, "segment_source", noted_source)
    USED.clear()
    with crowd(2) as (_, go):
        status, err = go()
    assert status == 0 and USED == [1] * 4, err
    assert err.count("\n") == 1 and gethostname() in err and "is not there. Mount it. This worker is not used." in err
    assert not list((tmp_path / "out").glob(".*.json")), "the trial leaves nothing"


def lost_source(source, task):
    """`segment_source`, where the first worker loses its disk with its first source."""
    if get_worker().name == 0:
        USED.append(0)
        return [Outcome("failed", code="INPUT_NOT_FOUND", text="gone", exit_status=3)]
    return batch_source.segment_source(source, task)


def test_a_worker_that_loses_its_disk_gets_no_more(crowd, fast, archive, monkeypatch):
    checked = batch_source._check_output

    def check(output):
        if get_worker().name == 0 and USED:
            raise UsageError("OUTPUT_WRITE", f"{output} is gone", "Mount it")
        checked(output)

    for number in range(20):
        shutil.copy(archive / "p2" / "A.mha", archive / f"{number}.mha")
    monkeypatch.setattr(batch_source, "_check_output", check)
    monkeypatch.setattr(batch, "segment_source", lost_source)
    USED.clear()
    with crowd(2) as (_, go):
        status, err = go()
    assert status == 3 and "is gone. Mount it. This worker is not used." in err
    assert 1 <= len(USED) < 10, "of 24"


@pytest.mark.parametrize("readable", ["nothing", "the first image"])
def test_a_worker_that_may_not_read_the_archive_fails_nothing(crowd, fast, tmp_path, monkeypatch, readable):
    opened, segment = batch_source.opens, write_empty

    def opens(path):
        with suppress(ValueError):  # not on a worker
            if get_worker().name == 0 and (readable == "nothing" or "torn" not in str(path)):
                return False
        return opened(path)

    def segment_file(image, *rest, **more):
        USED.append(get_worker().name)
        if not opens(image if isinstance(image, Path) else image.frames[0].path):
            raise InputError("INPUT_UNREADABLE", "the system does not permit it", "Check the permissions")
        return segment(image, *rest, **more)

    for module in (batch, batch_source):
        monkeypatch.setattr(module, "opens", opens)
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", segment_file)
    USED.clear()
    with crowd(2) as (_, go):
        status, err = go()
    assert status == 0 and {row["status"] for row in rows(tmp_path / "out").values()} == {"segmented", "refused"}, err
    if readable == "nothing":
        assert 0 not in USED and "torn.nrrd cannot be opened here, although it can be where the command runs" in err
    else:
        assert 0 in USED and any(outcome["closed"] for line in lines(tmp_path / "out") for outcome in line["outcomes"])


@pytest.mark.parametrize("what", ["archive", "results", "model"])
def test_without_a_good_worker_the_run_ends_with_its_failure(crowd, archive, tmp_path, monkeypatch, what):
    tried = batch.try_worker
    other = {"archive": tmp_path / "empty"} if what == "archive" else {"output": tmp_path / "empty"}
    other = {"model": "nobody"} if what == "model" else other
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(batch, "try_worker", lambda place, task, *rest: tried(place, replace(task, **other), *rest))
    monkeypatch.setattr("SAUNetLib.batch_source.time.sleep", lambda seconds: None)
    with crowd(1) as (_, go):
        status, err = go()
    code = {"archive": "INPUT_NOT_FOUND", "results": "OUTPUT_WRITE", "model": "MODEL_NOT_FOUND"}[what]
    assert status == {"archive": 3, "results": 2, "model": 4}[what] and not lines(tmp_path / "out")
    assert err.count(f"error {code}: {gethostname()}: ") == 2, "once for the worker, once for the run"


class Unknown:
    """What only this process can unpickle."""

    def __call__(self, *rest, **more):
        raise AssertionError

    def __reduce__(self):
        return importlib.import_module, ("SAUNetLib_of_another_computer",)


def test_workers_without_saunet_end_the_run(crowd, monkeypatch):
    monkeypatch.setattr(batch, "try_worker", Unknown())
    with crowd(1) as (_, go):
        status, err = go()
    assert status == 2 and "NOT_INSTALLED" in err and "Install the same version" in err


def test_workers_of_another_version_get_no_work(crowd, run, fast, monkeypatch):
    assert run()[3]["p2/A.mha"]["version"] == SAUNetLib.__version__
    monkeypatch.setattr(Batch, "is_done", lambda *rest: False)
    monkeypatch.setattr(batch_source, "__version__", "0.0.1")
    with crowd(1) as (_, go):
        status, err = go()
    assert status == 2 and f"SAUNet is version 0.0.1 here, but {SAUNetLib.__version__} where the command runs" in err


def test_workers_may_come_late_and_their_absence_is_told(crowd, fast, monkeypatch):
    monkeypatch.setattr(batch_cluster, "NO_WORKER_S", 60.0)
    with crowd(0) as (cluster, go):
        late = Timer(1.5, cluster.scale, [1])
        late.start()
        status, err = go()
        late.join()
    assert status == 0 and err == "No worker is ready. Waiting up to 1 minutes for one.\n"


def test_a_run_without_workers_ends(crowd):
    with crowd(0) as (_, go):
        status, err = go()
    assert status == 2 and "no worker was available for" in err.splitlines()[-1]


def test_a_scheduler_that_dies_without_a_worker_is_told(crowd, monkeypatch):
    monkeypatch.setattr(batch_cluster, "NO_WORKER_S", 60.0)
    with crowd(0) as (cluster, go):
        end = Timer(1.0, cluster.close)
        end.start()
        status, err = go()
        end.join()
    assert status == 2 and "the connection to the scheduler was lost" in err.splitlines()[-1]


def test_a_worker_that_dies_before_it_hands_over_its_result_does_not_stop_the_run(crowd, fast, monkeypatch):
    fetched = batch_cluster._fetched

    def lose(future):
        if isinstance(future.key, str) and future.key.startswith("segment_source") and not lost:
            lost.append(True)
            cluster.sync(next(iter(cluster.workers.values())).close)
            assert not cluster.scheduler.workers
            cluster.scale(2)
        return fetched(future)

    lost = []
    monkeypatch.setattr(batch_cluster, "NO_WORKER_S", 60.0)
    monkeypatch.setattr(batch_cluster, "_fetched", lose)
    with crowd(1) as (cluster, go):
        end = Timer(40.0, cluster.close)  # else a failure would be a test that hangs
        end.start()
        status, err = go()
        end.cancel()
    assert status == 0 and lost, err


def test_a_source_that_does_not_end_is_to_be_seen(crowd, monkeypatch):
    def segment_file(*rest, **more):
        if not slept:
            slept.append(time.sleep(2.0))
        return write_empty(*rest, **more)

    slept = []
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", segment_file)
    monkeypatch.setattr("SAUNetLib.cli.COUNT_S", 0.0)
    monkeypatch.setattr(batch_cluster, "SILENCE_S", 0.5)
    with crowd(1) as (_, go):
        status, err = go()
    assert status == 0 and err.count("No results for") == 1
    told = next(line for line in err.splitlines() if line.startswith("No results"))
    assert "p1/mr (127.0.0.1)" in told
    assert max(map(err.splitlines().count, err.splitlines())) > 1, "how far it is, also while none is done"


class Answer:
    """A future of `Cluster`."""

    def __init__(self, key):
        self.key, self.cancelled, self.made, self.error = key, False, None, None

    def done(self):
        return self.made is not None or self.error is not None

    def exception(self, timeout):
        return self.error

    def result(self, timeout):
        return self.made

    def cancel(self):
        self.cancelled = True

    def add_done_callback(self, function):
        pass


class Cluster:
    """Stands in for a client: workers come and go as told, and trials succeed."""

    def __init__(self):
        self.threads, self.submitted = {}, []

    def nthreads(self):
        return dict(self.threads)

    def submit(self, function, *rest, workers=None, **more):
        one = Answer(len(self.submitted))
        self.submitted.append((one, workers))
        if not rest:
            one.made = ("host", None)
        return one


def test_a_source_whose_workers_all_left_is_handed_out_again_but_not_for_ever(quick, monkeypatch):
    monkeypatch.setattr(batch_cluster, "LOOK_S", 0.0)
    cluster = Cluster()
    pool = WorkerPool(cluster, lambda source: source, lambda: None, print)
    cluster.threads = {"tcp://h:1": 1}
    pool.refresh()
    pool.submit(Source("a", False, ""))
    for number in range(2, 5):
        before = cluster.submitted[-1][0]
        cluster.threads = {f"tcp://h:{number}": 1}
        pool.refresh()
        assert cluster.submitted[-1][1] == [f"tcp://h:{number}"] and len(pool) == 1
        assert before.cancelled, "a worker that comes back would do it once more"
    cluster.threads = {"tcp://h:5": 1}
    pool.refresh()
    source, made = pool.next_result()
    assert source.place == "a" and isinstance(made, WorkersDied) and not len(pool)


@pytest.mark.parametrize(
    ("scheduler", "lost"), [("tcp://h:1", "to the scheduler"), (None, "to the workers on this computer")]
)
def test_a_source_that_was_lost_with_the_scheduler_says_so(quick, scheduler, lost):
    cluster = Cluster()
    pool = WorkerPool(cluster, lambda source: source, None, print)
    pool.submit(Source("a", False, ""))
    future = cluster.submitted[-1][0]
    future.error = FutureCancelledError("a", "lost")
    future.exception = future.result = lambda timeout: (_ for _ in ()).throw(future.error)
    pool._done.put(future)
    with pytest.raises(UsageError, match=f"the connection {lost} was lost"), scheduler_kept(scheduler):
        pool.next_result()


def test_a_failure_names_its_computer(run, tmp_path, monkeypatch):
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", lambda *rest, **more: {}["gone"])
    status, _, err, told = run()
    assert status == 1 and f"failed with INTERNAL on {gethostname()};" in err
    assert told["p1/mr"]["host"] == lines(tmp_path / "out")[0]["outcomes"][0]["host"] == gethostname()


def test_workers_here_keep_freed_memory_and_leave_ctrl_c_to_the_command(monkeypatch):
    """Dask's own setting would return every large array's memory, and take half as long again."""
    called = []
    monkeypatch.setattr("SAUNetLib.process.ours", False)
    monkeypatch.setattr("SAUNetLib.process.keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr(signal, "signal", lambda *what: called.append(what))
    for name in batch_cluster._LOCAL["distributed.worker.preload"]:
        module = importlib.import_module(name)
        module.dask_setup(None)
        assert module.ours
    assert called == [(signal.SIGINT, signal.SIG_IGN), "memory"]


def test_a_busy_computer_neither_loses_workers_nor_ends_in_an_error(tmp_path, monkeypatch):
    """Dask gives up a worker that is not replaced in 15 s, and closing fails where one has not ended in 5 s."""

    class Slow(LocalCluster):
        def __init__(self, **options):
            super().__init__(**{**options, "n_workers": 0, "processes": False, "security": None})

        def close(self, timeout=None):
            super().close(timeout)
            raise TimeoutError

    monkeypatch.setattr("distributed.LocalCluster", Slow)
    with pytest.raises(KeyboardInterrupt), batch_cluster.connected(None, 1, tmp_path):
        assert dask.config.get("distributed.deploy.lost-worker-timeout") == "1 day"
        raise KeyboardInterrupt
    with batch_cluster.connected(None, 1, tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_an_image_that_kills_its_workers_takes_no_other_with_it(run, fast, archive, tmp_path, monkeypatch):
    code = [
        "import os, signal",
        "import SAUNetLib.pipeline as pipeline",
        "pipeline.whole = segment = getattr(pipeline, 'whole', pipeline.segment_file)  # it is loaded twice",
        "def segment_file(image, *rest, **more):",
        "    if 'A.mha' in str(image):",
        "        os.kill(os.getpid(), signal.SIGKILL)",
        "    return segment(image, *rest, **more)",
        "pipeline.segment_file = segment_file",
    ]
    (tmp_path / "poison.py").write_text("\n".join(code))
    preload = [str(tmp_path / "poison.py")]
    poisoned = {"distributed.worker.preload": preload, "distributed.scheduler.allowed-failures": 0}
    monkeypatch.setattr(batch_cluster, "_LOCAL", {**batch_cluster._LOCAL, **poisoned})
    status, _, err, told = run("--workers", "1")
    killer = told.pop("p2/A.mha")
    assert status == 1 and (killer["status"], killer["code"]) == ("failed", "CRASHED"), err
    assert killer["text"].startswith("every worker that processed it died")
    assert {row["status"] for row in told.values()} == {"segmented", "refused"}
    assert len(lines(tmp_path / "out")) > 4, "others were with it, and were tried again"


def test_names_that_cannot_be_written_do_not_end_the_run(run, tmp_path, monkeypatch):
    def refuse(image, output, *rest, **more):
        raise UsageError("OUTPUT_WRITE", f"{output} could not be written: Invalid argument", "Choose another name")

    monkeypatch.setattr(batch, "GIVE_UP", 2)
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", refuse)
    status, _, err, told = run()
    assert status == 2 and "4 failed with OUTPUT_WRITE" in err and "in a row" not in err and len(told) == 4
    monkeypatch.setattr(batch_source, "_takes_files", lambda output: False)  # as on a full disk
    assert "2 sources in a row failed with OUTPUT_WRITE" in run()[2]


def entry(**changes: object) -> bytes:
    """A line of the journal whose outcome has entries of another kind."""
    outcome = {"status": "segmented", "notices": [], **changes}
    about = {"place": "p1/mr", "stamp": "a", "model": "m", "outcomes": [outcome]}
    return json.dumps(about).encode() + b"\n"


def test_whole_numbers_of_the_journal_may_lack_their_point(tmp_path):
    (tmp_path / JOURNAL).write_bytes(entry(seconds=2))
    assert read_batch(tmp_path).records["p1/mr"].outcomes[0].seconds == 2


@pytest.mark.parametrize("line", [
    b"\xff\xfe\n", b'{"place": "p1/mr"}\n', b"[]\n", b'{"place": 1, "outcomes": [{}]}\n', b"[" * 100_000 + b"\n",
    b'{"archive": "a", "host": "b", "process": 1e999}\n', entry(text=None), entry(output=5), entry(status=[]),
    entry(notices=[[]]), entry(notices="[]", name=[1]), entry(seconds="1"), entry(labels=1.5),
    entry(output="\0"), entry(output="\ud800"),
])  # fmt: skip
def test_spoilt_lines_of_the_journal_tell_nothing(run, fast, tmp_path, line):
    run()
    before = read_batch(tmp_path / "out").records
    with open(tmp_path / "out" / JOURNAL, "ab") as file:
        file.write(line)
    assert read_batch(tmp_path / "out").records == before and run()[0] == 0


def test_what_has_left_the_archive_leaves_the_summary(run, fast, archive, tmp_path):
    run()
    (archive / "p1" / "torn.nrrd").unlink()
    (archive / "p2" / "A.mha").unlink()
    _, out, _, before = run()
    assert "p1/torn.nrrd" not in before and "p1/torn.nrrd" in read_batch(tmp_path / "out").records
    assert before["p2/A.mha"]["status"] == "gone" and "1 source is no longer in the archive" in out
    shutil.rmtree(archive)
    archive.mkdir()
    status, _, err, told = run()
    assert status == 3 and "mounted" in err
    assert told == before, "nothing is forgotten, nor comes back, for an archive that is not there"


def test_what_has_left_the_archive_is_gone_in_the_summaries_during_a_run(run, fast, archive, monkeypatch):
    run()
    (archive / "p2" / "A.mha").unlink()
    run()
    shutil.copy(archive / "p2" / "a.nii.gz", archive / "0.nii.gz")
    written = []
    monkeypatch.setattr(batch_journal, "SUMMARY_S", 0.0)
    monkeypatch.setattr(batch_journal, "write_summary", lambda known, output: written.append([*known.gone(output)]))
    run()
    assert written and all([record.place for record, _ in gone] == ["p2/A.mha"] for gone in written)


def test_the_journal_tells_what_has_left_the_archive_and_what_is_back(run, fast, archive, tmp_path):
    """One line each time, and none is needed before."""
    run()
    journal, image = tmp_path / "out" / JOURNAL, archive / "p2" / "A.mha"
    journal.write_text(journal.read_text().replace(', "gone": false', ""))
    assert not any("gone" in line for line in lines(tmp_path / "out"))
    for place in (".away", ".mha"):
        image = image.rename(image.with_suffix(place))
        assert run()[0] == run()[0] == 0
    assert [(line["place"], line["gone"]) for line in lines(tmp_path / "out")[4:]] == [
        ("p2/A.mha", True), ("p2/A.mha", False),
    ]  # fmt: skip
    assert run()[3]["p2/A.mha"]["status"] == "segmented"


def test_what_is_begun_again_is_back(tmp_path):
    """A run that is killed then says no more."""
    done = SourceRecord("a.mha", "1", "0", (Outcome("segmented", output="a.nii.gz"),), gone=True)
    with batch_journal.open_journal({done.place: done}, tmp_path, tmp_path, Batch) as journal:
        journal.begin(Source("a.mha", False, "2"))
    assert not read_batch(tmp_path).records["a.mha"].gone


def test_a_run_that_is_killed_has_told_with_the_last_summary_what_had_left(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_journal, "SUMMARY_S", 0.0)
    left = SourceRecord("a.mha", "1", "0", (Outcome("segmented", output="a.nii.gz"),))
    records = {left.place: left}
    now = functools.partial(Batch(records).only, {"b.mha"}, ())
    with batch_journal.open_journal(records, tmp_path, tmp_path, now) as journal:
        journal.note(Source("b.mha", False, "2"), "0", [Outcome("segmented", output="b.nii.gz")])
        assert read_batch(tmp_path).records["a.mha"].gone
        journal.note(Source("b.mha", False, "3"), "0", [Outcome("segmented", output="b.nii.gz")])
    assert len([line for line in lines(tmp_path) if line["place"] == "a.mha"]) == 1


def test_what_has_left_the_archive_is_shown_while_its_results_are_there(tmp_path):
    outcomes = (Outcome("segmented", output="a.nii.gz"), Outcome("segmented", output="b.nii.gz"))
    known = Batch({"a": SourceRecord("a", "1", "0", outcomes, gone=True)})
    (tmp_path / "b.nii.gz").touch()
    assert [outcome for _, outcome in known.gone(tmp_path)] == [*outcomes]
    (tmp_path / "b.nii.gz").unlink()
    assert [*known.gone(tmp_path)] == []


def test_a_library_of_pytorch_that_cannot_be_loaded_is_no_fault_of_the_output(run, monkeypatch):
    class Broken:
        def find_spec(self, name, *rest):
            if name == "SAUNetLib.engine":
                raise OSError('[WinError 126] Error loading "torch\\lib\\c10.dll" or one of its dependencies.')

    monkeypatch.delitem(sys.modules, "SAUNetLib.engine")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    status, _, err, _ = run()
    assert status == 2 and "VISUAL_C" in err and "OUTPUT_WRITE" not in err


@pytest.mark.parametrize("back", [False, True])
def test_what_had_left_the_archive_is_not_back_after_a_run_that_was_cut_short(
    run, fast, archive, tmp_path, monkeypatch, back
):
    """Whatever has become of the summary, which is for its readers."""
    (archive / "=p3").mkdir()  # with a name that a spreadsheet would calculate
    gone = (archive / "=p3" / "b.mha", archive / "p2" / "A.mha")
    shutil.copy(gone[1], gone[0])
    run()
    for path in (*gone, archive / "p1" / "torn.nrrd"):
        path.rename(path.with_suffix(".away"))
    before = run()[3]
    assert [place for place, row in before.items() if row["status"] == "gone"] == ["'=p3/b.mha", "p2/A.mha"]
    (tmp_path / "out" / SUMMARY).unlink()
    shutil.copy(archive / "p2" / "a.nii.gz", archive / "0.nii.gz")
    if back:
        gone[0].with_suffix(".away").rename(gone[0])
    found, noted, ended, whole = find_sources, [], threading.Event(), batch_journal.Journal.note

    def some(*rest):
        yield from list(found(*rest))[: 1 + back]
        ended.wait(60)

    def interrupted(*call):
        noted.append(whole(*call))
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "find_sources", some)
    monkeypatch.setattr(batch_journal.Journal, "note", interrupted)
    status, _, _, told = run()
    ended.set()
    assert status == 6 and noted and told.pop("0.nii.gz")["status"] == "segmented"
    if back:
        before["'=p3/b.mha"]["status"] = "segmented"
    assert told == before


def test_the_summary_of_a_run_that_was_cut_short_does_not_wait_for_its_workers(run, fast, monkeypatch):
    """They take seconds to end, after which whoever asked the run to end may have killed it."""
    order, note, write, connect = [], batch_journal.Journal.note, batch.write_summary, batch.connected

    @contextmanager
    def connected(*options):
        try:
            with connect(*options) as client:
                yield client
        finally:
            order.append("workers")

    def interrupted(*call):
        note(*call)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_journal.Journal, "note", interrupted)
    monkeypatch.setattr(batch, "write_summary", lambda *call: order.append("summary") or write(*call))
    monkeypatch.setattr(batch, "connected", connected)
    assert run()[0] == 6 and order == ["summary", "workers"]


def test_two_runs_do_not_share_an_output(run, fast, tmp_path):
    run()
    (tmp_path / "out" / SUMMARY).write_text("place\nof the run at work\n")
    with FileLock(tmp_path / "out" / LOCK):
        status, _, err, told = run()
    assert status == 2 and "another run is using" in err and list(told) == ["of the run at work"]
    assert f"process {os.getpid()} on {gethostname()}" in err and LOCK in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks in another way")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(archive, tmp_path, monkeypatch, capsys, number):
    def flock(*rest):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert main(["batch", str(archive), "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "does not support file locks" in err and LOCK in err


def test_another_archive_into_the_same_folder_is_refused(run, fast, archive, tmp_path):
    run()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    archive.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", archive / "elsewhere")
    command = ["batch", str(archive / "elsewhere"), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    journal = tmp_path / "out" / JOURNAL
    first, *rest = journal.read_text().splitlines()
    assert json.loads(first)["archive"] == str(archive)
    journal.write_text("\n".join([first.replace(str(archive), str(archive / "elsewhere")), *rest]))
    assert read_batch(tmp_path / "out").check_archive(archive / "elsewhere", tmp_path / "out") is None


def test_an_archive_that_was_mistyped_leaves_the_folder_to_the_right_one(run, fast, archive, tmp_path, capsys):
    def other(place):
        return main(["batch", str(tmp_path / place), "--output", str(tmp_path / "out"), "--scheduler", "nonsense://"])

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    assert other("empty") == 3 and "only 1 files of other kinds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copytree(archive, tmp_path / "other")
    with batch_journal.open_journal({}, tmp_path / "other", tmp_path, Batch), pytest.raises(KeyboardInterrupt):
        raise KeyboardInterrupt
    (tmp_path / "out").mkdir()
    (tmp_path / JOURNAL).rename(tmp_path / "out" / JOURNAL)
    assert run()[0] == 0
    capsys.readouterr()
    assert other("other") == 2 and f"the results of another archive, {archive}" in capsys.readouterr().err


def test_a_journal_whose_archive_cannot_be_read_is_not_any_archive_s(run, fast, archive, tmp_path):
    run()
    journal = tmp_path / "out" / JOURNAL
    first, *rest = journal.read_text().splitlines(keepends=True)
    journal.write_text("\0" * len(first) + "\n" + "".join(rest))
    before = journal.read_bytes()
    status, _, err, _ = run()
    assert status == 2 and "no longer records which archive" in err and journal.read_bytes() == before
    line = err.split("first line of the journal: ")[1].strip().rstrip(".")
    journal.write_text("\n".join([line, *rest]))
    assert run()[0] == 0


def test_a_worker_that_cannot_import_for_lack_of_memory_says_so(run, tmp_path, monkeypatch):
    def source(source, task):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr(batch, "segment_source", source)
    status, _, err, told = run()
    assert status == 5 and "4 failed with MEMORY" in err and "not enough memory" in told["p1/mr"]["text"]
    assert batch._crash_outcome(WorkersDied("there")).code == "CRASHED"


@pytest.mark.parametrize(("device", "asked", "workers"), [("cuda", [], 1), ("cuda", ["2"], 2), ("cpu", [], None)])
def test_workers_here_do_not_share_a_graphics_card(archive, tmp_path, tiny_model, monkeypatch, device, asked, workers):
    def connected(scheduler, workers, output):
        used.append(workers)
        raise UsageError("USAGE", "enough is known", "Go on")

    used = []
    monkeypatch.setattr("SAUNetLib.engine.choose_device", lambda name: SimpleNamespace(type=device))
    monkeypatch.setattr(batch, "connected", connected)
    command = ["batch", str(archive), "--output", str(tmp_path / "out"), "--model", str(tiny_model)]
    assert main([*command, *(["--workers", *asked] if asked else [])]) == 2 and used == [workers]


@pytest.mark.parametrize(
    ("available", "limit", "cores", "workers"), [(2.5, 99, 16, 2), (99, 3.5, 16, 3), (99, 99, 4, 4), (0, 99, 4, 1)]
)
def test_workers_here_fit_into_the_memory_that_is_free(monkeypatch, available, limit, cores, workers):
    """`limit` is that of a control group; both are in workers' sizes."""
    free = SimpleNamespace(available=available * batch_cluster.WORKER_BYTES)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", limit * batch_cluster.WORKER_BYTES)
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    assert batch_cluster._own_workers() == workers


def test_results_of_what_is_refused_now_are_removed(run, fast, archive, tmp_path):
    before = run()[3]
    (archive / "p2" / "A.mha").write_bytes(b"nothing")
    shutil.rmtree(archive / "p1" / "mr")
    image = picture()
    write_dicom_series(
        archive / "p1" / "mr", replace(image, voxels=(1000 * (image.voxels + 9)).astype(np.int16)), number=9
    )
    told = run()[3]
    assert told["p2/A.mha"]["status"] == "refused" and not list((tmp_path / "out" / "p2").glob("A.mha*"))
    assert told["p1/mr"]["output"] != before["p1/mr"]["output"]
    assert len(list((tmp_path / "out" / "p1" / "mr").iterdir())) == 4, "those of the new series"


@pytest.mark.parametrize("how", ["memory", "disk", "crash"])
def test_a_failure_that_is_none_of_the_image_s_leaves_its_earlier_results(
    run, fast, archive, tmp_path, monkeypatch, how
):
    def full(*rest, **more):
        raise UsageError("OUTPUT_WRITE", "the disk is full", "Make room")

    def crashed(source, task):
        raise SystemError("no worker of ours")

    told, files = run()[3], result_files(tmp_path / "out")
    with monkeypatch.context() as patch:  # as with another model
        patch.setattr(Batch, "is_done", lambda *rest: False)
        if how == "crash":
            patch.setattr(batch, "segment_source", crashed)
        else:
            patch.setattr("SAUNetLib.pipeline.segment_file", {"memory": out_of_memory, "disk": full}[how])
        failed = run()[3]
        assert run()[3] == failed, "and again"
    assert result_files(tmp_path / "out") == files and len(files) == 12
    for place in ("p1/mr", "p2/A.mha", "p2/a.nii.gz"):
        assert failed[place]["status"] == "failed"
        assert all(failed[place][column] == told[place][column] for column in ("output", "series"))
    (archive / "p2" / "A.mha").write_bytes(b"nothing")
    os.utime(archive / "p2" / "a.nii.gz", ns=(0, 0))
    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", out_of_memory)
        assert run()[3]["p2/a.nii.gz"]["output"] == ""
    assert {name.split("/")[0] for name in result_files(tmp_path / "out")} == {"p1"}, "those of changed images went"
    shutil.rmtree(archive / "p2")
    shutil.rmtree(archive / "p1" / "mr")
    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", out_of_memory)
        assert run()[3]["p1/mr"]["status"] == "gone"


def test_what_cannot_be_looked_at_has_not_changed(run, fast, archive, tmp_path, monkeypatch):
    """As a link into a disk that is away, and a folder whose rights were taken away."""
    told, files, listed = run()[3], result_files(tmp_path / "out"), os.scandir

    def refuse(path):
        if path == str(archive / "p1" / "mr"):
            raise PermissionError(errno.EACCES, "closed", str(path))
        return listed(path)

    image = (archive / "p2" / "A.mha").rename(tmp_path / "A.mha")
    (archive / "p2" / "A.mha").symlink_to(tmp_path / "away" / "A.mha")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        for _ in range(2):
            status, _, _, failed = run()
            assert status == 3 and result_files(tmp_path / "out") == files
            for place in ("p1/mr", "p2/A.mha"):
                assert failed[place]["status"] == "failed" and failed[place]["output"] == told[place]["output"]
    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", out_of_memory)
        assert run()[3]["p1/mr"]["output"] and result_files(tmp_path / "out") == files, "nor has it meanwhile"
    (tmp_path / "out" / JOURNAL).unlink()
    assert run()[3]["p2/A.mha"]["status"] == "refused" and result_files(tmp_path / "out") == files
    (tmp_path / "away").mkdir()
    image.rename(tmp_path / "away" / "A.mha")
    assert {place: row["output"] for place, row in run()[3].items()} == {place: told[place]["output"] for place in told}


def test_a_link_beside_slices_that_leads_nowhere_hides_no_change(run, fast, archive):
    (archive / "p1" / "mr" / "notes").symlink_to(archive / "nowhere")
    assert run()[3]["p1/mr"]["status"] == "segmented"
    stamps = {one.place: one.stamp for one in find_sources(archive, archive / "p2")}
    os.utime(next(path for path in (archive / "p1" / "mr").iterdir() if not path.is_symlink()), ns=(0, 0))
    assert {one.place: one.stamp for one in find_sources(archive, archive / "p2")}["p1/mr"] != stamps["p1/mr"]


def test_a_report_laid_beside_slices_changes_nothing(run, fast, archive, tmp_path):
    corrected = tmp_path / "out" / run()[3]["p1/mr"]["output"]
    corrected.write_text("by hand")
    done = len(lines(tmp_path / "out"))
    found = {source.place: source for source in find_sources(archive, tmp_path / "out")}
    for name in ("report.PDF", "Thumbs.db", "desktop.ini", "report.txt"):
        (archive / "p1" / "mr" / name).write_text("nothing")
    assert not batch_source._has_changed(found["p1/mr"], BatchTask(archive, tmp_path / "out", "", "", "cpu"))
    assert run()[0] == 0 and len(lines(tmp_path / "out")) == done and corrected.read_text() == "by hand"
    for path in (archive / "p1" / "mr").iterdir():  # slices may be called anything
        path.rename(path.with_suffix(".txt"))
    assert {source.place: source for source in find_sources(archive, tmp_path / "out")}["p1/mr"].size > 1000


def test_what_was_done_while_a_file_was_away_has_not_changed_when_it_is_back(run, fast, archive, tmp_path, monkeypatch):
    run()
    files = result_files(tmp_path / "out")
    note = archive / "p1" / "mr" / "notes"
    note.symlink_to(tmp_path / "away" / "notes")
    assert run()[3]["p1/mr"]["status"] == "segmented" and result_files(tmp_path / "out") == files
    note.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", out_of_memory)
        run()
    assert result_files(tmp_path / "out") == files


@pytest.mark.parametrize("away", ["from the beginning", "and back", "at the end", "altogether", "not: one came"])
def test_what_changed_while_it_was_read_is_done_again(run, fast, archive, tmp_path, monkeypatch, away):
    """The next run finds the very files of before, with their times, as where a disk was away."""
    slices, elsewhere = sorted((archive / "p1" / "mr").iterdir()), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if away == "not: one came":
        slices[0].rename(elsewhere / slices[0].name)
    outside = {"altogether": slices, "not: one came": []}.get(away, slices[:1])
    submit = WorkerPool.submit

    def leave():
        for path in outside:
            path.rename(elsewhere / path.name)

    def back():
        for path in elsewhere.iterdir():
            path.rename(archive / "p1" / "mr" / path.name)

    def submit_then(self, source, *rest):
        if source.dicom and away != "at the end":
            leave()
        submit(self, source, *rest)

    def segment(image, output, engine, **beside):
        result = write_empty(image, output, engine, **beside)
        if "mr" in output.parts and away == "at the end":
            leave()
        elif "mr" in output.parts and away in ("and back", "not: one came"):
            back()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "submit", submit_then)
        patch.setattr("SAUNetLib.pipeline.segment_file", segment)
        status, out, _, told = run()
    assert told["p1/mr"]["status"] == ("failed" if away == "altogether" else "segmented")
    assert status == (3 if away == "altogether" else 0)
    assert "its files changed during the run" in told["p1/mr"]["text"]
    assert "The files of 1 source changed" in out and not told["p2/A.mha"]["text"]
    back()
    done = len(lines(tmp_path / "out"))
    _, out, _, told = run()
    assert {line["place"] for line in lines(tmp_path / "out")[done:]} == {"p1/mr"} and "The files of" not in out
    assert told["p1/mr"]["status"] == "segmented" and not told["p1/mr"]["text"]
    done = len(lines(tmp_path / "out"))
    assert run()[0] == 0 and len(lines(tmp_path / "out")) == done


def test_what_was_away_while_it_was_read_loses_no_earlier_results(run, fast, archive, tmp_path, monkeypatch):
    """A share that is gone for a moment, in a run with another model."""
    run()
    files, submit = result_files(tmp_path / "out"), WorkerPool.submit
    next(path for path in (tmp_path / "out" / "p1" / "mr").iterdir() if path.suffix == ".png").unlink()

    def leave(self, source, *rest):
        if source.dicom:
            (archive / "p1" / "mr").rename(tmp_path / "away")
            (archive / "p1" / "mr").mkdir()
        submit(self, source, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "submit", leave)
        told = run()[3]["p1/mr"]
    assert (told["status"], told["code"]) == ("failed", "INPUT_EMPTY") and told["output"]
    assert ".;" not in told["text"] and "the next run processes it again" in told["text"]
    assert len(result_files(tmp_path / "out")) == len(files) - 1, "the label map, its table and measurements"
    (archive / "p1" / "mr").rmdir()
    (tmp_path / "away").rename(archive / "p1" / "mr")
    assert run()[3]["p1/mr"]["status"] == "segmented" and result_files(tmp_path / "out") == files


def test_a_link_to_a_disk_that_a_worker_has_not_is_no_change(archive, tmp_path):
    """Every run would do it again."""
    (tmp_path / "note").write_text("nothing")
    (archive / "p1" / "mr" / "note").symlink_to(tmp_path / "note")
    found = {source.place: source for source in find_sources(archive, tmp_path / "out")}
    (tmp_path / "note").unlink()
    assert not batch_source._has_changed(found["p1/mr"], BatchTask(archive, tmp_path / "out", "", "", "cpu"))


def test_what_changed_is_not_done_while_its_folder_is_closed(tmp_path):
    known = Batch({"a": SourceRecord("a", "", "0", (Outcome("segmented", changed=True),))})
    assert known.changed() == 1 and not known.is_done(Source("a", True, "", closed=True), "0", tmp_path)


def test_a_worker_finds_the_files_that_the_command_found(archive, tmp_path):
    for name in ("beside.mhd", "beside.nrrd", ".hidden.nrrd"):
        sitk.WriteImage(picture().to_sitk(), str(archive / "p1" / "mr" / name))
    (archive / "p1" / "mr" / "below").mkdir()
    (archive / "p1" / "mr" / "below" / "notes.txt").write_text("nothing")
    (archive / "p1" / "mr" / ".hidden").write_text("nothing")
    task = BatchTask(archive, tmp_path / "out", "", "", "cpu")
    found = {source.place: source for source in find_sources(archive, tmp_path / "out")}
    assert {"p1/mr", "p1/mr/beside.mhd", "p1/mr/beside.nrrd"} <= found.keys()
    assert not any(batch_source._has_changed(source, task) for source in found.values())
    (archive / "p1" / "mr" / "beside.raw").write_bytes(b"")
    changed = {place for place, source in found.items() if batch_source._has_changed(source, task)}
    assert changed == {"p1/mr/beside.mhd", "p1/mr"}


@pytest.mark.parametrize("place", ["p1/mr", "."])
def test_results_that_no_record_has_are_not_left_for_another_image(run, fast, archive, tmp_path, monkeypatch, place):
    """A run was killed between them and the journal."""
    folder = archive / place
    if place == ".":
        for path in (archive / "p1" / "mr").iterdir():
            path.rename(archive / path.name)
    sitk.WriteImage(picture().to_sitk(), str(folder / "beside.nrrd"))
    sitk.WriteImage(picture().to_sitk(), str(folder / f"{'4' * 240}.nrrd"))  # called nearly as a series' results
    run()
    (table,) = (tmp_path / "out" / place).glob("4-*.csv")
    shutil.copy(table, f"{table}.bak")  # a user's own
    files = result_files(tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL
    journal.write_text("\n".join(one for one in journal.read_text().split("\n") if "beside" in one or "archive" in one))
    assert len(read_batch(tmp_path / "out").records) == 1
    with monkeypatch.context() as patch:
        patch.setattr("SAUNetLib.pipeline.segment_file", out_of_memory)
        run()
    assert result_files(tmp_path / "out") == files, "a failure says nothing of them"
    (archive / "p2" / "A.mha").write_bytes(b"nothing")
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".nrrd":
            path.write_bytes(b"")
    told = run()[3]
    assert told[place]["status"] == told["p2/A.mha"]["status"] == "refused"
    left = files - result_files(tmp_path / "out")
    series = [name for name in left if Path(name).name.startswith("4-")]
    assert len(series) == 4 and left - set(series) == {f"p2/A.mha{ending}" for ending in batch_journal.RESULTS}


def test_what_was_begun_again_is_not_done_until_it_is_noted(run, fast, archive, tmp_path, monkeypatch):
    """A cluster's workers go on after Ctrl-C: whose results are there then is not known."""
    model = run()[3]["p2/A.mha"]["model"]
    image = archive / "p2" / "A.mha"
    as_it_was = image.stat()

    waited = WorkerPool.next_result

    def interrupt(self):
        if len(self):
            raise KeyboardInterrupt
        return waited(self)

    os.utime(image, ns=(0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "next_result", interrupt)
        status, _, _, told = run()
    assert status == 6 and (told["p2/A.mha"]["model"], told["p2/a.nii.gz"]["model"]) == ("", model)
    os.utime(image, ns=(as_it_was.st_atime_ns, as_it_was.st_mtime_ns))
    done = len(lines(tmp_path / "out"))
    assert run()[3]["p2/A.mha"]["model"] == model
    assert [line["place"] for line in lines(tmp_path / "out")[done:]] == ["p2/A.mha"]


def test_label_maps_that_were_corrected_by_hand_are_kept(run, fast, archive, tmp_path):
    told = run()[3]
    for number, image in enumerate((archive / "p2" / "A.mha", next((archive / "p1" / "mr").iterdir()))):
        os.utime(image, ns=(0, 0))
        place = ("p2/A.mha", "p1/mr")[number]
        corrected = tmp_path / "out" / told[place]["output"]
        corrected.write_text("by hand")
        _, out, _, after = run()
        kept = list(corrected.parent.glob("*.edited-*.nii.gz"))
        assert [path.read_text() for path in kept] == ["by hand"] and corrected.read_text() == ""
        assert "1 label map was edited by hand" in out and kept[0].name in after[place]["text"]
        assert "by hand" not in run()[1]
    corrected = tmp_path / "out" / "p2" / "A.mha.nii.gz"
    corrected.write_text("again")
    (archive / "p2" / "A.mha").write_bytes(b"nothing")
    assert "is kept as p2/A.mha.edited-" in run()[3]["p2/A.mha"]["text"] and not corrected.exists()
    assert {path.read_text() for path in corrected.parent.glob("A.mha.*")} == {"by hand", "again"}


def test_every_copy_is_named_where_a_run_was_ended_between(run, fast, archive, tmp_path, monkeypatch):
    """What a worker wrote after Ctrl-C is copied too: nobody can tell it from a correction."""
    run()
    os.utime(archive / "p2" / "A.mha", ns=(0, 0))
    result = tmp_path / "out" / "p2" / "A.mha.nii.gz"
    result.write_text("by hand")
    begin = batch_journal.Journal.begin

    def begin_and_interrupt(self, source):
        begin(self, source)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_journal.Journal, "begin", begin_and_interrupt)
        assert run()[0] == 6
    result.write_text("of the worker")
    _, out, _, told = run()
    kept = {path.read_text(): path.name for path in result.parent.glob("A.mha.edited-*")}
    assert {"by hand", "of the worker"} <= kept.keys() and all(
        name in told["p2/A.mha"]["text"] for name in kept.values()
    )
    assert f"{len(kept)} label maps were edited by hand" in out


def test_a_corrected_label_map_that_cannot_be_copied_stays_and_ends_no_run(run, fast, archive, tmp_path, monkeypatch):
    run()
    for place in ("A.mha", "a.nii.gz"):
        os.utime(archive / "p2" / place, ns=(0, 0))
    result = tmp_path / "out" / "p2" / "A.mha.nii.gz"
    result.write_text("by hand")
    copy = shutil.copyfile

    def closed(source, target):
        if source == result:
            raise PermissionError(13, "denied")
        return copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(batch_journal.shutil, "copyfile", closed)
        status, _, _, told = run()
    assert status == 2 and (told["p2/A.mha"]["status"], told["p2/A.mha"]["code"]) == ("failed", "OUTPUT_WRITE")
    assert result.read_text() == "by hand" and told["p2/a.nii.gz"]["status"] == "segmented"
    assert run()[0] == 0 and result.read_text() == "" and len(list(result.parent.glob("A.mha.edited-*"))) == 1


@pytest.mark.parametrize("noted", [True, False])
def test_a_corrected_label_map_that_cannot_be_read_is_not_removed(run, fast, archive, tmp_path, monkeypatch, noted):
    """The system's refusal is feigned: some users may read everything."""
    run()
    if not noted:
        forget(tmp_path / "out", "p2/A.mha")
    result, read = tmp_path / "out" / "p2" / "A.mha.nii.gz", Path.read_bytes
    result.write_text("by hand")

    def closed(path):
        if path == result:
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        return read(path)

    for content in (None, b"nothing"):  # of an image that would be segmented again, and of one that is refused
        if content is None:
            os.utime(archive / "p2" / "A.mha", ns=(0, 0))
        else:
            (archive / "p2" / "A.mha").write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", closed)
            status, _, _, told = run()
        assert status == 2 and (told["p2/A.mha"]["status"], told["p2/A.mha"]["code"]) == ("failed", "OUTPUT_WRITE")
        assert "cannot be read to copy it" in told["p2/A.mha"]["text"]
        assert result.exists() and (tmp_path / "out" / "p2" / "A.mha.png").exists()
    assert result.read_text() == "by hand"
    assert run()[3]["p2/A.mha"]["status"] == "refused" and not result.exists()
    assert [path.read_text() for path in result.parent.glob("A.mha.edited-*")] == ["by hand"]


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("place", ["p1/mr", "p2/A.mha"])
def test_label_maps_that_no_record_has_are_kept(run, fast, archive, tmp_path, monkeypatch, place, refused):
    """A run was killed between them and the journal, or that has lost its line; then somebody corrected them."""
    result = tmp_path / "out" / run()[3][place]["output"]
    forget(tmp_path / "out", place)
    result.write_text("by hand")
    begin = batch_journal.Journal.begin

    def begin_and_interrupt(self, source):
        begin(self, source)
        if source.place == place:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_journal.Journal, "begin", begin_and_interrupt)
        assert run()[0] == 6
    if refused:
        for image in (archive / place).iterdir() if (archive / place).is_dir() else [archive / place]:
            image.write_bytes(b"")
    _, out, _, told = run()
    (kept,) = result.parent.glob("*.edited-*")
    assert (
        kept.read_text() == "by hand"
        and f"is kept as {kept.relative_to(tmp_path / 'out').as_posix()}" in (told[place]["text"])
    )
    assert "1 label map was edited by hand" in out
    assert not result.exists() if refused else result.read_text() == ""
    assert told[place]["status"] == ("refused" if refused else "segmented")


def test_files_of_an_earlier_image_that_cannot_be_removed_are_not_left_for_good(
    run, fast, archive, tmp_path, monkeypatch
):
    """As where a spreadsheet has one open on Windows."""
    run()
    unlink, table = Path.unlink, tmp_path / "out" / "p2" / "A.mha.csv"

    def refuse(path, *rest, **more):
        if path == table:
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        unlink(path, *rest, **more)

    (archive / "p2" / "A.mha").write_bytes(b"nothing")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        status, _, err, told = run()
        assert status == 2 and "1 failed with OUTPUT_WRITE" in err and table.exists()
        assert told["p2/A.mha"]["text"].startswith("p2/A.mha.csv of an earlier image cannot be removed")
    status, _, _, told = run()
    assert status == 0 and told["p2/A.mha"]["status"] == "refused" and not table.exists()


def test_a_signal_while_the_disk_is_waited_for_leaves_journal_and_summary_alike(tmp_path, monkeypatch):
    def interrupt(*rest):
        raise KeyboardInterrupt

    records: dict[str, SourceRecord] = {}
    (tmp_path / "a.nii.gz").touch()
    with batch_journal.open_journal(records, tmp_path, tmp_path, Batch) as journal:
        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.note(Source("a", False, "x"), "", [Outcome("refused")])
    assert records == read_batch(tmp_path).records and "a" in records
    assert not (tmp_path / "a.nii.gz").exists(), "nobody would look for it any more"


def test_a_summary_that_a_spreadsheet_has_open_does_not_end_the_run(run, fast, tmp_path, monkeypatch):
    whole, tried = batch_journal.write_summary, []

    def write(known, output):
        tried.append(known)
        if len(tried) in (2, 3):
            raise UsageError("OUTPUT_WRITE", "it is open in another program", "Close it")
        whole(known, output)

    monkeypatch.setattr(batch_journal, "SUMMARY_S", 0.0)
    monkeypatch.setattr(batch_journal, "write_summary", write)
    status, _, err, told = run()
    assert status == 0 and len(tried) > 3 and err == "" and len(told) >= 4


def test_a_journal_cannot_remove_files_elsewhere(tmp_path):
    (tmp_path / "x.nii.gz").touch()
    (tmp_path / "out").mkdir()
    for place in ("../x.nii.gz", str(tmp_path / "x.nii.gz")):
        before = SourceRecord("a", "", "", (Outcome("segmented", output=place),))
        now = SourceRecord("a", "", "", (Outcome("refused"),))
        _remove_left(before, Source("a", False, ""), now, tmp_path / "out")
    assert (tmp_path / "x.nii.gz").exists()


def test_a_journal_cannot_remove_files_elsewhere_on_windows(tmp_path, monkeypatch):
    removed = []
    monkeypatch.setattr(batch_journal, "PurePath", PureWindowsPath)
    monkeypatch.setattr(batch_journal, "discard", lambda path: removed.append(path.name))
    places = ("C:/x.nii.gz", "C:x.nii.gz", r"\x.nii.gz", r"\\server\share\x.nii.gz", r"..\x.nii.gz", "b/c.nii.gz")
    before = SourceRecord("a", "", "", tuple(Outcome("segmented", output=place) for place in places))
    _remove_left(before, Source("a", False, ""), SourceRecord("a", "", "", (Outcome("refused"),)), tmp_path)
    assert {name.removesuffix(".nii.gz") for name in removed if name.endswith(".nii.gz")} == {"a", "c"}


def test_twins_do_not_replace_each_other_where_case_does_not_count(run, fast, archive, tmp_path, monkeypatch):
    shutil.copy(archive / "p2" / "A.mha", archive / "p2" / "a.mha")
    assert {run()[3][place]["status"] for place in ("p2/A.mha", "p2/a.mha")} == {"segmented"}
    assert not batch._is_case_blind(tmp_path) or sys.platform != "linux"
    monkeypatch.setattr(batch, "_is_case_blind", lambda folder: True)
    monkeypatch.setattr(batch, "GIVE_UP", 1)  # twins end no run
    _, _, err, told = run()
    twin = told["p2/a.mha"]
    assert (twin["status"], twin["output"]) == ("failed", ""), "its results were those of the other one since it came"
    assert "in a row" not in err
    shutil.rmtree(tmp_path / "out")
    status, _, _, told = run()
    assert status == 2 and [told[place]["status"] for place in ("p2/A.mha", "p2/a.mha")] == ["segmented", "failed"]
    for ending in (".csv", ".nii.gz"):
        (tmp_path / "out" / "p2" / f"a.mha{ending}").touch()  # the one and only there
    os.utime(archive / "p2" / "a.mha", ns=(0, 0))
    run()
    assert (tmp_path / "out" / "p2" / "a.mha.csv").exists() and not list((tmp_path / "out").rglob("*.edited-*"))


def test_a_spreadsheet_reads_names_as_names(run, fast, archive, tmp_path):
    (archive / "=1+2.nii").write_bytes(b"no image")
    (archive / "M\u00fcller.nii").write_bytes(b"no image")
    told = run()[3]
    assert "'=1+2.nii" in told and (tmp_path / "out" / SUMMARY).read_bytes().startswith(b'\xef\xbb\xbf"place",')
    assert "M\u00fcller.nii" in told
    for letter in "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20":
        assert batch_journal._cell(f"{letter}1") == f"'{letter}1"
    # Where the semicolon is the separator, as in Germany, a name without quotes would be two cells.
    (archive / "a;=1+2.nii").write_bytes(b"no image")
    assert "a;=1+2.nii" in run()[3] and b'\r\n"a;=1+2.nii","' in (tmp_path / "out" / SUMMARY).read_bytes()


def test_what_is_tried_again_counts_once(tmp_path):
    killed = set()

    class Pool(list):
        """Two at a time; whatever kills its worker does so once."""

        def has_room(self):
            return len(self) < 2

        def submit(self, source, but):
            self.append(source)

        def next_result(self):
            source = self.pop(0)
            dies = source.place in "bcd" and source.place not in killed
            killed.add(source.place)
            return source, WorkersDied() if dies else [Outcome("segmented")]

        refresh = recheck_last_worker = lambda self: frozenset()

    told = []
    task = BatchTask(tmp_path, tmp_path, "m", "", "cpu")
    journal = SimpleNamespace(has_results=lambda *_: True, begin=lambda *_: True, note=lambda *call: call[-1])
    work = batch._Work(Pool(), task, journal, lambda *counts: told.append(counts))
    work.do(Source(place, False, "s") for place in "abcde")
    assert told == sorted(told) and told[-1] == (5, 0)


def test_a_long_run_tells_how_far_it_is(run, fast, archive, tmp_path, monkeypatch):
    written = []
    whole = batch_journal.write_summary
    monkeypatch.setattr(batch_journal, "SUMMARY_S", 0.0)
    monkeypatch.setattr(
        batch_journal, "write_summary", lambda known, output: written.append(known) or whole(known, output)
    )
    monkeypatch.setattr("SAUNetLib.cli.COUNT_S", 0.0)
    status, _, err, _ = run()
    assert status == 0 and err.endswith("3 of 4 done, 0 failed\n4 of 4 done, 0 failed\n") and written
    os.utime(archive / "p2" / "A.mha", ns=(0, 0))
    _, out, err, _ = run()
    assert out.startswith("4 sources, 3 done before\n") and err.endswith("1 of 1 done, 0 failed\n")


def test_ctrl_c_while_the_archive_is_looked_through_leaves_all_as_it_was(run, fast, tmp_path, monkeypatch):
    def interrupt(*rest):
        raise KeyboardInterrupt

    run()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(Batch, "is_done", interrupt)
    status, out, err, _ = run()
    assert (status, out, err.count("\n")) == (6, "", 1)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    journal = tmp_path / "out" / JOURNAL
    assert after.pop(journal).startswith(before.pop(journal)) and after == before


def test_work_begins_while_the_archive_is_still_looked_through(run, fast, monkeypatch):
    """A hospital's archive takes hours to be looked through."""
    found, done = find_sources, threading.Event()
    whole = batch_journal.Journal.note

    def slow(*rest):
        for number, source in enumerate(found(*rest)):
            if number == 2:
                assert done.wait(60), "the first sources are done before the last ones are found"
            yield source

    monkeypatch.setattr(batch, "find_sources", slow)
    monkeypatch.setattr(batch_journal.Journal, "note", lambda *call: done.set() or whole(*call))
    status, out, _, told = run("--workers", "1")
    assert status == 0 and len(told) == 4 and out.startswith("4 sources\n")


def test_what_ends_a_run_does_not_wait_for_the_walk(run, fast, monkeypatch):
    """On a slow share a folder without images takes its time."""
    found, ended, answered = find_sources, threading.Event(), []

    def slow(*rest):
        yield next(found(*rest))
        answered.append(ended.wait(60))

    def interrupt(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "find_sources", slow)
    monkeypatch.setattr(batch_journal.Journal, "note", interrupt)
    assert run("--workers", "1")[0] == 6 and not answered
    ended.set()


def test_keys_that_are_not_set_are_told(run, tmp_path):
    status, _, err, _ = run("--scheduler", "tls://127.0.0.1:1")
    assert status == 2 and "distributed.comm.tls" in err


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("", "no scheduler answers at tls://127.0.0.1:1 ("),
        ("missing key", "a TLS file cannot be read: KEY (No such file"),
        ("other key", "could not agree on TLS"),
        ("other authority", "was not issued by an authority configured here"),
    ],
)
def test_what_is_wrong_with_the_keys_is_told(run, tmp_path, monkeypatch, wrong, word):
    monkeypatch.setattr(batch_cluster, "ANSWER_S", 3)
    own, other = Security.temporary(), Security.temporary()
    key, authority = other if wrong == "other key" else own, other if wrong == "other authority" else own
    files = {"ca-file": authority.tls_ca_file, "client.cert": own.tls_client_cert, "client.key": key.tls_client_key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    if wrong == "missing key":
        (tmp_path / "client.key").unlink()
    with (
        dask.config.set({f"distributed.comm.tls.{name}": str(tmp_path / name) for name in files}),
        LocalCluster(n_workers=0, security=own, dashboard_address=None) as one,
    ):
        status, _, err, _ = run("--scheduler", one.scheduler_address if wrong else "tls://127.0.0.1:1")
    assert status == 2 and word.replace("KEY", str(tmp_path / "client.key")) in err and err.count("\n") == 1


def test_what_another_run_did_before_it_ended_is_not_done_again(run, tmp_path, monkeypatch):
    """The journal is read when the lock is had: a run that waited for nothing knows all that was done."""
    run()
    whole, done, kept = (tmp_path / "out" / JOURNAL).read_bytes(), lines(tmp_path / "out"), FileLock.acquire
    (tmp_path / "out" / JOURNAL).unlink()

    def acquire(self, *rest, **more):
        (tmp_path / "out" / JOURNAL).write_bytes(whole)
        return kept(self, *rest, **more)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert run()[0] == 0 and lines(tmp_path / "out") == done


@pytest.mark.parametrize("ending", [".nii.gz", ".csv", ".json", ".png"])
def test_what_stopped_workers_leave_beside_their_results_is_known(tmp_path, ending):
    result = tmp_path / f"a{ending}"
    result.touch()
    with write_beside(result, ending) as temporary:
        temporary.touch()
    with atomic.probe(tmp_path) as trial:
        left = (temporary, atomic._spare_name(result), trial)
    assert all(atomic.is_temporary(one.name, RESULTS) for one in left)
    for name in (result.name, temporary.name[1:], f".0123456789{ending}", temporary.name + "x", temporary.stem[:13]):
        assert not atomic.is_temporary(name, RESULTS), name


def test_a_file_called_like_the_model_is_not_taken_for_it(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAUNET_MODELS", str(tiny_model.parent))
    Path(tiny_model.stem).touch()
    status, _, err, _ = run("--model", tiny_model.stem)
    assert status == 0, err


def test_workers_find_a_model_that_is_named_from_the_command_s_folder(run, tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    monkeypatch.setattr(
        batch, "segment_source", lambda source, task: [Outcome("refused", code="INPUT_EMPTY", text=task.model)]
    )
    assert {row["text"] for row in run("--model", tiny_model.name)[3].values()} == {str(tiny_model)}


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (["--workers", "0"], 2, "workers"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], 2, "not allowed"),
        (["--scheduler", "tcp://127.0.0.1:1"], 2, "no scheduler answers"),
        (["--scheduler", "nonsense://"], 2, "no scheduler answers"),
        (["--model", "nobody"], 4, "nobody"),
        (["nowhere"], 3, "not a folder"),
        ([""], 2, "empty"),
        (["--output", ""], 2, "empty"),
        (["--output", "ABOVE"], 2, "lies in the output"),
        (["--device", "cuda"], 2, "cuda"),
    ],
)
def test_what_cannot_be_begun_is_refused(archive, tmp_path, tiny_model, monkeypatch, capsys, options, status, word):
    monkeypatch.setattr(batch_cluster, "ANSWER_S", 0.5)
    options = [str(archive.parent) if one == "ABOVE" else one for one in options]
    place = options if options[0] in ("nowhere", "") else [str(archive), *options]
    model = [] if "--model" in options else ["--model", str(tiny_model)]
    output = [] if "--output" in options else ["--output", str(tmp_path / "out")]
    assert main(["batch", *place, *output, *model]) == status
    err = capsys.readouterr().err
    assert err.startswith("error ") and word in err and err.count("\n") == 1


def test_a_full_disk_is_met_before_the_work(archive, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["batch", str(archive), "--output", str(tmp_path / "out")]) == 2
    assert f"error OUTPUT_WRITE: {tmp_path / 'out'} is a file" in capsys.readouterr().err
    assert main(["batch", str(archive), "--output", str(tmp_path / "out" / "below")]) == 2
    assert "OUTPUT_WRITE" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_nobody_else_can_connect_to_workers_here_or_lay_modules_before_theirs(tmp_path, monkeypatch):
    """Dask puts its folder first where the modules are looked for, of the command and of the workers."""

    def about(dask_worker):
        return sys.path[0], dask_worker.local_directory, signal.getsignal(signal.SIGINT)

    before = list(sys.path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "saunet-batch-999999999-ab_d12xy"  # by a command that was killed
    left.mkdir()
    with batch_cluster.connected(None, 1, tmp_path) as client:
        assert client.scheduler.address.startswith("tls://"), "with keys that only this process has"
        ((first, used, heard),) = client.run(about).values()
        private = Path(used).parent.parent
        assert private.name.startswith(f"saunet-batch-{os.getpid()}-") and not left.exists()
        about_private = private.stat()
        assert (about_private.st_uid, about_private.st_mode & 0o777) == (os.getuid(), 0o700)
        assert first == used and heard == signal.SIG_IGN
        ours = [Path(one) for one in sys.path if one not in before]
        assert ours and all(one.is_relative_to(private) for one in ours)
        assert not list(private.rglob("*.py")), "nothing that is run is made as a file"
    assert not private.exists()


@pytest.fixture
def started(request, archive, tmp_path, tiny_model):
    """The command in a process of its own, with two workers of its own and thirty more images, or another number."""
    for number in range(getattr(request, "param", 30)):
        shutil.copy(archive / "p2" / "A.mha", archive / f"{number}.mha")
    command = [sys.executable, "-m", "SAUNetLib", "batch", str(archive), "--output", str(tmp_path / "out"),
               "--workers", "2", "--model", str(tiny_model), "--device", "cpu"]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit it ignored
    ) as one:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and one.poll() is None and not written(tmp_path / "out"):
            time.sleep(0.05)
        yield one
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)


def written(output: Path) -> int:
    return len(lines(output)) if (output / JOURNAL).exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("started", [12], indirect=True)
def test_a_killed_worker_costs_nothing(started, tmp_path):
    workers = [
        one for one in psutil.Process(started.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())
    ]
    assert len(workers) >= 2
    workers[-1].kill()
    out, err = started.communicate(timeout=200)
    assert started.returncode == 0, err
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"segmented", "refused"}
    assert out.startswith("16 sources\n15 segmented, 1 refused, 0 failed") and "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_batch_keeps_what_is_done_and_goes_on(started, run, tmp_path, monkeypatch, number):
    # A terminal signals all processes of the command, and who is in a hurry presses more than once.
    for _ in range(3 if number == signal.SIGINT else 1):
        (os.killpg if number == signal.SIGINT else os.kill)(started.pid, number)
        time.sleep(0.3)
    _, err = started.communicate(timeout=100)
    assert started.returncode == 6, err
    assert err.count("\n") == 1 and err.startswith("error CANCELLED"), err
    done = written(tmp_path / "out")
    assert 1 <= done < 33 and len(rows(tmp_path / "out")) == done
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()], "nothing half-written"
    outputs = [tmp_path / "out" / row["output"] for row in rows(tmp_path / "out").values() if row["output"]]
    results = {path: path.stat().st_mtime_ns for path in outputs}
    monkeypatch.setattr("SAUNetLib.pipeline.segment_file", write_empty)  # the rest need not take its time
    status, _, _, told = run()
    assert status == 0 and len(told) == 34
    assert results == {path: path.stat().st_mtime_ns for path in results}
