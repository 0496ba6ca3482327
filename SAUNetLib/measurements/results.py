"""The result of measuring: the measures of each structure, each with a unit and quality flags."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..notices import Notice

DISCLAIMER = "For research, not for diagnosis"

PARTIAL = "partial"
FEW_SLICES = "few_slices"
LOW_CONFIDENCE = "low_confidence"
MISSING = "missing"
ESTIMATED = "estimated"
NOT_T2 = "not_t2"

FLAGS = {
    PARTIAL: "the border of the field of view cuts it, or an endplate lies within 5 mm of the upper or lower border; "
    "padding at the image's borders is not part of the field of view, but counts as such without the image",
    FEW_SLICES: "too few slices show it, or they show one side of the canal rather than its middle; or there is no "
    "canal, and they show only part of its width",
    LOW_CONFIDENCE: "its outline is not that of a regular body or disc; pieces of it lie apart, or part of it seems "
    "not to be segmented; its neighbours are unsuitable for comparison; or the value is outside the usual range, such "
    "as a backward slip of more than 6 mm or 20 %",
    MISSING: "a structure that it needs is not segmented, or not where it should be",
    ESTIMATED: "the label map has no sacrum, or too little of it; its endplate was taken from the lower border of the "
    "L5/S1 disc",
    NOT_T2: "the fluid in the canal is not brighter than marrow and discs, or no image was given",
}
"""What the flags of a measure mean. A measure without flags is good."""

QUANTITIES = {
    "volume_mm3": "volume",
    "height_anterior_mm": "anterior height",
    "height_middle_mm": "middle height",
    "height_posterior_mm": "posterior height",
    "depth_mm": "anterior-posterior depth of a body",
    "wedge_ratio": "ratio of anterior to posterior height of a body",
    "biconcavity_ratio": "ratio of middle to posterior height of a body",
    "wedge_angle_deg": "angle between a body's endplates, positive where the front is lower",
    "height_loss_percent": "largest loss of height relative to the neighbouring bodies",
    "genant_grade": "Genant's band of the height loss, 0 to 3, for T4 to L4",
    "disc_height_index": "ratio of mean disc height to mean height of the neighbouring bodies",
    "disc_height_depth_ratio": "sum of anterior and posterior disc height divided by the sum of the depths of the two "
    "endplates",
    "segmental_angle_deg": "angle between the endplates adjacent to a disc, positive in lordosis",
    "slip_mm": "slip of the upper body, positive forwards",
    "slip_percent": "slip as a percentage of the lower endplate's depth, or of the shorter one's where the lower is "
    "estimated",
    "meyerding_grade": "Meyerding's band of a forward slip, 0 to 5",
    "canal_ap_mm": "anterior-posterior diameter of the canal",
    "signal_ratio": "ratio of the disc's signal to that of the cerebrospinal fluid",
    "lordosis_deg": "angle between the outermost endplates, positive in lordosis",
    "coronal_angle_deg": "angle between the most tilted endplates in the coronal plane",
}
"""Every measure, in the order of the table's columns; names end in the unit (ratios and grades have none)."""


@dataclass(frozen=True)
class Measure:
    """One figure: None where it cannot be computed, and then `flags` says why; without flags it is good."""

    value: float | None
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: float | None, flags: Iterable[str] = ()) -> Measure:
        """A figure with its flags; what is not a finite number becomes None."""
        known = value is not None and math.isfinite(value)
        flags = set(flags) or (set() if known else {LOW_CONFIDENCE})
        return cls(float(value) if known and value is not None else None, tuple(sorted(flags)))

    def doubted(self, flags: Collection[str]) -> Measure:
        """The same figure with these flags added."""
        return Measure(self.value, tuple(sorted({*self.flags, *flags})))

    @classmethod
    def none(cls, *flags: str) -> Measure:
        """No figure, for these reasons."""
        return cls(None, tuple(sorted(set(flags))))


@dataclass(frozen=True)
class StructureMeasures:
    """The measures of one structure, or of a stretch of the spine.

    Attributes:
        value: its label value; 0 for a stretch of the spine.
        level: ``L4``, ``L4/L5``, or a stretch such as ``L1-S1``.
        name, kind: as shown to the user; vertebra, disc, canal, sacrum or spine.
        measures: by the names of `QUANTITIES`.
    """

    value: int
    level: str
    name: str
    kind: str
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Markup:
    """A landmark or line to draw.

    Attributes:
        kind: endplate, disc or canal.
        level: of its structure.
        points: (N, 3) mm, LPS; one point, or those of a line.
        estimated: whether it belongs to an endplate that is not segmented.
    """

    kind: str
    level: str
    points: np.ndarray
    estimated: bool = False


@dataclass(frozen=True)
class Measurements:
    """All measures of a segmentation. For research, not for diagnosis.

    Attributes:
        rows: stretches of the spine first, then structures from the top down.
        markups: what the figures rest on, in the patient's space.
        warnings: what the user should know.
    """

    rows: tuple[StructureMeasures, ...]
    markups: tuple[Markup, ...] = ()
    warnings: tuple[Notice, ...] = field(default=())

    def row(self, level: str) -> StructureMeasures:
        """The measures of a level, such as ``L4``, ``L4/L5`` or ``S1``.

        Raises:
            KeyError: it was not measured.
        """
        for row in self.rows:
            if row.level == level:
                return row
        raise KeyError(level)

    def value(self, level: str, name: str) -> float | None:
        """A figure by level and name; None where it could not be computed or the level is not there."""
        for row in self.rows:
            if row.level == level and name in row.measures:
                return row.measures[name].value
        return None

    def summary(self) -> dict[str, object]:
        """JSON-ready: the figures of each structure (null where there is none), and flags where there are any."""
        return {
            "note": DISCLAIMER,
            "structures": [
                {
                    "value": row.value,
                    "level": row.level,
                    "name": row.name,
                    "kind": row.kind,
                    "measures": {name: rounded(measure.value) for name, measure in row.measures.items()},
                    "quality": {name: list(measure.flags) for name, measure in row.measures.items() if measure.flags},
                }
                for row in self.rows
            ],
            "flags": FLAGS,
            "warnings": [notice.as_dict() for notice in self.warnings],
        }


def rounded(value: float | None) -> float | None:
    """A figure rounded to three decimals, as in files."""
    return None if value is None else round(value, 3)
