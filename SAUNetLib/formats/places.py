"""Check where the results of a command may be written: never over anything that it reads."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import UsageError
from . import headers
from .atomic import check_writable, ending_of, same_place, spelling
from .dicom_files import is_dicom
from .endings import IMAGES


def check_outputs(outputs: Iterable[tuple[str | Path | None, Collection[str]]], inputs: Iterable[str | Path]) -> None:
    """Reject unusable paths of results, each with its allowed extensions (None: not wanted), before the work starts.

    Raises:
        UsageError: as `check_writable` and `check_places`.
    """
    asked = [(path, endings) for path, endings in outputs if path is not None]
    for path, endings in asked:
        check_writable(path, endings)
    check_places([path for path, _ in asked], inputs)


def check_places(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Reject results that would replace an input, its voxel file, a DICOM file or each other, including through links.

    Raises:
        UsageError: OUTPUT_WRITE; USAGE for two results at one place.
    """
    # By name, so that not every pair of images and results need be compared.
    held: dict[str, list[Path]] = {}
    for path in map(Path, inputs):
        for file in {path, headers.voxel_file(path, ending_of(path, IMAGES))}:
            held.setdefault(_true_name(file), []).append(file)
    written: dict[str, list[Path]] = {}
    for output in map(Path, outputs):
        name = _true_name(output)
        if any(same_place(output, file) for file in held.get(name, ())):
            raise UsageError("OUTPUT_WRITE", f"{output} is the input itself", "Give the result another name")
        if is_dicom(output):
            raise UsageError("OUTPUT_WRITE", f"{output} is a DICOM file", "Give the result another name")
        if any(same_place(output, other) for other in written.get(name, ())):
            raise UsageError("USAGE", f"two results would be written to {output}", "Give each a name of its own")
        written.setdefault(name, []).append(output)


def _true_name(path: Path) -> str:
    """The `spelling` of a path's file name, with links followed."""
    try:
        return spelling(os.path.basename(os.path.realpath(path)))  # noqa: PTH119 - no failure for a symlink loop
    except ValueError:  # a NUL: reported when the image is read
        return ""
