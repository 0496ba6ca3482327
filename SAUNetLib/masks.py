"""Masks and label maps as sagittal slices: the box around them, their components, what the field of view cuts."""

from __future__ import annotations

import cc3d
import numpy as np

Box = tuple[slice, slice, slice]
_CUT = 0.4
"""An outermost slice with this share of what the fullest one shows cuts the structure (chosen by hand)."""


def bounding_box(classes: np.ndarray) -> Box | None:
    """The smallest box around everything that is not background."""
    rows = np.asarray(classes.any(axis=2))
    spans = (rows.any(axis=1), rows.any(axis=0), classes.any(axis=(0, 1)))
    if not spans[0].any():
        return None
    ends = [np.flatnonzero(span)[[0, -1]] for span in spans]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)  # type: ignore[return-value]


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Numbers (S, H, W) from 1 of a mask's connected components; faces, edges and corners connect (26 neighbours)."""
    # As uint8: with bool, cc3d 4.1.1 fails on some boxes of one row.
    return np.asarray(cc3d.connected_components(mask.astype(np.uint8), connectivity=26))


def cut_structures(labels: np.ndarray) -> frozenset[int]:
    """Values that the field of view cuts: they touch its border rows or columns, or fill much of an outermost slice.

    For the latter see `cut_by_slices`.

    Args:
        labels: (S, H, W), canonical slices of the whole field of view.
    """
    box, shape = bounding_box(labels), labels.shape
    if box is None:
        return frozenset()
    labels = labels[box]
    cut: set[int] = set()
    for axis in (1, 2):
        lines = np.moveaxis(labels, axis, 0)
        if box[axis].start == 0:
            cut |= set(np.unique(lines[0]).tolist())
        if box[axis].stop == shape[axis]:
            cut |= set(np.unique(lines[-1]).tolist())
    if box[0].start == 0 or box[0].stop == shape[0]:
        area = np.stack([np.bincount(slice_labels[slice_labels > 0], minlength=256) for slice_labels in labels])
        area = np.pad(area, ((box[0].start, shape[0] - box[0].stop), (0, 0)))
        cut |= set(np.flatnonzero(cut_by_slices(area)).tolist())
    return frozenset(cut - {0})


def cut_by_slices(area: np.ndarray) -> np.ndarray:
    """Whether the outermost slices cut structures, given their area in each slice: (S, ...) to (...) bool.

    A structure ends by itself in an outermost slice that shows little of it; it is cut where that shows at least two
    fifths of what its fullest slice shows.
    """
    most = area.max(axis=0)
    return np.asarray((most > 0) & (area[[0, -1]].max(axis=0) >= _CUT * most))
