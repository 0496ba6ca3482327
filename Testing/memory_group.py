"""A control group with a memory limit, where this computer allows to make one: systemd's, or a group below our own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

MOST = 384 * 2**20
"""Bytes: enough to start the engine and to read `large_file`, not to segment it."""


@pytest.fixture
def large_file(tmp_path: Path) -> Iterator[Path]:
    """An image of 134 MB whose segmentation needs 600 MB."""
    path = tmp_path / "large.nrrd"
    about = ["NRRD0004", "type: int16", "dimension: 3", "space: left-posterior-superior", "sizes: 1024 1024 64",
             "space directions: (0,0.5,0) (0,0,-0.5) (4,0,0)", "space origin: (0,0,0)", "endian: little",
             "encoding: raw", "", ""]  # fmt: skip
    slice_ = np.random.default_rng(3).integers(0, 1000, (1024, 1024), np.int16).astype("<i2").tobytes()
    with open(path, "wb") as file:
        file.write("\n".join(about).encode())
        for _ in range(64):
            file.write(slice_)
    yield path
    path.unlink()


@contextlib.contextmanager
def memory_group() -> Iterator[list[str]]:
    """The beginning of a command line whose process the kernel kills once it needs more than `MOST`.

    The process must have ended at the end of the block. The test is skipped, with the reasons, where no such group can
    be made.
    """
    user = [] if os.getuid() == 0 else ["--user"]
    limits = ["--property", f"MemoryMax={MOST}", "--property", "MemorySwapMax=0"]
    scope = ["systemd-run", *user, "--scope", "--quiet", "--collect", *limits, "--"]
    refusals = []
    with contextlib.ExitStack() as stack:
        try:
            subprocess.run([*scope, "true"], check=True, capture_output=True, encoding="utf-8", timeout=20)
        except (OSError, subprocess.SubprocessError) as failure:
            refusals.append(f"systemd-run: {getattr(failure, 'stderr', None) or failure}".strip())
            try:
                group = stack.enter_context(_group())
            except (OSError, ValueError) as failure:
                refusals.append(f"control groups: {failure}")
                pytest.skip(f"no group with a memory limit can be made here ({'; '.join(refusals)})")
            scope = ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
        yield scope


@contextlib.contextmanager
def _group() -> Iterator[Path]:
    """A group below that of this process, of version 1 or 2, which is removed at the end.

    Raises:
        OSError, ValueError: it cannot be made.
    """
    own, names = _own_group()
    group = own / f"saunet-test-{os.getpid()}"
    group.mkdir()
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError if "sw" in name else ()):  # there is no swap to be counted
                (group / name).write_text("0" if "swap" in name else str(MOST))
        yield group
    finally:
        for _ in range(200):
            try:
                group.rmdir()
                break
            except OSError:  # its last process is still ending
                time.sleep(0.05)


def _own_group() -> tuple[Path, tuple[str, ...]]:
    """The folder of this process's memory group, and the names of the limits below it: memory, then swap."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for _, controllers, path in groups:
        for _, place, kind, options, *_ in mounts:
            if kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                return Path(place + path), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
            if kind == "cgroup2" and not controllers:
                own = Path(place + path)
                if "memory" in (own / "cgroup.subtree_control").read_text().split():
                    return own, ("memory.max", "memory.swap.max")
    raise ValueError("none of this process's groups hands the memory on")
