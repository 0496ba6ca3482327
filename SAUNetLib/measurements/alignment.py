"""Curves of the spine: lordosis in the sagittal plane, Cobb's angle in the coronal plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .endplates import Endplate
from .results import ESTIMATED, FEW_SLICES, PARTIAL, Measure
from .vertebrae import sagittal_angle


def lordosis(upper: Endplate, lower: Endplate) -> Measure:
    """Angle between two endplates in the sagittal plane, positive in lordosis (Cobb's method).

    The plane is that of the two endplates' own frames, not the image's.
    """
    if upper.cut or lower.cut:
        return Measure.none(PARTIAL)
    left = upper.frame.axes[0] + lower.frame.axes[0]
    angle = sagittal_angle(upper.along, lower.along, left / np.linalg.norm(left))
    return Measure.of(angle, {*upper.flags, *lower.flags, *([ESTIMATED] if lower.estimated else [])})


def coronal_angle(plates: Sequence[Endplate], turn_seen: bool) -> Measure:
    """Angle between the most tilted of the endplates (from the top down) in the coronal plane (Cobb's method).

    The plane is spanned by the mean left and the mean upward axis of the endplates' frames. Each tilt is the mean with
    its neighbours, weights 1, 2, 1, since a single endplate's is uncertain in thick slices. Slices that show only a
    part of the bodies' width give none. Without a known direction to the back (`turn_seen`) lordosis leaks into the
    figure, and it is flagged.
    """
    plates = [plate for plate in plates if not (plate.cut or plate.flags)]
    seen = [plate for plate in plates if plate.across is not None]
    if len(seen) < 3 or len(seen) < 0.6 * len(plates):
        return Measure.none(FEW_SLICES)
    up = np.sum([plate.frame.axes[2] for plate in seen], axis=0)
    up = up / np.linalg.norm(up)
    left = np.sum([plate.frame.axes[0] for plate in seen], axis=0)
    left = left - (left @ up) * up
    left = left / np.linalg.norm(left)
    tilts = np.degrees([np.arctan2(across @ up, across @ left) for across in (plate.across for plate in seen)])
    padded = np.pad(tilts, 1, mode="edge")
    smoothed = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return Measure.of(float(np.ptp(smoothed)), set() if turn_seen else {FEW_SLICES})
