"""The discs one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cc3d
import numpy as np

from ..anatomy import DISC
from .column import Column
from .grid import Grid, smooth

REACH_MM = 65.0
"""A body lies within this distance in front of the canal's anterior border."""


@dataclass
class Interface:
    """Where two vertebrae meet: a plane by its point (3,) in mm and its normal (3,) down the spine.

    A disc has a number, at least 1; an interface without a disc, because it was not segmented, has 0.
    """

    point: np.ndarray
    normal: np.ndarray
    station: float
    volume: float = 0.0
    depth: float = 0.0
    number: int = 0

    @property
    def lean(self) -> float:
        """Degrees by which the plane rises towards the front, in the slices' plane; negative where it falls."""
        return float(np.degrees(np.arctan2(-self.normal[2], self.normal[1])))

    def below(self, points: np.ndarray) -> np.ndarray:
        """Distance (N,) of points (N, 3) below the plane, mm."""
        return (points - self.point.astype(np.float32)) @ self.normal.astype(np.float32)


class Discs:
    """The discs from the top down, each with its voxels on the working grid.

    Attributes:
        interfaces: one per disc.
        grid: the working grid.
        map: (S, H, W) uint8 on the working grid, a disc's number; 0 elsewhere.
    """

    def __init__(self, grid: Grid, column: Column) -> None:
        self.grid = grid
        mask = grid.classes == DISC
        self.map = np.zeros(mask.shape, np.uint8)
        self.interfaces: list[Interface] = []
        if not mask.any():
            return
        points = grid.positions(mask)
        station, depth = column.station(points), column.depth(points)
        part = self._parts(mask, points, station)
        kept = self._plausible(part, points, depth, column)
        groups = self._grouped([self._interface(points[part == n], depth[part == n], column, n) for n in kept])
        number = np.zeros(int(part.max()) + 1, np.uint8)
        for count, group in enumerate(groups, 1):
            number[[one.number for one in group]] = count
        numbers = number[part]
        self.map[mask] = numbers
        for count, group in enumerate(groups, 1):
            own = numbers == count
            whole = len(group) == 1  # most discs are one component
            one = group[0] if whole else self._interface(points[own], depth[own], column, count)
            self.interfaces.append(replace(one, number=count))

    def join(self, one: Interface, other: Interface) -> Interface:
        """Make two parts one disc, which keeps the larger part's plane."""
        larger, smaller = (one, other) if one.volume >= other.volume else (other, one)
        self.map[self.map == smaller.number] = larger.number
        volume = one.volume + other.volume
        point = (one.point * one.volume + other.point * other.volume) / volume
        station = (one.station * one.volume + other.station * other.volume) / volume
        return replace(larger, point=point, station=station, volume=volume, depth=max(one.depth, other.depth))

    def drop(self, one: Interface) -> None:
        """Make what is no disc background."""
        self.map[self.map == one.number] = 0

    @staticmethod
    def _parts(mask: np.ndarray, points: np.ndarray, station: np.ndarray) -> np.ndarray:
        """Number (N,) of the component of each voxel; a component of several discs is cut where it is thin."""
        part = cc3d.connected_components(mask, connectivity=6)[mask].astype(np.int32)
        following = int(part.max()) + 1
        order = np.argsort(part, kind="stable")
        for own in np.split(order, np.cumsum(np.bincount(part)[1:])[:-1]):
            if np.ptp(station[own]) < 14 or _thickness(points[own]) < 15:
                continue
            cuts = valleys(station[own], least=0.35, apart=10.0)
            piece = np.searchsorted(cuts, station[own])
            part[own] = np.where(piece > 0, following + piece, part[own])
            following += len(cuts) + 1
        return part

    def _plausible(self, part: np.ndarray, points: np.ndarray, depth: np.ndarray, column: Column) -> list[int]:
        """Components that may be discs: not tiny among the others, in front of the canal, near the column."""
        volume = np.bincount(part) * self.grid.voxel
        large = np.median(volume[volume > 0.2 * volume.max()])
        kept = []
        for n in np.flatnonzero(volume > 0.06 * large):
            own = part == n
            centre, behind = points[own].mean(axis=0), float(depth[own].mean())
            aside = abs(centre[0] - np.interp(centre[1], column.rows, column.side))
            if -REACH_MM < behind < 6 and aside < 30:
                kept.append(int(n))
        return kept

    def _interface(self, points: np.ndarray, depth: np.ndarray, column: Column, number: int) -> Interface:
        """Centre, plane and size of one disc from its voxels (N, 3)."""
        centre = points.mean(axis=0).astype(float)
        tangent = column.tangent(centre[1])
        station = float(column.station(centre[None].astype(np.float32))[0])
        low, high = np.percentile(depth, [3, 97])
        normal = _plane(points, tangent)
        return Interface(centre, normal, station, len(points) * self.grid.voxel, float(high - low), number)

    @staticmethod
    def _grouped(parts: list[Interface]) -> list[list[Interface]]:
        """Parts of one disc together, from the top down: the smaller lies in the larger one's plane."""
        groups: list[list[Interface]] = []
        for part in sorted(parts, key=lambda one: -one.volume):
            near = next((g for g in groups if abs(float(g[0].below(part.point[None])[0])) < 6.0), None)
            if near and (part.volume < 0.7 * near[0].volume or abs(near[0].station - part.station) < 5):
                near.append(part)
            else:
                groups.append([part])
        return sorted(groups, key=lambda group: group[0].station)


