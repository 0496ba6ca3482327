"""What ITK needs to read and write safely: a path that it can open, and its console output kept from the user."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .. import process
from ..errors import InputError, check_memory
from .temporary import short_name, temporary_folder

_lock = threading.Lock()
_inside = 0
"""Number of threads inside `unheard`."""
_silence = ExitStack()
"""What the last of them to leave undoes."""
_STORED = re.compile(rb"^(ElementDataFile[ \t]*=|data ?file:)[^\r\n]*", re.MULTILINE | re.IGNORECASE)
"""Where the header of a MetaImage or NRRD file names the file with its voxels."""


def is_name(path: Path) -> bool:
    """Whether ITK accepts a path: a name that is not UTF-8 makes SimpleITK end the whole process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def readable(path: Path, ending: str = "", voxels: Path | None = None) -> Iterator[Path]:
    """A name under which ITK reads this very file; `voxels` is the one that its header names, where it names one.

    For NAME.nii.gz the NIfTI library takes the voxels of NAME.nii where that lies beside it, and it does not know
    NAME.Nii.Gz; names from elsewhere, as on old CDs, may be no UTF-8; and on Windows see `short_name`.

    Raises:
        InputError: INPUT_UNREADABLE, it needs another name and cannot be given one.
        OutOfMemoryError: MEMORY.
    """
    voxels = None if voxels == path else voxels
    spelt = path.name[len(path.name) - len(ending) :]
    known = spelt in (ending, ending.upper())
    if is_name(path) and known and not (ending == ".nii.gz" and path.with_suffix("").exists()):
        # The short name of NAME.nii.gz would end in .GZ alone, of which the NIfTI library makes nothing.
        whole = path.name.isascii() or ending == ".nii.gz"
        place = short_name(path.parent) / path.name if whole else short_name(path)
        if sys.platform != "win32" or (str(place).isascii() and (voxels is None or voxels.name.isascii())):
            yield place
            return
    with ExitStack() as stack:
        try:
            place = stack.enter_context(temporary_folder()) / f"image{ending}"
            if voxels is None:
                _lend(path, place)
            else:
                place.write_bytes(_STORED.sub(rb"\1 voxels", path.read_bytes(), count=1))
                _lend(voxels, place.with_name("voxels"))
        except OSError as failure:
            check_memory(failure)
            raise InputError(
                "INPUT_UNREADABLE",
                f"{path.name} cannot be read: it cannot be copied under a name that ITK accepts ({failure.strerror})",
                "Free some space for temporary files, or rename the file and its folders with plain ASCII letters",
            ) from failure
        yield place


@contextmanager
def writable(path: Path) -> Iterator[Path]:
    """A name under which ITK writes a file. Where Windows has none, the file is written elsewhere and copied."""
    if sys.platform != "win32" or str(path).isascii():
        yield path
        return
    with temporary_folder() as folder:
        yield folder / path.name
        shutil.copyfile(folder / path.name, path)


def _lend(path: Path, place: Path) -> None:
    """Give a file a second name, or copy it there."""
    try:
        place.symlink_to(path.resolve())
    except OSError:  # Windows without the right to make links
        shutil.copyfile(path, place)


@contextmanager
def unheard() -> Iterator[None]:
    """Suppress what ITK and the libraries inside it print about a damaged file; the user gets an error of ours.

    The libraries inside ITK print to descriptor 2, which all threads and processes started meanwhile share: it is
    redirected only in SAUNet's own processes.
    """
    global _inside, _silence
    with _lock:  # not for long: other threads read meanwhile
        if _inside == 0:
            _silence = _silenced()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside = max(0, _inside - 1)  # 0 already in a child that was forked inside
            if _inside == 0:
                _silence.close()


def _silenced() -> ExitStack:
    """Suppress the output until the returned stack is closed."""
    import SimpleITK as sitk  # the panel needs the rest of this module before that is installed

    with ExitStack() as stack:
        stack.callback(sitk.ProcessObject.SetGlobalWarningDisplay, sitk.ProcessObject.GetGlobalWarningDisplay())
        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # on Windows ITK may open a window for its warnings
        if process.ours:
            with suppress(AttributeError, ValueError):  # None, or closed
                sys.stderr.flush()
            try:
                kept = os.dup(2)
            except OSError:  # a process without stderr
                return stack.pop_all()
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        return stack.pop_all()


def _in_forked_process() -> None:
    """Undo the silence in a forked child, which has none of the threads that were inside."""
    global _inside
    _inside = 0
    _silence.close()
    _lock.release()


if sys.platform != "win32":
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_forked_process)
