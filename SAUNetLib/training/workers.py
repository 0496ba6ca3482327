"""Worker processes that prepare training batches, started so that Ctrl-C does not stop them half-way."""

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
    """How workers are started, for training in one process or in several connected ones.

    The connection between processes does not survive a fork, Metal does not either, and Windows has none: each worker
    is then spawned and gets its cases through shared memory. Forking is quicker.
    """
    if processes == 1 and sys.platform == "linux":
        return get_context("fork")
    torch.multiprocessing.set_sharing_strategy("file_system")  # no file descriptor per case
    return _UninterruptedContext()


class _UninterruptedProcess(SpawnProcess):
    """A worker that Ctrl-C does not reach: only the training process receives it, and ends its workers.

    A worker interrupted during its imports would stop reading, and its parent, which sends it more than a pipe holds,
    would wait for ever.
    """

    def start(self) -> None:
        with uninterrupted():
            super().start()


class _UninterruptedContext(SpawnContext):
    Process = _UninterruptedProcess


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes started inside the block never receive Ctrl-C; on Windows, this one ignores it until the block ends."""
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
