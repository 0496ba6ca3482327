"""The meaning of label map values, and their encoding: SAUNet's own, TotalSpineSeg's or SPIDER's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

from ..anatomy import BACKGROUND, CANAL, CANAL_VALUE, DISC, VERTEBRA, Encoding, encodings
from ..errors import InputError

EncodingName = Literal["classes", "levels", "parts", "totalspineseg", "spider"]
"""Most likely first: the values 1, 2 and 3 alone mean the classes."""
UNKNOWN = 255
"""Label of unannotated voxels in a ground truth: there may or may not be a structure."""
CORD_VALUE = 1
"""TotalSpineSeg's spinal cord."""
_RENUMBER = (
    "If SPINEPS made it, renumber it to TotalSpineSeg's values (8-19 become 21-32, 20-24 become 41-45, 26 becomes 50; "
    "discs likewise) and remove the endplates; docs/own-data.md has the table"
)
SPIDER_CANAL = 100
"""The canal in SPIDER's masks."""
_ROUNDED = 0.01
"""Largest distance of a label value from a whole number, as scaling may cause; others are refused."""


@dataclass(frozen=True)
class Reading:
    """How the values of a label map are read.

    Attributes:
        name: name of the encoding that they are in.
        encoding: our encoding, to which they are converted.
        values: our value for each of theirs; `UNKNOWN` if theirs does not determine one.
    """

    name: EncodingName
    encoding: Encoding
    values: Mapping[int, int]

    @property
    def classes(self) -> dict[int, int]:
        """The network's class, or `UNKNOWN`, for each of their values."""
        known = {UNKNOWN: UNKNOWN, **self.encoding.classes}
        return {value: known[ours] for value, ours in self.values.items()}


def read_as(name: EncodingName, values: Iterable[int]) -> Reading:
    """Interpret these values in an encoding, which need not contain all of them.

    ``classes``, ``levels``, ``parts``: see `anatomy.encodings`. ``totalspineseg``: levels, and 1 for the cord, which
    is part of the canal; without a canal it is `UNKNOWN`, since it is only half as wide. ``spider``: vertebrae and
    discs counted from the bottom, whatever their levels, and therefore read as the three classes.
    """
    if name == "spider":
        return Reading(name, encodings()["classes"], _spider())
    ours = encodings()["levels" if name == "totalspineseg" else name]
    cord = {CORD_VALUE: CANAL_VALUE if CANAL_VALUE in values else UNKNOWN} if name == "totalspineseg" else {}
    return Reading(name, ours, {**{value: value for value in ours.structures}, **cord})


def recognise(values: Iterable[int], name: str, stated: str = "", usual: Encoding | None = None) -> list[Reading]:
    """The interpretations of a label map that cover all of its values, the most likely one first.

    Args:
        values: values that occur in it; background may be left out.
        name: what messages call it.
        stated: the name of the encoding that its header states, see `label_maps`.
        usual: the most likely encoding if the header states none.

    Raises:
        InputError: INPUT_LABELS, no encoding has these values.
    """
    present = set(values) - {BACKGROUND}
    known = [read_as(kind, present) for kind in get_args(EncodingName)]
    told = {stated, usual.name if usual else ""}
    fitting = [one for one in known if one.values.keys() >= present and (one.name in told or _is_shown(one, present))]
    if not fitting:
        raise _refusal(present, name, known)
    if not present:  # an empty map: our results usually have levels
        fitting.sort(key=lambda one: one.name != "levels")
    return sorted(fitting, key=lambda one: (one.name != stated, usual is None or one.name != usual.name))


