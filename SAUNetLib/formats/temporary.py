"""Temporary folders for this user only, with names that ITK accepts; leftovers of dead processes can be removed."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE_S, LAST_PATIENCE_S = 0.6, 5.0
"""Seconds for which a removal that Windows refuses is retried while somebody waits, and at the end: an ending process
or a virus scanner soon lets go of a file."""
LONGEST_RUN_S = 24 * 3600
"""Seconds; an older folder is a leftover even if its process ID is in use again, except a batch's, which takes days."""
_NAME = re.compile(r"saunet-(\d{1,9})-[0-9a-f]{12}|saunet-(?:(batch)|panel)-(\d{1,9})-\w{8}")
"""Names, with the process ID, of folders made here, for a batch, and by earlier panels; matches none of a user's."""


def short_name(path: Path) -> Path:
    """A name, in letters that ITK can handle, of an existing file or folder.

    On Windows ITK takes names in the process's code page, which for Python is not UTF-8: it cannot find the folder of a
    user with an umlaut (SimpleITK/SimpleITK#795). The short name that Windows keeps beside the long one is ASCII; on a
    drive that keeps none, the path stays as it is.
    """
    if sys.platform != "win32" or str(path).isascii():
        return path
    buffer = ctypes.create_unicode_buffer(32768)  # the longest possible path
    ctypes.windll.kernel32.GetShortPathNameW(str(path), buffer, len(buffer))
    return Path(buffer.value or path)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of `make_folder` for the duration of the block."""
    if sys.platform == "win32":  # elsewhere it holds no copies
        remove_leftovers()
    folder = make_folder()
    try:
        yield folder
    finally:
        with suppress(OSError):
            remove_folder(folder, LAST_PATIENCE_S)


def make_folder() -> Path:
    """A new folder that only this user can enter (0700). Its name contains this process's ID.

    Raises:
        OSError: it cannot be created anywhere.
    """
    *others, last = _places()
    for place in others:
        with suppress(OSError):
            return _folder_in(place)
    return _folder_in(last)


def _places() -> list[Path]:
    """Where to make folders: the system's temporary folder, after those with ASCII paths if its own is not ASCII."""
    places = [short_name(Path(tempfile.gettempdir()))]
    if sys.platform == "win32" and not str(places[0]).isascii() and _closes_folders():
        common = (os.environ.get(name, "") for name in ("PUBLIC", "PROGRAMDATA"))
        places[:0] = [Path(place) for place in common if place and place.isascii()]
    return places


def _closes_folders() -> bool:
    """Whether Python applies a new folder's mode on Windows, where all users share the folders with ASCII paths."""
    return sys.version_info >= (3, 12, 4) or (3, 11, 10) <= sys.version_info < (3, 12)


def _folder_in(place: Path) -> Path:
    # Not by tempfile: where Windows denies creation, that tries two billion names.
    folder = place / f"saunet-{os.getpid()}-{secrets.token_hex(6)}"
    folder.mkdir(0o700)
    return folder


def remove_folder(folder: Path, patience_s: float = PATIENCE_S) -> None:
    """Remove a folder and its content; on Windows also what is read-only or still open for a moment.

    Raises:
        OSError: it could not be removed.
    """

    def writable(function: Callable[..., Any], path: str, failure: Any) -> None:
        if function not in (os.unlink, os.rmdir):  # a folder that cannot be read
            raise failure if isinstance(failure, BaseException) else failure[1]
        Path(path).chmod(stat.S_IRWXU)
        function(path)

    handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": writable}
    until = time.monotonic() + patience_s
    while folder.exists():
        try:
            shutil.rmtree(folder, **handler)
        except OSError:
            if sys.platform != "win32" or time.monotonic() >= until:
                raise
            time.sleep(0.1)


def remove_leftovers() -> list[Path]:
    """Remove the folders of this user whose processes are gone, such as after a crash.

    Returns:
        What was removed.
    """
    removed = []
    for folder in (found for place in _places() for found in place.glob("saunet-*")):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            about = folder.stat()
            if hasattr(os, "getuid") and about.st_uid != os.getuid():
                continue
            lives = process_lives(int(match[1] or match[3]))
            if lives and (match[2] or time.time() - about.st_mtime < LONGEST_RUN_S):
                continue
            remove_folder(folder, 0.0)
        except OSError:
            continue  # another instance may be removing it, too
        removed.append(folder)
    return removed


def process_lives(pid: int) -> bool:
    """Whether a process with this ID exists."""
    if sys.platform == "win32":  # os.kill would end the process there
        return _lives_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _lives_on_windows(pid: int) -> bool:
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(0x1000, False, pid))  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return ctypes.get_last_error() == 5  # type: ignore[attr-defined]  # ERROR_ACCESS_DENIED: another user's
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == 259  # STILL_ACTIVE
