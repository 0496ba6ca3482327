"""Small volumes, label maps, spines, pairs to train on and DICOM files for tests.

Structures on the grids of `geometry` are defined in patient space, so any grid shows the same.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from SAUNetLib.anatomy import CANAL, DISC, VERTEBRA, encodings, structures, value_of
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry, Volume, to_sitk

SLICES_TO_LEFT = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
"""Columns: the axes i, j, k of a right-handed sagittal stack in LPS: to posterior, to inferior, to the left."""
SLICES_TO_RIGHT = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
"""The same for an ordinary sagittal series, whose slices run to the right: left-handed."""
LEVELS = (("T12", 28, 44), ("L1", 12, 26), ("L2", -6, 10), ("L3", -24, -8), ("L4", -44, -26))


def least_seconds(action: Callable[[], object], times: int = 3) -> float:
    """Least processor time of several runs of an action, in s, for comparison with another one in the same test."""

    def once() -> float:
        started = time.process_time()
        action()
        return time.process_time() - started

    return min(once() for _ in range(times))


def to_classes(labels: np.ndarray) -> np.ndarray:
    """Label values of the levels as the network's classes."""
    return encodings()["levels"].to_classes(labels)


def rotation(degrees: float, axis: tuple[float, float, float] = (1, 2, 3)) -> np.ndarray:
    """Matrix (3, 3) of a rotation about an axis (Rodrigues' formula)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def euler(angles: tuple[float, float, float]) -> np.ndarray:
    """Matrix (3, 3) of rotations about the three axes, in degrees."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.deg2rad(angles).tolist())
    return np.array(transform.GetMatrix()).reshape(3, 3)


def rearranged(source: Volume, order: tuple[int, int, int], reverse: tuple[bool, bool, bool]) -> Volume:
    """The same voxels at the same places, with the axes (i, j, k) in another order and direction."""
    image = sitk.Flip(sitk.PermuteAxes(source.to_sitk(), order), reverse)
    return Volume.from_sitk(image, source.name)


def geometry(
    order: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[bool, bool, bool] = (False, False, False),
    oblique: float = 0.0,
    size: tuple[int, int, int] = (48, 64, 7),
    spacing: tuple[float, float, float] = (1.2, 1.5, 3.5),
) -> Geometry:
    """The grid of a sagittal series centred on zero, its axes permuted and reversed, the whole rotated (degrees)."""
    direction = (rotation(oblique) @ SLICES_TO_RIGHT)[:, list(order)]
    direction = direction * np.where(flips, -1.0, 1.0)
    counts = tuple(size[axis] for axis in order)
    steps = tuple(spacing[axis] for axis in order)
    origin = -(direction * steps) @ ((np.array(counts) - 1) / 2)
    return Geometry(counts, steps, tuple(origin.tolist()), direction)  # type: ignore[arg-type]


def axis_orders() -> list[tuple[tuple[int, int, int], tuple[bool, bool, bool]]]:
    """All 48 orders and directions of the axes."""
    return list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))  # type: ignore[arg-type]


def points(grid: Geometry) -> np.ndarray:
    """Positions (k, j, i, 3) of all voxels, LPS."""
    k, j, i = np.meshgrid(*(np.arange(count) for count in reversed(grid.size)), indexing="ij")
    return grid.points(np.stack([i, j, k], axis=-1))


def labels_at(places: np.ndarray, oblique: float = 0.0) -> np.ndarray:
    """Label values (uint8) at positions (..., 3): five vertebrae with posterior elements, their discs and the canal."""
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
    """An image on a grid: a grey value per structure, a gradient from top to bottom, some noise."""
    places = points(grid)
    labels = labels_at(places, oblique).astype(float)
    noise = np.random.default_rng(seed).normal(0, 8, labels.shape)
    signal = 120 + (labels % 10) * 35 + 150 * (labels == 2) + places[..., 2] * 0.5 + noise
    return Volume(np.clip(signal, 1, 900).astype(dtype), grid, "phantom.nii.gz")


def segmentation(grid: Geometry, oblique: float = 0.0, **rest: Any) -> Segmentation:
    """The exact segmentation of `volume` on the same grid."""
    return Segmentation(labels_at(points(grid), oblique), grid, **rest)


# --- a picture for the tiny network, pairs to train on ---------------------------------------------


def picture(
    shape: tuple[int, int, int] = (4, 64, 48),
    spacing: tuple[float, float, float] = (1.2, 1.2, 4.0),
    direction: np.ndarray = SLICES_TO_LEFT,
) -> Volume:
    """Smooth blobs (k, j, i), so that the tiny network predicts regions and not noise."""
    noise = sitk.GetImageFromArray(np.random.default_rng(2).normal(0, 1, shape).astype(np.float32))
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(noise, (9.0, 9.0, 0.2)))
    return Volume(smooth, Geometry(shape[::-1], spacing, (10.0, -30.0, 50.0), direction), "picture")


