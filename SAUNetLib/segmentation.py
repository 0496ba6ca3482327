"""The result: label map, structures, provenance and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from .anatomy import BACKGROUND, Encoding, Structure, encodings, place_of
from .errors import UsageError
from .notices import Notice
from .volume import Geometry, SagittalStack, Volume

_ORDER = {"canal": 0, "vertebra": 1, "disc": 1, "sacrum": 2}


@dataclass(frozen=True)
class StructureRow:
    """One row of the table of structures: volume in mm3, and whether the field of view cuts the structure.

    `confidence` says how certain its level is, 0 to 1; None where that is not known.
    """

    structure: Structure
    voxels: int
    volume_mm3: float
    partial: bool
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map on the grid of the image that it was made from.

    Attributes:
        labels: (k, j, i) uint8; 0 is background.
        geometry: the input's own.
        encoding: what label values mean, one of `anatomy.encodings`.
        provenance: model, its hash, version, device, options, time, for DICOM the series number; strings, ready for a
            header.
        warnings: what the user should know.
        partial: label values of structures that the border of the field of view cuts.
        confidence: by label value, how certain its level is, 0 to 1; kept in .seg.nrrd files and the table.
        series: for DICOM, what messages call it; written to no file, since its description is free text.

    Raises:
        ValueError: the labels are not uint8 on the geometry's grid.
    """

    labels: np.ndarray
    geometry: Geometry
    encoding: Encoding = field(default_factory=lambda: encodings()["levels"])
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[Notice, ...] = ()
    partial: frozenset[int] = frozenset()
    confidence: Mapping[int, float] = field(default_factory=dict)
    series: str = ""

    def __post_init__(self) -> None:
        if self.labels.dtype != np.uint8 or tuple(reversed(self.labels.shape)) != tuple(self.geometry.size):
            raise ValueError("labels must be uint8 on the given grid")

    @property
    def known(self) -> Mapping[int, Structure]:
        """The structures that label values may stand for."""
        return self.encoding.structures

    @property
    def has_levels(self) -> bool:
        """Whether its structures have levels; the three classes have none."""
        return self.encoding.name != "classes"

    @property
    def has_parts(self) -> bool:
        """Whether vertebral bodies and posterior elements are separate structures."""
        return self.encoding.name == "parts"

    def stack(self) -> SagittalStack:
        """The labels as canonical sagittal slices."""
        return SagittalStack.of(Volume(self.labels, self.geometry))

    def as_classes(self) -> Segmentation:
        """The same with three classes instead of levels; a class is cut if one of its structures is."""
        classes = self.encoding.classes
        return replace(
            self,
            labels=self.encoding.to_classes(self.labels),
            encoding=encodings()["classes"],
            partial=frozenset(classes[value] for value in self.partial) - {BACKGROUND},
            confidence={},
        )

    def with_cuts(self) -> Segmentation:
        """The same with `partial` derived from its labels if there is none: NIfTI has no room for it."""
        if self.partial:
            return self
        from .masks import cut_structures  # imports cc3d, which is missing where Slicer's own tests run

        return replace(self, partial=cut_structures(self.stack().slices))

    def require_levels(self) -> None:
        """Reject three classes where structures with levels are needed.

        Raises:
            UsageError: USAGE.
        """
        if not self.has_levels:
            raise UsageError(
                "USAGE",
                "this segmentation has no levels",
                "Give one whose structures have levels (such as one made without --classes)",
            )

    def table(self) -> list[StructureRow]:
        """The structures present, from the top of the spine to its bottom (canal first, sacrum last).

        Raises:
            ValueError: a label value has no meaning in the encoding.
        """
        counts = count_labels(self.labels)
        unknown = [value for value in counts if value not in self.known]
        if unknown:
            raise ValueError(f"label values without a meaning: {unknown}")
        rows = [
            StructureRow(
                self.known[value],
                count,
                float(count * self.geometry.voxel_volume),
                value in self.partial,
                self.confidence.get(value),
            )
            for value, count in counts.items()
        ]
        return sorted(rows, key=_place)

    def summary(self) -> dict[str, object]:
        """JSON-ready: the table's rows, provenance and warnings."""
        return {
            "structures": [
                {
                    "value": row.structure.value,
                    "name": row.structure.name,
                    "voxels": row.voxels,
                    "volume_mm3": round(row.volume_mm3, 3),
                    "partial": row.partial,
                    **({} if row.confidence is None else {"confidence": round(row.confidence, 2)}),
                }
                for row in self.table()
            ],
            "provenance": dict(self.provenance),
            "warnings": [notice.as_dict() for notice in self.warnings],
        }


def _place(row: StructureRow) -> tuple[int, float]:
    structure = row.structure
    return _ORDER[structure.kind], place_of(structure.level) if structure.level else structure.value


def count_labels(labels: np.ndarray) -> dict[int, int]:
    """Number of voxels of every nonzero value in a label map (k, j, i) uint8, in ascending order."""
    # Slice by slice, and without the background: counting needs eight bytes a voxel.
    counts = sum((np.bincount(part[part > 0], minlength=256) for part in labels), np.zeros(256, int))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
