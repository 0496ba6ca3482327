"""Measures of vertebral bodies: heights, depth, ratios, and height loss relative to the neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .endplates import Section
from .results import LOW_CONFIDENCE, MISSING, PARTIAL, Measure

HEIGHTS = ("height_anterior_mm", "height_middle_mm", "height_posterior_mm")
GENANT_PERCENT = (20.0, 25.0, 40.0)
"""Lower limits of grades 1 to 3 (Genant et al. 1993, doi:10.1002/jbmr.5650080915)."""
GRADED = ("T4", "L4")
"""First and last body with Genant's bands."""
TALLEST_MM = 45.0
"""No lumbar body is taller: two are labelled as one."""
STEEPEST_DEG = 40.0
"""No body is more wedged: a part of it is missing."""
_COMPARED = (*HEIGHTS, "depth_mm")
_EACH_SIDE = 2
"""A body is compared with up to this many above and below."""
_ALIKE = 0.8
"""If one of two bodies is lower than this fraction of the other, it may be collapsed (Genant's lowest limit)."""
_FLAT = 0.6
"""Bodies whose middle height is below this fraction of their depth are flat themselves: SPIDER's patients have medians
of 0.6 to 0.9, except one with 0.5, whose bodies are all collapsed."""
_DERIVED = ("depth_mm", "wedge_ratio", "biconcavity_ratio", "wedge_angle_deg")


def body_measures(section: Section | None) -> dict[str, Measure]:
    """Heights, depth and ratios of one body, on its mid-sagittal section.

    Anterior and posterior height: distance between upper and lower corner; middle height: between the endplates
    half-way between the corners (the six points of quantitative morphometry: Genant et al. 1993). Depth: mean distance
    between front and back corner of the two endplates. Wedge ratio: anterior / posterior height; biconcavity ratio:
    middle / posterior height. Wedge angle: between the endplates, each from corner to corner; positive where the front
    is lower.
    """
    if section is None:
        return dict.fromkeys((*HEIGHTS, *_DERIVED), Measure.none(LOW_CONFIDENCE))
    upper, lower, flags = section.upper, section.lower, section.flags
    if upper.cut or lower.cut:
        return dict.fromkeys((*HEIGHTS, *_DERIVED), Measure.none(PARTIAL))
    anterior, middle, posterior = (
        float(np.linalg.norm(getattr(upper, place) - getattr(lower, place))) for place in ("front", "middle", "back")
    )
    values = {
        "height_anterior_mm": anterior,
        "height_middle_mm": middle,
        "height_posterior_mm": posterior,
        "depth_mm": (upper.depth + lower.depth) / 2,
        "wedge_ratio": anterior / posterior if posterior > 0 else None,
        "biconcavity_ratio": middle / posterior if posterior > 0 else None,
        "wedge_angle_deg": sagittal_angle(lower.along, upper.along, section.frame.axes[0]),
    }
    if max(anterior, middle, posterior) > TALLEST_MM or abs(values["wedge_angle_deg"] or 0.0) > STEEPEST_DEG:
        flags = flags | {LOW_CONFIDENCE}
    return {name: Measure.of(value, flags) for name, value in values.items()}


def sagittal_angle(first: np.ndarray, second: np.ndarray, left: np.ndarray) -> float:
    """Degrees by which a second direction to the back (3,) rises above the first, seen along the axis `left` (3,)."""
    back = first - (first @ left) * left
    up = np.cross(left, back)
    up = up if up[1] < 0 else -up  # the space's second axis points down
    return float(np.degrees(np.arctan2(second @ up / np.linalg.norm(up), second @ back / np.linalg.norm(back))))


def height_losses(bodies: Sequence[Mapping[str, Measure]]) -> list[dict[str, Measure]]:
    """Height loss and Genant's band of consecutive bodies, given from the top down.

    Each of the three heights is compared with the median of the same height in the two nearest bodies above and the two
    nearest below with good figures, so that a collapsed one among them does not count; one of each where there are not
    two. The loss is the largest of the three, at least 0. It is flagged where all bodies compared with lie on one side,
    since bodies become taller down a healthy spine; where a single pair differs so much that one may be collapsed; and
    where the bodies compared with are flat themselves. The bands follow Genant et al. 1993: from 20 % grade 1, from
    25 % grade 2, from 40 % grade 3.
    """
    table = np.array(
        [[np.nan if body[name].value is None else body[name].value for name in _COMPARED] for body in bodies]
    )
    sure = [not body[HEIGHTS[0]].flags for body in bodies]
    results = []
    for n, own in enumerate(table):
        near, doubt = _compared_with(n, table, sure)
        flags = set(bodies[n][HEIGHTS[0]].flags)
        if not np.isfinite(own).all():
            results.append(_no_loss(*flags))
        elif not near:
            # Segmented neighbours that could not be measured give the reason.
            beside = {
                flag for body in (*bodies[max(0, n - 1) : n], *bodies[n + 1 : n + 2]) for flag in body[HEIGHTS[0]].flags
            }
            results.append(_no_loss(*(beside or {MISSING})))
        else:
            usual = np.median(table[near], axis=0)
            loss = max(0.0, float(np.max(100 * (usual[:3] - own[:3]) / usual[:3])))  # in this order 20 % is exactly 20
            if doubt or usual[1] < _FLAT * usual[3]:
                flags.add(LOW_CONFIDENCE)
            grade = int(np.searchsorted(GENANT_PERCENT, loss, side="right"))
            results.append({"height_loss_percent": Measure.of(loss, flags), "genant_grade": Measure.of(grade, flags)})
    return results


def _compared_with(n: int, table: np.ndarray, sure: Sequence[bool]) -> tuple[list[int], bool]:
    """The bodies that body `n` of a table (N, 4) is compared with, and whether the comparison is doubtful."""
    others = [m for m in range(len(table)) if m != n and np.isfinite(table[m]).all()]
    others.sort(key=lambda m: abs(m - n))
    good = [m for m in others if sure[m]]
    above, below = [m for m in good if m < n][:_EACH_SIDE], [m for m in good if m > n][:_EACH_SIDE]
    count = min(len(above), len(below))
    if not count:
        return (good if len(good) > _EACH_SIDE else others)[: 2 * _EACH_SIDE], True
    near = [*above[:count], *below[:count]]
    heights = table[near, :3]
    return near, count == 1 and bool((heights.min(axis=0) < _ALIKE * heights.max(axis=0)).any())


def _no_loss(*flags: str) -> dict[str, Measure]:
    return dict.fromkeys(("height_loss_percent", "genant_grade"), Measure.none(*flags))
