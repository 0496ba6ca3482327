"""The pipeline as a child process: requests as JSON lines on stdin, events as JSON lines on stdout, logging on stderr.

docs/worker.md describes the protocol. Exactly one ``result`` or ``error`` ends a request. Closing stdin cancels the
current request and ends the process, as do the signals that cancel a command (`command.cancelling`).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import __version__
from .command import cancelling, interrupt_once, require_current_folder
from .errors import CancelledError, SAUNetError, UsageError, unforeseen
from .process import complete_streams, prepare_process, signals_to
from .work_thread import WorkThread

if TYPE_CHECKING:
    from .engine import Engine

LONGEST_LINE = 2**20
Entries = dict[str, Any] | None
"""Content of a line: the entries of its JSON object; empty for other JSON; None if it is not JSON."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A request to segment or to warm up; absent fields take the command line's defaults."""

    command: str
    id: str | int | None = None
    image: str | None = None
    output: str | None = None
    table: str | None = None
    preview: str | None = None
    series: str | None = None
    model: str | None = None
    device: str = "auto"
    levels: bool = True
    lowest: str | None = None

    @classmethod
    def of(cls, entries: Entries) -> Request:
        """Create the request from the entries of a line, see `read_entries`.

        Raises:
            UsageError: USAGE, it is not a valid request.
        """
        remedy = "Send one JSON object per line, as docs/worker.md describes it"
        if entries is None:
            raise UsageError("USAGE", "the request is not JSON", remedy)
        if entries.get("command") not in ("segment", "warm", "cancel"):
            raise UsageError("USAGE", "the request does not name a known command", remedy)
        known = {field.name for field in fields(cls)}
        for key, value in entries.items():
            wanted: Any = {"levels": bool, "id": (str, int)}.get(key, str)
            if key not in known or not (value is None or isinstance(value, wanted)) or not _is_text(value):
                raise UsageError("USAGE", f"the request's entry {str(key)[:40]!r} is not understood", remedy)
            if value == "" and key not in ("id", "image", "output"):  # an empty path is reported below
                raise UsageError("USAGE", f"the request's entry {key!r} is empty", "Leave it out, or fill it in")
        request = cls(**{key: value for key, value in entries.items() if value is not None})
        if request.command == "segment" and not (request.image and request.output):
            raise UsageError("USAGE", "the request to segment lacks an image or an output", remedy)
        return request


