"""A whole archive: every series below a folder, on this computer or on a Dask cluster; what is done stays done."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import InputError, ModelError, SAUNetError, UsageError, unforeseen
from .formats.atomic import ending_of, write_beside
from .formats.dicom import list_series
from .formats.dicom_files import image_files
from .formats.headers import ENDINGS

if TYPE_CHECKING:
    from distributed import Client

    from .engine import Engine

JOURNAL, SUMMARY, LOCK = "batch.jsonl", "batch.csv", "batch.lock"
WORKER_BYTES = 1.2e9
"""Memory that a worker needs at most, see docs/speed.md."""
QUEUED = 4
"""Studies for every worker that the scheduler knows of in advance: an archive's millions would fill its memory."""
ANSWER_S = 20.0
"""How long a scheduler may take to answer."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.")


@dataclass(frozen=True)
class Study:
    """What one task segments: an image file, or the DICOM files that lie in one folder.

    Attributes:
        place: below the archive, with slashes.
        name: of the results of an image file, without an ending; empty for DICOM.
        stamp: changes with its files.
    """

    place: str
    name: str
    stamp: str


@dataclass(frozen=True)
class Outcome:
    """What became of one series or image.

    Attributes:
        status: ``segmented``; ``refused``, no image that can be segmented; or ``failed``, to be tried again.
        code, text: of the refusal or failure.
        exit_status: of the failure, as `saunet segment` has it.
        output: label map below the output folder; table, measurements and preview are called like it.
        notices: codes of what is to be known of the result.
    """

    status: str
    series: str = ""
    code: str = ""
    text: str = ""
    exit_status: int = 0
    output: str = ""
    seconds: float = 0.0
    notices: tuple[str, ...] = ()


@dataclass
class Batch:
    """What is known of an archive: a study's place -> its stamp, the model, and what became of its series."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_done(self, study: Study, model: str, output: Path) -> bool:
        """Whether nothing is left to do for a study: unchanged, by this model, nothing failed, all results there."""
        record = self.records.get(study.place)
        if record is None or (record["stamp"], record["model"]) != (study.stamp, model):
            return False
        return all(
            one["status"] != "failed" and (not one["output"] or (output / one["output"]).is_file())
            for one in record["outcomes"]
        )

    def outcomes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Place and outcome of every series."""
        for place in sorted(self.records):
            for one in self.records[place]["outcomes"]:
                yield place, one

    def counts(self) -> dict[str, int]:
        """How many series were segmented, refused and failed."""
        found = Counter(one["status"] for _, one in self.outcomes())
        return {status: found[status] for status in ("segmented", "refused", "failed")}


def run_batch(
    archive: Path,
    output: Path,
    model: str | None = None,
    device: str = "auto",
    scheduler: str | None = None,
    workers: int | None = None,
    report: Callable[[int, int], None] = lambda done, known: None,
) -> Batch:
    """Segment all series below a folder; called again, only what is new, changed or failed.

    Every series gets a label map, a table, measurements and a preview under its own path below `output`. Beside them
    lie ``batch.jsonl``, a line for every study when it is done, and ``batch.csv``, a row for every series.

    Args:
        archive: folder; of DICOM series the files of one lie in one folder. Not changed.
        output: folder, which a cluster's computers see under the same path, as they do the archive.
        model: name or file; default: the shipped model.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        scheduler: address of a Dask scheduler such as ``tcp://host:8786``; default: workers on this computer.
        workers: processes on this computer; default: one a core, as far as memory suffices.
        report: told how many studies are done and how many are known of.

    Returns:
        What is known of the archive, from earlier runs too.

    Raises:
        InputError: INPUT_NOT_FOUND.
        UsageError: OUTPUT_WRITE, or USAGE where another run works on the same output or the scheduler does not answer.
        ModelError: the model cannot be used.
    """
    from filelock import FileLock, Timeout

    from .model import load_model
    from .model_card import DEFAULT_MODEL

    if not archive.is_dir():
        raise InputError("INPUT_NOT_FOUND", f"{archive} is not a folder", "Give the folder of the archive")
    chosen = model or DEFAULT_MODEL
    sha256 = load_model(chosen).card.sha256
    with write_beside(output / SUMMARY, ".csv") as temporary:  # whether it can be written, before the work
        _write_summary(known := read_batch(output), temporary)
    try:
        with FileLock(output / LOCK, timeout=0), _client(scheduler, workers, output) as client:
            waiting = (one for one in find_studies(archive, output) if not known.is_done(one, sha256, output))
            task = {"archive": archive.resolve(), "output": output.resolve(), "model": chosen, "sha256": sha256}
            try:
                _work(client, waiting, {**task, "device": device}, output / JOURNAL, report)
            finally:
                known = read_batch(output)  # an interrupt may have come between a line and what is known
                with write_beside(output / SUMMARY, ".csv") as temporary:
                    _write_summary(known, temporary)
    except Timeout as busy:
        raise UsageError("USAGE", f"another run works on {output}", "Wait for it, or give another folder") from busy
    return known


def find_studies(archive: Path, output: Path) -> Iterator[Study]:
    """The image files and folders with DICOM files below a folder; hidden ones and `output` are left out.

    A folder that cannot be read is one too, so that its absence is told.
    """
    closed: list[OSError] = []
    for parent, folders, names in os.walk(archive, onerror=closed.append):
        here = Path(parent)
        folders[:] = sorted(one for one in folders if one[0] != "." and (here / one).resolve() != output.resolve())
        names = sorted(one for one in names if not one.startswith("."))
        images = {one: one[: len(one) - len(ending)] for one in names if (ending := ending_of(Path(one), ENDINGS))}
        stems = Counter(stem.casefold() for stem in images.values())
        for one, stem in images.items():
            # Two images of one name but for their ending keep it.
            name = stem if stems[stem.casefold()] == 1 else one
            yield Study((here / one).relative_to(archive).as_posix(), name, _stamp([here / one]))
        others = [here / one for one in names if one not in images]
        if any(image_files(here, below=False, lost=[])):
            yield Study(here.relative_to(archive).as_posix(), "", _stamp(others))
    for failure in closed:
        yield Study(Path(failure.filename).relative_to(archive).as_posix(), "", "")


def _stamp(paths: Sequence[Path]) -> str:
    """A short text that changes when any of these files does."""
    known = hashlib.sha256()
    for path in paths:
        with suppress(OSError):
            about = path.stat()
            known.update(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return known.hexdigest()[:16]


@contextmanager
def _client(scheduler: str | None, workers: int | None, output: Path) -> Iterator[Client]:
    """A connection to the scheduler, or to workers of our own that end with it."""
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what fails is in the journal
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=ANSWER_S)
        except (OSError, ValueError) as failure:
            raise UsageError(
                "USAGE", f"no scheduler answers at {scheduler}", "Give an address such as tcp://host:8786"
            ) from failure
        with client:
            yield client
        return
    try:
        with (
            dask.config.set({f"distributed.{kind}.http.routes": [] for kind in ("scheduler", "worker")}),
            # One thread each: slices have work enough for one core, and cores do not wait for each other. With keys of
            # its own: who may call a scheduler may run anything, and on its port every user of the computer may.
            LocalCluster(
                n_workers=workers or _own_workers(), threads_per_worker=1, memory_limit=0, security=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
    finally:
        for parent, _, names in os.walk(output):  # of workers that were stopped while they wrote
            for name in filter(_TEMPORARY.match, names):
                Path(parent, name).unlink(missing_ok=True)


def _own_workers() -> int:
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    free = min(MEMORY_LIMIT, psutil.virtual_memory().available)
    return max(1, min(CPU_COUNT, int(free / WORKER_BYTES)))


def _work(
    client: Client,
    waiting: Iterator[Study],
    task: Mapping[str, Any],
    journal: Path,
    report: Callable[[int, int], None],
) -> None:
    """Hand studies to the workers, a few ahead of them, and write down what comes back."""
    from distributed import as_completed

    pending = as_completed()
    studies: dict[Any, Study] = {}
    done = submitted = 0

    def submit() -> bool:
        nonlocal submitted
        study = next(waiting, None)
        if study is None:
            return False
        future = client.submit(segment_study, study, **task, pure=False)
        studies[future.key] = study
        pending.add(future)
        submitted += 1
        return True

    with open(journal, "a", encoding="utf-8") as file:
        file.write("\n")  # ends what a crash cut short; an empty line tells nothing
        while submitted < QUEUED * max(1, len(client.scheduler_info(n_workers=-1)["workers"])) and submit():
            pass
        for future in pending:
            study = studies.pop(future.key)
            failure = future.exception()
            outcomes = future.result() if failure is None else [_crashed(failure)]
            record = {
                "place": study.place,
                "stamp": study.stamp,
                "model": task["sha256"],
                "outcomes": [asdict(one) for one in outcomes],
            }
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done += 1
            submit()
            report(done, submitted)


def _crashed(failure: BaseException) -> Outcome:
    """Of a study whose workers died, or that met an error outside of its images."""
    return Outcome(
        "failed", code="CRASHED", text=" ".join(f"{type(failure).__name__}: {failure}".split()), exit_status=1
    )


def segment_study(study: Study, archive: Path, output: Path, model: str, sha256: str, device: str) -> list[Outcome]:
    """Segment one study on a worker; whatever is wrong with its images is an outcome of theirs."""
    folder = output / PurePosixPath(study.place)
    if study.name:
        return [_segmented(archive / study.place, folder.with_name(study.name), output, (model, sha256, device))]
    try:
        listed = list_series(archive / study.place, below=False)
    except InputError as problem:
        return [_refused(problem)]
    outcomes = []
    for one in listed:
        if one.problem is not None:
            outcomes.append(_refused(one.problem, one.name))
            continue
        name = f"{one.number or 'series'}-{hashlib.sha256(one.uid.encode()).hexdigest()[:8]}"
        found = _segmented(one.frames[0].path, folder / name, output, (model, sha256, device))
        outcomes.append(replace(found, series=one.name))
    return outcomes


def _refused(problem: InputError, series: str = "") -> Outcome:
    return Outcome("refused", series, problem.code, problem.cause, problem.exit_status)


def _segmented(image: Path, target: Path, output: Path, engine: tuple[str, str, str]) -> Outcome:
    """One image from file to files, which are called as `target` and end in their own way."""
    from .pipeline import segment_file

    started = time.perf_counter()
    results = {ending: target.with_name(target.name + ending) for ending in (".nii.gz", ".csv", ".json", ".png")}
    try:
        result = segment_file(
            image, results[".nii.gz"], _engine(*engine), table=results[".csv"], measurements=results[".json"],
            preview=results[".png"],
        )  # fmt: skip
    except InputError as problem:
        return _refused(problem)
    except Exception as error:
        failure = error if isinstance(error, SAUNetError) else unforeseen(error, "Please report it")
        return Outcome("failed", "", failure.code, failure.cause, failure.exit_status)
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
            "MODEL_MISMATCH", f"this computer's {model} is another model", "Install the same version everywhere"
        )
    return Engine(loaded, device)


def read_batch(output: Path) -> Batch:
    """What the journal in an output folder tells; of a line that a crash cut short nothing."""
    known = Batch()
    with suppress(FileNotFoundError), open(output / JOURNAL, encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                known.records[record["place"]] = record
    return known


def _write_summary(known: Batch, path: Path) -> None:
    columns = ("place", "series", "status", "code", "text", "output", "seconds", "notices")
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for place, one in known.outcomes():
            row = {**one, "place": place, "notices": " ".join(one["notices"])}
            writer.writerow([row[name] for name in columns])
