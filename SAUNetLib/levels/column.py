"""The line down the posterior wall of the bodies, which is the canal's anterior border."""

from __future__ import annotations

from dataclasses import replace

import cc3d
import numpy as np
import SimpleITK as sitk

from ..anatomy import CANAL, DISC, VERTEBRA
from .grid import Box, Grid, bounding_box, rows_with, smooth

_AWAY_MM = 12.0
"""Parts of a canal lie nearer to vertebrae or discs: 4.7 mm at most in 47 volumes, fat taken for it 19 and more."""
_BESIDE_MM = 40.0
"""Two parts of a canal that show in the same row lie nearer to each other."""
REACH_MM = 65.0
"""A body lies within this distance in front of the canal's anterior border."""


class Column:
    """The line down the posterior wall of the bodies, which is the canal's anterior border.

    Rows are in mm; the line goes on straight beyond what was seen.
    """

    MARGIN = 80.0

    def __init__(self, rows: np.ndarray, back: np.ndarray, side: np.ndarray) -> None:
        """From rows (N,) in mm, increasing, with the column `back` and the slice `side` of the line there, in mm."""
        self.rows = np.arange(rows[0] - self.MARGIN, rows[-1] + self.MARGIN + 1.0)
        self.back = smooth(_extended(self.rows, rows, back), 3.0)
        self.side = smooth(_extended(self.rows, rows, side), 8.0)
        straight = smooth(self.back, 12.0)
        aside = np.gradient(smooth(self.side, 12.0))
        tangent = np.stack([aside, np.ones_like(straight), np.gradient(straight)], axis=1)
        length = np.linalg.norm(tangent, axis=1)
        self._tangent = tangent / length[:, None]
        self._straight = straight
        self._station = np.concatenate([[0.0], np.cumsum((length[1:] + length[:-1]) / 2)])

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How far points (N, 3) lie behind the line, mm."""
        return points[:, 2] - np.interp(points[:, 1], self.rows, self.back)

    def in_bodies(self, points: np.ndarray) -> np.ndarray:
        """Which points (N, 3) lie where bodies are: in front of the line, and not too far."""
        depth = self.depth(points)
        return (depth < 0) & (depth > -REACH_MM)

    def tangent(self, row: float) -> np.ndarray:
        """Unit vector (3,) down the spine."""
        vector = np.array([np.interp(row, self.rows, self._tangent[:, axis]) for axis in range(3)])
        return vector / np.linalg.norm(vector)

    def station(self, points: np.ndarray, lean: float = 1.0) -> np.ndarray:
        """Place (N,) of points (N, 3) along the line, mm: the foot of the perpendicular.

        With a smaller `lean`, perpendicular to a line that leans forwards and backwards by that much less.
        """
        first, last = float(self.rows[0]), len(self.rows) - 1
        line = np.stack([self.side, self.rows, self._straight])
        tangent = self._tangent.T * np.array([[1.0], [1.0], [lean]])
        tangent /= np.linalg.norm(tangent, axis=0)
        # A step down the line is (point - line) . tangent - (row - line's row); what the line alone tells of it:
        known = ((line * tangent).sum(axis=0) - self.rows).astype(np.float32)
        across, along, back = tangent.astype(np.float32)
        # Coordinates apart: many times as fast as gathering vectors of three.
        x, y, z = np.ascontiguousarray(points.T, np.float32)
        row = y.copy()
        for _ in range(4):
            at = np.clip(row - np.float32(first - 0.5), 0, last).astype(np.int32)
            row += np.float32(0.8) * (x * across[at] + y * along[at] + z * back[at] - known[at] - row)
            np.clip(row, first, first + last, out=row)
        return np.interp(row, self.rows, self._station)

    def crossing(self, point: np.ndarray, normal: np.ndarray, station: float) -> float:
        """Station at which a plane meets the line, not far from the given one."""
        line = np.stack([self.side, self.rows, self._straight], axis=1)
        off = np.abs((line - point) @ normal)
        off[np.abs(self._station - station) > 25] = np.inf
        return float(self._station[np.argmin(off)])

    def at(self, station: float) -> tuple[np.ndarray, np.ndarray]:
        """The line's point (3,) at a station and its tangent (3,)."""
        row = float(np.interp(station, self._station, self.rows))
        point = np.array([np.interp(row, self.rows, self.side), row, np.interp(row, self.rows, self._straight)])
        return point, self.tangent(row)


