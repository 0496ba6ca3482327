"""Write and read segmentations: label maps, 3D Slicer segmentations, and the table of structures."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..anatomy import CANAL_VALUE, Encoding, encodings, remapped
from ..errors import InputError
from ..notices import Notice
from ..segmentation import Segmentation, count_labels
from ..volume import Volume, to_sitk
from . import headers, itk
from .atomic import check_writable, ending_of, write_beside
from .endings import SEGMENTATIONS, SEGMENTS, TABLES
from .label_maps import KEY, Header, is_scaled, read_in_short, segmentation_of, stated_encoding, write_label_map
from .label_values import CORD_VALUE, UNKNOWN, Reading, as_labels, has_discs_or_canal, recognise
from .slicer_segments import OVERLAP, SEGMENTS_LEFT_OUT, Marks, lists_segments, read_segments, write_segments
from .volumes import read_image

CORD, SPIDER, ENCODING_ASSUMED = "CORD", "SPIDER", "ENCODING_ASSUMED"
"""Codes of the notices that a label map held a spinal cord; that it had the values of SPIDER's masks; that nothing
confirms its values as TotalSpineSeg's."""
LOST = {CORD: "a spinal cord", OVERLAP: "segments that overlap", SEGMENTS_LEFT_OUT: "segments of other things"}
"""Contents of a file that a label map with one value per voxel cannot keep, by the code of their notice."""


def write_segmentation(segmentation: Segmentation, path: str | Path, marks: Marks | None = None) -> None:
    """Write a segmentation in the format that the path's ending names; only a complete file replaces an existing one.

    ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha``: label map, uint8, on the input's grid. ``.seg.nrrd``: 3D Slicer
    segmentation, one segment per structure present. NRRD and MHA carry provenance, warnings and names as header fields;
    NIfTI has room for the encoding, the words of `notices.CODES` and the model.

    Args:
        segmentation: in any encoding.
        path: the file.
        marks: what the segments of a 3D Slicer segmentation have beyond the standard; not stored in a label map.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    path = Path(path)
    ending = check_writable(path, SEGMENTATIONS)
    with write_beside(path, ending) as temporary:
        if ending == SEGMENTS:
            write_segments(segmentation, temporary, marks or {})
            headers.check_written(temporary, ".nrrd")
        else:
            image = to_sitk(segmentation.labels, segmentation.geometry)
            with itk.unheard():
                write_label_map(image, Header.of(segmentation), temporary, ending)


def write_table(segmentation: Segmentation, path: str | Path) -> None:
    """Write the structures as CSV: value, name, level, kind, voxels, volume_mm3, partial, confidence, snomed_code.

    The confidence of the level, 0 to 1, is empty if unknown.

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    path = Path(path)
    ending = check_writable(path, TABLES)
    with write_beside(path, ending) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("value", "name", "level", "kind", "voxels", "volume_mm3", "partial", "confidence", "snomed_code")
        )
        for row in segmentation.table():
            structure = row.structure
            writer.writerow(
                (structure.value, structure.name, structure.level, structure.kind, row.voxels, f"{row.volume_mm3:.3f}",
                 str(row.partial).lower(), "" if row.confidence is None else f"{row.confidence:.2f}", structure.code)
            )  # fmt: skip


def read_segmentation(path: str | Path, usual: Encoding | None = None) -> Segmentation:
    """A segmentation in any of the formats that `write_segmentation` writes.

    A label map must hold the values of one of `anatomy.encodings`, TotalSpineSeg or SPIDER. A 3D Slicer segmentation,
    or a label map that Slicer exported with its segments in the header, is read by the segments' names, or by their
    codes if a name was changed, whatever label values Slicer gave them; a file that lists none is a label map.
    If some segments are known, unknown ones are left out and named by a notice. Beside the engine's segments, the codes
    of those added by hand do not count: Slicer repeats the last one's.

    Args:
        path: the file.
        usual: the most likely encoding if the file states none and several have its values.

    Raises:
        InputError: INPUT_LABELS for unknown values or segments; otherwise as `read_volume`.
        OutOfMemoryError: MEMORY.
    """
    return _read(Path(path), usual)[0]


def read_truth(
    path: str | Path, usual: Encoding | None = None, strict: bool = False
) -> tuple[Segmentation, np.ndarray]:
    """As `read_segmentation`, for a file with `UNKNOWN` voxels: they become background and are returned separately.

    So do voxels that belong to two segments. If `strict`, every segment must be a structure of the spine.

    Returns:
        The segmentation, and the mask of unknown voxels: (k, j, i) bool.
    """
    return _read(Path(path), usual, UNKNOWN, strict)


def _read(
    path: Path, usual: Encoding | None, unknown: int | None = None, strict: bool = False
) -> tuple[Segmentation, np.ndarray]:
    """The segmentation in a file, and the mask of unknown voxels: of that label value, or where segments overlap."""
    named = ending_of(path, SEGMENTATIONS) == SEGMENTS and os.path.isfile(path)  # noqa: PTH113 - no failure for any path
    image = None if named else read_image(path)
    listed = image is None or lists_segments(image)
    if listed and not str(path).lower().endswith((".nrrd", ".nhdr")):
        raise InputError(
            "INPUT_LABELS",
            f"{path.name} lists 3D Slicer's segments, which only an NRRD file holds completely",
            "Use the .seg.nrrd or .nrrd file that it was converted from",
        )
    if listed:
        drawn = read_segments(path, usual, unknown is not None, strict)
        if drawn is not None:
            return drawn
    image = read_image(path) if image is None else image
    # SimpleITK lists keys that are not UTF-8, but does not accept them.
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.isascii()}
    volume = Volume.from_sitk(image, path.name)
    stored = as_labels(volume.voxels, path.name, is_scaled(image))
    left_out = stored == unknown if unknown is not None else np.zeros(stored.shape, bool)
    stored[left_out] = 0
    _, kept, model = read_in_short(fields.get("descrip", ""))
    values = count_labels(stored).keys()
    if usual is None and set(values) == {CANAL_VALUE}:
        usual = encodings()["levels"]  # a canal alone, as from TotalSpineSeg, is likelier than discs alone
    stated = stated_encoding(image)
    reading, *_ = recognise(values, path.name, stated, usual)
    labels = remapped(stored, {value: ours for value, ours in reading.values.items() if ours != UNKNOWN})
    fields = ({KEY + "model": model} if model else {}) | fields
    read = segmentation_of(labels, volume.geometry, reading.encoding, fields)
    return replace(read, warnings=(*read.warnings, *_how_read(reading, values, stated), *kept)), left_out


def _how_read(reading: Reading, values: Collection[int], stated: str) -> Iterator[Notice]:
    """Notices about a label map whose encoding is foreign or assumed."""
    if reading.name == "totalspineseg" and CORD_VALUE in values:
        text = "is counted as part of the canal"
        if reading.values[CORD_VALUE] == UNKNOWN:
            text = "was left out, since the canal around it is not segmented"
        yield Notice(CORD, f"The spinal cord in this label map (value {CORD_VALUE}) {text}.")
    if reading.name == "spider":
        yield Notice(
            SPIDER, "This label map has SPIDER's values, which do not identify levels, so it has three classes."
        )
    elif values and reading.encoding.name not in ("classes", stated) and not has_discs_or_canal(reading, values):
        text = (
            "The values of this label map were read as TotalSpineSeg's (for example 21 as T1), which the file does not "
            "state. Maps of SPINEPS, VerSe (20 to 24 are L1 to L5) and TotalSegmentator are numbered differently: "
            "check a level."
        )
        yield Notice(ENCODING_ASSUMED, text)
