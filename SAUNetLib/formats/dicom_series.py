"""A DICOM series: its slices, their order, and the grid that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..volume import STRAIGHTEN, Geometry, orthonormal, rectified
from .dicom_files import unreadable

UNEVEN = 0.05
"""Slices are refused if a distance between them deviates from the median one by more than this share of it."""
DRIFT = 0.2
"""Slices are refused if shifted relative to the first one by more than this, in pixels."""
TURN = 1e-3
"""Slices are refused if their direction cosines differ from the first one's by more than this."""


@dataclass(frozen=True)
class DicomFrame:
    """A frame in DICOM's sense: one slice of a file, which may hold several.

    Attributes:
        path, index: its file, and its index in it, from 0.
        size: rows and columns.
        position, orientation: of its first pixel, mm, and direction cosines of row and column (LPS); empty if unknown.
        pixel: spacing of rows and of columns, mm.
        thickness: slice spacing as the file states it, else slice thickness, mm.
        rescale: slope and intercept, if they differ between the frames of its file.
        study, patient: UID and ID that the file states.
        instance, sop_class: SOP instance and SOP class UID.
        mosaic: whether it shows all slices of a scan side by side.
        part: for an image in several files its UID, the number of this file and the number of files; else None.
    """

    path: Path
    index: int
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel: tuple[float, ...]
    thickness: float
    rescale: tuple[float, float] | None = None
    study: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)
    instance: str = field(default="", repr=False)
    sop_class: str = field(default="", repr=False)
    mosaic: bool = False
    part: tuple[str, int, int] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Series:
    """A series of a DICOM study.

    Attributes:
        number: series number, as the scanner shows it.
        description: free text from the scanner's protocol or its user.
        uid: series instance UID.
        modality: such as MR.
        problem: why it cannot be segmented; None for a series that can.
        frames: its slices; sorted from one side to the other if the series can be segmented.
        geometry: their grid; None for a series that cannot be segmented.
        damaged: files that belong, or may belong, to this series and cannot be read.
    """

    number: str
    description: str
    uid: str
    modality: str
    problem: InputError | None = None
    frames: tuple[DicomFrame, ...] = field(default=(), repr=False)
    geometry: Geometry | None = field(default=None, repr=False)
    damaged: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return len(self.frames)

    @property
    def key(self) -> str:
        """What its files have in common: the UID; without one, study, patient and number together."""
        return self.uid or "\\".join([self.frames[0].study, self.frames[0].patient, self.number])

    @property
    def name(self) -> str:
        """Its name in messages and batch summaries, including the description, which results do not repeat."""
        return f"series {self.number or 'without a number'}" + (f" ({self.description})" if self.description else "")


