"""Find the posterior wall of the vertebral bodies: from the canal, else from the discs, else from the vertebrae."""

from __future__ import annotations

from dataclasses import replace

import cc3d
import numpy as np

from ..anatomy import CANAL, DISC, VERTEBRA
from ..masks import Box, bounding_box, connected_components
from .column import Column
from .grid import Grid, rows_with

_AWAY_MM = 12.0
"""Parts of a canal lie nearer to vertebrae or discs: at most 4.7 mm in 47 volumes; fat taken for canal 19 and more."""
_BESIDE_MM = 40.0
"""Two parts of a canal in the same row lie nearer than this to each other."""
_LEAST_CANAL_MM = 3.0
"""A canal over fewer mm of rows does not define a line."""
_FEW = 8
"""Fewer points of a line than this do not define a cubic."""
_CUBIC_STEPS, _OUTLIER_MM = 20, 6.0
"""Steps of reweighted least squares; points nearer to the cubic than this, or than the median point, are kept (chosen
by hand)."""
_MAIN = 0.1
"""A component of the canal has at least this share of the largest one's size (chosen by hand)."""
_STRAY, _STRAY_ASIDE_MM, _STRAY_FRONT_MM, _STRAY_BEHIND_MM = 0.5, 20.0, 8.0, 30.0
"""One below this share of the largest one's size is not canal if its middle lies farther than these beside the column,
in front of the canal's anterior border or behind it (chosen by hand)."""
_DISC = 0.1
"""A component of discs below this share of the largest one's size is not used to find the wall (chosen by hand)."""
_DISC_END = 96
"""Percentile of a disc's columns from which on it ends: at the wall itself, so fewer than `measurements.landmarks`
takes to find the canal's middle; their mean lies 1.2 mm farther back in 47 volumes."""
_SHOWN_MM = 4.0
"""Within this distance of a row in which the canal shows the wall, discs are not needed."""
_OPENING_MM = 7.5
"""Half the side of the square in an opening that bodies survive and thin posterior elements do not (chosen by hand)."""


def find_column(grid: Grid) -> tuple[Column, Grid]:
    """Find the column; also returns the grid without components of the canal that lie away from it.

    The posterior wall is found from the canal, where there is none from the discs, and without both from the vertebrae.
    """
    canal = grid.classes == CANAL
    box = bounding_box(canal) or (slice(0, 0),) * 3
    pieces = connected_components(canal[box])
    own = _main(_beside_spine(grid, pieces, box), float(grid.spacing[2]))
    wall = _edge(own, first=True, spacing=grid.spacing, box=box)
    ends = _disc_ends(grid, beside=wall[:, 0])
    line = np.concatenate([wall, ends])
    if len(wall) * grid.spacing[1] < _LEAST_CANAL_MM and len(ends) < 2:
        cores = _cores(grid.classes == VERTEBRA, grid.spacing)
        line = _inliers(_edge(cores, first=False, spacing=grid.spacing)) if cores.any() else line
    line = line[np.argsort(line[:, 0], kind="stable")]
    column = Column(line[:, 0], line[:, 1], line[:, 2])
    return column, _without_stray_canal(grid, pieces, box, column)


