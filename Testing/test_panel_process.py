"""The engine's child process: what it says, how it ends, and that nothing of it is left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.fixtures import ROOT, fake_engine, process_events, scene, truth  # noqa: F401
from memory_group import large_file, memory_group  # noqa: F401
from SAUNetPanel import Console
from SAUNetPanel import EngineProcess as module
from SAUNetPanel.EngineProcess import FIRM_MS, POLITE_MS, EngineProcess, workerCommand

from SAUNetLib.formats.temporary import process_lives
from SAUNetLib.notices import Notice

STAGES = ("load", "read", "prepare", "segment", "levels", "write")


class Run:
    """An engine with its events and its log."""

    def __init__(self, engine, folder):
        self.engine, self.events, self.lines = engine, [], []
        engine.event.connect(self.events.append)
        engine.log.connect(self.lines.append)
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / "volume.nrrd").write_bytes(b"")
        self.request = {"image": str(folder / "in" / "volume.nrrd"), "output": str(folder / "out.nrrd")}

    def segment(self):
        self.engine.run("segment", **self.request)
        return self

    def end(self, seconds=20):
        assert process_events(lambda: self.events and self.events[-1]["event"] in ("result", "error"), seconds)
        return self.events[-1]

    def reaches(self, stage):
        assert process_events(lambda: any(event.get("stage") == stage for event in self.events))
        return self


@pytest.fixture
def run(scene, tmp_path):  # noqa: F811
    made = []

    def make(behaviour="", stage="", engine=None, **entries):
        made.append(Run(engine or fake_engine(tmp_path, behaviour, stage, **entries), tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()
        assert not one.engine.alive


def test_progress_warnings_and_result_arrive_in_order(run):
    one = run().segment()
    assert one.end()["event"] == "result" and one.events[-1]["structures"][0]["name"] == "Spinal canal"
    stages = [event["stage"] for event in one.events if event["event"] == "progress"]
    assert list(dict.fromkeys(stages)) == list(STAGES)
    assert sum(event["event"] == "result" for event in one.events) == 1 and not one.engine.busy


def test_worker_stays_warm_and_serves_again(run):
    one = run().segment()
    one.end()
    group = one.engine._group
    one.events.clear()
    one.segment().end()
    assert one.engine.alive and one.engine._group == group and process_lives(group)


def test_idle_worker_ends_and_the_next_request_starts_another(run):
    one = run().segment()
    one.end()
    assert one.engine._idle.active and one.engine._idle.interval == 600_000
    group = one.engine._group
    one.engine.stop()
    assert process_events(lambda: not one.engine.alive)
    one.events.clear()
    assert one.segment().end()["event"] == "result" and one.engine._group != group


def test_after_an_unexpected_failure_the_next_request_gets_a_new_worker(run):
    """A process whose GPU's driver failed cannot use it any more."""
    one = run("bug", "segment")
    for workers in (1, 2):
        one.events.clear()
        assert one.segment().end()["code"] == "INTERNAL"
        assert process_events(lambda: not one.engine.alive)
        assert sum(event["event"] == "error" for event in one.events) == 1  # its end is no failure of its own
        assert one.lines.count("The engine is ready") == workers


def test_after_a_gpu_failed_or_something_was_not_found_the_next_request_gets_a_new_worker(run):
    one = run(result=truth(warnings=(Notice("GPU_FAILED", "The GPU failed (x); continued on the processor."),)))
    assert one.segment().end()["event"] == "result" and process_events(lambda: not one.engine.alive)
    one.events.clear()
    assert one.segment().end()["event"] == "result" and one.lines.count("The engine is ready") == 2
    for code in ("DEVICE", "NOT_INSTALLED"):
        one = run("memory", "segment", code=code)
        assert one.segment().end()["code"] == code and process_events(lambda one=one: not one.engine.alive)


@pytest.mark.parametrize("own, program", [
    ("/usr/bin/python3.12", "/usr/bin/python3.12"), ("/opt/Slicer/bin/SlicerApp-real", "PythonSlicer"),
    ("", "PythonSlicer"), (None, "PythonSlicer"),
])  # fmt: skip
def test_slicer_is_not_started_a_second_time_in_the_place_of_its_python(monkeypatch, own, program):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", own)
    assert module.slicerPython() == program


def test_request_right_after_stop_is_not_lost(run):
    one = run().segment()
    one.end()
    one.engine.stop()
    one.events.clear()
    assert one.segment().end()["event"] == "result"


