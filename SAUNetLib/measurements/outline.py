"""The outline of a structure's mid-sagittal section: its corners, the curves of its surfaces, its middle height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CENTRAL = 0.9
"""Central fraction of a surface that its curve is fitted to; rounded corners and spurs lie outside."""
_FEW_NODES, _FEW_POINTS = 20, 5
"""Fewest nodes of a section with an outline, and fewest points of a surface with a curve."""
_USUAL, _HALF = 75, 0.5
"""Percentile that is a section's usual height, and the fraction of it below which a section ends (chosen by hand)."""
_OUTLIER_MM, _OUTLIER, _FITS = 0.4, 2.5, 4
"""A point is left out of a curve if it is farther off than this many mm and this multiple of the median; number of fits
(chosen by hand)."""
_WALL, _WALL_POINTS, _WALL_MM, _STEEPEST = 0.8, 8, 10.0, 0.7
"""Central fraction of a wall's height that its line is fitted to; fewest points and least height (mm, above that of a
disc) for a fit; steepest lean, mm per mm (chosen by hand)."""
_NEAR_CORNER_MM = 0.2
"""A corner is the mean of the outline's points up to this much, mm, farther than the nearest one (chosen by hand)."""
_MIDDLE = 0.2
"""Central fraction of a surface between its corners whose mean is its middle (chosen by hand)."""
_BLUNTED = 0.6
"""Pixels by which the outline of a mask falls short of a sharp corner."""


@dataclass(frozen=True)
class Curve:
    """A parabola z = a + b y + c y^2 in a section, mm, and the surface's deviation from it (mm, rms)."""

    coefficients: np.ndarray
    residual: float

    def __call__(self, y: float | np.ndarray) -> np.ndarray:
        return np.polyval(self.coefficients[::-1], y)


@dataclass(frozen=True)
class Outline:
    """A section's upper and lower surface as curves, and points on the outline itself.

    Attributes:
        upper, lower: z over y.
        corners: (4, 2) y and z of the upper front, upper back, lower front and lower back corner.
        middles: z of the upper and of the lower surface half-way between their corners.
        ends: y of the front and of the back, where the section still has half its usual height.
    """

    upper: Curve
    lower: Curve
    corners: np.ndarray
    middles: tuple[float, float]
    ends: tuple[float, float]

    @property
    def residual(self) -> float:
        """Residual of the rougher surface, mm rms."""
        return max(self.upper.residual, self.lower.residual)


def edges(share: np.ndarray, nodes: np.ndarray, last: bool) -> np.ndarray:
    """Where a structure begins or ends along the last axis of its share (..., N): positions (...) in mm, NaN for none.

    This is the outermost crossing of one half, interpolated between the nodes (N,).
    """
    if last:
        return -edges(share[..., ::-1], -nodes[::-1], last=False)
    inside = share >= 0.5
    first = inside.argmax(axis=-1)
    there = np.take_along_axis(share, first[..., None], -1)[..., 0]
    before = np.take_along_axis(share, np.maximum(first - 1, 0)[..., None], -1)[..., 0]
    part = np.where(first > 0, (there - 0.5) / np.maximum(there - before, 1e-6), 0.0)
    step = nodes[1] - nodes[0]
    return np.where(inside.any(axis=-1), nodes[first] - np.minimum(part, 1) * step, np.nan)


