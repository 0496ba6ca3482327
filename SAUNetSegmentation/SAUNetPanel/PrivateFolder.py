"""The private folder through which a volume goes to the engine; nothing of it outlives the run."""

import ctypes
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NAME = re.compile(r"saunet-panel-(\d+)-\w+")


def makePrivateFolder() -> Path:
    """A new folder that only this user can enter (0700). Its name carries this process's number."""
    return Path(tempfile.mkdtemp(prefix=f"saunet-panel-{os.getpid()}-"))


def removeFolder(folder: Path) -> None:
    """Remove a folder with all it holds; on Windows also what is marked as read-only."""

    def writable(function: Callable[[str], Any], path: str, _: Any) -> None:
        Path(path).chmod(stat.S_IWRITE)
        function(path)

    if folder.exists():
        handler: dict[str, Any] = {"onexc" if sys.version_info >= (3, 12) else "onerror": writable}
        shutil.rmtree(folder, **handler)


def removeLeftovers() -> list[Path]:
    """Remove the private folders of this user whose processes are gone, such as after a crash.

    Returns:
        What was removed.
    """
    removed = []
    for folder in Path(tempfile.gettempdir()).glob("saunet-panel-*"):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir() or processLives(int(match[1])):
            continue
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            continue
        try:
            removeFolder(folder)
        except OSError:
            continue  # another instance is about it, too
        removed.append(folder)
    return removed


def processLives(pid: int) -> bool:
    """Whether a process of this number exists."""
    if os.name == "nt":  # os.kill would end it there
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
