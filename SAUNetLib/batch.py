"""A whole archive: every series below a folder, on this computer or on a Dask cluster; what is done stays done."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .batch_cluster import Crew, WorkersDied, connected, scheduler_kept
from .batch_journal import Batch, Outcome, Record, Source, journal, read_batch, try_summary, write_summary
from .batch_source import appears, segment_source, try_worker
from .errors import InputError, UsageError
from .formats.atomic import discard, ending_of, same_place, spelling
from .formats.dicom_files import may_be_image
from .formats.endings import IMAGES
from .formats.headers import voxel_file

LOCK = "batch.lock"
GIVE_UP = 20
"""So many sources in a row that fail for one reason which is none of theirs end the run."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_VOXELS = (".raw", ".zraw", ".raw.gz", ".img")
"""What lies beside the headers of MetaImage and NRRD files."""
_OF_THE_RUN = ("INPUT_NOT_FOUND", "DEVICE", "MODEL_", "OUTPUT_WRITE", "NOT_INSTALLED", "CRASHED")


def run_batch(
    archive: Path,
    output: Path,
    model: str | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    report: Callable[[int, int, int], None] = lambda done, known, failed: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Batch:
    """Segment all series below a folder; called again, only what is new, changed or failed.

    Every series gets a label map, a table, measurements and a preview under its own path below `output`. Beside them
    lie ``batch.jsonl``, a line for every source when it is done, and ``batch.csv``, a row for every series there is.

    Args:
        archive: folder; of DICOM series the files of one lie in one folder. Not changed.
        output: folder, which a cluster's computers see under the same path, as they do the archive.
        model: name or file; default: the shipped model.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        scheduler: address of a Dask scheduler such as ``tcp://host:8786``; default: workers on this computer.
        workers: processes on this computer; default: one per core, as far as memory suffices.
        report: told how many sources are done, how many are known of, and how many failed.
        warn: told of workers that are no good, and where there is none.

    Returns:
        What is known of the archive, from earlier runs too.

    Raises:
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY.
        UsageError: OUTPUT_WRITE; DEVICE; or USAGE where another run works on the same output, it is of another archive,
            the scheduler does not answer, no worker comes, or one reason that is none of the images' ends source after
            source.
        ModelError: the model cannot be used.
        SAUNetError: of the workers that came none can do the work, for this reason.
    """
    from filelock import FileLock, Timeout

    from .engine import choose_device
    from .model import load_model
    from .model_card import DEFAULT_MODEL

    _check_folders(archive, output)
    if scheduler is None:
        choose_device(device)
    chosen = model or DEFAULT_MODEL
    if Path(chosen).suffix == ".safetensors":  # else it is a name, also where a file here is called so
        chosen = os.path.abspath(chosen)  # noqa: PTH100 - no failure for any path
    sha256 = load_model(chosen).card.sha256
    task = {
        "archive": archive.resolve(), "output": output.resolve(), "model": chosen, "sha256": sha256, "device": device,
    }  # fmt: skip
    found = _Found(archive, output)
    try:
        with FileLock(output / LOCK, timeout=0), scheduler_kept():
            known = read_batch(output)
            known.check_archive(archive, output)
            try_summary(known, output)
            with connected(scheduler, workers, output) as client:
                crew = partial(Crew, client, warn=warn)
                result = _segment_all(found, known, crew, task, scheduler is not None, report)
    except Timeout as busy:
        raise _busy(output) from busy
    except OSError as failure:
        raise _unwritten(output, failure) from failure
    if not found.places:
        others = f", only {sum(found.left_out.values())} files of other kinds" if found.left_out else ""
        raise InputError(
            "INPUT_EMPTY",
            f"{archive} holds no images{others}",
            "Check that this is the archive, and that it is mounted",
        )
    return result


def _check_folders(archive: Path, output: Path) -> None:
    """Refuse what is no archive, and one that lies among its own results."""
    if not archive.is_dir():
        raise InputError("INPUT_NOT_FOUND", f"{archive} is not a folder", "Give the folder of the archive")
    if any(same_place(one, output) for one in (archive, *archive.resolve().parents)):
        raise UsageError(
            "USAGE", f"{archive} lies in the output folder", "Give a folder beside the archive or inside it"
        )


class _Found:
    """What an archive is found to hold, on the way through it: places of sources, and other files by their endings."""

    def __init__(self, archive: Path, output: Path) -> None:
        self.places: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.archive, self.output = archive, output

    def waiting(self, known: Batch, sha256: str) -> Iterator[Source]:
        """Go through the archive; the sources of which something is left to do."""
        for source in _told_apart(find_sources(self.archive, self.output, self.left_out), self.output):
            self.places.add(source.place)
            if not known.is_done(source, sha256, self.output):
                yield source


def _segment_all(
    found: _Found,
    known: Batch,
    crew_of: Callable[..., Crew],
    task: Mapping[str, Any],
    try_workers: bool,
    report: Callable[[int, int, int], None],
) -> Batch:
    """Do what is left to do of an archive; the summary is written however that ends."""
    result, records, output = known, dict(known.records), found.output
    walked = False
    try:
        with journal(records, found.archive, output) as note:
            _work(crew_of, found.waiting(known, task["sha256"]), task, note, try_workers, report)
        walked = True
    finally:
        if found.places:  # else the summary stays what it was
            result = replace(known, records=records)
            if walked:
                result = replace(result.only(found.places, output), left_out=found.left_out)
            write_summary(result, output)
    return result


def _busy(output: Path) -> UsageError:
    """The failure of a run on a folder that another one holds."""
    last = read_batch(output).last
    who = f" (process {last.process} on {last.host}, as far as is known)" if last else ""
    remedy = f"Wait until it has finished, or give another folder; it holds {output / LOCK}"
    return UsageError("USAGE", f"another run is working on {output}{who}", remedy)


def _unwritten(output: Path, failure: OSError) -> UsageError:
    """The failure of a run whose own files cannot be written."""
    if failure.errno in _NO_LOCKS:
        cause = (
            f"the file system of {output} has no locks ({failure.strerror}), as {LOCK} needs one against a second run"
        )
        return UsageError(
            "OUTPUT_WRITE", cause, "Mount it with locks (NFS: with its lock service), or give another folder"
        )
    cause = f"{failure.filename or output} cannot be written ({failure.strerror})"
    return UsageError("OUTPUT_WRITE", cause, "Check the permissions of the folder and that the disk has space")


def _told_apart(sources: Iterator[Source], output: Path) -> Iterator[Source]:
    """Sources; those marked whose results would replace another's, where the file system of the results is such."""
    if not _is_case_blind(output):
        yield from sources
        return
    met: set[str] = set()
    for source in sources:
        yield replace(source, twin=spelling(source.place) in met)
        met.add(spelling(source.place))


def _is_case_blind(folder: Path) -> bool:
    """Whether the file system of a folder takes upper and lower case for one."""
    probe = folder / f".{secrets.token_hex(6)}.json"
    try:
        probe.touch()
        return probe.with_name(probe.name.upper()).exists()
    finally:
        discard(probe)


def find_sources(archive: Path, output: Path, left_out: Counter[str] | None = None) -> Iterator[Source]:
    """The image files and folders with DICOM files below a folder; hidden ones and `output` are left out.

    A folder that cannot be read is one too, so that its absence is told. In `left_out` other files are counted by their
    endings; not beside DICOM files, all of which would have to be opened.
    """
    closed: list[OSError] = []
    for parent, folders, names in os.walk(archive, onerror=closed.append):
        here = Path(parent)
        folders[:] = sorted(one for one in folders if one[0] != "." and not same_place(here / one, output))
        names = sorted(one for one in names if not one.startswith("."))
        others = []
        for one in names:
            if ending := ending_of(Path(one), IMAGES):
                files = {here / one, voxel_file(here / one, ending)}
                yield Source((here / one).relative_to(archive).as_posix(), False, _stamp(sorted(files)))
            else:
                others.append(here / one)
        if any(map(may_be_image, others)):
            yield Source(here.relative_to(archive).as_posix(), True, _stamp(others))
        elif left_out is not None:
            left_out.update(one.suffix.lower() for one in others if not one.name.lower().endswith(_VOXELS))
    for failure in closed:
        yield Source(Path(failure.filename).relative_to(archive).as_posix(), True, "")


def _stamp(paths: Sequence[Path]) -> str:
    """A short text that changes when any of these files does."""
    known = hashlib.sha256()
    for path in paths:
        with suppress(OSError):
            about = path.stat()
            known.update(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="backslashreplace"))
    return known.hexdigest()[:16]


