"""Write a file under a temporary name in its folder and rename it once it is complete."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ..errors import UsageError, is_out_of_memory, out_of_memory
from . import itk
from .endings import SEGMENTS
from .temporary import short_name

PATIENCE_S = 5.0
"""Seconds for which an operation that Windows denies is retried: virus scanners and sync clients soon let go."""
LONG_PATH = 230
"""Characters; beside a longer path a temporary name may reach 260, which Windows reports as not found."""
_waiting: ContextVar[dict[Path, Path] | None] = ContextVar("waiting", default=None)
"""In a block of `write_together`, the temporary paths of finished files, and their targets."""


def check_writable(path: str | Path, endings: Collection[str]) -> str:
    """Check that a result can be written to a path, leaving nothing there; returns the path's extension.

    Raises:
        UsageError: OUTPUT_FORMAT for an extension that is not among those given (`.seg.nrrd` does not count as
            `.nrrd`); OUTPUT_WRITE for a folder, a special or a protected file, or a parent folder that cannot be
            written to or created.
    """
    path = Path(path)
    ending = ending_of(path, {*endings, SEGMENTS})
    if ending not in endings:
        what = "is the name of a segmentation file" if ending else "does not end in a known format"
        raise UsageError("OUTPUT_FORMAT", f"{path.name or path} {what}", f"Choose one of {', '.join(endings)}")
    try:
        _check_place(path)
    except (OSError, RuntimeError, ValueError) as failure:  # name too long, symlink loop, NUL
        why = _reason(path, failure) if isinstance(failure, OSError) else "no file can exist there"
        raise UsageError("OUTPUT_WRITE", f"{path} cannot be written to: {why}", "Choose another name") from failure
    return ending


def _check_place(path: Path) -> None:
    if sys.platform == "win32" and set(path.name) & set('<>:"|?*'):  # a colon would name a file's stream
        raise UsageError("OUTPUT_WRITE", f"{path.name} is not a valid file name on Windows", 'Leave out < > : " | ? *')
    if path.is_symlink():
        with suppress(FileNotFoundError):
            path.stat()  # fails for a symlink loop, which `resolve` accepts from Python 3.13 on
    place = path.resolve()
    if not itk.is_name(place):
        cause, remedy = f"{path} cannot be written to: its path is not valid UTF-8", "Choose a name and folder in UTF-8"
        if (encoding := sys.getfilesystemencoding()) != "utf-8":
            cause = f"{path} cannot be written to: with this locale Python reads paths as {encoding}"
            remedy = "Set the environment variable PYTHONUTF8=1, or choose a name and folder of plain ASCII letters"
        raise UsageError("OUTPUT_WRITE", cause, remedy)
    if path.is_dir():
        raise UsageError("OUTPUT_WRITE", f"{path} is a folder", "Give the name of a file in it")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UsageError("OUTPUT_WRITE", f"{path} is a protected or special file", "Choose another name")
    folder = parent = place.parent
    while not parent.exists() and parent != parent.parent:  # the drive may not exist
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) and _takes(parent, folders=parent != folder)):
        raise UsageError("OUTPUT_WRITE", f"the folder {parent} cannot be written to", "Choose another folder")


def _takes(folder: Path, folders: bool) -> bool:
    """Whether files, or folders, can be created in a folder; tried out on Windows, where os.access is always true."""
    if sys.platform != "win32":
        return True
    try:
        if not folders:
            with probe(folder):
                return True
        trial = temporary_name(folder, "")
        trial.mkdir()
    except OSError:
        return False
    with suppress(OSError):
        _patiently(trial.rmdir)
    return True


@contextmanager
def probe(folder: Path, size: int = 0) -> Iterator[Path]:
    """Write a test file of the given size into a folder for the duration of the block.

    Raises:
        OSError: it cannot be written.
    """
    trial = temporary_name(folder, ".json")
    try:
        trial.write_bytes(bytes(size))
        yield trial
    finally:
        discard(trial)


def temporary_name(folder: Path, ending: str) -> Path:
    """An unused hidden name in a folder."""
    return folder / f".{secrets.token_hex(6)}{ending}"


def is_temporary(name: str, endings: Iterable[str]) -> bool:
    """Whether a name is like those of `temporary_name` with one of these extensions; an aborted run may leave it."""
    match = re.fullmatch(r"\.[0-9a-f]{12}(\..+)", name)
    # The backup of NAME.nii.gz ends in .gz, see `_spare_name`.
    return match is not None and any(ending.endswith(match[1]) for ending in endings)


def same_place(first: Path, second: Path) -> bool:
    """Whether two paths name the same existing or future file or folder; not if one is invalid (a symlink loop).

    Names that differ only in case may be one file: the file system decides whether scan.nii is the same as Scan.nii.
    """
    try:
        first_path, second_path = first.resolve(), second.resolve()
        if first_path == second_path:
            return True
        if spelling(first_path.name) != spelling(
            second_path.name
        ):  # even if hard-linked: writing one leaves the other alone
            return False
        if first_path.exists() or second_path.exists():
            return first_path.samefile(second_path)
        return first_path != first_path.parent and same_place(first_path.parent, second_path.parent)
    except (OSError, RuntimeError, ValueError):
        return False


def why_absent(path: Path) -> str:
    """Why an existing file may not be found: on Windows, its long path. Usually empty."""
    if sys.platform != "win32":
        return ""
    letters = len(str(path.absolute()))
    return f"its path may be too long for Windows ({letters} characters)" if letters > LONG_PATH else ""


def spelling(name: str) -> str:
    """A key that is equal for names that Windows and macOS treat as one file; any folder may be on such a disk."""
    return unicodedata.normalize("NFC", name).casefold()


def ending_of(path: Path, endings: Iterable[str]) -> str:
    """The longest of the given extensions that a file name has, ignoring case; empty if it has none of them."""
    name = path.name.lower()
    return max((ending for ending in endings if name.endswith(ending) and name != ending), key=len, default="")


@contextmanager
def write_beside(path: Path, ending: str) -> Iterator[Path]:
    """A temporary name in the same folder, renamed to `path` if the block succeeds and removed otherwise.

    Readers therefore see the old file or the new one, never half of one. Missing parent folders are created. Inside
    `write_together` the renaming waits for the end of that block.

    Raises:
        UsageError: OUTPUT_WRITE, the system or a writing library failed inside the block.
        OutOfMemoryError: MEMORY.
    """
    target = path.resolve()  # a link keeps pointing to its file
    temporary = temporary_name(target.parent, ending)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = short_name(target.parent) / temporary.name
        yield temporary
        if target.exists():
            with suppress(OSError):  # not every file system has permissions
                shutil.copymode(target, temporary)  # leave unchanged who may read it
        _patiently(lambda: _synchronise(temporary))
        together = _waiting.get()
        if together is None:
            replace(temporary, target)
        else:
            together[temporary] = target
    except (NotImplementedError, RecursionError):  # bugs, although RuntimeErrors
        raise
    except (OSError, RuntimeError, MemoryError) as failure:
        if is_out_of_memory(failure):  # otherwise users would look for disk space
            raise out_of_memory() from failure
        raise _unwritten(path, failure) from failure
    finally:
        if temporary not in (_waiting.get() or ()):
            discard(temporary)


@contextmanager
def write_together() -> Iterator[None]:
    """Make all files that `write_beside` writes inside the block appear at its end, or none if it fails.

    Raises:
        UsageError: OUTPUT_WRITE, a file could not be moved to its target. Targets already replaced are restored, also
            if a signal interrupts; a backup that cannot be restored is kept beside its target.
    """
    together: dict[Path, Path] = {}
    before: dict[Path, Path | None] = {}
    token = _waiting.set(together)
    try:
        yield
        try:
            for temporary, target in together.items():
                if len(together) > 1 and target not in before:
                    before[target] = _spare_name(target)
                    _keep(target, before[target])
                replace(temporary, target)
        except BaseException as failure:  # a signal may come right after a file was moved
            moved = [target for temporary, target in together.items() if not os.path.lexists(temporary)]
            left = _put_back({target: before[target] for target in moved if target in before})
            before.update(dict.fromkeys(left))  # keep their backups, the only copies left
            if isinstance(failure, OSError):
                raise _unwritten(target, failure, left) from failure
            raise
    finally:
        _waiting.reset(token)
        for path in (*together, *filter(None, before.values())):
            discard(path)


def replace(source: Path, target: Path) -> None:
    """Move a file, replacing any existing one; on Windows, retry while another program has one of them open.

    Raises:
        OSError: the system refuses.
    """
    _patiently(lambda: source.replace(target))


def discard(path: Path) -> None:
    """Remove a file if possible; retries like `replace`, but never raises, so as not to hide an earlier failure."""
    with suppress(OSError):
        _patiently(path.unlink)


def _patiently(act: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            act()
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() >= until:
                raise
        time.sleep(0.1)


def _synchronise(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())  # some systems report a full disk only here


def _spare_name(target: Path) -> Path | None:
    """A name for the backup of a file that will be replaced; None if there is no file."""
    return temporary_name(target.parent, target.suffix) if target.exists() else None


def _keep(target: Path, spare: Path | None) -> None:
    """Back up a file by a hard link, or else a copy."""
    if spare is None:
        return
    try:
        os.link(target, spare)  # costs nothing, but not every file system has it
    except OSError:
        _patiently(lambda: shutil.copyfile(target, spare))


def _put_back(before: Mapping[Path, Path | None]) -> dict[Path, Path | None]:
    """Restore files from their backups (None: there was no file before); returns those that failed."""
    left = {}
    for target, spare in before.items():
        try:
            if spare is None:
                _patiently(target.unlink)
            else:
                replace(spare, target)
        except OSError:
            left[target] = spare
    return left


def _unwritten(path: Path, failure: Exception, left: Mapping[Path, Path | None] | None = None) -> UsageError:
    """The error for a file; `left` maps targets that could not be restored to their backups."""
    more = [
        f"; {target} is already the new file" + (f", its earlier version is {spare.name}" if spare else "")
        for target, spare in (left or {}).items()
    ]
    return UsageError(
        "OUTPUT_WRITE",
        f"{path} could not be written: {_reason(path, failure)}{''.join(more)}",
        "Check the free disk space, the folder's permissions, and that no other program has the file open",
    )


def _reason(path: Path, failure: Exception) -> str:
    if isinstance(failure, FileNotFoundError) and (why := why_absent(path)):
        return why
    if isinstance(failure, OSError):
        return failure.strerror or "the operating system refused"
    return "the file was not written completely"
