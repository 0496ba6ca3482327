"""The header of a DICOM file: the series that it belongs to, and where its slices lie."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import check_memory, printable
from . import itk
from .dicom_elements import Header, read_header
from .dicom_series import DicomFrame, Series

COMPRESSION = 10_000
"""Compression factor that no MR image reaches; a file beyond it is refused, as GDCM would allocate what it declares."""
LARGEST = 1e9
"""No position, size or scale of an image reaches this; header values that do are ignored: they break calculations."""
_POSITION, _ORIENTATION, _PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
_THICKNESS, _SLICE_SPACING = 0x00180050, 0x00180088
_FRAMES, _ROWS, _COLUMNS, _BITS = 0x00280008, 0x00280010, 0x00280011, 0x00280100
_INTERCEPT, _SLOPE = 0x00281052, 0x00281053
_PART, _PARTS = 0x00209162, 0x00209163
_WANTED = (
    _POSITION, _ORIENTATION, _PIXEL_SPACING, _THICKNESS, _SLICE_SPACING, _FRAMES, _ROWS, _COLUMNS, _BITS, _INTERCEPT,
    _SLOPE, _PART, _PARTS,
)  # fmt: skip
_PLANE_POSITION, _PLANE_ORIENTATION, _MEASURES, _TRANSFORMATION = 0x00209113, 0x00209116, 0x00289110, 0x00289145
"""Sequences of an enhanced image. Vendors repeat their elements in private sequences, by other conventions."""
_CODECS = {
    "ISO_IR 100": "latin-1", "ISO_IR 101": "iso8859-2", "ISO_IR 109": "iso8859-3", "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5", "ISO_IR 127": "iso8859-6", "ISO_IR 126": "iso8859-7", "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9", "ISO_IR 203": "iso8859-15", "ISO_IR 13": "shift_jis", "ISO_IR 166": "tis-620",
    "ISO_IR 87": "iso2022_jp_2", "ISO_IR 159": "iso2022_jp_2", "ISO_IR 149": "euc_kr", "ISO_IR 58": "gb2312",
    "ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk",
}  # fmt: skip
"""Python's codec for each DICOM character set."""


def gdcm_reader() -> sitk.ImageFileReader:
    """ITK's DICOM reader, regardless of file names."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    return reader


def read_as_series(path: Path) -> Series | None:
    """A file as a series of its own; None if it is not a readable image.

    Raises:
        InputError: as `itk.readable`.
        OutOfMemoryError: MEMORY.
    """
    reader = gdcm_reader()
    try:
        header = read_header(path, _WANTED)
        if not _whole(header):
            return None
        with itk.readable(path) as place, itk.unheard():
            reader.SetFileName(str(place))
            reader.ReadImageInformation()
    except (OSError, ValueError, RuntimeError) as failure:
        check_memory(failure)
        return None

    def raw(key: str) -> bytes:
        return reader.GetMetaData(key).encode("utf-8", "surrogateescape") if reader.HasMetaDataKey(key) else b""

    character_sets = raw("0008|0005").decode("ascii", "replace")

    def text(key: str) -> str:
        return printable(" ".join(_decoded(raw(key), character_sets).replace("\0", "").split()))

    columns, rows, *deeper = reader.GetSize()
    if text("0028|0008") not in ("", "0", "1") or not text("0020|0032"):
        frames = _multi_frames(path, header, (rows, columns), deeper[0] if deeper else 1)
    else:
        spread = [value for key in ("0018|0088", "0018|0050") for value in _numbers(text(key)) if value > 0] or [0.0]
        frames = (
            DicomFrame(
                path, 0, (rows, columns), _numbers(text("0020|0032")), _numbers(text("0020|0037")),
                _numbers(text("0028|0030")), spread[0],
            ),
        )  # fmt: skip
    parts = header.short(_PARTS)
    about: dict[str, Any] = {
        "study": text("0020|000d"), "patient": text("0010|0020"),
        "instance": text("0008|0018"), "sop_class": text("0008|0016"),
        "mosaic": "MOSAIC" in text("0008|0008").split("\\"),
        "part": (text("0020|9161"), header.short(_PART), parts) if parts else None,
    }  # fmt: skip
    return Series(
        text("0020|0011"), text("0008|103e"), text("0020|000e"), text("0008|0060") or "unknown",
        frames=tuple(replace(frame, **about) for frame in frames),
    )  # fmt: skip


def _decoded(raw: bytes, character_sets: str) -> str:
    """A text decoded by the character sets that its file states (DICOM part 3, C.12.1.1.2), else as UTF-8 or Latin."""
    terms = [term.strip().upper().replace("ISO 2022 IR", "ISO_IR") for term in character_sets.split("\\")]
    stated = [_CODECS[term] for term in terms if term in _CODECS]
    plain = re.sub(rb"\x1b\$\)[AC]", b"", raw)  # escapes that euc_kr and gb2312 do not need
    # UTF-8 is often declared as Latin, and other text is hardly ever valid UTF-8; multi-byte declarations are trusted.
    short = all(codec.startswith(("iso8859", "latin", "tis")) for codec in stated)
    for codec in ("utf-8", *reversed(stated)) if short else (*reversed(stated), "utf-8"):
        with contextlib.suppress(UnicodeDecodeError):
            return plain.decode(codec)
    return plain.decode("latin-1")


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a text; empty if one of them is invalid, infinite or beyond `LARGEST`."""
    try:
        numbers = tuple(float(part) for part in text.split("\\") if part.strip())
    except ValueError:
        return ()
    return numbers if all(abs(number) < LARGEST for number in numbers) else ()


