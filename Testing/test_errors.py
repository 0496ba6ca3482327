"""Errors cross processes: a pool that runs the pipeline gets them as they were, and works on."""

import copy
import multiprocessing
import pickle
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from SAUNetLib.errors import (
    REDISTRIBUTABLE,
    CancelledError,
    InputError,
    ModelError,
    OutOfMemoryError,
    SAUNetError,
    UsageError,
    check_memory,
    is_out_of_memory,
    out_of_memory,
    printable,
    unforeseen,
)
from SAUNetLib.formats.atomic import check_writable

KINDS = (SAUNetError, UsageError, InputError, ModelError, OutOfMemoryError)
ERRORS = [kind(code, "The cause...", "a remedy; and more") for kind in KINDS for code in kind.codes]


@pytest.mark.parametrize("error", [*ERRORS, CancelledError("later"), out_of_memory()], ids=lambda one: one.code)
@pytest.mark.parametrize("again", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy])
def test_every_error_is_pickled_whole(error, again):
    got = again(error)
    assert type(got) is type(error) and str(got) == str(error) and got.as_dict() == error.as_dict()


def test_a_refusal_in_a_pool_of_processes_is_told_and_the_pool_works_on():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(UsageError) as caught:
            pool.submit(check_writable, Path("a.png"), (".csv",)).result()
        assert caught.value.code == "OUTPUT_FORMAT"
        assert pool.submit(check_writable, Path("a.csv"), (".csv",)).result() == ".csv"


@pytest.mark.parametrize(
    "text", ["\x1b]0;owned\x07", "a\x9b2J", "\u202egnp.exe", *map(chr, range(0x2066, 0x206A)), "\udcff", "\x7f"]
)
def test_errors_send_a_terminal_nothing_to_obey(text):
    """File names and headers may hold it; it stays visible."""
    error = InputError("INPUT_UNREADABLE", f"K\u00f6ln {text} is \n damaged", f"Give another than {text}")
    assert str(error).isprintable() and error.cause == f"K\u00f6ln {printable(text)} is damaged."
    assert printable(text).encode("ascii").decode("unicode_escape").encode(errors="surrogatepass") == text.encode(
        errors="surrogatepass"
    )


@pytest.mark.parametrize("text", ["\u4e2d\u3000\u6587", "a\u00a0b", "\u0645\u06cc\u200c\u062e"])
def test_names_in_other_scripts_stay_as_they_are(text):
    assert printable(text) == text


def windows_error(number: int, text: str) -> OSError:
    """As Windows raises it: errno says that an argument is invalid."""
    error = OSError(22, text)
    error.winerror = number
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            r"[..\alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
        ImportError("DLL load failed while importing _C: The paging file is too small for this operation to complete."),
        windows_error(1455, "Die Auslagerungsdatei ist zu klein, um diesen Vorgang durchzuf\u00fchren"),
        windows_error(8, ""),
        windows_error(1450, ""),
        OSError(12, "Cannot allocate memory"),
        zlib.error("Error -4 while decompressing data"),
    ],
)
def test_lack_of_memory_is_known_by_what_each_system_says(error):
    assert unforeseen(error, "Report it").code == "MEMORY"


@pytest.mark.parametrize(
    "said",
    [
        "Caught RuntimeError in DataLoader worker process 0. Original Traceback ... RuntimeError: unable to allocate "
        "shared memory(shm) for file </torch_9_1_0>: No space left on device (28)",
        "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_lack_of_shared_memory_says_how_a_container_gets_more(said):
    found = unforeseen(RuntimeError(said), "Report it")
    assert found.code == "MEMORY" and "docker run --shm-size" in found.remedy


@pytest.mark.parametrize("number", [126, 1114])
def test_library_that_windows_cannot_load_names_what_brings_it(number):
    error = OSError(f'[WinError {number}] Not found. Error loading "C:\\a\\torch\\lib\\c10.dll" or one of its parts.')
    found = unforeseen(error, "Report it")
    assert found.code == "VISUAL_C" and "Visual C++" in found.remedy and REDISTRIBUTABLE in found.remedy
    assert unforeseen(OSError(f"[WinError {number}] C:\\a\\other.dll"), "Report it").code == "INTERNAL"


@pytest.mark.parametrize(
    "error",
    [
        windows_error(5, "not enough memory"),
        OSError(22, ""),
        RuntimeError("not enough"),
        zlib.error("Error -3 while decompressing data: invalid stored block lengths"),
    ],
)
def test_other_failures_are_no_lack_of_memory(error):
    assert not is_out_of_memory(error)
    check_memory(error, 2**20)
