"""What a worker of a batch does: segment the series of one source, each from file to files."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from socket import gethostname
from typing import TYPE_CHECKING

from .batch_journal import JOURNAL, RESULTS, Outcome, Source
from .errors import InputError, ModelError, SAUNetError, UsageError, unforeseen
from .formats.atomic import discard
from .formats.dicom import list_series
from .formats.dicom_series import Series

if TYPE_CHECKING:
    from .engine import Engine

MOST_NAME = 200
"""Bytes of a result's name without its ending; file systems allow 255 with it."""
PROBE_BYTES = 2**20
"""Written to see whether a folder takes results: an empty file has room on many a full disk."""


def try_worker(
    place: str, archive: Path, output: Path, model: str, sha256: str, device: str
) -> tuple[str, dict[str, str | int] | None]:
    """Whether this worker can do its work: its host, and what is wrong as `SAUNetError.as_dict` tells it.

    Args:
        place: something in the archive: a folder where nothing is mounted is there, but empty.
        archive, output, model, sha256, device: as for `segment_source`.
    """
    try:
        if not os.path.lexists(archive / place):
            cause = f"{archive} is missing here, or is not the same folder as where the command runs"
            raise InputError("INPUT_NOT_FOUND", cause, "Mount the archive under the same path on all computers")
        _check_output(output)
        _engine(model, sha256, device)
    except Exception as error:
        failure = error if isinstance(error, SAUNetError) else unforeseen(error, "Please report it")
        return gethostname(), failure.as_dict()
    return gethostname(), None


def _check_output(output: Path) -> None:
    """Refuse a folder for results that is not the command's own, or that takes no file."""
    if not appears(output / JOURNAL):
        cause = f"{output} is missing here, or is not the same folder as where the command runs"
        raise UsageError("OUTPUT_WRITE", cause, "Mount the folder of the results under the same path on all computers")
    _write_probe(output)


def _write_probe(output: Path) -> None:
    """Write a file and remove it again; raises UsageError (OUTPUT_WRITE)."""
    probe = output / f".{secrets.token_hex(6)}.json"  # named as what a stopped run may leave
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as failure:
        cause = f"{output} cannot be written to ({failure.strerror})"
        raise UsageError(
            "OUTPUT_WRITE", cause, "Check the permissions of that computer's user and the space on its disk"
        ) from failure
    finally:
        discard(probe)


def _takes_files(output: Path) -> bool:
    try:
        _write_probe(output)
    except UsageError:
        return False
    return True


def appears(path: Path) -> bool:
    """Whether a file of another computer is to be seen from here; network file systems may take a moment."""
    for _ in range(20):
        if path.is_file():
            return True
        time.sleep(0.5)
    return False


def segment_source(source: Source, archive: Path, output: Path, model: str, sha256: str, device: str) -> list[Outcome]:
    """Segment one source on a worker; whatever is wrong with its images is an outcome of theirs."""
    outcomes = _outcomes(source, archive, output, (model, sha256, device))
    return [replace(outcome, host=gethostname()) if outcome.status == "failed" else outcome for outcome in outcomes]


def _outcomes(source: Source, archive: Path, output: Path, engine: tuple[str, str, str]) -> list[Outcome]:
    if source.twin:
        text = "its results would replace those of another image, whose name differs only in upper and lower case"
        return [Outcome("failed", code="OUTPUT_WRITE", text=text, exit_status=UsageError.exit_status)]
    image = archive / source.place
    target = output / PurePosixPath(_writable(source.place))
    if not source.dicom:
        return [_segmented(image, target, output, engine)]
    try:
        listed = list_series(image, below=False)
    except InputError as problem:
        return [_refused(problem, [image])]
    outcomes = []
    for series in listed:
        # A number may hold anything, as what leads into another folder.
        number = series.number if series.number.isascii() and series.number.isalnum() else "series"
        name = f"{number}-{_digits(series.uid)}"
        if series.problem is not None:
            outcome = _refused(series.problem, series.damaged)
        else:
            outcome = _segmented(series, target / name, output, engine)
        outcomes.append(replace(outcome, series=series.name, name=name))
    return outcomes


def _writable(place: str) -> str:
    """A path in the archive as one for results: undecodable characters escaped, and too long a name shortened."""
    plain = place.encode(errors="backslashreplace").decode()
    plain = plain if plain == place else plain.replace("\\", "%")
    folder, _, name = plain.rpartition("/")
    if len(name.encode()) > MOST_NAME:
        name = f"{name.encode()[:MOST_NAME].decode(errors='ignore')}-{_digits(name)}"
    return f"{folder}/{name}" if folder else name


def _digits(text: str) -> str:
    """The first eight hexadecimal digits of a text's SHA-256: hardly any other text has them."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _refused(problem: InputError, files: Sequence[Path]) -> Outcome:
    """The outcome of an image that cannot be segmented: ``refused``.

    It is ``failed``, which is tried again, where a file cannot be opened or memory does not suffice.
    """
    closed = isinstance(problem.__cause__, MemoryError) or not all(map(_opens, files))
    return Outcome("failed" if closed else "refused", "", problem.code, problem.cause, problem.exit_status)


def _opens(path: Path) -> bool:
    try:
        if path.is_dir():
            return all(_opens(entry) for entry in path.iterdir() if not entry.is_dir())
        if path.is_file():  # anything else might never begin
            open(path, "rb").close()
        return path.exists() or path.is_symlink()
    except OSError:
        return False


def _segmented(image: Path | Series, target: Path, output: Path, engine: tuple[str, str, str]) -> Outcome:
    """Segment one image into the files of `RESULTS`, which are named after `target`."""
    from .pipeline import segment_file

    started = time.perf_counter()
    results = {ending: target.with_name(target.name + ending) for ending in RESULTS}
    try:
        result = segment_file(
            image, results[".nii.gz"], _engine(*engine), table=results[".csv"], measurements=results[".json"],
            preview=results[".png"],
        )  # fmt: skip
    except InputError as problem:
        return _refused(problem, [frame.path for frame in image.frames] if isinstance(image, Series) else [image])
    except Exception as error:
        failure = error if isinstance(error, SAUNetError) else unforeseen(error, "Please report it")
        own = failure.code == "OUTPUT_WRITE" and _takes_files(output)
        return Outcome("failed", "", failure.code, failure.cause, failure.exit_status, own=own)
    return Outcome(
        "segmented",
        output=results[".nii.gz"].relative_to(output).as_posix(),
        seconds=round(time.perf_counter() - started, 2),
        notices=tuple(notice.code for notice in result.warnings),
    )


@cache
def _engine(model: str, sha256: str, device: str) -> Engine:
    """The engine of a worker's process, which must have the very model that the batch was begun with."""
    from .engine import Engine
    from .model import load_model

    loaded = load_model(model)
    if loaded.card.sha256 != sha256:
        raise ModelError(
            "MODEL_MISMATCH",
            f"the model {model} on this computer is a different one",
            "Install the same version everywhere",
        )
    return Engine(loaded, device)
