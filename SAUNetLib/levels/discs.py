"""The disc instances: connected components of the class disc, with fragments grouped, and the plane of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cc3d
import numpy as np

from ..anatomy import DISC
from .column import REACH_MM, Column
from .grid import Grid, smooth

_TINY = 0.06
"""A component below this share of the usual volume is a speck (chosen by hand)."""
_USUAL = 0.2
"""The usual volume is the median of the components above this share of the largest (chosen by hand)."""
_BEHIND_MM, _ASIDE_MM = 6.0, 30.0
"""Farthest that a disc's middle lies behind the canal's anterior border, and beside the column (chosen by hand)."""
_LONG_MM, _THICK_MM = 14.0, 15.0
"""A component at least this long down the column, and whose least width within its slices is at least this, is more
than one disc."""
_THIN = 0.35
"""It is cut where its cross-section falls below this share of the peaks beside it (chosen by hand)."""
_PEAKS_MM = 10.0
"""Peaks of a cross-section that are closer than this are one (chosen by hand)."""
_IN_PLANE_MM = 6.0
"""A part of a disc lies this close to the plane of the larger part."""
_PART, _SAME_PLACE_MM = 0.7, 5.0
"""It is smaller than this share of the larger part, or this close to it along the column (chosen by hand)."""
_FEW = 20
"""Fewer voxels than this do not define a plane."""
_FLAT, _ALONG, _VERY_FLAT, _ALONG_LEAST = 0.5, 0.6, 0.2, 0.25
"""A plane is clear if the spread across it is below the first share of that along it and its normal's component down
the spine above the second; or below the third and above the fourth (chosen by hand)."""


@dataclass(frozen=True, eq=False)
class Interface:
    """The plane where two vertebrae meet: a point (3,) in mm and the normal (3,) down the spine.

    Attributes:
        station: place along the column, mm.
        volume, depth: mm3 of the disc and mm from its front to its back; 0 for none.
        number: of the disc, at least 1; 0 for an interface whose disc was not segmented.
        discs: numbers of the discs merged into it.
        section: mm2 of the disc in the slice that shows most of it, which stays the same if the image's border cuts off
            its side; 0 for none.
    """

    point: np.ndarray
    normal: np.ndarray
    station: float
    volume: float = 0.0
    depth: float = 0.0
    number: int = 0
    discs: tuple[int, ...] = ()
    section: float = 0.0

    @property
    def lean(self) -> float:
        """Degrees by which the plane rises towards the front, in the slices' plane; negative where it falls."""
        return float(np.degrees(np.arctan2(-self.normal[2], self.normal[1])))

    def below(self, points: np.ndarray) -> np.ndarray:
        """Distance (N,) of points (N, 3) below the plane, mm."""
        return (points - self.point.astype(np.float32)) @ self.normal.astype(np.float32)

    def merged_with(self, fragment: Interface) -> Interface:
        """Merge this fragment of a disc with another: the number and normal of the larger one, at the mean point."""
        larger = self if self.volume >= fragment.volume else fragment
        volume = self.volume + fragment.volume
        return replace(
            larger,
            point=(self.point * self.volume + fragment.point * fragment.volume) / volume,
            station=(self.station * self.volume + fragment.station * fragment.volume) / volume,
            volume=volume,
            depth=max(self.depth, fragment.depth),
            discs=self.discs + fragment.discs,
            section=self.section + fragment.section,
        )


@dataclass(frozen=True, eq=False)
class Discs:
    """The discs from the top down, each with its voxels on the working grid.

    Attributes:
        interfaces: one per disc.
        grid: the working grid.
        map: (S, H, W) uint8 on the working grid, a disc's number; 0 elsewhere.
    """

    interfaces: tuple[Interface, ...]
    grid: Grid
    map: np.ndarray

    @classmethod
    def of(cls, grid: Grid, column: Column) -> Discs:
        """The discs on a working grid, numbered from 1."""
        mask = grid.classes == DISC
        numbered = np.zeros(mask.shape, np.uint8)
        if not mask.any():
            return cls((), grid, numbered)
        voxels = _DiscVoxels(grid.positions(mask), column, grid.spacing)
        component = _components(mask, voxels)
        groups = _grouped([voxels.interface(component == n, n) for n in _plausible(component, voxels)])
        number = np.zeros(int(component.max()) + 1, np.uint8)
        for count, group in enumerate(groups, 1):
            number[[disc.number for disc in group]] = count
        numbers = number[component]
        numbered[mask] = numbers
        interfaces = []
        for count, group in enumerate(groups, 1):
            # Most discs are one component.
            disc = group[0] if len(group) == 1 else voxels.interface(numbers == count, count)
            interfaces.append(replace(disc, number=count, discs=(count,)))
        return cls(tuple(interfaces), grid, numbered)

    def only(self, interfaces: Sequence[Interface]) -> Discs:
        """Keep the discs of these interfaces, with those of each merged; all others become background."""
        number = np.zeros(len(self.interfaces) + 1, np.uint8)
        for interface in interfaces:
            number[list(interface.discs)] = interface.number
        discs = tuple(interface for interface in interfaces if interface.number)
        same = np.array_equal(number, np.arange(len(number)))
        return Discs(discs, self.grid, self.map if same else number[self.map])


