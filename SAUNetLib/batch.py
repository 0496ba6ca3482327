"""Segment a whole archive, on this computer or a Dask cluster; a repeated run processes only what is left."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from .batch_cluster import WorkerPool, WorkersDied, connected, scheduler_kept
from .batch_journal import (
    JOURNAL,
    LOCK,
    SUMMARY,
    Batch,
    Journal,
    Outcome,
    Source,
    open_journal,
    read_batch,
    try_tables,
    write_figures,
    write_summary,
)
from .batch_source import (
    BatchTask,
    appears,
    folder_files,
    image_files,
    opens,
    segment_source,
    slice_files,
    try_worker,
)
from .errors import InputError, UsageError, is_out_of_memory, out_of_memory, unforeseen
from .formats.atomic import ending_of, probe, same_place, spelling
from .formats.dicom_files import holds_images
from .formats.endings import IMAGES

GIVE_UP = 20
"""The run ends after this many sources in a row that failed for the same reason unrelated to their images."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_VOXELS = (".raw", ".zraw", ".raw.gz", ".img")
"""Extensions of voxel data beside the headers of MetaImage and NRRD files."""
_OF_THE_RUN = ("INPUT_NOT_FOUND", "DEVICE", "MODEL_", "OUTPUT_WRITE", "NOT_INSTALLED", "CRASHED", "INTERNAL")


