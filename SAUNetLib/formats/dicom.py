"""DICOM folders: which series lie in one, and the volume of a series, every slice at its own place."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..volume import Geometry, Volume, check_geometry, orthonormal
from . import itk
from .dicom_elements import PIXEL_DATA, Header, first_text, read_header

UNEVEN = 0.05
"""Slices may lie off their even places by this part of their spacing."""
DRIFT = 0.2
"""Slices may be shifted against each other by this part of a pixel."""
_TURN = 1e-3
"""Direction cosines of slices of one series may differ by this."""
COMPRESSION = 10_000
"""No compression of an MR image reaches this factor; GDCM would allocate what a header pretends."""
_SERIES = 0x0020000E
_POSITION, _ORIENTATION, _PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
_THICKNESS, _SLICE_SPACING = 0x00180050, 0x00180088
_FRAMES, _ROWS, _COLUMNS, _BITS = 0x00280008, 0x00280010, 0x00280011, 0x00280100
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_WANTED = (
    _POSITION, _ORIENTATION, _PIXEL_SPACING, _THICKNESS, _SLICE_SPACING, _FRAMES, _ROWS, _COLUMNS, _BITS, _INTERCEPT,
    _SLOPE,
)  # fmt: skip
_PLANE_POSITION, _PLANE_ORIENTATION, _MEASURES, _TRANSFORMATION = 0x00209113, 0x00209116, 0x00289110, 0x00289145
"""Sequences of an enhanced image. Vendors repeat their elements in private ones, by other conventions."""
_IMAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7")
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"
_CODECS = {
    "ISO_IR 100": "latin-1", "ISO_IR 101": "iso8859-2", "ISO_IR 109": "iso8859-3", "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5", "ISO_IR 127": "iso8859-6", "ISO_IR 126": "iso8859-7", "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9", "ISO_IR 203": "iso8859-15", "ISO_IR 13": "shift_jis", "ISO_IR 166": "tis-620",
    "ISO_IR 87": "iso2022_jp_2", "ISO_IR 159": "iso2022_jp_2", "ISO_IR 149": "euc_kr", "ISO_IR 58": "gb2312",
    "ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk",
}  # fmt: skip
"""Python's names of DICOM's character sets."""
_NO_IMAGES = ("DICOMDIR", "LOCKFILE", "VERSION", "README", "AUTORUN")
"""Files without an ending that lie beside images on a CD."""


@dataclass(frozen=True)
class _Frame:
    """One slice: its file, its number in it, its position and direction cosines (LPS), pixel size (row, column), mm.

    Of a slice whose file states a rescaling for each frame: slope and intercept.
    """

    path: Path
    index: int
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel: tuple[float, ...]
    thickness: float
    rescale: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Lost:
    """What cannot be read: a file that should be an image, or a folder; and its series' UID, where that can be."""

    path: Path
    uid: str = ""


