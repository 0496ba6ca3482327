"""The pixels of a DICOM series, every slice at its own place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, check_memory
from ..volume import Volume
from . import itk
from .dicom_files import unreadable
from .dicom_headers import gdcm_reader
from .dicom_series import DicomFrame, Series


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
            cache.clear()  # single-frame files come once each
            cache[frame.path] = _pixels(frame.path, series)
        slices.append(_rescaled(cache[frame.path][frame.index], frame, series))
    return Volume(np.stack(slices), series.geometry, series.name)


def _rescaled(pixels: np.ndarray, frame: DicomFrame, series: Series) -> np.ndarray:
    """A slice by its own slope and intercept; GDCM rescales all frames of a file as its first one."""
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
        if min(reader.GetSpacing(), default=1) <= 0:  # ITK makes no image of it, whatever the slices' positions say
            raise InputError(
                "INPUT_SPACING", f"{series.name} states that its slices lie 0 mm apart", "Export it again from the PACS"
            ) from failure
        raise unreadable([path]) from failure
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError("INPUT_PIXEL_TYPE", f"{series.name} is in colour", "Choose a greyscale MR series")
    voxels = sitk.GetArrayFromImage(image)
    return voxels if voxels.ndim == 3 else voxels[np.newaxis]