def test_click_during_warming_up_is_served(run):
    one = run()
    one.engine.run("warm")
    assert one.segment().end()["structures"]
    with pytest.raises(RuntimeError):
        one.segment()
        one.segment()


def test_click_after_a_cancelled_warm_up_is_served_by_another_worker(run):
    one = run("cold")
    one.engine.run("warm")
    assert one.engine.warming and process_events(lambda: one.engine._group > 0)
    group = one.engine._group
    one.engine.cancel()
    one.engine._terminate()  # as a second later; it has not ended yet
    assert one.segment().end()["event"] == "result" and one.engine._group != group
    assert [event["event"] for event in one.events].count("error") == 0 and not one.engine._polite.active


def test_cancelled_warm_up_ends_within_two_seconds(run):
    one = run("cold")
    one.engine.run("warm")
    assert process_events(lambda: one.engine._group > 0)
    one.engine.cancel()
    assert one.end()["code"] == "CANCELLED" and process_events(lambda: not one.engine.alive)
    timers = (one.engine._idle, one.engine._polite, one.engine._firm)
    assert not any(timer.active for timer in timers), "the next worker would be ended"


def test_click_while_a_warm_up_is_being_cancelled_is_not_cancelled(run):
    one = run()
    one.engine.run("warm")
    one.engine.cancel()
    one.segment()
    assert not one.engine._polite.active, "it would end what was clicked"
    assert one.end()["event"] == "result"


def test_worker_that_hears_the_wish_too_late_is_not_kept(run):
    one = run("hang", "segment").segment().reaches("segment")
    one.engine.cancel()
    one.engine._terminate()  # it was told to end; then its answer to the cancelling arrives after all
    one.engine._deliver({"event": "error", "code": "CANCELLED", "cause": "", "id": one.engine._request})
    assert one.engine._firm.active and process_events(lambda: not one.engine.alive)


def test_result_that_was_on_its_way_at_the_cancelling_is_none(run):
    one = run("hang", "segment").segment().reaches("segment")
    one.engine.cancel()
    one.engine._take("out", json.dumps({"event": "result", "id": one.engine._request}).encode() + b"\n")
    assert one.end()["code"] == "CANCELLED" and not one.engine.busy


def test_process_outlives_the_signal_of_its_end(run):
    """PythonQt deletes a process with its last reference; while it emits `finished`, that would crash Slicer."""
    one = run("dies", "segment").segment()
    process = one.engine._process
    held = []
    one.engine.event.connect(lambda event: held.append((one.engine._process, one.engine._ended_process)))
    one.end()
    assert held[-1] == (None, process)


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_at_every_stage_is_polite_and_keeps_the_worker(run, stage):
    one = run("wait", stage).segment().reaches(stage)
    one.engine.cancel()
    assert one.end()["code"] == "CANCELLED" and one.engine.alive


def test_cancel_kills_a_worker_that_hears_nothing_with_its_children(run):
    one = run("hang", "segment").segment().reaches("segment")
    assert process_events(lambda: any(line.startswith("child") for line in one.lines))
    child = int(next(line for line in one.lines if line.startswith("child")).split()[1])
    group = one.engine._group
    assert process_lives(child) and process_lives(group)
    one.engine.cancel()
    assert one.end()["code"] == "CANCELLED" and not one.engine.alive
    assert process_events(lambda: not (_running(child) or _running(group)), 3)


def test_an_engine_that_is_closed_has_not_crashed(run):
    one = run().segment()
    one.end()
    one.engine.close()
    assert one.lines[-1] == "The engine was ended"
    one.events.clear()
    one.segment().end()
    os.kill(one.engine._group, signal.SIGKILL)  # somebody else
    assert process_events(lambda: not one.engine.alive, 5) and one.lines[-1].startswith("The engine crashed (9)")


def test_cancel_takes_less_than_two_seconds(run):
    assert POLITE_MS + FIRM_MS <= 1500  # the rest is for the system
    one = run()
    assert (one.engine._polite.interval, one.engine._firm.interval) == (POLITE_MS, FIRM_MS)


def _running(pid):
    """Alive and not merely waiting to be collected by a parent that is not ours."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return process_lives(pid) and sys.platform != "linux"


LAUNCHER = """
import subprocess, sys
code = subprocess.call(sys.argv[1:])
if code < 0:
    print(f"error: [{sys.argv[1]}] exit abnormally - Report the problem.", file=sys.stderr)