def run_batch(
    archive: Path,
    output: Path,
    model: str | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    report: Callable[[int, int | None, int, int], None] = lambda done, total, failed, before: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Batch:
    """Segment all series below a folder; a repeated call processes only what is new, has changed or failed.

    Every series gets a label map, a table, measurements and a preview under its own path below `output`. There are also
    ``batch.jsonl`` with a line for every finished source, ``batch.csv`` with a row for every series, and
    ``measurements.csv`` with the measurements of all series.

    Args:
        archive: folder, which is not changed; all files of a DICOM series must lie in one folder.
        output: folder; the computers of a cluster must see it and the archive under the same paths.
        model: name or file; default: the shipped model.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        scheduler: address of a Dask scheduler such as ``tcp://host:8786``; default: workers on this computer.
        workers: processes on this computer; default: one per core, as memory allows, or one on a GPU.
        report: called repeatedly with the numbers of sources that are done, that this run has to process (None until
            the whole archive has been scanned), that failed, and that earlier runs have done.
        warn: called with a text about each unusable worker, and if there are no workers.

    Returns:
        What is known about the archive, including earlier runs.

    Raises:
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY.
        UsageError: OUTPUT_WRITE; DEVICE; or USAGE if another run uses the same output, the output belongs to another
            archive, the scheduler does not answer, there is no worker, or one source after another fails for the same
            reason unrelated to its images.
        ModelError: the model cannot be used.
        SAUNetError: none of the available workers can do the work, for this reason.
    """
    from filelock import FileLock, Timeout

    from .model_card import DEFAULT_MODEL, ModelCard, find_model

    _check_folders(archive, output)
    scan = _ArchiveScan(archive, output)
    chosen = model or DEFAULT_MODEL
    if Path(chosen).suffix == ".safetensors":  # else it is a name, even if a file here is called that
        chosen = os.path.abspath(chosen)  # noqa: PTH100 - no failure for any path
    card = ModelCard.read(find_model(chosen))
    task = BatchTask(archive.resolve(), output.resolve(), chosen, card.sha256, device)
    try:
        with FileLock(output / LOCK, timeout=0), ExitStack() as stack:
            known = read_batch(output)
            known.check_archive(archive, output)
            try_tables(known, output)

            def start_pool(first: Source) -> WorkerPool:
                # Ends after the summary is written: workers take seconds to end, and an impatient scheduler kills.
                return stack.enter_context(_pool(first, task, scheduler, workers, warn))

            return _segment_all(scan, known, start_pool, task, report)
    except Timeout as busy:
        raise _busy(output) from busy
    except OSError as failure:
        raise _unwritten(output, failure) from failure


@contextmanager
def _pool(
    first: Source, task: BatchTask, scheduler: str | None, workers: int | None, warn: Callable[[str], None]
) -> Iterator[WorkerPool]:
    """Check the model and connect to workers, which takes seconds that a run without work is spared.

    Workers of a cluster are tested with the `first` source; see `run_batch` for the others.
    """
    try:
        from .engine import choose_device
        from .model import load_model
    except OSError as failure:  # a library of PyTorch's; the caller takes others for the output's
        raise unforeseen(failure, "Install PyTorch again") from failure

    load_model(task.model)
    trial = None
    if scheduler is not None:
        trial = partial(try_worker, first.place, task, opens(task.archive / first.place))
    elif choose_device(task.device).type != "cpu":
        workers = workers or 1  # several would share the card's memory
    with scheduler_kept(scheduler), connected(scheduler, workers, task.output) as client:
        yield WorkerPool(client, partial(segment_source, task=task), trial, warn)


def _check_folders(archive: Path, output: Path) -> None:
    """Reject an archive that is not a folder or lies in its own output folder, and an output that is a file."""
    if not archive.is_dir():
        raise InputError("INPUT_NOT_FOUND", f"{archive} is not a folder", "Give the folder of the archive")
    if any(same_place(folder, output) for folder in (archive, *archive.resolve().parents)):
        raise UsageError(
            "USAGE", f"{archive} lies in the output folder", "Choose an output folder beside or inside the archive"
        )
    if output.is_file():
        raise UsageError("OUTPUT_WRITE", f"{output} is a file", "Give a folder for the results")


class _ArchiveScan:
    """One pass through an archive: the `places` of its sources, and counts of other files by extension (`left_out`).

    `closed` are the places of folders that cannot be listed, and `earlier` the folders with results of other batches;
    `total` is the number of sources that need work, and `walked` whether the pass is complete. An archive without
    sources is refused before anything is written to the output folder.
    """

    def __init__(self, archive: Path, output: Path) -> None:
        self.places: set[str] = set()
        self.closed: set[str] = set()
        self.left_out: Counter[str] = Counter()
        self.earlier: list[str] = []
        self.total, self.walked = 0, False
        self._left = False  # whether nobody takes the sources any more
        self.archive, self.output = archive, output
        self._sources = find_sources(archive, output, self.left_out, self.earlier)
        first = next(self._sources, None)
        if first is None:
            other_files = f", only {sum(self.left_out.values())} files of other kinds" if self.left_out else ""
            results = ", only results of other batches" if self.earlier else ""
            raise InputError(
                "INPUT_EMPTY",
                f"{archive} contains no images{other_files or results}",
                "Check that this is the right folder and that it is mounted",
            )
        self._sources = chain([first], self._sources)

    def pending(self, known: Batch, sha256: str) -> Generator[Source | None]:
        """Yield the sources that still need work, while a thread goes on scanning: a large archive takes hours.

        None means that no further source has been found yet.
        """
        found: SimpleQueue[Source | BaseException | None] = SimpleQueue()
        # Daemon: the end of the run does not wait until a slow network share has answered.
        Thread(target=self._walk, args=(known, sha256, found), daemon=True, name="walk").start()
        try:
            while True:
                try:
                    one = found.get(timeout=0.1)
                except Empty:
                    yield None
                    continue
                if one is None:
                    return
                if isinstance(one, BaseException):
                    raise one
                yield one
        finally:
            self._left = True

    def _walk(self, known: Batch, sha256: str, found: SimpleQueue[Source | BaseException | None]) -> None:
        """Queue the sources that still need work, then None, or the exception that ended the scan."""
        try:
            for source in _with_twins(self._sources, self.output):
                if self._left:
                    return
                self.places.add(source.place)
                if not source.stamp:
                    self.closed.add(source.place)
                if not known.is_done(source, sha256, self.output):
                    self.total += 1
                    found.put(source)
            self.walked = True
            found.put(None)
        except BaseException as failure:
            found.put(failure)


def _segment_all(
    scan: _ArchiveScan,
    known: Batch,
    start_pool: Callable[[Source], WorkerPool],
    task: BatchTask,
    report: Callable[[int, int | None, int, int], None],
) -> Batch:
    """Process what is left of an archive; the summary is written however the run ends."""
    result, records, output = known, dict(known.records), scan.output

    def tell(done: int, failed: int) -> None:
        report(done, scan.total if scan.walked else None, failed, len(scan.places) - scan.total)

    def current() -> Batch:
        # If the scan is incomplete, a source that had left the archive is back only if it was seen.
        unseen = () if scan.walked else (place for place, record in records.items() if not record.gone)
        return replace(known, records=records).only(scan.places.union(unseen), scan.closed)

    opened = open_journal(records, scan.archive, output, current)
    with opened as journal, closing(scan.pending(known, task.sha256)) as waiting:
        try:
            _work(start_pool, waiting, task, journal, tell)
        finally:
            if records != known.records or scan.walked:  # else the summary is left as it was
                result = current()
                journal.mark(result.records)
                if scan.walked:
                    result = replace(result, left_out=scan.left_out, earlier=scan.earlier, edited=journal.edited)
                write_summary(result, output)
        write_figures(result, output)
    return result


def _busy(output: Path) -> UsageError:
    """The error of a run whose output folder another run is using."""
    last = read_batch(output).last
    who = f" (last recorded: process {last.process} on {last.host})" if last else ""
    remedy = f"Wait until it finishes, or choose another output folder; the lock file is {output / LOCK}"
    return UsageError("USAGE", f"another run is using {output}{who}", remedy)


def _unwritten(output: Path, failure: OSError) -> UsageError:
    """The error of a run whose journal or summary cannot be written."""
    if failure.errno in _NO_LOCKS:
        cause = (
            f"the file system of {output} does not support file locks ({failure.strerror}), which {LOCK} needs to keep "
            "a second run out"
        )
        return UsageError(
            "OUTPUT_WRITE",
            cause,
            "Mount it with locking enabled (NFS: with its lock service), or choose another folder",
        )
    cause = f"{failure.filename or output} cannot be written ({failure.strerror})"
    return UsageError("OUTPUT_WRITE", cause, "Check the folder's permissions and the free disk space")


def _with_twins(sources: Iterator[Source], output: Path) -> Iterator[Source]:
    """The sources, with `Source.twin` set where a case-insensitive file system would mix up two sources' results."""
    if not _is_case_blind(output):
        yield from sources
        return
    met: set[str] = set()
    for source in sources:
        yield replace(source, twin=spelling(source.place) in met)
        met.add(spelling(source.place))


def _is_case_blind(folder: Path) -> bool:
    """Whether the file system of a folder is case-insensitive."""
    with probe(folder) as trial:
        return trial.with_name(trial.name.upper()).exists()


def find_sources(
    archive: Path, output: Path, left_out: Counter[str] | None = None, earlier: list[str] | None = None
) -> Iterator[Source]:
    """Find image files and folders with DICOM files below a folder; hidden ones and `output` are left out.

    A folder that cannot be read is a source, too, so that it is reported. `left_out` counts other files by extension,
    except beside DICOM files, where each would have to be opened. Subfolders with the results of another batch, whose
    label maps are not images, are left out as well, and listed in `earlier`.
    """
    closed: list[OSError] = []
    for parent, folders, names in os.walk(archive, onerror=closed.append):
        here = Path(parent)
        if here != archive and {JOURNAL, SUMMARY} <= set(names):
            folders.clear()
            if earlier is not None:
                earlier.append(here.relative_to(archive).as_posix())
            continue
        folders[:] = sorted(name for name in folders if name[0] != "." and not same_place(here / name, output))
        other_files = sorted(folder_files(here, names))
        for name in sorted(name for name in names if not name.startswith(".") and ending_of(Path(name), IMAGES)):
            files = sorted(image_files(here / name))
            yield Source((here / name).relative_to(archive).as_posix(), False, *_stamp(files))
        if holds_images(other_files):
            yield Source(here.relative_to(archive).as_posix(), True, *_stamp(slice_files(other_files)))
        elif left_out is not None:
            left_out.update(file.suffix.lower() for file in other_files if not file.name.lower().endswith(_VOXELS))
    for failure in closed:
        yield Source(Path(failure.filename).relative_to(archive).as_posix(), True, "", closed=True)


def _stamp(paths: Sequence[Path]) -> tuple[str, int, bool]:
    """`Source.stamp`, `size` and `closed` for a source with these files."""
    known, size, closed = hashlib.sha256(), 0, False
    for path in paths:
        try:
            about = path.stat()
        except OSError as failure:
            # The target of a link may be on a disconnected disk; any other missing file is gone.
            closed = closed or not isinstance(failure, FileNotFoundError) or path.is_symlink()
            continue
        size += about.st_size
        known.update(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="backslashreplace"))
    return known.hexdigest()[:16], size, closed


