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
from collections.abc import Collection, Iterator, Mapping, Sequence
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
"""How label map, table, measurements and preview of an image end."""
SUMMARY_S = 300.0
"""How often to write the summary while a run works."""
MOST_NAME = 200
"""Bytes of a result's name without its ending; file systems allow 255 with it."""
MOST_NUMBER = 12
"""Letters of a series' number, as DICOM has it."""
_OF_SERIES = re.compile(rf"[0-9A-Za-z]{{1,{MOST_NUMBER}}}-[0-9a-f]{{8}}({'|'.join(map(re.escape, RESULTS))})")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula may begin with in a spreadsheet; the last four are the same signs in the width of Chinese letters."""


@dataclass(frozen=True)
class Source:
    """The input of one task: an image file, or the DICOM files in one folder.

    Attributes:
        place: path relative to the archive, with slashes.
        dicom: whether it is a folder.
        stamp: changes with its files; empty for a folder that cannot be listed.
        size: bytes of its files together, which are the same on every computer, whatever its system makes of times.
        closed: whether not all of its files can be looked at, so that the stamp does not tell whether they changed.
        twin: whether its results would be called like another's, on a file system that knows no upper and lower case.
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
        status: ``segmented``; ``refused``, no image that can be segmented; or ``failed``, to be tried again, as what
            could not be opened.
        code, text: of the refusal or failure.
        exit_status: of the failure, as `saunet segment` has it.
        output: label map below the output folder; table, measurements and preview are called like it. Where an image
            that is still the same failed, its earlier one.
        notices: codes of what is to be known of the result.
        confidence: of the least certain name, 0 to 1; None where there is none.
        host: computer on which it failed.
        own: whether it failed for its own name or absence, while other files could be written or are there.
        closed: whether it could not be opened on that computer.
        changed: whether files of its source came, went or grew between being found and the end of the work.
        labels: digits that change with the contents of the label map, as it was written.
        name: of a DICOM series, what its results are called; the same in every folder that holds slices of it.
        series_uid, study_uid: of a DICOM series, as its files state them.
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
"""What the entries of an outcome are; JSON may have written a whole number without its point."""


def _outcome(status: str, notices: Sequence[str], **rest: Any) -> Outcome:
    """The outcome with these entries of a line of the journal; a ValueError or TypeError where one cannot be such."""
    outcome = Outcome(status, notices=tuple(notices), **rest)
    fit = all(isinstance(getattr(outcome, name), kind) for name, kind in _KINDS.items())
    if not fit or not all(isinstance(code, str) for code in notices) or b"\0" in os.fsencode(outcome.output):
        raise TypeError("an entry is of another kind")
    return outcome


@dataclass(frozen=True)
class SourceRecord:
    """A line of the journal: the outcomes of a source's series.

    Attributes:
        place, stamp: of the source; the stamp is empty where that changed while the run worked on it.
        model: SHA-256 of the model that made them; empty once the source was begun again, since whatever ends a run,
            workers may go on and replace results.
        version: of SAUNet.
        kept: second names of label maps that lay there when the source was begun, and were not those noted.
    """

    place: str
    stamp: str
    model: str
    outcomes: tuple[Outcome, ...]
    version: str = ""
    kept: tuple[str, ...] = ()

    @classmethod
    def read(cls, line: str) -> SourceRecord:
        """Create the record from a line of JSON.

        Raises:
            ValueError, KeyError, TypeError: a crash spoilt it, or another version wrote it.
        """
        entry = json.loads(line)
        outcomes = tuple(_outcome(**outcome) for outcome in entry["outcomes"])
        version, kept = str(entry.get("version", "")), tuple(map(str, entry.get("kept", ())))
        return cls(str(entry["place"]), str(entry["stamp"]), str(entry["model"]), outcomes, version, kept)


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
        records: by the places of its sources.
        gone: likewise of sources that have left the archive, and whose results are still there; as long as it was not
            looked through, those of the last run, which are among the records, too.
        left_out: how many files are no known image, by their endings.
        earlier: folders of the archive with the results of other batches, which are left out.
        edited: second names of label maps that were not those noted when their sources were begun again.
        first, last: runs, where there was one: the one that the first results are of, and the latest.
    """

    records: Mapping[str, SourceRecord] = field(default_factory=dict)
    gone: Mapping[str, SourceRecord] = field(default_factory=dict)
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
        """Every series with its source's record, in the order of their places."""
        for _, record in sorted(self.records.items()):
            for outcome in record.outcomes:
                yield record, outcome

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
        return sum(any(outcome.changed for outcome in record.outcomes) for record in self.records.values())

    def only(self, seen: Collection[str], closed: Collection[str], output: Path) -> Batch:
        """The same for an archive that now has only these places; records of all others count as gone.

        Not of those in folders that cannot be listed (`closed`): nothing is known of them.
        """

        def may_be_there(place: str) -> bool:
            return place in seen or any(str(folder) in closed for folder in PurePosixPath(place).parents)

        here = {place: record for place, record in self.records.items() if may_be_there(place)}
        gone = {
            place: record
            for place, record in self.records.items()
            if place not in here
            and any(outcome.output and is_there(output / outcome.output) for outcome in record.outcomes)
        }
        return replace(self, records=here, gone=gone)


