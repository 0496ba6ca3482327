"""The private folder through which a volume goes to the engine; nothing of it outlives the run."""

import ctypes
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRIES, PAUSE = 6, 0.1
"""A dying process holds its files on Windows for a moment: how often to try, and seconds between."""
LONGEST_RUN = 24 * 3600
"""Seconds; a folder that is older was left behind, though its process's number may be in use again."""
_NAME = re.compile(r"saunet-panel-(\d+)-\w+")


def makePrivateFolder() -> Path:
    """A new folder that only this user can enter (0700). Its name carries this process's number."""
    return Path(tempfile.mkdtemp(prefix=f"saunet-panel-{os.getpid()}-"))


def removeFolder(folder: Path) -> None:
    """Remove a folder with all it holds; on Windows also what is marked as read-only or still open for a moment.

    Raises:
        OSError: it could not be removed.
    """

    def writable(function: Callable[[str], Any], path: str, _: Any) -> None:
        Path(path).chmod(stat.S_IWRITE)
        function(path)

    handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": writable}
    for left in reversed(range(TRIES if os.name == "nt" else 1)):
        if not folder.exists():
            return
        try:
            shutil.rmtree(folder, **handler)
        except OSError:
            if not left:
                raise
            time.sleep(PAUSE)


def removeLeftovers() -> list[Path]:
    """Remove the private folders of this user whose processes are gone, such as after a crash.

    Returns:
        What was removed.
    """
    removed = []
    for folder in Path(tempfile.gettempdir()).glob("saunet-panel-*"):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            about = folder.stat()
            if hasattr(os, "getuid") and about.st_uid != os.getuid():
                continue
            if processLives(int(match[1])) and time.time() - about.st_mtime < LONGEST_RUN:
                continue
            removeFolder(folder)
        except OSError:
            continue  # another instance is about it, too
        removed.append(folder)
    return removed


def processLives(pid: int) -> bool:
    """Whether a process of this number exists."""
    if os.name == "nt":  # os.kill would end it there
        return _livesOnWindows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _livesOnWindows(pid: int) -> bool:
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(0x1000, False, pid))  # PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return ctypes.get_last_error() == 5  # type: ignore[attr-defined]  # ERROR_ACCESS_DENIED: another user's
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == 259  # STILL_ACTIVE
