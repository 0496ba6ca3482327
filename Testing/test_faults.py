"""Faults in real processes: killed, out of disk, out of memory, cancelled, worn and doubled; nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
import SimpleITK as sitk
from builders import picture
from conftest import ROOT
from memory_group import large_file, memory_group  # noqa: F401
from PIL import Image

from SAUNetLib import batch_source
from SAUNetLib.batch import find_sources
from SAUNetLib.batch_journal import Batch, Outcome, Source, SourceRecord, open_journal
from SAUNetLib.batch_source import BatchTask
from SAUNetLib.errors import CancelledError, OutOfMemoryError, SAUNetError, UsageError, unforeseen
from SAUNetLib.formats.atomic import write_beside, write_together
from SAUNetLib.formats.segmentations import read_segmentation, write_segmentation
from SAUNetLib.formats.volumes import read_volume, write_volume
from SAUNetLib.model import load_model
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Volume, to_sitk
from SAUNetLib.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits, /proc and a fork server")

OUTPUTS = {"output": "b.seg.nrrd", "table": "c.csv", "preview": "d.png"}
Hook = Callable[["FaultyWorker", dict[str, Any]], None]


class FaultyWorker(Worker):
    """A worker to which something happens: a hook sees every event right after it was sent.

    Its requests come through a pipe of its own, which stays open until all are answered (its end would cancel).
    """

    def __init__(self, requests: list[dict[str, Any]], events: Any, hook: Hook | None) -> None:
        reading, writing = os.pipe()
        super().__init__(os.fdopen(reading, encoding="utf-8"), events)
        self.line = os.fdopen(writing, "w", encoding="utf-8")
        self.left, self.hook, self.number = 0, hook, 0
        self.say(*requests)

    def say(self, *requests: dict[str, Any]) -> None:
        """Send requests through the pipe."""
        self.left += sum(request["command"] != "cancel" for request in requests)
        self.line.writelines(json.dumps(request) + "\n" for request in requests)
        self.line.flush()

    def _send(self, **event: Any) -> None:
        super()._send(**event)
        self.number += 1
        if event["event"] in ("result", "error"):
            self.left -= 1
        if self.hook is not None:
            self.hook(self, event)
        if self.left == 0:
            self.line.close()


def child(connection: Any, folder: str, requests: list[dict[str, Any]], hook: Hook | None) -> None:
    """The process: a worker whose events go through the connection."""
    os.chdir(folder)
    with os.fdopen(os.dup(connection.fileno()), "w", encoding="utf-8") as events:
        FaultyWorker(requests, events, hook).serve()


class Process:
    """A child with its events, read once it has ended."""

    def __init__(self, context: Any, folder: Path, requests: list[dict[str, Any]], hook: Hook | None = None) -> None:
        reading, writing = context.Pipe(duplex=False)
        self._reading = reading
        self._process = context.Process(target=child, args=(writing, str(folder), requests, hook), daemon=True)
        self._process.start()
        writing.close()

    def events(self) -> list[dict[str, Any]]:
        """All that it said; returns when it has ended."""
        with os.fdopen(os.dup(self._reading.fileno()), encoding="utf-8") as stream:
            events = [json.loads(line) for line in stream if line.endswith("\n")]
        self._process.join(60)
        self.status = self._process.exitcode
        return events


def answers(events: list[dict[str, Any]]) -> list[str]:
    """How each request ended: ``result`` or an error's code."""
    ends = [event for event in events if event["event"] in ("result", "error")]
    return [event.get("code", "result") for event in ends]


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    """Processes forked from one that has everything imported: a fault costs no start of the interpreter."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["test_faults", "SAUNetLib.pipeline", "SAUNetLib.formats.previews", "slicerio"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a library's threads would not survive the fork
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'Testing'}")
        made.Process(target=int).start()
    yield made


@pytest.fixture(scope="module")
def request_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A request that writes all that can be written; its image lies elsewhere than its results."""
    image = tmp_path_factory.mktemp("input") / "a.nrrd"
    sitk.WriteImage(picture().to_sitk(), str(image))
    return {"command": "segment", "image": str(image), "model": str(tiny_model), "device": "cpu", **OUTPUTS}