def read_batch(output: Path) -> Batch:
    """Read the journal in an output folder; lines damaged by a crash or written by another version are ignored."""
    records: dict[str, SourceRecord] = {}
    first = last = None
    results = False  # also what cannot be read: until then nothing is held of an archive, whichever a run was given
    # Where it cannot be read, neither can the summary be written, which says why.
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
    shown = _shown_as_gone(output)
    gone = {place: record for place, record in records.items() if shown and _written(place) in shown}
    return Batch(records, gone, first=first, last=last)


def _shown_as_gone(output: Path) -> set[str]:
    """The places of the sources that have left the archive, as the summary writes them: the journal does not tell."""
    with (
        suppress(OSError, csv.Error),  # it is away, or not ours any more
        open(output / SUMMARY, newline="", encoding="utf-8-sig", errors="replace") as file,
    ):
        return {row[0] for row in csv.reader(file) if row[2:3] == ["gone"]}
    return set()


def is_there(path: Path) -> bool:
    """Whether there is a visible file; `Path.is_file` fails if the folder cannot be read."""
    return os.path.isfile(path)  # noqa: PTH113


def content_of(path: Path) -> str:
    """Digits that change with the content of a file; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def _may_be_there(path: Path) -> bool:
    """Whether something is at a path, or cannot be seen to be missing, as in a folder that is closed."""
    try:
        os.lstat(path)
    except OSError as failure:
        return failure.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return True


class Journal:
    """The open journal of a run, and its records by place.

    Attributes:
        edited: as of `Batch`.
    """

    def __init__(self, file: TextIO, records: dict[str, SourceRecord], output: Path) -> None:
        self.edited: set[str] = set()
        self._file, self._records, self._output = file, records, output
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

        Label maps that are not those noted are copied, also where nothing is noted: somebody has corrected them, and
        could not make them again, or a run was ended before it could note them.

        Returns:
            False where such a file cannot be copied: everything stays as it is, and that is noted as the failure.
        """
        before = self._records.get(source.place) or SourceRecord(source.place, source.stamp, "", ())
        again = source.place in self._begun
        self._begun.add(source.place)
        noted = {outcome.output: outcome.labels for outcome in before.outcomes if outcome.output}
        maps = {name: labels for name, labels in noted.items() if labels}
        if not (again or source.twin):  # what has come since is this run's own, and a twin's are those of the other one
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
        self._records[record.place] = record  # before the disk is waited for: a signal then finds both alike
        os.fsync(self._file.fileno())

    def note(self, source: Source, model: str, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
        """Record the outcomes of a source for a model (SHA-256); returns the record once it is on the disk.

        The record takes its place among the others, and files of the source's earlier results that it has no longer are
        removed. The summary is written now and then.
        """
        before = self._records.get(source.place)
        kept = before.kept if before else ()
        record = SourceRecord(source.place, source.stamp, model, _with_remark(kept, outcomes), __version__, kept)
        record = _kept(before, source, record)
        if any(outcome.changed for outcome in outcomes):
            record = replace(record, stamp="")
        if not _is_spared(before, source, record):  # first: what is in the journal is not looked at again
            record = _with_left(record, _remove_left(before, source, record, self._output))
        self._keep(record)
        if (began := time.monotonic()) >= self._due:
            with suppress(UsageError):  # a spreadsheet may have it open; the last one, at the end, tells it
                write_summary(Batch(self._records), self._output)
            took = time.monotonic() - began
            self._due = began + max(SUMMARY_S, 20 * took)  # of millions of sources it takes a while
        return record.outcomes

    def write(self, line: SourceRecord | RunStart) -> None:
        """Write a line."""
        self._file.write(json.dumps(asdict(line)) + "\n")
        self._file.flush()


@contextmanager
def open_journal(records: dict[str, SourceRecord], archive: Path, output: Path) -> Iterator[Journal]:
    """Open the journal for a run."""
    with open(output / JOURNAL, "a", encoding="utf-8") as file:
        journal = Journal(file, records, output)
        if file.tell():
            file.write("\n")  # ends what a crash cut short; an empty line tells nothing
        journal.write(RunStart(str(archive.resolve()), gethostname(), os.getpid()))
        yield journal


def _with_remark(kept: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Outcomes of which the first says what became of label maps that were not those noted."""
    if not kept or not outcomes:
        return tuple(outcomes)
    remark = f"a label map that was edited by hand or left by an interrupted run is kept as {', '.join(kept)}"
    first, *rest = outcomes
    return (replace(first, text=joined(first.text, remark)), *rest)


def joined(text: str, remark: str) -> str:
    """The text of an outcome with a remark appended."""
    return f"{text.removesuffix('.')}; {remark}" if text else remark


def _kept(before: SourceRecord | None, source: Source, now: SourceRecord) -> SourceRecord:
    """A record whose failures go on naming the earlier results, where nothing tells that the source has changed.

    It may have failed for a full disk, and its results are as good as before.
    """
    earlier = [outcome for outcome in before.outcomes if outcome.output] if before else []
    if before is not None and source.closed:  # what can be seen of it today does not tell whether it has changed
        now = replace(now, stamp=before.stamp)
    if before is None or not earlier or source.twin or now.stamp != before.stamp:
        return now
    outcomes: list[Outcome] = []
    for outcome in now.outcomes:
        if outcome.status == "segmented" or (outcome.status == "refused" and not source.closed):
            outcomes.append(outcome)
            continue
        failed = replace(outcome, status="failed")
        # What failed as a whole failed for each of its series.
        theirs = [one for one in earlier if outcome.name in ("", one.name)]
        kept = ("series", "name", "output", "notices", "confidence", "labels", "series_uid", "study_uid")
        outcomes += [replace(failed, **{name: getattr(one, name) for name in kept}) for one in theirs] or [failed]
    return replace(now, outcomes=tuple(outcomes))


def _is_spared(before: SourceRecord | None, source: Source, now: SourceRecord) -> bool:
    """Whether files at the place of a source are left alone: what is known now does not speak against them."""
    failed = any(outcome.status == "failed" for outcome in now.outcomes)
    # A twin's results belong to the other source.
    return source.closed or source.twin or (failed and (before is None or before.stamp == source.stamp))


def _remove_left(before: SourceRecord | None, source: Source, now: SourceRecord, output: Path) -> list[str]:
    """Remove the files of a source's earlier results that its new ones do not replace; returns those that remain.

    Also those that no record has: a run was ended after they were written.
    """
    kept = {name for outcome in now.outcomes for name in outcome.files()}
    known = {name for outcome in before.outcomes for name in outcome.files()} if before else set()
    left = sorted(filter(_is_below, (known | _found(source, output)) - kept))
    for name in left:
        discard(output / name)
    return [name for name in left if os.path.lexists(output / name)]


def _is_below(name: str) -> bool:
    """Whether a name leads to no other folder: a journal is a file that anyone may have changed."""
    place = PurePath(name)  # as this system reads it: on Windows drives and backslashes count
    return not place.anchor and ".." not in place.parts


def _with_left(record: SourceRecord, left: Sequence[str]) -> SourceRecord:
    """A record that failed where files of an earlier image remain, so that the next run tries again."""
    if not left:
        return record
    cause = f"{', '.join(left)} of an earlier image cannot be removed: open elsewhere, or the folder is write-protected"
    failed = Outcome("failed", code="OUTPUT_WRITE", text=cause, exit_status=UsageError.exit_status)
    return replace(record, outcomes=(*record.outcomes, failed))


def _found(source: Source, output: Path) -> set[str]:
    """What may lie at the place of a source's results."""
    target = PurePosixPath(result_name(source.place))
    if not source.dicom:
        return {f"{target}{ending}" for ending in RESULTS}
    names: list[str] = []
    with suppress(OSError):
        names = [path.name for path in (output / target).iterdir()]
    return {str(target / name) for name in names if _OF_SERIES.fullmatch(name)}


def result_name(place: str) -> str:
    """The path of a source's results, without extensions, from its path in the archive.

    Undecodable characters are escaped, and too long a name and those of the batch's own files changed.
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
    # A number may hold anything, as what leads into another folder.
    plain = number.isascii() and number.isalnum() and len(number) <= MOST_NUMBER
    return f"{number if plain else 'series'}-{_digits(key)}"


def _digits(text: str) -> str:
    """The first eight hexadecimal digits of a text's SHA-256: hardly any other text has them."""
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
        # By the mark at its beginning spreadsheets know the encoding.
        open(temporary, "w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        # Quoted: where a spreadsheet takes another sign for the separator, a name that holds it stays one cell.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        gone = (
            (record, replace(outcome, status="gone"))
            for record, outcome in Batch(known.gone).outcomes()
            if outcome.output
        )
        for record, outcome in chain(known.outcomes(), gone):
            notices = " ".join([*outcome.notices, *(["SERIES_SPLIT"] if outcome.name in split else [])])
            about = (record.place, outcome.series, outcome.status, outcome.code, outcome.text, outcome.output)
            # What is still there may be another's.
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
            # It is away or damaged.
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                measured = (output / name for name in outcome.files() if name.endswith(".json"))
                rows = [row for path in measured for row in table_rows(json.loads(path.read_text(encoding="utf-8")))]
            writer.writerows({**row, "output": _cell(outcome.output)} for row in rows)


def _cell(text: str) -> str:
    """A text escaped so that no spreadsheet takes it for a formula: names come from anywhere."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _written(text: str) -> str:
    """A text as the summary has it."""
    return _cell(text).encode(errors="backslashreplace").decode()
