"""Evaluate a model on each of the project's validation sets: ``python -m SAUNetLib.evaluation.validation``.

The sets are described in the data's own README: patients of SPIDER's T2 SPACE series held out of training (thin slices
and four of them averaged), single slices of routine T1 and T2 scans, vertebral bodies of other scanners.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import VERTEBRA, encodings
from ..command import needs_extra, run_command, tool
from ..engine import Engine
from ..errors import InputError
from ..formats.atomic import write_beside
from ..formats.pages import page
from ..formats.previews import draw_preview, write_preview
from ..formats.volumes import read_image, read_volume
from ..metrics import detect, deviation
from ..model import load_model
from ..pipeline import segment
from ..segmentation import Segmentation
from ..training.self_training import LATERAL, single_slice
from ..volume import SagittalStack, Volume
from .intervals import interval

AHEAD_MM = 10.0
BESIDE_MM = 40.0
"""Distances in front of the drawn bodies, and beside their middle, beyond which no vertebra lies: bodies are about
50 mm wide and transverse processes end at about 40 mm."""
SCANS = ("10010", "10019", "10025", "10031")
"""Routine scans whose slices near the midline no shipped model was trained on; the lateral ones are used since 1.4."""
SCANNERS = {"VB2": "T2 TSE", "VB3": "water-fat"}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95 % percentile interval from a bootstrap over patients.

    Attributes:
        value: over all patients.
        low, high: the interval; NaN if there is only one patient, or the value is not finite.
        deviation: standard deviation over patients; None for a pooled figure.
    """

    value: float
    low: float
    high: float
    deviation: float | None = None


