"""The workers of a batch: this computer's own, or those of a Dask cluster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from distributed import Client

WORKER_BYTES = 1.2e9
"""Memory that a worker needs at most, see docs/speed.md."""
ANSWER_S = 20.0
"""How long a scheduler may take to answer."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}(\.nii\.gz|\.csv|\.json|\.png)$")

_LOCAL: dict[str, Any] = {
    # No pages of what is done, and Ctrl-C, which reaches all processes of a terminal, is the command's alone.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
}


@contextmanager
def connected(scheduler: str | None, workers: int | None, output: Path) -> Iterator[Client]:
    """A connection to the scheduler, or to workers of our own that end with it."""
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is in the journal
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=ANSWER_S)
        except (OSError, ValueError) as failure:
            raise UsageError(
                "USAGE", f"no scheduler answers at {scheduler}", "Give an address such as tcp://host:8786"
            ) from failure
        with client:
            try:
                client.wait_for_workers(1, timeout=ANSWER_S)
            except TimeoutError as failure:
                raise UsageError("USAGE", f"the scheduler at {scheduler} has no worker", "Start some") from failure
            yield client
        return
    try:
        with (
            dask.config.set(_LOCAL),
            # One thread each: slices have work enough for one core, and cores do not wait for each other. With keys of
            # its own: who may call a scheduler may run anything, and on its port every user of the computer may.
            LocalCluster(
                n_workers=workers or _own_workers(), threads_per_worker=1, memory_limit=0, security=True,
                dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
    finally:
        for parent, _, names in os.walk(output):  # of workers that were stopped while they wrote
            for name in filter(_TEMPORARY.match, names):
                with suppress(OSError):
                    Path(parent, name).unlink()


def _own_workers() -> int:
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    free = min(MEMORY_LIMIT, psutil.virtual_memory().available)
    return max(1, min(CPU_COUNT, int(free / WORKER_BYTES)))
