"""Signed distances of simple shapes (mm, negative inside), in local coordinates."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, Point, Region
from .spine import LocalFrame


def capsule(
    canvas: Canvas,
    frame: LocalFrame,
    ends: tuple[Point, Point],
    radii: tuple[float, float],
    flat: Point = (1.0, 1.0, 1.0),
) -> tuple[Region, np.ndarray] | None:
    """A rod with round ends between two local points, with its thickness scaled along the local axes by `flat`.

    Returns its region and the approximate signed distance there, or None outside the field of view.
    """
    reach = max(radii)
    low, high = (
        tuple(pick(a, b) + sign * (reach * f + 1.0) for a, b, f in zip(*ends, flat, strict=True))
        for pick, sign in ((min, -1), (max, 1))
    )
    region = canvas.local_box(frame, low, high)  # type: ignore[arg-type]
    if region is None:
        return None
    scale = np.array(flat, np.float32)
    start, end = (np.array(point, np.float32) / scale for point in ends)
    axis = end - start
    x, y, z = (values / f - s for values, f, s in zip(region.local(frame), scale, start, strict=True))
    along = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / max(float(axis @ axis), 1e-6), 0, 1)
    x -= along * axis[0]
    y -= along * axis[1]
    z -= along * axis[2]
    distance = np.sqrt(x * x + y * y + z * z) - (radii[0] + (radii[1] - radii[0]) * along)
    return region, distance * np.float32(0.5 * (min(flat) + 1.0) if min(flat) < 1 else 1.0)


def ellipsoid(canvas: Canvas, frame: LocalFrame, centre: Point, radii: Point) -> tuple[Region, np.ndarray] | None:
    """An ellipsoid along the local axes; the value is 0 at its centre, 1 at its surface."""
    low = tuple(c - r for c, r in zip(centre, radii, strict=True))
    high = tuple(c + r for c, r in zip(centre, radii, strict=True))
    region = canvas.local_box(frame, low, high)  # type: ignore[arg-type]
    if region is None:
        return None
    x, y, z = ((values - c) / r for values, c, r in zip(region.local(frame), centre, radii, strict=True))
    return region, np.sqrt(x * x + y * y + z * z)


def paint_tube(canvas: Canvas, points: np.ndarray, radii: np.ndarray, tissue: int) -> None:
    """A tube of radii (N,) along a path (N, 3) in patient coordinates."""
    world = LocalFrame(np.zeros(3), np.eye(3))
    for n in range(len(points) - 1):
        ends = tuple(points[n]), tuple(points[n + 1])
        made = capsule(canvas, world, ends, (radii[n], radii[n + 1]))
        if made is not None:
            made[0].paint(made[1] < 0, tissue)