def _work(
    start_pool: Callable[[Source], WorkerPool],
    waiting: Iterator[Source | None],
    task: BatchTask,
    journal: Journal,
    report: Callable[[int, int], None],
) -> None:
    """Submit sources to the workers, a few in advance, and write the results to the journal.

    Sources whose workers died, or could not open them, are tried once more at the end.
    """
    for first in waiting:
        report(0, 0)
        if first:
            break
    else:
        report(0, 0)
        return
    _Work(start_pool(first), task, journal, report).do(chain([first], waiting))


_Entry = tuple[Source, frozenset[str]]
"""A source with the addresses of the workers that could not open it."""
_END: Any = object()
"""Marks the end of the entries; None stands for one that is not known yet."""


class _Work:
    """Sources being processed by a pool of workers."""

    def __init__(self, pool: WorkerPool, task: BatchTask, journal: Journal, report: Callable[[int, int], None]) -> None:
        self._pool, self._task, self._journal, self._report = pool, task, journal, report
        self._streak, self._done, self._failed = _FailureStreak(journal.has_results(task.sha256)), 0, 0
        self._elsewhere: deque[_Entry] = deque()  # to be tried again by another worker
        self._alone: deque[_Entry] = deque()  # to be tried again one at a time
        self._phase = 1

    def do(self, sources: Iterable[Source | None]) -> None:
        """Have sources segmented, and retry those that may have failed for a reason unrelated to their images.

        Args:
            sources: those to segment; None where the next one is not known yet.
        """
        self._run((source, frozenset()) if source else None for source in sources)
        self._phase = 2
        self._run(_emptied(self._elsewhere))
        # When an image kills its worker, the other sources there count as tried, too: now each is tried alone.
        self._phase = 3
        self._run(_emptied(self._alone))

    def _run(self, entries: Iterator[_Entry | None]) -> None:
        upcoming = next(entries, _END)
        while upcoming is not _END or len(self._pool):
            self._pool.refresh()
            while upcoming not in (None, _END) and self._pool.has_room() and not (self._phase == 3 and len(self._pool)):
                if self._journal.begin(upcoming[0]):
                    self._pool.submit(*upcoming)
                else:
                    self._done, self._failed = self._done + 1, self._failed + 1
                upcoming = next(entries, _END)
            result = self._pool.next_result()
            if result is not None:
                self._take(*result)
            if upcoming is None:
                upcoming = next(entries, _END)
            self._report(self._done, self._failed)

    def _take(self, source: Source, result: Sequence[Outcome] | BaseException) -> None:
        """Record the outcome of a source, even if it is retried: the run may end before the retry."""
        if isinstance(result, BaseException):
            outcomes = [_crash_outcome(result)]
        else:
            outcomes = [_checked(outcome, self._task.output) for outcome in result]
        noted = self._journal.note(source, self._task.sha256, outcomes)
        closed = any(outcome.closed for outcome in outcomes) and opens(self._task.archive / source.place)
        blamed: frozenset[str] = frozenset()
        if (self._phase < 3 and self._streak.note(outcomes)) or closed:
            blamed = self._pool.recheck_last_worker()
        if closed and self._phase < 2:
            self._elsewhere.append((source, blamed))
        elif isinstance(result, WorkersDied) and self._phase < 3:
            self._alone.append((source, blamed))
        else:
            self._done += 1
            self._failed += any(outcome.status == "failed" for outcome in noted)