sys.exit(max(code, 0) or int(code < 0))
"""
"""Slicer's Python is started by a launcher: the process that Qt knows is the worker's parent.

It is CTK's (AppLauncher, ctkAppLauncher.cpp, applicationFinished), which makes the exit code 1 of every signal.
"""


def behind_launcher(engine):
    engine._command = [sys.executable, "-c", LAUNCHER, *engine._command]
    return engine


def test_behind_a_launcher_the_worker_itself_ends(run, tmp_path):
    engine = behind_launcher(fake_engine(tmp_path, "hang", "segment"))
    one = run(engine=engine).segment().reaches("segment")
    group = engine._group
    assert group != engine._process.processId() and process_lives(group)
    engine.cancel()
    assert one.end()["code"] == "CANCELLED"
    assert process_events(lambda: not _running(group), 5)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_where_its_launcher_is_killed_neither_the_worker_nor_its_children_go_on(run, tmp_path):
    engine = behind_launcher(fake_engine(tmp_path, "hang", "segment"))
    one = run(engine=engine).segment().reaches("segment")
    assert process_events(lambda: any(line.startswith("child") for line in one.lines))
    child = int(next(line for line in one.lines if line.startswith("child")).split()[1])
    group = engine._group
    os.kill(engine._process.processId(), signal.SIGKILL)
    assert one.end()["code"] == "ENGINE_KILLED"
    try:
        assert process_events(lambda: not (_running(group) or _running(child)), 5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def test_behind_a_launcher_a_request_is_served(run, tmp_path):
    engine = behind_launcher(fake_engine(tmp_path))
    one = run(engine=engine).segment()
    assert one.end()["event"] == "result"
    group = engine._group
    engine.close()
    assert process_events(lambda: not _running(group), 5)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("behaviour, code, said", [
    ("killed", "ENGINE_KILLED", "memory"), ("crashes", "ENGINE_DIED", "code 1"), ("dies", "ENGINE_DIED", "code 3"),
    ("raises", "ENGINE_DIED", "code 1")])  # fmt: skip
def test_behind_a_launcher_a_kill_is_told_from_a_crash_and_from_an_end(run, tmp_path, behaviour, code, said):
    one = run(engine=behind_launcher(fake_engine(tmp_path, behaviour, "segment"))).segment()
    event = one.end()
    assert event["code"] == code and said in event["cause"], one.lines
    assert any("Segmentation fault" in line for line in one.lines) == (behaviour == "crashes")
    assert not one.engine.alive
    one.events.clear()
    assert one.segment().end()["code"] == code  # and so it is with the next one


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_stage(run, stage):
    event = run("killed", stage).segment().end()
    assert event["code"] == "ENGINE_KILLED" and "memory" in event["cause"]


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_killed_by_the_kernel_at_the_limit_of_a_control_group(run, tiny_model, large_file, tmp_path):  # noqa: F811
    """The real worker; the panel says what happened, and the output is what it was."""
    output = tmp_path / "out" / "b.nrrd"
    output.parent.mkdir()
    output.write_text("old")
    with memory_group() as limited:
        one = run(engine=EngineProcess([*limited, *workerCommand(ROOT)]))
        one.engine.run("segment", image=str(large_file), output=str(output), model=str(tiny_model), device="cpu")
        event = one.end(200)
        one.engine.close()
    assert event["code"] == "ENGINE_KILLED" and "memory" in event["cause"], one.lines
    assert any(event.get("stage") == "read" for event in one.events)
    assert [path.name for path in output.parent.iterdir()] == ["b.nrrd"] and output.read_text() == "old"


def test_last_words_are_kept(run):
    one = run("dies", "segment").segment()
    event = one.end()
    assert event["code"] == "ENGINE_DIED" and "3" in event["cause"]
    assert "ValueError: the last words" in one.lines


def test_rubbish_goes_to_the_log(run):
    one = run("rubbish", "prepare").segment().reaches("prepare")
    group = one.engine._group
    assert one.end()["event"] == "result" and one.engine._group == group > 1
    assert "not JSON at all" in one.lines and '{"event": "unknown"}' in one.lines
    assert max(len(line) for line in one.lines) <= 2000


def test_error_event_is_passed_on_as_it_is(run):
    event = run("memory", "segment").segment().end()
    assert event["code"] == "MEMORY" and event["cause"].startswith("the main memory")


def test_program_that_does_not_exist(run):
    one = run(engine=EngineProcess(["/nonexistent/python"])).segment()
    assert one.end()["code"] == "ENGINE_START"


def test_worker_that_dies_at_once(run, tmp_path):
    (tmp_path / "broken.py").write_text("import nowhere\n")
    one = run(engine=EngineProcess(workerCommand(tmp_path, "broken"))).segment()
    assert one.end()["code"] == "ENGINE_DIED"
    assert any("ModuleNotFoundError" in line for line in one.lines)


def test_real_worker_answers_without_torch_being_loaded_here(run, tiny_model):
    one = run(engine=EngineProcess(workerCommand(ROOT)))
    one.engine.run(
        "segment", image="/nonexistent.nrrd", output="/nonexistent/x.nrrd", model=str(tiny_model), device="cpu"
    )
    assert one.end(60)["code"] in ("INPUT_NOT_FOUND", "OUTPUT_WRITE")
    assert Path(workerCommand(ROOT)[2]).is_file()


def test_panel_imports_neither_torch_nor_simpleitk():
    """Slicer must not wait for them when it starts."""
    import subprocess

    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; sys.modules['torch'] = None\n"
        "from harness import install; install()\n"
        "sys.modules['SimpleITK'] = None\n"
        "import SAUNetPanel.Widget, SAUNetPanel.SelfTest, SAUNetPanel.SampleVolumes"
    )
    paths = [str(ROOT / "Testing"), str(ROOT / "SAUNetSegmentation")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


# -- Windows, simulated ----------------------------------------------------------------------------------------------


@pytest.fixture
def windows(monkeypatch):
    """What the engine's process meets on Windows: no process groups, and taskkill, which ends trees of processes."""
    commands = []

    def taskkill(arguments, seconds=5.0):
        commands.append(arguments)
        pid = int(arguments[-1])
        assert pid != os.getpid()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # as the real one, whose tree is gone already
            for one in (*_children(pid), pid):
                os.kill(one, signal.SIGKILL)
        return ""

    monkeypatch.setattr(module, "os", SimpleNamespace(name="nt", getpid=os.getpid))
    monkeypatch.setattr(module.Console, "output", taskkill)
    return commands


