"""The engine as a child process of Slicer: start it, talk to it, keep it warm, and end it with its own children."""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from . import Console, engineFolder
from .Signal import Signal

IDLE_MS = 10 * 60 * 1000
POLITE_MS = 1000
"""Milliseconds that a cancelled worker has to end the request by itself; then it is asked to terminate."""
FIRM_MS = 400
"""Milliseconds that it then has before it is killed; together with POLITE_MS less than two seconds."""
LONGEST_LINE = 2**20
ABNORMAL = "exit abnormally"
"""What Slicer's launcher prints, before it exits with 1, when a signal ended the process it had started."""
FATAL = ("Fatal Python error", "Windows fatal exception")
"""What Python prints on the signals of a crash (see Bootstrap.py); on the one sent when memory runs out, nothing."""
EVENTS = ("process", "ready", "progress", "warning", "result", "error")


def slicerPython() -> str:
    """The Python interpreter of Slicer; sys.executable may be Slicer itself, which must not be started twice."""
    own = sys.executable or ""
    return shutil.which("PythonSlicer") or (own if "python" in Path(own).name.lower() else "PythonSlicer")


def workerCommand(folder: Path | None = None, module: str = "SAUNetLib.worker") -> list[str]:
    """Program and arguments that start a worker."""
    bootstrap = Path(__file__).with_name("Bootstrap.py")
    return [slicerPython(), "-u", str(bootstrap), str(folder or engineFolder()), module]


