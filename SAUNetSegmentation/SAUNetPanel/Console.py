"""Run console programs without opening a window on Windows; listen to output on Slicer's Python console."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


def output(arguments: list[str], seconds: float = 5.0) -> str:
    """The output of a program; empty if it cannot be started, fails, or takes too long."""
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",  # on Windows it is in the console's code page
            timeout=seconds,
            check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


@contextlib.contextmanager
def heard(take: Callable[[str], Any]) -> Iterator[None]:
    """Pass every line that this thread prints to a listener; the Python console still shows it."""
    with contextlib.redirect_stdout(_Echo(sys.stdout, take)):
        yield


class _Echo:
    """A stream that writes to the Python console and to a listener."""

    def __init__(self, console: Any, take: Callable[[str], Any]) -> None:
        self._console, self._take, self._rest = console, take, ""
        self._thread = threading.get_ident()  # other threads must not touch the panel

    def write(self, text: str) -> Any:
        if threading.get_ident() == self._thread:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._take(line)
        return self._console.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)
