"""A whole archive: every series below a folder, on this computer or on a Dask cluster; what is done stays done."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import shutil
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
from .formats.dicom_files import may_be_image
from .formats.dicom_series import Series
from .formats.headers import ENDINGS, voxel_file

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
MOST_NAME = 200
"""Bytes of a result's name without its ending; file systems allow 255 with it."""
GIVE_UP = 20
"""So many studies in a row that fail for one reason which is none of theirs end the run."""
_OF_THE_RUN = ("DEVICE", "MODEL_", "OUTPUT_WRITE", "NOT_INSTALLED", "CRASHED")
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}((\.nii)?\.gz|\.csv|\.json|\.png)$")


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
    """

    status: str
    series: str = ""
    code: str = ""
    text: str = ""
    exit_status: int = 0
    output: str = ""
    seconds: float = 0.0
    notices: tuple[str, ...] = ()


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
    lie ``batch.jsonl``, a line for every study when it is done, and ``batch.csv``, a row for every series there is.

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
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY.
        UsageError: OUTPUT_WRITE; DEVICE; or USAGE where another run works on the same output, the scheduler does not
            answer, or one reason that is none of the images' ends study after study.
        ModelError: the model cannot be used.
    """
    from filelock import FileLock, Timeout

    from .engine import choose_device
    from .model import load_model
    from .model_card import DEFAULT_MODEL

    if not archive.is_dir():
        raise InputError("INPUT_NOT_FOUND", f"{archive} is not a folder", "Give the folder of the archive")
    if archive.resolve().is_relative_to(output.resolve()):
        raise UsageError("USAGE", f"{archive} lies in the output folder", "Give a folder beside the archive or in it")
    if scheduler is None:
        choose_device(device)
    chosen = model or DEFAULT_MODEL
    if Path(chosen).suffix == ".safetensors":  # else it is a name, also where a file here is called so
        chosen = os.path.abspath(chosen)  # noqa: PTH100 - no failure for any path
    sha256 = load_model(chosen).card.sha256
    task = {"archive": archive.resolve(), "output": output.resolve(), "model": chosen, "sha256": sha256}
    seen: set[str] = set()
    known = Batch()

    def waiting() -> Iterator[Study]:
        for study in find_studies(archive, output):
            seen.add(study.place)
            if not known.is_done(study, sha256, output):
                yield study

    try:
        with FileLock(output / LOCK, timeout=0):
            result = known = read_batch(output)
            _try_summary(known, output)
            with _client(scheduler, workers, output) as client:
                walked = False
                try:
                    _work(client, waiting(), {**task, "device": device}, output / JOURNAL, report)
                    walked = True
                finally:
                    if seen:  # else the summary stays what it was
                        result = read_batch(output)
                        if walked:  # what has left the archive since is in the journal alone
                            result = Batch({place: one for place, one in result.records.items() if place in seen})
                        _write_summary(result, output)
    except Timeout as busy:
        raise UsageError("USAGE", f"another run works on {output}", "Wait for it, or give another folder") from busy
    except OSError as failure:
        if failure.errno is None:  # Dask's own
            raise UsageError("USAGE", "the scheduler is gone", "Start it and give the same command") from failure
        cause = f"{failure.filename or output} cannot be written ({failure.strerror})"
        raise UsageError(
            "OUTPUT_WRITE", cause, "Check the rights of the folder and that the disk has room"
        ) from failure
    if not seen:
        raise InputError("INPUT_EMPTY", f"{archive} holds no images", "Check that it is the archive, and mounted")
    return result


