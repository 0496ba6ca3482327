"""Write and read segmentations: label maps, 3D Slicer segmentations, and the table of structures."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk

from ..anatomy import (
    ABOUT_TAG,
    CANAL_VALUE,
    CATEGORY,
    CONFIDENCE_TAG,
    ENCODING_TAG,
    LEVEL_TAG,
    PARTIAL_TAG,
    REGIONS,
    TERMINOLOGY,
    WARNINGS_TAG,
    Encoding,
    Structure,
    coded_structure,
    encodings,
    is_made_here,
    named_after_term,
    named_structure,
    remapped,
    segment_id,
    tag_text,
)
from ..errors import InputError, check_memory
from ..notices import Notice
from ..segmentation import Segmentation, StructureRow, count_labels
from ..volume import LPS_TO_RAS, MOST_VOXELS, Geometry, Volume, to_sitk
from . import headers, itk
from .atomic import check_writable, ending_of, write_beside
from .endings import SEGMENTATIONS, SEGMENTS, TABLES
from .label_maps import ENCODING, KEY, Header, in_ascii, read_in_short, stated_encoding, write_label_map
from .label_values import CORD_VALUE, UNKNOWN, Reading, has_discs_or_canal, recognise
from .volumes import read_image

CORD, SPIDER, ENCODING_ASSUMED = "CORD", "SPIDER", "ENCODING_ASSUMED"
"""Codes of the notices that a label map held a spinal cord; that it had the values of SPIDER's masks; that nothing
confirms its values as TotalSpineSeg's."""
OVERLAP, SEGMENTS_LEFT_OUT = "OVERLAP", "SEGMENTS_LEFT_OUT"
"""Codes of the notices that segments overlap; that some are unknown."""
LOST = {CORD: "a spinal cord", OVERLAP: "segments that overlap", SEGMENTS_LEFT_OUT: "segments of other things"}
"""Contents of a file that a label map with one value per voxel cannot keep, by the code of their notice."""
_ROUNDED = 0.01
"""Largest distance of a label value from a whole number, as scaling may cause (`is_scaled`); others are refused."""
_OWN_TAGS = (LEVEL_TAG, PARTIAL_TAG, CONFIDENCE_TAG)
"""Tags about the segment itself, rather than the whole result."""
_SEEMS_KNOWN = re.compile(
    r"(?<![a-z])((c|th?|d|l|s|hwk|bwk|lwk|[ctl]vb?)[ ._-]?\d{1,2}(?!\d)|ivd|cord)|\d{1,2}\.? ?(hwk|bwk|lwk)|"
    r"dis[ckq]|canal|kanal|v.?rt.?br|lumb|thora|cervic|sacr|wirbel|wervel|bandscheibe|kreuzbein|"
    r"r.{0,2}ckenmark|myelon|moelle|medulla",
    re.IGNORECASE,
)
"""Found in the name (without accents) of an unknown segment that may be a structure of the spine, which must not get
lost, or a cord, which would leave a hole in the canal. Letters that were not UTF-8 may be any."""
_SEGMENT_KEY = re.compile(r"Segment\d+_")
"""Prefix of the header's entries about a segment."""
_NOT_ASCII = re.compile(rb"\0([0-9a-f]*)\0")
"""Non-ASCII text as passed through slicerio, which writes ASCII only: its UTF-8 as hexadecimal digits."""
_REFERENCE = "Reference image geometry"
"""Slicer's conversion parameter that states the grid of the segmented image."""
Marks = Mapping[int, dict[str, Any]]
"""What a user set on segments in Slicer, by label value: slicerio's status, tags and color, see `read_marks`."""


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
            _write_segments(segmentation, temporary, marks or {})
            headers.check_written(temporary, ".nrrd")
        else:
            image = to_sitk(segmentation.labels, segmentation.geometry)
            with itk.unheard():
                write_label_map(image, _header(segmentation), temporary, ending)


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


def _header(segmentation: Segmentation) -> Header:
    names = {row.structure.value: row.structure.name for row in segmentation.table()}
    return Header(
        segmentation.encoding.name, segmentation.provenance, segmentation.warnings, segmentation.partial, names
    )