class Worker:
    """Serves requests one after the other and keeps the last engine.

    Args:
        requests: text stream of requests.
        events: text stream for events.
    """

    def __init__(self, requests: IO[str], events: IO[str]) -> None:
        self._requests, self._events = requests, events
        self._waiting: queue.Queue[tuple[int, Entries] | None] = queue.Queue()
        self._received = 0
        self._cancelled_to: float = 0  # requests up to this number are cancelled
        self._engine: tuple[tuple[Path, int, str], Engine] | None = None
        self._thread = WorkThread()

    def serve(self) -> None:
        """Serve until the stream of requests ends."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        self._send(event="ready", version=__version__)
        while (waiting := self._next()) is not None:
            self._serve_one(*waiting)

    def _next(self) -> tuple[int, Entries] | None:
        """The number of the next request and its entries; None if no more will come."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._waiting.get(timeout=0.5 if sys.platform == "win32" else None)  # or it ignores Ctrl-C

    def _listen(self) -> None:
        """Read requests: a cancellation takes effect at once, while another request runs; all others are queued."""
        try:
            while line := self._requests.readline(LONGEST_LINE):
                skipped = line
                while len(skipped) == LONGEST_LINE and not skipped.endswith("\n"):
                    skipped = self._requests.readline(LONGEST_LINE)  # the rest of a long line: one request, one answer
                entries = read_entries(line)
                if _is_cancel(entries):
                    self._cancelled_to = self._received
                elif line.strip():
                    self._received += 1
                    self._waiting.put((self._received, entries))
        finally:
            self._cancel_all()
            self._waiting.put(None)

    def _cancel_all(self) -> None:
        self._cancelled_to = float("inf")

    def _serve_one(self, number: int, entries: Entries) -> None:
        identity = _identity(entries)
        try:
            request = Request.of(entries)
            send = partial(self._send, **identity)
            result = self._thread.run(partial(self._answer, number, request, send), self._cancel_all)
        except KeyboardInterrupt:
            self._send(**identity, event="error", **CancelledError().as_dict())
            raise
        except SAUNetError as error:
            self._send(**identity, event="error", **error.as_dict())
        except BrokenPipeError:  # nobody reads the events; `main` logs it
            raise
        except Exception as error:
            failure = unforeseen(error, "Please report it with the log")
            if failure.code == "INTERNAL":
                log.exception("unexpected failure")
            self._send(**identity, event="error", **failure.as_dict())
        else:  # not inside `try`: an interrupt right after it would send an error, too
            self._send(**identity, event="result", **result)
        finally:
            if self._engine is not None:
                self._engine[1].free_memory()

    def _answer(self, number: int, request: Request, send: Callable[..., None]) -> dict[str, Any]:
        def report(stage: str, fraction: float) -> None:
            if number <= self._cancelled_to:
                raise CancelledError
            send(event="progress", stage=stage, fraction=round(fraction, 4))

        report("load", 0.0)
        require_current_folder()
        engine = self._engine_for(request)
        about = {"model": engine.model.card.name, "device": engine.device.type}
        if request.command == "warm":
            return {"command": "warm", **about}
        from .pipeline import segment_file

        assert request.image is not None and request.output is not None
        segmentation = segment_file(
            request.image,
            request.output,
            engine,
            series=request.series,
            levels=request.levels,
            lowest=request.lowest,
            table=request.table,
            preview=request.preview,
            report=report,
        )
        for notice in segmentation.warnings:
            send(event="warning", **notice.as_dict())
        return {"command": "segment", "output": request.output, **about, **segmentation.summary()}

    def _engine_for(self, request: Request) -> Engine:
        """The engine of the last request if model and device are the same, otherwise a new one."""
        from .model_card import find_model

        weights = find_model(request.model)  # a newer version may have been added since
        key = (weights, weights.stat().st_mtime_ns, request.device)
        if self._engine is None or self._engine[0] != key:
            from .engine import Engine
            from .model import load_model

            self._engine = None  # never two at once in memory
            self._engine = (key, Engine(load_model(weights), request.device))
        return self._engine[1]

    def _send(self, **event: Any) -> None:
        try:
            self._events.write(json.dumps(event) + "\n")  # ASCII: a path may not be valid UTF-8
            self._events.flush()
        except OSError as failure:
            if failure.errno == errno.EINVAL:  # Windows' error for a pipe that nobody reads
                raise BrokenPipeError from failure
            raise


def _is_text(value: object) -> bool:
    """Whether a value, if a string, can be passed to the system as a path: encodable and without NUL."""
    if not isinstance(value, str):
        return True
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def read_entries(line: str) -> Entries:
    """Parse a line."""
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entries if isinstance(entries, dict) else {}


def _identity(entries: Entries) -> dict[str, Any]:
    """The id of a request, even an invalid one, so that its answer reaches the process waiting for it."""
    identity = (entries or {}).get("id")
    return {"id": identity} if isinstance(identity, str | int) and _is_text(identity) else {}


def _is_cancel(entries: Entries) -> bool:
    """Whether a request asks to cancel, whatever else it contains: cancelling takes effect at once."""
    return (entries or {}).get("command") == "cancel"


def main() -> int:
    """Serve requests on stdin and write events to stdout."""
    complete_streams()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    prepare_process()
    # Only events go to the real stdout; what libraries print goes to the log.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", errors="replace")
    leave_stdin_alone()
    try:
        with signals_to(interrupt_once, *cancelling()):
            Worker(requests, events).serve()
    except BrokenPipeError:
        log.info("no program reads the events any more")
    except KeyboardInterrupt:
        return CancelledError.exit_status
    return 0


def leave_stdin_alone() -> None:
    """Keep libraries from touching the pipe from which a thread reads the requests.

    On Windows NumPy's libraries access stdin when they are loaded, and would block until the next request
    (numpy/numpy#24290). So stdin becomes the null device, and on Windows NumPy is imported before the first read.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    if sys.platform == "win32":
        importlib.import_module("numpy")


if __name__ == "__main__":
    # A thread waits in readline() for as long as the parent lives; the interpreter must not wait for it.
    code = main()
    sys.stderr.flush()
    os._exit(code)
