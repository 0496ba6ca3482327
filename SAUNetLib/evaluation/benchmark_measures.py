"""Time and memory of a benchmark process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def seconds(function: Callable[[], Any], device: Any, runs: int) -> float:
    """Median seconds of a function, after one call to warm up."""
    taken = []
    for _ in range(runs + 1):
        synchronise(device)
        begin = time.perf_counter()
        function()
        synchronise(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def synchronise(device: Any) -> None:
    """Wait for a GPU to finish; nothing to do on a CPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> float | None:
    """Peak resident memory of this process so far in MB; None where the system does not report it."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's memory at the start of this process
        return status_memory(status)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def status_memory(status: Path) -> float:
    """Peak resident memory in MB from a process's /proc/PID/status."""
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
