"""Every error that a user can meet: its code, exit status, cause in plain words, and remedy."""

from __future__ import annotations

import errno
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar


class SAUNetError(Exception):
    """A failure with a stable code, a cause and a remedy; `exit_status` is that of the command line.

    The base class itself stands for a bug: everything a user can cause has a subclass.
    """

    exit_status: ClassVar[int] = 1
    codes: ClassVar[dict[str, str]] = {"INTERNAL": "Unexpected failure"}

    def __init__(self, code: str, cause: str, remedy: str) -> None:
        if code not in self.codes:
            raise ValueError(f"{code} is not a code of {type(self).__name__}")
        # They may contain file names, with any characters.
        cause, remedy = printable(" ".join(cause.split())), printable(remedy)
        super().__init__(f"error {code}: {cause.rstrip('.')}. {remedy.rstrip('.')}.")
        self.code = code
        self.title = self.codes[code]
        self.cause = cause.rstrip(".") + "."
        self.remedy = remedy.rstrip(".") + "."

    def as_dict(self) -> dict[str, str | int]:
        """The same as JSON-ready values: code, title, cause, remedy, exit_status."""
        return {
            "code": self.code,
            "title": self.title,
            "cause": self.cause,
            "remedy": self.remedy,
            "exit_status": self.exit_status,
        }

    def __reduce__(self) -> tuple[Callable[..., SAUNetError], tuple[object, ...]]:
        """Pickle via `as_dict`: unpickling from the message alone would fail and break whole process pools."""
        return error_of, (self.as_dict(),)


