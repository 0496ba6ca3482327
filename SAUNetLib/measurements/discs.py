"""Measures of discs: heights, disc height index, segmental angle and slip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..anatomy import structures, value_of
from .alignment import lordosis
from .endplates import Endplate, Section
from .landmarks import Landmarks
from .results import ESTIMATED, LOW_CONFIDENCE, MISSING, PARTIAL, Measure
from .space import AnatomicalFrame
from .vertebrae import HEIGHTS

NAMES = (
    *HEIGHTS, "disc_height_depth_ratio", "disc_height_index", "segmental_angle_deg", "slip_mm", "slip_percent",
    "meyerding_grade",
)  # fmt: skip
NO_SLIP_MM = 3.0
"""Least displacement that is a slip; below it, the grade is 0."""
_SURE_SLIP_MM = 5.0
"""Least certain slip on an estimated endplate: up to 3.9 mm were measured where none is visible."""
_FAR_BACK_MM, _FAR_BACK_PERCENT = -6.0, -20.0
"""Limits of backward slip, beyond which a rounded corner or a spur causes it: SPIDER's others without a flag reach
-5.3 mm and -19 %."""
_TALLEST_MM = 25.0
_SHORTEST_MM = 5.0
"""Least depth of an endplate; a shorter one is only a remnant."""


def disc_measures(value: int, landmarks: Landmarks, bodies: Mapping[int, Mapping[str, Measure]]) -> dict[str, Measure]:
    """All geometric measures of a disc. `bodies` holds the measures of vertebrae by label value."""
    above, below = neighbouring_endplates(value, landmarks)
    beside = [bodies.get(side.get(value, 0)) for side in (landmarks.above, landmarks.below)]
    if above is None or below is None:
        flags: set[str] = set()
        for body, plate, level in zip(beside, (above, below), structures()[value].level.split("/"), strict=True):
            # The flags of a body that is segmented but has no section say why.
            own = body or bodies.get(value_of(level))
            flags |= set() if plate is not None else set(own[HEIGHTS[0]].flags) if own else {MISSING}
        return dict.fromkeys(NAMES, Measure.none(*(flags or {MISSING})))
    if above.cut or below.cut:
        return dict.fromkeys(NAMES, Measure.none(PARTIAL))
    heights = _heights(landmarks.discs.get(value), above, below)
    return heights | {
        "disc_height_index": _index(heights, beside),
        "segmental_angle_deg": lordosis(above, below),
        **_slip(above, below),
    }


def neighbouring_endplates(value: int, landmarks: Landmarks) -> tuple[Endplate | None, Endplate | None]:
    """The endplates above and below a disc; below the lowest one, without a sacrum, the disc's own lower border."""
    above = landmarks.bodies.get(landmarks.above.get(value, 0))
    below = landmarks.bodies.get(landmarks.below.get(value, 0))
    section = landmarks.discs.get(value)
    upper = above.lower if above else None
    lower = below.upper if below else None
    if lower is None and value == landmarks.lumbosacral and section is not None:
        lower = section.as_endplate(upper)
    return upper, lower


def disc_frame(above: Endplate, below: Endplate) -> AnatomicalFrame:
    """The frame half-way between the adjacent endplates: a disc's own outline is sheared where a body has slipped."""
    return AnatomicalFrame.facing(
        (above.middle + below.middle) / 2, above.normal + below.normal, above.along + below.along
    )


def _heights(section: Section | None, above: Endplate, below: Endplate) -> dict[str, Measure]:
    """Heights from bone to bone along the endplates' mean normal, so that a slip does not change them.

    Anterior, middle and posterior: between the corners and the middles of the endplates above and below. The disc's own
    mask is not measured: spurs and bulges widen a narrowed disc in front of and behind the bodies.
    """
    names = (*HEIGHTS, "disc_height_depth_ratio")
    up = disc_frame(above, below).axes[2]
    values = [float((getattr(above, at) - getattr(below, at)) @ up) for at in ("front", "middle", "back")]
    ratio = (values[0] + values[2]) / (above.depth + below.depth)
    flags = _caveat(above, below) | (section.flags if section is not None else set())
    if min(values) < 0 or max(values) > _TALLEST_MM:
        flags = flags | {LOW_CONFIDENCE}
    return {name: Measure.of(max(value, 0.0), flags) for name, value in zip(names, (*values, ratio), strict=True)}


def _index(heights: Mapping[str, Measure], bodies: list[Mapping[str, Measure] | None]) -> Measure:
    """Mean of the disc's three heights over the mean middle height of the bodies above and below, or of one of them.

    The flag of a body without a height shows that only the other one was used; the sacrum never has one.
    """
    disc_heights = [heights[name] for name in HEIGHTS]
    body_heights = [body["height_middle_mm"] for body in bodies if body]
    if any(height.value is None for height in disc_heights):
        return Measure.none(*disc_heights[0].flags)
    if not any(height.value for height in body_heights):
        return Measure.none(PARTIAL if body_heights else MISSING)
    flags = {flag for height in (*disc_heights, *body_heights) for flag in height.flags}
    mean_body = float(np.mean([height.value for height in body_heights if height.value]))
    mean_disc = float(np.mean([height.value for height in disc_heights if height.value is not None]))
    return Measure.of(mean_disc / mean_body, flags)


def _slip(above: Endplate, below: Endplate) -> dict[str, Measure]:
    """Displacement of the upper body's lower posterior corner relative to the lower body's upper posterior corner.

    In mm along the lower endplate, positive forwards; in percent of the depth of that endplate; and as Meyerding's
    grade (1932) of forward slips, in bands of 25 %: 1 up to 25 %, 2 up to 50 %, 3 up to 75 %, 4 up to 100 %, 5 beyond;
    0 below 3 mm and for backward slips, where half of the L4/L5 discs that nobody read as slipped would get a grade
    (docs/measurements.md).

    A disc extends as far as the body above has slipped, so an endplate estimated from it is too long: it counts as no
    longer than the endplate above.
    """
    names = ("slip_mm", "slip_percent", "meyerding_grade")
    if below.depth < _SHORTEST_MM:
        return dict.fromkeys(names, Measure.none(LOW_CONFIDENCE))
    slip = float((below.back - above.back) @ below.along)
    percent = 100 * slip / (min(above.depth, below.depth) if below.estimated else below.depth)
    grade = 0 if slip < NO_SLIP_MM else int(np.clip(np.ceil(percent / 25), 1, 5))
    far_back = slip < _FAR_BACK_MM or percent < _FAR_BACK_PERCENT
    flags = _caveat(above, below) | ({LOW_CONFIDENCE} if far_back else set())
    doubt = {LOW_CONFIDENCE} if below.estimated and grade and slip < _SURE_SLIP_MM else set()
    return {
        "slip_mm": Measure.of(slip, flags),
        "slip_percent": Measure.of(percent, flags),
        "meyerding_grade": Measure.of(grade, flags | doubt),
    }


def _caveat(above: Endplate, below: Endplate) -> set[str]:
    return {*above.flags, *below.flags, *([ESTIMATED] if below.estimated else [])}
