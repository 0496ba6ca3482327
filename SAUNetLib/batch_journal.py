"""The state of an archive: its sources and what became of them; the journal, and the summary made from it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from socket import gethostname

from .errors import UsageError
from .formats.atomic import same_place, write_beside

JOURNAL, SUMMARY = "batch.jsonl", "batch.csv"
RESULTS = (".nii.gz", ".csv", ".json", ".png")
"""How label map, table, measurements and preview of an image end."""
SUMMARY_S = 300.0
"""How often to write the summary while a run works."""


@dataclass(frozen=True)
class Source:
    """What one task segments: an image file, or the DICOM files that lie in one folder.

    Attributes:
        place: path relative to the archive, with slashes.
        dicom: whether it is a folder.
        stamp: changes with its files.
        twin: whether its results would be called like another's, on a file system that knows no upper and lower case.
    """

    place: str
    dicom: bool
    stamp: str
    twin: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one series or image.

    Attributes:
        status: ``segmented``; ``refused``, no image that can be segmented; or ``failed``, to be tried again, as what
            could not be opened.
        code, text: of the refusal or failure.
        exit_status: of the failure, as `saunet segment` has it.
        output: label map below the output folder; table, measurements and preview are called like it.
        notices: codes of what is to be known of the result.
        host: computer on which it failed.
        own: whether it failed for its own name, while other files could be written.
        name: of a DICOM series, what its results are called; the same in every folder that holds slices of it.
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

    def files(self) -> tuple[str, ...]:
        """Its results below the output folder."""
        return tuple(self.output.removesuffix(RESULTS[0]) + ending for ending in RESULTS) if self.output else ()


@dataclass(frozen=True)
class SourceRecord:
    """A line of the journal: the outcomes of a source's series, and the model (SHA-256) that made them."""

    place: str
    stamp: str
    model: str
    outcomes: tuple[Outcome, ...]

    @classmethod
    def read(cls, line: str) -> SourceRecord:
        """Of a line of JSON.

        Raises:
            ValueError, KeyError, TypeError: a crash spoilt it, or another version wrote it.
        """
        entry = json.loads(line)
        outcomes = tuple(Outcome(**{**outcome, "notices": tuple(outcome["notices"])}) for outcome in entry["outcomes"])
        return cls(str(entry["place"]), str(entry["stamp"]), str(entry["model"]), outcomes)


@dataclass(frozen=True)
class RunStart:
    """A line of the journal: a run began. The first one says of which archive the folder holds the results."""

    archive: str
    host: str
    process: int

    @classmethod
    def read(cls, line: str) -> RunStart:
        """Of a line of JSON; raises as `SourceRecord.read`."""
        entry = json.loads(line)
        return cls(str(entry["archive"]), str(entry["host"]), int(entry["process"]))


@dataclass(frozen=True)
class Batch:
    """What is known of an archive.

    Attributes:
        records: by the places of its sources.
        gone: likewise of sources that have left the archive, and whose results are still there.
        left_out: how many files are no known image, by their endings.
        first, last: runs, where there was one.
    """

    records: Mapping[str, SourceRecord] = field(default_factory=dict)
    gone: Mapping[str, SourceRecord] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    first: RunStart | None = None
    last: RunStart | None = None

    def check_archive(self, archive: Path, output: Path) -> None:
        """Refuse another archive: patients' results would stand for those of others.

        Raises:
            UsageError: USAGE.
        """
        if self.first is not None and not same_place(Path(self.first.archive), archive):
            raise UsageError(
                "USAGE",
                f"{output} holds the results of another archive, {self.first.archive}",
                "Give another folder; if the archive was only moved, write its new path into the first line of "
                f"{output / JOURNAL}",
            )

    def is_done(self, source: Source, model: str, output: Path) -> bool:
        """Whether nothing is left to do for a source: unchanged, by this model, nothing failed, all results there."""
        record = self.records.get(source.place)
        if record is None or (record.stamp, record.model) != (source.stamp, model):
            return False
        return all(
            outcome.status != "failed" and all((output / name).is_file() for name in outcome.files())
            for outcome in record.outcomes
        )

    def outcomes(self) -> Iterator[tuple[SourceRecord, Outcome]]:
        """Every series with its source's record, in the order of their places."""
        for _, record in sorted(self.records.items()):
            for outcome in record.outcomes:
                yield record, outcome

    def counts(self) -> dict[str, int]:
        """How many series were segmented, refused and failed."""
        count = Counter(outcome.status for _, outcome in self.outcomes())
        return {status: count[status] for status in ("segmented", "refused", "failed")}

    def split(self) -> set[str]:
        """Names of the DICOM series that lie in several folders, as parts or copies."""
        names = Counter(outcome.name for _, outcome in self.outcomes() if outcome.name)
        return {name for name, count in names.items() if count > 1}

    def only(self, seen: Collection[str], output: Path) -> Batch:
        """The same for an archive that has these places now; records of others count as gone."""
        here = {place: record for place, record in self.records.items() if place in seen}
        gone = {
            place: record
            for place, record in self.records.items()
            if place not in seen
            and any(outcome.output and (output / outcome.output).is_file() for outcome in record.outcomes)
        }
        return replace(self, records=here, gone=gone)