@pytest.fixture(scope="module")
def quick(request_of: dict[str, Any]) -> dict[str, Any]:
    """The same without the preview, which takes most of the time."""
    return {key: value for key, value in request_of.items() if key != "preview"}


@pytest.fixture(scope="module")
def undisturbed(context: Any, request_of: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder and the events of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    events = Process(context, folder, [request_of]).events()
    assert answers(events) == ["result"] and sorted(left(folder)) == sorted(OUTPUTS.values())
    return folder, events


def steps_of(events: list[dict[str, Any]]) -> list[int]:
    """Numbers of the events that tell of progress."""
    return [n for n, event in enumerate(events, 1) if event["event"] == "progress"]


def left(folder: Path) -> list[str]:
    """Names of all files in a folder."""
    return [path.name for path in folder.iterdir()]


def content(path: Path) -> Any:
    """What a whole result file holds; raises for half a one."""
    if path.suffix == ".csv":
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        assert len({len(row) for row in rows}) == 1
        return rows
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.size
    return read_segmentation(path).labels.tolist()


def assert_whole(folder: Path, undisturbed: Any) -> None:
    """What can be seen is whole; what cannot is at most a hidden temporary file."""
    for name in left(folder):
        if not name.startswith("."):
            assert content(folder / name) == content(undisturbed[0] / name), name


# -- killed ----------------------------------------------------------------------------------------------------------


class KillAtEvent:
    """SIGKILL right after event number n."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if worker.number == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_after_any_event_it_leaves_whole_files_or_none(context, quick, undisturbed, tmp_path):
    number = len(undisturbed[1])
    moved = max(steps_of(undisturbed[1]))  # what follows are warnings and the result
    assert moved >= 12, "a run tells of its stages"
    for n in range(1, number + 1):
        process = Process(context, tmp_path, [quick], KillAtEvent(n))
        assert len(process.events()) == n and process.status == -signal.SIGKILL
        assert_whole(tmp_path, undisturbed)
        assert bool(set(left(tmp_path)) & set(OUTPUTS.values())) == (n > moved), "results appear at the end"


class KillAtFile:
    """SIGKILL right before the n-th of the operations on files that write: open, rename, remove."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if event.get("stage") == "write" and event["fraction"] == 0:
            sys.addaudithook(self._count)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove"):
            self.number -= 1
            if self.number == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def test_killed_before_any_file_operation_it_leaves_whole_files_or_none(context, quick, undisturbed, tmp_path):
    for n in range(1, 100):
        process = Process(context, tmp_path, [quick], KillAtFile(n))
        events = process.events()
        assert_whole(tmp_path, undisturbed)
        if answers(events):
            break
        assert process.status == -signal.SIGKILL
    assert n > 6, "at least one opening, one synchronising and one renaming per file"
    assert answers(events) == ["result"] and {quick["output"], quick["table"]} <= set(left(tmp_path))


# -- no room on the disk ---------------------------------------------------------------------------------------------


class SmallFiles:
    """No file may grow beyond a number of bytes until the first request is answered."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if worker.number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, hard))
        elif event["event"] == "error":
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_at_any_write_keeps_what_was_there(context, request_of, quick, undisturbed, tmp_path):
    sizes = [(undisturbed[0] / name).stat().st_size for name in OUTPUTS.values()]
    for name in OUTPUTS.values():
        (tmp_path / name).write_text("old")
    other = quick | {"output": "new.seg.nrrd", "table": "new.csv"}
    for most in sorted({0, 1, *(size // 2 for size in sizes), *(size - 1 for size in sizes)}):
        if most >= max(sizes):
            continue
        events = Process(context, tmp_path, [request_of, other], SmallFiles(most)).events()
        assert answers(events) == ["OUTPUT_WRITE", "result"], most
        assert set(left(tmp_path)) == {*OUTPUTS.values(), other["output"], other["table"]}, most
        assert all((tmp_path / name).read_text() == "old" for name in OUTPUTS.values())
        for key in ("output", "table"):
            assert content(tmp_path / other[key]) == content(undisturbed[0] / OUTPUTS[key])
            (tmp_path / other[key]).unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k,mode=0777", "none", str(place)], capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        pytest.skip(f"a small disk may not be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("room", [0, 4096, 8192, 12288])
def test_a_disk_that_is_really_full_ends_empty(context, request_of, undisturbed, small_disk, room):
    (small_disk / "other").write_bytes(bytes(16384 - room))
    assert sum((undisturbed[0] / name).stat().st_size for name in OUTPUTS.values()) > 12288
    events = Process(context, small_disk, [request_of]).events()
    assert answers(events) == ["OUTPUT_WRITE"] and left(small_disk) == ["other"]


def test_a_device_that_is_always_full_is_refused_before_the_work(context, request_of, tmp_path):
    (tmp_path / OUTPUTS["output"]).symlink_to("/dev/full")
    events = Process(context, tmp_path, [request_of]).events()
    assert answers(events) == ["OUTPUT_WRITE"] and not any(event.get("stage") == "segment" for event in events)


def test_files_written_together_appear_together(tmp_path):
    with write_together():
        for name in ("a", "b"):
            with write_beside(tmp_path / name, ".txt") as temporary:
                temporary.write_text(name)
        assert not {"a", "b"} & set(left(tmp_path))
    assert sorted(left(tmp_path)) == ["a", "b"]
    with pytest.raises(KeyError), write_together():
        with write_beside(tmp_path / "c", ".txt") as temporary:
            temporary.write_text("c")
        raise KeyError
    assert sorted(left(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
def test_where_the_second_of_two_files_cannot_get_to_its_place_the_first_is_as_it_was(tmp_path, monkeypatch, linked):
    """As when a spreadsheet holds the table open on Windows."""
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links on this file system")))
    (tmp_path / "a").write_text("before")
    replace_file = Path.replace

    def replace(self, target):
        if Path(target).name == "c":
            raise PermissionError(13, "in use")
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UsageError) as caught, write_together():
        for name in ("a", "b", "c"):
            with write_beside(tmp_path / name, ".txt") as temporary:
                temporary.write_text("after")
    assert caught.value.code == "OUTPUT_WRITE" and "c could not" in str(caught.value)
    assert sorted(left(tmp_path)) == ["a"] and (tmp_path / "a").read_text() == "before"


@pytest.mark.parametrize("step", ["link", "replace"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_where_a_signal_comes_while_files_are_moved_all_are_as_they_were(tmp_path, monkeypatch, step, number):
    """Right after a file got its second name or its place, as SIGTERM and Ctrl-C may."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("before")
    home, done = (os, os.link) if step == "link" else (Path, Path.replace)
    calls = []

    def interrupted(*arguments):
        done(*arguments)
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(home, step, interrupted)
    if (step, number) == ("link", 3):
        (tmp_path / "c").write_text("before")
    there = sorted(left(tmp_path))
    with pytest.raises(KeyboardInterrupt), write_together():
        for name in ("a", "b", "c"):
            with write_beside(tmp_path / name, ".txt") as temporary:
                temporary.write_text("after")
    assert sorted(left(tmp_path)) == there and all((tmp_path / name).read_text() == "before" for name in there)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_volume_that_did_not_get_onto_the_disk_is_not_left_there(tmp_path, ending, share):
    """ITK does not report every failed write."""
    import resource

    volume = builders.volume(builders.geometry(size=(96, 96, 7)))
    path = tmp_path / f"volume{ending}"
    write_volume(volume, path)
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), limits[1]))
    try:
        with pytest.raises(UsageError) as caught:
            write_volume(volume, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == "OUTPUT_WRITE"
    assert left(tmp_path) == [path.name] and path.read_text() == "old"


def test_a_result_that_replaces_a_private_one_stays_private(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    path.chmod(0o600)
    with write_beside(path, ".csv") as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("together", [write_together, contextlib.nullcontext])
def test_a_folder_that_vanishes_while_writing_is_an_error_of_writing(tmp_path, together):
    """As a share does whose connection breaks: removing what was begun fails like writing."""
    folder = tmp_path / "share"
    with pytest.raises(UsageError) as caught, together():
        with write_beside(folder / "a.txt", ".txt") as temporary:
            temporary.write_text("a")
        with write_beside(folder / "b.txt", ".txt") as temporary:
            folder.rename(tmp_path / "gone")
            folder.write_text("no folder any more")
    assert caught.value.code == "OUTPUT_WRITE"


# -- no memory -------------------------------------------------------------------------------------------------------


def limit_memory(more: int | None) -> None:
    """Of this process: so many bytes more than it uses now; None lifts the limit."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = hard if more is None else pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


class LittleMemory:
    """From event number n until the request's end only so many bytes more can be had."""

    def __init__(self, number: int, more: int) -> None:
        self.number, self.more = number, more

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if event["event"] in ("result", "error"):
            limit_memory(None)
        elif worker.number == self.number:
            limit_memory(self.more)


@pytest.fixture(scope="module")
def large_request(quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A request whose every step needs megabytes."""
    image = tmp_path_factory.mktemp("large") / "a.nrrd"
    sitk.WriteImage(picture((8, 320, 320), (1.0, 1.0, 4.0)).to_sitk(), str(image))
    return quick | {"image": str(image), "levels": False}


@pytest.mark.parametrize("more", [0, 2**21])
def test_without_memory_at_any_stage_it_says_so_and_serves_on(context, large_request, quick, tmp_path, more):
    other = quick | {"output": "new.seg.nrrd", "table": "new.csv"}
    stages: dict[str, str] = {}
    clean = Process(context, tmp_path, [large_request]).events()
    for name in left(tmp_path):
        (tmp_path / name).unlink()
    firsts = {event["stage"]: n for n, event in reversed(list(enumerate(clean, 1))) if "stage" in event}
    for stage, n in firsts.items():
        process = Process(context, tmp_path, [large_request, other], LittleMemory(n, more))
        events = process.events()
        assert process.status == 0 and len(answers(events)) == 2, (stage, process.status, events[-1])
        stages[stage], second = answers(events)
        assert second == "result" and stages[stage] in ("result", "MEMORY"), events
        seen = set(left(tmp_path)) & set(OUTPUTS.values())
        assert len(seen) == (2 if stages[stage] == "result" else 0)
        for path in tmp_path.iterdir():
            assert not path.name.startswith(".")
            path.unlink()
    assert "MEMORY" in stages.values(), stages


def test_killed_at_a_memory_limit_it_leaves_what_was_there(tiny_model, large_file, tmp_path, monkeypatch, capfd):  # noqa: F811
    """run.py, which starts the command, says what happened."""
    import run

    output = tmp_path / "out" / "b.nrrd"
    output.parent.mkdir()
    output.write_text("old")
    with memory_group() as limited:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.join([*limited, sys.executable])} "$@"\n')
        python.chmod(0o700)
        monkeypatch.setattr(run, "PYTHON", python)
        status = run.saunet("segment", str(large_file), "--output", str(output), "--model", str(tiny_model))
    assert status == OutOfMemoryError.exit_status and capfd.readouterr().err.startswith("error MEMORY: ")
    assert left(output.parent) == ["b.nrrd"] and output.read_text() == "old"


class LittleMemoryInTheFirst:
    """Memory ends at step n of the first image that the command segments, and is there again for the second one."""

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0

    def __call__(self, segment_file: Callable[..., Any], *arguments: Any, report: Any, **options: Any) -> Any:
        def watched(stage: str, fraction: float) -> None:
            self.steps += 1
            if self.steps == self.number:
                limit_memory(0)
            report(stage, fraction)

        try:
            return segment_file(*arguments, report=watched, **options)
        finally:
            limit_memory(None)


def command(connection: Any, folder: str, arguments: list[str], hook: Callable[..., Any]) -> None:
    """The process: the command line, whose every run of the pipeline goes through a hook; its status is sent."""
    from SAUNetLib import cli, pipeline

    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the server of forks may have begun where a test had it ignored
    pipeline.segment_file = partial(hook, pipeline.segment_file)
    connection.send(cli.main(arguments))


def run_command(context: Any, folder: Path, quick: dict[str, Any], images: list[Path], hook: Callable[..., Any]) -> int:
    """The status of a command that segments images into the folder `many`."""
    arguments = ["segment", *map(str, images), "--output", "many", "--model", quick["model"], "--device", "cpu"]
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=command, args=(writing, str(folder), [*arguments, "--quiet"], hook), daemon=True)
    process.start()
    writing.close()
    status = reading.recv()
    process.join(60)
    return status


def test_without_memory_for_one_image_the_command_segments_the_next(context, large_request, quick, tmp_path):
    second, many = tmp_path / "b.nrrd", tmp_path / "many"
    second.write_bytes(Path(quick["image"]).read_bytes())
    statuses = set()
    for n in range(2, 9):  # reading, checking, the network's steps, naming
        images = [Path(large_request["image"]), second]
        status = run_command(context, tmp_path, quick, images, LittleMemoryInTheFirst(n))
        statuses.add(status)
        assert sorted(left(many)) == (["a.nii.gz", "b.nii.gz"] if status == 0 else ["b.nii.gz"]), (n, status)
        for path in many.iterdir():
            path.unlink()
    assert OutOfMemoryError.exit_status in statuses and statuses <= {0, OutOfMemoryError.exit_status}, statuses


def in_little_memory(connection: Any, more: int | None, act: Callable[..., Any], *arguments: Any) -> None:
    """The process: what `act` returns, or the code of what it raises, while so many bytes more can be had."""
    limit_memory(more)
    try:
        said = act(*arguments)
    except Exception as error:
        said = error.code if isinstance(error, SAUNetError) else unforeseen(error, "Report it").code
    limit_memory(None)
    connection.send(said)


def answer_in_little_memory(context: Any, more: int | None, act: Callable[..., Any], *arguments: Any) -> Any:
    """What `in_little_memory` sends."""
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=in_little_memory, args=(writing, more, act, *arguments), daemon=True)
    process.start()
    writing.close()
    said = reading.recv()
    process.join(60)
    return said


def is_read(path: Path) -> str:
    (read_segmentation if path.name.endswith(".seg.nrrd") else read_volume)(path)
    return "read"


def write_large(kind: str, folder: Path) -> Path:
    """An image of 7 MB that does not compress, as a file of this ending or a DICOM folder."""
    voxels = np.random.default_rng(0).integers(0, 900, (40, 300, 300)).astype(np.int16)
    volume = Volume(voxels, builders.geometry(size=(300, 300, 40), spacing=(0.5, 0.5, 4.0)))
    path = folder / f"image{kind}"
    if kind == ".seg.nrrd":
        labels = (voxels > 400).astype(np.uint8) * 41
        write_segmentation(Segmentation(labels, volume.geometry), path)
    elif kind.startswith("."):
        sitk.WriteImage(volume.to_sitk(), str(path), kind not in (".nii", ".mhd"))
    elif kind == "series":
        builders.write_dicom_series(path, volume)
    else:
        path.mkdir()
        builders.write_enhanced(path / "image.dcm", volume, list(range(40)))
    return path


@pytest.mark.parametrize(
    "kind", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", "series", "enhanced", ".seg.nrrd"]
)
def test_a_good_image_is_not_called_damaged_for_want_of_memory(context, tmp_path, kind):
    path = write_large(kind, tmp_path)
    said = {more: answer_in_little_memory(context, more << 20, is_read, path) for more in (0, 1, 2, 4, 6, 9, 12, 64)}
    assert said[0] == "MEMORY" and said[64] == "read" and set(said.values()) == {"MEMORY", "read"}, said


def test_a_damaged_image_is_damaged_whatever_memory_there_is(context, tmp_path):
    path = write_large(".nii", tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    for more in (4 << 20, None):
        assert answer_in_little_memory(context, more, is_read, path) == "INPUT_UNREADABLE"


def outcomes_in_little_memory(source: Source, task: BatchTask, more: int | None) -> list[Outcome]:
    """What a worker of a batch says of a source; its engine was loaded while there was memory."""
    batch_source._engine(task.model, task.sha256, task.device)
    limit_memory(more)
    return batch_source.segment_source(source, task)


@pytest.mark.parametrize("kind", [".nii.gz", "enhanced"])
def test_a_batch_keeps_the_results_of_an_image_for_which_there_was_no_memory(context, tiny_model, tmp_path, kind):
    archive, output = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    output.mkdir()
    write_large(kind, archive)
    card = load_model(tiny_model).card
    task = BatchTask(archive, output, str(tiny_model), card.sha256, "cpu")
    (source,) = find_sources(archive, output)
    records: dict[str, SourceRecord] = {}
    for more in (None, 2 << 20, 6 << 20, None):
        (outcome,) = answer_in_little_memory(context, None, outcomes_in_little_memory, source, task, more)
        assert (outcome.status, outcome.code) == (("failed", "MEMORY") if more else ("segmented", "")), outcome
        with open_journal(records, archive, output, Batch) as journal:
            journal.note(source, card.sha256, [outcome])
        assert len(records[source.place].outcomes[0].files()) == 4
        assert all((output / name).is_file() for name in records[source.place].outcomes[0].files())
        assert Batch(records).is_done(source, card.sha256, output) == (more is None)


# -- cancelled -------------------------------------------------------------------------------------------------------


class CancelAtEvent:
    """A cancel sent at event number n and heard before the next step; then perhaps another request."""

    def __init__(self, number: int, *then: dict[str, Any]) -> None:
        self.number, self.then = number, then

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if worker.number == self.number:
            worker.say({"command": "cancel"}, *self.then)
            limit = time.monotonic() + 20
            while worker._cancelled_to < 1 and time.monotonic() < limit:
                time.sleep(0.001)


def test_cancelled_at_any_event_it_writes_nothing_and_serves_on(context, quick, undisturbed, tmp_path):
    steps = steps_of(undisturbed[1])
    for n in steps:
        events = Process(context, tmp_path, [quick], CancelAtEvent(n)).events()
        if n < steps[-1]:  # after the last one the files are there
            assert answers(events) == ["CANCELLED"] and left(tmp_path) == [], undisturbed[1][n - 1]
        else:
            assert answers(events) == ["result"]
            assert_whole(tmp_path, undisturbed)
    after = quick | {"output": "new.seg.nrrd", "table": "new.csv"}
    never = quick | {"output": "never.seg.nrrd"}
    said = Process(context, tmp_path, [never], CancelAtEvent(steps[3], after)).events()
    assert answers(said) == ["CANCELLED", "result"] and not (tmp_path / "never.seg.nrrd").exists()


class InterruptedAt:
    """A polite request to end arrives at step n, and is heard before the step ends."""

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, 0

    def __call__(self, segment_file: Callable[..., Any], *arguments: Any, report: Any, **options: Any) -> Any:
        def watched(stage: str, fraction: float) -> None:
            self.steps += 1
            if self.steps == self.number:
                os.kill(os.getpid(), signal.SIGTERM)
                limit = time.monotonic() + 20
                while time.monotonic() < limit:
                    report(stage, fraction)
                    time.sleep(0.001)
            report(stage, fraction)

        return segment_file(*arguments, report=watched, **options)


def test_an_interrupt_ends_all_of_several_images(context, quick, undisturbed, tmp_path):
    images = [tmp_path / "a.nrrd", tmp_path / "b.nrrd"]
    for image in images:
        image.write_bytes(Path(quick["image"]).read_bytes())
    for n in range(1, len(steps_of(undisturbed[1])) - 1, 3):
        assert run_command(context, tmp_path, quick, images, InterruptedAt(n)) == CancelledError.exit_status
        assert not (tmp_path / "many").exists() or left(tmp_path / "many") == [], n


# -- worn and doubled ------------------------------------------------------------------------------------------------


class Measure:
    """After every answer the process's resident memory and its open descriptors, as an event."""

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if event["event"] == "result":
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            open_files = len(list(Path("/proc/self/fd").iterdir()))
            Worker._send(worker, event="measured", resident=resident, files=open_files)


def test_two_hundred_requests_grow_neither_memory_nor_descriptors(context, quick, tmp_path):
    sitk.WriteImage(picture((2, 40, 40)).to_sitk(), str(tmp_path / "a.nrrd"))
    small = {key: value for key, value in quick.items() if key != "table"} | {"image": str(tmp_path / "a.nrrd")}
    events = Process(context, tmp_path, [small | {"output": f"{n % 4}.nrrd"} for n in range(200)], Measure()).events()
    assert answers(events) == ["result"] * 200
    measured = [event for event in events if event["event"] == "measured"]
    resident = [event["resident"] for event in measured]
    assert np.median(resident[-20:]) <= 1.03 * np.median(resident[30:50])
    assert max(event["files"] for event in measured[1:]) <= measured[1]["files"]


class Wait:
    """Both processes write at the same moment."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self, worker: FaultyWorker, event: dict[str, Any]) -> None:
        if event.get("stage") == "write" and event["fraction"] == 0:
            Path(self.place, f"{os.getpid()}.waiting").touch()
            limit = time.monotonic() + 20
            while len(list(Path(self.place).glob("*.waiting"))) < 2 and time.monotonic() < limit:
                time.sleep(0.0005)


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_two_processes_on_one_output_leave_one_whole_result(context, request_of, tmp_path, ending):
    images = []
    for seed in (1, 2):
        image = picture()
        voxels = np.roll(image.voxels, 17 * seed, axis=1)
        images.append(str(tmp_path / f"{seed}.nrrd"))
        sitk.WriteImage(to_sitk(voxels, image.geometry), images[-1])
    one = {key: value for key, value in request_of.items() if key not in ("table", "preview")}
    alone = []
    for number, image in enumerate(images):
        Process(context, tmp_path, [one | {"image": image, "output": f"alone{number}{ending}"}]).events()
        alone.append(content(tmp_path / f"alone{number}{ending}"))
    assert alone[0] != alone[1]
    for turn in range(3):
        place = tmp_path / f"turn{turn}"
        place.mkdir()
        both = [
            Process(context, place, [one | {"image": image, "output": f"b{ending}"}], Wait(str(place)))
            for image in images
        ]
        assert [answers(process.events()) for process in both] == [["result"], ["result"]]
        assert [name for name in left(place) if not name.endswith(".waiting")] == [f"b{ending}"]
        assert content(place / f"b{ending}") in alone


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Whoever looks while results replace each other sees the old one or the new one."""
    target, ends = tmp_path / "a.txt", time.monotonic() + 1
    writer = (
        "import sys, time; from pathlib import Path; from SAUNetLib.formats.atomic import write_beside\n"
        "while True:\n"
        "    for letter in 'ab':\n"
        "        with write_beside(Path(sys.argv[1]), '.txt') as part: part.write_text(letter * 100_000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(target)], cwd=ROOT)
    seen = set()
    try:
        while time.monotonic() < ends or len(seen) < 2:
            with contextlib.suppress(FileNotFoundError):
                seen.add(target.read_text())
    finally:
        process.kill()
        process.wait()
    assert seen == {"a" * 100_000, "b" * 100_000}
