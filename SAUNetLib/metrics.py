"""How well two label maps agree: overlap, surface distances, detection of instances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import surface_distance
from scipy.ndimage import find_objects

LEAST_SHARED = 0.5
"""An instance is found if a prediction covers at least this fraction of its voxels."""


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
    """Compare two masks (k, j, i) on one grid; spacing in mm along k, j, i.

    Surface distances are those of DeepMind's surface-distance package: surfaces between voxels, every element weighted
    by its area (Nikolov et al., J Med Internet Res 2021). They are infinite where only one mask is empty, nan where
    both are. A single slice is compared by its contours, since its two faces would always agree.
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
    """`agreement` for every label value of two label maps (k, j, i) on one grid, or for the values given."""
    objects = enumerate(find_objects(np.stack([predicted, truth])), 1)
    boxes = {value: both[1:] for value, both in objects if both is not None}
    result = {}
    for value in boxes if values is None else values:
        # With a margin, so that a structure in one slice of several is not compared as a single slice.
        box = tuple(slice(max(0, span.start - 1), span.stop + 1) for span in boxes.get(value, ()))
        result[int(value)] = agreement(predicted[box] == value, truth[box] == value, spacing)
    return result


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
        predicted, truth: integer label maps of one shape; 0 is background, every other value an instance. Values must
            not exceed some hundreds, since all pairs of them are counted.
    """
    width = 1 + int(max(predicted.max(), truth.max()))
    # Slice by slice, since counting needs eight bytes per voxel.
    pairs = (np.ravel(t.astype(np.intp) * width + p.astype(np.intp)) for t, p in zip(truth, predicted, strict=True))
    counts = sum((np.bincount(pair, minlength=width**2) for pair in pairs), np.zeros(width**2, int))
    joint = counts.reshape(width, width)
    sizes, found = joint.sum(axis=1), joint.sum(axis=0)
    shared = sorted(((int(joint[t, p]), int(t), int(p)) for t, p in np.argwhere(joint) if t and p), reverse=True)
    matches: dict[int, int] = {}
    for number, true, predicted_value in shared:
        if true not in matches and predicted_value not in matches.values() and number >= LEAST_SHARED * sizes[true]:
            matches[true] = predicted_value
    return Detection(
        matches,
        tuple(value for value in np.flatnonzero(sizes).tolist() if value and value not in matches),
        tuple(value for value in np.flatnonzero(found).tolist() if value and value not in matches.values()),
    )


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation of a sample; NaN for one value, or where one is not finite."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")