def read_batch(output: Path) -> Batch:
    """What the journal in an output folder tells; nothing of a line that a crash spoilt or another version wrote."""
    records: dict[str, SourceRecord] = {}
    first = last = None
    # Where it cannot be read, neither can the summary be written, which says why.
    with suppress(OSError), open(output / JOURNAL, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                if line.startswith('{"archive"'):
                    last = RunStart.read(line)
                    first = first or last
                    continue
                record = SourceRecord.read(line)
                records[record.place] = record
    return Batch(records, first=first, last=last)


@contextmanager
def journal(records: dict[str, SourceRecord], archive: Path, output: Path) -> Iterator[Callable[[SourceRecord], None]]:
    """Open the journal for a run; yields a function that writes a record and returns once it is on the disk.

    The record takes its place in `records`, and files of the source's earlier results that it has no longer are
    removed. The summary is written now and then.
    """
    due = time.monotonic() + SUMMARY_S
    with open(output / JOURNAL, "a", encoding="utf-8") as file:

        def write(line: SourceRecord | RunStart) -> None:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()

        def add(record: SourceRecord) -> None:
            nonlocal due
            before = records.get(record.place)
            write(record)
            records[record.place] = record  # before the disk is waited for: a signal then finds both alike
            os.fsync(file.fileno())
            if before is not None:
                _remove_left(before, record, output)
            if (began := time.monotonic()) >= due:
                with suppress(UsageError):  # a spreadsheet may have it open; the last one, at the end, tells it
                    write_summary(Batch(records), output)
                took = time.monotonic() - began
                due = began + max(SUMMARY_S, 20 * took)  # of millions of sources it takes a while

        if file.tell():
            file.write("\n")  # ends what a crash cut short; an empty line tells nothing
        write(RunStart(str(archive.resolve()), gethostname(), os.getpid()))
        yield add


def _remove_left(before: SourceRecord, now: SourceRecord, output: Path) -> None:
    """Remove the files of a source's earlier results that its new ones do not replace."""
    kept = {name for outcome in now.outcomes for name in outcome.files()}
    for name in {name for outcome in before.outcomes for name in outcome.files()} - kept:
        place = PurePosixPath(name)
        if not place.is_absolute() and ".." not in place.parts:  # a journal is a file that anyone may have changed
            with suppress(OSError):
                (output / place).unlink()


def try_summary(known: Batch, output: Path) -> None:
    """Check before the work that the summary can be written; an existing one stays as it is."""
    if not (output / SUMMARY).is_file():
        write_summary(known, output)
        return
    with write_beside(output / SUMMARY, ".csv") as temporary:
        shutil.copyfile(output / SUMMARY, temporary)


def write_summary(known: Batch, output: Path) -> None:
    """Write ``batch.csv``; a series that lies in several folders is noted at each."""
    columns = ("place", "series", "status", "code", "text", "output", "seconds", "notices", "model", "host")
    split = known.split()
    with (
        write_beside(output / SUMMARY, ".csv") as temporary,
        # By the mark at its beginning spreadsheets know the encoding.
        open(temporary, "w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        gone = (
            (record, replace(outcome, status="gone"))
            for record, outcome in Batch(known.gone).outcomes()
            if outcome.output
        )
        for record, outcome in chain(known.outcomes(), gone):
            notices = " ".join([*outcome.notices, *(["SERIES_SPLIT"] if outcome.name in split else [])])
            about = (record.place, outcome.series, outcome.status, outcome.code, outcome.text, outcome.output)
            writer.writerow([*map(_cell, about), outcome.seconds, notices, record.model[:12], outcome.host])


def _cell(text: str) -> str:
    """A text escaped so that no spreadsheet takes it for a formula: names come from anywhere."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