def _work(
    crew_of: Callable[..., Crew],
    waiting: Iterator[Source],
    task: Mapping[str, Any],
    note: Callable[[Record], None],
    try_workers: bool,
    report: Callable[[int, int, int], None],
) -> None:
    """Hand sources to the workers, a few ahead of them, and write down what comes back."""
    upcoming = next(waiting, None)
    if upcoming is None:
        return
    trial = partial(try_worker, upcoming.place, **task) if try_workers else None
    crew = crew_of(partial(segment_source, **task), trial)
    done, failed, watch = 0, 0, _Watch()
    while upcoming is not None or len(crew):
        crew.look()
        while upcoming is not None and crew.has_room():
            crew.give(upcoming)
            upcoming = next(waiting, None)
        back = crew.take()
        if back is None:
            continue
        source, made = back
        crashed = isinstance(made, BaseException)
        outcomes = [_crashed(made)] if crashed else [_seen(one, task["output"]) for one in made]
        note(Record(source.place, source.stamp, task["sha256"], tuple(outcomes)))
        done, failed = done + 1, failed + any(one.status == "failed" for one in outcomes)
        if watch.see(outcomes):
            crew.doubt()
        report(done, done + len(crew), failed)


class _Watch:
    """Ends a run in which one reason that is none of the images' ends source after source."""

    def __init__(self) -> None:
        self._in_a_row, self._reason = 0, ""

    def see(self, outcomes: Sequence[Outcome]) -> bool:
        """Look at what became of a source; whether it was the worker's fault, as far as the code tells.

        Raises:
            UsageError: USAGE, it was the last of too many in a row.
        """
        why = next((one for one in outcomes if one.code.startswith(_OF_THE_RUN) and not one.own), None)
        if why is None:
            self._in_a_row, self._reason = 0, ""
            return False
        self._in_a_row = self._in_a_row + 1 if why.code == self._reason else 1
        self._reason = why.code
        if self._in_a_row >= GIVE_UP:
            where = f"on {why.host}: " if why.host else ""
            cause = f"{GIVE_UP} sources in a row failed with {why.code} ({where}{why.text})"
            raise UsageError("USAGE", cause, "Fix the cause and run the same command again")
        return True


def _seen(one: Outcome, output: Path) -> Outcome:
    """An outcome whose result is to be seen from here."""
    if all(appears(output / name) for name in one.files()):
        return one
    text = "the worker's result cannot be found here: the worker may see another folder under this path"
    return replace(
        one, status="failed", code="OUTPUT_WRITE", text=text, exit_status=UsageError.exit_status, output="", notices=()
    )


def _crashed(failure: BaseException) -> Outcome:
    """Of a source whose workers died, or that met an error outside of its images."""
    host = failure.host if isinstance(failure, WorkersDied) else ""
    text = str(failure) if host else " ".join(f"{type(failure).__name__}: {failure}".split())
    return Outcome("failed", code="CRASHED", text=text, exit_status=1, host=host)
