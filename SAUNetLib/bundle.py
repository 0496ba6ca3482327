"""A bundle for an offline computer: wheels and model in one zip file, each with its SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path
from platform import machine

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .errors import UsageError
from .formats.atomic import check_writable, write_beside
from .formats.temporary import remove_leftovers, temporary_folder
from .model_card import find_model
from .resources import resource

FORMAT = 1
MANIFEST = "manifest.json"
_PINS = "constraints.txt"
PYTHONS = {"5.10": "3.12", "5.12": "3.12"}
"""Python version of every supported Slicer."""
PLATFORMS = {
    "linux": (*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64"),
    "windows": ("win_amd64",),
    "macos-arm64": ("macosx_14_0_arm64",),
}
"""Platform tags of the wheels that a platform takes; Linux and Windows mean x86_64.

PyTorch after 2.2 has no wheels for Intel Macs; the pinned version needs macOS 14.
"""
_MARKERS = {
    "linux": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "windows": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    "macos-arm64": {
        "os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64",
    },
}  # fmt: skip
PACKAGES = ("torch>=2.2", "safetensors>=0.4", "connected-components-3d>=3.20", "pynrrd>=1.0")
"""What the engine needs in addition to the packages in Slicer."""
_ROOM = 3 * 10**9
"""Bytes that the wheels of one bundle take at most."""
TORCH_FOR_WINDOWS = "2.14.1"
"""Not the pinned version: below Slicer's folder, the paths of 2.13's licences are longer than Windows allows."""


def write_bundle(
    output: str | Path,
    slicer: str,
    platform: str,
    *,
    index: str | None = None,
) -> list[str]:
    """Download the wheels for a Slicer version and a platform, and pack them with the shipped model.

    Args:
        output: zip file; an existing one is replaced only by a complete one.
        slicer: 5.10 or 5.12.
        platform: one of `PLATFORMS`.
        index: URL of an additional package index. pip's default index has a PyTorch for NVIDIA GPUs for Linux (several
            GB), and one for the CPU alone for Windows; PyTorch's indexes have both. pip goes on without an index that
            it cannot reach.

    Returns:
        The names of the files in the bundle.

    Raises:
        UsageError: USAGE for an unknown Slicer or platform, or an index that is no URL; OUTPUT_FORMAT;
            OUTPUT_WRITE; NOT_INSTALLED where a download failed.
        ModelError: MODEL_NOT_FOUND.
    """
    output = Path(output)
    _check(output, slicer, platform, index)
    weights = find_model()
    remove_leftovers()
    with temporary_folder() as wheels:
        _pin(wheels, platform)
        _download(wheels, slicer, platform, index)
        files = {f"wheels/{path.name}": path for path in sorted(wheels.glob("*.whl"))}
        files |= {f"models/{path.name}": path for path in (weights, weights.with_suffix(".json"))}
        _pack(output, {"format": FORMAT, "slicer": slicer, "platform": platform, "python": PYTHONS[slicer]}, files)
    return list(files)


def this_platform() -> str:
    """This computer's platform: one of `PLATFORMS`, or a name like linux-aarch64 for which there is no bundle.

    On Windows it is the one that this Python was built for: Slicer for x86_64 runs on ARM, too.
    """
    processor = (sysconfig.get_platform().rpartition("-")[2] if sys.platform == "win32" else machine()).lower()
    for name, there in _MARKERS.items():
        if (sys.platform, processor) == (there["sys_platform"], there["platform_machine"].lower()):
            return name
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform)
    return f"{system}-{processor}"


def download_command(
    folder: Path, slicer: str, platform: str, requirements: Sequence[str], index: str | None = None
) -> list[str]:
    """The pip command that downloads a wheel for each of these requirements, without source distributions.

    The versions are those of the folder's ``constraints.txt``, see `_pin`.
    """
    tags = [part for tag in PLATFORMS[platform] for part in ("--platform", tag)]
    further = ["--extra-index-url", index] if index else []
    python = ["--python-version", PYTHONS[slicer], "--implementation", "cp"]
    constraints = folder / _PINS
    pins = ["--constraint", str(constraints)] if constraints.is_file() else []
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    return [*pip, *python, *tags, *further, *pins, *requirements]


def _pin(folder: Path, platform: str) -> None:
    """Write the tested package versions into the folder; for Windows with `TORCH_FOR_WINDOWS`."""
    tested = resource().with_name(_PINS)
    if tested.is_file():
        text = tested.read_text(encoding="utf-8")
        if platform == "windows":
            text = re.sub(r"(?m)^torch==.*$", f"torch=={TORCH_FOR_WINDOWS}", text)
        (folder / _PINS).write_text(text, encoding="utf-8")


def _download(folder: Path, slicer: str, platform: str, index: str | None) -> None:
    """Download the wheels in rounds: the dependencies of one round's wheels on that platform are the next round.

    pip could do this itself only for the computer it runs on: it evaluates environment markers (``platform_system ==
    "Linux"``) for that one, whatever platform is requested.
    """
    python = {"python_version": PYTHONS[slicer], "python_full_version": f"{PYTHONS[slicer]}.0"}
    there = {
        **_MARKERS[platform],
        **python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    wanted = list(PACKAGES)
    known: set[str] = set()
    while wanted:
        known.update(wanted)
        wheels = _wheels(folder)
        missing = [name for name in wanted if canonicalize_name(Requirement(name).name) not in wheels]
        if missing and _run(download_command(folder, slicer, platform, missing, index)) != 0:
            remedy = "Check the connection to the package index"
            free = shutil.disk_usage(folder).free
            if free < _ROOM:  # after pip has removed its incomplete downloads
                remedy += (
                    f", and free some space in {folder.parent} ({free / 1e9:.1f} GB are free, a Linux bundle needs "
                    f"{_ROOM / 1e9:.0f} GB) or set the environment variable TMPDIR to another folder"
                )
            raise UsageError("NOT_INSTALLED", "the packages could not be downloaded", remedy)
        wheels = _wheels(folder)
        needed = (_needed(Requirement(requirement), wheels, there) for requirement in wanted)
        wanted = sorted(set().union(*needed) - known)


def _wheels(folder: Path) -> dict[str, Metadata]:
    """The metadata of the wheels in a folder, by canonical name.

    Python's own reader keeps wheels open, and Windows does not remove open files.
    """
    wheels: dict[str, Metadata] = {}
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            about = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            wheel = Metadata.from_email(archive.read(about), validate=False)
        wheels[canonicalize_name(wheel.name)] = wheel
    return wheels


def _needed(requirement: Requirement, wheels: dict[str, Metadata], environment: dict[str, str]) -> set[str]:
    """The dependencies, without markers, that the wheel satisfying a requirement has in an environment.

    Raises:
        UsageError: NOT_INSTALLED, no wheel satisfies it.
    """
    wheel = wheels.get(canonicalize_name(requirement.name))
    if wheel is None or not requirement.specifier.contains(wheel.version, prereleases=True):
        raise UsageError(
            "NOT_INSTALLED",
            f"no downloaded wheel satisfies {requirement}",
            "Please report it: the packages do not fit together",
        )
    needed = set()
    for dependency in wheel.requires_dist or ():
        if dependency.marker is None or any(
            dependency.marker.evaluate(environment | {"extra": extra}) for extra in ("", *requirement.extras)
        ):
            dependency.marker = None
            needed.add(str(dependency))
    return needed


def _check(output: Path, slicer: str, platform: str, index: str | None) -> None:
    if slicer not in PYTHONS:
        raise UsageError("USAGE", f"Slicer {slicer} is not supported", f"Choose one of {', '.join(PYTHONS)}")
    if platform not in PLATFORMS:
        raise UsageError("USAGE", f"{platform} is not a known platform", f"Choose one of {', '.join(PLATFORMS)}")
    if index is not None and not re.match(r"(https?|file)://.", index):  # pip would go on without it
        raise UsageError(
            "USAGE", f"{index} is not the address of a package index", "Give an address that begins with https://"
        )
    check_writable(output, (".zip",))


def _pack(output: Path, about: dict[str, object], files: dict[str, Path]) -> None:
    entries = [{"name": name, "size": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()]
    # Wheels and weights are compressed already. They may be dated before 1980, the first year that zip files know.
    with write_beside(output, ".zip") as part, zipfile.ZipFile(part, "w", strict_timestamps=False) as archive:
        archive.writestr(MANIFEST, json.dumps(about | {"files": entries}, indent=1))
        for name, path in files.items():
            archive.write(path, name)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode
