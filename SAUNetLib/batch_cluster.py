"""The workers of a batch: processes on this computer, or those of a Dask cluster."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .batch_journal import RESULTS, Source
from .errors import SAUNetError, UsageError, error_of
from .formats.atomic import is_temporary
from .formats.temporary import remove_leftovers

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

WORKER_BYTES = 1.2e9
"""Most bytes that a worker needs, see docs/speed.md."""
ANSWER_S = 20.0
"""Seconds that a scheduler may take to answer."""
QUEUED = 2
"""Sources submitted for each thread of a worker: the current one and the next.

Millions at once would fill the scheduler's memory, and all sources at a worker that dies count as tried.
"""
TRIES = 3
"""How many times a source is tried again after its worker died, as in Dask itself."""
LOOK_S = 2.0
"""Seconds between checks for workers that have come or gone."""
OTHERS_S = 20.0
"""Seconds to wait for others if no worker so far is usable: a cluster job starts all at about the same time."""
TELL_S = 60.0
"""Seconds without a worker after which to warn that the run is waiting for one."""
NO_WORKER_S = 900.0
"""Seconds to wait for a worker: a cloud computer takes minutes to start.

Cluster jobs that may be queued for hours should start this command themselves.
"""
SILENCE_S = 1800.0
"""Seconds without any result after which to name the sources in progress: one may never finish."""
MOST_NAMED = 10

_LOCAL: dict[str, Any] = {
    # No dashboard pages. The preload is the name of a module: Dask would write source code to a file and run that.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.preload": ["SAUNetLib.process"],
    # A dead worker is replaced, however long that takes on a busy computer; Dask would give up after 15 s.
    "distributed.deploy.lost-worker-timeout": "1 day",
}


@contextmanager
def connected(scheduler: str | None, workers: int | None, output: Path) -> Iterator[Client]:
    """Connect to the scheduler, or to local workers that end with the connection."""
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are in the journal
    if scheduler is not None:
        with _reached(scheduler) as client:
            yield client
        return
    remove_leftovers()  # of runs that were killed
    try:
        with (
            # Dask puts its folder first on Python's module search path. By default its name is one that any user of the
            # computer could take first. Not `temporary_folder`, which another start would remove after a day.
            TemporaryDirectory(prefix=f"saunet-batch-{os.getpid()}-", ignore_cleanup_errors=True) as private,
            dask.config.set(_LOCAL | {"temporary-directory": private}),
            # One thread each: a slice keeps one core busy, and cores do not wait for each other. With TLS keys of its
            # own: whoever can connect to a scheduler can run anything, and any user of the computer can reach its port.
            _closing(LocalCluster(
                n_workers=workers or _own_workers(), threads_per_worker=1, memory_limit=0, security=True,
                dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
            )) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
    finally:
        for parent, _, names in os.walk(output):  # of workers that were stopped while writing
            for name in names:
                if is_temporary(name, RESULTS):
                    with suppress(OSError):
                        Path(parent, name).unlink()


@contextmanager
def _closing(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Close a cluster at the end; its workers are killed in time, but may take longer to end on a busy computer."""
    try:
        yield cluster
    finally:
        with suppress(TimeoutError):
            cluster.close()


def _own_workers() -> int:
    import psutil
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    free = min(MEMORY_LIMIT, psutil.virtual_memory().available)
    return max(1, min(CPU_COUNT, int(free / WORKER_BYTES)))


def _reached(scheduler: str) -> Client:
    """Connect to the scheduler at an address."""
    from distributed import Client

    try:
        return Client(scheduler, timeout=ANSWER_S)
    except TypeError as failure:  # what Dask raises if keys are missing
        raise UsageError(
            "USAGE",
            f"the scheduler at {scheduler} requires TLS, but no certificates are configured ({failure})",
            "Set distributed.comm.tls in Dask's configuration, see docs/batch.md",
        ) from failure
    except (OSError, ValueError) as failure:
        raise _unreached(scheduler, failure) from failure


def _unreached(scheduler: str, failure: OSError | ValueError) -> UsageError:
    """The error that explains why a scheduler cannot be reached, from the root cause of Dask's exception."""
    import dask

    roots: list[BaseException] = [failure]
    while isinstance(root := roots[-1].__cause__ or roots[-1].__context__, Exception):
        roots.append(root)
    text = next((getattr(root, "strerror", None) or str(root) for root in reversed(roots) if str(root)), "")
    remedy = "Correct distributed.comm.tls in Dask's configuration, see docs/batch.md"
    if isinstance(failure, FileNotFoundError | PermissionError):  # Python does not say which file
        tls = (
            dask.config.get(f"distributed.comm.tls.{name}", None) for name in ("ca-file", "client.cert", "client.key")
        )
        closed = [str(path) for path in tls if path and not os.access(path, os.R_OK)]
        return UsageError("USAGE", f"a TLS file cannot be read: {', '.join(closed)} ({text})", remedy)
    if any(isinstance(root, ssl.SSLCertVerificationError) for root in roots):
        cause = (
            f"the certificate of the scheduler at {scheduler} was not issued by an authority configured here ({text})"
        )
        return UsageError("USAGE", cause, remedy)
    if any(isinstance(root, ssl.SSLError) for root in roots):
        return UsageError(
            "USAGE", f"the scheduler at {scheduler} and this command could not agree on TLS ({text})", remedy
        )
    cause = f"no scheduler answers at {scheduler}" + (f" ({text})" if text else "")
    return UsageError(
        "USAGE", cause, "Give an address such as tcp://host:8786, or tls://host:8786 if the scheduler uses TLS"
    )


@contextmanager
def scheduler_kept(scheduler: str | None) -> Iterator[None]:
    """Convert whatever Dask raises inside the block once the scheduler is gone into one error."""
    from distributed.client import ClosedClientError, FutureCancelledError

    try:
        yield
    except (FutureCancelledError, ClosedClientError, OSError) as lost:
        if isinstance(lost, OSError) and lost.errno is not None:  # from a file system
            raise
        if scheduler is None:
            cause = "the connection to the workers on this computer was lost"
            raise UsageError("USAGE", cause, "Run the same command again") from lost
        raise UsageError(
            "USAGE",
            "the connection to the scheduler was lost",
            "Make sure that the scheduler is running, then run the same command again",
        ) from lost


class WorkersDied(Exception):
    """Every worker that processed a source died; `host` was the last one."""

    def __init__(self, host: str = "") -> None:
        super().__init__("every worker that processed it died" + (f", the last one on {host}" if host else ""))
        self.host = host