def _inliers(line: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a line, row, column and slice in mm, without those far from a cubic through most of them."""
    if len(line) < _FEW:
        return line
    row = (line[:, 0] - line[:, 0].mean()) / max(float(np.ptp(line[:, 0])), 1.0)
    weight = np.ones(len(line))
    off = np.zeros(len(line))
    for _ in range(_CUBIC_STEPS):
        off = np.abs(line[:, 1] - np.polyval(np.polyfit(row, line[:, 1], 3, w=weight), row))
        weight = 1 / np.sqrt(np.maximum(off, 0.5))  # least absolute distance
    near = off < max(_OUTLIER_MM, float(np.median(off)))
    return line[near]


def _beside_spine(grid: Grid, pieces: np.ndarray, box: Box) -> np.ndarray:
    """The canal's components in a box without those that lie away from all vertebrae and discs, like abdominal fat."""
    spine = ((grid.classes == VERTEBRA) | (grid.classes == DISC)).any(axis=0)
    if pieces.max(initial=0) < 2 or not spine.any():
        return pieces
    near = _near(spine, grid.spacing[1:], _AWAY_MM)[box[1], box[2]]
    shown = [(pieces == n).any(axis=0) for n in range(1, int(pieces.max()) + 1)]
    far = np.array([False, *(bool(near[component].mean() < 0.5) for component in shown)])
    return pieces if far[1:].all() else np.where(far[pieces], 0, pieces)


def _near(mask: np.ndarray, spacing: np.ndarray, reach_mm: float) -> np.ndarray:
    """Which pixels (H, W) lie within `reach_mm` of a mask (H, W).

    Not by an ITK filter: out of memory, or in a forked process, it waited for its threads forever. Nor by SciPy, which
    the worker does without.
    """
    result = np.zeros_like(mask)
    rows, columns = mask.shape
    seen = np.pad(np.cumsum(mask, axis=1), ((0, 0), (1, 0)))
    place = np.arange(columns)
    reach = min(int(reach_mm / spacing[0]), rows - 1)
    for step in range(-reach, reach + 1):
        width = int(np.sqrt(reach_mm**2 - (step * spacing[0]) ** 2) / spacing[1])
        wide = seen[:, np.minimum(place + width + 1, columns)] > seen[:, np.maximum(place - width, 0)]
        result[max(0, step) : rows + min(0, step)] |= wide[max(0, -step) : rows + min(0, -step)]
    return result


def _main(pieces: np.ndarray, column_mm: float) -> np.ndarray:
    """Mask (S, H, W) of the components, numbered from 1, that make up the canal.

    From the largest down, those that are not much smaller, except any beside what was taken: in the same rows, but much
    farther in front or behind than a canal is wide, like bright abdominal fat.
    """
    if pieces.max(initial=0) < 2:
        return pieces > 0
    size = np.bincount(pieces.ravel())
    size[0] = 0
    taken = np.zeros(len(size), bool)
    line = np.full(pieces.shape[1], np.nan)  # column of each row
    for n in np.argsort(-size):
        if size[n] < _MAIN * size.max():
            break
        shown = (pieces == n).sum(axis=0)
        with np.errstate(invalid="ignore"):
            own = (shown * np.arange(shown.shape[1])).sum(axis=1) / shown.sum(axis=1)
        apart = np.abs(own - line)[np.isfinite(own) & np.isfinite(line)] * column_mm
        if len(apart) and np.median(apart) > _BESIDE_MM:
            continue
        taken[n] = True
        line = np.where(np.isfinite(line), line, own)
    return taken[pieces]


def _without_stray_canal(grid: Grid, pieces: np.ndarray, box: Box, column: Column) -> Grid:
    """The grid without those of the canal's components, numbered from 1 in a box, that lie away from the column.

    Those of half the largest one's size or more stay; `Spine._without_ghosts` applies wider limits to all that remain.
    """
    if pieces.max(initial=0) < 2:
        return grid
    statistics = cc3d.statistics(pieces)
    centres = (statistics["centroids"][1:] + [part.start for part in box]) * grid.spacing
    volume = statistics["voxel_counts"][1:]
    aside = np.abs(centres[:, 0] - np.interp(centres[:, 1], column.rows, column.side))
    depth = column.depth(centres)
    away = (aside > _STRAY_ASIDE_MM) | (depth < -_STRAY_FRONT_MM) | (depth > _STRAY_BEHIND_MM)
    stray = (volume < _STRAY * volume.max()) & away
    if not stray.any():
        return grid
    classes = grid.classes.copy()
    classes[box][np.concatenate([[False], stray])[pieces]] = 0
    return replace(grid, classes=classes)


def _disc_ends(grid: Grid, beside: np.ndarray) -> np.ndarray:
    """Per component of the discs (N, 3): row, column and slice in mm of its posterior end.

    Only of those that lie away from all rows `beside` (M,), in mm, at which the canal shows the wall.
    """

    def far(rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(rows[:, None] - beside).min(axis=1, initial=np.inf) > _SHOWN_MM)

    discs, spacing = grid.classes == DISC, grid.spacing
    if not far(np.flatnonzero(rows_with(discs)) * spacing[1]).any():
        return np.zeros((0, 3))
    voxels = np.flatnonzero(discs)
    component = grid.components.ravel()[voxels]
    points = np.stack(np.unravel_index(voxels, discs.shape), axis=1) * spacing
    volume = np.bincount(component) * np.prod(spacing)
    ends = []
    for n in np.flatnonzero(volume > _DISC * volume.max(initial=0)):
        own = points[component == n]
        end = own[own[:, 2] >= np.percentile(own[:, 2], _DISC_END)]
        ends.append([end[:, 1].mean(), end[:, 2].mean(), own[:, 0].mean()])
    line = np.array(ends).reshape(-1, 3)
    return np.asarray(line[far(line[:, 0])])


def _edge(mask: np.ndarray, first: bool, spacing: np.ndarray, box: Box | None = None) -> np.ndarray:
    """Per row of a mask that is not empty (N, 3): row, first or last column (median over slices), mean slice, in mm.

    The mask is the whole grid's, or that of a box in it.
    """
    start = [0, 0, 0] if box is None else [part.start for part in box]
    any_column = np.asarray(mask.any(axis=2))
    seen = np.flatnonzero(any_column.any(axis=0))
    if len(seen) == 0:
        return np.zeros((0, 3))
    rows, there = mask[:, seen], any_column[:, seen]
    column = rows.argmax(axis=2) if first else mask.shape[2] - 1 - rows[:, :, ::-1].argmax(axis=2)
    edge = np.nanmedian(np.where(there, column, np.nan), axis=0)
    slices = (there * np.arange(len(mask))[:, None]).sum(axis=0) / there.sum(axis=0)
    place = (slices + start[0], seen + start[1], edge + start[2])
    return np.stack([place[axis] * spacing[axis] for axis in (1, 2, 0)], axis=1)


def _cores(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The bodies (S, H, W), roughly: the foremost part of what an opening leaves, without thin posterior elements."""
    rows, columns = (round(_OPENING_MM / size) for size in spacing[1:])
    eroded = ~_widened(_widened(~mask, rows, 1), columns, 2)
    cores = _widened(_widened(eroded, rows, 1), columns, 2)
    if not cores.any():
        cores = mask.copy()
    # A large spinous process survives, too: keep the foremost run of every row.
    behind = np.maximum.accumulate(np.maximum.accumulate(cores, axis=2) & ~cores, axis=2)
    return cores & ~behind


def _widened(mask: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """Where a mask is set within so many voxels along an axis; not by an ITK filter, for the reason of `_near`."""
    wide = np.moveaxis(np.pad(mask, [(reach * (n == axis),) * 2 for n in range(mask.ndim)]), axis, 0)
    width = 1  # of the window that begins at each voxel
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        wide = wide[:-step] | wide[step:]
        width += step
    return np.moveaxis(wide, 0, axis)