def _multi_frames(path: Path, header: Header, size: tuple[int, int], count: int) -> tuple[DicomFrame, ...]:
    """The frames of an enhanced image, placed by the positions in its own header.

    ITK gives no access to sequences and falls back to voxels of 1 mm if frames are unevenly spaced. If there are not
    as many positions as frames, they stay unknown, and the series is refused.
    """

    def elements(tag: int, within: int) -> list[tuple[float, ...]]:
        return [numbers for numbers in map(_numbers, header.texts(tag, within)) if numbers]

    def per_frame(values: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        if len(values) == count:
            return values
        return [values[0]] * count if len(set(values)) == 1 else [()] * count

    places = elements(_POSITION, _PLANE_POSITION)
    if len(places) != count:
        return tuple(DicomFrame(path, index, size, (), (), (), 0.0) for index in range(count))
    turns = per_frame(elements(_ORIENTATION, _PLANE_ORIENTATION))
    pixels = per_frame(elements(_PIXEL_SPACING, _MEASURES))
    spread = [value for tag in (_SLICE_SPACING, _THICKNESS) for (value, *_) in elements(tag, _MEASURES) if value > 0]
    slopes, intercepts = (
        # An invalid number makes the voxels NaN, which is refused; GDCM would take the first frame's.
        [(_numbers(text) or (float("nan"),))[0] for text in header.texts(tag, _TRANSFORMATION) if text]
        for tag in (_SLOPE, _INTERCEPT)
    )
    scales = list(zip(slopes, intercepts, strict=False))
    stated = len(scales) == count and len(set(scales)) > 1
    return tuple(
        DicomFrame(
            path, index, size, place, turns[index], pixels[index], (spread or [0.0])[0],
            scales[index] if stated else None,
        )
        for index, place in enumerate(places)
    )  # fmt: skip


def _whole(header: Header) -> bool:
    """Whether a file holds as many pixels as its header declares; GDCM allocates these before it looks for them."""
    rows, columns, bits = (header.short(tag) for tag in (_ROWS, _COLUMNS, _BITS))
    frames = int((header.texts(_FRAMES, 0) or ["1"])[0] or 1)
    wanted = rows * columns * max(1, frames) * bits // 8
    return 0 < wanted <= header.pixel_bytes * (COMPRESSION if header.compressed else 1)
