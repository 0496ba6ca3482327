"""The thread in which requests and images are segmented one after the other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


class WorkThread:
    """Runs functions one after the other in a thread of its own; after a failure, in a new thread.

    oneDNN (PyTorch's convolutions) never works again in a thread in which memory ran out. Otherwise the thread is kept,
    and with it the threads that PyTorch's library starts for each thread that computes.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def run(self, work: Callable[[], Result], stop: Callable[[], None] = lambda: None) -> Result:
        """Run a function; returns or raises what it does.

        Args:
            work: the function.
            stop: called when the waiting thread is interrupted; must make the work end, which is waited for.
        """
        future: Future[Result] | None = None
        try:
            future = self._thread.submit(work)
            while not wait([future], 0.2).done:
                pass  # a wait without a timeout ignores Ctrl-C on Windows
            return future.result()
        except BaseException as failure:
            # An interrupt may come after the work was submitted, but before `future` was assigned.
            under_way = not isinstance(failure, Exception) if future is None else not future.done()
            if under_way:
                stop()
            self._thread.shutdown()
            self._thread = ThreadPoolExecutor(1)
            raise
