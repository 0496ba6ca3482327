"""Curves of the spine: lordosis in the sagittal plane, Cobb's angle in the coronal plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import convolve1d

from .endplates import Endplate
from .results import ESTIMATED, FEW_SLICES, PARTIAL, Measure
from .vertebrae import sagittal_angle

_FEWEST, _SEEN = 3, 0.6
"""Fewest endplates of a column, and smallest fraction, with a known tilt for a coronal angle (chosen by hand)."""


def lordosis(upper: Endplate, lower: Endplate) -> Measure:
    """Angle between two endplates in the sagittal plane, positive in lordosis (Cobb's method).

    The plane is that of the two endplates' own frames, not the image's.
    """
    if upper.cut or lower.cut:
        return Measure.none(PARTIAL)
    left = upper.frame.axes[0] + lower.frame.axes[0]
    angle = sagittal_angle(upper.along, lower.along, left / np.linalg.norm(left))
    return Measure.of(angle, {*upper.flags, *lower.flags, *([ESTIMATED] if lower.estimated else [])})


def coronal_angle(column: Sequence[tuple[str, Endplate | None]], turn_seen: bool) -> tuple[str, Measure] | None:
    """Angle between the most tilted endplates in the coronal plane (Cobb's method), and which these are.

    The plane is spanned by the mean left and the mean upward axis of the endplates' frames. Each tilt is averaged with
    its neighbours (weights 1, 2, 1), since that of a single endplate is uncertain in thick slices. Slices that show
    only part of the bodies' width give no angle. If the direction to the back is unknown (`turn_seen`), lordosis leaks
    into the angle, and it is flagged. It is also flagged where whole endplates at either end of the column have no
    known tilt: they may be the most tilted.

    Args:
        column: level and endplate from the top down; None for the endplates of a body without a section.
        turn_seen: whether any body's direction to the back is known.

    Returns:
        The levels of the two most tilted endplates, as ``T11-L3`` or ``L4``, and the angle; without an angle, the
        range of levels that the endplates cover. None for fewer than three whole endplates.
    """
    whole = [n for n, (_, plate) in enumerate(column) if plate is not None and not plate.cut]
    if len(whole) < _FEWEST:
        return None
    column = column[whole[0] : whole[-1] + 1]
    plates = [plate for _, plate in column]
    told = {n: plate for n, plate in enumerate(plates) if plate is not None and _tells_tilt(plate)}
    seen = list(told)
    if len(seen) < max(_FEWEST, _SEEN * len(column)):
        first, last = (seen[0], seen[-1]) if len(seen) >= _FEWEST else (0, -1)
        return f"{column[first][0]}-{column[last][0]}", Measure.none(FEW_SLICES)
    flags = set() if turn_seen else {FEW_SLICES}
    for plate in (*plates[: seen[0]], *plates[seen[-1] + 1 :]):
        if plate is not None and not plate.cut:
            flags |= plate.flags or {FEW_SLICES}
    tilts = _smoothed_tilts(list(told.values()))
    first, last = sorted((seen[int(tilts.argmax())], seen[int(tilts.argmin())]))
    ends = dict.fromkeys(column[n][0] for n in (first, last))  # both may be one vertebra's
    return "-".join(ends), Measure.of(float(np.ptp(tilts)), flags)


def _tells_tilt(plate: Endplate) -> bool:
    return not (plate.cut or plate.flags) and plate.across is not None


def _smoothed_tilts(plates: Sequence[Endplate]) -> np.ndarray:
    """Tilts (N,) of endplates in the coronal plane in degrees, each smoothed with its neighbours."""
    up = np.sum([plate.frame.axes[2] for plate in plates], axis=0)
    up = up / np.linalg.norm(up)
    left = np.sum([plate.frame.axes[0] for plate in plates], axis=0)
    left = left - (left @ up) * up
    left = left / np.linalg.norm(left)
    tilts = np.degrees([np.arctan2(across @ up, across @ left) for across in (plate.across for plate in plates)])
    return np.asarray(convolve1d(tilts, (0.25, 0.5, 0.25), mode="nearest"))
