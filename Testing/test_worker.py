"""The child process: its protocol, cancelling, bad requests, and nothing left when it is killed."""

import contextlib
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from builders import picture
from conftest import ROOT

from SAUNetLib.engine import Engine
from SAUNetLib.errors import SAUNetError, UsageError
from SAUNetLib.model import load_model
from SAUNetLib.pipeline import segment
from SAUNetLib.work_thread import WorkThread
from SAUNetLib.worker import LONGEST_LINE, Request, Worker, read_entries

PAGE = (ROOT / "docs" / "worker.md").read_text(encoding="utf-8")


class Child:
    """A worker with its streams."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "SAUNetLib.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **environment},
        )

    def send(self, **request: object) -> None:
        self.write(json.dumps(request))

    def write(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def event(self) -> dict:
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def answer(self) -> dict:
        """The event that ends a request."""
        while (event := self.event())["event"] not in ("result", "error"):
            self.seen.append(event)
        return event

    seen: list[dict]


@pytest.fixture
def child():
    started = Child()
    started.seen = []
    assert started.event()["event"] == "ready"
    yield started
    with contextlib.suppress(OSError):
        started.process.stdin.close()
    started.process.wait(20)


@pytest.fixture
def image(tmp_path) -> Path:
    sitk.WriteImage(picture().to_sitk(), str(tmp_path / "a.nrrd"))
    return tmp_path / "a.nrrd"


def test_a_session_of_good_and_bad_requests(child, image, tiny_model, tmp_path):
    """One worker serves them all: what fails harms neither the next request nor the files."""
    model = str(tiny_model)
    child.send(command="warm", model=model, device="cpu", id=1)
    warm = child.answer()
    assert warm["event"] == "result" and warm["id"] == 1 and warm["model"] == "tiny"

    for line in (
        "{",
        "[]",
        "7",
        '{"command": "dance"}',
        '{"command": "segment"}',
        "\x00\x01",
        '{"command":"warm","x":1}',
    ):
        child.write(line)
        assert child.answer()["code"] == "USAGE"
    for line in (
        '{"command": "dance", "id": 7}',
        '{"command": "segment", "id": "x", "image": 3}',
        '{"id": "x", "y": 1}',
    ):
        child.write(line)
        assert child.answer()["id"] == json.loads(line)["id"]
    child.write('{"command": "' + "x" * (LONGEST_LINE + 5) + '"}')
    assert child.answer()["code"] == "USAGE"
    for request, code in (
        ({"image": str(tmp_path / "none.nrrd"), "output": str(tmp_path / "b.nrrd")}, "INPUT_NOT_FOUND"),
        ({"image": str(image), "output": str(tmp_path / "b.txt")}, "OUTPUT_FORMAT"),
        ({"image": str(image), "output": str(tmp_path / "b.nrrd"), "lowest": "X9"}, "USAGE"),
    ):
        child.send(command="segment", model=model, device="cpu", id="bad", **request)
        failed = child.answer()
        assert (failed["code"], failed["id"]) == (code, "bad") and failed["cause"] and failed["remedy"]
    child.send(command="warm", model="nobody", device="cpu")
    assert child.answer()["code"] == "MODEL_NOT_FOUND"
    assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]

    child.seen.clear()
    output = tmp_path / "b.nrrd"
    child.send(command="segment", image=str(image), output=str(output), model=model, device="cpu", levels=False, id=2)
    result = child.answer()
    assert result["event"] == "result" and result["output"] == str(output), result
    assert {"read", "segment", "levels", "write"} <= {event["stage"] for event in child.seen if "stage" in event}
    expected = segment(picture(), Engine(load_model(model), "cpu"), levels=False)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(output))), expected.labels)
    assert {row["name"] for row in result["structures"]} <= {"Vertebrae", "Intervertebral discs", "Spinal canal"}


def test_the_page_s_session_is_what_a_program_meets(image, tiny_model):
    """Event by event, with the same entries; of the fractions and warnings that follow each other one is shown."""

    def shape(event):
        return sorted(event), [event.get(key) for key in ("id", "event", "stage", "command", "title", "remedy")]

    image.rename(image.with_name("spine.nrrd"))
    session = PAGE.split("## A session")[1].split("```")[1].replace("/data", image.parent.as_posix())
    child = Child()
    for sent, told in re.findall(r"((?:> .*\n)*)((?:< .*\n)+)", session):
        for line in sent.splitlines():
            request = json.loads(line[2:])
            own = {"model": str(tiny_model), "device": "cpu"} if request["command"] in ("warm", "segment") else {}
            child.send(**request, **own)
        expected = [json.loads(line[2:]) for line in told.splitlines()]
        answers = sum(event["event"] not in ("progress", "warning") for event in expected)
        found = []
        while sum(event["event"] not in ("progress", "warning") for event in found) < answers:
            found.append(child.event())
        if expected[-1].get("code") == "CANCELLED":  # it comes sooner or later
            found = [event for event in found if event["event"] != "progress"]
        assert [one for one, _ in itertools.groupby(map(shape, found))] == [shape(event) for event in expected]
        for row in found[-1].get("structures", ()):
            assert row.keys() <= expected[-1]["structures"][0].keys()
    child.process.stdin.close()
    assert child.process.wait(20) == 0
    assert {path.name for path in image.parent.iterdir()} == {"spine.nrrd", "spine.seg.nrrd", "spine.csv"}


def test_the_page_s_client_gets_a_result(image, tiny_model, monkeypatch, capsys):
    image.rename(image.with_name("spine.nrrd"))
    monkeypatch.chdir(image.parent)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = PAGE.split("## A client")[1].split("```")[1].removeprefix("python")
    assert client.count("\n") <= 14
    own = f"{{'model': {str(tiny_model)!r}, 'device': 'cpu', "
    exec(client.replace('".venv/bin/python"', repr(sys.executable)).replace("request = {", f"request = {own}"), {})
    assert "'event': 'result'" in capsys.readouterr().out.splitlines()[-1] and Path("spine.seg.nrrd").exists()


def test_the_page_names_every_field_and_every_code():
    requests, events = PAGE.split("## Requests")[1].split("## Events")
    assert re.findall(r"^\| `(\w+)`", requests, re.MULTILINE) == [field.name for field in fields(Request)]
    told = {int(status): re.findall(r"`([A-Z_]+)`", row) for status, row in re.findall(r"\| (\d) \| (.*)", events)}
    assert told == {kind.exit_status: list(kind.codes) for kind in (SAUNetError, *SAUNetError.__subclasses__())}
    with pytest.raises(UsageError, match=r"docs/worker\.md"):
        Request.of({"command": "dance"})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder in which a program runs")
def test_a_request_in_a_folder_that_was_removed_is_answered(monkeypatch, tmp_path):
    """oneMKL ended the worker without an answer."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    worker = Worker(io.StringIO(), io.StringIO())
    with pytest.raises(UsageError, match="the current folder cannot be used"):
        worker._answer(1, Request("warm"), lambda **event: None)


def test_a_missing_package_is_no_bug(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    child = Child(PYTHONPATH=str(tmp_path))
    child.seen = []
    child.send(command="warm", id=1)
    assert child.event()["event"] == "ready"
    told = child.answer()
    assert (told["code"], told["exit_status"]) == ("NOT_INSTALLED", 2) and "package torch" in told["cause"]
    assert "Traceback" not in child.process.communicate()[1]


def test_a_model_that_was_replaced_is_loaded_again(child, image, tiny_model, tmp_path):
    from conftest import CARD

    from SAUNetLib.formats.segmentations import read_segmentation
    from SAUNetLib.model import save_model

    model, output = tmp_path / "own.safetensors", tmp_path / "b.nrrd"
    for version in ("1", "2"):
        save_model(load_model(str(tiny_model)).network, model, CARD | {"name": "own", "version": version})
        child.send(command="segment", image=str(image), output=str(output), model=str(model), device="cpu")
        assert child.answer()["event"] == "result"
        assert read_segmentation(output).provenance["model"] == f"own {version}"


def test_cancel_stops_the_request_and_not_the_next_one(child, image, tiny_model, tmp_path):
    request = {"command": "segment", "image": str(image), "model": str(tiny_model), "device": "cpu"}
    child.send(**request, output=str(tmp_path / "b.nrrd"), id=1)
    child.send(command="cancel")
    child.send(**request, output=str(tmp_path / "c.nrrd"), id=2)
    answers = [child.answer(), child.answer()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[0]["code"] == "CANCELLED" and answers[0]["exit_status"] == 6
    assert answers[1]["event"] == "result"
    assert not (tmp_path / "b.nrrd").exists() and (tmp_path / "c.nrrd").exists()


def test_closing_stdin_ends_it(child):
    child.process.stdin.close()
    assert child.process.wait(20) == 0


def test_what_libraries_print_is_no_event():
    code = (
        "import io, sys, os; from SAUNetLib import worker\n"
        "old = worker.Worker.serve\n"
        "def serve(self):\n    print('noise'); os.write(1, b'more noise\\n'); old(self)\n"
        "worker.Worker.serve = serve; worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, input="", capture_output=True, encoding="utf-8", timeout=60
    )
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["ready"]
    assert "noise" in done.stderr and "more noise" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stage", ["load", "segment", "write"])
def test_killed_at_any_stage_it_leaves_no_result(image, tiny_model, tmp_path, stage):
    child = Child()
    child.seen = []
    child.send(
        command="segment", image=str(image), output=str(tmp_path / "b.nrrd"), model=str(tiny_model), device="cpu"
    )
    while child.event().get("stage") != stage:
        pass
    child.process.send_signal(signal.SIGKILL)
    child.process.wait(10)
    left = [path for path in tmp_path.iterdir() if path.name not in ("a.nrrd", "b.nrrd")]
    assert all(path.name.startswith(".") for path in left), "at most a hidden temporary file"
    if (tmp_path / "b.nrrd").exists():  # it was quicker than the kill: then the file is whole
        assert sitk.ReadImage(str(tmp_path / "b.nrrd")).GetSize() == (48, 64, 4)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupted_it_cancels_and_ends_without_a_traceback(image, tiny_model, tmp_path):
    """Ctrl-C in a terminal reaches every process that was started from it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        child = Child()
    finally:
        signal.signal(signal.SIGINT, before)
    child.seen = []
    child.send(
        command="segment", image=str(image), output=str(tmp_path / "b.nrrd"), model=str(tiny_model), device="cpu"
    )
    while child.event().get("stage") != "prepare":
        pass
    child.process.send_signal(signal.SIGINT)
    said = [json.loads(line) for line in child.process.stdout]
    assert child.process.wait(30) == 6 and said[-1]["code"] == "CANCELLED"
    assert not (tmp_path / "b.nrrd").exists()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stage", ["segment", "write"])
def test_a_polite_end_leaves_nothing_of_the_patient(image, tiny_model, tmp_path, stage):
    child = Child(TMPDIR=str(tmp_path))
    files = {name: str(tmp_path / f"b.{name}") for name in ("csv", "png")}
    child.send(
        command="segment", image=str(image), output=str(tmp_path / "b.nii.gz"), table=files["csv"],
        preview=files["png"], model=str(tiny_model), device="cpu",
    )  # fmt: skip
    while child.event().get("stage") != stage:
        pass
    child.process.send_signal(signal.SIGTERM)
    child.process.send_signal(signal.SIGTERM)  # as a system that shuts down, after the panel
    ends = [event for line in child.process.stdout if (event := json.loads(line))["event"] in ("result", "error")]
    written = {path.name for path in tmp_path.iterdir()} - {"a.nrrd"}
    if ends[0]["event"] == "result":  # it was done before it heard
        assert child.process.wait(30) == 6 and written == {"b.nii.gz", "b.csv", "b.png"}
    else:
        assert child.process.wait(30) == 6 and ends[0]["code"] == "CANCELLED" and written == set()


def test_a_cancel_may_be_spelt_as_json_allows(child, image, tiny_model, tmp_path):
    request = {"command": "segment", "image": str(image), "model": str(tiny_model), "device": "cpu"}
    child.send(id=1, output=str(tmp_path / "b.nrrd"), **request)
    child.write('{"command": "\\u0063ancel"}')
    assert child.answer()["code"] == "CANCELLED"
    child.write('{"command": "\\u0063ancel", "id": 5}')
    child.send(id=2, output=str(tmp_path / "c.nrrd"), **request)
    answer = child.answer()
    assert answer["event"] == "result" and answer["id"] == 2, "a cancel has no answer"


@pytest.mark.skipif(os.name == "nt", reason="POSIX shell")
@pytest.mark.parametrize(("closed", "status"), [("2>&-", 0), ("<&-", 0), (">&-", 0)])
def test_it_serves_without_one_of_the_standard_streams(tmp_path, closed, status):
    command = f"{sys.executable} -m SAUNetLib.worker {closed}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, input='{"command": "segment", "id": 1}\n' * 2, capture_output=True,
        encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == status and "Traceback" not in done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events == {"2>&-": ["ready", "error", "error"], "<&-": ["ready"], ">&-": []}[closed]


def test_a_reader_that_has_gone_is_no_failure(child):
    child.process.stdout.close()
    child.write('{"command": "segment", "id": 1}')
    child.process.wait(30)
    said = child.process.stderr.read()
    assert "no program reads the events any more" in said and "Traceback" not in said and child.process.returncode == 0


def test_empty_entries_are_refused_by_name():
    for name in ("table", "preview", "model", "device", "lowest", "series"):
        with pytest.raises(UsageError, match=f"'{name}' is empty"):
            Request.of({"command": "segment", "image": "a.nrrd", "output": "b.nrrd", name: ""})


def test_three_classes_have_no_level_to_state(child, image, tiny_model, tmp_path):
    request = {"command": "segment", "image": str(image), "output": str(tmp_path / "b.nrrd"), "model": str(tiny_model)}
    child.send(levels=False, lowest="L5", device="cpu", **request)
    assert child.answer()["code"] == "USAGE" and not (tmp_path / "b.nrrd").exists()


def test_requests_are_checked_entry_by_entry():
    good = Request.of({"command": "segment", "image": "a", "output": "b", "levels": False, "id": "7"})
    assert good.levels is False and good.id == "7" and good.device == "auto"
    for line in (
        '{"command": "segment", "image": 5, "output": "b"}',
        '{"command": "segment", "image": "a", "output": "b", "levels": "yes"}',
        '{"command": "segment", "image": "a", "output": ""}',
        '{"command": ["segment"]}',
        '{"command": "segment", "image": "a", "output": "b", "__class__": "c"}',
        "[" * 100_000,
        "",
    ):
        with pytest.raises(UsageError):
            Request.of(read_entries(line))


def test_a_line_without_end_does_not_fill_the_memory(child):
    child.write("x" * (LONGEST_LINE + 10))
    assert child.answer()["code"] == "USAGE"
    child.send(command="warm", model="nobody")
    assert child.answer()["code"] == "MODEL_NOT_FOUND"


def test_it_starts_without_loading_the_network():
    """The panel may start it on entering: the answer `ready` must not wait for torch."""
    code = "import sys; import SAUNetLib.worker; print('torch' in sys.modules, 'SimpleITK' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_the_worker_s_road_needs_only_the_worker_s_packages():
    """What the command line draws, tabulates and trains with need not be installed beside Slicer."""
    code = (
        "import sys\n"
        "for name in ('PIL', 'slicerio', 'rich', 'scipy', 'surface_distance', 'pydantic', 'monai', 'lightning'):\n"
        "    sys.modules[name] = None\n"
        "import SAUNetLib.pipeline"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr


def test_many_requests_leave_no_descriptors_open(child, tiny_model):
    folder = Path(f"/proc/{child.process.pid}/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    child.send(command="warm", model=str(tiny_model), device="cpu")
    child.answer()
    before = len(list(folder.iterdir()))
    for number in range(50):
        child.send(command="warm", model=str(tiny_model) if number % 2 else "nobody", device="cpu")
        child.answer()
    time.sleep(0.1)
    assert len(list(folder.iterdir())) <= before


def test_a_signal_right_after_the_result_adds_no_error(monkeypatch):
    class Events(io.StringIO):
        def flush(self):
            if self.getvalue().count("result") == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "_answer", lambda *_: {"command": "warm"})
    events = Events()
    with pytest.raises(KeyboardInterrupt):
        Worker(io.StringIO('{"command": "warm"}\n'), events).serve()
    assert [json.loads(line)["event"] for line in events.getvalue().splitlines()] == ["ready", "result"]


@pytest.mark.parametrize(("entries", "event"), [({"command": "warm"}, "result"), ({"command": "segment"}, "error")])
def test_after_every_request_a_gpu_s_cached_memory_is_left_to_other_programs(entries, event, monkeypatch):
    freed = []
    engine = SimpleNamespace(
        free_memory=lambda: freed.append(1),
        model=SimpleNamespace(card=SimpleNamespace(name="m")), device=SimpleNamespace(type="cuda"),
    )  # fmt: skip
    events = io.StringIO()
    worker = Worker(io.StringIO(), events)
    worker._engine = ((Path("m"), 0, "auto"), engine)
    monkeypatch.setattr(worker, "_engine_for", lambda request: engine)
    worker._serve_one(1, entries)
    assert json.loads(events.getvalue().splitlines()[-1])["event"] == event and freed == [1]


def test_an_engine_is_given_up_before_another_one_is_loaded(monkeypatch, tmp_path):
    weights, held = tmp_path / "m.safetensors", []
    weights.write_bytes(b"")
    worker = Worker(io.StringIO(), io.StringIO())
    worker._engine = ((Path("other"), 0, "auto"), SimpleNamespace())
    monkeypatch.setattr("SAUNetLib.model_card.find_model", lambda model: weights)
    monkeypatch.setattr("SAUNetLib.model.load_model", lambda path: held.append(worker._engine))
    monkeypatch.setattr("SAUNetLib.engine.Engine", lambda *_: SimpleNamespace())
    worker._engine_for(Request("warm"))
    assert held == [None], "never two at once in memory"


def test_work_shares_a_thread_until_some_of_it_fails():
    """oneDNN never again serves a thread in which memory ran out."""
    thread = WorkThread()
    first = thread.run(threading.get_ident)
    assert first == thread.run(threading.get_ident) != threading.get_ident()
    alive = [one for one in threading.enumerate() if one.ident == first]

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        thread.run(fail)
    assert not alive[0].is_alive()
    assert thread.run(lambda: 7) == 7


@pytest.mark.parametrize("place", ["wait", "ThreadPoolExecutor.submit"])
def test_work_is_told_to_stop_and_waited_for_when_the_wait_is_interrupted(monkeypatch, place):
    told, ended, thread, submit = threading.Event(), [], WorkThread(), ThreadPoolExecutor.submit

    def work():
        ended.append(told.wait(10))

    def interrupted(*call):
        if place != "wait":
            submit(*call)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"SAUNetLib.work_thread.{place}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread.run(work, told.set)
    assert ended == [True]


def test_a_thread_that_cannot_be_started_is_an_error_of_its_request(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    thread = WorkThread()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            thread.run(lambda: 1, pytest.fail)  # nothing is to be stopped: a worker would take no more requests
    assert thread.run(lambda: 2) == 2, "what could not be done is not done later"
