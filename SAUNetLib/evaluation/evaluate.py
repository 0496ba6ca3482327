"""`saunet evaluate`: a predicted label map against the true one, structure by structure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import Structure, remapped
from ..console import table_console
from ..formats.label_values import UNKNOWN
from ..formats.segmentations import read_segmentation, read_truth
from ..formats.slicer_segments import OVERLAP
from ..measurements import merge_parts
from ..metrics import Agreement, Detection, compare_labels, detect
from ..notices import About, Notice
from ..segmentation import Segmentation, count_labels
from ..volume import Volume, on_grid


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one pair of label maps.

    Attributes:
        structures: what was compared, by label value.
        agreements: per structure.
        detections: ``vertebra`` and ``disc`` -> instances matched by overlap; only if both sides have levels.
        warnings: how a file's values were read if they are not SAUNet's own, and what was not counted.
    """

    structures: Mapping[int, Structure]
    agreements: dict[int, Agreement]
    detections: dict[str, Detection]
    warnings: tuple[Notice, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; figures that are undefined or not finite become null."""
        return {
            "structures": [
                {
                    "value": value,
                    "name": self.structures[value].name,
                    **{key: figure if math.isfinite(figure) else None for key, figure in asdict(agreement).items()},
                }
                for value, agreement in self.agreements.items()
            ],
            "instances": {
                kind: {
                    "matched": [[true, predicted] for true, predicted in detection.matches.items()],
                    "missed": list(detection.missed),
                    "spurious": list(detection.spurious),
                }
                for kind, detection in self.detections.items()
            },
            "warnings": [notice.as_dict() for notice in self.warnings],
        }

    def print(self) -> None:
        """Print the table on stdout."""
        from rich.table import Table

        table = Table(box=None, header_style="bold")
        table.add_column("Structure")
        for title in ("Dice", "Precision", "Recall", "Jaccard", "HSD mm", "HD95 mm", "MSD mm"):
            table.add_column(title, justify="right")
        for value, agreement in self.agreements.items():
            table.add_row(self.structures[value].name, *(_shown(figure) for figure in asdict(agreement).values()))
        console = table_console()
        console.print(table)
        for kind, detection in self.detections.items():
            matched = len(detection.matches)
            number = matched + len(detection.missed)
            console.print(
                f"{kind} instances: {matched} of {number} matched (overlap at least half of the true one), "
                f"{len(detection.spurious)} without a counterpart"
            )


def _shown(figure: float) -> str:
    return "-" if math.isnan(figure) else f"{figure:.3f}"


def evaluate_files(predicted: str | Path, truth: str | Path) -> Evaluation:
    """Compare two files. If only one of them has levels, the three classes are compared.

    Voxels that are `UNKNOWN` in the truth, or in two segments of it, count on neither side.

    Raises:
        InputError: as `read_segmentation`; INPUT_GEOMETRY, the two lie on different grids.
    """
    prediction = read_segmentation(predicted)
    reference, left_out = read_truth(truth, prediction.encoding)
    if (
        prediction.encoding is not reference.encoding
        and count_labels(prediction.labels).keys() <= reference.known.keys()
    ):
        prediction = read_segmentation(predicted, reference.encoding)  # 2 alone may be canal or disc
    volume = Volume(prediction.labels, prediction.geometry, Path(predicted).name)
    laid = on_grid(volume, reference.geometry, Path(truth).name)
    counted = np.where(left_out, np.uint8(0), laid.voxels)
    compared = evaluate(replace(prediction, labels=counted, geometry=laid.geometry), reference)
    files = (predicted, prediction), (truth, reference)
    notices = [notice for path, read in files for notice in _how_read(path, read)]
    count = int(np.count_nonzero(left_out))
    if count and not any(notice.code == OVERLAP for notice in reference.warnings):
        text = f"{Path(truth).name}: {count} voxels are marked unknown ({UNKNOWN}) and ignored on both sides."
        notices.append(Notice("UNKNOWN", text))
    return replace(compared, warnings=tuple(notices))


def _how_read(path: str | Path, read: Segmentation) -> Iterator[Notice]:
    """The notices about a file's values, with its name; those about the run in its header are left out."""
    for notice in read.warnings:
        if notice.is_about(About.FILE):
            yield replace(notice, text=f"{Path(path).name}: {notice.text}")


def evaluate(predicted: Segmentation, truth: Segmentation) -> Evaluation:
    """Compare two segmentations on one grid; see `evaluate_files`."""
    spacing = tuple(reversed(truth.geometry.spacing))
    if predicted.encoding is not truth.encoding:
        predicted, truth = merge_parts(predicted), merge_parts(truth)
    if predicted.encoding is not truth.encoding:
        predicted, truth = predicted.as_classes(), truth.as_classes()
    detections = {}
    if truth.has_levels:
        whole = merge_parts(predicted), merge_parts(truth)  # a vertebra with its parts is one instance
        for kind in ("vertebra", "disc"):
            kept = {value: value for value, structure in whole[1].known.items() if structure.kind == kind}
            detections[kind] = detect(*(remapped(segmentation.labels, kept) for segmentation in whole))
    return Evaluation(truth.known, compare_labels(predicted.labels, truth.labels, spacing), detections)