def ordered(series: Series) -> tuple[tuple[DicomFrame, ...], Geometry]:
    """The frames sorted from one side to the other, and their grid.

    Raises:
        InputError: INPUT_MODALITY, INPUT_UNREADABLE, INPUT_SERIES, INPUT_DIRECTION, INPUT_SPACING or INPUT_SLICES.
    """
    name, frames = series.name, series.frames
    if series.modality != "MR":
        raise InputError("INPUT_MODALITY", f"{name} is of modality {series.modality}", "Choose an MR series")
    if series.damaged:
        raise unreadable(series.damaged)
    _check_origin(frames, name)
    _check_parts(frames, name)
    _check_frames(frames, name)
    first = frames[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    # Decimal text, often rounded: axes that are not exactly perpendicular would change in NIfTI.
    axes = rectified(np.column_stack([row, column, np.cross(row, column)]))
    normal = axes[:, 2]
    positions = np.array([frame.position for frame in frames])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    positions, heights = positions[order], heights[order]
    step = _step(heights, first.thickness, name)
    drift = positions - positions[0] - np.outer(heights - heights[0], normal)
    if np.abs(drift).max() > DRIFT * min(first.pixel):
        raise InputError(
            "INPUT_DIRECTION",
            f"the slices of {name} are shifted relative to each other: a sheared acquisition",
            STRAIGHTEN,
        )
    geometry = Geometry(
        (first.size[1], first.size[0], len(frames)),
        (first.pixel[1], first.pixel[0], step),
        tuple(float(value) for value in positions[0]),  # type: ignore[arg-type]
        axes,
    )
    return tuple(frames[index] for index in order), geometry


def several_origins(frames: Sequence[DicomFrame]) -> str:
    """Which of "patients" or "studies" these frames have several of; empty if neither."""
    for what, stated in (
        ("patients", {frame.patient for frame in frames}),
        ("studies", {frame.study for frame in frames}),
    ):
        if len(stated - {""}) > 1:
            return what
    return ""


def _check_origin(frames: tuple[DicomFrame, ...], name: str) -> None:
    """Refuse slices of several patients or studies, which a copied UID may bring together."""
    if what := several_origins(frames):
        raise InputError(
            "INPUT_SERIES",
            f"the files of {name} belong to several {what}",
            f"Give a folder with only one of these {what}",
        )


def _check_parts(frames: tuple[DicomFrame, ...], name: str) -> None:
    """Refuse an image in several files if one is missing (DICOM part 3, C.7.6.16.2.2.4)."""
    parts = {frame.part for frame in frames if frame.part}
    for uid, _, total in parts:
        found = len({number for other, number, _ in parts if other == uid})
        if found < total:
            raise InputError(
                "INPUT_SLICES",
                f"{name} consists of {total} files, but only {found} of them {'is' if found == 1 else 'are'} there",
                "Copy or export the series again, with all its files",
            )


def _check_frames(frames: tuple[DicomFrame, ...], name: str) -> None:
    """Refuse mosaics, and frames without a position or of different sizes or orientations."""
    first = frames[0]
    if any(frame.mosaic for frame in frames):
        raise InputError(
            "INPUT_SLICES",
            f"{name} consists of mosaics, images that show all slices of a scan side by side",
            "Export it with one image per slice, or convert it to NIfTI, for example with dcm2niix",
        )
    if any(len(frame.position) != 3 or len(frame.orientation) != 6 for frame in frames):
        raise InputError(
            "INPUT_DIRECTION",
            f"{name} does not state the positions of its slices",
            "Export it again from the scanner or PACS",
        )
    if not orthonormal(np.reshape(first.orientation, (2, 3)).T):
        raise InputError(
            "INPUT_DIRECTION",
            f"the axes of {name} are not perpendicular or not of unit length",
            "Export it again from the scanner or PACS",
        )
    if any(len(frame.pixel) != 2 or min(frame.pixel) <= 0 for frame in frames):
        raise InputError("INPUT_SPACING", f"{name} states no valid pixel size", "Export it again from the scanner")
    if any(np.abs(np.subtract(frame.orientation, first.orientation)).max() > TURN for frame in frames):
        raise InputError(
            "INPUT_SLICES",
            f"the slices of {name} have different orientations, as in a localizer",
            "Choose a sagittal series of the study",
        )
    if any(frame.size != first.size or not np.allclose(frame.pixel, first.pixel, rtol=1e-3) for frame in frames):
        raise InputError(
            "INPUT_SLICES", f"the slices of {name} differ in size", "Export the series again, one scan at a time"
        )


def _step(heights: np.ndarray, thickness: float, name: str) -> float:
    """Slice spacing in mm, given the slices' ascending positions along their normal in mm."""
    if len(heights) == 1:
        if thickness <= 0:
            raise InputError("INPUT_SPACING", f"{name} states no slice thickness", "Export it again from the scanner")
        return thickness
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if gaps.min() <= 0.01:
        raise InputError(
            "INPUT_SLICES",
            f"{name} has several slices at the same position",
            "Give one volume: separate its echoes, time points or copies first",
        )
    if np.abs(gaps - step).max() > UNEVEN * step:
        missing = int(np.maximum(np.rint(gaps / gaps.min()) - 1, 0).sum())
        found = f"is missing about {missing} of its slices" if missing else "has unevenly spaced slices"
        raise InputError(
            "INPUT_SLICES",
            f"{name} {found}: they lie {gaps.min():.3g} to {gaps.max():.3g} mm apart",
            "Copy or export the series again, with all its slices",
        )
    return float(heights[-1] - heights[0]) / (len(heights) - 1)
