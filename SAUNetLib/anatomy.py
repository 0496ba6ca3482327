"""The structures of the spine: label value, name, level, SNOMED CT code and colour, read from Resources/anatomy.csv."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal, cast

import numpy as np

from .resources import resource

Kind = Literal["canal", "vertebra", "sacrum", "disc"]

BACKGROUND, VERTEBRA, DISC, CANAL = range(4)
"""Classes of the network."""
CLASS_NAMES = ("background", "vertebra", "disc", "canal")
CANAL_VALUE = 2
"""Label value of the canal among `structures`; it has no level."""
PARTS_OFFSET = 100
"""In a label map with parts, a vertebra's posterior elements have its label value plus this."""

TERMINOLOGY = "Segmentation category and type - SAUNet"
"""Name of the terminology context in Resources, which Slicer must have loaded to edit (not to show) the terms."""
REGIONS = "Anatomic codes - DICOM master list"
"""Name of Slicer's own context of regions; our terms have no region."""
CATEGORY = ("SCT", "123037004", "Anatomical Structure")
LEVEL_TAG, PARTIAL_TAG, CONFIDENCE_TAG = "SAUNet.Level", "SAUNet.Partial", "SAUNet.Confidence"
ABOUT_TAG = "SAUNet."
WARNINGS_TAG, ENCODING_TAG = ABOUT_TAG + "warnings", ABOUT_TAG + "encoding"
"""Tags of a segment, which are all that Slicer keeps of a segmentation file besides name, colour and code: its level,
that the border of the field of view cuts it, how certain its level is; and, in every segment, what holds for the whole
result: its warnings (JSON), its encoding, and its provenance under names that begin with `ABOUT_TAG`."""


@dataclass(frozen=True)
class Structure:
    """The structure that a label value stands for.

    Attributes:
        value: label value.
        kind: vertebra, disc, canal or sacrum.
        level: such as ``L4`` or ``L4/L5``; empty where the structure has none.
        name: as the user reads it.
        code, meaning: SNOMED CT concept (scheme SCT) of the category `CATEGORY`.
        colour: red, green, blue, 0-255.
    """

    value: int
    kind: Kind
    level: str
    name: str
    code: str
    meaning: str
    colour: tuple[int, int, int]