def outline(share: np.ndarray, y: np.ndarray, z: np.ndarray) -> Outline | None:
    """The outline of a section from its share (Y, Z), 0 to 1, at nodes y (Y,) to the back and z (Z,) upwards, mm.

    None where the section is too small, or none of it lies in one of its four quarters.
    """
    if (share >= 0.5).sum() < _FEW_NODES:
        return None
    tops, bottoms = edges(share, z, last=True), edges(share, z, last=False)
    height = tops - bottoms
    usual = np.nanpercentile(height, _USUAL)
    there = np.flatnonzero(np.nan_to_num(height) >= _HALF * usual)
    ends = (float(y[there[0]]), float(y[there[-1]]))
    central = np.abs(y - sum(ends) / 2) <= _CENTRAL * (ends[1] - ends[0]) / 2
    upper, lower = (_fit(y[central], edge[central]) for edge in (tops, bottoms))
    if upper is None or lower is None:
        return None
    fronts, backs = edges(share.T, y, last=False), edges(share.T, y, last=True)
    cloud = np.concatenate([np.stack(pair, axis=1) for pair in ((y, tops), (y, bottoms), (fronts, z), (backs, z))])
    cloud = cloud[np.isfinite(cloud).all(axis=1)]
    spans = [(float(lower(end)), float(upper(end))) for end in ends]
    leans = [_lean(wall, z, span) for wall, span in zip((fronts, backs), spans, strict=True)]
    corners = np.array(
        [
            _corner(cloud, _slope(plate, ends), leans[n], y[1] - y[0], back, up)
            for plate, up in ((upper, 1), (lower, -1))
            for n, back in ((0, -1), (1, 1))
        ]
    )
    middles = (_middle(tops, y, corners[:2, 0]), _middle(bottoms, y, corners[2:, 0]))
    if not (np.isfinite(corners).all() and np.isfinite(middles).all()):
        return None
    return Outline(upper, lower, corners, middles, ends)


def _fit(at: np.ndarray, values: np.ndarray) -> Curve | None:
    """The parabola fitted to points without outliers; None for too few points."""
    known = np.isfinite(values)
    at, values = at[known], values[known]
    if len(at) < _FEW_POINTS:
        return None
    kept = np.ones(len(at), bool)
    for _ in range(_FITS):
        coefficients = np.polynomial.polynomial.polyfit(at[kept], values[kept], 2)
        off = np.abs(np.polyval(coefficients[::-1], at) - values)
        kept = off <= max(_OUTLIER_MM, _OUTLIER * float(np.median(off)))
        if kept.sum() < _FEW_POINTS:
            break
    return Curve(coefficients, float(np.sqrt(np.mean(off**2))))


def _slope(plate: Curve, ends: tuple[float, float]) -> float:
    """dz/dy of a surface's chord."""
    return float(plate(ends[1]) - plate(ends[0])) / max(ends[1] - ends[0], 1e-6)


def _lean(wall: np.ndarray, z: np.ndarray, span: tuple[float, float]) -> float:
    """dy/dz of the line fitted to the central part of a wall; 0 for a wall too short to have a lean."""
    known = np.isfinite(wall) & (np.abs(z - sum(span) / 2) <= _WALL / 2 * (span[1] - span[0]))
    if known.sum() < _WALL_POINTS or span[1] - span[0] < _WALL_MM:
        return 0.0
    return float(np.clip(np.polyfit(z[known], wall[known], 1)[0], -_STEEPEST, _STEEPEST))


def _corner(cloud: np.ndarray, slope: float, lean: float, pixel: float, back: int, up: int) -> np.ndarray:
    """The outline's point (2,) nearest to where the supporting lines of a surface and a wall meet.

    A supporting line is parallel to its side and touches the outline from outside in the corner's own quarter; the
    point of a rounded corner then lies in the middle of its rounding. Blunting of sharp corners by pixels is undone.
    """
    plate, wall = np.array([-slope, 1.0]) * up, np.array([1.0, -lean]) * back  # outward normals
    middle = cloud.mean(axis=0)
    own = cloud[((cloud - middle) @ plate > 0) & ((cloud - middle) @ wall > 0)]
    if len(own) == 0:
        return np.array([np.nan, np.nan])
    meeting = np.linalg.solve(np.stack([plate, wall]), [(own @ plate).max(), (own @ wall).max()])
    distance = np.linalg.norm(own - meeting, axis=1)
    point = own[distance <= distance.min() + _NEAR_CORNER_MM].mean(axis=0)
    toward = meeting - point
    return np.asarray(point + toward * min(1.0, _BLUNTED * pixel / max(float(np.linalg.norm(toward)), 1e-6)))


def _middle(edge: np.ndarray, y: np.ndarray, ends: np.ndarray) -> float:
    """Mean z of an edge over the middle fifth between two corners."""
    values = edge[np.abs(y - ends.mean()) <= max(_MIDDLE / 2 * np.ptp(ends), y[1] - y[0])]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