def find_studies(archive: Path, output: Path) -> Iterator[Study]:
    """The image files and folders with DICOM files below a folder; hidden ones and `output` are left out.

    A folder that cannot be read is one too, so that its absence is told.
    """
    closed: list[OSError] = []
    for parent, folders, names in os.walk(archive, onerror=closed.append):
        here = Path(parent)
        folders[:] = sorted(one for one in folders if one[0] != "." and (here / one).resolve() != output.resolve())
        names = sorted(one for one in names if not one.startswith("."))
        others = []
        for one in names:
            if ending := ending_of(Path(one), ENDINGS):
                files = {here / one, voxel_file(here / one, ending)}
                yield Study((here / one).relative_to(archive).as_posix(), False, _stamp(sorted(files)))
            else:
                others.append(here / one)
        if any(map(may_be_image, others)):
            yield Study(here.relative_to(archive).as_posix(), True, _stamp(others))
    for failure in closed:
        yield Study(Path(failure.filename).relative_to(archive).as_posix(), True, "")


def _stamp(paths: Sequence[Path]) -> str:
    """A short text that changes when any of these files does."""
    known = hashlib.sha256()
    for path in paths:
        with suppress(OSError):
            about = path.stat()
            known.update(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="backslashreplace"))
    return known.hexdigest()[:16]


_LOCAL: dict[str, Any] = {
    # No pages of what is done, and Ctrl-C, which reaches all processes of a terminal, is the command's alone.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.preload": ["import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"],
}


