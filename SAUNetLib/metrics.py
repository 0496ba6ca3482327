"""How well a label map agrees with another: overlap, surface distances, detection of instances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import surface_distance

LEAST_SHARED = 0.5
"""An instance is found where at least this part of its voxels is."""


@dataclass(frozen=True)
class Agreement:
    """A structure in a predicted and in a true mask; nan where a figure is not defined.

    Attributes:
        dice: 2 |P and T| / (|P| + |T|); 1 where both are empty.
        precision: |P and T| / |P|; nan where nothing was predicted.
        recall: |P and T| / |T|; nan where there is nothing to find.
        jaccard: |P and T| / |P or T|; 1 where both are empty.
        hausdorff_mm: largest distance from one surface to the other (HSD).
        hausdorff95_mm: 95th percentile of these distances, the larger of the two directions.
        surface_distance_mm: mean over both surfaces, weighted by area.
    """

    dice: float
    precision: float
    recall: float
    jaccard: float
    hausdorff_mm: float
    hausdorff95_mm: float
    surface_distance_mm: float


def agreement(predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> Agreement:
    """Compare two masks (k, j, i) of one grid; spacing in mm along k, j, i.

    Surface distances are those of DeepMind's surface-distance package: surfaces between voxels, every element weighted
    by its area (Nikolov et al., J Med Internet Res 2021). Where only one mask is empty they are infinite, where both
    are nan. A single slice is compared by its contours: its faces would be surfaces that always agree.
    """
    both = int(np.count_nonzero(predicted & truth))
    predicted_count, true_count = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    union = predicted_count + true_count - both
    hausdorff = hausdorff95 = mean = math.nan
    if predicted_count and true_count:
        flat = tuple(axis for axis, count in enumerate(truth.shape) if count == 1)[: truth.ndim - 2]
        sizes = [size for axis, size in enumerate(spacing) if axis not in flat]
        distances = surface_distance.compute_surface_distances(truth.squeeze(flat), predicted.squeeze(flat), sizes)
        hausdorff = float(surface_distance.compute_robust_hausdorff(distances, 100.0))
        hausdorff95 = float(surface_distance.compute_robust_hausdorff(distances, 95.0))
        mean = _mean_distance(distances)
    elif predicted_count or true_count:
        hausdorff = hausdorff95 = mean = math.inf
    return Agreement(
        2 * both / (predicted_count + true_count) if union else 1.0,
        both / predicted_count if predicted_count else math.nan,
        both / true_count if true_count else math.nan,
        both / union if union else 1.0,
        hausdorff,
        hausdorff95,
        mean,
    )


def _mean_distance(distances: dict[str, np.ndarray]) -> float:
    """Area-weighted mean of the distances in both directions."""
    total = weight = 0.0
    for side, areas in (("gt_to_pred", "gt"), ("pred_to_gt", "pred")):
        area = distances[f"surfel_areas_{areas}"]
        total += float(np.sum(distances[f"distances_{side}"] * area))
        weight += float(np.sum(area))
    return total / weight


def compare_labels(
    predicted: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], values: Iterable[int] | None = None
) -> dict[int, Agreement]:
    """`agreement` for every label value of two label maps (k, j, i) of one grid, or for the values given."""
    wanted = sorted((set(np.unique(predicted)) | set(np.unique(truth))) - {0}) if values is None else list(values)
    return {int(value): agreement(predicted == value, truth == value, spacing) for value in wanted}


@dataclass(frozen=True)
class Detection:
    """Instances of two label maps matched one to one.

    Attributes:
        matches: true instance -> predicted instance.
        missed: true instances without a match.
        spurious: predicted instances without a match.
    """

    matches: dict[int, int]
    missed: tuple[int, ...]
    spurious: tuple[int, ...]


def detect(predicted: np.ndarray, truth: np.ndarray) -> Detection:
    """Match true to predicted instances, one to one, largest overlap first.

    A pair counts when it shares at least half of the true instance's voxels (`LEAST_SHARED`). Numbers need not agree.

    Args:
        predicted, truth: label maps of one shape, whole numbers; 0 is background, every other value an instance.
    """
    both = (truth > 0) & (predicted > 0)
    joint, counts = np.unique(np.stack((truth[both], predicted[both])).astype(np.int64), axis=1, return_counts=True)
    sizes = {int(value): int(number) for value, number in zip(*np.unique(truth, return_counts=True), strict=True)}
    pairs = sorted(
        ((int(number), int(t), int(p)) for (t, p), number in zip(joint.T, counts, strict=True)), reverse=True
    )
    matches: dict[int, int] = {}
    for number, true, predicted_value in pairs:
        if true not in matches and predicted_value not in matches.values() and number >= LEAST_SHARED * sizes[true]:
            matches[true] = predicted_value
    present = {int(value) for value in np.unique(predicted)} - {0}
    return Detection(
        matches,
        tuple(sorted(set(sizes) - {0} - set(matches))),
        tuple(sorted(present - set(matches.values()))),
    )


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation of a sample; NaN for one value, or where one is not finite."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")
