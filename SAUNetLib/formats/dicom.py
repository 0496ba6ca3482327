"""Read DICOM folders: list the series, and load a series as a volume with every slice at its own position."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..volume import Volume, check_geometry
from .atomic import why_absent
from .dicom_elements import first_text, first_texts
from .dicom_files import NO_IMAGES, UnreadablePath, image_files, is_image, unreadable
from .dicom_headers import read_as_series
from .dicom_pixels import load
from .dicom_series import TURN, DicomFrame, Series, ordered, several_origins

_SERIES, _NUMBER, _DESCRIPTION, _MODALITY, _CLASS, _FRAMES = (
    0x0020000E, 0x00200011, 0x0008103E, 0x00080060, 0x00080016, 0x00280008,
)  # fmt: skip
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""Prefix of the SOP classes of secondary captures, such as screenshots."""
_MOST_FRAMES = 1000
"""Highest number of frames believed of a file that cannot be read."""


def list_series(folder: str | Path, below: bool = True) -> list[Series]:
    """List the series in a folder and, by default, its subfolders, by number. Links to folders are not followed.

    Raises:
        InputError: INPUT_NOT_FOUND, INPUT_EMPTY or INPUT_UNREADABLE.
        OutOfMemoryError: MEMORY.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - does not raise for an invalid path
        why = why_absent(folder)
        raise InputError("INPUT_NOT_FOUND", "there is no such folder" + (f": {why}" if why else ""), "Check the path")
    by_key: dict[str, Series] = {}
    pictures: list[Series] = []
    unreadable_paths: list[UnreadablePath] = []
    for path in image_files(folder, below, unreadable_paths):
        file_series = read_as_series(path)
        if file_series is None:
            unreadable_paths += [UnreadablePath(path, first_text(path, _SERIES))] if is_image(path) else []
            continue
        if _is_picture(file_series):
            pictures.append(file_series)
        else:
            _add(by_key, file_series)
    # Without a position, a picture is not a slice of the series with its UID; a series of its own is listed.
    for picture in [one for one in pictures if one.key not in by_key]:
        _add(by_key, picture)
    if not by_key and not unreadable_paths:
        raise InputError(
            "INPUT_EMPTY",
            "the folder holds no DICOM images",
            "Choose the folder with the study's DICOM files, or give a NIfTI, NRRD or MetaImage file itself",
        )
    if not by_key:
        raise unreadable([lost.path for lost in unreadable_paths])
    readable = {series.uid for series in by_key.values()}
    for lost in unreadable_paths:
        if lost.uid and lost.uid not in readable:  # listed although none of it can be read
            _add(by_key, _lost_series(lost))
    # A file whose series is unknown counts against every series in its folder, or against all if its folder has none.
    image_folders = {frame.path.parent for series in by_key.values() for frame in series.frames}
    listed = [_examined(series, unreadable_paths, image_folders) for series in by_key.values()]

    def order(series: Series) -> tuple[int, str]:
        return int(series.number) if series.number.isdecimal() else 1 << 31, series.description

    return sorted(listed, key=order)


def _add(by_key: dict[str, Series], file_series: Series) -> None:
    key = file_series.key
    if key in by_key:
        file_series = replace(by_key[key], frames=by_key[key].frames + file_series.frames)
    by_key[key] = file_series


def _lost_series(lost: UnreadablePath) -> Series:
    """A series for a file that cannot be read, with what its header still states."""
    tags = (_NUMBER, _DESCRIPTION, _MODALITY, _CLASS, _FRAMES)
    number, description, modality, sop_class, frames = first_texts(lost.path, tags)
    count = min(int(frames), _MOST_FRAMES) if frames.isdecimal() else 1
    frame = DicomFrame(lost.path, 0, (0, 0), (), (), (), 0.0, sop_class=sop_class)
    return Series(number, description, lost.uid, modality or "MR", frames=(frame,) * max(count, 1))


def _is_picture(series: Series) -> bool:
    """Whether a file was derived from slices, such as a screenshot, and states no position."""
    derived = series.modality != "MR" or _is_capture(series)
    return derived and not any(frame.position for frame in series.frames)


def _is_capture(series: Series) -> bool:
    return all(frame.sop_class.startswith(_CAPTURE) for frame in series.frames)


def _without_copies(frames: Sequence[DicomFrame]) -> tuple[DicomFrame, ...]:
    """The frames without byte-identical copies of a file; copies that differ stay, and are refused."""
    files: dict[str, dict[Path, str]] = {}
    for frame in frames:
        files.setdefault(frame.instance, {})[frame.path] = ""
    copies: set[Path] = set()
    for instance, same in files.items():
        if instance and len(same) > 1:
            first: dict[str, Path] = {}
            copies.update(path for path in same if first.setdefault(_content(path), path) != path)
    return tuple(frame for frame in frames if frame.path not in copies)


def _content(path: Path) -> str:
    """A key that two files share only if they are byte-identical."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return str(path)


def read_series(folder: Path, series: str | None) -> Volume:
    """Read the requested series, or the only one that can be segmented, as a volume.

    Raises:
        InputError: as `list_series`; INPUT_SERIES where a choice is needed; otherwise as `volume_of`.
        OutOfMemoryError: MEMORY.
    """
    return volume_of(_choose(list_series(folder), series, folder))


