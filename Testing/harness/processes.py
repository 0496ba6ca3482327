"""A stand-in for qt.QProcess: a worker that does what the test calls, when the test calls it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

from PySide6 import QtCore

from .pythonqt import errors


class ScriptedProcess:
    """QProcess as the panel uses it. The worker reports only what `say` and `end` are called for."""

    FailedToStart = QtCore.QProcess.ProcessError.FailedToStart
    CrashExit = QtCore.QProcess.ExitStatus.CrashExit
    everyone: ClassVar[list[ScriptedProcess]] = []

    def __init__(self) -> None:
        self._slots: dict[str, Callable[..., Any]] = {}
        self._out: list[bytes] = []
        self._blocked = False
        self.alive = self.closed = self.cancelled = False
        self.doomed: tuple[int, bool] | None = None
        """Exit code, and whether a signal ends it; to be reported by `end`."""
        self.requests: list[dict[str, Any]] = []
        """Requests not answered yet."""
        self.everyone.append(self)

    @classmethod
    def living(cls) -> list[ScriptedProcess]:
        """The processes that have not ended."""
        return [one for one in cls.everyone if one.alive]

    # -- what the panel calls ----------------------------------------------------------------------------------------

    def connect(self, signal: str, receiver: Callable[..., Any]) -> None:
        self._slots[signal.partition("(")[0]] = receiver

    def setProcessEnvironment(self, environment: Any) -> None:
        pass

    def start(self, program: str, arguments: list[str]) -> None:
        self.alive = True

    def write(self, line: bytes) -> None:
        request = json.loads(line)
        if request["command"] == "cancel":
            for one in self.requests:
                one["cancelled"] = True
        else:
            self.requests.append(request)

    def closeWriteChannel(self) -> None:
        self.closed = True

    def readAllStandardOutput(self) -> Any:
        data, self._out = b"".join(self._out), []
        return SimpleNamespace(data=lambda: data)

    def readAllStandardError(self) -> Any:
        return SimpleNamespace(data=lambda: b"")

    def kill(self) -> None:
        self.doomed = 9, True

    def terminate(self) -> None:
        self.doomed = self.doomed or (15, True)

    def waitForFinished(self, milliseconds: int) -> bool:
        self.end()
        return True

    def blockSignals(self, blocked: bool) -> None:
        self._blocked = blocked

    # -- what the test calls -----------------------------------------------------------------------------------------

    def say(self, **event: Any) -> None:
        """The worker prints an event."""
        self._out.append(json.dumps(event).encode() + b"\n")
        self._emit("readyReadStandardOutput")

    def answer(self, **event: Any) -> None:
        """The worker ends its first request."""
        self.say(id=self.requests.pop(0)["id"], **event)

    def end(self, code: int = 0, crashed: bool = False) -> None:
        """The process ends: as `doomed` says, or else by itself."""
        if self.alive:
            self.alive = False
            code, crashed = self.doomed or (code, crashed)
            kind = self.CrashExit if crashed else QtCore.QProcess.ExitStatus.NormalExit
            self._emit("finished", code, kind)

    def refuse(self) -> None:
        """The program cannot be started."""
        self.alive = False
        self._emit("errorOccurred", self.FailedToStart)

    def _emit(self, signal: str, *values: Any) -> None:
        if not self._blocked:
            try:
                self._slots[signal](*values)
            except Exception:  # PythonQt prints it, and the panel goes on; the tests check `errors`
                errors.append(traceback.format_exc())
