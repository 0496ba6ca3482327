"""Small volumes, label maps and DICOM files for tests, drawn in the patient's space so that any grid shows the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry, Volume

SAGITTAL = ((0, 1, 0), (0, 0, -1), (-1, 0, 0))
"""Directions of the axes i, j, k of an ordinary sagittal series, LPS: backwards, downwards, to the right."""
LEVELS = (("T12", 28, 44), ("L1", 12, 26), ("L2", -6, 10), ("L3", -24, -8), ("L4", -44, -26))


def rotation(degrees: float, axis: tuple[float, float, float] = (1, 2, 3)) -> np.ndarray:
    """Matrix (3, 3) of a turn about an axis (Rodrigues' formula)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def geometry(
    order: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[bool, bool, bool] = (False, False, False),
    oblique: float = 0.0,
    size: tuple[int, int, int] = (48, 64, 7),
    spacing: tuple[float, float, float] = (1.2, 1.5, 3.5),
) -> Geometry:
    """The grid of a sagittal series centred on zero, its axes permuted and reversed, the whole turned (degrees)."""
    direction = (rotation(oblique) @ np.array(SAGITTAL, float).T)[:, list(order)]
    direction = direction * np.where(flips, -1.0, 1.0)
    counts = tuple(size[axis] for axis in order)
    steps = tuple(spacing[axis] for axis in order)
    origin = -(direction * steps) @ ((np.array(counts) - 1) / 2)
    return Geometry(counts, steps, tuple(origin.tolist()), direction)  # type: ignore[arg-type]


def axis_orders() -> list[tuple[tuple[int, int, int], tuple[bool, bool, bool]]]:
    """All 48 orders and senses of the axes."""
    return list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))  # type: ignore[arg-type]


def points(grid: Geometry) -> np.ndarray:
    """Positions (k, j, i, 3) of all voxels, LPS."""
    k, j, i = np.meshgrid(*(np.arange(count) for count in reversed(grid.size)), indexing="ij")
    return grid.points(np.stack([i, j, k], axis=-1))


def labels_at(places: np.ndarray, oblique: float = 0.0) -> np.ndarray:
    """Label values (uint8) at positions (..., 3): five vertebrae with posterior elements, their discs and the canal."""
    from SAUNetLib.anatomy import value_of

    left, back, up = np.moveaxis(np.asarray(places) @ rotation(oblique), -1, 0)
    result = np.zeros(left.shape, np.uint8)
    result[(np.abs(left) < 8) & (np.abs(back - 10) < 6) & (np.abs(up) < 46)] = 2
    for (level, low, high), below in itertools.zip_longest(LEVELS, LEVELS[1:]):
        inside = (up > low) & (up < high)
        result[inside & (np.abs(left) < 11) & (np.abs(back + 8) < 11)] = value_of(level)
        result[inside & (np.abs(left) > 8) & (np.abs(left) < 11) & (np.abs(back - 8) < 8)] = value_of(level)
        result[inside & (np.abs(left) < 4) & (back > 17) & (back < 27) & (up < low + 9)] = value_of(level)
        if below:
            gap = (up <= low) & (up >= below[2])
            result[gap & (np.abs(left) < 11) & (np.abs(back + 8) < 11)] = value_of(f"{level}/{below[0]}")
    return result


def volume(grid: Geometry, oblique: float = 0.0, dtype: Any = np.int16, seed: int = 0) -> Volume:
    """An image on a grid: each structure in its own grey, a gradient from top to bottom, some noise."""
    places = points(grid)
    labels = labels_at(places, oblique).astype(float)
    noise = np.random.default_rng(seed).normal(0, 8, labels.shape)
    signal = 120 + (labels % 10) * 35 + 150 * (labels == 2) + places[..., 2] * 0.5 + noise
    return Volume(np.clip(signal, 1, 900).astype(dtype), grid, "phantom.nii.gz")


def segmentation(grid: Geometry, oblique: float = 0.0, **rest: Any) -> Segmentation:
    """The exact segmentation of `volume` on the same grid."""
    return Segmentation(labels_at(points(grid), oblique), grid, **rest)


def dicom_dataset(multi_frame: bool = False, **elements: Any) -> Any:
    """A minimal MR image as a pydicom data set; elements by keyword replace or add, None removes."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

    data, data.file_meta = Dataset(), FileMetaDataset()
    data.SOPClassUID = EnhancedMRImageStorage if multi_frame else MRImageStorage
    data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID = "1.2.3"
    data.PatientName, data.PatientID = "Secret^Name", "SECRET-ID"
    data.Modality = "MR"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    for key, value in elements.items():
        if value is not None:
            setattr(data, key, value)
        elif key in data:
            delattr(data, key)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def write_dicom_series(
    folder: Path, source: Volume, number: int = 4, description: str = "T2 sag", shift: float = 0.0, **elements: Any
) -> list[Path]:
    """A volume as one DICOM file per slice k; `shift` mm moves each slice along its rows against the one before."""
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    grid = source.geometry
    direction, uid, paths = np.asarray(grid.direction), generate_uid(), []
    for k, pixels in enumerate(source.voxels):
        position = grid.points(np.array([0, 0, k])) + k * shift * direction[:, 0]
        data = dicom_dataset(
            SeriesInstanceUID=uid, SeriesNumber=number, SeriesDescription=description, InstanceNumber=k + 1,
            Rows=pixels.shape[0], Columns=pixels.shape[1], PixelData=pixels.astype(np.uint16).tobytes(),
            ImagePositionPatient=[float(f"{value:.6f}") for value in position],
            ImageOrientationPatient=[float(f"{value:.8f}") for value in direction[:, :2].T.ravel()],
            PixelSpacing=[grid.spacing[1], grid.spacing[0]], SliceThickness=grid.spacing[2],
        )  # fmt: skip
        for key, value in elements.items():
            setattr(data, key, value)
        # File names in no anatomical order, as on a CD.
        paths.append(folder / f"IM{(k * 7) % 101:03d}-{number}")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_enhanced(path: Path, source: Volume, order: list[int], places: list[float] | None = None) -> None:
    """A volume as one enhanced multi-frame MR file, its frames in an order and, if asked, at other places along k."""
    from pydicom.dataset import Dataset

    def item(**elements: Any) -> Dataset:
        data = Dataset()
        for key, value in elements.items():
            setattr(data, key, value)
        return data

    grid = source.geometry
    direction = np.asarray(grid.direction)
    measures = item(PixelSpacing=[grid.spacing[1], grid.spacing[0]], SliceThickness=grid.spacing[2])
    plane = item(ImageOrientationPatient=[float(f"{value:.8f}") for value in direction[:, :2].T.ravel()])
    frames = []
    for k in order:
        place = grid.points(np.array([0, 0, places[k] if places else k]))
        position = item(ImagePositionPatient=[float(f"{value:.6f}") for value in place])
        frames.append(item(PlanePositionSequence=[position]))
    data = dicom_dataset(
        multi_frame=True, SeriesInstanceUID="1.2.3.9", SeriesNumber=9, SeriesDescription="3D T2",
        NumberOfFrames=len(order), Rows=source.voxels.shape[1], Columns=source.voxels.shape[2],
        PixelData=source.voxels[order].astype(np.uint16).tobytes(),
        SharedFunctionalGroupsSequence=[item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[plane])],
        PerFrameFunctionalGroupsSequence=frames,
    )  # fmt: skip
    data.save_as(path, enforce_file_format=True)
