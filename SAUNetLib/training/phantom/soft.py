"""Everything around the spine: muscles with fatty streaks, fat and skin, abdomen, kidneys, great vessels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .bones import spinous_tip
from .canvas import Canvas, Texture, linear_weights
from .shapes import paint_tube
from .spine import SACRUM_DEPTH, Spine
from .tissues import Tissue

COARSE_MM = 4.0
"""Node distance at which outlines of soft tissues are computed before interpolation."""


@dataclass(frozen=True)
class Habitus:
    """A patient's build: fat behind and in front (mm), front to back (mm), fat in muscles (0 to 1), muscle bulk."""

    back_fat: float
    front_fat: float
    depth: float
    infiltration: float
    bulk: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Habitus:
        fat = float(rng.beta(1.7, 2.6))
        return cls(
            5 + 34 * fat + rng.uniform(0, 4), 8 + 45 * fat, 175 + 70 * fat + rng.uniform(-12, 12),
            float(np.clip(rng.beta(1.5, 2.5) + 0.15 * fat, 0.03, 0.95)), rng.uniform(0.8, 1.2),
        )  # fmt: skip


class SpineProfile:
    """The spine's course in the sagittal and the coronal plane: y or x (N,) as functions of the height z (N,), mm."""

    def __init__(self, spine: Spine, habitus: Habitus) -> None:
        scale = spine.sacrum_scale
        down = spine.sacrum[:0:-1]
        depths = SACRUM_DEPTH[:0:-1]
        bodies = [v.frame for v in spine.vertebrae]
        self._z = np.array([f.centre[2] for f in down] + [f.centre[2] for f in bodies])
        self._x = np.array([f.centre[0] for f in down] + [f.centre[0] for f in bodies])
        walls = [f.at(0, d * scale / 2 + 5, 0)[1] for f, d in zip(down, depths, strict=True)]
        self._canal = np.array(walls + [v.frame.at(0, v.depth / 2 + 8, 0)[1] for v in spine.vertebrae])
        fronts = [f.at(0, -d * scale / 2, 0)[1] for f, d in zip(down, depths, strict=True)]
        self._front = np.array(fronts + [v.frame.at(0, -v.depth / 2, 0)[1] for v in spine.vertebrae])
        tips = [f.at(0, d * scale / 2 + 22, 0) for f, d in zip(down, depths, strict=True)]
        tips += [spinous_tip(spine, n) for n in range(len(spine.vertebrae))]
        order = np.argsort([tip[2] for tip in tips])
        self._tip_z, self._tip_y = (np.array([tips[n][axis] for n in order]) for axis in (2, 1))
        self._body_z, self._body_y = (np.array([f.centre[axis] for f in bodies]) for axis in (2, 1))
        self.top = spine.sacrum[0].centre
        self.heights = {v.level: float(v.frame.centre[2]) for v in spine.vertebrae}
        fine = np.arange(self._z[0] - 60, self._z[-1] + 60, 4.0)
        kernel = np.exp(-0.5 * (np.arange(-15, 16) / 6.0) ** 2)
        fat = habitus.back_fat * (1 + 0.35 * np.exp(-(((fine + 5) / 60) ** 2)))  # most over the sacrum
        deepest = np.interp(fine, self._tip_z, self._tip_y) + fat
        self._skin_z = fine[15:-15]
        self._skin_y = np.convolve(deepest, kernel / kernel.sum(), "valid") + 2.0

    def canal(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._z, self._canal)

    def x(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._z, self._x)

    def front(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._z, self._front)

    def middle(self, z: np.ndarray) -> np.ndarray:
        """The axis of the bodies, constant below S1."""
        return np.interp(z, [self.top[2] - 20, *self._body_z], [self.top[1] - 8, *self._body_y])

    def tip(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._tip_z, self._tip_y)

    def skin(self, z: np.ndarray) -> np.ndarray:
        return np.interp(z, self._skin_z, self._skin_y)


