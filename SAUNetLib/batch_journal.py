"""The state of an archive: its sources and their outcomes, the journal, and the summary made from it."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from socket import gethostname
from typing import Any, TextIO, get_type_hints

from . import __version__
from .errors import UsageError
from .formats.atomic import discard, same_place, spelling, write_beside

JOURNAL, SUMMARY, LOCK, FIGURES = "batch.jsonl", "batch.csv", "batch.lock", "measurements.csv"
RESULTS = (".nii.gz", ".csv", ".json", ".png")
"""Extensions of an image's label map, table, measurements and preview."""
SUMMARY_S = 300.0
"""Seconds between updates of the summary during a run."""
MOST_NAME = 200
"""Most bytes of a result's name without its extension; file systems allow 255 with it."""
MOST_NUMBER = 12
"""Most characters of a series number in DICOM."""
_OF_SERIES = re.compile(rf"[0-9A-Za-z]{{1,{MOST_NUMBER}}}-[0-9a-f]{{8}}({'|'.join(map(re.escape, RESULTS))})")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula may begin with in a spreadsheet; the last four are the full-width forms of the first four."""


@dataclass(frozen=True)
class Source:
    """The input of one task: an image file, or the DICOM files in one folder.

    Attributes:
        place: path relative to the archive, with slashes.
        dicom: whether it is a folder.
        stamp: changes with its files; empty for a folder that cannot be listed.
        size: total bytes of its files, which unlike file times are the same on every computer.
        closed: whether some of its files cannot be accessed, so that the stamp does not show whether they changed.
        twin: whether its results would have the names of another source's on a case-insensitive file system.
    """

    place: str
    dicom: bool
    stamp: str
    size: int = 0
    closed: bool = False
    twin: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of one series or image.

    Attributes:
        status: ``segmented``; ``refused``, it cannot be segmented; or ``failed``, to be tried again, for example
            because it could not be opened.
        code, text: of the refusal or failure.
        exit_status: of the failure, as of `saunet segment`.
        output: label map, relative to the output folder; table, measurements and preview share its name. If an
            unchanged image failed, its earlier label map.
        notices: codes of the result's notices.
        confidence: of the least certain name, 0 to 1; None if there is none.
        host: computer on which it failed.
        own: whether its own name or absence is the cause, since other files could be written or are there.
        closed: whether it could not be opened on that computer.
        changed: whether files of its source were added, removed or resized between the scan and the end of the work.
        labels: a hash of the label map as it was written.
        name: of a DICOM series' results; the same in every folder that holds slices of the series.
        series_uid, study_uid: of a DICOM series, as stored in its files.
    """

    status: str
    series: str = ""
    code: str = ""
    text: str = ""
    exit_status: int = 0
    output: str = ""
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    host: str = ""
    name: str = ""
    own: bool = False
    closed: bool = False
    changed: bool = False
    labels: str = ""
    series_uid: str = ""
    study_uid: str = ""
    confidence: float | None = None

    def files(self) -> tuple[str, ...]:
        """Its result files, relative to the output folder."""
        return tuple(self.output.removesuffix(RESULTS[0]) + ending for ending in RESULTS) if self.output else ()


_KINDS = {
    name: kind | int if isinstance(0.0, kind) else kind
    for name, kind in get_type_hints(Outcome).items()
    if name != "notices"
}
"""Types of an outcome's entries; JSON may have a whole number without a decimal point for a float."""


def _outcome(status: str, notices: Sequence[str], **rest: Any) -> Outcome:
    """Create an outcome from the entries of a journal line; raises ValueError or TypeError for an invalid one."""
    outcome = Outcome(status, notices=tuple(notices), **rest)
    fit = all(isinstance(getattr(outcome, name), kind) for name, kind in _KINDS.items())
    if not fit or not all(isinstance(code, str) for code in notices) or b"\0" in os.fsencode(outcome.output):
        raise TypeError("an entry is of another kind")
    return outcome


