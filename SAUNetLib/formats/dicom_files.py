"""Find the DICOM images in a folder, and files that should be DICOM images but cannot be read."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .dicom_elements import LONGEST_FIRST, begins_plainly, first_text

_IMAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")
_OF_IMAGES = re.compile("image|slice|scan|frame|series|dicom|echo", re.IGNORECASE)
"""Words in the names of image files."""
_ENDINGS = (".dcm", ".ima")
"""File extensions of DICOM."""
_NUMBER = re.compile(r"\d+(\.\d+)+|(?<![^\W_])[0-9a-f]*\d[0-9a-f]*(?![^\W_])|\d+")
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
_CLASS = 0x00080016
NO_IMAGES = ("DICOMDIR", "LOCKFILE", "VERSION", "README", "AUTORUN")
"""Files without an extension that accompany images on a CD."""


@dataclass(frozen=True)
class UnreadablePath:
    """A folder, or a file that should be an image, that cannot be read; and its series' UID, if that can be read."""

    path: Path
    uid: str = ""


def is_dicom(path: Path) -> bool:
    """Whether a file begins like a DICOM file, with the "DICM" mark or, as in old archives, without."""
    return _is_dicom(_head(path) or b"")


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM" or begins_plainly(head)


def _head(path: Path) -> bytes | None:
    """The first bytes of a file, empty if it cannot be opened; None if it is not a regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would block
            return None
        with open(path, "rb") as file:
            return file.read(2 * LONGEST_FIRST)
    except OSError as failure:
        return None if failure.errno == errno.ELOOP else b""  # a symlink loop was never a file


def holds_images(files: Iterable[Path]) -> bool:
    """Whether `image_files` would find one among the files of a folder."""
    return next(_found(files), None) is not None


def image_files(folder: Path, below: bool, unreadable_paths: list[UnreadablePath]) -> Iterator[Path]:
    """Find DICOM files, and files that should be DICOM but are unreadable or invalid, as after an interrupted copy.

    Hidden files and folders are left out. Folders that cannot be read are appended to `unreadable_paths`.
    """

    def keep(failure: OSError) -> None:
        unreadable_paths.append(UnreadablePath(Path(str(failure.filename))))

    def files() -> Iterator[Path]:
        for parent, folders, names in os.walk(folder, onerror=keep):
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if below else []
            yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))

    return _found(files())


def _found(files: Iterable[Path]) -> Iterator[Path]:
    """The DICOM files among these, followed by those that appear to be lost images.

    A file with a DICOM extension always counts. Other files that are not DICOM are ignored, unless they are empty or
    begin with zeros, and are named like the images: these are lost images. A DICOM file begins with 128 zeros, and
    programs that copy files may first fill the space with zeros.
    """
    kinds: set[str] = set()
    blank: list[Path] = []
    for path in files:
        head = None if path.name.upper() in NO_IMAGES else _head(path)
        if head is None:
            continue
        if _is_dicom(head):
            kinds.add(_kind_of_name(path))
            yield path
        elif path.suffix.lower() in _ENDINGS:
            yield path
        elif not any(head[:132]):
            blank.append(path)
    for path in blank:
        if _kind_of_name(path) in kinds or (not kinds and _is_named_as_image(path)):
            yield path


def is_image(path: Path) -> bool:
    """Whether a file of `image_files` that is unreadable should have been an image.

    Its SOP class, in the file meta information or the data set, decides; without one it counts as a damaged image.
    """
    if not is_dicom(path):
        return True
    with open(path, "rb") as file:
        head = file.read(4096)
    match = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    length = struct.unpack("<H", match[1])[0] if match else 0
    value = head[match.end() : match.end() + length] if match else b""
    whole = value.decode("latin-1").rstrip("\0 ") if len(value) == length else ""
    stated = whole or first_text(path, _CLASS)
    return not stated or (
        stated != _SPECTROSCOPY and any(stated == uid or stated.startswith(uid + ".") for uid in _IMAGE_CLASSES)
    )


def _kind_of_name(path: Path) -> str:
    """The pattern of a name: all but its numbers, including hexadecimal ones and UIDs."""
    return _NUMBER.sub("#", path.name.casefold())


def _is_named_as_image(path: Path) -> bool:
    """Whether a name is typical of images: a UID or a number, possibly with a word such as slice.

    Used if there is no image to compare it with. An empty file with another word in its name, such as
    received_20240101, is a marker.
    """
    plain = _OF_IMAGES.sub("", path.name)
    numbered = re.search(r"\d", plain) and not re.search(r"[^\W\d_]{4}", plain)
    return path.suffix[1:].isdecimal() or bool(not path.suffix and numbered)


def unreadable(paths: Sequence[Path]) -> InputError:
    """The error INPUT_UNREADABLE that names the first of these files, or a folder among them."""
    # A path whose status cannot be read lies in a folder without search permission.
    closed = dict.fromkeys(path if os.path.isdir(path) else path.parent for path in paths)  # noqa: PTH112 - never fails
    own = set(paths)
    folder = next((one for one in closed if one in own or not os.access(one, os.X_OK)), None)
    if folder is not None:
        cause = f"the folder {folder.name} cannot be read"
        return InputError("INPUT_UNREADABLE", cause, "Check the permissions of this folder")
    more = f", {paths[0].name} and {len(paths) - 1} more" if len(paths) > 1 else f": {paths[0].name}"
    return InputError(
        "INPUT_UNREADABLE",
        f"{len(paths)} DICOM file{'s' if len(paths) > 1 else ''} of the folder cannot be read{more}",
        "Copy or export the study again, uncompressed if possible",
    )
