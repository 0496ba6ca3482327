"""The work of a batch worker: segment every series of one source, from image files to result files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from . import __version__
from .batch_journal import JOURNAL, RESULTS, Outcome, Source, content_of, is_there, joined, result_name, series_name
from .errors import InputError, ModelError, SAUNetError, UsageError, unforeseen
from .formats.atomic import ending_of, probe
from .formats.dicom import list_series
from .formats.dicom_series import Series
from .formats.endings import IMAGES
from .formats.headers import voxel_file

if TYPE_CHECKING:
    from .engine import Engine

PROBE_BYTES = 2**20
"""Size of the test file that shows whether a folder takes results: an empty file fits even on many full disks."""


_NEVER_SLICES = (
    ".pdf", ".txt", ".xml", ".html", ".htm", ".json", ".csv", ".doc", ".docx", ".xls", ".xlsx", ".jpg", ".jpeg", ".png",
    ".gif", ".bmp", ".mp4", ".avi", ".zip", ".db", ".ini", ".inf", ".exe",
)  # fmt: skip
"""Extensions of reports and of system files that lie beside slices."""


@dataclass(frozen=True)
class BatchTask:
    """The settings shared by all sources of a batch.

    Attributes:
        archive, output: folders, under the same paths on all computers.
        model, sha256: name or file of the model, and the SHA-256 it must have.
        device: as for `Engine`.
        version: of SAUNet, which must be the same everywhere.
    """

    archive: Path
    output: Path
    model: str
    sha256: str
    device: str
    version: str = __version__


def try_worker(place: str, task: BatchTask, opened: bool) -> tuple[str, dict[str, str | int] | None]:
    """Test this worker: returns its host name, and the problem as `SAUNetError.as_dict`, or None.

    Args:
        place: a source that must be in the archive: an unmounted folder exists, but is empty.
        task: the batch's settings.
        opened: whether the command itself can open its files.
    """
    try:
        if task.version != __version__:
            cause = f"SAUNet is version {__version__} here, but {task.version} where the command runs"
            raise UsageError("NOT_INSTALLED", cause, "Install the same version of SAUNet on all computers")
        if not os.path.lexists(task.archive / place):
            cause = f"{task.archive} is missing here, or is not the folder that the command sees under this path"
            raise InputError("INPUT_NOT_FOUND", cause, "Mount the archive under the same path on all computers")
        if opened and not opens(task.archive / place):
            cause = f"{task.archive / place} cannot be opened here, although it can be where the command runs"
            raise InputError(
                "INPUT_UNREADABLE", cause, "Grant the user on that computer permission to read the archive"
            )
        _check_output(task.output)
        _engine(task.model, task.sha256, task.device)
    except Exception as error:
        failure = error if isinstance(error, SAUNetError) else unforeseen(error, "Please report it")
        return gethostname(), failure.as_dict()
    return gethostname(), None


def _check_output(output: Path) -> None:
    """Reject an output folder that is not the command's own, or that cannot be written to."""
    if not appears(output / JOURNAL):
        cause = f"{output} is missing here, or is not the folder that the command sees under this path"
        raise UsageError("OUTPUT_WRITE", cause, "Mount the results folder under the same path on all computers")
    _write_probe(output)


def _write_probe(output: Path) -> None:
    """Write a test file and remove it again; raises UsageError (OUTPUT_WRITE)."""
    try:
        with probe(output, PROBE_BYTES):
            pass
    except OSError as failure:
        cause = f"{output} cannot be written to ({failure.strerror})"
        raise UsageError(
            "OUTPUT_WRITE", cause, "Check the user's permissions on that computer and its free disk space"
        ) from failure


def _takes_files(output: Path) -> bool:
    try:
        _write_probe(output)
    except UsageError:
        return False
    return True


def appears(path: Path) -> bool:
    """Whether a file written on another computer is visible here; network file systems may take a moment."""
    for _ in range(20):
        if is_there(path):
            return True
        time.sleep(0.5)
    return False


def segment_source(source: Source, task: BatchTask) -> list[Outcome]:
    """Segment one source on a worker; any problem with an image becomes its outcome."""
    changed = _has_changed(source, task)  # what is missing now may be back at the end
    outcomes = [_explained(outcome, source, task) for outcome in _outcomes(source, task)]
    if any(outcome.status == "failed" for outcome in outcomes):  # it is tried again, and a change may be the cause
        return outcomes
    if not (changed or _has_changed(source, task)):
        return outcomes
    text = "its files changed during the run; the next run processes it again"
    return [
        replace(
            outcome,
            changed=True,
            text=joined(outcome.text, text),
            status="failed" if outcome.status == "refused" else outcome.status,  # a file may have been missing
        )
        for outcome in outcomes
    ]


def image_files(image: Path) -> set[Path]:
    """The files of an image: the file itself, and the one that holds its voxels."""
    return {image, voxel_file(image, ending_of(image, IMAGES))}


def folder_files(folder: Path, names: Iterable[str]) -> set[Path]:
    """The files among these names that form the folder's source: all except hidden ones and image files."""
    return {folder / name for name in names if not name.startswith(".") and not ending_of(Path(name), IMAGES)}


