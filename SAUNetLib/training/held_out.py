"""A model's figures on labelled cases held out of training, natively and with averaged slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..anatomy import CLASS_NAMES
from ..engine import Engine
from ..metrics import compare_labels
from ..pipeline import segment
from ..volume import SagittalStack, Volume
from .datasets import can_thicken, thick_volume
from .folders import SPECK_MM3, UNKNOWN, find_cases, read_info, read_labelled

VALIDATIONS = {"native slices": 1, "4 slices averaged": 4}
"""Validation sets of a case, and how many of its slices are averaged in each."""
FIGURES = {"dice": "Dice", "hsd_mm": "HSD mm", "hd95_mm": "HD95 mm"}
"""What is measured for each structure, and its title in tables."""
SPECKS = (
    f"Components of the ground truth below {SPECK_MM3:g} mm3 are treated as annotation errors: their voxels are "
    "unknown and count neither for nor against a prediction."
)
"""How specks in the ground truth are treated."""
AS_DRAWN = ", labels as drawn"
"""Suffix of a validation set's name where specks count too."""


@dataclass(frozen=True)
class HeldOutCase:
    """An image of a held-out patient for one of the `VALIDATIONS`; labels (k, j, i) as in `LabelledImage`."""

    slices: str
    patient: str
    volume: Volume
    labels: np.ndarray
    drawn: np.ndarray


def held_out_images(data: Path, names: Sequence[str]) -> Iterator[HeldOutCase]:
    """The cases to measure on, one by one, each natively and, where it has enough slices, averaged.

    Raises:
        InputError: as `folders.read_labelled`.
    """
    files, info = find_cases(data), read_info(data)
    for name in names:
        read = read_labelled(files[name], info)
        stack = SagittalStack.of(read.volume)
        for slices, count in VALIDATIONS.items():
            if can_thicken(len(stack.slices), stack.slice_spacing, count):
                volume, labels = thick_volume(read.volume, read.labels, count)
                _, drawn = thick_volume(read.volume, read.drawn, count)
                yield HeldOutCase(slices, files[name].patient, volume, labels, drawn)


def per_patient(engine: Engine, data: Path, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Figures of the whole pipeline on labelled cases, on the source grid.

    Returns:
        validation set -> figure (``dice vertebra`` ... ``hsd_mm canal``) of the structures drawn -> one value for each
        patient who has it, the mean over the patient's images. A set in which specks make a difference is there once
        more, with `AS_DRAWN`.
    """
    structures = read_info(data).classes
    images: dict[str, dict[str, dict[str, list[float]]]] = {}
    for case in held_out_images(data, names):
        predicted = segment(case.volume, engine, levels=False).labels
        spacing = tuple(reversed(case.volume.geometry.spacing))
        own = _figures(predicted, case.labels, spacing, structures)
        specks = not np.array_equal(case.labels, case.drawn)
        drawn = _figures(predicted, case.drawn, spacing, structures) if specks else own
        for tail, found in (("", own), (AS_DRAWN, drawn)):
            for figure, value in found.items():
                images.setdefault(case.slices + tail, {}).setdefault(figure, {}).setdefault(case.patient, []).append(
                    value
                )
    return {
        slices: {
            figure: [float(np.mean(values)) for values in patients.values()] for figure, patients in figures.items()
        }
        for slices, figures in images.items()
        if not slices.endswith(AS_DRAWN) or figures != images[slices.removesuffix(AS_DRAWN)]
    }


def _figures(
    predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], structures: Sequence[int]
) -> dict[str, float]:
    known = truth != UNKNOWN
    predicted, truth = predicted * known, truth * known
    # A structure neither present nor found would count as perfect.
    present = [value for value in structures if (truth == value).any() or (predicted == value).any()]
    agreements = compare_labels(predicted, truth, spacing, present)
    figures: dict[str, float] = {}
    for value, agreement in agreements.items():
        measured = (agreement.dice, agreement.hausdorff_mm, agreement.hausdorff95_mm)
        figures |= {f"{name} {CLASS_NAMES[value]}": figure for name, figure in zip(FIGURES, measured, strict=True)}
    if agreements:
        figures["dice mean"] = float(np.mean([agreement.dice for agreement in agreements.values()]))
    return figures