@dataclass(frozen=True)
class SourceRecord:
    """A line of the journal: the outcomes of a source's series.

    Attributes:
        place, stamp: of the source; the stamp is empty if the source changed while it was processed.
        model: SHA-256 of the model that made them; empty once processing has begun again, since workers may go on and
            replace results after the run has ended.
        version: of SAUNet.
        kept: names of copies of label maps that differed from the recorded ones when processing began.
        gone: whether the source was missing from the archive when that was last scanned.
    """

    place: str
    stamp: str
    model: str
    outcomes: tuple[Outcome, ...]
    version: str = ""
    kept: tuple[str, ...] = ()
    gone: bool = False

    @classmethod
    def read(cls, line: str) -> SourceRecord:
        """Create the record from a line of JSON.

        Raises:
            ValueError, KeyError, TypeError: a crash damaged it, or another version wrote it.
        """
        entry = json.loads(line)
        outcomes = tuple(_outcome(**outcome) for outcome in entry["outcomes"])
        version, kept = str(entry.get("version", "")), tuple(map(str, entry.get("kept", ())))
        about = str(entry["place"]), str(entry["stamp"]), str(entry["model"])
        return cls(*about, outcomes, version, kept, gone=entry.get("gone") is True)


@dataclass(frozen=True)
class RunStart:
    """A line of the journal: the start of a run. The one before the first record states the archive."""

    archive: str
    host: str
    process: int

    @classmethod
    def read(cls, line: str) -> RunStart:
        """Create it from a line of JSON; raises as `SourceRecord.read`."""
        entry = json.loads(line)
        return cls(str(entry["archive"]), str(entry["host"]), int(entry["process"]))


@dataclass(frozen=True)
class Batch:
    """What is known about an archive.

    Attributes:
        records: by place of the source, also of those that have left the archive.
        left_out: number of files that are not a known kind of image, by extension.
        earlier: folders of the archive with the results of other batches, which are left out.
        edited: names of copies of label maps that differed from the recorded ones when processed again.
        first, last: the run that made the first results, and the latest run; None if there was none.
    """

    records: Mapping[str, SourceRecord] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    earlier: Sequence[str] = ()
    edited: Collection[str] = ()
    first: RunStart | None = None
    last: RunStart | None = None

    def check_archive(self, archive: Path, output: Path) -> None:
        """Reject a different archive: results would be attributed to the wrong patients.

        Raises:
            UsageError: USAGE.
        """
        if self.first is None and self.records:
            line = json.dumps(asdict(RunStart(str(archive.resolve()), "", 0)))
            raise UsageError(
                "USAGE",
                f"{output / JOURNAL} no longer records which archive the results in {output} belong to",
                "Choose another folder or, if they belong to this archive, insert this as the first line of the "
                f"journal: {line}",
            )
        if self.first is not None and not same_place(Path(self.first.archive), archive):
            raise UsageError(
                "USAGE",
                f"{output} holds the results of another archive, {self.first.archive}",
                "Choose another folder or, if the archive was only moved, replace this path with its new one in "
                f"{output / JOURNAL}",
            )

    def is_done(self, source: Source, model: str, output: Path) -> bool:
        """Whether a source is done: unchanged, processed by this model, nothing failed, and all results are there."""
        record = self.records.get(source.place)
        if record is None or source.twin or not record.stamp or (record.stamp, record.model) != (source.stamp, model):
            return False
        return all(
            outcome.status != "failed" and all(is_there(output / name) for name in outcome.files())
            for outcome in record.outcomes
        )

    def outcomes(self) -> Iterator[tuple[SourceRecord, Outcome]]:
        """Every series in the archive with its source's record, in the order of their places."""
        for _, record in sorted(self.records.items()):
            if not record.gone:
                yield from ((record, outcome) for outcome in record.outcomes)

    def gone(self, output: Path) -> Iterator[tuple[SourceRecord, Outcome]]:
        """Likewise every result of the sources that have left the archive, if anything of the source is still there."""
        for _, record in sorted(self.records.items()):
            results = [outcome for outcome in record.outcomes if outcome.output]
            if record.gone and any(is_there(output / outcome.output) for outcome in results):
                yield from ((record, outcome) for outcome in results)

    def counts(self) -> dict[str, int]:
        """Numbers of series that were segmented, were refused or failed."""
        count = Counter(outcome.status for _, outcome in self.outcomes())
        return {status: count[status] for status in ("segmented", "refused", "failed")}

    def split(self) -> set[str]:
        """Names of the DICOM series that lie in several folders, as parts or copies."""
        names = Counter(outcome.name for _, outcome in self.outcomes() if outcome.name)
        return {name for name, count in names.items() if count > 1}

    def changed(self) -> int:
        """Number of sources that changed during the run."""
        return len({record.place for record, outcome in self.outcomes() if outcome.changed})

    def only(self, seen: Collection[str], closed: Collection[str]) -> Batch:
        """The batch if the archive now has only the places `seen`: all others are gone.

        Those in folders that cannot be listed (`closed`) are not: nothing is known of them.
        """

        def marked(record: SourceRecord) -> SourceRecord:
            place = record.place
            gone = place not in seen and not any(str(folder) in closed for folder in PurePosixPath(place).parents)
            return record if record.gone == gone else replace(record, gone=gone)

        return replace(self, records={place: marked(record) for place, record in self.records.items()})


