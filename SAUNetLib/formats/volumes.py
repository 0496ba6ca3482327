"""Read a volume: a NIfTI, NRRD or MetaImage file, or a series of a DICOM folder."""

from __future__ import annotations

import stat
from pathlib import Path

import SimpleITK as sitk

from ..errors import InputError, UsageError, check_memory
from ..volume import Volume, check_volume
from . import headers, itk
from .atomic import check_writable, ending_of, why_absent, write_beside
from .dicom import read_beside, read_series, volume_of
from .dicom_files import is_dicom
from .dicom_series import Series
from .endings import IMAGES, VOLUMES

__all__ = ["Series", "read_image", "read_volume", "write_volume"]

_IMAGE_IO = {
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}


def read_volume(path: str | Path | Series, series: str | None = None) -> Volume:
    """Read the volume in a file or DICOM folder and check it with `check_volume`. The input is not changed.

    Args:
        path: NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd) file; folder with a DICOM study, also
            in subfolders; a DICOM file, which stands for its series; or one of `dicom.list_series`.
        series: number, instance UID or description of the series if a folder holds several; not with a file.

    Returns:
        The volume; voxels (k, j, i). Its name is the file's, or "series N (description)" for DICOM: free text from the
        scanner or its user.

    Raises:
        InputError: as `read_image`, `Volume.from_sitk` and `check_volume`; for DICOM also INPUT_MODALITY, INPUT_SERIES
            or INPUT_SLICES.
        UsageError: USAGE, a series was given with a file.
        OutOfMemoryError: MEMORY.
    """
    if isinstance(path, Series):
        volume = volume_of(path)
        check_volume(volume)
        return volume
    if path == "":  # an unset variable; as a path it would be the current folder
        raise InputError("INPUT_NOT_FOUND", "no path was given", "Give the path of an image")
    path = Path(path)
    mode = _mode(path)
    if series is not None and not stat.S_ISDIR(mode):
        raise UsageError(
            "USAGE",
            f"{path.name} is a file, but a series can only be chosen from a folder",
            "Give the folder with the DICOM study, or leave out the series",
        )
    if stat.S_ISDIR(mode):
        volume = read_series(path, series)
    elif stat.S_ISREG(mode) and not ending_of(path, IMAGES) and is_dicom(path):
        volume = read_beside(path)
    else:
        volume = Volume.from_sitk(read_image(path), path.name)
    check_volume(volume)
    return volume


def read_image(path: str | Path) -> sitk.Image:
    """Read a NIfTI, NRRD or MetaImage file with ITK, after checking that its header can be trusted.

    Raises:
        InputError: INPUT_NOT_FOUND, INPUT_EMPTY, INPUT_UNREADABLE, INPUT_TOO_LARGE, INPUT_SPACING, INPUT_DIRECTION or
            INPUT_VALUES.
        OutOfMemoryError: MEMORY.
    """
    path = Path(path)
    mode, ending = _mode(path), ending_of(path, IMAGES)
    regular = stat.S_ISREG(mode)
    if not regular or not ending:
        if regular and path.stat().st_size == 0:
            raise InputError("INPUT_EMPTY", f"{path.name} is an empty file", "Copy or export the image again")
        if stat.S_ISDIR(mode) or is_dicom(path):  # asked for a segmentation: `read_volume` reads DICOM images
            raise InputError(
                "INPUT_UNREADABLE",
                f"{path.name} is not a segmentation file; those in DICOM are not read",
                "Convert it to .nii.gz or .seg.nrrd first, for example in Slicer or with dcmqi's segimage2itkimage",
            )
        raise InputError(
            "INPUT_UNREADABLE",
            f"{path.name} is not an image in a known format",
            f"Give a file that ends in {', '.join(IMAGES)}, or a folder with a DICOM study",
        )
    voxel_bytes = headers.check_file(path, ending)
    try:
        with itk.readable(path, ending, headers.voxel_file(path, ending)) as place, itk.unheard():
            return sitk.ReadImage(str(place), imageIO=_IMAGE_IO[ending])
    except (RuntimeError, MemoryError) as failure:
        check_memory(failure, voxel_bytes)
        raise headers.damaged(path, "ITK finds it incomplete or malformed") from failure


def _mode(path: Path) -> int:
    """The file mode at a path, with links followed.

    Raises:
        InputError: INPUT_NOT_FOUND: nothing is there, a symlink loop, or an invalid path; INPUT_UNREADABLE if a folder
            on the way cannot be opened.
    """
    try:
        return path.stat().st_mode
    except PermissionError as failure:
        cause = f"{path.name[:100]} is in a folder that cannot be opened"
        raise InputError("INPUT_UNREADABLE", cause, "Check the permissions of this folder") from failure
    except (OSError, ValueError) as failure:
        why = why_absent(path)
        cause = f"there is no file or folder {path.name[:100]}" + (f": {why}" if why else "")
        raise InputError("INPUT_NOT_FOUND", cause, "Check the path") from failure


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write a volume as .nii, .nii.gz, .nrrd or .mha; the file appears complete or not at all.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    path = Path(path)
    ending = check_writable(path, VOLUMES)
    with write_beside(path, ending) as temporary:
        with itk.writable(temporary) as place, itk.unheard():
            sitk.WriteImage(volume.to_sitk(), str(place), useCompression=True)
        headers.check_written(temporary, ending)
