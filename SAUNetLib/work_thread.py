"""The thread in which requests and images are segmented one after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


class WorkThread:
    """Runs functions one after the other in a thread of its own; after one that failed, in a new thread.

    oneDNN (PyTorch's convolutions) never again serves a thread in which memory ran out. A thread that lasts keeps the
    threads that PyTorch's library starts for each one that computes.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def run(self, work: Callable[[], Result], stop: Callable[[], None] = lambda: None) -> Result:
        """What a function returns or raises.

        Args:
            work: the function.
            stop: called when the waiting thread is interrupted; to make the work end, which is waited for.
        """
        future: Future[Result] | None = None
        try:
            future = self._thread.submit(work)
            while not wait([future], 0.2).done:
                pass  # a wait without an end hears no Ctrl-C on Windows
            return future.result()
        except BaseException as failure:
            # An interrupt may come when the work is on its way already, but not yet known here.
            under_way = not isinstance(failure, Exception) if future is None else not future.done()
            if under_way:
                stop()
            self._thread.shutdown()
            self._thread = ThreadPoolExecutor(1)
            raise