def _plane(points: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Normal (3,) of a flat set of points (N, 3), down the spine, or `tangent` where that is not clear.

    Within the slices the direction of least spread; across them the slope of what is left, since there are often too
    few slices for the three axes of spread to be told apart.
    """
    if len(points) < 20:
        return tangent
    offset = (points - points.mean(axis=0)).astype(float)
    across = float((offset[:, 0] ** 2).sum())
    slope = offset[:, 0] @ offset[:, 1:] / across if across > 0 else np.zeros(2)
    flat = offset[:, 1:] - offset[:, :1] * slope
    spread, axes = np.linalg.eigh(flat.T @ flat)
    normal = axes[:, 0] * (np.sign(axes[:, 0] @ tangent[1:]) or 1.0)
    normal = np.array([-float(slope @ normal), *normal])
    normal /= np.linalg.norm(normal)
    ratio, along = spread[0] / max(spread[1], 1e-9), float(normal @ tangent)
    clear = (ratio < 0.5 and along > 0.6) or (ratio < 0.2 and along > 0.25)
    return normal if clear else tangent


def _thickness(points: np.ndarray) -> float:
    """Least width in mm of points (N, 3) within their slices."""
    flat = (points[:, 1:] - points[:, 1:].mean(axis=0)).astype(float)
    axis = np.linalg.eigh(flat.T @ flat)[1][:, 0]
    low, high = np.percentile(flat @ axis, [2, 98])
    return float(high - low)


def valleys(station: np.ndarray, least: float, apart: float) -> np.ndarray:
    """Stations (M,) at which a profile of voxels' stations (N,) falls below `least` of the peaks on either side.

    Peaks closer than `apart` mm are one.
    """
    low = station.min()
    profile = smooth(np.bincount((station - low).astype(int)).astype(float), 1.0)
    high = profile > least * profile.max()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], high.view(np.int8), [0]])))
    starts, ends = edges[::2], edges[1::2]
    cuts = []
    end = ends[0]
    centre = (starts[0] + ends[0]) / 2
    for start, after in zip(starts[1:], ends[1:], strict=True):
        if (start + after) / 2 - centre >= apart:
            cuts.append(low + end + int(np.argmin(profile[end : start + 1])) + 0.5)
            centre = (start + after) / 2
        end = after
    return np.array(cuts)