class EngineProcess:
    """One worker at a time, and one request at a time.

    Signals:
        event (dict): progress and warning events of the request, then exactly one result or error.
        log (str): a line that was not an event, or what happened to the process.

    Args:
        command: program and arguments; by default the real worker.
        environment: variables to set for the worker.
    """

    def __init__(self, command: list[str] | None = None, environment: dict[str, str] | None = None) -> None:
        self.event, self.log = Signal(), Signal()
        self._command = command
        self._environment = environment or {}
        self._process: Any = None
        self._ended_process: Any = None
        self._group = 0  # ID of the process group that the worker leads
        self._pending = {"out": b"", "err": b""}
        self._said: set[str] = set()  # those of ABNORMAL and FATAL that were printed
        self._request: str | None = None
        self._count = 0
        self._cancelled = self._warming = False
        self._stopping = False  # it was told to end
        self._killed = False  # by us
        self._idle = self._timer(IDLE_MS, self.stop)
        self._polite = self._timer(POLITE_MS, self._terminate)
        self._firm = self._timer(FIRM_MS, self.kill)

    @staticmethod
    def _timer(interval: int, action: Any) -> Any:
        timer = qt.QTimer()
        timer.setInterval(interval)
        timer.setSingleShot(True)
        timer.connect("timeout()", action)
        return timer

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._request is not None

    @property
    def warming(self) -> bool:
        """Whether that request only loads the network in advance."""
        return self.busy and self._warming

    @property
    def cancelled(self) -> bool:
        """Whether that request has been cancelled."""
        return self.busy and self._cancelled

    @property
    def alive(self) -> bool:
        """Whether a worker runs, busy or warm."""
        return self._process is not None

    def run(self, command: str, **entries: Any) -> None:
        """Send a request, starting a worker if none is warm; `event` reports its end.

        A warm-up request in progress gives way to it: its end is not reported.

        Raises:
            RuntimeError: a request to segment is under way.
            TypeError: an entry cannot be written as JSON; nothing was changed.
        """
        if self.busy and not self._warming:
            raise RuntimeError("a request is under way")
        entries = {key: value for key, value in entries.items() if value is not None}
        json.dumps(entries)  # refused before anything changes
        self._request = None
        self._idle.stop()
        self._polite.stop()
        if self._stopping:
            self.close()
        self._warming = command == "warm"
        self._count += 1
        self._request, self._cancelled = f"{os.getpid()}-{self._count}", False
        if not self.alive:
            self._start()
        self._send(command=command, id=self._request, **entries)

    def cancel(self) -> None:
        """Cancel the request: first politely, after a second by terminating the worker, then by killing it."""
        if self.busy and not self._cancelled:
            self._cancelled = True
            self._send(command="cancel")
            self._polite.start()

    def stop(self) -> None:
        """Let an idle worker end."""
        if self.alive and not self.busy and not self._stopping:
            self._stopping = True
            self._process.closeWriteChannel()
            self._polite.start()

    def kill(self) -> None:
        """End the worker and all it started, at once."""
        if self.alive:
            self._killed = True
            self._signal("SIGKILL")
            self._process.kill()

    def close(self) -> None:
        """End the worker before Slicer itself ends or the module is reloaded; returns when it is gone."""
        if self.alive:
            process = self._process
            self.kill()
            if not process.waitForFinished(1000):
                process.blockSignals(True)  # ignore its end, whenever that comes
                self._ended(_cancelled())

    def _start(self) -> None:
        program, *arguments = self._command or workerCommand()
        process = qt.QProcess()
        environment = qt.QProcessEnvironment.systemEnvironment()
        for key, value in {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **self._environment}.items():
            environment.insert(key, value)
        process.setProcessEnvironment(environment)
        process.connect("readyReadStandardOutput()", self._readOutput)
        process.connect("readyReadStandardError()", self._readErrors)
        process.connect("finished(int,QProcess::ExitStatus)", self._finished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._failed)
        self._process, self._group = process, 0
        self._pending, self._said = {"out": b"", "err": b""}, set()
        self.log.emit(_("Starting the engine"))
        process.start(program, arguments)

    def _send(self, **entries: Any) -> None:
        if self.alive:
            self._process.write(json.dumps(entries).encode() + b"\n")

    def _readOutput(self) -> None:
        if self.alive:
            self._take("out", self._process.readAllStandardOutput().data())

    def _readErrors(self) -> None:
        if self.alive:
            self._take("err", self._process.readAllStandardError().data())

    def _take(self, channel: str, data: bytes) -> None:
        """Handle the complete lines; keep an unfinished one until its end arrives."""
        *lines, unfinished = (self._pending[channel] + data).split(b"\n")
        if len(unfinished) > LONGEST_LINE:
            lines, unfinished = [*lines, unfinished], b""
        self._pending[channel] = unfinished
        for line in lines:
            self._line(channel, line)

    def _line(self, channel: str, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        event = _event(text) if channel == "out" else None
        if channel == "err":
            self._said |= {words for words in (ABNORMAL, *FATAL) if words in text}
        if event is None:
            if text.strip():
                self.log.emit(text[:2000])
        elif event["event"] == "process":
            self._lead(event.get("pid"))
        elif event["event"] == "ready":
            self.log.emit(_("The engine is ready"))
        elif self.busy and event.get("id") in (self._request, None):
            self._deliver(event)

    def _lead(self, pid: Any) -> None:
        """Store the ID of the worker's process group, but only once and never Slicer's own."""
        own = os.getpgrp() if hasattr(os, "getpgrp") else 0
        if not self._group and isinstance(pid, int) and pid > 1 and pid != own:
            self._group = pid

    def _deliver(self, event: dict[str, Any]) -> None:
        if event["event"] not in ("result", "error"):
            if not self._cancelled:
                self.event.emit(event)
            return
        self._request = None
        if not self._stopping:
            self._polite.stop()
        codes = {event.get("code"), *(warning.get("code") for warning in event.get("warnings", []))}
        if codes & {"INTERNAL", "DEVICE", "GPU_FAILED", "NOT_INSTALLED"}:
            # A process whose GPU failed or was not found cannot use it again, and one that met a missing package may
            # not find it once installed; the next run starts another.
            self.stop()
        elif self.alive:
            self._idle.start()
        if self._cancelled and event["event"] == "result":
            event = _cancelled()  # cancelled while the result was on its way
        self.event.emit(event)

    def _terminate(self) -> None:
        self._stopping = True
        if os.name == "nt":  # console processes on Windows receive no polite request
            self.kill()
        elif self.alive:
            self._signal("SIGTERM")
            self._process.terminate()
            self._firm.start()

    def _signal(self, name: str) -> None:
        """Send a signal to the worker's process group; on Windows end the launcher's and the worker's process trees."""
        if os.name == "nt":
            for pid in (self._process.processId(), self._group):
                if pid:
                    Console.output(["taskkill", "/F", "/T", "/PID", str(pid)], 2.0)
        elif self._group > 1:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it may have just ended
                os.killpg(self._group, getattr(signal, name))

    def _failed(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart:
            cause = _("Slicer's Python could not be started.")
            self._ended(_problem("ENGINE_START", cause))

    def _finished(self, code: int, status: Any) -> None:
        self._readOutput()  # the last lines usually give the reason
        self._readErrors()
        for channel in ("out", "err"):
            self._take(channel, b"\n")
        if os.name != "nt":  # on Windows the ID may be another process's by now
            self._signal("SIGKILL")  # what the worker itself had started
        crashed = status == qt.QProcess.CrashExit
        if self._killed:
            self.log.emit(_("The engine was ended"))
        else:
            text = _("The engine crashed ({code})") if crashed else _("The engine ended ({code})")
            self.log.emit(text.format(code=code))
        killed = (crashed and code == 9) or code in (137, -9) or (code == 1 and self._said == {ABNORMAL})
        if killed:
            cause = _("It was stopped from outside, usually because the computer ran out of memory.")
        else:
            cause = _("It stopped before it had finished (code {code}); see the log.").format(code=code)
        self._ended(_problem("ENGINE_KILLED" if killed else "ENGINE_DIED", cause))

    def _ended(self, problem: dict[str, Any]) -> None:
        for timer in (self._idle, self._polite, self._firm):
            timer.stop()
        # PythonQt deletes an object with its last reference, which must not happen while it emits a signal.
        self._ended_process, self._process = self._process, None
        self._group, self._stopping, self._killed = 0, False, False
        if self.busy:
            self._deliver(_cancelled() if self._cancelled else problem)


def _event(text: str) -> dict[str, Any] | None:
    """The event in a line, or None if the line is something else."""
    if not text.startswith("{"):
        return None
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and event.get("event") in EVENTS else None


def _problem(code: str, cause: str) -> dict[str, Any]:
    return {"event": "error", "code": code, "cause": cause}


def _cancelled() -> dict[str, Any]:
    return {"event": "error", "code": "CANCELLED", "cause": ""}