def _write_segments(segmentation: Segmentation, path: Path, marks: Marks) -> None:
    import slicerio  # in Slicer, which writes this format itself, it need not be installed

    content: dict[str, Any] = {
        "voxels": segmentation.labels.transpose(2, 1, 0),
        "ijkToLPS": segmentation.geometry.matrix,
        "containedRepresentationNames": ["Binary labelmap"],
        "conversionParameters": [_reference_grid(segmentation.geometry)],
        "segments": [
            _marked(_segment(row, segmentation), marks.get(row.structure.value, {})) for row in segmentation.table()
        ],
    }
    slicerio.write_segmentation(str(path), content | _header(segmentation).fields(), compression_level=6)
    header, end, voxels = path.read_bytes().partition(b"\n\n")
    if b"\0" in header:
        path.write_bytes(_NOT_ASCII.sub(lambda match: bytes.fromhex(match[1].decode()), header) + end + voxels)


def _reference_grid(geometry: Geometry) -> dict[str, str]:
    """The conversion parameter without which Slicer crops to the segments when it saves: voxel to RAS, and extent."""
    ras = (LPS_TO_RAS @ geometry.matrix).ravel()
    extent = (bound for count in geometry.size for bound in (0, count - 1))
    value = "".join(f"{number:.17g};" for number in (*ras, *extent))
    # Slicer reads a parameter only as far as the "&" after it, which slicerio leaves out after the last one.
    return {"name": _REFERENCE, "value": value, "description": "Grid of the segmented image.&"}


def _segment(row: StructureRow, segmentation: Segmentation) -> dict[str, Any]:
    structure, encoding = row.structure, segmentation.encoding.name
    # NRRD readers treat a backslash as an escape, and JSON would escape these characters with one.
    plain = {ord('"'): "'", ord("\\"): "/"}
    warnings = [replace(one, text=in_ascii(one.text).translate(plain)).as_dict() for one in segmentation.warnings]
    tags = {ABOUT_TAG + key: value for key, value in segmentation.provenance.items()} | {
        ENCODING_TAG: encoding,
        WARNINGS_TAG: json.dumps(warnings),
        LEVEL_TAG: structure.level,
        PARTIAL_TAG: "1" if row.partial else "",
        CONFIDENCE_TAG: "" if row.confidence is None else f"{row.confidence:.2f}",
    }
    return {
        "id": segment_id(structure.value, encoding),
        "name": structure.name,
        "nameAutoGenerated": False,
        "color": [round(part / 255, 6) for part in structure.colour],
        "colorAutoGenerated": False,
        "labelValue": structure.value,
        "layer": 0,
        "terminology": {
            "contextName": TERMINOLOGY,
            "category": list(CATEGORY),
            "type": ["SCT", structure.code, structure.meaning],
            "anatomicContextName": REGIONS,
        },
        "tags": {key: tag_text(in_ascii(value)) for key, value in tags.items() if value},
    }


def _marked(segment: dict[str, Any], marks: dict[str, Any]) -> dict[str, Any]:
    return segment | marks | {"tags": segment["tags"] | marks.get("tags", {})}


def read_marks(path: str | Path, encoding: Encoding) -> Marks:
    """What a user, or another program, set on the segments of a 3D Slicer segmentation.

    That is the status, tags that are not ours, and the colour if it is not the structure's. Text is encoded for
    `write_segmentation`, see `_NOT_ASCII`.

    Args:
        path: a file that lists segments, see `is_segment_file`, and can be read.
        encoding: the one in which `read_segmentation` read it.
    """
    segments = _listed_segments(path)
    values = [_value(*one, encoding.structures) for one in zip(segments, _codes(segments), strict=True)]
    return {
        value: _marks(segment, encoding.structures[value].colour)
        for segment, value in zip(segments, values, strict=True)
        if value
    }


def _marks(segment: Mapping[str, Any], standard: Sequence[int]) -> dict[str, Any]:
    tags = segment.get("tags", {})
    marks: dict[str, Any] = {"tags": {_kept(key): _kept(tags[key]) for key in tags if not key.startswith(ABOUT_TAG)}}
    if "status" in segment:
        marks["status"] = _kept(segment["status"])
    colour = segment.get("color", ())
    if len(colour) == 3 and np.abs(np.multiply(colour, 255) - standard).max() > 0.5:  # Slicer rounds
        marks["color"] = colour
    return marks