@contextmanager
def _client(scheduler: str | None, workers: int | None, output: Path) -> Iterator[Client]:
    """A connection to the scheduler, or to workers of our own that end with it."""
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is in the journal
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=ANSWER_S)
        except (OSError, ValueError) as failure:
            raise UsageError(
                "USAGE", f"no scheduler answers at {scheduler}", "Give an address such as tcp://host:8786"
            ) from failure
        with client:
            try:
                client.wait_for_workers(1, timeout=ANSWER_S)
            except TimeoutError as failure:
                raise UsageError("USAGE", f"the scheduler at {scheduler} has no worker", "Start some") from failure
            yield client
        return
    try:
        with (
            dask.config.set(_LOCAL),
            # One thread each: slices have work enough for one core, and cores do not wait for each other. With keys of
            # its own: who may call a scheduler may run anything, and on its port every user of the computer may.
            LocalCluster(
                n_workers=workers or _own_workers(), threads_per_worker=1, memory_limit=0, security=True,
                dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
    finally:
        for parent, _, names in os.walk(output):  # of workers that were stopped while they wrote
            for name in filter(_TEMPORARY.match, names):
                with suppress(OSError):
                    Path(parent, name).unlink()


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
    from distributed.client import FutureCancelledError

    pending = as_completed()
    studies: dict[Any, Study] = {}
    done, in_a_row, reason = 0, 0, ""

    def fill() -> None:
        wanted = QUEUED * max(1, sum(client.nthreads().values()))  # workers may join later
        while len(studies) < wanted and (study := next(waiting, None)) is not None:
            future = client.submit(segment_study, study, **task, pure=False)
            studies[future.key] = study
            pending.add(future)

    with open(journal, "a", encoding="utf-8") as file:
        file.write("\n")  # ends what a crash cut short; an empty line tells nothing
        fill()
        for future in pending:
            study = studies.pop(future.key)
            try:
                failure = future.exception()
            except FutureCancelledError as lost:
                raise UsageError("USAGE", "the scheduler is gone", "Start it and give the same command") from lost
            outcomes = [_crashed(failure)] if failure else [_seen(one, task["output"]) for one in future.result()]
            record = Record(study.place, study.stamp, task["sha256"], tuple(outcomes))
            file.write(json.dumps(asdict(record)) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done += 1
            why = next((one.code for one in outcomes if one.code.startswith(_OF_THE_RUN)), "")
            in_a_row, reason = (in_a_row + 1 if why == reason else 1, why) if why else (0, "")
            if in_a_row >= GIVE_UP:
                cause = f"{GIVE_UP} studies in a row failed with {reason} ({outcomes[-1].text})"
                raise UsageError("USAGE", cause, "Mend it and give the same command")
            fill()
            report(done, done + len(studies))


def _seen(one: Outcome, output: Path) -> Outcome:
    """An outcome whose result is to be seen from here; network file systems may take a moment."""
    for _ in range(20):
        if not one.output or (output / one.output).is_file():
            return one
        time.sleep(0.5)
    text = "the worker's result is not here: it may see another folder under this path"
    return Outcome("failed", one.series, "OUTPUT_WRITE", text, UsageError.exit_status)


def _crashed(failure: BaseException) -> Outcome:
    """Of a study whose workers died, or that met an error outside of its images."""
    from distributed import KilledWorker

    text = " ".join(f"{type(failure).__name__}: {failure}".split())
    text = "every worker that had it died" if isinstance(failure, KilledWorker) else text
    return Outcome("failed", code="CRASHED", text=text, exit_status=1)


def segment_study(study: Study, archive: Path, output: Path, model: str, sha256: str, device: str) -> list[Outcome]:
    """Segment one study on a worker; whatever is wrong with its images is an outcome of theirs."""
    image, engine = archive / study.place, (model, sha256, device)
    target = output / PurePosixPath(_writable(study.place))
    if not study.dicom:
        return [_segmented(image, target, output, engine)]
    try:
        listed = list_series(image, below=False)
    except InputError as problem:
        return [_refused(problem, [image])]
    outcomes = []
    for one in listed:
        if one.problem is not None:
            outcomes.append(_refused(one.problem, one.damaged, one.name))
            continue
        # A number may hold anything, as what leads into another folder.
        number = one.number if one.number.isascii() and one.number.isalnum() else "series"
        name = f"{number}-{_digits(one.uid)}"
        outcomes.append(replace(_segmented(one, target / name, output, engine), series=one.name))
    return outcomes


def _writable(place: str) -> str:
    """A place below the archive as one for results: without letters that no file here can have, nor too long a name."""
    plain = place.encode(errors="backslashreplace").decode()
    plain = plain if plain == place else plain.replace("\\", "%")
    folder, _, name = plain.rpartition("/")
    if len(name.encode()) > MOST_NAME:
        name = f"{name.encode()[:MOST_NAME].decode(errors='ignore')}-{_digits(name)}"
    return f"{folder}/{name}" if folder else name


def _digits(text: str) -> str:
    """Eight digits that hardly any other text has."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _refused(problem: InputError, files: Sequence[Path], series: str = "") -> Outcome:
    """Of what can be opened and cannot be segmented; what cannot be opened, or for want of memory, is tried again."""
    closed = isinstance(problem.__cause__, MemoryError) or not all(map(_opens, files))
    return Outcome("failed" if closed else "refused", series, problem.code, problem.cause, problem.exit_status)


def _opens(path: Path) -> bool:
    try:
        if path.is_dir():
            return all(_opens(one) for one in path.iterdir() if not one.is_dir())
        if path.is_file():  # anything else might never begin
            open(path, "rb").close()
        return path.exists() or path.is_symlink()
    except OSError:
        return False


def _segmented(image: Path | Series, target: Path, output: Path, engine: tuple[str, str, str]) -> Outcome:
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
        return _refused(problem, [one.path for one in image.frames] if isinstance(image, Series) else [image])
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
    """What the journal in an output folder tells; nothing of a line that a crash spoilt or another version wrote."""
    records: dict[str, Record] = {}
    # Where it cannot be read, neither can the summary be written, which says why.
    with suppress(OSError), open(output / JOURNAL, encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                record = Record.read(line)
                records[record.place] = record
    return Batch(records)


def _try_summary(known: Batch, output: Path) -> None:
    """See before the work that the summary can be written; one that is there stays what it is."""
    if not (output / SUMMARY).is_file():
        _write_summary(known, output)
        return
    with write_beside(output / SUMMARY, ".csv") as temporary:
        shutil.copyfile(output / SUMMARY, temporary)


def _write_summary(known: Batch, output: Path) -> None:
    """Write ``batch.csv``; a series of which several folders hold slices is noted at each."""
    columns = ("place", "series", "status", "code", "text", "output", "seconds", "notices", "model")
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
            writer.writerow([*about, notices, record.model[:12]])
