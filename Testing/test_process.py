"""What our own processes set: where modules are found, that freed memory is kept, one thread for NumPy's products."""

import ctypes
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from SAUNetLib import process

FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from SAUNetLib.process import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    for _ in range(20):
        bytearray(b"x") * (20 * 2**20)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with ThreadPoolExecutor(1) as thread:  # as the worker serves a request
    thread.submit(work).result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    done = subprocess.run([sys.executable, "-c", FAULTS, keep], capture_output=True, text=True, check=True)
    return int(done.stdout)


SPAWNS = """
import multiprocessing, sys
from SAUNetLib.process import prepare_process
if __name__ == "__main__":
    prepare_process()
    child = multiprocessing.get_context("spawn").Process(target=print, args=("done",))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


def test_files_in_the_current_folder_are_no_modules_of_processes_that_are_started(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "pickle.py").write_text("raise SystemExit('a file of the user was run')")
    (tmp_path / "spawns.py").write_text(SPAWNS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(tmp_path / "spawns.py")]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["done"]), done.stderr


def test_processes_find_a_checkout_that_is_not_installed():
    """As Lightning starts them, from its root; -S hides what is installed."""
    python = [sys.executable, "-S"]
    start = "import subprocess, sys\nfrom SAUNetLib.process import prepare_process\nprepare_process()\n"
    start += f"sys.exit(subprocess.call({[*python, '-m', 'SAUNetLib', '--version']}))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*python, "-c", start], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("saunet "), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
def test_memory_that_was_freed_is_not_fetched_page_by_page_again():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("another C library than glibc")
    half = 20 * 2**20 // 4096 // 2
    assert faults("kept") < half, "of twenty arrays not even one anew"
    assert faults("left") > half, "what it is for: a thread has memory of its own"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    asked = []
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    process.keep_freed_memory()
    assert asked == []


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    told = []  # it has the function, too, but with numbers of its own
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *numbers: told.append(numbers)))
    process.keep_freed_memory()
    assert told == []


def test_a_handler_that_was_replaced_inside_stays():
    before = signal.getsignal(signal.SIGTERM)
    with process.signals_to(lambda *_: None, signal.SIGTERM):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    with process.signals_to(lambda *_: None, signal.SIGTERM):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a cancelled command does
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("user, threads", [(None, "1"), ("3", "3")])
def test_products_take_one_thread_unless_the_user_says_otherwise(monkeypatch, user, threads):
    if user is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", user)
    monkeypatch.setattr(process, "ours", False)
    process.prepare_process()
    assert process.ours and os.environ["OPENBLAS_NUM_THREADS"] == threads


@pytest.mark.parametrize("module", ["SAUNetLib.cli", "SAUNetLib.worker", "SAUNetLib.evaluation.benchmark_child"])
def test_it_is_set_before_numpy_reads_it(module):
    """OpenBLAS looks at the variable once, when NumPy is imported."""
    code = f"import sys, {module}; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
