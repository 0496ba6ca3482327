"""Settings of SAUNet's own processes before their work begins: streams, freed memory, OpenBLAS threads, signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""
LARGEST_KEPT = 32 * 2**20
"""Bytes of an array that is carved out of kept memory; the most that glibc allows."""
KEPT = 512 * 2**20
"""Bytes of freed memory at the heap's end that are kept."""
ours = False
"""Whether this process is SAUNet's own, so that its streams may be redirected, and not a library's user's."""


def prepare_process() -> None:
    """Call before NumPy is imported; for a process that is ours, not for a library's user."""
    global ours
    ours = True
    # NumPy's products are small here, and OpenBLAS's threads wait for the next one in a loop that takes a core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # For the processes that this one starts: a numpy.py in a user's current folder is no module of theirs. But where
    # `python -m` found SAUNet there, in a checkout that need not be installed, they find it nowhere else.
    if not _is_found_here():
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    keep_freed_memory()


def _is_found_here() -> bool:
    """Whether SAUNet lies in the folder in which Python looks first."""
    with contextlib.suppress(OSError, IndexError):  # the current folder may have been removed
        return Path(sys.path[0]).samefile(Path(__file__).parents[1])
    return False


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, so that the system need not clear the same pages for every slice's large arrays.

    By itself glibc gives the memory of large arrays back when they are freed, and the system hands it out again page by
    page, zeroed: some 30,000 page faults for a volume of 20 slices (docs/speed.md). Every thread of its own heap would
    keep what another could use, so all share one. On macOS and Windows, and with another C library, nothing is set.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    # The threshold for maps of their own stops glibc from adjusting both by itself.
    for name, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGEST_KEPT), (M_TRIM_THRESHOLD, KEPT)):
        library.mallopt(name, value)


def dask_setup(_: object) -> None:
    """Dask calls this in each of its workers that have this module as a preload.

    Ctrl-C, which reaches all processes of a terminal, is left to the command. Memory is kept: Dask has glibc return
    every large array's (``MALLOC_TRIM_THRESHOLD_``), and what is set in the process itself wins.
    """
    global ours
    ours = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()


def complete_streams() -> None:
    """Replace standard streams that the caller has closed: what goes there is lost, nothing else fails.

    Descriptors 0 to 2 must be taken, or the next file that is opened is taken for a standard stream.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            # For as long as the process lives.
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], Any] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals by a function inside the block; outside of the main thread the caller's handlers stay.

    A signal whose handler was replaced inside the block keeps the new one.
    """
    try:
        before = [signal.signal(number, handler) for number in numbers]
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, earlier in zip(numbers, before, strict=True):
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: it was not Python's