_OBEYED = re.compile("[\\0-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Control characters, line separators, text direction controls, and lone surrogates, which no terminal can show."""


def printable(text: str) -> str:
    """A text with control characters escaped: a terminal would obey even those from a file or its name."""
    return _OBEYED.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


class UsageError(SAUNetError):
    """The request cannot be carried out as given (exit status 2)."""

    exit_status = 2
    codes: ClassVar[dict[str, str]] = {
        "USAGE": "Request not understood",
        "OUTPUT_FORMAT": "Unknown output format",
        "OUTPUT_WRITE": "The result could not be written",
        "DEVICE": "Device not available",
        "NOT_INSTALLED": "A package is missing",
        "VISUAL_C": "A Windows component is missing",
    }


class InputError(SAUNetError):
    """The image cannot be used (exit status 3)."""

    exit_status = 3
    codes: ClassVar[dict[str, str]] = {
        "INPUT_NOT_FOUND": "No such file or folder",
        "INPUT_EMPTY": "Nothing to read",
        "INPUT_UNREADABLE": "Not a readable image",
        "INPUT_DIMENSION": "Not a single 3D volume",
        "INPUT_PIXEL_TYPE": "Not a greyscale image",
        "INPUT_VALUES": "Invalid voxel values",
        "INPUT_CONSTANT": "Blank image",
        "INPUT_SPACING": "Impossible voxel size",
        "INPUT_DIRECTION": "Unreliable position or axes",
        "INPUT_NOT_SAGITTAL": "Not a sagittal series",
        "INPUT_MODALITY": "Not an MRI",
        "INPUT_SERIES": "Several series",
        "INPUT_SLICES": "Missing or unevenly spaced slices",
        "INPUT_TOO_LARGE": "Too large",
        "INPUT_LABELS": "Not a label map of the expected kind",
        "INPUT_GEOMETRY": "Images on different grids",
    }


class ModelError(SAUNetError):
    """The trained network cannot be used (exit status 4)."""

    exit_status = 4
    codes: ClassVar[dict[str, str]] = {
        "MODEL_NOT_FOUND": "No such model",
        "MODEL_DAMAGED": "The model file is damaged",
        "MODEL_CARD": "The model card is missing or invalid",
        "MODEL_MISMATCH": "Model and card do not match",
    }


class OutOfMemoryError(SAUNetError):
    """Neither the device nor the main memory suffices (exit status 5)."""

    exit_status = 5
    codes: ClassVar[dict[str, str]] = {"MEMORY": "Not enough memory"}


class CancelledError(SAUNetError):
    """The user cancelled (exit status 6)."""

    exit_status = 6
    codes: ClassVar[dict[str, str]] = {"CANCELLED": "Cancelled"}

    def __init__(self, remedy: str = "No incomplete files were written; start again when ready") -> None:
        super().__init__("CANCELLED", "The run was cancelled", remedy)


def error_of(described: Mapping[str, Any]) -> SAUNetError:
    """The error that `SAUNetError.as_dict` described in another process."""
    kinds = (UsageError, InputError, ModelError, OutOfMemoryError, CancelledError)
    kind = next((candidate for candidate in kinds if described["code"] in candidate.codes), SAUNetError)
    error = kind.__new__(kind)
    code = described["code"] if kind is not SAUNetError else "INTERNAL"
    SAUNetError.__init__(error, code, described["cause"], described["remedy"])
    return error


def out_of_memory() -> OutOfMemoryError:
    """The failure of a run for which the main memory is too small."""
    return OutOfMemoryError(
        "MEMORY",
        "there is not enough memory for this volume",
        "Close other programs, or crop the volume to the spine",
    )


def unforeseen(error: Exception, remedy: str) -> SAUNetError:
    """Turn any other exception into an error for the user: something is missing on the computer, or it is a bug."""
    if is_out_of_memory(error):
        return out_of_memory()
    if isinstance(error, RuntimeError) and _SHARED_FULL.search(str(error)):
        return OutOfMemoryError(
            "MEMORY",
            "there is not enough shared memory to prepare training data in",
            "Give a container more of it, as with docker run --shm-size=2g, or train with smaller stacks",
        )
    said = " ".join(str(error).split())
    if _VISUAL_C.search(said):
        return UsageError(
            "VISUAL_C",
            f"a PyTorch library cannot be loaded ({said})",
            f"Install or update Microsoft's Visual C++ Redistributable ({REDISTRIBUTABLE}) and restart the computer; "
            "if that does not help, install PyTorch again",
        )
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing not in ("", __package__):
        return UsageError(
            "NOT_INSTALLED",
            f"the package {missing} is missing or incomplete ({said})",
            "Install saunet again, or delete the folder .venv if run.py created it",
        )
    return SAUNetError("INTERNAL", f"the engine failed unexpectedly ({type(error).__name__}: {said})", remedy)


def check_memory(failure: Exception, voxel_bytes: int = 0) -> None:
    """Distinguish lack of memory from a damaged file; readers call this before they report a file as damaged.

    Args:
        failure: the reader's exception.
        voxel_bytes: size of the image's voxels. If several times as much cannot be allocated, the reader ran out of
            memory, too: ITK's NIfTI and DICOM readers then report only that they failed.

    Raises:
        OutOfMemoryError: MEMORY.
    """
    if not is_out_of_memory(failure):
        try:
            bytes(4 * voxel_bytes + _READER_BYTES)  # reserved, but never touched
            return
        except MemoryError:
            pass
    raise out_of_memory() from failure


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python has an exception for it, systems and zlib codes, PyTorch and ITK messages."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, zlib.error):
        return str(error).startswith("Error -4 ")  # Z_MEM_ERROR; damaged data are -3
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) in _WINDOWS_FULL
    return isinstance(error, RuntimeError | ImportError) and _OUT_OF_MEMORY.search(str(error)) is not None


REDISTRIBUTABLE = "https://aka.ms/vs/17/release/vc_redist.x64.exe"
_VISUAL_C = re.compile(r"\[WinError (?:126|1114)\].*\btorch\b", re.IGNORECASE)
"""Windows' error where a library that PyTorch needs is missing or fails to load: PyTorch ships none of Microsoft's, and
newer versions need newer ones than many computers have."""
_SHARED_FULL = re.compile("unable to allocate shared memory|out of shared memory")
"""PyTorch's messages if /dev/shm is full: from a process that loads data, or about one that it ended."""
_READER_BYTES = 64 << 20
"""Bytes that a reader needs besides the voxels, estimated generously: without them no image can be segmented."""
_WINDOWS_FULL = (8, 14, 1450, 1455)
"""Windows error codes: not enough memory, out of memory, no system resources, paging file too small."""
_OUT_OF_MEMORY = re.compile(
    # Windows' messages, passed on by PyTorch for memory and by Python for a library that cannot be loaded.
    "not enough memory|paging file is too small"
    # A thread needs memory for its stack; then oneDNN's message, and below those of cuDNN and cuBLAS for a full GPU.
    "|allocate memory|out of memory|bad.alloc|failed to map segment|can't start new thread"
    "|could not (create|execute) a primitive$"
    # PyTorch's message if the system killed a process that loads data.
    "|killed by signal: Killed"
    "|unable to find (a valid cuDNN algorithm|an engine to execute)|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
