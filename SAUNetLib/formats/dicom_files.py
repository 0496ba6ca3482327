"""Which files of a folder are DICOM images, and which should be some but cannot be read."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .dicom_elements import LONGEST_FIRST, begins_plainly

_IMAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")
_OF_IMAGES = re.compile("image|slice|scan|frame|series|dicom|echo", re.IGNORECASE)
"""Words in names of images."""
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
_NO_IMAGES = ("DICOMDIR", "LOCKFILE", "VERSION", "README", "AUTORUN")
"""Files without an ending that lie beside images on a CD."""


@dataclass(frozen=True)
class UnreadablePath:
    """A file that should be an image, or a folder, that cannot be read; and its series' UID, if that can be read."""

    path: Path
    uid: str = ""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with the mark or, as old archives keep them, without."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would never begin
            return False
        with open(path, "rb") as file:
            head = file.read(2 * LONGEST_FIRST)
        return head[128:132] == b"DICM" or begins_plainly(head)
    except OSError:
        return False


def may_be_image(path: Path) -> bool:
    """Whether a file is DICOM and no directory of a CD, or has an image's name and is damaged, see `image_files`."""
    return path.name.upper() not in _NO_IMAGES and (is_dicom(path) or _is_lost(path))


def image_files(folder: Path, below: bool, unreadable_paths: list[UnreadablePath]) -> Iterator[Path]:
    """DICOM files, and files with an image's name that are unreadable or none, as after an interrupted copy.

    Folders that cannot be read are appended to `unreadable_paths`.
    """

    def keep(failure: OSError) -> None:
        unreadable_paths.append(UnreadablePath(Path(str(failure.filename))))

    for parent, folders, names in os.walk(folder, onerror=keep):
        folders[:] = sorted(folders) if below else []
        for name in sorted(name for name in names if not name.startswith(".")):  # as of a copy that is under way
            path = Path(parent, name)
            if may_be_image(path):
                yield path


def is_image(path: Path) -> bool:
    """Whether an unreadable file should have been an image: the SOP class in its preamble says so."""
    if _is_lost(path):
        return True
    with open(path, "rb") as file:
        head = file.read(4096)
    match = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if match is None:
        return False
    text = head[match.end() : match.end() + struct.unpack("<H", match[1])[0]].decode("latin-1").rstrip("\0 ")
    return text != _SPECTROSCOPY and any(text == uid or text.startswith(uid + ".") for uid in _IMAGE_CLASSES)


def _is_lost(path: Path) -> bool:
    """Whether a file named as images are cannot be opened, or holds no DICOM file.

    An ending of DICOM's own is word enough. Under another image's name something else is a note, but not zeros: with
    128 of them a DICOM file begins, and with zeros alone copying programs reserve the room.
    """
    suffix = path.suffix.lower()
    own = suffix in (".dcm", ".ima")
    # Also by their UID or a number: an empty file is a mark that has a word in its name, as received_20240101.
    plain = _OF_IMAGES.sub("", path.name)
    numbered = re.search(r"\d", plain) and not re.search(r"[^\W\d_]{4}", plain)
    named = own or suffix[1:].isdecimal() or (not suffix and numbered)
    if not named or path.name.startswith(".") or path.name.upper() in _NO_IMAGES:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - as above
            return False
        with open(path, "rb") as file:
            head = file.read(132)
        return (own and not is_dicom(path)) or not any(head)
    except OSError as failure:
        return failure.errno != errno.ELOOP  # a link to itself was never a file


def unreadable(paths: Sequence[Path]) -> InputError:
    """The failure INPUT_UNREADABLE that names the first of these files, or a folder among them."""
    # What may not even be looked at lies in a folder that may not be searched.
    closed = (path if os.path.isdir(path) else path.parent for path in paths)  # noqa: PTH112 - no failure for any path
    folder = next((one for one in closed if one in paths or not os.access(one, os.X_OK)), None)
    if folder is not None:
        cause = f"the folder {folder.name} cannot be read"
        return InputError("INPUT_UNREADABLE", cause, "Check the permissions of this folder")
    more = f", {paths[0].name} and {len(paths) - 1} more" if len(paths) > 1 else f": {paths[0].name}"
    return InputError(
        "INPUT_UNREADABLE",
        f"{len(paths)} DICOM file{'s' if len(paths) > 1 else ''} of the folder cannot be read{more}",
        "Copy or export the study again, uncompressed where there is a choice",
    )