def with_interval(figure: Callable[..., float], *columns: Sequence[float]) -> Estimate:
    """A figure of columns with one entry per patient, and its `interval`: NaN if the figure is not finite."""
    data = [np.asarray(column, float) for column in columns]
    value = float(figure(*data))
    low, high = interval(figure, *data) if np.isfinite(value) else (float("nan"), float("nan"))
    return Estimate(value, low, high)


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean over patients with its interval."""
    whole = with_interval(lambda column: float(np.mean(column)), values)
    return Estimate(whole.value, whole.low, whole.high, deviation(values))


def read_bodies(path: Path) -> np.ndarray:
    """The label map (k, j, i) of drawn bodies."""
    return Volume.from_sitk(read_image(path), path.name).voxels


def routine_slices(engine: Engine, folder: Path, scans: Sequence[str] = SCANS) -> Figures:
    """Vertebra Dice pooled over the slices of routine T1 and T2 scans: all, near the midline, lateral."""
    counts: dict[str, np.ndarray] = {scan: np.zeros((2, 3)) for scan in scans}  # lateral or not; both, found, true
    number = 0
    for path in _slices(folder, scans):
        truth = sitk.GetArrayFromImage(sitk.ReadImage(_truth(path))) > 0
        # The network alone: a slice without its neighbours has no levels to name.
        predicted = engine.classes(SagittalStack.of(single_slice(path)))[0][0] == VERTEBRA
        lateral = int(truth.mean() < LATERAL)
        counts[path.name.split("_")[0]][lateral] += (np.sum(predicted & truth), np.sum(predicted), np.sum(truth))
        number += 1
    table = np.array(list(counts.values()))  # scan, lateral or not, count
    return {
        "scans": list(scans),
        "slices": number,
        "dice vertebra": _pooled(table.sum(1)),
        "dice vertebra midline": _pooled(table[:, 0]),
        "dice vertebra lateral": _pooled(table[:, 1]),
        "lateral pixels": dict(zip(("both", "found", "true"), table[:, 1].sum(0).astype(int).tolist(), strict=True)),
    }


def _slices(folder: Path, scans: Sequence[str]) -> list[Path]:
    return [path for path in sorted(folder.glob("*_image.png")) if path.name.split("_")[0] in scans]


def _truth(path: Path) -> str:
    return str(path.with_name(path.name.replace("_image", "_vertebra")))


def _pooled(counts: np.ndarray) -> Estimate:
    """Dice of counts (patients, 3) summed over patients: voxels in both, found, true; NaN without any.

    A patient without voxels is left out: a resample of it alone would have no Dice.
    """

    def dice(both: np.ndarray, found: np.ndarray, true: np.ndarray) -> float:
        total = float(found.sum() + true.sum())
        return 2 * float(both.sum()) / total if total else float("nan")

    return with_interval(dice, *counts[counts.any(1)].T)


def other_scanners(engine: Engine, folder: Path, prefix: str, leave_out: Sequence[str] = ()) -> Figures:
    """Figures on vertebral bodies of other scanners, of which only some are drawn.

    Args:
        engine: with the model.
        folder: ``external_bodies``.
        prefix: of the patients' names.
        leave_out: patients that the model was tuned on.

    Returns:
        Mean over patients of the recall of body voxels, of all and without the first and last slice of each body (they
        show more muscle than bone, and where a body ends in them is the reader's choice); number of bodies, and of
        those matched one to one (at least half of the body); ml labelled vertebra in front of the drawn bodies or far
        beside them, in all patients.
    """
    recalls, inner, matched, bodies, stray = [], [], [], [], 0.0
    for path in _patients(folder, prefix, leave_out):
        volume = read_volume(path)
        truth = read_bodies(path.with_name(path.name.replace("_image", "_bodies")))
        labels = segment(volume, engine).labels
        vertebrae = np.where(encodings()["levels"].to_classes(labels) == VERTEBRA, labels, 0)
        recalls.append(float(np.mean(vertebrae[truth > 0] > 0)))
        inner.append(_inner_recall(volume, vertebrae, truth))
        detection = detect(vertebrae, truth)
        matched.append(len(detection.matches))
        bodies.append(len(detection.matches) + len(detection.missed))
        stray += _stray(volume, vertebrae > 0, truth > 0) * volume.geometry.voxel_volume / 1000
    return {
        "patients": len(recalls),
        "recall": mean_of(recalls),
        "recall without end slices": mean_of(inner),
        "bodies": sum(bodies),
        "bodies matched": sum(matched),
        "share matched": with_interval(lambda found, drawn: float(found.sum() / drawn.sum()), matched, bodies),
        "stray ml": stray,
    }


def _patients(folder: Path, prefix: str, leave_out: Sequence[str]) -> list[Path]:
    paths = sorted(folder.glob(f"{prefix}_*_image.nii.gz"))
    return [path for path in paths if path.name.removesuffix("_image.nii.gz") not in leave_out]


def _inner_recall(volume: Volume, vertebrae: np.ndarray, bodies: np.ndarray) -> float:
    """Recall of body voxels without the first and the last slice of each body."""
    stack = SagittalStack.of(volume)
    predicted = stack.slices_of(vertebrae) > 0
    drawn = stack.slices_of(bodies)
    inside = np.zeros(drawn.shape, bool)
    for body in np.unique(drawn[drawn > 0]):
        shown = np.flatnonzero((drawn == body).any((1, 2)))[1:-1]
        inside[shown] |= drawn[shown] == body
    return float(np.mean(predicted[inside])) if inside.any() else float("nan")


def _stray(volume: Volume, vertebrae: np.ndarray, bodies: np.ndarray) -> int:
    """Voxels labelled vertebra in front of the bodies drawn in their row, or in slices far beside the bodies."""
    stack = SagittalStack.of(volume)
    predicted = stack.slices_of(vertebrae)
    drawn = stack.slices_of(bodies)
    margin = int(AHEAD_MM / stack.pixel[1])
    flat: np.ndarray = np.logical_or.reduce(drawn, 0)
    rows: np.ndarray = np.logical_or.reduce(flat, 1)
    front = np.where(rows, flat.argmax(1), 0) - margin
    ahead = np.arange(drawn.shape[2])[None, :] < front[:, None]
    seen = np.flatnonzero(drawn.any((1, 2)))
    centre = (seen[0] + seen[-1]) / 2
    beside = np.abs(np.arange(drawn.shape[0]) - centre) * stack.slice_spacing > BESIDE_MM
    return int(np.count_nonzero(predicted & (ahead[None] | (beside[:, None, None] & rows[None, :, None]))))


def validate_all(
    engine: Engine,
    data: Path,
    patients: Sequence[str],
    scans: Sequence[str] = SCANS,
    leave_out: Sequence[str] = (),
) -> dict[str, Figures]:
    """Figures of every set in the data folder, by the set's name; estimated ones are of type `Estimate`.

    Args:
        engine: with the model.
        data: folder of the sets.
        patients: of ``spider_t2space``, held out of training; without any the set is left out.
        scans: of ``spider_tse_slices``, likewise.
        leave_out: patients of ``external_bodies`` to leave out.

    Raises:
        UsageError: NOT_INSTALLED, `patients` need the extra ``train``.
    """
    result: dict[str, Figures] = {}
    if patients:
        with needs_extra("validation", "train"):
            from ..training.held_out import AS_DRAWN, SPECKS, per_patient
        for title, figures in per_patient(engine, data / "spider_t2space", patients).items():
            means = {name: mean_of(values) for name, values in figures.items()}
            truth = "Every labelled component counts." if title.endswith(AS_DRAWN) else SPECKS
            result[f"SPIDER T2 SPACE, {title}"] = {"patients": list(patients), "truth": truth, **means}
    result["SPIDER routine T1/T2 slices"] = routine_slices(engine, data / "spider_tse_slices", scans)
    for prefix, title in SCANNERS.items():
        result[f"other scanners, {title}"] = other_scanners(engine, data / "external_bodies", prefix, leave_out)
    return result


def write_pictures(
    engine: Engine, data: Path, patients: Sequence[str], scans: Sequence[str], folder: Path
) -> list[Path]:
    """One picture for each set: its first patient; for the routine slices one near the midline and a lateral one.

    Those of ``external_bodies`` are for looking only: nothing made from that set may be passed on.
    """
    volumes: dict[str, Volume] = {}
    if patients:
        from ..training.held_out import held_out_images

        for case in held_out_images(data / "spider_t2space", patients[:1]):
            volumes[f"spider-{case.slices.replace(' ', '-')}"] = case.volume
    for prefix, title in SCANNERS.items():
        path = _patients(data / "external_bodies", prefix, ())[0]
        volumes[f"look-only-{title.replace(' ', '-')}"] = read_volume(path)
    paths = []
    for name, volume in volumes.items():
        paths.append(folder / f"{name}.png")
        write_preview(volume, segment(volume, engine), paths[-1])
    return [*paths, _routine_picture(engine, _slices(data / "spider_tse_slices", scans), folder / "spider-routine.png")]


def _routine_picture(engine: Engine, slices: Sequence[Path], path: Path) -> Path:
    shares = {image: float(np.mean(sitk.GetArrayFromImage(sitk.ReadImage(_truth(image))) > 0)) for image in slices}
    lateral = [image for image in slices if shares[image] < LATERAL]
    previews = []
    for fullest in (max(images, key=shares.__getitem__) for images in (slices, lateral) if images):
        volume = single_slice(fullest)
        stack = SagittalStack.of(volume)
        labels = stack.restore(engine.classes(stack)[0])
        previews.append(draw_preview(volume, Segmentation(labels, volume.geometry, encodings()["classes"])))
    with write_beside(path, ".png") as temporary:
        page(previews).save(temporary)
    return path


def as_json(result: Mapping[str, Figures]) -> str:
    """Figures rounded to four decimal places; NaN and infinity become null."""

    def plain(value: object) -> object:
        if isinstance(value, Estimate):
            return {name: plain(part) for name, part in asdict(value).items() if part is not None}
        if isinstance(value, float):
            return round(value, 4) if np.isfinite(value) else None
        return value

    return json.dumps({title: {k: plain(v) for k, v in figures.items()} for title, figures in result.items()}, indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a model as JSON."""
    parser = tool(_print_figures, __doc__)
    parser.add_argument("data", type=Path, help="folder with the validation sets")
    parser.add_argument("--model", metavar="NAME|FILE", help="model to use; `saunet models` lists them")
    parser.add_argument("--patients", nargs="*", default=[], help="patients of spider_t2space that were held out")
    parser.add_argument("--scans", nargs="+", default=SCANS, help=f"of spider_tse_slices; default: {' '.join(SCANS)}")
    parser.add_argument("--leave-out", nargs="*", default=[], help="patients of external_bodies, such as VB3_01")
    said = "write a picture of each set; share only those of SPIDER"
    parser.add_argument("--pictures", type=Path, metavar="DIR", help=said)
    return run_command(parser, arguments)


def _print_figures(options: argparse.Namespace) -> None:
    known = {
        "patients": {path.name.split("_")[0] for path in options.data.glob("spider_t2space/*_image.*")},
        "scans": {path.name.split("_")[0] for path in options.data.glob("spider_tse_slices/*_image.png")},
        "leave_out": {
            path.name.removesuffix("_image.nii.gz") for path in options.data.glob("external_bodies/*_image.*")
        },
    }
    for name, there in known.items():
        if missing := sorted(set(getattr(options, name)) - there):
            raise InputError(
                "INPUT_NOT_FOUND",
                f"{options.data} does not hold {', '.join(missing)}",
                f"Correct the folder or --{name.replace('_', '-')}",
            )
    engine = Engine(load_model(options.model))
    print(as_json(validate_all(engine, options.data, options.patients, options.scans, options.leave_out)))
    if options.pictures:
        write_pictures(engine, options.data, options.patients, options.scans, options.pictures)


if __name__ == "__main__":
    sys.exit(main())