def _kept(text: str) -> str:
    """Encode a text to pass through slicerio, see `_NOT_ASCII`."""
    return text if text.isascii() and "\0" not in text else f"\0{text.encode().hex()}\0"


def _listed_segments(path: str | Path) -> list[Mapping[str, Any]]:
    """The segments in a header, read as UTF-8, which Slicer writes; slicerio alone drops non-ASCII characters."""
    import slicerio

    with open(path, encoding="utf-8", errors="replace", newline="\n") as lines:
        return cast(list[Mapping[str, Any]], slicerio.read_segmentation(lines, skip_voxels=True).get("segments", []))


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
        drawn = _read_segments(path, usual, unknown is not None, strict)
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
    read = _segmentation(labels, volume.geometry, reading.encoding, fields)
    return replace(read, warnings=(*read.warnings, *_how_read(reading, values, stated), *kept)), left_out


def lists_segments(image: sitk.Image) -> bool:
    """Whether the header of a file lists segments, as Slicer writes them: its label values only number them."""
    return any(map(_SEGMENT_KEY.match, image.GetMetaDataKeys()))


def is_segment_file(path: str | Path) -> bool:
    """Whether a readable file is a .nrrd or .seg.nrrd file that lists segments, see `lists_segments`."""
    if not str(path).lower().endswith(".nrrd"):
        return False
    with open(path, "rb") as file:  # the header ends with the first empty line
        header = itertools.takewhile(bytes.strip, file)
        return any(_SEGMENT_KEY.match(line.decode("latin-1")) for line in header)


def is_scaled(image: sitk.Image) -> bool:
    """Whether the values of a NIfTI file are its stored ones times a factor."""
    key = "scl_slope"
    return image.HasMetaDataKey(key) and image.GetMetaData(key) not in ("0", "1")


def as_labels(voxels: np.ndarray, name: str, scaled: bool = False) -> np.ndarray:
    """Convert voxels of any real type to uint8; values within `_ROUNDED` of a whole number are rounded to it.

    Args:
        voxels: the file's voxels.
        name: the file's name.
        scaled: whether it `is_scaled`.

    Raises:
        InputError: INPUT_LABELS.
    """
    if _off_whole(voxels) <= _ROUNDED and voxels.min() >= -_ROUNDED and voxels.max() <= 255 + _ROUNDED:
        return (voxels if voxels.dtype.kind in "biu" else np.rint(voxels)).astype(np.uint8)
    cause, remedy = "(whole numbers from 0 to 255)", "Give a label map, not an image"
    if scaled:
        cause += "; its header scales the stored values, which rounds them, as nibabel does with get_fdata()"
        remedy += '. If it is one, save its values as whole numbers: np.rint(values).astype("uint8")'
    raise InputError("INPUT_LABELS", f"{name} holds values that are not label values {cause}", remedy)


def _off_whole(voxels: np.ndarray) -> float:
    """The largest distance of a value from a whole number; infinite if any value is not finite."""
    if voxels.dtype.kind in "biu":
        return 0.0
    return max(float(np.abs(part - np.rint(part)).max()) if np.isfinite(part).all() else np.inf for part in voxels)


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


def _likely(stated: str, usual: Encoding | None) -> list[Encoding]:
    """All encodings: first the one that a header states, then the usual one."""
    return sorted(encodings().values(), key=lambda encoding: (encoding.name != stated, encoding is not usual))


def _segmentation(
    labels: np.ndarray, geometry: Geometry, encoding: Encoding, fields: Mapping[str, Any]
) -> Segmentation:
    ours = {key.removeprefix(KEY): str(value) for key, value in fields.items() if key.startswith(KEY)}
    warnings = tuple(
        Notice(key.removeprefix("warning_"), value) for key, value in ours.items() if key.startswith("warning_")
    )
    # A program that changes the values may keep the header, whose numbers then mean something else.
    told = ours.get("partial", "").split() if ours.get("encoding") == encoding.name else []
    partial = frozenset(value for value in encoding.structures if str(value) in told)
    skipped = ("warning_", "label_", "encoding", "partial")
    provenance = {key: value for key, value in ours.items() if not key.startswith(skipped)}
    return Segmentation(labels, geometry, encoding, provenance, warnings, partial)