def _emptied(entries: deque[_Entry]) -> Iterator[_Entry]:
    while entries:
        yield entries.popleft()


class _FailureStreak:
    """Count sources in a row that failed for the same reason unrelated to their images; end the run at `GIVE_UP`.

    Args:
        segmented: whether an earlier run has segmented anything: what is left may be just its failures.
    """

    def __init__(self, segmented: bool) -> None:
        self._in_a_row, self._reason, self._segmented = 0, "", segmented

    def note(self, outcomes: Sequence[Outcome]) -> bool:
        """Count a source's outcomes; returns whether, judging by the code, the worker was at fault.

        Raises:
            UsageError: USAGE, it was the last of too many in a row.
        """
        failures = [outcome for outcome in outcomes if outcome.code.startswith(_OF_THE_RUN) and not outcome.own]
        self._segmented = self._segmented or any(outcome.status == "segmented" for outcome in outcomes)
        if not failures:
            self._in_a_row, self._reason = 0, ""
            return False
        failure = failures[0]
        if failure.code == "INTERNAL" and self._segmented:
            return True  # several images may meet one bug, which is no reason to skip the others
        self._in_a_row = self._in_a_row + 1 if failure.code == self._reason else 1
        self._reason = failure.code
        if self._in_a_row >= GIVE_UP:
            where = f"on {failure.host}: " if failure.host else ""
            cause = f"{GIVE_UP} sources in a row failed with {failure.code} ({where}{failure.text})"
            raise UsageError("USAGE", cause, "Fix the cause and run the same command again")
        return True


