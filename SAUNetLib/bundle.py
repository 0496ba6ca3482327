"""A bundle for a computer without a connection: wheels and model in one zip file, each with its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import UsageError

FORMAT = 1
MANIFEST = "manifest.json"
PYTHONS = {"5.10": "3.12", "5.12": "3.12"}
"""Python of every supported Slicer."""
PLATFORMS = {
    "linux": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "windows": ("win_amd64",),
    "macos-arm64": ("macosx_12_0_arm64", "macosx_11_0_arm64"),
    "macos-x86_64": ("macosx_12_0_x86_64", "macosx_10_13_x86_64"),
}
PACKAGES = ("torch>=2.4", "safetensors>=0.4", "connected-components-3d>=3.20", "pynrrd>=1.0")
"""What the engine needs beside what Slicer brings."""

Run = Callable[[Sequence[str]], int]


def write_bundle(
    output: str | Path,
    slicer: str,
    platform: str,
    *,
    model: str = "saunet-lumbar",
    index: str | None = None,
    run: Run | None = None,
) -> list[str]:
    """Download the wheels for a Slicer and a platform, and pack them with a model.

    Args:
        output: zip file; replaced only by a whole one.
        slicer: 5.10 or 5.12.
        platform: one of `PLATFORMS`.
        model: a model's name.
        index: address of a further package index. On Linux pip's own gives a PyTorch for NVIDIA cards (several GB);
            PyTorch's index of processor builds gives a small one.
        run: runs a command line and gives its exit status; for tests.

    Returns:
        The names of the files in the bundle.

    Raises:
        UsageError: USAGE for an unknown Slicer or platform; OUTPUT_FORMAT; OUTPUT_WRITE; NOT_INSTALLED where a download
            failed.
        ModelError: MODEL_NOT_FOUND.
    """
    from .model import find_model  # loads torch; the panel, which reads bundles, has none

    output = Path(output)
    _check(output, slicer, platform)
    weights = find_model(model)
    with tempfile.TemporaryDirectory(prefix="saunet-bundle-") as folder:
        wheels = Path(folder)
        command = download_command(wheels, slicer, platform, index)
        if (run or _run)(command) != 0:
            raise UsageError(
                "NOT_INSTALLED", "the packages could not be downloaded", "Check the connection to the package index"
            )
        files = {f"wheels/{path.name}": path for path in sorted(wheels.glob("*.whl"))}
        files |= {f"models/{path.name}": path for path in (weights, weights.with_suffix(".json"))}
        _pack(output, {"format": FORMAT, "slicer": slicer, "platform": platform, "python": PYTHONS[slicer]}, files)
    return list(files)


def download_command(folder: Path, slicer: str, platform: str, index: str | None = None) -> list[str]:
    """The pip command that downloads the wheels, and nothing that would have to be built."""
    tags = [part for tag in PLATFORMS[platform] for part in ("--platform", tag)]
    further = ["--extra-index-url", index] if index else []
    python = ["--python-version", PYTHONS[slicer], "--implementation", "cp"]
    pip = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--dest", str(folder)]
    return [*pip, *python, *tags, *further, *PACKAGES]


def _check(output: Path, slicer: str, platform: str) -> None:
    if slicer not in PYTHONS:
        raise UsageError("USAGE", f"Slicer {slicer} is not supported", f"Choose one of {', '.join(PYTHONS)}")
    if platform not in PLATFORMS:
        raise UsageError("USAGE", f"{platform} is no known platform", f"Choose one of {', '.join(PLATFORMS)}")
    if output.suffix != ".zip":
        raise UsageError(
            "OUTPUT_FORMAT", f"{output.name} does not end in .zip", "Give the bundle a name that ends in .zip"
        )
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise UsageError("OUTPUT_WRITE", f"{output.parent} cannot be written to", "Choose another folder")


def _pack(output: Path, about: dict[str, object], files: dict[str, Path]) -> None:
    part = output.with_name(f".{output.name}.part")
    entries = [{"name": name, "size": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()]
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:  # wheels and weights are compressed already
            archive.writestr(MANIFEST, json.dumps(about | {"files": entries}, indent=1))
            for name, path in files.items():
                archive.write(path, name)
        part.replace(output)
    except OSError as error:
        raise UsageError("OUTPUT_WRITE", f"{output.name} could not be written ({error})", "Free some space") from error
    finally:
        part.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode
