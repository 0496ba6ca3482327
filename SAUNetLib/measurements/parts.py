"""Split vertebrae into the vertebral body and the posterior elements behind it, and merge the two again."""

from __future__ import annotations

from dataclasses import replace

import cc3d
import numpy as np

from ..anatomy import PARTS_OFFSET, encodings, remapped
from ..notices import Notice
from ..segmentation import Segmentation
from .centreline import Centreline
from .endplates import Section
from .landmarks import Landmarks, find_landmarks
from .space import LabelSpace

_WALL_MARGIN_MM = 1.0
"""How far, mm, the cut lies behind the body's posterior wall beside the canal."""
_MIDLINE_MM = 6.0
"""Within this distance, mm, of the midline the cut is the canal itself."""
_ISLAND = 0.1
"""A piece in front of the cut below this fraction of the largest one joins the posterior elements."""
_STUB_MM3 = 300.0
"""A piece behind the cut below this volume that does not reach the canal's middle rejoins the body."""


_NOT_SPLIT = Notice(
    "PARTS_MISSING",
    "Neither a canal nor two discs show where to cut, so bodies and posterior elements cannot be separated: everything "
    "is labelled as body.",
)


def split_parts(segmentation: Segmentation) -> Segmentation:
    """The segmentation with each vertebra's posterior elements as a structure of their own (label value + 100).

    The cut follows the body's posterior wall through the pedicles and, near the midline, the canal's anterior border.
    No voxel is added or removed. A vertebra with nothing behind the cut is all body.

    Raises:
        UsageError: USAGE, three classes without levels.
    """
    segmentation.require_levels()
    segmentation = merge_parts(segmentation)
    space = LabelSpace.of(segmentation.labels, segmentation.geometry)
    kinds = {value: segmentation.known[value].kind for value in space.values}
    vertebrae = [value for value, kind in kinds.items() if kind == "vertebra"]
    discs = [value for value, kind in kinds.items() if kind == "disc"]
    canal = next((value for value, kind in kinds.items() if kind == "canal"), None)
    landmarks = find_landmarks(space, vertebrae, discs, canal)
    labels = space.labels.copy()
    for value in vertebrae:
        box = space.box(value)
        mask = space.labels[box] == value
        rear = _rear(space, landmarks, value, mask)
        labels[box][mask & rear] = value + PARTS_OFFSET
    source = space.stack.restore(labels)
    both = {value + PARTS_OFFSET for value in segmentation.partial if kinds.get(value) == "vertebra"}
    partial = segmentation.partial | (both & set(np.unique(source).tolist()))
    surely = {value + PARTS_OFFSET: sure for value, sure in segmentation.confidence.items() if value in vertebrae}
    whole = landmarks.line is None and vertebrae and _NOT_SPLIT not in segmentation.warnings
    return replace(
        segmentation,
        labels=source,
        warnings=(*segmentation.warnings, _NOT_SPLIT) if whole else segmentation.warnings,
        encoding=encodings()["parts"],
        partial=frozenset(partial),
        confidence={**segmentation.confidence, **surely},
    )


def merge_parts(segmentation: Segmentation) -> Segmentation:
    """The segmentation with each vertebra as one structure again."""
    if not segmentation.has_parts:
        return segmentation
    whole = {
        value: value - PARTS_OFFSET if value - PARTS_OFFSET in segmentation.known else value
        for value in segmentation.known
    }
    partial = frozenset(whole[value] for value in segmentation.partial)
    labels = remapped(segmentation.labels, whole)
    return replace(segmentation, labels=labels, encoding=encodings()["levels"], partial=partial)


def _rear(space: LabelSpace, landmarks: Landmarks, value: int, mask: np.ndarray) -> np.ndarray:
    """The voxels (of a mask cut to the vertebra's box) that are posterior elements."""
    rear = np.zeros_like(mask)
    if landmarks.line is None:
        return rear
    first = np.array([part.start for part in space.box(value)])
    points = (np.argwhere(mask) + first) * space.spacing
    section = landmarks.bodies.get(value)
    beyond = np.zeros(len(points), bool)
    if section is None:
        rear[mask] = ~landmarks.line.in_front(points)
    else:
        rear[mask], beyond = _behind_wall(points, landmarks.line, section)
    reaches = np.zeros_like(mask)
    reaches[mask] = beyond
    return _tidied(mask, rear, reaches, float(np.prod(space.spacing)))


def _behind_wall(points: np.ndarray, line: Centreline, section: Section) -> tuple[np.ndarray, np.ndarray]:
    """Which points (N, 3) lie behind the body's posterior wall, and which behind the canal's middle."""
    frame = section.frame
    x, y, z = frame.local(points).T
    upper, lower = frame.local(section.upper.back), frame.local(section.lower.back)
    lean = (upper[1] - lower[1]) / (upper[2] - lower[2])
    # The lean is limited, since a spur may have tilted the wall's line; beyond the corners the wall is vertical.
    wall = lower[1] + np.clip(lean, -0.5, 0.5) * (np.clip(z, lower[2], upper[2]) - lower[2])
    canal = line.y_at(frame, z)
    cut = np.where(np.abs(x) < _MIDLINE_MM, np.maximum(canal, wall), wall + _WALL_MARGIN_MM)
    return y > cut, y > canal


def _tidied(mask: np.ndarray, rear: np.ndarray, reaches: np.ndarray, voxel: float) -> np.ndarray:
    """The posterior elements after clean-up: small islands in front join them, stubs behind the wall rejoin the body.

    `reaches` are the voxels behind the canal's middle, `voxel` is the volume of one, mm3.
    """
    front = cc3d.connected_components(mask & ~rear, connectivity=6)
    volume = np.bincount(front.ravel())
    volume[0] = 0
    small = (volume > 0) & (volume < _ISLAND * volume.max(initial=0))
    rear = rear | small[front]
    behind = cc3d.connected_components(mask & rear, connectivity=6)
    volume = np.bincount(behind.ravel())
    far = np.bincount(behind.ravel(), reaches.ravel())
    stub = (far == 0) & (volume * voxel < _STUB_MM3)
    stub[0] = False
    if front.any():
        rear = rear & ~stub[behind]
    return rear