def _read_segments(
    path: Path, usual: Encoding | None, as_truth: bool, strict: bool
) -> tuple[Segmentation, np.ndarray] | None:
    """A .seg.nrrd file's segmentation, and the mask of unknown voxels; None if it lists no segments but has voxels.

    Voxels in two segments belong to the later one or, in a ground truth, are background and unknown.
    """
    import slicerio

    voxel_bytes = headers.check_file(path, ".nrrd")
    try:
        content = slicerio.read_segmentation(str(path))
        voxels, matrix = content["voxels"], content["ijkToLPS"]
        segments = content["segments"] = _listed_segments(path)
    except Exception as failure:  # slicerio fails on nonsense with any kind of exception
        check_memory(failure, voxel_bytes)
        raise headers.damaged(path, "it is not a complete 3D Slicer segmentation") from failure
    if voxels.ndim not in (3, 4):
        raise InputError("INPUT_DIMENSION", f"{path.name} has {voxels.ndim} dimensions", "Give a 3D segmentation")
    if not segments and voxels.any():
        return None
    _check_binary(content, path.name)
    layers = len(voxels) if voxels.ndim == 4 else 1
    if not all(0 <= segment.get("layer", 0) < layers for segment in segments):
        raise headers.damaged(path, "it lists a segment in a layer that it does not have")
    told = _told_by_tags(segments)
    stated = content.get(ENCODING, told.get(ENCODING, ""))
    encoding, values = _meanings(content, stated, usual, path.name, strict)
    others = _left_out(content, values)
    segments, values = [one for one, value in zip(segments, values, strict=True) if value], list(filter(None, values))
    labels, shared, overlap = _painted(content, segments, values, as_truth)
    cut = frozenset(value for one, value in zip(segments, values, strict=True) if PARTIAL_TAG in one.get("tags", {}))
    left_out = _whole_grid(shared if as_truth else np.zeros_like(shared), matrix, content)[0].transpose(2, 1, 0)
    labels, origin = _whole_grid(labels, matrix, content)
    geometry = replace(Geometry.of_matrix(labels.shape, matrix), origin=tuple(origin.tolist()))
    sure = dict(filter(None, map(_confidence, values, segments)))
    read = _segmentation(np.ascontiguousarray(labels.transpose(2, 1, 0)), geometry, encoding, told | content)
    read = replace(read, partial=cut, confidence=sure)  # from the tags: Slicer keeps nothing else
    return replace(read, warnings=(*read.warnings, *overlap, *others)), np.ascontiguousarray(left_out)


def _check_binary(content: Mapping[str, Any], name: str) -> None:
    """Refuse fractional segments: shares from 0 to 1, which Slicer does not store as label values."""
    voxels = content["voxels"]
    fractional = "fractional" in str(content.get("masterRepresentation", "")).casefold()
    if fractional or voxels.min() < 0 or _off_whole(voxels) > 0:
        raise InputError(
            "INPUT_LABELS",
            f"{name} is a fractional segmentation, whose voxels are shares of segments",
            "Convert it to a binary label map in Slicer (module Segmentations, section Representations), then save it",
        )


def _painted(
    content: Mapping[str, Any], segments: list[Mapping[str, Any]], values: list[int], as_truth: bool
) -> tuple[np.ndarray, np.ndarray, list[Notice]]:
    """Labels (i, j, k) of the segments, later ones on top; the mask of their overlap, and the notice about it."""
    import slicerio

    # Painted as (k, j, i), the order of the voxels in the file and in memory.
    labels = np.zeros(content["voxels"].shape[:-4:-1], np.uint8)
    shared = np.zeros(labels.shape, bool)
    overlapping: set[int] = set()
    for segment, value in zip(segments, values, strict=True):
        mask = slicerio.segment_mask(content, segment).T
        below = count_labels(labels[mask][None])
        if below:
            overlapping |= {value, *below}
            shared |= mask & (labels > 0)
        labels[mask] = value
    if as_truth:
        labels[shared] = 0
    names = [str(one.get("name", "")) for one, value in zip(segments, values, strict=True) if value in overlapping]
    counted = "treated as unknown" if as_truth else "counted for the later one"
    text = f"{np.count_nonzero(shared)} voxels belong to two segments and are {counted}: {', '.join(names)}."
    return labels.T, shared.T, [Notice(OVERLAP, text)] if names else []


