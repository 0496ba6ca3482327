"""Measures against radiologists' readings of the same discs: `python -m SAUNetLib.evaluation.readings DIR`."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from ..command import run_command, tool
from ..errors import InputError
from ..formats.segmentations import read_segmentation
from ..formats.volumes import read_volume
from ..levels import name_structures
from ..measurements import Measurements, measure
from ..segmentation import Segmentation
from .intervals import interval

GRADINGS = "radiological_gradings.csv"
LEVELS = ("L5/S1", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10")
"""Discs from the lowest upwards, numbered from 1 in the readings."""
LUMBAR = LEVELS[:5]


@dataclass(frozen=True)
class GradedDisc:
    """A disc with its readings and its measures.

    Attributes:
        patient, level: which disc.
        narrowed, slipped: read as narrowed; as spondylolisthesis.
        pfirrmann: grade 1 to 5.
        height_index, height_by_depth, middle_height: measures; NaN if missing.
        slip_percent, signal_ratio: likewise.
        doubtful: whether the height index has a flag other than an estimated sacrum.
    """

    patient: str
    level: str
    narrowed: bool
    slipped: bool
    pfirrmann: int
    height_index: float
    height_by_depth: float
    middle_height: float
    slip_percent: float
    signal_ratio: float
    doubtful: bool


@dataclass(frozen=True)
class ReaderAgreement:
    """Agreement of a measure with the readings: AUC or rho, 95 % interval over patients, number of discs, positives."""

    name: str
    value: float
    low: float
    high: float
    discs: int
    positive: int
    aim: str = ""


def read_discs(folder: str | Path) -> list[GradedDisc]:
    """Measure every patient's label map in a folder and join the readings.

    Args:
        folder: holds ``NNN_image.nii.gz`` and ``NNN_labels.nii.gz`` (classes 1 vertebra, 2 disc, 3 canal) and
            ``radiological_gradings.csv`` (SPIDER's).

    Raises:
        InputError: INPUT_NOT_FOUND, there is no such file in it; otherwise as `read_volume`.
    """
    folder = Path(folder)
    table = folder / GRADINGS
    if not table.is_file():
        raise InputError(
            "INPUT_NOT_FOUND", f"{folder} holds no {GRADINGS}", "Give the folder of SPIDER's T2 SPACE scans"
        )
    readings = read_readings(table)
    discs: list[GradedDisc] = []
    for path in sorted(folder.glob("*_labels.nii.gz")):
        patient = path.name.split("_")[0]
        own = [row for row in readings if int(row["Patient"]) == int(patient)]
        if own:
            measures = measure_labels(path, path.with_name(f"{patient}_image.nii.gz"))
            discs += [_disc(patient, row, measures) for row in own]
    return discs


def read_readings(table: Path) -> list[dict[str, str]]:
    """The rows of a table of readings, one per disc.

    Raises:
        InputError: INPUT_UNREADABLE, it lacks a column or has invalid values.
    """
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if not (1 <= int(row["IVD label"]) <= len(LEVELS) and 1 <= int(row["Pfirrman grade"]) <= 5):
                raise ValueError("no disc or no grade")
            int(row["Patient"]), row["Disc narrowing"], row["Spondylolisthesis"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as failure:
        raise InputError(
            "INPUT_UNREADABLE", f"{table.name} is not a table of readings", "Take the file from SPIDER's archive again"
        ) from failure
    return rows


def measure_labels(labels: Path, image: Path) -> Measurements:
    """The measures of a label map of the three classes, with structures separated by `levels.name_structures`."""
    classes, volume = read_segmentation(labels), read_volume(image)
    stack = classes.stack()
    named = name_structures(stack)
    return measure(Segmentation(stack.restore(named.labels), classes.geometry, partial=named.partial), volume)


def _disc(patient: str, row: dict[str, str], measures: Measurements) -> GradedDisc:
    level = LEVELS[int(row["IVD label"]) - 1]

    def figure(name: str) -> float:
        value = measures.value(level, name)
        return float("nan") if value is None else value

    row_of_disc = next((structure_row for structure_row in measures.rows if structure_row.level == level), None)
    flags = set(row_of_disc.measures["disc_height_index"].flags) if row_of_disc else set()
    return GradedDisc(
        patient,
        level,
        narrowed=row["Disc narrowing"] == "1",
        slipped=row["Spondylolisthesis"] == "1",
        pfirrmann=int(row["Pfirrman grade"]),
        height_index=figure("disc_height_index"),
        height_by_depth=figure("disc_height_depth_ratio"),
        middle_height=figure("height_middle_mm"),
        slip_percent=figure("slip_percent"),
        signal_ratio=figure("signal_ratio"),
        doubtful=bool(flags - {"estimated"}),
    )


def agreements(discs: Sequence[GradedDisc]) -> list[ReaderAgreement]:
    """All agreements with their intervals."""
    index = np.array([disc.height_index for disc in discs])
    by_depth = np.array([disc.height_by_depth for disc in discs])
    middle = np.array([disc.middle_height for disc in discs])
    slip = np.array([disc.slip_percent for disc in discs])
    signal = np.array([disc.signal_ratio for disc in discs])
    narrowed = np.array([disc.narrowed for disc in discs])
    slipped = np.array([disc.slipped for disc in discs])
    grade = np.array([float(disc.pfirrmann) for disc in discs])
    lumbar = np.array([disc.level in LUMBAR for disc in discs])
    sure = lumbar & ~np.array([disc.doubtful for disc in discs])
    lowest = np.array([disc.level == "L5/S1" for disc in discs])
    every = np.ones(len(discs), bool)

    def of(
        name: str, what: Callable, scores: np.ndarray, truth: np.ndarray, part: np.ndarray, aim: str = ""
    ) -> ReaderAgreement:
        return _with_interval(name, what, scores, truth, part & np.isfinite(scores), discs, aim)

    return [
        of("AUC, disc height index, narrowing", area_under_curve, -index, narrowed, every, "0.85"),
        of("  lumbar discs only", area_under_curve, -index, narrowed, lumbar),
        of("  lumbar discs without a flag", area_under_curve, -index, narrowed, sure),
        of("  against what is usual at the level", area_under_curve, -by_level(index, discs), narrowed, every),
        of("AUC, height by depth, narrowing", area_under_curve, -by_depth, narrowed, every),
        of("  against what is usual at the level", area_under_curve, -by_level(by_depth, discs), narrowed, every),
        of("AUC, middle height, narrowing", area_under_curve, -middle, narrowed, every),
        of("  against what is usual at the level", area_under_curve, -by_level(middle, discs), narrowed, every),
        of("AUC, Pfirrmann grade (same reader), narrowing", area_under_curve, grade, narrowed, every),
        of("rho, signal ratio, Pfirrmann grade", rank_correlation, signal, grade, every, "-0.6"),
        of("  lumbar discs only", rank_correlation, signal, grade, lumbar),
        of("AUC, slip forwards, spondylolisthesis", area_under_curve, slip, slipped, every, "0.9"),
        of("  either way", area_under_curve, np.abs(slip), slipped, every),
        of("  L5/S1 only", area_under_curve, slip, slipped, lowest),
    ]


def by_level(values: np.ndarray, discs: Sequence[GradedDisc]) -> np.ndarray:
    """Values (N,) divided by the median of other patients' discs at the same level that were not read as narrowed."""
    level = np.array([disc.level for disc in discs])
    patient = np.array([disc.patient for disc in discs])
    normal = ~np.array([disc.narrowed for disc in discs])
    result = np.full(len(values), np.nan)
    for n in range(len(values)):
        others = values[(level == level[n]) & (patient != patient[n]) & normal & np.isfinite(values)]
        if len(others) >= 3:
            result[n] = values[n] / np.median(others)
    return result


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted half (Mann-Whitney)."""
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        return float("nan")
    pairs = int(positive.sum()) * int((~positive).sum())
    return float(mannwhitneyu(scores[positive], scores[~positive]).statistic / pairs)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho; NaN where undefined."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _with_interval(
    name: str,
    what: Callable,
    scores: np.ndarray,
    truth: np.ndarray,
    part: np.ndarray,
    discs: Sequence[GradedDisc],
    aim: str,
) -> ReaderAgreement:
    """A figure with its `interval`, for which whole patients are drawn."""
    patients = np.array([disc.patient for disc in discs])
    groups = [np.flatnonzero((patients == patient) & part) for patient in sorted(set(patients.tolist()))]

    def of(drawn: np.ndarray) -> float:
        chosen = np.concatenate([groups[number] for number in drawn])
        return float(what(scores[chosen], truth[chosen]))

    low, high = interval(of, np.arange(len(groups)))
    positive = int(truth[part].sum()) if truth.dtype == bool else 0
    return ReaderAgreement(name, what(scores[part], truth[part]), low, high, int(part.sum()), positive, aim)


def table(figures: Sequence[ReaderAgreement]) -> str:
    """The figures as lines of text."""
    lines = [f"{'':47}{'figure':>7}  {'95 % interval':17}{'discs':>6}{'positive':>9}  aim"]
    for figure in figures:
        interval = f"{figure.low:.2f} to {figure.high:.2f}"
        positive = str(figure.positive) if figure.positive else ""
        lines.append(f"{figure.name:47}{figure.value:7.2f}  {interval:17}{figure.discs:6}{positive:>9}  {figure.aim}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table for a folder."""
    parser = tool(_print_table, __doc__)
    parser.add_argument("folder", metavar="DIR", help="SPIDER's T2 SPACE scans with their label maps and readings")
    return run_command(parser, arguments)


def _print_table(options: argparse.Namespace) -> None:
    discs = read_discs(options.folder)
    values = {disc.patient for disc in discs}
    print(
        f"{len(discs)} discs of {len(values)} patients; label maps, not predictions. For research, not for diagnosis."
    )
    print(table(agreements(discs)))


if __name__ == "__main__":
    sys.exit(main())
