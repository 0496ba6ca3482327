"""Labelled cases that were kept out of training, natively and with averaged slices, and what a model does on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..anatomy import CLASS_NAMES
from ..engine import Engine
from ..metrics import compare_labels
from ..pipeline import segment
from ..training.datasets import can_thicken, thick_volume
from ..training.folders import UNKNOWN, find_cases, read_info, read_pair
from ..volume import SagittalStack, Volume

VALIDATIONS = {"native slices": 1, "4 slices averaged": 4}
"""The ways in which a case is measured: how many of its slices are averaged."""
FIGURES = {"dice": "Dice", "hsd_mm": "HSD mm", "hd95_mm": "HD95 mm"}
"""What is measured of each structure, and what a table calls it."""


@dataclass(frozen=True)
class KeptOutCase:
    """An image of a kept-out patient in one of the ways of `VALIDATIONS`, with its labels (k, j, i)."""

    slices: str
    patient: str
    volume: Volume
    labels: np.ndarray


def kept_out_images(data: Path, names: Sequence[str]) -> Iterator[KeptOutCase]:
    """The cases to measure on, one after the other, each natively and, where it has slices enough, averaged.

    Raises:
        InputError: as `folders.read_pair`.
    """
    files = find_cases(data)
    for name in names:
        volume, labels = read_pair(data, name)
        stack = SagittalStack.of(volume)
        for slices, count in VALIDATIONS.items():
            if can_thicken(len(stack.slices), stack.slice_spacing, count):
                yield KeptOutCase(slices, files[name].patient, *thick_volume(volume, labels, count))


def per_patient(engine: Engine, data: Path, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Figures of the whole pipeline on labelled cases, on the source grid.

    Returns:
        validation set -> figure (``dice vertebra`` ... ``hsd_mm canal``), of the structures drawn -> one value for each
        patient who has it; of several images of a patient it is the mean.
    """
    drawn = read_info(data).classes
    images: dict[str, dict[str, dict[str, list[float]]]] = {}
    for case in kept_out_images(data, names):
        for figure, value in _figures(engine, case, drawn).items():
            images.setdefault(case.slices, {}).setdefault(figure, {}).setdefault(case.patient, []).append(value)
    return {
        slices: {
            figure: [float(np.mean(values)) for values in patients.values()] for figure, patients in figures.items()
        }
        for slices, figures in images.items()
    }


def _figures(engine: Engine, case: KeptOutCase, drawn: Sequence[int]) -> dict[str, float]:
    known = case.labels != UNKNOWN
    predicted = segment(case.volume, engine, levels=False).labels * known
    truth = case.labels * known
    # What is neither there nor found says nothing: it would count as perfect.
    present = [value for value in drawn if (truth == value).any() or (predicted == value).any()]
    agreements = compare_labels(predicted, truth, tuple(reversed(case.volume.geometry.spacing)), present)
    figures: dict[str, float] = {}
    for value, agreement in agreements.items():
        measured = (agreement.dice, agreement.hausdorff_mm, agreement.hausdorff95_mm)
        figures |= {f"{name} {CLASS_NAMES[value]}": figure for name, figure in zip(FIGURES, measured, strict=True)}
    if agreements:
        figures["dice mean"] = float(np.mean([agreement.dice for agreement in agreements.values()]))
    return figures