def _left_out(content: Mapping[str, Any], values: list[int]) -> Iterator[Notice]:
    """The notice about unknown segments, whose value is 0."""
    import slicerio

    voxel_ml = abs(np.linalg.det(content["ijkToLPS"][:3, :3])) / 1000
    shown = [
        f"{segment.get('name') or 'without a name'} ({count * voxel_ml:.3g} ml)"
        for segment, value in zip(content.get("segments", []), values, strict=True)
        if not value and (count := np.count_nonzero(slicerio.segment_mask(content, segment)))
    ]
    if shown:
        text = f"These segments are not known to SAUNet and were left out: {', '.join(shown)}."
        yield Notice(SEGMENTS_LEFT_OUT, text)


def _confidence(value: int, segment: Mapping[str, Any]) -> tuple[int, float] | None:
    """A structure's value and the confidence of its level; None if its segment does not state that."""
    with suppress(ValueError, TypeError, KeyError):
        sure = float(segment.get("tags", {})[CONFIDENCE_TAG])
        return (value, sure) if 0 <= sure <= 1 else None
    return None


def _told_by_tags(segments: list[Mapping[str, Any]]) -> dict[str, str]:
    """What the segments' tags state about the whole result, as header fields."""
    for tags in (segment.get("tags", {}) for segment in segments):
        about = {key: str(value) for key, value in tags.items() if key.startswith(ABOUT_TAG) and key not in _OWN_TAGS}
        if not about:
            continue
        warnings = about.pop(WARNINGS_TAG, "[]")
        fields = {KEY + key.removeprefix(ABOUT_TAG): value for key, value in about.items()}
        with suppress(ValueError, TypeError, KeyError):
            fields |= {f"{KEY}warning_{notice['code']}": str(notice["text"]) for notice in json.loads(warnings)}
        return fields
    return {}