@cache
def structures() -> dict[int, Structure]:
    """All structures of the label map with levels, by label value, in the order of the encoding.

    The encoding is TotalSpineSeg's, with T13 (33), L6 (46), T12/T13 (83) and L5/L6 (96) added.
    """
    with open(resource("anatomy.csv"), newline="", encoding="utf-8") as file:
        rows = [
            Structure(
                int(row["value"]), cast(Kind, row["kind"]), row["level"], row["name"], row["code"], row["meaning"],
                (int(row["red"]), int(row["green"]), int(row["blue"])),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
    return {row.value: row for row in rows}


@dataclass(frozen=True, eq=False)
class Encoding:
    """The meaning of the values of a label map; each encoding is a single object, see `encodings`.

    Attributes:
        name: as files and ``dataset.json`` state it.
        structures: by label value.
    """

    name: str
    structures: Mapping[int, Structure]

    @cached_property
    def classes(self) -> dict[int, int]:
        """The network's class of each label value; the sacrum is background."""
        number = {"vertebra": VERTEBRA, "disc": DISC, "canal": CANAL, "sacrum": BACKGROUND}
        return {value: number[structure.kind] for value, structure in self.structures.items()}

    def __reduce__(self) -> tuple[Callable[[str], Encoding], tuple[str]]:
        """Copying and unpickling return the single object of that name."""
        return _encoding, (self.name,)

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """Labels uint8 of any shape -> the network's classes, uint8."""
        return remapped(labels, self.classes)


def _encoding(name: str) -> Encoding:
    return encodings()[name]


@cache
def encodings() -> dict[str, Encoding]:
    """The encodings of our label maps, by name, the usual one first.

    ``levels``: a value for each of `structures`. ``classes``: the network's three, see `classes`. ``parts``: as levels,
    but a vertebra's value means its body, and its posterior elements have that plus `PARTS_OFFSET`.
    """
    known = {"levels": structures(), "classes": classes(), "parts": _in_parts()}
    return {name: Encoding(name, meaning) for name, meaning in known.items()}


@cache
def classes() -> dict[int, Structure]:
    """The three classes of the network as structures, by class number (``--classes``)."""
    return {
        VERTEBRA: Structure(VERTEBRA, "vertebra", "", "Vertebrae", "51282000", "Vertebra", (241, 214, 145)),
        DISC: Structure(DISC, "disc", "", "Intervertebral discs", "360499006", "Intervertebral disc", (70, 160, 220)),
        CANAL: replace(structures()[CANAL_VALUE], value=CANAL),
    }


def _in_parts() -> dict[int, Structure]:
    known: dict[int, Structure] = {}
    for value, structure in structures().items():
        if structure.kind != "vertebra":
            known[value] = structure
            continue
        red, green, blue = structure.colour
        darker = (round(0.72 * red), round(0.72 * green), round(0.72 * blue))
        known[value] = replace(
            structure, name=f"{structure.level} vertebral body", code="3572006", meaning="Vertebral body"
        )
        known[value + PARTS_OFFSET] = replace(
            structure, value=value + PARTS_OFFSET, name=f"{structure.level} posterior elements", code="51282000",
            meaning="Vertebra", colour=darker,
        )  # fmt: skip
    return known


def remapped(labels: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Replace the values of labels uint8 of any shape; values that are not in the table become background."""
    lookup = np.zeros(256, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[labels]


_SEGMENT = "SAUNet_"


def segment_id(value: int, encoding: str) -> str:
    """ID of a structure's segment in Slicer.

    Each ID stands for one structure only: segment lists and the editor's Undo take the same ID for the same segment.
    """
    return f"{_SEGMENT}class_{value}" if encoding == "classes" else f"{_SEGMENT}{value}"


def is_made_here(identity: str, tagged: bool) -> bool:
    """Whether the engine made a segment, from its ID or the tag `ENCODING_TAG`; it may have been edited since.

    Slicer's editor gives a segment that is added to others the term of the last one, whatever it will be. So a code
    says what a segment is only for these, and where the name is the term's own (`named_after_term`).
    """
    return tagged or identity.startswith(_SEGMENT)


def named_after_term(name: str, meaning: str) -> bool:
    """Whether a segment is named after its terminology entry.

    Slicer names it by the chosen term's label: for a level a name that `named_structure` reads, otherwise the term's
    meaning. "Vertebral canal" and, among classes, "Vertebra" and "Intervertebral disc" are names that `named_structure`
    does not know.
    """
    return bool(name) and name.casefold() == meaning.casefold()


def tag_text(text: str) -> str:
    """A text as a segment tag, without the characters that separate tags in a file."""
    return text.replace("|", "/").replace("\n", " ")


def named_structure(name: str, known: Mapping[int, Structure]) -> Structure | None:
    """The structure that a segment's name means, ignoring case: its own name or its level (``L5``, ``L4-5 disc``)."""
    title = " ".join(name.split()).casefold()
    for structure in known.values():
        if structure.name.casefold() == title:
            return structure
    level = _level_in(title)
    there = [structure for structure in known.values() if level and structure.level == level]
    return there[0] if len(there) == 1 else None


def coded_structure(code: str, known: Mapping[int, Structure]) -> Structure | None:
    """The structure with a SNOMED CT code; None if no structure or several have it."""
    there = [structure for structure in known.values() if structure.code == code]
    return there[0] if len(there) == 1 else None


_REGION_OF = {"c": "C", "hwk": "C", "th": "T", "t": "T", "d": "T", "bwk": "T", "lwk": "L", "l": "L", "s": "S"}
"""Spellings of a vertebra's region, in lower case."""


def _level_in(title: str) -> str:
    """The level, as ``L5`` or ``L4/L5``, if a lower-case name consists of nothing else; otherwise empty."""
    letters = "|".join(_REGION_OF)
    match = re.fullmatch(
        rf"({letters}) ?(\d{{1,2}})(?: ?[/-] ?({letters})? ?(\d{{1,2}}) ?(?:disc|disk)?| vertebra)?", title
    )
    if match is None:
        return ""
    letter, number, other, below = match.groups()
    level = f"{_REGION_OF[letter]}{number}"
    return f"{level}/{_REGION_OF[other or letter]}{below}" if below else level


def value_of(level: str) -> int:
    """Label value of a vertebra (``L4``), the sacrum (``S1``) or a disc (``L4/L5``).

    Raises:
        KeyError: the level has no label value.
    """
    return _values()[level.upper()]


@cache
def _values() -> dict[str, int]:
    return {row.level: row.value for row in structures().values() if row.level}


@cache
def vertebra_levels() -> tuple[str, ...]:
    """The vertebrae from C1 down, including T13 and L6."""
    return tuple(row.level for row in structures().values() if row.kind == "vertebra")


@cache
def usual_levels() -> tuple[str, ...]:
    """The vertebrae of the usual spine from C1 to L5."""
    return tuple(level for level in vertebra_levels() if level not in ("T13", "L6"))


def place_of(level: str) -> float:
    """Position of a level along the spine: a vertebra's number from C1 down; a disc is half a step above its lower one.

    So L5/S1, which is also the lumbosacral disc below L6, comes after L6.

    Raises:
        ValueError: it is not a level.
    """
    upper, _, lower = level.partition("/")
    return (*vertebra_levels(), "S1").index(lower or upper) - (0.5 if lower else 0.0)


def disc_between(upper: str | None, lower: str | None) -> str | None:
    """Level of the disc between two vertebrae, or a vertebra and the sacrum; None where the encoding has none.

    The lumbosacral disc is L5/S1 and the thoracolumbar one T12/L1 whatever vertebra lies above them.
    """
    if lower == "S1":
        return "L5/S1"
    level = f"{upper}/{lower}"
    if level in _values():
        return level
    return "T12/L1" if lower == "L1" else None