def slice_files(files: Iterable[Path]) -> list[Path]:
    """Those of `folder_files` whose changes count as changes of a series: a report added later is none."""
    files = sorted(files)
    return [file for file in files if not file.name.lower().endswith(_NEVER_SLICES)] or files


def _has_changed(source: Source, task: BatchTask) -> bool:
    """Whether the total size of a source's files has changed since they were found."""
    place = task.archive / source.place
    _, _, names = next(os.walk(place), ("", [], []))
    size = 0
    for file in slice_files(folder_files(place, names)) if source.dicom else image_files(place):
        try:
            size += file.stat().st_size
        except OSError:
            if file.is_symlink():  # to a disk that this computer may never have had
                return False
    return size != source.size and not source.closed


def _explained(outcome: Outcome, source: Source, task: BatchTask) -> Outcome:
    """The outcome with its host name and, for an image that could not be read, what this host knows about it."""
    outcome = replace(outcome, host=gethostname())
    if not outcome.code.startswith("INPUT_"):
        return outcome
    closed = outcome.status == "failed" and not opens(task.archive / source.place)
    # A missing image is not the worker's fault if others are there: it was removed, or its path is too long.
    return replace(outcome, closed=closed, own=outcome.code == "INPUT_NOT_FOUND" and _holds_anything(task.archive))


def _holds_anything(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _outcomes(source: Source, task: BatchTask) -> list[Outcome]:
    if source.twin:
        text = "its results would replace those of another image, whose name differs only in letter case"
        return [Outcome("failed", code="OUTPUT_WRITE", text=text, exit_status=UsageError.exit_status, own=True)]
    image = task.archive / source.place
    target = task.output / result_name(source.place)
    if not source.dicom:
        return [_segmented(image, target, task)]
    try:
        listed = list_series(image, below=False)
    except Exception as error:
        return [_not_segmented(error, [image], task)]
    outcomes = []
    opens_once = cache(opens)  # a file that cannot be read may count against every series of the folder
    for series in listed:
        name = series_name(series.number, series.key)
        if series.problem is not None:
            outcome = _refused(series.problem, all(map(opens_once, series.damaged)))
        else:
            outcome = _segmented(series, target / name, task)
        study = series.frames[0].study if series.frames else ""
        outcomes.append(replace(outcome, series=series.name, name=name, series_uid=series.uid, study_uid=study))
    return outcomes


def _not_segmented(error: Exception, files: Sequence[Path], task: BatchTask) -> Outcome:
    """The outcome of an image that ended in an error: refused if the image is the cause, otherwise failed."""
    if isinstance(error, InputError):
        return _refused(error, all(map(opens, files)))
    failure = error if isinstance(error, SAUNetError) else unforeseen(error, "Please report it")
    own = failure.code == "OUTPUT_WRITE" and _takes_files(task.output)
    return Outcome("failed", "", failure.code, failure.cause, failure.exit_status, own=own)


def _refused(problem: InputError, opened: bool) -> Outcome:
    """The outcome of an image that cannot be segmented: ``refused``.

    It is ``failed``, which is tried again, where a file cannot be opened.
    """
    status = "refused" if opened else "failed"
    return Outcome(status, "", problem.code, problem.cause, problem.exit_status)


def opens(path: Path) -> bool:
    """Whether a file, or every file of a folder, can be opened; a broken link counts as one that can."""
    try:
        if path.is_dir():
            return all(opens(entry) for entry in path.iterdir() if not entry.is_dir())
        if path.is_file():  # opening anything else might block
            open(path, "rb").close()
        return path.exists() or path.is_symlink()
    except OSError:
        return False


def _segmented(image: Path | Series, target: Path, task: BatchTask) -> Outcome:
    """Segment one image into the files of `RESULTS`, which are named after `target`."""
    from .pipeline import segment_file

    started = time.perf_counter()
    results = {ending: target.with_name(target.name + ending) for ending in RESULTS}
    try:
        result = segment_file(
            image, results[".nii.gz"], _engine(task.model, task.sha256, task.device), table=results[".csv"],
            measurements=results[".json"], preview=results[".png"],
        )  # fmt: skip
    except Exception as error:
        files = [frame.path for frame in image.frames] if isinstance(image, Series) else [image]
        return _not_segmented(error, files, task)
    return Outcome(
        "segmented",
        output=results[".nii.gz"].relative_to(task.output).as_posix(),
        seconds=round(time.perf_counter() - started, 2),
        notices=tuple(notice.code for notice in result.warnings),
        labels=content_of(results[".nii.gz"]),
        confidence=min(result.confidence.values(), default=None),
    )


@cache
def _engine(model: str, sha256: str, device: str) -> Engine:
    """The engine of a worker process, which must use exactly the model that the batch was started with."""
    from .engine import Engine
    from .model import load_model

    loaded = load_model(model)
    if loaded.card.sha256 != sha256:
        raise ModelError(
            "MODEL_MISMATCH",
            f"the model {model} on this computer differs from the command's",
            "Install the same version of the model on all computers",
        )
    return Engine(loaded, device)