def _refusal(present: set[int], name: str, known: list[Reading]) -> InputError:
    """Why no encoding has these values, and what to do."""
    nowhere = [value for value in present if not any(value in one.values for one in known)]
    listed = [str(value) for value in sorted(nowhere or present)]
    many = len(listed) > 10
    shown = ", ".join(listed[: 8 if many else None])
    shown += f" and {len(listed) - 8} more (is this the image itself?)" if many else ""
    remedy = "Use SAUNet's values (TotalSpineSeg's, or 1 vertebra, 2 disc, 3 canal), or SPIDER's"
    if nowhere:
        cause = f"unknown label values: {shown}"
    elif not present <= _spider().keys() and present <= read_as("parts", present).values.keys():
        cause = f"label values that fit SAUNet's parts, but without a disc or canal nothing confirms it: {shown}"
        remedy = (
            "If they are SAUNet's, keep the canal or a disc in the file; in a training folder state the encoding in "
            f"dataset.json. {_RENUMBER}"
        )
    elif not present <= _spider().keys():
        cause = f"label values that no single encoding combines: {shown}"
    elif max(present) < SPIDER_CANAL:
        cause = f"only small numbers, which match no encoding: {shown}"
        remedy = (
            "Slicer's own export numbers the segments like this: export from SAUNet's panel instead. Maps drawn in "
            f"another tool, such as ITK-SNAP, need SAUNet's values. {_RENUMBER}"
        )
    else:
        cause = f"SPIDER's values, but not its canal ({SPIDER_CANAL}): {shown}"
        remedy = _RENUMBER
    return InputError("INPUT_LABELS", f"{name} holds {cause}", remedy)


def _is_shown(reading: Reading, values: set[int]) -> bool:
    """Whether values confirm an encoding that contains them; others use the same ones for vertebrae and discs.

    SPIDER's masks are confirmed by their canal, or by discs alone. The vertebra masks of SPINEPS have no canal: their
    discs (101-) and endplates (201-) would be read as SPIDER's vertebrae and discs, or as posterior elements, which
    therefore need a canal or a disc beside them.
    """
    if reading.name == "spider":
        return SPIDER_CANAL in values or min(values, default=0) > 200
    return reading.name != "parts" or not values or has_discs_or_canal(reading, values)


def has_discs_or_canal(reading: Reading, values: Iterable[int]) -> bool:
    """Whether a disc or a canal is among these values of a reading with levels."""
    known = reading.encoding.structures
    kinds = {known[reading.values[value]].kind for value in values if reading.values.get(value) in known}
    return bool(kinds & {"disc", "canal"})


@cache
def _spider() -> dict[int, int]:
    """The network's class for each label value of SPIDER's masks.

    1-25 vertebrae counted from the bottom, 101-125 those cut by the image's border, 201-225 discs, 100 canal (van der
    Graaf et al., Scientific Data 2024, doi:10.1038/s41597-024-03090-w).
    """
    known = {SPIDER_CANAL: CANAL}
    for number in range(1, 26):
        known |= {number: VERTEBRA, 100 + number: VERTEBRA, 200 + number: DISC}
    return known


def as_labels(voxels: np.ndarray, name: str, scaled: bool = False) -> np.ndarray:
    """Convert voxels of any real type to uint8; values within `_ROUNDED` of a whole number are rounded to it.

    Args:
        voxels: the file's voxels.
        name: the file's name.
        scaled: whether it `label_maps.is_scaled`.

    Raises:
        InputError: INPUT_LABELS.
    """
    if off_whole(voxels) <= _ROUNDED and voxels.min() >= -_ROUNDED and voxels.max() <= 255 + _ROUNDED:
        return (voxels if voxels.dtype.kind in "biu" else np.rint(voxels)).astype(np.uint8)
    cause, remedy = "(whole numbers from 0 to 255)", "Give a label map, not an image"
    if scaled:
        cause += "; its header scales the stored values, which rounds them, as nibabel does with get_fdata()"
        remedy += '. If it is one, save its values as whole numbers: np.rint(values).astype("uint8")'
    raise InputError("INPUT_LABELS", f"{name} holds values that are not label values {cause}", remedy)


def off_whole(voxels: np.ndarray) -> float:
    """The largest distance of a value from a whole number; infinite if any value is not finite."""
    if voxels.dtype.kind in "biu":
        return 0.0
    return max(float(np.abs(part - np.rint(part)).max()) if np.isfinite(part).all() else np.inf for part in voxels)