def _whole_grid(labels: np.ndarray, matrix: np.ndarray, content: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Pad labels (i, j, k) that Slicer cropped to the segments to their image's grid; also returns its origin (LPS).

    If the file does not state that grid, or its voxels do not lie on it, both stay as they are.
    """
    stated = _stated_grid(content)
    if stated is None:
        return labels, matrix[:3, 3]
    grid, extent = stated
    first = np.linalg.solve(matrix[:3, :3], grid[:3, 3] + grid[:3, :3] @ extent[:, 0] - matrix[:3, 3])
    before = np.rint(-first)
    after = extent[:, 1] - extent[:, 0] + 1 - before - labels.shape
    turned = np.abs(np.linalg.solve(matrix[:3, :3], grid[:3, :3]) - np.eye(3)) @ (extent[:, 1] - extent[:, 0])
    if np.abs(first + before).max() > 0.05 or turned.max() > 0.05 or min(before.min(), after.min()) < 0:
        return labels, matrix[:3, 3]
    return np.pad(labels, np.column_stack([before, after]).astype(int)), matrix[:3, 3] - matrix[:3, :3] @ before


def _stated_grid(content: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Voxel to LPS (4, 4), and first and last voxel of each axis (3, 2), of the segmented image as a file states it."""
    parameters = content.get("conversionParameters", [])
    stated = [parameter["value"] for parameter in parameters if parameter.get("name") == _REFERENCE]
    try:
        numbers = np.array([float(part) for part in "".join(stated).split(";") if part.strip()])
        ras, extent = numbers[:16].reshape(4, 4), numbers[16:].reshape(3, 2)
    except ValueError:
        return None
    count = extent[:, 1] - extent[:, 0] + 1
    usable = np.isfinite(numbers).all() and count.min() >= 1 and float(np.prod(count)) <= MOST_VOXELS
    return (LPS_TO_RAS @ ras, extent) if usable else None


def _meanings(
    content: Mapping[str, Any], stated: str, usual: Encoding | None, name: str, strict: bool
) -> tuple[Encoding, list[int]]:
    """The likeliest encoding that has all known segments, the stated one first, and the label value of each segment.

    The value is 0 for unknown segments, which are allowed beside known ones, unless `strict` or one may be a structure.
    """
    import slicerio

    segments = content.get("segments", [])
    codes = _codes(segments)
    meant = {
        encoding: [_value(*one, encoding.structures) for one in zip(segments, codes, strict=True)]
        for encoding in _likely(stated, usual)
    }
    known = [any(values) for values in zip(*meant.values(), strict=True)]
    unknown = [
        segment
        for segment, meaning in zip(segments, known, strict=True)
        if not meaning and slicerio.segment_mask(content, segment).any()
    ]
    beside = any(known) and not strict
    refused = [segment for segment in unknown if _may_be_structure(segment)] if beside else unknown
    if refused:
        raise _not_known(refused, beside, name)
    for encoding, values in meant.items():
        if [bool(value) for value in values] == known:
            _check_once(segments, values, encoding.structures, name)
            return encoding, values
    raise _mixed(segments, meant, name)


def _not_known(refused: list[Mapping[str, Any]], beside: bool, name: str) -> InputError:
    """The error for unknown segments; `beside` known ones, one that is no structure can be kept under another name."""
    names = ", ".join(segment.get("name") or "without a name" for segment in refused)
    remedy = "Name them after structures in the table (Resources/anatomy.csv), or remove them"
    if beside and any(map(_is_named_like_one, refused)):
        remedy += ", or, if one is something else, give it a name without a level or a word such as disc"
    return InputError("INPUT_LABELS", f"{name} holds segments that are not known structures: {names}", remedy)


def _mixed(segments: list[Mapping[str, Any]], meant: Mapping[Encoding, list[int]], name: str) -> InputError:
    """The error for segments that are all known structures, but not all in any one encoding."""
    kinds = {"levels": "whole vertebrae with levels", "classes": "the three classes", "parts": "vertebrae in two parts"}
    usual, values = max(meant.items(), key=lambda item: np.count_nonzero(item[1]))
    meanings = zip(segments, values, zip(*meant.values(), strict=True), strict=True)
    odd = [str(one.get("name", "")) for one, value, every in meanings if any(every) and not value]
    return InputError(
        "INPUT_LABELS",
        f"{name} mixes {kinds[usual.name]} with other structures: {', '.join(odd)}",
        f"Use one kind throughout: {', '.join(kinds.values())}",
    )


def _check_once(
    segments: list[Mapping[str, Any]], values: list[int], known: Mapping[int, Structure], name: str
) -> None:
    """Refuse two segments with one meaning: merged, a correction would be lost in what it was meant to replace."""
    for value in set(values) - {0}:
        same = [str(segment.get("name", "")) for segment, meant in zip(segments, values, strict=True) if meant == value]
        if len(same) > 1:
            raise InputError(
                "INPUT_LABELS",
                f"{name} holds several segments that mean {known[value].name}: {', '.join(same)}",
                "Rename all but one, also in their terminology, or remove them",
            )


def _may_be_structure(segment: Mapping[str, Any]) -> bool:
    """Whether an unknown segment may be a structure of the spine under another name."""
    made_here = is_made_here(str(segment.get("id", "")), ENCODING_TAG in segment.get("tags", {}))
    return made_here or _is_named_like_one(segment)


def _is_named_like_one(segment: Mapping[str, Any]) -> bool:
    return bool(_SEEMS_KNOWN.search(in_ascii(str(segment.get("name", "")))))


def _codes(segments: list[Mapping[str, Any]]) -> list[str]:
    """The terminology code of each segment; empty if it was not assigned on purpose, see `anatomy.is_made_here`."""
    ours = [is_made_here(str(one.get("id", "")), ENCODING_TAG in one.get("tags", {})) for one in segments]
    codes = []
    for segment, own in zip(segments, ours, strict=True):
        kind: list[str] = (segment.get("terminology") or {}).get("type", [])
        _scheme, code, meaning, *_ = *kind, "", "", ""
        given = own or not any(ours) or named_after_term(str(segment.get("name", "")), meaning)
        codes.append(code if given else "")
    return codes


def _value(segment: Mapping[str, Any], code: str, known: Mapping[int, Structure]) -> int:
    """The label value that a segment's name, else its code, stands for; 0 if it is unknown."""
    meant = named_structure(str(segment.get("name", "")), known) or coded_structure(code, known)
    return meant.value if meant else 0