def read_beside(path: Path) -> Volume:
    """The volume of the series that one DICOM file belongs to, in its folder.

    If that is not a volume, for example with several time points, an enhanced file's own frames may be one. A file that
    is hidden or named as what accompanies images is read alone.

    Raises:
        InputError: as `read_series`; INPUT_UNREADABLE for a file without an image.
        OutOfMemoryError: MEMORY.
    """
    file_series = read_as_series(path)
    if file_series is None and not is_image(path):
        raise InputError(
            "INPUT_UNREADABLE",
            f"{path.name} is a DICOM file without an image, such as a directory or a report",
            "Give the folder with the study's images",
        )
    if file_series is None:
        raise unreadable([path])
    if path.name.startswith(".") or path.name.upper() in NO_IMAGES:  # which `image_files` leaves out
        return volume_of(_examined(file_series, [], set()))
    chosen = next(series for series in list_series(path.parent, below=False) if series.key == file_series.key)
    if chosen.problem is not None and len(file_series.frames) > 1:
        chosen = _examined(file_series, [], set())
    return volume_of(chosen)


def _examined(series: Series, unreadable_paths: Sequence[UnreadablePath], image_folders: Collection[Path]) -> Series:
    """A series with its slices sorted along their normal, or with its problem.

    Args:
        series: as its files state it.
        unreadable_paths: files and folders that cannot be read.
        image_folders: folders that hold slices of any series.
    """
    own_folders = {frame.path.parent for frame in series.frames}

    def may_belong(lost: UnreadablePath) -> bool:
        if lost.uid:
            return lost.uid == series.uid
        return lost.path.parent in own_folders or lost.path.parent not in image_folders

    series = replace(series, frames=_without_copies(series.frames))
    series = replace(series, damaged=tuple(lost.path for lost in unreadable_paths if may_belong(lost)))
    try:
        frames, geometry = ordered(series)
        check_geometry(geometry, series.name)
    except InputError as problem:
        return replace(series, problem=problem)
    return replace(series, frames=frames, geometry=geometry)


def volume_of(series: Series) -> Volume:
    """The volume of a series of `list_series`.

    Raises:
        InputError: its problem, see `ordered` and `check_geometry`; otherwise as `load`.
        OutOfMemoryError: MEMORY.
    """
    if series.problem is not None:
        raise series.problem
    return load(series)


def _choose(listed: list[Series], wanted: str | None, folder: Path) -> Series:
    if wanted is not None:
        name = wanted.strip()
        for key in ("uid", "number", "description"):
            matches = [series for series in listed if getattr(series, key).casefold() == name.casefold()]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise _ask(matches, f"{len(matches)} series have the {key} {name}", listed, folder)
        raise _ask(listed, f"no series has the number or description {name}", listed, folder)
    usable = [series for series in listed if series.problem is None]
    mr = [series for series in listed if series.modality == "MR"]
    most = max((series.slices for series in usable), default=0)
    broken = [series for series in listed if _is_broken(series) and 2 * (series.slices + len(series.damaged)) >= most]
    if usable and broken:
        # The only usable series of a study may be its localizer, and nobody would notice.
        reason = broken[0].problem.title if broken[0].problem else ""
        raise _ask([*usable, *broken], f"{broken[0].name} cannot be used ({reason}), but others can", listed, folder)
    if len(usable) == 1:
        # The series of the patient who is meant may be one that cannot be used.
        if several := several_origins([frame for series in mr if not _is_capture(series) for frame in series.frames]):
            cause = f"the folder holds MR series of several {several}, only one of which can be used"
            raise _ask(usable, cause, listed, folder)
        return usable[0]
    if usable:
        raise _ask(usable, f"the folder holds {len(usable)} series", listed, folder)
    if len(mr) == 1 or len(listed) == 1 or not mr:
        return (mr or listed)[0]
    reasons = "; ".join(f"{series.name}: {series.problem.title}" for series in mr if series.problem)
    raise InputError("INPUT_SERIES", f"no series can be used ({reasons})", "Choose a folder with a sagittal series")


def _is_broken(series: Series) -> bool:
    """Whether a series cannot be used although, as far as its slices tell, it is sagittal."""
    problem = series.problem
    if problem is None or problem.code in ("INPUT_MODALITY", "INPUT_NOT_SAGITTAL"):
        return False
    stated = np.array([frame.orientation for frame in series.frames if len(frame.orientation) == 6])
    if not len(stated):
        return not _is_capture(series)
    if np.abs(stated - stated[0]).max() > TURN:
        return False
    return int(np.argmax(np.abs(np.cross(stated[0, :3], stated[0, 3:])))) == 0


def _ask(offered: Sequence[Series], cause: str, listed: Sequence[Series], folder: Path) -> InputError:
    """The error that lets the user choose by number, or by UID if numbers are ambiguous.

    With several patients or studies, or ambiguous numbers, it also states where in the folder the series lie.
    """
    numbers = [series.number for series in listed]
    by_uid = any(not series.number or numbers.count(series.number) > 1 for series in offered)
    placed = by_uid or bool(several_origins([frame for series in listed for frame in series.frames]))

    def about(series: Series) -> str:
        text = f"{series.number or '-'}: {series.description or 'no description'}, {series.slices} slices"
        if by_uid:
            text += f", UID {series.uid}"
        place = os.path.relpath(os.path.commonpath([frame.path.parent for frame in series.frames]), folder)
        return f"{text}, in {Path(place).as_posix()}" if placed and place != os.curdir else text

    shown = "; ".join(map(about, offered))
    return InputError("INPUT_SERIES", f"{cause} ({shown})", f"Choose one with --series {'UID' if by_uid else 'NUMBER'}")
