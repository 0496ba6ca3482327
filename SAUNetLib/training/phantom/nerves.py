"""The spinal canal: epidural fat, dural sac with cord and cauda equina, nerve roots in the foramina."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ...anatomy import CANAL_VALUE, structures
from .canvas import Canvas, Region
from .shapes import capsule, ellipsoid
from .spine import Spine
from .tissues import Tissue

BONES = [value for value, row in structures().items() if row.kind in ("vertebra", "sacrum")]


_Slab = tuple[Region, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def paint_epidural_fat(canvas: Canvas, spine: Spine) -> None:
    """Fat around the sac, also in the sacral canal, and in the foramina; vertebrae are painted over it."""
    for n in range(len(spine.sac) - 1):
        depth, width = spine.sac_depth[n], spine.sac_width[n]
        made = _slab(canvas, spine, n, (width / 2 + 7, depth / 2 + 7))
        if made is not None:
            region, u, v, inside, _ = made
            sacral = spine.sac[n].centre[2] < spine.discs[0].lower.centre[2] - 5
            tall = np.where(v > 0, (2.0 if sacral else 6.0) * np.maximum(1 - np.abs(u) / 9, 0), 1.5)
            around = (u / (width / 2 + (2 if sacral else 5))) ** 2 + (v / (depth / 2 + tall)) ** 2 < 1
            region.paint(inside & around, Tissue.EPIDURAL_FAT, 0)
    for n, body in enumerate(spine.vertebrae):
        gap = float(np.linalg.norm(spine.discs[n].upper.centre - spine.discs[n].lower.centre))
        for side in (-1, 1):
            x = side * (body.canal[1] / 2 + 4)
            foramen = ellipsoid(
                canvas, body.frame, (x, body.depth / 2 + 5, -body.height / 2 + 2 - gap / 4), (15, 8, 11)
            )
            if foramen is not None:
                region, r = foramen
                region.paint((r < 1) & (region.label == 0), Tissue.EPIDURAL_FAT)


def _slab(canvas: Canvas, spine: Spine, n: int, half: tuple[float, float]) -> _Slab | None:
    """Samples between two frames of the sac: region, lateral and posterior offset, mask, place between them (0..1)."""
    first, second = spine.sac[n], spine.sac[n + 1]
    points = [frame.at(x, y, 0) for frame in (first, second) for x in (-half[0], half[0]) for y in (-half[1], half[1])]
    region = canvas.around(points, 0.5)
    if region is None:
        return None
    u, v, above = region.local(first)
    u2, v2, below = region.local(second)
    part = np.clip(above / np.maximum(above - below, 1e-3), 0, 1)
    inside = (above >= 0) & (below <= 0) & (above - below > 0)
    return region, u * (1 - part) + u2 * part, v * (1 - part) + v2 * part, inside, part


def paint_sac(canvas: Canvas, spine: Spine, rng: np.random.Generator) -> None:
    """Dural sac with label: CSF, cord down to the conus at L1/L2, rootlets of the cauda equina below."""
    first_lumbar = next(body for body in spine.vertebrae if body.level == "L1")
    conus = float(first_lumbar.lower.centre[2]) + rng.uniform(-22, 10)
    roots = _CaudaEquina(spine, rng)
    for n in range(len(spine.sac) - 1):
        width = (spine.sac_width[n], spine.sac_width[n + 1])
        depth = (spine.sac_depth[n], spine.sac_depth[n + 1])
        made = _slab(canvas, spine, n, (max(width) / 2 + 2, max(depth) / 2 + 2))
        if made is None:
            continue
        region, u, v, inside, part = made
        a = width[0] / 2 + part * ((width[1] - width[0]) / 2)
        b = depth[0] / 2 + part * ((depth[1] - depth[0]) / 2)
        if n == 0:  # rounded end
            b, a = b * np.sqrt(np.clip(part, 0.02, 1)), a * np.sqrt(np.clip(part, 0.02, 1))
        r2 = (u / a) ** 2 + (v / b) ** 2
        # In front, bone takes precedence: the corner of a slipped body protrudes into the canal.
        sac = inside & (r2 < 1) & ((v > 0) | ~np.isin(region.label, BONES))
        region.paint(inside & (r2 < (1 + 0.7 / b) ** 2) & ~sac & (region.label == 0), Tissue.LIGAMENT)
        region.paint(sac, Tissue.CSF, CANAL_VALUE)
        z = region.canvas.z[region.where[0], region.where[1]][:, :, None]
        taper = np.clip((z - conus) / 22, 0, 1)
        cord = np.where(taper > 0, (2.0 + 2.4 * taper) * spine.vertebrae[0].size, 0)
        in_cord = (u / (cord * 1.2 + 1e-3)) ** 2 + ((v - 0.1 * b) / (0.85 * cord + 1e-3)) ** 2 < 1
        region.paint(sac & in_cord & (cord > 0), Tissue.CORD)
        for x, y, radius in roots.at(0.5 * (spine.sac[n].centre[2] + spine.sac[n + 1].centre[2]), conus):
            region.paint(sac & (np.hypot(u - x * a, v - y * b) < radius) & (z < conus + 14), Tissue.ROOT)


class _CaudaEquina:
    """Course of the roots in the sac: from around the conus to the back, then forward to their exits."""

    def __init__(self, spine: Spine, rng: np.random.Generator) -> None:
        exits = [v.lower.centre[2] + 4 for v in spine.vertebrae[:5]] + [f.centre[2] - 8 for f in spine.sacrum[:3]]
        self.roots = [
            (side, float(z), rng.uniform(0.1, 0.95), rng.uniform(0.15, 0.8), rng.uniform(0.55, 0.95))
            for z in exits
            for side in (-1, 1)
            for _ in range(3)
        ]

    def at(self, z: float, conus: float) -> list[tuple[float, float, float]]:
        """Of the roots at a height: lateral and posterior position as fractions of the half-axes, and radius in mm."""
        found = []
        for side, end, lateral, back, radius in self.roots:
            if end - 2 < z < conus + 14:
                part = np.clip((conus + 14 - z) / max(conus + 14 - end, 1), 0, 1)
                x = side * (0.25 * (1 - part) + part * (0.02 + 0.7 * lateral * (1 - part) + 0.75 * part**4))
                y = 0.25 * (1 - part) + 4 * part * (1 - part) * back * 0.85 - 0.1 * part**3
                scale = min(1.0, 0.92 / max(float(np.hypot(x, y)), 1e-3))
                found.append((x * scale, y * scale, radius))
        return found


def paint_root_exits(canvas: Canvas, spine: Spine) -> None:
    """Each root from the sac into its foramen, with the ganglion, and further outwards and down."""
    for n, body in enumerate(spine.vertebrae):
        size = body.size
        back = body.depth / 2
        for side in (-1, 1):
            x = body.canal[1] / 2
            path = [
                (side * (x - 6), back + 6, -0.22 * body.height),
                (side * (x + 4), back + 5.0, -0.42 * body.height),
                (side * (x + 13), back - 1.0, -0.75 * body.height),
                (side * (x + 19), back - 9.0, -1.5 * body.height),
            ]
            thick = (1.2, 2.9, 1.9, 1.7) if n < 5 else (1.0, 2.0, 1.2, 1.0)
            for ends, radii in zip(pairwise(path), pairwise(thick), strict=True):
                made = capsule(canvas, body.frame, ends, (radii[0] * size, radii[1] * size))
                if made is not None:
                    region, distance = made
                    free = (region.label == 0) & (region.tissue != Tissue.LIGAMENT)
                    region.paint((distance < 0) & free, Tissue.ROOT)
