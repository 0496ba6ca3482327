"""Label map files: the voxels and the header fields about the result. Engine and panel write them alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import Encoding
from ..notices import CODES, Notice
from ..segmentation import Segmentation
from ..volume import Geometry
from . import headers, itk

KEY = "SAUNet_"
"""Prefix of our header fields' names."""
ENCODING = KEY + "encoding"
_KEPT = {name: code for name, code in CODES.items() if code.word}
"""The notices of which a NIfTI file keeps a word."""
_DESCRIPTION = 79
"""Length in bytes of a NIfTI file's field ``descrip``, without the terminating zero."""


@dataclass(frozen=True)
class Header:
    """The information about a result that a file stores beside the voxels.

    Attributes:
        encoding: what label values mean, the name of one of `anatomy.encodings`.
        provenance: model, its hash, version, device, options, time.
        warnings: what the user should know.
        partial: label values of structures cut by the border of the field of view.
        names: names of the structures that are present, by label value.
    """

    encoding: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: Iterable[Notice] = ()
    partial: Iterable[int] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, segmentation: Segmentation) -> Header:
        """The header for a segmentation."""
        names = {row.structure.value: row.structure.name for row in segmentation.table()}
        encoding = segmentation.encoding.name
        return cls(encoding, segmentation.provenance, segmentation.warnings, segmentation.partial, names)

    def fields(self) -> dict[str, str]:
        """Header fields in ASCII: encoding, provenance, warnings, and the values of structures that are cut."""
        fields = {ENCODING: self.encoding}
        fields |= {KEY + key: value for key, value in self.provenance.items()}
        fields |= {f"{KEY}warning_{notice.code}": notice.text for notice in self.warnings}
        if partial := sorted(self.partial):
            fields[KEY + "partial"] = " ".join(map(str, partial))
        return {re.sub(r"\W", "_", key): in_ascii(str(value)) for key, value in fields.items()}

    def label_fields(self) -> dict[str, str]:
        """Header fields in ASCII: the name of every structure that is present."""
        return {f"{KEY}label_{value}": in_ascii(name) for value, name in self.names.items()}

    def in_short(self) -> str:
        """The description in a NIfTI file, which has room for 79 characters: encoding; doubts; model."""
        codes = {notice.code for notice in self.warnings}
        words = [code.word for name, code in _KEPT.items() if name in codes]
        while words and len(f"SAUNet {self.encoding}; {' '.join(words)};") > _DESCRIPTION:
            words.pop()
        text = in_ascii(f"SAUNet {self.encoding}; {' '.join(words)};")
        whole = in_ascii(f"{text} {self.provenance.get('model', '').partition(';')[0]}")
        return whole if len(whole) <= _DESCRIPTION else text  # a truncated name could be another model's


def segmentation_of(
    labels: np.ndarray, geometry: Geometry, encoding: Encoding, fields: Mapping[str, Any]
) -> Segmentation:
    """A segmentation with what header fields state about it, see `Header.fields`."""
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


def read_in_short(description: str) -> tuple[str, tuple[Notice, ...], str]:
    """Encoding, notices and model from a text of `Header.in_short`; empty for any other text.

    Earlier files left out empty fields: their second field is the doubts if each of its words is one, else the model.
    """
    encoding, *fields = (part.strip() for part in description.split(";"))
    if not encoding.startswith("SAUNet "):
        return "", (), ""
    if len(fields) == 1 and not set(fields[0].split()) <= {code.word for code in _KEPT.values()}:
        fields = ["", *fields]
    doubts, model, *_ = *fields, "", ""
    words = doubts.split()
    notices = tuple(
        Notice(name, f"When this was segmented, {code.later}") for name, code in _KEPT.items() if code.word in words
    )
    return encoding.removeprefix("SAUNet "), notices, model


def stated_encoding(image: sitk.Image) -> str:
    """The name of the encoding that a label map's header states; empty where it states none."""
    if image.HasMetaDataKey(ENCODING):
        return str(image.GetMetaData(ENCODING))
    return read_in_short(image.GetMetaData("descrip"))[0] if image.HasMetaDataKey("descrip") else ""


def is_scaled(image: sitk.Image) -> bool:
    """Whether the values of a NIfTI file are its stored ones times a factor."""
    key = "scl_slope"
    return image.HasMetaDataKey(key) and image.GetMetaData(key) not in ("0", "1")


def in_ascii(text: str) -> str:
    """One line of ASCII: header lines end at line breaks, and MetaImage's reader counts bytes as characters."""
    plain = unicodedata.normalize("NFKD", text.translate({0x2013: "-", 0x2014: "-", 0x2019: "'", 0xB5: "u", 0: " "}))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(plain.encode("ascii", "replace").decode().split())


def write_label_map(image: sitk.Image, header: Header, path: Path, ending: str) -> None:
    """Write a label map with its header directly to a path, which `atomic.write_beside` provides.

    Args:
        image: the label map; the header's fields are added to it.
        header: NRRD and MetaImage store all of it, NIfTI only `in_short`.
        path: the file.
        ending: one of `endings.VOLUMES`, whatever the path's own.

    Raises:
        OSError, RuntimeError: the file was not written completely.
    """
    short = {"ITK_FileNotes": header.in_short()}
    for key, value in (short if ending.startswith(".nii") else header.fields() | header.label_fields()).items():
        image.SetMetaData(key, value)
    with itk.writable(path) as place:
        sitk.WriteImage(image, str(place), ending != ".nii")
    headers.check_written(path, ending)
