"""Notices about the slices of an image: empty ones, padding, distance and order."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from ..notices import Notice
from ..volume import FARTHEST_MM
from .slice_order import about_order

_MUCH_OF_SLICE = 1 / 8
"""Fraction of a slice's height: a smaller empty part at the bottom is not reported (chosen by hand)."""


def about_slices(slices: np.ndarray, spacing_mm: float, outside_ml: float) -> tuple[Notice, ...]:
    """Notices about slices (S, H, W) that are empty or partly empty, far apart or out of order, and about padding.

    `outside_ml` is the volume that `clear_padding` removed.
    """
    notices = []
    if empty := _about_empty(slices):
        missing = "Structures there were not found and are missing from all volumes and measurements."
        notices.append(Notice("EMPTY_SLICES", f"{empty}. {missing}"))
    if outside_ml:
        lies = (
            f"{outside_ml:.1f} ml of the structures found lie where the file holds padding instead of image data, and "
            "were left out."
        )
        notices.append(Notice("OUTSIDE_IMAGE", f"{lies} Structures that reach the padding are cut there."))
    if len(slices) > 1 and spacing_mm > FARTHEST_MM:
        lie = f"Slices are {spacing_mm:.3g} mm apart; SAUNet was tested with up to {FARTHEST_MM:g} mm."
        notices.append(Notice("SLICES_FAR_APART", f"{lie} Structures between slices are missed."))
    elif order := about_order(slices):
        notices.append(order)
    return tuple(notices)


def _about_empty(slices: np.ndarray) -> str:
    """Text on how many slices (S, H, W) are empty, or empty below unlike their neighbours; empty if there are none.

    After an interrupted copy the rest of a file may be zeros, and files copied at the same time lie side by side. Outer
    slices in air would look the same, but none did in 47 volumes.
    """
    height = slices.shape[1]
    rows = [_empty_rows(pixels) for pixels in slices]
    whole, part = rows.count(height), 0
    for shown, group in groupby(enumerate(rows), lambda one: one[1] == 0):
        run = [] if shown else list(group)
        cut = sum(height * _MUCH_OF_SLICE <= empty < height for _, empty in run)
        between = bool(run) and run[0][0] > 0 and run[-1][0] < len(rows) - 1
        part += cut if between or (cut == 1 and len(run) < len(rows)) else 0
    told = ((whole, ""), (part, " in their lower part, as after an interrupted copy"))
    return "; ".join(f"{count} of {len(rows)} slices show nothing{where}" for count, where in told if count)


def _empty_rows(pixels: np.ndarray) -> int:
    """How many rows of a slice (H, W), from the lowest up, hold a single value."""
    value = pixels[-1, -1]
    if (pixels[-1] != value).any():  # most slices: quick to find out
        return 0
    shown = np.flatnonzero((pixels != value).any(axis=1))
    return int(len(pixels) - 1 - shown[-1]) if len(shown) else len(pixels)
