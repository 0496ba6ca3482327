"""The file of a label map: voxels, and what a header says beside them. Engine and panel write it alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk

from ..segmentation import Notice, short_description
from . import headers, itk

KEY = "SAUNet_"
"""What the names of our header fields begin with."""
ENCODING = KEY + "encoding"


@dataclass(frozen=True)
class Header:
    """What a file says of a result beside its voxels.

    Attributes:
        encoding: what label values mean, the name of one of `anatomy.encodings`.
        provenance: model, its hash, version, device, options, time.
        warnings: what the user should know.
        partial: label values of structures that the border of the field of view cuts.
        names: of the structures that are present, by label value.
    """

    encoding: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: Iterable[Notice] = ()
    partial: Iterable[int] = ()
    names: Mapping[int, str] = field(default_factory=dict)

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
        """What a NIfTI file, which has room for 79 characters, says of it: encoding, doubts, model."""
        codes = [notice.code for notice in self.warnings]
        return in_ascii(short_description(self.encoding, self.provenance.get("model", ""), codes))


def in_ascii(text: str) -> str:
    """One line of ASCII: header lines end at line breaks, and MetaImage's reader counts bytes as characters."""
    plain = unicodedata.normalize("NFKD", text.translate({0x2013: "-", 0x2014: "-", 0x2019: "'", 0xB5: "u"}))
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return " ".join(plain.encode("ascii", "replace").decode().split())


def write_label_map(image: sitk.Image, header: Header, path: Path, ending: str) -> None:
    """Write a label map and what there is to say of it into this very file; `atomic.write_beside` gives its name.

    Args:
        image: the label map; it gets the fields.
        header: NRRD and MetaImage carry all of it, NIfTI what is `in_short`.
        path: the file.
        ending: one of `endings.VOLUMES`, whatever the path's own.

    Raises:
        OSError, RuntimeError: the file did not become whole.
    """
    short = {"ITK_FileNotes": header.in_short()}
    for key, value in (short if ending.startswith(".nii") else header.fields() | header.label_fields()).items():
        image.SetMetaData(key, value)
    with itk.writable(path) as place:
        sitk.WriteImage(image, str(place), ending != ".nii")
    headers.check_written(path, ending)
