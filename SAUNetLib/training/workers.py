"""Processes that make a training's batches: how they start, so that Ctrl-C does not stop them half-way."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess

import torch


def worker_context(processes: int) -> BaseContext:
    """How workers are started, for training in one process or in several that are connected.

    What connects several processes does not survive a fork, and Metal and Windows know none: each worker then starts
    anew and gets its cases by shared memory. A fork is quicker.
    """
    if processes == 1 and sys.platform == "linux":
        return get_context("fork")
    torch.multiprocessing.set_sharing_strategy("file_system")  # not a file descriptor for every case
    return _UninterruptedContext()


class _UninterruptedProcess(SpawnProcess):
    """A worker whom Ctrl-C does not reach: the training process alone hears it, and ends its workers.

    One that is interrupted while it imports what it needs would read no more, and its parent, which writes it more than
    a pipe holds, would wait for ever.
    """

    def start(self) -> None:
        with uninterrupted():
            super().start()


class _UninterruptedContext(SpawnContext):
    Process = _UninterruptedProcess


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes that are started inside the block never see Ctrl-C; on Windows, this one not before the block's end."""
    if sys.platform == "win32":
        ctypes.windll.kernel32.SetConsoleCtrlHandler(None, True)
        try:
            yield
        finally:
            ctypes.windll.kernel32.SetConsoleCtrlHandler(None, False)
    else:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