def _checked(outcome: Outcome, output: Path) -> Outcome:
    """The outcome itself, or a failure if its result files do not appear on this computer."""
    unseen = next((name for name in outcome.files() if not appears(output / name)), None)
    if unseen is None:
        return outcome if outcome.status == "failed" else replace(outcome, host="")
    text = "the worker's result cannot be found here: on the worker, this path may be a different folder"
    try:
        (output / unseen).stat()
    except FileNotFoundError:
        pass
    except OSError as failure:
        text = (
            f"the user who runs this command cannot access the worker's result ({failure.strerror}), which may belong "
            "to another user"
        )
    failed = replace(outcome, status="failed", output="", notices=(), confidence=None)
    return replace(failed, code="OUTPUT_WRITE", text=text, exit_status=UsageError.exit_status)


def _crash_outcome(failure: BaseException) -> Outcome:
    """The outcome of a source whose workers died, or that hit an error unrelated to its images."""
    if isinstance(failure, Exception) and is_out_of_memory(failure):  # for example during a worker's imports
        known = out_of_memory()
        return Outcome("failed", code=known.code, text=known.cause, exit_status=known.exit_status)
    host = failure.host if isinstance(failure, WorkersDied) else ""
    died = isinstance(failure, WorkersDied)
    text = str(failure) if died else " ".join(f"{type(failure).__name__}: {failure}".split())
    return Outcome("failed", code="CRASHED", text=text, exit_status=1, host=host)