@dataclass(frozen=True, eq=False)
class _DiscVoxels:
    """The voxels of all discs, as points.

    Attributes:
        points: (N, 3) mm.
        column: the line behind them.
        spacing: (3,) mm between slices, rows, columns.
    """

    points: np.ndarray
    column: Column
    spacing: np.ndarray

    @property
    def voxel(self) -> float:
        """Volume of one, mm3."""
        return float(np.prod(self.spacing))

    @cached_property
    def station(self) -> np.ndarray:
        """Places (N,) along the column, mm."""
        return self.column.station(self.points)

    @cached_property
    def depth(self) -> np.ndarray:
        """mm (N,) behind the canal's anterior border."""
        return self.column.depth(self.points)

    def interface(self, own: np.ndarray, number: int) -> Interface:
        """Centre, plane and size of the disc whose voxels are given (N,) bool."""
        points = self.points[own]
        centre = points.mean(axis=0).astype(float)
        tangent = self.column.tangent(centre[1])
        station = float(self.column.station(centre[None].astype(np.float32))[0])
        low, high = np.percentile(self.depth[own], [3, 97])
        volume = len(points) * self.voxel
        in_slice = np.round((points[:, 0] - points[:, 0].min()) / self.spacing[0]).astype(int)
        section = float(np.bincount(in_slice).max() * self.spacing[1] * self.spacing[2])
        plane = _plane(points, tangent)
        return Interface(centre, plane, station, volume, float(high - low), number, section=section)


def _components(mask: np.ndarray, voxels: _DiscVoxels) -> np.ndarray:
    """Number (N,) of the component of each voxel of a mask; a component of several discs is cut where it is thin."""
    component = cc3d.connected_components(mask, connectivity=6)[mask].astype(np.int32)
    following = int(component.max()) + 1
    order = np.argsort(component, kind="stable")
    for own in np.split(order, np.cumsum(np.bincount(component)[1:])[:-1]):
        station = voxels.station[own]
        if np.ptp(station) < _LONG_MM or _thickness(voxels.points[own]) < _THICK_MM:
            continue
        cuts = valleys(station, least=_THIN)
        piece = np.searchsorted(cuts, station)
        component[own] = np.where(piece > 0, following + piece, component[own])
        following += len(cuts) + 1
    return component


def _plausible(component: np.ndarray, voxels: _DiscVoxels) -> list[int]:
    """Components that may be discs: not tiny compared with the others, in front of the canal, near the column."""
    column, volume = voxels.column, np.bincount(component) * voxels.voxel
    large = np.median(volume[volume > _USUAL * volume.max()])
    kept = []
    for n in np.flatnonzero(volume > _TINY * large):
        own = component == n
        centre, behind = voxels.points[own].mean(axis=0), float(voxels.depth[own].mean())
        aside = abs(centre[0] - np.interp(centre[1], column.rows, column.side))
        if -REACH_MM < behind < _BEHIND_MM and aside < _ASIDE_MM:
            kept.append(int(n))
    return kept


def _grouped(fragments: list[Interface]) -> list[list[Interface]]:
    """Group fragments of one disc, from the top down: a smaller one lies in the plane of a larger one."""
    groups: list[list[Interface]] = []
    for fragment in sorted(fragments, key=lambda disc: -disc.volume):
        same_disc = next((g for g in groups if abs(float(g[0].below(fragment.point[None])[0])) < _IN_PLANE_MM), None)
        if same_disc and (
            fragment.volume < _PART * same_disc[0].volume
            or abs(same_disc[0].station - fragment.station) < _SAME_PLACE_MM
        ):
            same_disc.append(fragment)
        else:
            groups.append([fragment])
    return sorted(groups, key=lambda group: group[0].station)


def _plane(points: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """Normal (3,) of a flat set of points (N, 3), down the spine, or `tangent` where that is not clear.

    Within the slices it is the direction of least spread; across them it follows the shift from slice to slice, since
    there are often too few slices to tell the three axes of spread apart.
    """
    if len(points) < _FEW:
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
    clear = (ratio < _FLAT and along > _ALONG) or (ratio < _VERY_FLAT and along > _ALONG_LEAST)
    return normal if clear else tangent


def _thickness(points: np.ndarray) -> float:
    """Least width in mm of points (N, 3) within their slices."""
    flat = (points[:, 1:] - points[:, 1:].mean(axis=0)).astype(float)
    axis = np.linalg.eigh(flat.T @ flat)[1][:, 0]
    low, high = np.percentile(flat @ axis, [2, 98])
    return float(high - low)


def valleys(station: np.ndarray, least: float) -> np.ndarray:
    """Stations (M,) where the profile of voxel stations (N,) falls below the share `least` of the peaks on both sides.

    Peaks closer than `_PEAKS_MM` count as one.
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
        if (start + after) / 2 - centre >= _PEAKS_MM:
            cuts.append(low + end + int(np.argmin(profile[end : start + 1])) + 0.5)
            centre = (start + after) / 2
        end = after
    return np.array(cuts)