@dataclass(frozen=True)
class Series:
    """A series of a DICOM study.

    Attributes:
        number: series number, as the scanner shows it.
        description: what the scanner's protocol calls it.
        uid: series instance UID.
        modality: such as MR.
        problem: why it cannot be segmented; None for a series that can.
    """

    number: str
    description: str
    uid: str
    modality: str
    problem: InputError | None = None
    frames: tuple[_Frame, ...] = field(default=(), repr=False)
    damaged: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.frames)

    @property
    def name(self) -> str:
        """What messages call it; nothing of the patient."""
        return f"series {self.number or 'without number'}" + (f" ({self.description})" if self.description else "")


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would never begin
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def list_series(folder: str | Path, below: bool = True) -> list[Series]:
    """The series in a folder and, unless told otherwise, those below it, by number. Links to folders are not followed.

    Raises:
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - no failure for a path that no system takes
        raise InputError("INPUT_NOT_FOUND", "there is no such folder", "Check the path")
    found: dict[str, Series] = {}
    lost: list[_Lost] = []
    for path in _files(folder, below, lost):
        read = _read_header(path)
        if read is None:
            lost += [_Lost(path, first_text(path, _SERIES))] if _is_image(path) else []
            continue
        uid = read.uid
        found[uid] = replace(found[uid], frames=found[uid].frames + read.frames) if uid in found else read
    if not found and not lost:
        raise InputError(
            "INPUT_EMPTY",
            "the folder holds no DICOM images",
            "Choose the folder with the study's DICOM files, or give a NIfTI, NRRD or MetaImage file itself",
        )
    if not found:
        raise _damaged([one.path for one in lost])
    # A file whose series is unknown counts against every series in its folder, or against all if its folder has none.
    held = {frame.path.parent for series in found.values() for frame in series.frames}
    listed = [_examined(series, lost, held) for series in found.values()]
    return sorted(listed, key=lambda one: (int(one.number) if one.number.isdecimal() else 1 << 31, one.description))


def read_series(folder: Path, series: str | None) -> Volume:
    """The volume of the series asked for, or of the only one that can be segmented.

    Raises:
        InputError: as `list_series`; INPUT_SERIES where a choice is needed; otherwise the series' own problem.
    """
    chosen = _choose(list_series(folder), series)
    if chosen.problem is not None:
        raise chosen.problem
    return _load(chosen)


def read_beside(path: Path) -> Volume:
    """The volume of the series that one DICOM file belongs to, in its folder.

    Where that is no volume, as when a series holds several time points, an enhanced file's own frames may be one.

    Raises:
        InputError: as `read_series`; INPUT_UNREADABLE for a file without an image.
    """
    own = _read_header(path)
    if own is None and not _is_image(path):
        raise InputError(
            "INPUT_UNREADABLE",
            f"{path.name} is a DICOM file without an image, such as a directory or a report",
            "Give the folder with the study's images",
        )
    if own is None:
        raise _damaged([path])
    chosen = next(one for one in list_series(path.parent, below=False) if one.uid == own.uid)
    if chosen.problem is not None and len(own.frames) > 1:
        chosen = _examined(own, [], set())
    if chosen.problem is not None:
        raise chosen.problem
    return _load(chosen)


def _files(folder: Path, below: bool, lost: list[_Lost]) -> Iterator[Path]:
    """DICOM files, and files that are none because nothing of them arrived; folders that cannot be read are `lost`."""
    for parent, folders, names in os.walk(
        folder, onerror=lambda failure: lost.append(_Lost(Path(str(failure.filename))))
    ):
        folders[:] = sorted(folders) if below else []
        for name in sorted(names):
            path = Path(parent, name)
            if is_dicom(path) or _is_lost(path):
                yield path


def _is_lost(path: Path) -> bool:
    """Whether a file named as images are cannot be opened, or ends before the mark of a DICOM file.

    Before the mark there are 128 zeros: a short file of something else is a note, no image.
    """
    suffix = path.suffix.lower()
    # Also by their UID or a number: an empty file named DONE is a mark.
    named = suffix in (".dcm", ".ima") or suffix[1:].isdecimal() or (not suffix and re.search(r"\d", path.name))
    if not named or path.name.startswith(".") or path.name.upper() in _NO_IMAGES:
        return False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - as above
            return False
        with open(path, "rb") as file:
            head = file.read(132)
        return len(head) < 132 and not any(head)
    except OSError as failure:
        return failure.errno != errno.ELOOP  # a link to itself was never a file


def _damaged(paths: Sequence[Path]) -> InputError:
    more = f", {paths[0].name} and {len(paths) - 1} more" if len(paths) > 1 else f": {paths[0].name}"
    return InputError(
        "INPUT_UNREADABLE",
        f"{len(paths)} DICOM file{'s' if len(paths) > 1 else ''} of the folder cannot be read{more}",
        "Copy or export the study again, uncompressed where there is a choice",
    )


def _choose(listed: list[Series], series: str | None) -> Series:
    if series is not None:
        wanted = series.strip()
        for key in ("uid", "number", "description"):
            matches = [one for one in listed if getattr(one, key).casefold() == wanted.casefold()]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise _ask(matches, f"{len(matches)} series have the {key} {wanted}", by_uid=True)
        raise _ask(listed, f"no series has the number or description {wanted}")
    usable = [one for one in listed if one.problem is None]
    most = max((one.slices for one in usable), default=0)
    broken = [one for one in listed if _is_broken(one) and 2 * (one.slices + len(one.damaged)) >= most]
    if usable and broken:
        # The only usable series of a study may be its localizer, and nobody would know.
        reason = broken[0].problem.title if broken[0].problem else ""
        raise _ask([*usable, *broken], f"{broken[0].name} cannot be used ({reason}), others can")
    if len(usable) == 1:
        return usable[0]
    if usable:
        numbers = {one.number for one in usable}
        raise _ask(usable, f"the folder holds {len(usable)} series", by_uid=len(numbers) < len(usable))
    mr = [one for one in listed if one.modality == "MR"]
    if len(mr) == 1 or len(listed) == 1 or not mr:
        return (mr or listed)[0]
    reasons = "; ".join(f"{one.name}: {one.problem.title}" for one in mr if one.problem)
    raise InputError("INPUT_SERIES", f"no series can be used ({reasons})", "Choose the folder of a sagittal series")


def _is_broken(series: Series) -> bool:
    """Whether a series is a sagittal one that something is wrong with, as far as its slices tell."""
    problem = series.problem
    if problem is None or problem.code in ("INPUT_MODALITY", "INPUT_NOT_SAGITTAL"):
        return False
    stated = np.array([frame.orientation for frame in series.frames if len(frame.orientation) == 6])
    if not len(stated) or np.abs(stated - stated[0]).max() > _TURN:
        return False
    return int(np.argmax(np.abs(np.cross(stated[0, :3], stated[0, 3:])))) == 0


def _ask(offered: list[Series], cause: str, by_uid: bool = False) -> InputError:
    shown = "; ".join(
        f"{one.number or '-'}: {one.description or 'no description'}, {one.slices} slices"
        + (f", UID {one.uid}" if by_uid else "")
        for one in offered
    )
    return InputError("INPUT_SERIES", f"{cause} ({shown})", f"Choose one with --series {'UID' if by_uid else 'NUMBER'}")


def _reader() -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    return reader


def _read_header(path: Path) -> Series | None:
    """A file as a series of its own; None where it is no readable image."""
    reader = _reader()
    try:
        header = read_header(path, _WANTED)
        if not _whole(header):
            return None
        with itk.readable(path) as place, itk.unheard():
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
    except (OSError, ValueError, RuntimeError):
        return None

    def raw(key: str) -> bytes:
        return reader.GetMetaData(key).encode("utf-8", "surrogateescape") if reader.HasMetaDataKey(key) else b""

    character_sets = raw("0008|0005").decode("ascii", "replace")

    def text(key: str) -> str:
        return " ".join(_decoded(raw(key), character_sets).replace("\0", "").split())

    columns, rows, *deeper = reader.GetSize()
    if text("0028|0008") not in ("", "0", "1") or not text("0020|0032"):
        frames = _multi_frames(path, header, (rows, columns), deeper[0] if deeper else 1)
    else:
        spread = [value for key in ("0018|0088", "0018|0050") for value in _numbers(text(key)) if value > 0] or [0.0]
        frames = (
            _Frame(
                path, 0, (rows, columns), _numbers(text("0020|0032")), _numbers(text("0020|0037")),
                _numbers(text("0028|0030")), spread[0],
            ),
        )  # fmt: skip
    return Series(
        text("0020|0011"), text("0008|103e"), text("0020|000e"), text("0008|0060") or "unknown",
        frames=frames,
    )  # fmt: skip


def _decoded(raw: bytes, character_sets: str) -> str:
    """A text in the character sets that its file states (the standard's part 3, C.12.1.1.2), else in UTF-8 or Latin."""
    terms = [term.strip().upper().replace("ISO 2022 IR", "ISO_IR") for term in character_sets.split("\\")]
    stated = [_CODECS[term] for term in terms if term in _CODECS]
    plain = re.sub(rb"\x1b\$\)[AC]", b"", raw)  # announces what euc_kr and gb2312 know without
    # Latin letters are often stated of UTF-8, which hardly any other text is by chance; longer codes state themselves.
    short = all(codec.startswith(("iso8859", "latin", "tis")) for codec in stated)
    for codec in ("utf-8", *reversed(stated)) if short else (*reversed(stated), "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            return plain.decode(codec)
    return plain.decode("latin-1")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split("\\") if part.strip())
    except ValueError:
        return ()


def _multi_frames(path: Path, header: Header, size: tuple[int, int], count: int) -> tuple[_Frame, ...]:
    """The frames of an enhanced image, placed by the positions in its own header.

    ITK gives no access to sequences and falls back to voxels of 1 mm where frames are uneven. Positions that do not
    match the frames in number stay unknown, and the series is refused.
    """

    def elements(tag: int, within: int) -> list[tuple[float, ...]]:
        return [numbers for numbers in map(_numbers, header.texts(tag, within)) if numbers]

    def per_frame(values: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        if len(values) == count:
            return values
        return [values[0]] * count if len(set(values)) == 1 else [()] * count

    places = elements(_POSITION, _PLANE_POSITION)
    if len(places) != count:
        return (_Frame(path, 0, size, (), (), (), 0.0),)
    turns = per_frame(elements(_ORIENTATION, _PLANE_ORIENTATION))
    pixels = per_frame(elements(_PIXEL_SPACING, _MEASURES))
    spread = [value for tag in (_SLICE_SPACING, _THICKNESS) for (value, *_) in elements(tag, _MEASURES) if value > 0]
    slopes, intercepts = ([value for (value, *_) in elements(tag, _TRANSFORMATION)] for tag in (_SLOPE, _INTERCEPT))
    scales = list(zip(slopes, intercepts, strict=False))
    stated = len(scales) == count and len(set(scales)) > 1
    return tuple(
        _Frame(
            path, index, size, place, turns[index], pixels[index], (spread or [0.0])[0],
            scales[index] if stated else None,
        )
        for index, place in enumerate(places)
    )  # fmt: skip


def _whole(header: Header) -> bool:
    """Whether a file holds as many pixels as its header declares; GDCM allocates these before it looks for them."""
    rows, columns, bits = (header.short(tag, 0) for tag in (_ROWS, _COLUMNS, _BITS))
    frames = int((header.texts(_FRAMES, 0) or ["1"])[0] or 1)
    wanted = rows * columns * max(1, frames) * bits // 8
    return 0 < wanted <= header.length(PIXEL_DATA) * (COMPRESSION if header.compressed else 1)


def _is_image(path: Path) -> bool:
    """Whether an unreadable file should have been an image: the SOP class in its preamble says so."""
    if _is_lost(path):
        return True
    with open(path, "rb") as file:
        head = file.read(4096)
    match = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if match is None:
        return False
    text = head[match.end() : match.end() + struct.unpack("<H", match[1])[0]].decode("latin-1").rstrip("\0 ")
    return text != _SPECTROSCOPY and any(text == one or text.startswith(one + ".") for one in _IMAGE_CLASSES)


def _examined(series: Series, lost: Sequence[_Lost], held: Collection[Path]) -> Series:
    """A series with its slices in order along their normal, or with its problem.

    Args:
        series: as its files say.
        lost: what cannot be read.
        held: folders that hold slices of any series.
    """
    own = {frame.path.parent for frame in series.frames}
    damaged = tuple(
        one.path
        for one in lost
        if (one.uid == series.uid if one.uid else one.path.parent in own or one.path.parent not in held)
    )
    series = replace(series, damaged=damaged)
    try:
        frames, geometry = _ordered(series)
        check_geometry(geometry, series.name)
    except InputError as problem:
        return replace(series, problem=problem)
    return replace(series, frames=frames)


def _ordered(series: Series) -> tuple[tuple[_Frame, ...], Geometry]:
    """The frames from one side to the other, and the grid that they make."""
    name, frames = series.name, series.frames
    if series.modality != "MR":
        raise InputError("INPUT_MODALITY", f"{name} is of modality {series.modality}", "Choose an MR series")
    if series.damaged:
        raise _damaged(series.damaged)
    _check_frames(frames, name)
    first = frames[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    positions, heights = positions[order], heights[order]
    step = _step(heights, first.thickness, name)
    drift = positions - positions[0] - np.outer(heights - heights[0], normal)
    if np.abs(drift).max() > DRIFT * min(first.pixel):
        raise InputError(
            "INPUT_DIRECTION",
            f"the slices of {name} are shifted against each other: a sheared acquisition",
            "Resample it to a grid with perpendicular axes first (in Slicer: harden the acquisition transform)",
        )
    geometry = Geometry(
        (first.size[1], first.size[0], len(frames)),
        (first.pixel[1], first.pixel[0], step),
        tuple(float(value) for value in positions[0]),  # type: ignore[arg-type]
        np.column_stack([row, column, normal]),
    )
    return tuple(frames[index] for index in order), geometry


def _check_frames(frames: tuple[_Frame, ...], name: str) -> None:
    """Refuse frames without a place, of different sizes or of different directions."""
    first = frames[0]
    if any(len(frame.position) != 3 or len(frame.orientation) != 6 for frame in frames):
        raise InputError(
            "INPUT_DIRECTION", f"{name} does not say where its slices lie", "Export it again from the scanner or PACS"
        )
    if not orthonormal(np.reshape(first.orientation, (2, 3)).T):
        raise InputError(
            "INPUT_DIRECTION",
            f"the axes of {name} are not perpendicular or not of unit length",
            "Export it again from the scanner or PACS",
        )
    if any(len(frame.pixel) != 2 or min(frame.pixel) <= 0 for frame in frames):
        raise InputError("INPUT_SPACING", f"{name} states no valid pixel size", "Export it again from the scanner")
    if any(np.abs(np.subtract(frame.orientation, first.orientation)).max() > _TURN for frame in frames):
        raise InputError(
            "INPUT_SLICES",
            f"the slices of {name} lie in different directions, as in a localizer",
            "Choose a sagittal series of the study",
        )
    if any(frame.size != first.size or not np.allclose(frame.pixel, first.pixel, rtol=1e-3) for frame in frames):
        raise InputError(
            "INPUT_SLICES", f"the slices of {name} differ in size", "Export the series again, one scan at a time"
        )


def _step(heights: np.ndarray, thickness: float, name: str) -> float:
    """The distance of slices at these heights (mm, rising)."""
    if len(heights) == 1:
        if thickness <= 0:
            raise InputError("INPUT_SPACING", f"{name} states no slice thickness", "Export it again from the scanner")
        return thickness
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if gaps.min() <= 0.01:
        raise InputError(
            "INPUT_SLICES",
            f"{name} has several slices at one place",
            "Give one volume: separate its echoes, time points or copies first",
        )
    if np.abs(gaps - step).max() > UNEVEN * step:
        missing = int(np.maximum(np.rint(gaps / gaps.min()) - 1, 0).sum())
        found = f"misses about {missing} of its slices" if missing else "has unevenly spaced slices"
        raise InputError(
            "INPUT_SLICES",
            f"{name} {found}: they lie {gaps.min():.3g} to {gaps.max():.3g} mm apart",
            "Copy or export the series again, with all its slices",
        )
    return float(heights[-1] - heights[0]) / (len(heights) - 1)


def _load(series: Series) -> Volume:
    frames, geometry = _ordered(series)
    cache: dict[Path, np.ndarray] = {}
    slices = []
    for frame in frames:
        if frame.path not in cache:
            cache.clear()  # single-frame files come once each
            cache[frame.path] = _pixels(frame.path, series)
        slices.append(_rescaled(cache[frame.path][frame.index], frame, series))
    return Volume(np.stack(slices), geometry, series.name)


def _rescaled(pixels: np.ndarray, frame: _Frame, series: Series) -> np.ndarray:
    """A slice by its own slope and intercept; GDCM rescales all frames of a file as its first one."""
    if frame.rescale is None:
        return pixels
    first = next(one.rescale for one in series.frames if one.path == frame.path and one.index == 0)
    slope, intercept = first or (1.0, 0.0)
    stored = (pixels.astype(np.float64) - intercept) / (slope or 1.0)
    return (stored * frame.rescale[0] + frame.rescale[1]).astype(np.float32)


def _pixels(path: Path, series: Series) -> np.ndarray:
    """The voxels (frame, row, column) of a file, rescaled as its header says."""
    try:
        reader = _reader()
        with itk.readable(path) as place, itk.unheard():
            reader.SetFileName(str(place))
            image = reader.Execute()
    except (RuntimeError, MemoryError) as failure:
        if min(reader.GetSpacing(), default=1) <= 0:  # ITK makes no image of it, whatever the slices' positions say
            raise InputError(
                "INPUT_SPACING", f"{series.name} states that its slices lie 0 mm apart", "Export it again from the PACS"
            ) from failure
        raise _damaged([path]) from failure
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError("INPUT_PIXEL_TYPE", f"{series.name} is in colour", "Choose a greyscale MR series")
    voxels = sitk.GetArrayFromImage(image)
    return voxels if voxels.ndim == 3 else voxels[np.newaxis]