def read_batch(output: Path) -> Batch:
    """Read the journal in an output folder; lines damaged by a crash or written by another version are ignored."""
    records: dict[str, SourceRecord] = {}
    first = last = None
    results = False  # whether there is any record, even an unreadable one: until then a run's archive is not binding
    # If the journal cannot be read, writing the summary fails, too, and says why.
    with suppress(OSError), open(output / JOURNAL, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
                if line.startswith('{"archive"'):
                    last = RunStart.read(line)
                elif line.strip():
                    results = True
                    record = SourceRecord.read(line)
                    records[record.place] = record
            first = first or (last if results else None)
    return Batch(records, first=first, last=last)


def is_there(path: Path) -> bool:
    """Whether there is a visible file; `Path.is_file` fails if the folder cannot be read."""
    return os.path.isfile(path)  # noqa: PTH113


def content_of(path: Path) -> str:
    """A short hash of a file's content; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _may_be_there(path: Path) -> bool:
    """Whether a path exists, or cannot be shown to be missing, as in an inaccessible folder."""
    try:
        os.lstat(path)
    except OSError as failure:
        return failure.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return True


class Journal:
    """The open journal of a run, and its records by place.

    Attributes:
        edited: see `Batch`.
    """

    def __init__(
        self, file: TextIO, records: dict[str, SourceRecord], output: Path, current: Callable[[], Batch]
    ) -> None:
        """`current` gives the batch for the summary that is written now and then."""
        self.edited: set[str] = set()
        self._file, self._records, self._output, self._current = file, records, output, current
        self._begun: set[str] = set()  # places of sources
        self._due = time.monotonic() + SUMMARY_S

    def has_results(self, model: str) -> bool:
        """Whether this version has segmented anything with a model (SHA-256)."""
        return any(
            (record.model, record.version) == (model, __version__)
            and any(outcome.status == "segmented" for outcome in record.outcomes)
            for record in self._records.values()
        )

    def begin(self, source: Source) -> bool:
        """Record, before a source with results is processed again, that they may be replaced from now on.

        Label maps that differ from the recorded ones, or are not recorded, are copied: either somebody has corrected
        them, which cannot be redone, or a run ended before it could record them.

        Returns:
            False if such a file cannot be copied: everything stays as it is, and this is recorded as the failure.
        """
        before = self._records.get(source.place) or SourceRecord(source.place, source.stamp, "", ())
        before = replace(before, gone=False)
        again = source.place in self._begun
        self._begun.add(source.place)
        noted = {outcome.output: outcome.labels for outcome in before.outcomes if outcome.output}
        maps = {name: labels for name, labels in noted.items() if labels}
        if not (again or source.twin):  # newer files are this run's own, and a twin's belong to the other source
            found = {name for name in _found(source, self._output) if name.endswith(RESULTS[0])}
            maps.update(dict.fromkeys(found - noted.keys(), ""))
        kept = set(before.kept) if again or not before.model else set()
        try:
            kept |= {copy for name, labels in maps.items() if (copy := self._copied(name, labels))}
        except UsageError as failure:
            code, text, status = failure.code, failure.cause, failure.exit_status
            failed = (
                replace(outcome, status="failed", code=code, text=text, exit_status=status, own=True)
                for outcome in before.outcomes or (Outcome("failed"),)
            )
            self._keep(replace(before, outcomes=tuple(failed)))
            return False
        self.edited |= kept
        if (noted and before.model) or kept - set(before.kept):
            self._keep(replace(before, model="", kept=tuple(sorted(kept))))
        return True

    def _copied(self, name: str, noted: str) -> str:
        """Copy a label map whose content differs from the recorded one; returns the copy's name, empty if not needed.

        Raises:
            UsageError: OUTPUT_WRITE, it cannot be read or copied.
        """
        if not _is_below(name):
            return ""
        path = self._output / name
        now = content_of(path)
        if not now and _may_be_there(path):
            cause = f"{path} cannot be read to copy it: it is open in another program, or this user may not read it"
            raise UsageError("OUTPUT_WRITE", cause, "Close it, or grant this user read permission")
        if now in ("", noted):
            return ""
        kept = f"{name.removesuffix(RESULTS[0])}.edited-{now[:8]}{RESULTS[0]}"
        with write_beside(self._output / kept, RESULTS[0]) as temporary:
            shutil.copyfile(path, temporary)
        return kept

    def _keep(self, record: SourceRecord) -> None:
        self.write(record)
        self._records[record.place] = record  # before waiting for the disk: a signal then finds both equal
        os.fsync(self._file.fileno())

    def note(self, source: Source, model: str, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
        """Record the outcomes of a source for a model (SHA-256); returns them as recorded, once they are on the disk.

        The record replaces the source's earlier one, and earlier result files that it no longer has are removed. The
        summary is written now and then.
        """
        before = self._records.get(source.place)
        kept = before.kept if before else ()
        record = SourceRecord(source.place, source.stamp, model, _with_remark(kept, outcomes), __version__, kept)
        record = _kept(before, source, record)
        if any(outcome.changed for outcome in outcomes):
            record = replace(record, stamp="")
        if not _is_spared(before, source, record):  # first: a recorded source is not looked at again
            record = _with_left(record, _remove_left(before, source, record, self._output))
        self._keep(record)
        if (began := time.monotonic()) >= self._due:
            current = self._current()
            self.mark(current.records)  # a run that is killed writes nothing at its end
            with suppress(UsageError):  # a spreadsheet may have it open; the last write reports it
                write_summary(current, self._output)
            took = time.monotonic() - began
            self._due = began + max(SUMMARY_S, 20 * took)  # it takes a while for millions of sources
        return record.outcomes

    def mark(self, records: Mapping[str, SourceRecord]) -> None:
        """Record which sources have left the archive, and which are back: `records`, as from `Batch.only`."""
        for place, record in records.items():
            if record != self._records[place]:
                self.write(record)
                self._records[place] = record

    def write(self, line: SourceRecord | RunStart) -> None:
        """Write a line."""
        self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()


@contextmanager
def open_journal(
    records: dict[str, SourceRecord], archive: Path, output: Path, current: Callable[[], Batch]
) -> Iterator[Journal]:
    """Open the journal for a run; see `Journal` for `current`."""
    with open(output / JOURNAL, "a", encoding="utf-8") as file:
        journal = Journal(file, records, output, current)
        if file.tell():
            file.write("\n")  # ends a line that a crash cut short; empty lines are ignored
        journal.write(RunStart(str(archive.resolve()), gethostname(), os.getpid()))
        yield journal


def _with_remark(kept: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes, the first with a remark on copies of label maps (`SourceRecord.kept`)."""
    if not kept or not outcomes:
        return tuple(outcomes)
    remark = f"a label map that was edited by hand or left by an interrupted run is kept as {', '.join(kept)}"
    first, *rest = outcomes
    return (replace(first, text=joined(first.text, remark)), *rest)


def joined(text: str, remark: str) -> str:
    """The text of an outcome with a remark appended."""
    return f"{text.removesuffix('.')}; {remark}" if text else remark


def _kept(before: SourceRecord | None, source: Source, now: SourceRecord) -> SourceRecord:
    """The record `now`, whose failures keep the earlier results unless the source is known to have changed.

    The cause may be a full disk, and the earlier results are as good as before.
    """
    earlier = [outcome for outcome in before.outcomes if outcome.output] if before else []
    if before is not None and source.closed:  # what is accessible now does not show whether it has changed
        now = replace(now, stamp=before.stamp)
    if before is None or not earlier or source.twin or now.stamp != before.stamp:
        return now
    outcomes: list[Outcome] = []
    for outcome in now.outcomes:
        if outcome.status == "segmented" or (outcome.status == "refused" and not source.closed):
            outcomes.append(outcome)
            continue
        failed = replace(outcome, status="failed")
        # A source that failed as a whole failed for each of its series.
        theirs = [one for one in earlier if outcome.name in ("", one.name)]
        kept = ("series", "name", "output", "notices", "confidence", "labels", "series_uid", "study_uid")
        outcomes += [replace(failed, **{name: getattr(one, name) for name in kept}) for one in theirs] or [failed]
    return replace(now, outcomes=tuple(outcomes))


def _is_spared(before: SourceRecord | None, source: Source, now: SourceRecord) -> bool:
    """Whether a source's result files are left alone because nothing shows that they are outdated."""
    failed = any(outcome.status == "failed" for outcome in now.outcomes)
    # A twin's results belong to the other source.
    return source.closed or source.twin or (failed and (before is None or before.stamp == source.stamp))


def _remove_left(before: SourceRecord | None, source: Source, now: SourceRecord, output: Path) -> list[str]:
    """Remove the files of a source's earlier results that its new ones do not replace; returns those that remain.

    This includes files without a record: a run ended after writing them.
    """
    kept = {name for outcome in now.outcomes for name in outcome.files()}
    known = {name for outcome in before.outcomes for name in outcome.files()} if before else set()
    left = sorted(filter(_is_below, (known | _found(source, output)) - kept))
    for name in left:
        discard(output / name)
    return [name for name in left if os.path.lexists(output / name)]


def _is_below(name: str) -> bool:
    """Whether a name stays below the output folder: anyone may have edited the journal."""
    place = PurePath(name)  # by this system's rules: on Windows drives and backslashes count
    return not place.anchor and ".." not in place.parts


def _with_left(record: SourceRecord, left: Sequence[str]) -> SourceRecord:
    """The record, with a failure added if files of an earlier image remain, so that the next run tries again."""
    if not left:
        return record
    cause = f"{', '.join(left)} of an earlier image cannot be removed: open elsewhere, or the folder is write-protected"
    failed = Outcome("failed", code="OUTPUT_WRITE", text=cause, exit_status=UsageError.exit_status)
    return replace(record, outcomes=(*record.outcomes, failed))


def _found(source: Source, output: Path) -> set[str]:
    """Result files that a source may have, relative to the output folder."""
    target = PurePosixPath(result_name(source.place))
    if not source.dicom:
        return {f"{target}{ending}" for ending in RESULTS}
    names: list[str] = []
    with suppress(OSError):
        names = [path.name for path in (output / target).iterdir()]
    return {str(target / name) for name in names if _OF_SERIES.fullmatch(name)}


def result_name(place: str) -> str:
    """The path of a source's results, without extensions, from its path in the archive.

    Undecodable characters are escaped; overlong names and those of the batch's own files are changed.
    """
    plain = place.encode(errors="backslashreplace").decode()
    plain = plain if plain == place else plain.replace("\\", "%")
    first, _, rest = plain.partition("/")
    if spelling(first) in (JOURNAL, SUMMARY, LOCK, FIGURES):
        plain = f"{first}-{_digits(first)}" + (f"/{rest}" if rest else "")
    folder, _, name = plain.rpartition("/")
    if len(name.encode()) > MOST_NAME:
        name = f"{name.encode()[:MOST_NAME].decode(errors='ignore')}-{_digits(name)}"
    return f"{folder}/{name}" if folder else name


def series_name(number: str, key: str) -> str:
    """The name of a DICOM series' results, from its number and `Series.key`."""
    # A number may contain anything, such as a path to another folder.
    plain = number.isascii() and number.isalnum() and len(number) <= MOST_NUMBER
    return f"{number if plain else 'series'}-{_digits(key)}"


def _digits(text: str) -> str:
    """The first eight hexadecimal digits of a text's SHA-256, which hardly any other text shares."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def try_tables(known: Batch, output: Path) -> None:
    """Check in advance that summary and measurements can be written; existing ones are not changed."""
    for name, write in ((SUMMARY, write_summary), (FIGURES, write_figures)):
        if not (output / name).is_file():
            write(known, output)
            continue
        with write_beside(output / name, ".csv") as temporary:
            shutil.copyfile(output / name, temporary)


def write_summary(known: Batch, output: Path) -> None:
    """Write ``batch.csv``; a series in several folders is noted in each of its rows."""
    columns = (
        "place", "series", "status", "code", "text", "output", "confidence", "seconds", "notices", "model", "host",
        "version", "series_uid", "study_uid",
    )  # fmt: skip
    split = known.split()
    with (
        write_beside(output / SUMMARY, ".csv") as temporary,
        # The byte order mark tells spreadsheets the encoding.
        open(temporary, "w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        # Quoted: a name with a character that a spreadsheet takes for the separator stays one cell.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        gone = ((record, replace(outcome, status="gone")) for record, outcome in known.gone(output))
        for record, outcome in chain(known.outcomes(), gone):
            notices = " ".join([*outcome.notices, *(["SERIES_SPLIT"] if outcome.name in split else [])])
            about = (record.place, outcome.series, outcome.status, outcome.code, outcome.text, outcome.output)
            # Earlier results that are kept may be another model's or version's.
            model, version = ("", "") if outcome.status == "failed" else (record.model[:12], record.version)
            confidence = "" if outcome.confidence is None else f"{outcome.confidence:.2f}"
            more = (confidence, str(outcome.seconds), notices, model, outcome.host, version)
            writer.writerow(map(_cell, (*about, *more, outcome.series_uid, outcome.study_uid)))


def write_figures(known: Batch, output: Path) -> None:
    """Write ``measurements.csv``: the tables of all results that can be read, one after the other."""
    from .measurements.tables import COLUMNS, table_rows

    with (
        write_beside(output / FIGURES, ".csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, ("output", *COLUMNS), restval="", extrasaction="ignore", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for _, outcome in known.outcomes():
            rows: list[dict[str, Any]] = []
            # A file may be missing or damaged.
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                measured = (output / name for name in outcome.files() if name.endswith(".json"))
                rows = [row for path in measured for row in table_rows(json.loads(path.read_text(encoding="utf-8")))]
            writer.writerows({**row, "output": _cell(outcome.output)} for row in rows)


def _cell(text: str) -> str:
    """A text escaped so that no spreadsheet takes it for a formula: names come from anywhere."""
    return f"'{text}" if text.startswith(_FORMULA) else text
