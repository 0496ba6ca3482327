"""From a segmentation to all its measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..anatomy import place_of, value_of
from ..masks import Box, bounding_box, cut_structures
from ..notices import Notice
from ..segmentation import Segmentation, StructureRow
from ..volume import SagittalStack, Volume, check_geometry, on_grid
from .alignment import coronal_angle, lordosis
from .canal import canal_diameter
from .discs import disc_frame, disc_measures, neighbouring_endplates
from .endplates import Endplate
from .landmarks import Landmarks, find_landmarks
from .parts import merge_parts
from .results import (
    ESTIMATED,
    LOW_CONFIDENCE,
    MISSING,
    NOT_T2,
    PARTIAL,
    Markup,
    Measure,
    Measurements,
    StructureMeasures,
)
from .signal import CorrectedSignal
from .space import AnatomicalFrame, LabelSpace
from .vertebrae import GRADED, body_measures, height_losses

_REGIONS = {"C": "Cervical spine", "T": "Thoracic spine", "L": "Lumbar spine"}
_WITHOUT_BODY = ("C1", "C2")
"""The atlas has no body, the axis none of the usual form."""


def measure(segmentation: Segmentation, volume: Volume | None = None) -> Measurements:
    """What a radiologist measures, in mm and degrees, on the label map's own grid, however oblique.

    Every figure follows the structure's own axes (`landmarks`), not the image's; one that cannot be computed is None
    with the reason. Without a volume, or with one that is not T2-weighted, there are no signal ratios.

    Args:
        segmentation: one with levels; with or without separate parts of the vertebrae.
        volume: the image on the same grid.

    Raises:
        UsageError: USAGE, three classes without levels.
        InputError: INPUT_GEOMETRY, volume and segmentation do not lie on one grid; otherwise as `check_geometry`.
        OutOfMemoryError: MEMORY.
    """
    segmentation.require_levels()
    volume = volume and on_grid(volume, segmentation.geometry, "its segmentation")
    check_geometry(segmentation.geometry, "the segmentation")
    segmentation, volume = _cropped_to_field(merge_parts(segmentation), volume)
    return _MeasurementRun(segmentation.with_cuts(), volume).result()


def names_out_of_order(segmentation: Segmentation) -> tuple[str, str] | None:
    """Names of the first two neighbours, the upper one first, that are not in anatomical order, or None.

    Raises:
        UsageError, InputError, OutOfMemoryError: as `measure`.
    """
    segmentation.require_levels()
    check_geometry(segmentation.geometry, "the segmentation")
    return _MeasurementRun(merge_parts(segmentation), None).out_of_order


def _cropped_to_field(segmentation: Segmentation, volume: Volume | None) -> tuple[Segmentation, Volume | None]:
    """Both cropped to the field of view, so that structures which end at padding count as cut; no label is lost.

    Without the image, the field of view ends at structures that are known to be cut but do not touch the border.
    """
    stack = segmentation.stack()
    labelled = bounding_box(stack.slices)
    if labelled is None:
        return segmentation, volume
    if volume is not None:
        field = SagittalStack.of(volume).field()
    else:
        field = (
            slice(0, stack.slices.shape[0]),
            *_field_by_cut_structures(stack.slices, labelled, segmentation.partial),
        )
    box = [slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(field, labelled, strict=True)]
    if all(span == slice(0, count) for span, count in zip(box, stack.slices.shape, strict=True)):
        return segmentation, volume
    crop = stack.source_box((box[0], box[1], box[2]))
    geometry = segmentation.geometry.part(crop)
    segmentation = replace(segmentation, labels=segmentation.labels[crop], geometry=geometry)
    return segmentation, volume and Volume(volume.voxels[crop], geometry, volume.name)


def _field_by_cut_structures(slices: np.ndarray, labelled: Box, partial: frozenset[int]) -> tuple[slice, slice]:
    """Rows and columns of the field of view, which ends at structures known to be cut (`partial`)."""
    hidden = partial - cut_structures(slices[labelled[0]])
    field = []
    for axis in (1, 2):
        lines, part = np.moveaxis(slices, axis, 0), labelled[axis]
        first = part.start if hidden & set(np.unique(lines[part.start]).tolist()) else 0
        end = part.stop if hidden & set(np.unique(lines[part.stop - 1]).tolist()) else slices.shape[axis]
        field.append(slice(first, end))
    return field[0], field[1]


class _MeasurementRun:
    """Measures one segmentation: the landmarks first, then each structure."""

    def __init__(self, segmentation: Segmentation, volume: Volume | None) -> None:
        self._segmentation = segmentation
        self._table = segmentation.table()
        self._space = LabelSpace.of(segmentation.labels, segmentation.geometry)
        canals = self._values("canal")
        self._canal = canals[0] if canals else None
        sacra = self._values("sacrum")
        self._landmarks: Landmarks = find_landmarks(
            self._space,
            self._values("vertebra"),
            self._values("disc"),
            self._canal,
            sacra[0] if sacra else None,
            value_of("L5/S1"),
        )
        self._signal = None
        if volume is not None and self._canal is not None and self._landmarks.discs:
            self._signal = CorrectedSignal(
                self._space, volume.voxels, self._landmarks, self._canal, self._values("vertebra")
            )
        self._markups: list[Markup] = []

    def _values(self, kind: str) -> list[int]:
        return [row.structure.value for row in self._table if row.structure.kind == kind]

    def result(self) -> Measurements:
        """All rows, markups and warnings."""
        bodies = self._bodies()
        rows = [*self._curves(), *(self._structure(row, bodies) for row in self._table)]
        # The segmentation's own warnings too: doubts about the names concern every figure at a level.
        notices = {notice.code: notice for notice in (*self._segmentation.warnings, *self._notices(rows))}
        return Measurements(tuple(rows), tuple(self._markups), tuple(notices.values()))

    def _bodies(self) -> dict[int, dict[str, Measure]]:
        """Measures of the vertebral bodies, by label value."""
        measures: dict[int, dict[str, Measure]] = {}
        for row in self._table:
            structure = row.structure
            if structure.kind != "vertebra" or structure.level in _WITHOUT_BODY:
                continue
            section = self._landmarks.bodies.get(structure.value)
            measures[structure.value] = body_measures(section)
            if section is None and row.partial:
                measures[structure.value] = dict.fromkeys(measures[structure.value], Measure.none(PARTIAL))
        losses = height_losses(list(measures.values()))
        first, last = (value_of(level) for level in GRADED)
        for value, loss in zip(measures, losses, strict=True):
            if not first <= value <= last:
                del loss["genant_grade"]
        return {value: own | loss for (value, own), loss in zip(measures.items(), losses, strict=True)}

    def _structure(self, row: StructureRow, bodies: dict[int, dict[str, Measure]]) -> StructureMeasures:
        structure = row.structure
        measures = {"volume_mm3": Measure.of(row.volume_mm3, {PARTIAL} if row.partial else set())}
        if structure.kind == "vertebra":
            measures |= bodies.get(structure.value, {})
        if structure.kind == "disc":
            measures |= disc_measures(structure.value, self._landmarks, bodies)
            measures["signal_ratio"] = self._ratio(structure.value)
        if structure.kind == "disc" or (structure.kind == "vertebra" and structure.level not in _WITHOUT_BODY):
            measures["canal_ap_mm"] = self._diameter(structure.value, structure.level)
            self._add_markups(structure.value, structure.level)
        return StructureMeasures(structure.value, structure.level, structure.name, structure.kind, measures)

    def _ratio(self, value: int) -> Measure:
        if self._signal is None:
            return Measure.none(MISSING if self._canal is None else NOT_T2)
        return self._signal.ratio(self._landmarks.discs.get(value))

    def _diameter(self, value: int, level: str) -> Measure:
        diameter = canal_diameter(self._space, self._canal, self._landmarks, self._frame_of(value))
        if diameter.ends is not None:
            self._markups.append(Markup("canal", level, self._space.to_patient(diameter.ends)))
        body = self._landmarks.bodies.get(value)
        if diameter.measure.value is not None and body is not None and (body.upper.cut or body.lower.cut):
            # The canal was measured behind the middle of the visible part of the body.
            return diameter.measure.doubted({PARTIAL})
        return diameter.measure

    def _frame_of(self, value: int) -> AnatomicalFrame | None:
        """Centre and axes of a body or a disc."""
        section = self._landmarks.bodies.get(value) or self._landmarks.discs.get(value)
        if section is not None:
            return AnatomicalFrame(section.centre, section.frame.axes)
        above, below = neighbouring_endplates(value, self._landmarks)
        return disc_frame(above, below) if above is not None and below is not None else None

    def _add_markups(self, value: int, level: str) -> None:
        """Add a body's corners and middles, or the lines of a disc's heights; with the last disc S1's endplate."""
        body = self._landmarks.bodies.get(value)
        if body is not None:
            self._add_endplate(level, body.upper)
            self._add_endplate(level, body.lower)
            return
        above, below = neighbouring_endplates(value, self._landmarks)
        if below is not None and value == self._landmarks.lumbosacral:
            self._add_endplate("S1", below)
        if above is None or below is None or above.cut or below.cut:
            return
        for place in ("front", "middle", "back"):
            line = np.stack([getattr(above, place), getattr(below, place)])
            self._markups.append(Markup("disc", level, self._space.to_patient(line)))

    def _add_endplate(self, level: str, plate: Endplate) -> None:
        if not plate.cut:
            points = self._space.to_patient(np.stack([plate.front, plate.middle, plate.back]))
            self._markups.append(Markup("endplate", level, points, plate.estimated))

    def _curves(self) -> Iterator[StructureMeasures]:
        """The curves of each region and of the whole spine in view."""
        known = self._segmentation.known
        bodies = [(known[value].level, self._landmarks.bodies.get(value)) for value in self._values("vertebra")]
        bodies = [(level, body) for level, body in bodies if level not in _WITHOUT_BODY]
        chain = [(level, body) for level, body in bodies if body is not None]
        last = self._landmarks.lumbosacral
        sacrum = neighbouring_endplates(last, self._landmarks)[1] if last else None
        if sacrum is not None and sacrum.cut:
            sacrum = None
        doubt = {LOW_CONFIDENCE} if self.out_of_order else set()
        for letter, name in _REGIONS.items():
            own = [(level, body) for level, body in chain if level[0] == letter]
            starts = [(n, level, body.upper) for n, (level, body) in enumerate(own) if not body.upper.cut]
            ends = [(n, level, body.lower) for n, (level, body) in enumerate(own) if not body.lower.cut]
            if letter == "L" and sacrum is not None:
                ends.append((len(own), "S1", sacrum))
            if starts and ends and starts[0][0] < ends[-1][0]:
                level = f"{starts[0][1]}-{ends[-1][1]}"
                angle = lordosis(starts[0][2], ends[-1][2]).doubted(doubt)
                yield StructureMeasures(0, level, f"{name} {level}", "spine", {"lordosis_deg": angle})
        column = [
            (level, plate) for level, body in bodies for plate in ((body.upper, body.lower) if body else (None,) * 2)
        ]
        if sacrum is not None and not sacrum.estimated:  # a disc's border would be the last endplate, and is not bone
            column.append(("S1", sacrum))
        coronal = coronal_angle(column, self._landmarks.turn_seen)
        if coronal is not None:
            level, angle = coronal
            measures = {"coronal_angle_deg": angle.doubted(doubt)}
            yield StructureMeasures(0, level, f"Spine {level}, coronal", "spine", measures)

    @cached_property
    def out_of_order(self) -> tuple[str, str] | None:
        """As `names_out_of_order`."""
        known = self._segmentation.known
        order = self._landmarks.order or self._order_by_height()
        placed = [known[value] for value in order if known[value].level not in _WITHOUT_BODY]
        for upper, lower in pairwise(placed):
            if place_of(upper.level) >= place_of(lower.level):
                return upper.name, lower.name
        return None

    def _order_by_height(self) -> list[int]:
        """Vertebrae from the top down by their centres, for when neither a canal nor discs show the spine's line."""
        heights = {value: self._space.points(value)[:, 1].mean() for value in self._values("vertebra")}
        return sorted(heights, key=heights.__getitem__)

    def _notices(self, rows: Sequence[StructureMeasures]) -> Iterator[Notice]:
        if not self._table:
            yield Notice("NOTHING_FOUND", "No part of the spine is segmented; nothing was measured.")
            return
        if self._canal is None:
            yield Notice(
                "CANAL_MISSING",
                "The spinal canal is not segmented; what depends on it was not measured. The middle of the discs was "
                "used as the midline, which is unknown where the slices do not show their whole width.",
            )
        if self._landmarks.swapped:
            yield Notice(
                "CANAL_IN_FRONT",
                "The canal lies in front of the discs: front and back are swapped in this file. Only volumes were "
                "measured; correct the orientation, or export the file again.",
            )
        if self.out_of_order is not None:
            yield Notice(
                "LEVELS_ORDER",
                f"The names are not in anatomical order: {' lies above '.join(self.out_of_order)}. Measurements "
                "across several levels are wrong until the names are corrected.",
            )
        if any(ESTIMATED in measure.flags for row in rows for measure in row.measures.values()):
            why = "Too little of the sacrum" if self._values("sacrum") else "No sacrum"
            yield Notice(
                "SACRUM_ESTIMATED",
                f"{why} is segmented; its endplate was taken from the lower border of the L5/S1 disc.",
            )
        if self._signal is not None and not self._signal.is_t2:
            yield Notice(
                "NOT_T2",
                "The fluid in the canal is not brighter than marrow and discs: this is not a T2 image. Signal ratios "
                "were not measured.",
            )