def _extended(rows: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at rows, linear between and, by the slope of the last 40 mm (at most 45 degrees), beyond those seen."""
    result = np.interp(rows, seen, values)
    for outside, inside in ((rows < seen[0], seen <= seen[0] + 40), (rows > seen[-1], seen >= seen[-1] - 40)):
        if inside.sum() > 3 and np.ptp(seen[inside]) > 10:
            slope = float(np.clip(np.polyfit(seen[inside], values[inside], 1)[0], -1, 1))
            result[outside] = values[inside].mean() + slope * (rows[outside] - seen[inside].mean())
    return result


def find_column(grid: Grid) -> tuple[Column, Grid]:
    """The column, and the grid without components of the canal that lie away from it.

    The posterior wall is found from the canal, where there is none from the discs, and without both from the vertebrae.
    """
    canal = grid.classes == CANAL
    box = bounding_box(canal) or (slice(0, 0),) * 3
    # With a border: cc3d fails on some boxes of one row.
    padded = cc3d.connected_components(np.pad(canal[box], 1), connectivity=26)
    pieces = np.ascontiguousarray(padded[1:-1, 1:-1, 1:-1])
    own = _main(_beside_spine(grid, pieces, box), float(grid.spacing[2]))
    wall = _edge(own, first=True, spacing=grid.spacing, box=box)
    ends = _disc_ends(grid, beside=wall[:, 0])
    line = np.concatenate([wall, ends])
    if len(wall) * grid.spacing[1] < 3 and len(ends) < 2:
        cores = _cores(grid.classes == VERTEBRA, grid.spacing)
        line = _inliers(_edge(cores, first=False, spacing=grid.spacing)) if cores.any() else line
    line = line[np.argsort(line[:, 0], kind="stable")]
    column = Column(line[:, 0], line[:, 1], line[:, 2])
    return column, _without_stray_canal(grid, pieces, box, column)


def _inliers(line: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a line, row, column and slice in mm, without those far from a cubic through most of them."""
    if len(line) < 8:
        return line
    row = (line[:, 0] - line[:, 0].mean()) / max(float(np.ptp(line[:, 0])), 1.0)
    weight = np.ones(len(line))
    off = np.zeros(len(line))
    for _ in range(20):
        off = np.abs(line[:, 1] - np.polyval(np.polyfit(row, line[:, 1], 3, w=weight), row))
        weight = 1 / np.sqrt(np.maximum(off, 0.5))  # least absolute distance
    near = off < max(6.0, float(np.median(off)))
    return line[near]


def _beside_spine(grid: Grid, pieces: np.ndarray, box: Box) -> np.ndarray:
    """The canal's components in a box without those that lie away from all vertebrae and discs, as fat of the belly."""
    spine = ((grid.classes == VERTEBRA) | (grid.classes == DISC)).any(axis=0)
    if pieces.max(initial=0) < 2 or not spine.any():
        return pieces
    near = _near(spine, grid.spacing[1:], _AWAY_MM)[box[1], box[2]]
    shown = [(pieces == n).any(axis=0) for n in range(1, int(pieces.max()) + 1)]
    far = np.array([False, *(bool(near[one].mean() < 0.5) for one in shown)])
    return pieces if far[1:].all() else np.where(far[pieces], 0, pieces)


def _near(mask: np.ndarray, spacing: np.ndarray, reach_mm: float) -> np.ndarray:
    """Which pixels lie no farther than so from a mask (H, W); without an ITK filter, whose threads survive no fork."""
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

    From the largest on those of at least a tenth of its size, but for any that lies beside what was taken: in the same
    rows and much farther in front or behind than a canal is wide, like bright fat of the belly.
    """
    if pieces.max(initial=0) < 2:
        return pieces > 0
    size = np.bincount(pieces.ravel())
    size[0] = 0
    taken = np.zeros(len(size), bool)
    line = np.full(pieces.shape[1], np.nan)  # column by row
    for n in np.argsort(-size):
        if size[n] < 0.1 * size.max():
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
    """Without those of the canal's components, numbered from 1 in a box around them, that lie away from the column."""
    if pieces.max(initial=0) < 2:
        return grid
    statistics = cc3d.statistics(pieces)
    centres = (statistics["centroids"][1:] + [part.start for part in box]) * grid.spacing
    volume = statistics["voxel_counts"][1:]
    aside = np.abs(centres[:, 0] - np.interp(centres[:, 1], column.rows, column.side))
    depth = column.depth(centres)
    stray = (volume < 0.5 * volume.max()) & ((aside > 20) | (depth < -8) | (depth > 30))
    if not stray.any():
        return grid
    classes = grid.classes.copy()
    classes[box][np.concatenate([[False], stray])[pieces]] = 0
    return replace(grid, classes=classes)


def _disc_ends(grid: Grid, beside: np.ndarray) -> np.ndarray:
    """Per component of the discs (N, 3): row, column and slice in mm of its posterior end.

    Only of those that lie more than 4 mm away from all rows `beside` (M,), in mm, at which the canal shows the wall.
    """

    def far(rows: np.ndarray) -> np.ndarray:
        return np.asarray(np.abs(rows[:, None] - beside).min(axis=1, initial=np.inf) > 4)

    discs, spacing = grid.classes == DISC, grid.spacing
    if not far(np.flatnonzero(rows_with(discs)) * spacing[1]).any():
        return np.zeros((0, 3))
    voxels = np.flatnonzero(discs)
    part = grid.parts.ravel()[voxels]
    points = np.stack(np.unravel_index(voxels, discs.shape), axis=1) * spacing
    volume = np.bincount(part) * np.prod(spacing)
    ends = []
    for n in np.flatnonzero(volume > 0.1 * volume.max(initial=0)):
        own = points[part == n]
        end = own[own[:, 2] >= np.percentile(own[:, 2], 96)]
        ends.append([end[:, 1].mean(), end[:, 2].mean(), own[:, 0].mean()])
    line = np.array(ends).reshape(-1, 3)
    return np.asarray(line[far(line[:, 0])])


def _edge(mask: np.ndarray, first: bool, spacing: np.ndarray, box: Box | None = None) -> np.ndarray:
    """Per row with a mask (N, 3): mm of the row, of the first or last column (median), of the mean slice.

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
    """The bodies (S, H, W), roughly: what an opening that thin posterior elements do not survive leaves in front."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    radius = [round(7.5 / size) for size in spacing[[2, 1]]]
    opened = sitk.BinaryMorphologicalOpening(image, [*radius, 0], sitk.sitkBox)
    cores = sitk.GetArrayFromImage(opened).astype(bool)
    if not cores.any():
        cores = mask.copy()
    # A large spinous process survives too: keep the foremost run of every row.
    behind = np.maximum.accumulate(np.maximum.accumulate(cores, axis=2) & ~cores, axis=2)
    return cores & ~behind
