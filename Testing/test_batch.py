"""`saunet batch`: an archive on real Dask workers; what is done stays done, whatever dies or is refused meanwhile."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from builders import picture, write_dicom_series
from conftest import ROOT
from distributed import LocalCluster
from filelock import FileLock

from SAUNetLib import batch
from SAUNetLib.batch import JOURNAL, LOCK, SUMMARY, Batch, Study, find_studies, read_batch
from SAUNetLib.cli import main
from SAUNetLib.formats.segmentations import read_segmentation


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


def rows(output: Path) -> dict[str, dict[str, str]]:
    with open(output / SUMMARY, newline="", encoding="utf-8") as file:
        return {row["place"]: row for row in csv.DictReader(file)}


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / JOURNAL).read_text().splitlines() if line]


def test_every_series_gets_its_results_and_a_row(run, tmp_path):
    status, out, err, told = run()
    assert status == 0 and not err and out.split() == ["3", "segmented,", "1", "refused,", "0", "failed",
                                                       str(tmp_path / "out" / SUMMARY)]  # fmt: skip
    assert {place: row["status"] for place, row in told.items()} == {
        "p1/mr": "segmented", "p1/torn.nrrd": "refused", "p2/A.mha": "segmented", "p2/a.nii.gz": "segmented",
    }  # fmt: skip
    assert told["p1/torn.nrrd"]["code"] == "INPUT_UNREADABLE" and told["p1/mr"]["series"] == "series 4 (T2 sag)"
    assert told["p2/a.nii.gz"]["output"] == "p2/a.nii.gz.nii.gz", "its namesake would be written over"
    for row in told.values():
        if row["output"]:
            label_map = tmp_path / "out" / row["output"]
            assert read_segmentation(label_map).labels.shape == picture().voxels.shape
            stem = label_map.name.removesuffix(".nii.gz")
            beside = {path.name.removeprefix(stem) for path in label_map.parent.glob(f"{stem}.*")}
            assert {".nii.gz", ".csv", ".json", ".png"} <= beside


def test_what_is_done_is_not_done_again(run, archive, tmp_path):
    run()
    before = lines(tmp_path / "out")
    assert run()[0] == 0 and lines(tmp_path / "out") == before
    sitk.WriteImage(picture((5, 64, 48)).to_sitk(), str(archive / "p2" / "A.mha"))
    (tmp_path / "out" / rows(tmp_path / "out")["p1/mr"]["output"]).unlink()
    assert run()[0] == 0
    assert {one["place"] for one in lines(tmp_path / "out")[len(before) :]} == {"p1/mr", "p2/A.mha"}
    assert len(rows(tmp_path / "out")) == 4


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
    monkeypatch.setattr(batch, "_engine", batch._engine.__wrapped__)
    done = len(lines(tmp_path / "out"))
    study = Study("p2/A.mha", "A", "x")
    archive, output = tmp_path / "archive", tmp_path / "other"
    (found,) = batch.segment_study(study, archive, output, str(tiny_model), "0" * 64, "cpu")
    assert (found.status, found.code) == ("failed", "MODEL_MISMATCH") and not output.exists()
    known = read_batch(tmp_path / "out")
    record = known.records["p2/A.mha"]
    same = Study("p2/A.mha", "A", record["stamp"])
    assert known.is_done(same, record["model"], tmp_path / "out")
    assert not known.is_done(same, "0" * 64, tmp_path / "out") and len(lines(tmp_path / "out")) == done


def test_a_journal_that_was_cut_short_loses_one_line(run, tmp_path):
    run()
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-40])
    assert len(read_batch(tmp_path / "out").records) == 3
    run()
    assert len(read_batch(tmp_path / "out").records) == 4


def test_studies_are_found_in_order_and_results_are_none(archive):
    sitk.WriteImage(picture().to_sitk(), str(archive / "p1" / "mr" / "beside.nrrd"))
    found = list(find_studies(archive, archive / "p2"))
    assert [(one.place, one.name) for one in found] == [
        ("p1/torn.nrrd", "torn"), ("p1/mr/beside.nrrd", "beside"), ("p1/mr", ""),
    ]  # fmt: skip
    assert list(find_studies(archive / "p1" / "mr", archive))[-1].place == "."
    before = found[-1].stamp
    first = next(path for path in (archive / "p1" / "mr").iterdir() if path.suffix != ".nrrd")
    os.utime(first, ns=(0, 0))
    assert list(find_studies(archive, archive / "p2"))[-1].stamp != before
    assert Batch().counts() == {"segmented": 0, "refused": 0, "failed": 0}


def test_a_folder_that_cannot_be_read_is_told(run, archive, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("p1"):
            raise PermissionError(errno.EACCES, "closed", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    status, _, _, told = run()
    assert status == 0 and (told["p1"]["status"], told["p1"]["code"]) == ("refused", "INPUT_UNREADABLE")


def test_images_that_arrived_empty_are_told(run, archive):
    (archive / "p3").mkdir()
    (archive / "p3" / "1.dcm").touch()
    assert run()[3]["p3"]["code"] == "INPUT_UNREADABLE"


def test_two_runs_do_not_share_an_output(run, tmp_path):
    run()
    with FileLock(tmp_path / "out" / LOCK):
        status, _, err, _ = run()
    assert status == 2 and "another run works" in err


@pytest.mark.parametrize(
    ("options", "status", "word"),
    [
        (["--workers", "0"], 2, "workers"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], 2, "not allowed"),
        (["--scheduler", "tcp://127.0.0.1:1"], 2, "no scheduler answers"),
        (["--scheduler", "nonsense://"], 2, "no scheduler answers"),
        (["--model", "nobody"], 4, "nobody"),
        (["nowhere"], 3, "not a folder"),
    ],
)
def test_what_cannot_be_begun_is_refused(archive, tmp_path, tiny_model, monkeypatch, capsys, options, status, word):
    monkeypatch.setattr(batch, "ANSWER_S", 0.5)
    place = options if options[0] == "nowhere" else [str(archive), *options]
    model = [] if "--model" in options else ["--model", str(tiny_model)]
    assert main(["batch", *place, "--output", str(tmp_path / "out"), *model]) == status
    err = capsys.readouterr().err
    assert err.startswith("error ") and word in err and err.count("\n") == 1


def test_a_full_disk_is_met_before_the_work(archive, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert main(["batch", str(archive), "--output", str(tmp_path / "out")]) == 2
    assert "OUTPUT_WRITE" in capsys.readouterr().err


@pytest.fixture
def started(archive, tmp_path, tiny_model):
    """The command in a process of its own, with two workers of its own and thirty images."""
    for number in range(30):
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
def test_a_killed_worker_costs_nothing(started, tmp_path):
    workers = [
        one for one in psutil.Process(started.pid).children(recursive=True) if "spawn_main" in str(one.cmdline())
    ]
    assert len(workers) >= 2
    workers[-1].kill()
    out, err = started.communicate(timeout=200)
    assert started.returncode == 0, err
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"segmented", "refused"}
    assert out.startswith("33 segmented, 1 refused, 0 failed") and "Traceback" not in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_batch_keeps_what_is_done_and_goes_on(started, archive, tmp_path, tiny_model, number):
    started.send_signal(number)
    _, err = started.communicate(timeout=100)
    assert started.returncode == 6, err
    assert err.count("\n") == 1 and err.startswith("error CANCELLED"), err
    done = written(tmp_path / "out")
    assert 1 <= done < 33 and len(rows(tmp_path / "out")) == done
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.is_file()], "nothing half-written"
    command = ["batch", str(archive), "--output", str(tmp_path / "out"), "--model", str(tiny_model), "--workers", "1"]
    assert main([*command, "--quiet"]) == 0 and len(rows(tmp_path / "out")) == 34