def _children(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="simulated with Linux's list of child processes")
def test_on_windows_the_trees_below_launcher_and_worker_are_ended(run, tmp_path, windows):
    engine = behind_launcher(fake_engine(tmp_path, "hang", "segment"))
    one = run(engine=engine).segment().reaches("segment")
    launcher, worker = engine._process.processId(), engine._group
    engine.cancel()
    assert one.end()["code"] == "CANCELLED" and not engine.alive
    assert windows == [["taskkill", "/F", "/T", "/PID", str(pid)] for pid in (launcher, worker)]
    assert process_events(lambda: not _running(worker), 5)


def test_on_windows_nothing_is_ended_after_the_end(run, windows):
    one = run("dies", "segment").segment()
    assert one.end()["code"] == "ENGINE_DIED" and windows == []  # the number may be another process's by now


def test_windows_line_ends_and_foreign_encodings_are_understood(run):
    one = run()
    one.engine._request = "1"
    one.engine._take("out", b'{"event": "progress", "id": "1", "stage": "load", "fraction": 0}\r\nnot an ev')
    one.engine._take("out", b"ent\r\n")
    one.engine._take("err", b"Zugriff verweigert: \x81\r\n")
    one.engine._request = None
    assert one.events[0]["stage"] == "load" and one.lines == ["not an event", "Zugriff verweigert: \ufffd"]


def test_process_that_does_not_die_is_given_up(run):
    calls = []
    stubborn = SimpleNamespace(kill=lambda: None, waitForFinished=lambda ms: False, blockSignals=calls.append)
    one = run()
    one.engine._process = stubborn
    one.engine.close()
    assert calls == [True] and not one.engine.alive


def test_console_programs_have_no_window_and_no_way_to_hang(monkeypatch):
    program = [sys.executable, "-c"]
    assert Console.output([*program, "print('here')"]).strip() == "here"
    assert Console.output(["/nonexistent/program"]) == "" and Console.output([*program, "raise SystemExit(1)"]) == ""
    assert Console.output([*program, "import time; time.sleep(30)"], 0.2) == ""
    seen = []
    done = SimpleNamespace(stdout="")
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda arguments, **entries: seen.append(entries) or done)
    Console.output(["nvidia-smi"])
    assert seen[0]["creationflags"] == 0x08000000 and seen[0]["stdin"] == subprocess.DEVNULL
