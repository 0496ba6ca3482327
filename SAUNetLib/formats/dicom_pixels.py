"""Read the pixels of a DICOM series, every slice at its own position."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, check_memory
from ..volume import Volume
from . import itk
from .dicom_elements import PIXEL_DATA, Header, read_header
from .dicom_files import unreadable
from .dicom_headers import gdcm_reader
from .dicom_series import DicomFrame, Series

_ALLOCATED, _STORED, _SIGNED, _PADDING = 0x00280100, 0x00280101, 0x00280103, 0x00280120
_OVERLAYS = tuple(0x60000102 + (number << 16) for number in range(0, 32, 2))
"""Overlay Bit Position: in old files, the bit of the pixels that holds an overlay."""
_CHUNK = 1 << 22
"""Bytes that are checked at a time."""


def load(series: Series) -> Volume:
    """The volume of a series that can be segmented; voxels (k, j, i), k from one side to the other.

    Raises:
        InputError: INPUT_UNREADABLE, INPUT_SPACING or INPUT_PIXEL_TYPE.
        OutOfMemoryError: MEMORY.
    """
    assert series.geometry is not None
    cache: dict[Path, np.ndarray] = {}
    slices = []
    for frame in series.frames:
        if frame.path not in cache:
            cache.clear()  # each single-frame file is needed only once
            cache[frame.path] = _pixels(frame.path, series)
        slices.append(_rescaled(cache[frame.path][frame.index], frame, series))
    return Volume(np.stack(slices), series.geometry, series.name)


def _rescaled(pixels: np.ndarray, frame: DicomFrame, series: Series) -> np.ndarray:
    """Rescale a slice by its own slope and intercept; GDCM applies the first frame's to all frames of a file."""
    if frame.rescale is None:
        return pixels
    first = next(other.rescale for other in series.frames if other.path == frame.path and other.index == 0)
    slope, intercept = first or (1.0, 0.0)
    stored = (pixels.astype(np.float64) - intercept) / (slope or 1.0)
    return (stored * frame.rescale[0] + frame.rescale[1]).astype(np.float32)


def _pixels(path: Path, series: Series) -> np.ndarray:
    """The voxels (frame, row, column) of a file, rescaled as its header says."""
    try:
        reader = gdcm_reader()
        with itk.readable(path) as place, itk.unheard():
            reader.SetFileName(str(place))
            image = reader.Execute()
    except (RuntimeError, MemoryError) as failure:
        check_memory(failure, 2 * math.prod(series.geometry.size) if series.geometry else 0)
        if min(reader.GetSpacing(), default=1) <= 0:  # ITK refuses it, whatever the slices' positions say
            raise InputError(
                "INPUT_SPACING", f"{series.name} states that its slices lie 0 mm apart", "Export it again from the PACS"
            ) from failure
        raise unreadable([path]) from failure
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError("INPUT_PIXEL_TYPE", f"{series.name} is in colour", "Choose a greyscale MR series")
    _check_bits(path, series)
    voxels = sitk.GetArrayFromImage(image)
    return voxels if voxels.ndim == 3 else voxels[np.newaxis]


def _check_bits(path: Path, series: Series) -> None:
    """Refuse pixels with bits set above Bits Stored: GDCM cuts these off, so that bright pixels would be dark.

    They occur if a program changed the values but not Bits Stored, or uses the upper bits (High Bit), which GDCM
    ignores. Allowed there are overlays, copies of the sign bit, and padding that becomes 0. 32-bit pixels with Bits
    Stored below 32 are refused, too, as GDCM misreads them.
    """
    try:
        header = read_header(path, (_ALLOCATED, _STORED, _SIGNED, _PADDING, *_OVERLAYS))
        allocated, stored = header.short(_ALLOCATED), header.short(_STORED)
        if header.compressed or allocated not in (8, 16, 32) or not 0 < stored < allocated:
            return
        if allocated == 32:
            raise InputError(
                "INPUT_PIXEL_TYPE",
                f"the pixels of {series.name} use {stored} of 32 bits, which is not supported",
                "Export it again with 16-bit pixels, or convert it to NIfTI, for example with dcm2niix",
            )
        above = (1 << allocated) - (1 << stored)
        for tag in _OVERLAYS:
            above &= ~(1 << header.short(tag))
        signs = (0, above) if header.short(_SIGNED) else (0, 0)
        padding = header.short(_PADDING)
        passed = padding if padding < 1 << allocated and not padding & ((1 << stored) - 1) else 0
        whole = True
        for pixels in _stored(path, header, allocated // 8):
            bits = pixels & above
            whole = whole and bool(((bits == signs[0]) | (bits == signs[1]) | (pixels == passed)).all())
    except (OSError, ValueError) as failure:
        raise unreadable([path]) from failure
    if not whole:
        raise InputError(
            "INPUT_UNREADABLE",
            f"the pixels of {series.name} use more than the {stored} bits that its files declare",
            "Export it again from the scanner or PACS, or have Bits Stored and High Bit corrected",
        )


def _stored(path: Path, header: Header, size: int) -> Iterator[np.ndarray]:
    """The stored values, of `size` bytes each, of uncompressed pixels, in chunks."""
    (pixels,) = (element for element in header.elements if element.tag == PIXEL_DATA and not element.depth)
    with open(path, "rb") as file:
        file.seek(pixels.place)
        for begin in range(0, pixels.length // size * size, _CHUNK):
            part = file.read(min(_CHUNK, pixels.length // size * size - begin))
            yield np.frombuffer(part, f"{header.order}u{size}")
