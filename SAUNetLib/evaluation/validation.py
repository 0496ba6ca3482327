"""What a model does on each validation set of the project, kept apart: ``python -m SAUNetLib.evaluation.validation``.

The sets are described in the data's own README: patients of SPIDER's T2 SPACE series kept out of training (thin slices
and four of them averaged), single slices of routine T1 and T2 scans, vertebral bodies of other scanners.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..anatomy import VERTEBRA, to_classes
from ..engine import Engine
from ..formats.volumes import read_volume
from ..metrics import detect
from ..model import DEFAULT_MODEL, load_model
from ..pipeline import segment
from ..training.self_training import single_slice
from ..volume import SagittalStack, Volume

LATERAL = 0.03
"""Routine slices with a smaller share of vertebra than this lie beside the bodies."""
AHEAD_MM = 10.0
BESIDE_MM = 40.0


def routine_slices(engine: Engine, folder: Path) -> dict[str, float]:
    """Vertebra Dice pooled over the routine T1 and T2 slices: all, near the midline, lateral."""
    counts: list[tuple[int, int, int, bool]] = []
    for path in sorted(folder.glob("*_image.png")):
        truth = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path.with_name(path.name.replace("_image", "_vertebra"))))) > 0
        )
        # The network alone: a slice without its neighbours has no levels to name.
        found = engine.classes(SagittalStack.of(single_slice(path)))[0][0] == VERTEBRA
        lateral = bool(truth.mean() < LATERAL)
        counts.append((int(np.sum(found & truth)), int(np.sum(found)), int(np.sum(truth)), lateral))
    return {
        "slices": len(counts),
        "dice vertebra": _pooled(counts, lambda lateral: True),
        "dice vertebra midline": _pooled(counts, lambda lateral: not lateral),
        "dice vertebra lateral": _pooled(counts, lambda lateral: lateral),
    }


def _pooled(counts: Sequence[tuple[int, int, int, bool]], keep: Callable[[bool], bool]) -> float:
    kept = np.array([row[:3] for row in counts if keep(row[3])], float).sum(0)
    return float(2 * kept[0] / max(kept[1] + kept[2], 1))


def other_scanners(engine: Engine, folder: Path, prefix: str) -> dict[str, float]:
    """Vertebral bodies drawn by others, of which only some are drawn.

    Returns:
        mean and standard deviation over patients of the recall of body voxels; bodies and how many of them were matched
        one to one (at least half of the body); ml labelled vertebra ahead of the drawn bodies or far beside them.
    """
    recalls, matched, bodies, stray = [], 0, 0, 0.0
    for path in sorted(folder.glob(f"{prefix}_*_image.nii.gz")):
        volume = read_volume(path)
        truth = read_volume(path.with_name(path.name.replace("_image", "_bodies"))).voxels
        labels = segment(volume, engine).labels
        vertebrae = np.where(to_classes(labels) == VERTEBRA, labels, 0)
        recalls.append(float(np.mean(vertebrae[truth > 0] > 0)))
        found = detect(vertebrae, truth)
        matched, bodies = matched + len(found.matches), bodies + len(found.matches) + len(found.missed)
        stray += _stray(volume, vertebrae > 0, truth > 0) * volume.geometry.voxel_volume / 1000
    return {
        "patients": len(recalls),
        "recall mean": float(np.mean(recalls)),
        "recall deviation": float(np.std(recalls)),
        "bodies": bodies,
        "bodies matched": matched,
        "stray ml": stray,
    }


def _stray(volume: Volume, vertebrae: np.ndarray, bodies: np.ndarray) -> int:
    """Voxels labelled vertebra ahead of the bodies drawn in their row, or in slices far beside the bodies."""
    stack = SagittalStack.of(volume)
    found = SagittalStack.of(Volume(vertebrae, volume.geometry)).slices
    drawn = SagittalStack.of(Volume(bodies, volume.geometry)).slices
    margin = int(AHEAD_MM / stack.pixel[1])
    flat: np.ndarray = np.logical_or.reduce(drawn, 0)
    rows: np.ndarray = np.logical_or.reduce(flat, 1)
    front = np.where(rows, flat.argmax(1), 0) - margin
    ahead = np.arange(drawn.shape[2])[None, :] < front[:, None]
    seen = np.flatnonzero(drawn.any((1, 2)))
    centre = (seen[0] + seen[-1]) / 2
    beside = np.abs(np.arange(drawn.shape[0]) - centre) * stack.slice_spacing > BESIDE_MM
    return int(np.count_nonzero(found & (ahead[None] | (beside[:, None, None] & rows[None, :, None]))))


def validate_all(engine: Engine, data: Path, patients: Sequence[str]) -> dict[str, dict[str, object]]:
    """Every set that lies in the data folder, by name."""
    from ..training.run import validate

    result: dict[str, dict[str, object]] = {}
    if patients:
        for title, figures in validate(engine, data / "spider_t2space", patients).items():
            result[f"SPIDER T2 SPACE, {title}"] = dict(figures)
    result["SPIDER routine T1/T2 slices"] = dict(routine_slices(engine, data / "spider_tse_slices"))
    for prefix, title in (("VB2", "T2 TSE"), ("VB3", "water-fat")):
        result[f"other scanners, {title}"] = dict(other_scanners(engine, data / "external_bodies", prefix))
    return result


def main() -> None:
    """Print the figures of a model as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the validation sets")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--patients", nargs="*", default=[], help="patients of spider_t2space that were kept out")
    options = parser.parse_args()
    engine = Engine(load_model(options.model))
    print(json.dumps(validate_all(engine, options.data, options.patients), indent=2))


if __name__ == "__main__":
    main()
