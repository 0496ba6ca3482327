"""What is known of an archive: its studies and what became of them; the journal, and the summary made from it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .formats.atomic import write_beside

JOURNAL, SUMMARY = "batch.jsonl", "batch.csv"


@dataclass(frozen=True)
class Study:
    """What one task segments: an image file, or the DICOM files that lie in one folder.

    Attributes:
        place: below the archive, with slashes.
        dicom: whether it is a folder.
        stamp: changes with its files.
    """

    place: str
    dicom: bool
    stamp: str


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


@dataclass(frozen=True)
class Record:
    """A line of the journal: what became of a study's series, by which model (SHA-256)."""

    place: str
    stamp: str
    model: str
    outcomes: tuple[Outcome, ...]

    @classmethod
    def read(cls, line: str) -> Record:
        """Of a line of JSON.

        Raises:
            ValueError, KeyError, TypeError: a crash spoilt it, or another version wrote it.
        """
        told = json.loads(line)
        outcomes = tuple(Outcome(**{**one, "notices": tuple(one["notices"])}) for one in told["outcomes"])
        return cls(str(told["place"]), str(told["stamp"]), str(told["model"]), outcomes)


@dataclass(frozen=True)
class Batch:
    """What is known of an archive, by the places of its studies."""

    records: Mapping[str, Record] = field(default_factory=dict)

    def is_done(self, study: Study, model: str, output: Path) -> bool:
        """Whether nothing is left to do for a study: unchanged, by this model, nothing failed, all results there."""
        record = self.records.get(study.place)
        if record is None or (record.stamp, record.model) != (study.stamp, model):
            return False
        return all(
            one.status != "failed" and (not one.output or (output / one.output).is_file()) for one in record.outcomes
        )

    def outcomes(self) -> Iterator[tuple[Record, Outcome]]:
        """Every series with its study's record, in the order of their places."""
        for _, record in sorted(self.records.items()):
            for one in record.outcomes:
                yield record, one

    def counts(self) -> dict[str, int]:
        """How many series were segmented, refused and failed."""
        found = Counter(one.status for _, one in self.outcomes())
        return {status: found[status] for status in ("segmented", "refused", "failed")}


def read_batch(output: Path) -> Batch:
    """What the journal in an output folder tells; nothing of a line that a crash spoilt or another version wrote."""
    records: dict[str, Record] = {}
    # Where it cannot be read, neither can the summary be written, which says why.
    with suppress(OSError), open(output / JOURNAL, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                record = Record.read(line)
                records[record.place] = record
    return Batch(records)


def write_summary(known: Batch, output: Path) -> None:
    """Write ``batch.csv``; a series of which several folders hold slices is noted at each."""
    columns = ("place", "series", "status", "code", "text", "output", "seconds", "notices", "model", "host")
    names = Counter(PurePosixPath(one.output).name for _, one in known.outcomes() if one.series and one.output)
    with (
        write_beside(output / SUMMARY, ".csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        for record, one in known.outcomes():
            split = ["SERIES_SPLIT"] if one.series and names[PurePosixPath(one.output).name] > 1 else []
            notices = " ".join([*one.notices, *split])
            about = (record.place, one.series, one.status, one.code, one.text, one.output, one.seconds)
            writer.writerow([*about, notices, record.model[:12], one.host])