class WorkerPool:
    """The workers that segment sources, and the sources submitted to them.

    Each worker of a cluster is tested once first, and gets no sources if it fails: a worker that fails at once is
    always free for the next source, so a single computer without the archive would make nearly all sources fail.
    Nothing is changed on the cluster: sources are only submitted to usable workers.
    """

    def __init__(
        self,
        client: Client,
        work: Callable[[Source], Any],
        trial: Callable[[], tuple[str, Mapping[str, Any] | None]] | None,
        warn: Callable[[str], None],
    ) -> None:
        """Start without any workers.

        Args:
            client: the connection to the workers.
            work: called with a source on a worker.
            trial: called once on a worker; returns its host and its failure as `SAUNetError.as_dict`. None for workers
                that need no trial.
            warn: called with a text about each unusable worker, and if there are no workers.
        """
        self._client, self._work, self._trial, self._warn = client, work, trial, warn
        self._threads: dict[str, int] = {}  # of the usable workers, by address
        self._trials: dict[str, Future] = {}
        self._failures: dict[str, SAUNetError | None] = {}  # of the workers that have been tried
        self._call: Future | None = None
        self._submitted: dict[Any, tuple[Source, Future, frozenset[str]]] = {}
        self._done: SimpleQueue[Future] = SimpleQueue()
        self._overdue: set[Any] = set()  # of the submitted: finished, but without their results so far
        self._tries: Counter[str] = Counter()
        self._lost: list[Source] = []
        self._latest: Future | None = None
        # When a worker was last usable or tested; whether their absence was reported; whether any has been usable.
        self._since, self._absence_told, self._began, self._next_look = time.monotonic(), False, False, 0.0
        self._last_result, self._silence_told = time.monotonic(), False

    def __len__(self) -> int:
        """Number of submitted sources without a result so far."""
        return len(self._submitted) + len(self._lost)

    def has_room(self) -> bool:
        """Whether another source can be submitted now."""
        return len(self) < QUEUED * sum(self._threads.values())

    def submit(self, source: Source, but: Collection[str] = ()) -> None:
        """Submit a source to the usable workers, if possible not to those at the given addresses."""
        workers = list(self._threads.keys() - but or self._threads) if self._trial else None
        future = self._client.submit(self._work, source, workers=workers, pure=False)
        self._submitted[future.key] = source, future, frozenset(workers or ())
        future.add_done_callback(self._done.put)

    def next_result(self) -> tuple[Source, Any] | None:
        """A source with its result or exception; None if there was none for a while."""
        from distributed import KilledWorker

        if self._lost:
            self._latest = None
            return self._lost.pop(), WorkersDied()
        try:
            future = self._done.get(timeout=LOOK_S)
        except Empty:
            return None
        if future.key not in self._submitted:  # a trial, or a source that was cancelled and resubmitted
            self._next_look = 0.0
            return None
        try:
            result: Any = _fetched(future)
        except TimeoutError:
            # Its worker may have died before handing over the result: then Dask or `refresh` has it processed again.
            self._overdue.add(future.key)
            return None
        source, self._latest, _ = self._submitted.pop(future.key)
        self._last_result, self._silence_told = time.monotonic(), False
        if isinstance(result, KilledWorker):
            result = WorkersDied(_host(result.last_worker.address))
        return source, result

    def recheck_last_worker(self) -> frozenset[str]:
        """Test the worker of the last result again before it gets another source: its disk may be gone.

        Returns:
            Its address, or several if the result has been copied; empty for workers that need no trial.
        """
        if self._trial is None or self._latest is None:
            return frozenset()
        workers = frozenset(chain.from_iterable(self._client.who_has([self._latest]).values()))
        for address in workers:
            self._trials.pop(address, None)
            self._failures.pop(address, None)
            self._threads.pop(address, None)
        self._began, self._next_look = False, 0.0
        return workers

    def refresh(self) -> None:
        """Update the list of workers, and resubmit the sources of those that left.

        Raises:
            SAUNetError: no worker is usable, or none has come for a long time.
        """
        if time.monotonic() < self._next_look:
            return
        threads = self._client.nthreads()
        if self._trial is None:
            self._threads = threads
        else:
            self._try_new_workers(self._trial, threads)
            good = [address for address, failure in self._failures.items() if failure is None]
            self._threads = {address: threads[address] for address in good}
            self._resubmit({address for address in threads if self._failures.get(address) is None})
        self._overdue &= self._submitted.keys()
        for key in list(self._overdue):
            if self._submitted[key][1].done():  # Dask reports a future only once
                self._overdue.discard(key)
                self._done.put(self._submitted[key][1])
        self._wait()
        self._tell_silence()
        self._next_look = time.monotonic() + LOOK_S

    def _try_new_workers(self, trial: Callable[[], Any], threads: dict[str, int]) -> None:
        """Start the trials of new workers, and collect the trials that have finished."""
        if threads:
            self._call = None
        elif self._call is None:  # an adaptive cluster starts workers only if there is work
            self._call = self._client.submit(trial, pure=False)
        for address in self._trials.keys() - threads.keys():
            del self._trials[address]
            self._failures.pop(address, None)
        for address in threads.keys() - self._trials.keys():
            self._trials[address] = self._client.submit(trial, workers=[address], pure=False, priority=1)
            self._trials[address].add_done_callback(self._done.put)
        for address, future in self._trials.items():
            if future.done() and address not in self._failures:
                try:
                    failure = _failure(address, future)
                except TimeoutError:  # the worker may have died since: then it leaves the list
                    continue
                self._failures[address] = failure
                self._since = time.monotonic()
                if failure is not None:
                    self._warn(f"{failure} This worker is not used.")

    def _resubmit(self, able: set[str]) -> None:
        """Resubmit the sources whose workers have all left or are unusable."""
        if not self._threads:
            return
        for key, (source, future, workers) in list(self._submitted.items()):
            if future.done() or workers & able:
                continue
            del self._submitted[key]
            future.cancel()
            self._tries[source.place] += 1
            if self._tries[source.place] <= TRIES:
                self.submit(source)
            else:
                del self._tries[source.place]
                self._lost.append(source)

    def _wait(self) -> None:
        """Warn if there is no usable worker, and give up in the end."""
        if self._threads:
            self._since, self._absence_told, self._began = time.monotonic(), False, True
            return
        waited = time.monotonic() - self._since
        failures = [failure for failure in self._failures.values() if failure is not None]
        if failures and len(failures) == len(self._trials) and waited >= OTHERS_S and not self._began:
            raise failures[0]
        if waited >= NO_WORKER_S and failures:
            raise failures[0]
        if waited >= NO_WORKER_S:
            cause = f"no worker was available for {NO_WORKER_S / 60:.0f} minutes"
            raise UsageError("USAGE", cause, "Start workers and run the same command again")
        if waited >= TELL_S and not self._absence_told:
            self._warn(f"No worker is ready. Waiting up to {NO_WORKER_S / 60:.0f} minutes for one.")
            self._absence_told = True

    def _tell_silence(self) -> None:
        """If there was no result for a long time, name the sources in progress, once."""
        if not self._threads or not self._submitted:
            self._last_result = time.monotonic()
        if time.monotonic() - self._last_result < SILENCE_S or self._silence_told:
            return
        self._silence_told = True
        hosts = {key: _host(address) for address, keys in self._client.processing().items() for key in keys}
        out = [
            f"{source.place} ({hosts[key]})" if key in hosts else source.place
            for key, (source, _, _) in self._submitted.items()
        ]
        more = f" and {len(out) - MOST_NAMED} more" if len(out) > MOST_NAMED else ""
        self._warn(
            f"No results for {SILENCE_S / 60:.0f} minutes. Still in progress: {', '.join(out[:MOST_NAMED])}{more}."
        )


def _fetched(future: Future) -> Any:
    """The result of a finished future, or the exception that it raised.

    Raises:
        TimeoutError: it does not arrive; Dask does not report that a worker died before handing it over.
        FutureCancelledError: it was lost with the scheduler.
    """
    error = future.exception(timeout=ANSWER_S)
    if error is not None:
        return error
    try:
        return future.result(timeout=ANSWER_S)
    except Exception as failure:
        if future.status == "error":  # it was run again meanwhile
            return failure
        raise


def _failure(address: str, trial: Future) -> SAUNetError | None:
    """Why the trial of a worker failed; None if the worker is usable; raises as `_fetched`."""
    result = _fetched(trial)
    if isinstance(result, BaseException):  # it could not even start
        host, text = _host(address), " ".join(f"{type(result).__name__}: {result}".split())
        return UsageError(
            "NOT_INSTALLED",
            f"{host}: the worker cannot run SAUNet ({text})",
            "Install the same version of SAUNet with the extra cluster on all computers, including that of the "
            "scheduler",
        )
    host, failure = result
    return None if failure is None else error_of({**failure, "cause": f"{host}: {failure['cause']}"})


def _host(address: str) -> str:
    return urlsplit(address).hostname or address