def labelled(seed: int, slices: int = 10) -> tuple[Volume, np.ndarray]:
    """A picture of three bright blocks, and its labels."""
    random = np.random.default_rng(seed)
    labels = np.zeros((slices, 48, 40), np.uint8)
    labels[1:-1, 5:20, 8:20], labels[1:-1, 20:26, 8:20], labels[1:-1, 5:40, 22:28] = 1, 2, 3
    voxels = (np.array([10, 120, 60, 220])[labels] + random.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
    grid = Geometry((40, 48, slices), (1.5, 1.5, 0.9), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
    return Volume(voxels, grid, f"p{seed}"), labels


def write_pair(folder: Path, name: str, image: Volume, labels: np.ndarray, ending: str = ".nii.gz") -> None:
    """One case of a data folder: an image and its labels on the same grid."""
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(image.to_sitk(), str(folder / f"{name}_image{ending}"))
    sitk.WriteImage(to_sitk(labels, image.geometry), str(folder / f"{name}_labels{ending}"))


def read_pair(folder: Path, name: str) -> tuple[Volume, np.ndarray]:
    """Image and class labels (k, j, i) uint8 of one case of a data folder."""
    from SAUNetLib.training.folders import find_cases, read_info, read_labelled  # needs an extra

    read = read_labelled(find_cases(folder)[name], read_info(folder))
    return read.volume, read.labels


def write_pairs(folder: Path, *names: str) -> Path:
    """A data folder with the cases that `labelled` makes from the seeds 0, 1, 2 ... under these names."""
    for seed, name in enumerate(names):
        write_pair(folder, name, *labelled(seed))
    return folder


# --- a spine of blocks ------------------------------------------------------------------------------

BLOCK_VERTEBRAE = ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]
BLOCK_DISCS = ["T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
BODY, GAP = 26.0, 8.0  # mm


def block_spine(
    spacing: tuple[float, float, float] = (4.0, 1.0, 1.0),
    lordosis: float = 0.25,
    top: float = 12.0,
    bottom: float = 30.0,
    hollow: float = 0.0,
) -> np.ndarray:
    """Label values (S, H, W) of T11 to L5 with their discs: bodies, pedicles, facets that touch, spinous processes.

    `lordosis` is the change in slope (mm backwards per mm downwards) from the top to the bottom of the column, whose
    middle is upright; `top` and `bottom` are mm of background above and below. `hollow` is the depth in mm of the lower
    endplates, deepest three quarters of the way to the back, as in most lumbar vertebrae.
    """
    height = top + len(BLOCK_VERTEBRAE) * (BODY + GAP) + bottom
    size = [max(1, round(length / step)) for length, step in zip((56.0, height, 120.0), spacing, strict=True)]
    side, row, column = np.meshgrid(
        *((np.arange(n) + 0.5) * d for n, d in zip(size, spacing, strict=True)), indexing="ij"
    )
    side = np.abs(side - 28.0) if size[0] > 1 else np.zeros_like(side)
    lean = lordosis * ((row - top) / 238.0 - 0.5)  # slope of the column
    back = column - 50.0 - lordosis * 119.0 * ((row - top) / 238.0 - 0.5) ** 2
    down = row - lean * back - top  # position along the column
    labels = np.zeros(side.shape, np.uint8)
    labels[(np.hypot(back - 8, side) < 7) & (row > 2)] = 2
    for n, (vertebra, disc) in enumerate(zip(BLOCK_VERTEBRAE, BLOCK_DISCS, strict=True)):
        start = n * (BODY + GAP)
        share = (back + 32) / 32  # from front to back
        deep = hollow * np.clip(np.minimum(share / 0.75, (1 - share) / 0.25), 0, 1)
        within = (down > start) & (down < start + BODY - deep)
        body = within & (back > -32) & (back < 0) & (side < 22)
        pedicle = (down > start + 3) & (down < start + 14) & (back >= 0) & (back < 14) & (side > 9) & (side < 17)
        lamina = (down > start + 6) & (down < start + 28) & (back > 15) & (back < 22) & (side < 17)
        joint = (down > start - 4) & (down < start + 8) & (back > 8) & (back < 15) & (side > 9) & (side < 17)
        process = (down > start + 12) & (down < start + 32) & (back >= 22) & (back < 46) & (side < 4)
        labels[body | pedicle | lamina | joint | process] = value_of(vertebra)
        between = (down > start + BODY + 1) & (down < start + BODY + GAP - 1)
        labels[between & (back > -32) & (back < 0) & (side < 20)] = value_of(disc)
        labels[(down > start + BODY - deep) & (down <= start + BODY) & (back > -32) & (back < 0) & (side < 20)] = (
            value_of(disc)
        )
    return labels


def class_map() -> np.ndarray:
    """The network's class of each label value (256,), derived independently of the library's own table."""
    kinds = {"vertebra": VERTEBRA, "disc": DISC, "canal": CANAL, "sacrum": VERTEBRA}
    table = np.zeros(256, np.uint8)
    for value, structure in structures().items():
        table[value] = kinds[structure.kind]
    return table


CLASS_OF = class_map()


# --- DICOM ------------------------------------------------------------------------------------------


def dicom_dataset(multi_frame: bool = False, **elements: Any) -> Any:
    """A minimal MR image as a pydicom data set; elements are replaced or added by keyword, or removed by None."""
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
    """A volume as one DICOM file per slice k; each is shifted by `shift` mm along its rows from the one before."""
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
    """A volume as one enhanced multi-frame MR file, with its frames in an order and, if given, at other positions k."""
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