class OutlineFields:
    """Implicit outlines by name: fields on a coarse grid, negative inside, interpolated plane by plane."""

    def __init__(self, canvas: Canvas) -> None:
        def nodes(values: np.ndarray) -> np.ndarray:
            low, high = float(values.min()), float(values.max())
            return np.linspace(low - 1, high + 1, max(2, int(np.ceil((high - low) / COARSE_MM)) + 2))

        self._nodes = nodes(canvas.x), nodes(canvas.row), nodes(canvas.column)
        self.x = self._nodes[0][:, None, None]
        self.z = self._nodes[1][None, :, None]
        self.y = self._nodes[2][None, None, :]
        self._across = linear_weights(canvas.x, self._nodes[0])
        self._rows = linear_weights(canvas.row, self._nodes[1])
        self._columns = np.ascontiguousarray(linear_weights(canvas.column, self._nodes[2]).T)
        self._values: dict[str, np.ndarray] = {}

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        shape = (self.x.size, self.z.size, self.y.size)
        self._values[name] = np.ascontiguousarray(np.broadcast_to(values, shape), np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values[name]

    def sample(self, texture: Texture) -> np.ndarray:
        """A texture on the coarse grid."""
        weights = texture.weights(self._nodes[1], self._nodes[2])
        return np.stack([texture.plane(x, *weights) for x in self._nodes[0]])

    def plane(self, name: str, s: int, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """Values (R, C), or of a window, in sub-slice s."""
        return (self._rows[rows] @ self._coarse(name, s)) @ self._columns[:, columns]

    def inside(self, name: str, s: int) -> tuple[slice, slice, np.ndarray] | None:
        """The window of sub-slice s around the negative values, and the mask of these."""
        coarse = self._coarse(name, s)
        negative = coarse < 0
        if not negative.any():
            return None
        rows, columns = _window(self._rows, negative.any(1)), _window(self._columns.T, negative.any(0))
        return rows, columns, self._rows[rows] @ coarse @ self._columns[:, columns] < 0

    def _coarse(self, name: str, s: int) -> np.ndarray:
        weight = self._across[s]
        n = min(int(np.argmax(weight > 0)), len(weight) - 2)
        return weight[n] * self._values[name][n] + weight[n + 1] * self._values[name][n + 1]


def _window(weights: np.ndarray, used: Any) -> slice:
    rows = np.flatnonzero(weights[:, used].any(1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


SIMPLE = (
    ("cavity", Tissue.MESENTERY), ("bowel", Tissue.BOWEL), ("fluid", Tissue.FLUID), ("gas", Tissue.GAS),
    ("wall", Tissue.MUSCLE), ("liver", Tissue.LIVER), ("perirenal", Tissue.FAT), ("kidney", Tissue.KIDNEY),
    ("sinus", Tissue.FAT), ("bladder_wall", Tissue.MUSCLE), ("bladder", Tissue.FLUID), ("crus", Tissue.MUSCLE),
)  # fmt: skip
"""Painted in this order."""


def paint_soft_tissues(canvas: Canvas, spine: Spine, habitus: Habitus, rng: np.random.Generator) -> None:
    """Fill the whole canvas; bones, nerves and vessels are painted over it."""
    profile = SpineProfile(spine, habitus)
    fields = OutlineFields(canvas)
    _trunk(fields, profile, habitus, rng)
    _abdomen(fields, profile, rng)
    _muscles(fields, profile, habitus, rng)
    streaks = Texture(rng, (3.0, 1.7, 16.0))
    septa = Texture(rng, (9.0, 6.0, 14.0))
    shear = profile.canal(canvas.row) + 0.22 * canvas.row
    columns = np.arange(len(canvas.column))
    gather = (columns[None] - np.round((shear - shear.min()) / canvas.pixel).astype(int)[:, None]) % len(columns)
    weights = [texture.weights(canvas.row, canvas.column) for texture in (streaks, septa)]
    for s, x in enumerate(canvas.x):
        tissue = canvas.tissue[s]
        tissue[:] = Tissue.FAT
        tissue[np.abs(septa.plane(x, *weights[1])) < 0.025] = Tissue.FASCIA
        for name, value in SIMPLE:
            window = fields.inside(name, s)
            if window is not None:
                tissue[window[0], window[1]][window[2]] = value
        _paint_muscles(fields, s, tissue, np.take_along_axis(streaks.plane(x, *weights[0]), gather, 1))
        _paint_skin(fields, s, tissue)
    _great_vessels(canvas, profile, rng)


def _paint_muscles(fields: OutlineFields, s: int, tissue: np.ndarray, streaks: np.ndarray) -> None:
    for name in ("psoas", "quadratus", "erector"):
        window = fields.inside(name, s)
        if window is None:
            continue
        rows, columns, mask = window
        crop = tissue[rows, columns]
        crop[mask] = Tissue.MUSCLE
        fibres = streaks[rows, columns]
        lean = fields.plane(f"{name}_lean", s, rows, columns)
        crop[mask & (fibres > lean - 0.75)] = Tissue.FATTY_MUSCLE
        crop[mask & (fibres > lean)] = Tissue.FAT
        if name == "erector":
            middle = mask & (fields.plane("midline", s, rows, columns) < 0)
            crop[middle] = np.where(fibres[middle] > 0.3, Tissue.SPONGY_FAT, Tissue.INTERSPINOUS)
            cleft = np.abs(fields.plane("cleft", s, rows, columns) + fibres) < 1.1
            crop[mask & cleft & ~middle] = Tissue.FAT
    window = fields.inside("fascia", s)
    if window is not None:
        rows, columns, mask = window
        tissue[rows, columns][mask & (np.abs(fields.plane("back", s, rows, columns)) < 0.8)] = Tissue.FASCIA


def _paint_skin(fields: OutlineFields, s: int, tissue: np.ndarray) -> None:
    outside = fields.plane("outside", s)
    tissue[outside < 2.0] = Tissue.SKIN
    tissue[outside < 0] = Tissue.AIR


def _trunk(fields: OutlineFields, profile: SpineProfile, habitus: Habitus, rng: np.random.Generator) -> None:
    """`outside` is negative beyond the skin; abdominal wall and cavity."""
    x, y, z = fields.x, fields.y, fields.z
    back = profile.skin(z) - x**2 / 340 - 3.5 * np.exp(-((x / 7) ** 2)) * np.clip(habitus.bulk, 0, 1)
    lean = -10 * np.sin((z - profile.top[2]) / 70 + rng.uniform(0, 3)) + 0.05 * (z - 100)
    front = profile.skin(np.array(100.0)) - habitus.depth + lean + x**2 / 260
    fields["outside"] = np.minimum(back - y, y - front)
    wall = front + habitus.front_fat
    fields["wall"] = np.maximum(wall - y, y - wall - 9) + 0 * x
    behind = np.minimum(profile.front(z), profile.front(z + 25)) - 14 - 6 * np.cos(x / 25)
    fields["cavity"] = np.maximum(wall + 9 - y, y - behind)


def _abdomen(fields: OutlineFields, profile: SpineProfile, rng: np.random.Generator) -> None:
    """Bowel loops, liver or stomach, kidneys in their fat, bladder; crura of the diaphragm in front of L1 and L2."""
    x, y, z = fields.x, fields.y, fields.z
    high = profile.heights
    cavity = fields["cavity"]
    loops = fields.sample(Texture(rng, (17, 14, 15), 24))
    contents = fields.sample(Texture(rng, (13, 11, 11), 24))
    fields["bowel"] = np.maximum(cavity + 2, 10 * (rng.uniform(-0.5, 0.2) - loops))
    fields["fluid"] = np.maximum(fields["bowel"] + 3, 10 * (contents + rng.uniform(0.9, 1.5)))
    fields["gas"] = np.maximum(fields["bowel"] + 2.5, 10 * (rng.uniform(0.7, 1.3) - contents))
    front = float(profile.front(np.array(high["L1"])))

    def ball(cx: float, cy: float, cz: float, rx: float, ry: float, rz: float, tilt: float = 0.0) -> np.ndarray:
        shifted = y - cy - tilt * (z - cz)
        return (np.sqrt(((x - cx) / rx) ** 2 + (shifted / ry) ** 2 + ((z - cz) / rz) ** 2) - 1) * min(rx, ry, rz)

    fields["liver"] = ball(-78, front - 62, high["T12"] + 18, 88 + rng.uniform(-10, 10), 55, 72)
    fields["perirenal"], fields["kidney"], fields["sinus"] = (np.full_like(loops, 9) for _ in range(3))
    for side in (-1, 1):
        cx, cy = side * (50 + rng.uniform(-4, 6)), front + 24 + rng.uniform(-5, 5)
        cz = high["L2"] + 6 * side + rng.uniform(-6, 10)
        half = (25 + rng.uniform(-2, 2), 23 + rng.uniform(-2, 3), 52 + rng.uniform(-5, 4))
        waves = 1.2 * contents
        for name, grown in (("perirenal", 15.0), ("kidney", 0.0), ("sinus", -14.0)):
            shift = 6 * side if name == "sinus" else 0
            forward = 4 if name == "perirenal" else 0
            rx, ry, rz = (h + grown for h in half)
            shape = ball(cx - shift, cy - forward, cz, rx, ry, rz, -0.28)
            fields[name] = np.minimum(fields[name], shape + (waves if name == "sinus" else 0))
    top = profile.top
    fields["bladder_wall"] = ball(rng.uniform(-8, 8), top[1] - 62, top[2] - 98, 38, 32, 30 + rng.uniform(-8, 14))
    fields["bladder"] = fields["bladder_wall"] + 4
    ahead = profile.front(z) - y
    thick = 6.5 * np.clip((z - high["L3"]) / 60, 0, 1)
    fields["crus"] = np.maximum(np.maximum(ahead - thick - 2, 2 - ahead), np.abs(x - profile.x(z)) - 17)


def _muscles(fields: OutlineFields, profile: SpineProfile, habitus: Habitus, rng: np.random.Generator) -> None:
    """Psoas, quadratus lumborum and erector spinae, and how lean each part is (a threshold for fatty streaks)."""
    x, y, z = fields.x, fields.y, fields.z
    high, top = profile.heights, profile.top
    side = np.abs(x - profile.x(z))
    part = (high["L1"] + 8 - z) / (high["L1"] + 8 - top[2])
    ease = np.clip(part, 0, 1.15)
    middle = profile.middle(z)
    bulk = habitus.bulk
    cx, cy = 24 + 16 * ease + 25 * np.maximum(part - 1, 0), middle + 6 - 8 * ease - 60 * np.maximum(part - 0.85, 0)
    rx, ry = bulk * (4 + 14 * ease), bulk * (6 + 15 * ease)
    fields["psoas"] = np.maximum((np.hypot((side - cx) / rx, (y - cy) / ry) - 1) * rx, -part * 40)
    d = y - profile.canal(z)
    low = np.clip((z - top[2] + 5) / 20, 0, 1)  # the quadratus begins at the iliac crest
    fields["quadratus"] = np.maximum((np.hypot((side - 50) / 20, (d - 0) / (7 * bulk)) - 1) * 7, (0.5 - low) * 10)
    uneven = 2.5 * fields.sample(Texture(rng, (9, 8, 10), 24))
    front = np.where(side < 22, 9.0, 4.0 + 0 * side) + uneven + 6 * np.clip((top[2] - z) / 30, 0, 1)
    hump = 5 * bulk * np.exp(-(((side - 32) / 18) ** 2)) - np.maximum(side - 52, 0) ** 2 / 60
    thin = np.clip((z - top[2] + 95) / 60, 0, 1)  # tapers over the sacrum
    back = profile.tip(z) - profile.canal(z) - 1.5 + hump * thin
    fields["erector"] = np.maximum(front - d, d - back)
    fields["back"] = d - back
    fields["fascia"] = np.maximum(np.maximum(d - back - 4, back - d - 4), side - 70)
    fields["midline"] = side - 2.6
    fields["cleft"] = side - (5 + 1.1 * (d - 10)) - 3 * np.clip((z - top[2]) / 120, -1, 1)
    patches = 0.35 * fields.sample(Texture(rng, (16, 9, 30), 24))
    lumbosacral = np.exp(-(((z - top[2] - 15) / 55) ** 2))
    fat = habitus.infiltration * (0.75 + 0.8 * lumbosacral * np.clip(1.6 - side / 22, 0.1, 1))
    fields["erector_lean"] = 2.35 - 2.2 * (fat - 0.45 * np.clip((d - 16) / 12, 0, 1)) - 2 * patches
    fields["psoas_lean"] = 2.7 - 0.6 * habitus.infiltration + patches
    fields["quadratus_lean"] = 2.4 - 1.4 * habitus.infiltration + patches


def _great_vessels(canvas: Canvas, profile: SpineProfile, rng: np.random.Generator) -> None:
    """Aorta and inferior vena cava in front of the spine with their pelvic branches; rectum in front of the sacrum."""
    high, top = profile.heights, profile.top
    z = np.arange(high["L4"] - 8, max(high.values()), 9.0)
    sway = rng.uniform(-3, 3)
    aorta = np.stack((profile.x(z) + 8 + sway + 1.5 * np.sin(z / 40), profile.front(z) - 12.5, z), 1)
    cava = np.stack((profile.x(z) - 15 + sway, profile.front(z) - 11, z), 1)
    paint_tube(canvas, aorta, np.linspace(7.5, 9.5, len(z)), Tissue.VESSEL)
    paint_tube(canvas, cava, np.full(len(z), 9.5), Tissue.VESSEL)
    for start, radius in ((aorta[0], 5.0), (cava[0], 6.5)):
        for side in (-1, 1):
            branch = start * (0.5, 1, 1) + (side * 20, 6, -34)
            pelvic = (np.array((side * 46, top[1] - 12, top[2] - 35)), np.array((side * 58, top[1] - 5, top[2] - 70)))
            path = np.stack((start, branch, *pelvic))
            paint_tube(canvas, path, np.full(4, radius), Tissue.VESSEL)
    heights = np.arange(top[2] - 90, top[2] - 28, 8.0)
    rectum = np.stack((12 * np.sin(heights / 22 + sway), profile.front(heights) - 17 - 3 * sway, heights), 1)
    paint_tube(canvas, rectum, np.full(len(heights), 11.0), Tissue.BOWEL)
    paint_tube(canvas, rectum, 6.0 + 2 * np.sin(heights / 9), Tissue.GAS if sway > 0 else Tissue.FLUID)
