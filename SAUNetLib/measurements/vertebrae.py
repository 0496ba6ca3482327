"""Measures of vertebral bodies: heights, depth, ratios, and the height lost against the neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .plates import Section
from .results import LOW_CONFIDENCE, MISSING, PARTIAL, Measure

HEIGHTS = ("height_anterior_mm", "height_middle_mm", "height_posterior_mm")
GENANT_PERCENT = (20.0, 25.0, 40.0)
"""Lower limits of grades 1 to 3 (Genant et al. 1993, doi:10.1002/jbmr.5650080915)."""
GRADED = ("T4", "L4")
"""The bodies from here to there have Genant's bands."""
TALLEST_MM = 45.0
"""No lumbar body is so tall: two are labelled as one."""
_COMPARED = 4
"""So many bodies a body is compared with, where there are so many."""
_LEAST_COMPARED = 3
"""Among fewer, one that is itself collapsed counts."""
_DERIVED = ("depth_mm", "wedge_ratio", "biconcavity_ratio", "wedge_angle_deg")


def body_measures(section: Section | None) -> dict[str, Measure]:
    """Heights, depth and ratios of one body, on its mid-sagittal section.

    Anterior and posterior height: distance of the upper from the lower corner; middle height: of the endplates half-way
    between the corners (the six points of quantitative morphometry: Genant et al. 1993). Depth: mean distance of the
    front from the back corners at the two endplates. Wedge ratio: anterior by posterior height; biconcavity ratio:
    middle by posterior height. Wedge angle: between the endplates' directions, each that of the chord of a parabola
    through the endplate's central 90 %; positive where the front is lower.
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
    if max(anterior, middle, posterior) > TALLEST_MM:
        flags = flags | {LOW_CONFIDENCE}
    return {name: Measure.of(value, flags) for name, value in values.items()}


def sagittal_angle(first: np.ndarray, second: np.ndarray, left: np.ndarray) -> float:
    """Degrees by which a second direction to the back (3,) rises above the first, seen along the axis `left` (3,)."""
    back = first - (first @ left) * left
    up = np.cross(left, back)
    up = up if up[1] < 0 else -up  # the space's second axis points down
    return float(np.degrees(np.arctan2(second @ up / np.linalg.norm(up), second @ back / np.linalg.norm(back))))


def height_losses(heights: Sequence[Mapping[str, Measure]]) -> list[dict[str, Measure]]:
    """Height loss and Genant's band of bodies given from the top down, consecutive ones beside each other.

    Each of the three heights is compared with the median of the same height of the four nearest bodies whose figures
    are good, so that one among them which is itself collapsed does not count; the loss is the largest of the three, at
    least 0. Where there are not three such bodies, others are taken too and the figure is flagged; so it is where all
    of them lie on one side, since bodies differ in height along a healthy spine. The bands follow Genant et al. 1993:
    from 20 % grade 1, from 25 % grade 2, from 40 % grade 3.
    """
    table = np.array([[np.nan if h[name].value is None else h[name].value for name in HEIGHTS] for h in heights], float)
    results = []
    flagged = [bool(one[HEIGHTS[0]].flags) for one in heights]
    for n, own in enumerate(table):
        others = [m for m in range(len(table)) if m != n and np.isfinite(table[m]).all()]
        others.sort(key=lambda m: abs(m - n))
        near = [m for m in others if not flagged[m]][:_COMPARED]
        good = len(near) >= _LEAST_COMPARED
        if not good:
            near = others[:_COMPARED]
        if not np.isfinite(own).all():
            results.append(_no_loss(*heights[n][HEIGHTS[0]].flags))
            continue
        if not near:
            results.append(_no_loss(MISSING))
            continue
        loss = float(np.max(1 - own / np.median(table[near], axis=0)))
        loss = 100 * max(0.0, loss)
        one_sided = all(m > n for m in near) or all(m < n for m in near)
        flags = set(heights[n][HEIGHTS[0]].flags) | ({LOW_CONFIDENCE} if one_sided or not good else set())
        grade = int(np.searchsorted(GENANT_PERCENT, loss, side="right"))
        results.append({"height_loss_percent": Measure.of(loss, flags), "genant_grade": Measure.of(grade, flags)})
    return results


def _no_loss(*flags: str) -> dict[str, Measure]:
    return dict.fromkeys(("height_loss_percent", "genant_grade"), Measure.none(*flags))
