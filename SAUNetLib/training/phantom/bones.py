"""Bones and discs: vertebrae with their arches, sacrum, ribs, ilium."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ...anatomy import value_of
from .canvas import Canvas, Region
from .shapes import Point, capsule, ellipsoid
from .spine import SACRAL_HOLLOW, SACRUM_DEPTH, SACRUM_HALF_WIDTH, Disc, LocalFrame, Spine, Vertebra, frame_between
from .tissues import Tissue

CORTEX_MM = 0.9
JOINT_MM = 0.55
"""Half the width of a facet joint space."""
SQUARENESS = 0.55
"""Shape of a vertebral body's outline: 0 an ellipse, 1 a rectangle (squircle of Fernandez Guasti 1992)."""

Part = tuple[Region, np.ndarray]


def paint_bones(canvas: Canvas, spine: Spine, ribs: bool, rng: np.random.Generator) -> None:
    """Every disc and vertebra with its label, and the ribs."""
    for n, disc in enumerate(spine.discs):
        paint_disc(canvas, disc, spine.vertebrae[n], spine.vertebrae[n - 1] if n else None, rng)
    for n, vertebra in enumerate(spine.vertebrae):
        draws = rng.uniform(size=(6, 6))  # always the same number, whether in view or not
        parts = list(_arch(canvas, spine, n, draws[0]))
        if ribs and vertebra.level.startswith("T"):
            _paint_ribs(canvas, vertebra, draws[0])
        _paint_parts(parts, value_of(vertebra.level))
        _paint_body(canvas, vertebra, spine.discs[n : n + 2], draws)
        _paint_inside(parts)
        _paint_joint(canvas, spine, n)


def _footprint(x: np.ndarray, y: np.ndarray, width: float, depth: float) -> np.ndarray:
    """0 on a body's axis, 1 at its outline; the back is concave at the midline."""
    u = x * np.float32(2 / width)
    v = y * np.float32(2 / depth)
    u2 = u * u
    v -= np.maximum(v, 0) * np.minimum(u2, 1) * np.float32(0.16)
    v2 = v * v
    return np.sqrt(np.maximum(u2 + v2 - np.float32(SQUARENESS) * u2 * v2, 0))


def _endplates(body: Vertebra, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the lower and the upper endplate above points of the body's middle plane."""
    frame = body.frame
    surfaces = []
    for plate, hollow, sign in ((body.lower, body.hollow[0], 1), (body.upper, body.hollow[1], -1)):
        normal = frame.axes @ plate.axes[2]
        offset = float((plate.centre - frame.centre) @ frame.axes[2])
        flat = np.float32(offset) - np.float32(normal[0] / normal[2]) * x - np.float32(normal[1] / normal[2]) * y
        surfaces.append(flat + np.float32(sign * hollow) * np.maximum(1 - r * r, 0))
    return surfaces[0], surfaces[1]


def _paint_body(canvas: Canvas, body: Vertebra, discs: list[Disc], draws: np.ndarray) -> None:
    half = (body.width / 2 + 5, body.depth / 2 + 6, body.height / 2 + 8)
    region = canvas.local_box(body.frame, tuple(-h for h in half), half)  # type: ignore[arg-type]
    if region is None:
        return
    x, y, z = region.local(body.frame)
    r = _footprint(x, y, body.width, body.depth)
    lower, upper = _endplates(body, x, y, r)
    t = np.clip((2 * z - upper - lower) / (upper - lower), -1, 1)
    t2 = t * t
    front = np.clip(1 - y * np.float32(2 / body.depth), 0, 1.6)  # the back has less of a waist than front and sides
    outline = 1 - np.float32(body.waist) * (1 - t2) ** 2 * (0.25 + 0.6 * front)
    outline += np.float32(body.spurs) * np.maximum(np.abs(t) - 0.7, 0) * 2 * np.minimum(front, 1)
    side = (outline - r) * np.float32(body.depth / 2)
    ends = np.minimum(upper - z, z - lower)
    inside = (side > 0) & (ends > 0)
    # Ligaments and vessels adhere to the front and the sides.
    around = (side > -0.8) & ~inside & (ends > -2.0) & (y < body.depth * 0.35)
    region.paint(around & (region.label == 0), Tissue.LIGAMENT)
    region.paint(inside, Tissue.CORTEX, value_of(body.level))
    region.paint((side > CORTEX_MM) & (ends > 0.8), Tissue.MARROW)
    _paint_segmental_vessel(region, side, z)
    _paint_marrow_findings(body, region, (x, y, z, ends, side), discs, draws)


def _paint_segmental_vessel(region: Region, side: np.ndarray, z: np.ndarray) -> None:
    ring = (side < -0.5) & (side > -2.4) & (np.abs(z + 1) < 0.9)
    region.paint(ring & (region.tissue == Tissue.FAT), Tissue.VESSEL)


def _paint_marrow_findings(
    body: Vertebra, region: Region, at: tuple[np.ndarray, ...], discs: list[Disc], draws: np.ndarray
) -> None:
    """Basivertebral vein, haemangioma-like spots, endplate changes beside degenerated discs, spongy fat."""
    x, y, z, ends, side = at
    marrow = region.tissue == Tissue.MARROW
    back = body.depth / 2
    reach = np.maximum(y - 0.1 * back, 0) / np.float32(0.9 * back)
    vein = (np.abs(z - 0.5) < 0.6 + 1.9 * reach**3) & (np.abs(x) < 1.5 + 5 * reach) & (y > 0.15 * back) & (side > -0.3)
    for n, disc in enumerate(discs):
        kind, extent, centre = draws[1 + n, 0], draws[1 + n, 1], draws[1 + n, 2]
        if disc.grade < 2.4 or kind > 0.55:
            continue
        tissue = Tissue.FATTY_SPOT if kind < 0.38 else Tissue.OEDEMA
        from_plate = ends + np.where((z > 0) == (n == 1), 0, 99)
        span = np.hypot(y - (centre - 0.6) * body.depth * 0.8, 0.6 * x)
        region.paint(marrow & (from_plate < 3 + 6 * extent - 0.02 * span**2), tissue)
    if draws[3, 0] < 0.16:
        spot_x, spot_y, spot_z = (draws[3, 1:4] - 0.5) * (12, 10, 8)
        spot = np.sqrt((x - spot_x) ** 2 + (y - spot_y) ** 2 + (z - spot_z) ** 2)
        region.paint(marrow & (spot < 2.5 + 4 * draws[3, 4]), Tissue.FATTY_SPOT)
    region.paint(marrow & vein, Tissue.VEIN if draws[4, 0] < 0.6 else Tissue.SPONGY_FAT)
    # The vein exits through the cortex.
    region.paint(vein & (side <= CORTEX_MM) & (side > 0) & (np.abs(x) < 4), Tissue.VEIN)


def paint_disc(canvas: Canvas, disc: Disc, above: Vertebra, below: Vertebra | None, rng: np.random.Generator) -> None:
    """Annulus and nucleus between two endplates; the bodies are painted over the disc's rims afterwards."""
    draws = rng.uniform(size=4)
    frame = disc.frame
    half = (disc.width / 2 + 4, disc.depth / 2 + 5, 14.0)
    region = canvas.local_box(frame, tuple(-h for h in half), half)  # type: ignore[arg-type]
    if region is None:
        return
    x, y, _ = region.local(frame)
    r = _footprint(x, y, disc.width, disc.depth)
    over = _from_lower_endplate(region, above)
    if below is not None:
        ax, ay, az = region.local(below.frame)
        under = az - _endplates(below, ax, ay, _footprint(ax, ay, below.width, below.depth))[1]
    else:
        under = region.local(disc.lower)[2] + np.float32(SACRAL_HOLLOW) * np.maximum(1 - r * r, 0)
    height = np.maximum(over + under, 0.5)
    q = 2 * under / height - 1
    swelling = (0.6 + np.where(y > 0, disc.bulge * np.maximum(1 - np.abs(x) / 16, 0.2), 0.3 * disc.bulge)) * (1 - q * q)
    side = (np.float32(0.985) - r) * np.float32(disc.depth / 2) + swelling
    inside = (over > 0) & (under > 0) & (side > 0)
    value = value_of(disc.level)
    region.paint((over > -1) & (under > -1) & (side > -0.8) & ~inside & (y < disc.depth * 0.3), Tissue.LIGAMENT)
    region.paint(inside, Tissue.ANNULUS, value)
    region.paint(inside & (side < 2.2 + draws[0] + 1.2 * q * q), Tissue.ANNULUS_OUTER)
    extent = 0.68 + 0.08 * draws[1]
    ripple = 0.12 * np.sin(x * 0.5 + 6 * draws[2]) * np.sin(y * 0.6 + 6 * draws[3])
    core = (r / extent) ** 2 + (q / 0.95) ** 4 + ripple
    region.paint(inside & (core < 1.3), Tissue.NUCLEUS_RIM if disc.grade < 2.5 else Tissue.ANNULUS)
    region.paint(inside & (core < 1), Tissue.NUCLEUS_0 + int(np.clip(round(disc.grade), 0, 4)))
    if 0.7 < disc.grade < 2.6:  # the intranuclear cleft of adults
        region.paint(inside & (core < 0.7) & (np.abs(q + 0.1 + ripple) * height < 1.1), Tissue.NUCLEUS_0 + 2)


def _from_lower_endplate(region: Region, above: Vertebra) -> np.ndarray:
    """Distance, mm, below the lower endplate of a body."""
    x, y, z = region.local(above.frame)
    return _endplates(above, x, y, _footprint(x, y, above.width, above.depth))[0] - z


def _joint(spine: Spine, n: int, side: int) -> tuple[np.ndarray, np.ndarray, LocalFrame]:
    """The facet joint below vertebra n: centre, normal from the lower vertebra's facet to the upper one's, frame."""
    upper = spine.vertebrae[n]
    disc = spine.discs[n]
    depth, width = upper.canal
    if n:
        lower = spine.vertebrae[n - 1]
        frame, back, shift = lower.frame, lower.depth / 2, lower.arch_shift
        lateral = (lower.canal[1] + lower.pedicle) / 2 + 1.0
        z = lower.height / 2 + 0.5 * (disc.upper.centre - disc.lower.centre) @ disc.frame.axes[2]
    else:
        frame, back, shift = disc.lower, disc.depth / 2, 0.0
        lateral, z = (width + upper.pedicle) / 2 + 1.5, 4.0
    centre = frame.at(side * (lateral - 1), back + shift + 0.78 * depth, float(z))
    turn = np.radians(48 if upper.lumbar else 75)
    normal = np.array((-side * np.cos(turn), np.sin(turn), 0.12)) @ frame.axes
    return centre, normal / np.linalg.norm(normal), frame


def _arch(canvas: Canvas, spine: Spine, n: int, draws: np.ndarray) -> Iterator[Part]:
    """Pedicles, articular processes, laminae, transverse and spinous processes, trimmed at the joints."""
    v = spine.vertebrae[n]
    frame, height = v.frame, v.height
    depth, width = v.canal
    back = v.depth / 2
    arch = back + v.arch_shift
    gap_above = _gap(spine, n + 1)
    gap_below = _gap(spine, n)
    lateral = (width + v.pedicle) / 2
    rod = 0.25 * height

    def make(start: Point, end: Point, radii: tuple[float, float], flat: Point = (1, 1, 1)) -> Part | None:
        return capsule(canvas, frame, (start, end), radii, flat)

    for side in (-1, 1):
        x = side * lateral
        pillar = (x, arch + 9.0, 0.16 * height)
        isthmus = (x - side * 2, arch + 0.72 * depth + 1, -0.24 * height)
        yield from _made(make((x, back - 6, 0.17 * height), pillar, (rod, rod * 0.92), (v.pedicle / 2 / rod, 1, 1)))
        yield from _made(make(pillar, isthmus, (5.6, 5.4)))
        yield from _made(
            make(isthmus, (0.0, arch + depth + 3.4, -0.27 * height), (0.27 * height, 0.3 * height), (1, 0.42, 1))
        )
        tip_y = arch + (11 if v.lumbar else 21)
        yield from _made(
            make((x, arch + 8, 0.1 * height), (side * v.tip, tip_y, 0.14 * height), (5.5, 3.8), (1, 0.7, 1))
        )
        over, under = (height + gap_above) / 2 + 4.0, -(height + gap_below) / 2 - 5.5
        superior = make(pillar, (x + side * 2.0, arch + 0.62 * depth, over), (6.0, 5.0))
        inferior = make(isthmus, (x - side * 1.5, arch + 0.9 * depth + 1, under), (6.2, 5.6))
        if superior is not None:
            if n + 1 < len(spine.vertebrae):
                superior = _cut(superior, *_joint(spine, n + 1, side)[:2], keep=-1)
            yield superior
        if inferior is not None:
            yield _cut(inferior, *_joint(spine, n, side)[:2], keep=1)
    yield from _spinous(canvas, spine, n, draws)


def _gap(spine: Spine, n: int) -> float:
    """mm between the endplates' planes above vertebra n - 1."""
    if n >= len(spine.discs):
        return 5.0
    disc = spine.discs[n]
    return float((disc.upper.centre - disc.lower.centre) @ disc.frame.axes[2])


def _made(part: Part | None) -> Iterator[Part]:
    if part is not None:
        yield part


def _cut(part: Part, centre: np.ndarray, normal: np.ndarray, keep: int, gap: float = JOINT_MM) -> Part:
    """A part trimmed at a joint's plane."""
    region, distance = part
    axes = np.stack((np.zeros(3), np.zeros(3), normal))
    beyond = region.local(LocalFrame(centre, axes))[2]
    return region, np.maximum(distance, np.float32(gap) - keep * beyond)


def spinous_tip(spine: Spine, n: int) -> np.ndarray:
    """Patient position of the tip of vertebra n's spinous process."""
    v = spine.vertebrae[n]
    length, drop = ((25.0, 0.42) if v.lumbar else (27.0, 0.85)) if v.level not in ("L5", "L6") else (19.0, 0.36)
    return v.frame.at(0, v.depth / 2 + v.arch_shift + v.canal[0] + 3 + length * v.size, -drop * v.height)


def _spinous(canvas: Canvas, spine: Spine, n: int, draws: np.ndarray) -> Iterator[Part]:
    v = spine.vertebrae[n]
    height = v.height
    root = (float(draws[4] - 0.5), v.depth / 2 + v.arch_shift + v.canal[0] + 4.5, -0.27 * height)
    tip = v.frame.axes @ (spinous_tip(spine, n) - v.frame.centre)
    across, spread = float(3 * (draws[5] - 0.5)), (0.15 if v.lumbar else 0.06) * height
    radii = ((0.2 + 0.04 * draws[3]) * height, (0.2 + 0.05 * draws[2]) * height)
    thick = 0.5 + 0.15 * draws[1]
    for lift, short in ((0.6 * spread, 8 + 4 * draws[0]), (-1.2 * spread, 6.5)):  # upper and lower border of a plate
        end = (across, float(tip[1]) - short, float(tip[2]) + lift)
        part = capsule(canvas, v.frame, ((root[0], root[1], root[2] + 0.6 * lift), end), radii, (thick, 1, 1))
        if part is None:
            continue
        for other, keep in ((n + 1, 1), (n - 1, -1)):  # neighbouring processes may touch but not merge
            if 0 <= other < len(spine.vertebrae):
                mine, theirs = _spine_centre(spine, n), _spine_centre(spine, other)
                up = (theirs - mine) * keep / np.linalg.norm(theirs - mine)
                part = _cut(part, (mine + theirs) / 2, up, keep=-keep, gap=0.9)
        yield part


def _spine_centre(spine: Spine, n: int) -> np.ndarray:
    v = spine.vertebrae[n]
    root = v.frame.at(0, v.depth / 2 + v.arch_shift + v.canal[0] + 4, -0.27 * v.height)
    return (root + spinous_tip(spine, n)) / 2


def _paint_parts(parts: list[Part], value: int) -> None:
    for region, distance in parts:
        free = (region.label == 0) | (region.label == value)
        region.paint((distance < 0) & free, Tissue.CORTEX, value)


def _paint_inside(parts: list[Part]) -> None:
    for region, distance in parts:
        region.paint((distance < -CORTEX_MM) & (region.tissue == Tissue.CORTEX), Tissue.MARROW)


def _paint_joint(canvas: Canvas, spine: Spine, n: int) -> None:
    for side in (-1, 1):
        centre, normal, frame = _joint(spine, n, side)
        made = ellipsoid(canvas, LocalFrame(centre, frame.axes), (0, 0, 0), (6.5, 6.5, 7.5))
        if made is None:
            continue
        region, r = made
        across = region.local(LocalFrame(centre, np.stack((np.zeros(3), np.zeros(3), normal))))[2]
        free = region.label == 0
        region.paint((r < 1.25) & (r >= 0.95) & free & (np.abs(across) < 2.5), Tissue.LIGAMENT)
        region.paint((r < 1) & free & (np.abs(across) < 0.8), Tissue.CARTILAGE)


def _paint_ribs(canvas: Canvas, v: Vertebra, draws: np.ndarray) -> None:
    """A rib on each side: from the body past the transverse process, then backwards, outwards and down."""
    side_of_body = v.width / 2
    back = v.depth / 2
    floating = v.level in ("T11", "T12", "T13")
    for side in (-1, 1):
        z = 0.15 * v.height if floating else 0.5 * v.height
        path: list[Point] = [
            (side * (side_of_body - 4), back - 2, z),
            (side * (v.tip - 1), back + (17 if floating else 14), z * 0.6 - 2),
            (side * (v.tip + 18), back + 24, -6 - 4 * draws[0]),
            (side * (v.tip + 40), back + 18, -22),
        ]
        # Ribs are background: where they meet the vertebra, its label takes precedence.
        for start, end in pairwise(path):
            made = capsule(canvas, v.frame, (start, end), (4.2, 4.6), (1, 0.7, 1.15))
            if made is not None:
                region, distance = made
                free = region.label == 0
                region.paint((distance < 0) & free, Tissue.CORTEX)
                region.paint((distance < -CORTEX_MM) & free, Tissue.MARROW)


def paint_sacrum(canvas: Canvas, spine: Spine) -> None:
    """S1 to S5 as one bone with alae, arch, foramina and disc remnants; the coccyx without a label."""
    scale = spine.sacrum_scale
    last = len(spine.sacrum) - 2
    for n, (top, bottom) in enumerate(pairwise(spine.sacrum)):
        _paint_sacral_segment(canvas, (top, bottom), n, scale, value_of("S1") if n < last else None)
    _paint_alae(canvas, spine.sacrum, scale)
    for n in range(1, 5):
        _paint_sacral_junction(canvas, spine.sacrum[n], n, scale)
    _paint_sacral_facets(canvas, spine)


def _paint_alae(canvas: Canvas, sacrum: list[LocalFrame], scale: float) -> None:
    """The alae beside S1 to S3, out to the sacroiliac joints."""
    for side in (-1, 1):
        for frame, centre, radii in (
            (frame_between(sacrum[0], sacrum[1]), (32.0, 1.0, -3.0), (24.0, 16.0, 23.0)),
            (frame_between(sacrum[1], sacrum[2]), (30.0, 2.0, 0.0), (19.0, 13.0, 22.0)),
            (frame_between(sacrum[2], sacrum[3]), (24.0, 1.0, 0.0), (14.0, 9.0, 17.0)),
        ):
            at = (side * centre[0] * scale, centre[1] * scale, centre[2] * scale)
            made = ellipsoid(canvas, frame, at, tuple(r * scale for r in radii))  # type: ignore[arg-type]
            if made is not None:
                region, r = made
                region.paint((r < 1) & (region.label == 0), Tissue.CORTEX, value_of("S1"))
                region.paint(r < 1 - CORTEX_MM / (radii[1] * scale), Tissue.MARROW)


def _paint_sacral_segment(
    canvas: Canvas, ends: tuple[LocalFrame, LocalFrame], n: int, scale: float, value: int | None
) -> None:
    top, bottom = ends
    half_width = SACRUM_HALF_WIDTH[n] * scale
    reach = (half_width, SACRUM_DEPTH[n] * scale + 26)
    span = (-reach[1] / 2 - 4, reach[1])
    points = [frame.at(x, y, 0) for frame in ends for x in (-reach[0], reach[0]) for y in span]
    region = canvas.around(points, 4.0)
    if region is None:
        return
    x, y, z = region.local(top)
    below = region.local(bottom)[2]
    part = np.clip(z / np.minimum(z - below, -1e-3), 0, 1)  # 0 at the top plane, 1 at the bottom one
    _, shift, _ = top.axes @ (bottom.centre - top.centre)
    y = y - part * np.float32(shift)
    depth = np.float32(scale / 2) * (SACRUM_DEPTH[n] + part * (SACRUM_DEPTH[n + 1] - SACRUM_DEPTH[n]))
    width = np.float32(scale) * (SACRUM_HALF_WIDTH[n] + part * (SACRUM_HALF_WIDTH[n + 1] - SACRUM_HALF_WIDTH[n]))
    u2 = (x / width) ** 2
    v = y / (depth * (1 - 0.15 * u2))
    slope = np.where(np.abs(x) > 21 * scale, 0.6 * (np.abs(x) - 21 * scale), 0) if n == 0 else np.float32(0)
    between_planes = (z + slope < -0.0) & (below >= -0.4)
    inside = between_planes & (u2 * u2 + v * v < 1)
    core = (z + slope < -CORTEX_MM if n == 0 else True) & (u2 * u2 + v * v < (1 - CORTEX_MM / depth) ** 2)
    arch = between_planes & _sacral_arch(x, y, depth, n, scale)
    if value is None:
        inside, arch = inside & (u2 < 1), np.zeros_like(inside)
    region.paint(inside | arch, Tissue.CORTEX, value)
    region.paint(inside & core, Tissue.MARROW)
    region.paint(arch & _sacral_arch(x, y, depth, n, scale, CORTEX_MM), Tissue.MARROW)


def _sacral_arch(x: np.ndarray, y: np.ndarray, depth: np.ndarray, n: int, scale: float, rim: float = 0.0) -> np.ndarray:
    """Roof of the sacral canal with its median crest; the canal is painted over it later."""
    canal = (14.0, 11.0, 8.0, 6.0, 5.0)[min(n, 4)] * scale
    wide = (22.0, 19.0, 16.0, 13.0, 10.0)[min(n, 4)] * scale
    v = (y - depth - canal / 2 + 2) / (canal / 2 + 7 * scale - rim)
    roof = (x / (wide - rim)) ** 2 + v * v < 1
    crest = (np.abs(x) < 3.2 - rim) & (y > depth) & (y < depth + canal + (13.0, 11.0, 7.0, 4.0, 2.0)[min(n, 4)] - rim)
    return roof | crest


def _paint_sacral_junction(canvas: Canvas, frame: LocalFrame, n: int, scale: float) -> None:
    """A disc remnant and the foramina with their nerves."""
    depth = SACRUM_DEPTH[n] * scale
    region = canvas.local_box(frame, (-18, -depth / 2, -3), (18, depth / 2, 3))
    if region is not None:
        x, y, z = region.local(frame)
        r = np.hypot(x / (15 * scale), y / (depth / 2))
        remnant = (r < (0.95, 0.8, 0.7, 0.6)[n - 1]) & (np.abs(z) < (2.0, 1.2, 0.8, 0.6)[n - 1] * (1.15 - r))
        region.paint(remnant, Tissue.ANNULUS_OUTER)
        if n == 1:
            region.paint(remnant & (r < 0.5) & (np.abs(z) < 0.7), Tissue.NUCLEUS_2)
    for side in (-1, 1):
        lateral = (21 - 1.5 * n) * scale
        bore = (6.0 - 0.8 * n) * scale
        made = ellipsoid(canvas, frame, (side * lateral, -0.1 * depth, 0.0), (bore, depth * 0.7 + 2, bore * 1.2))
        if made is not None:
            made[0].paint((made[1] < 1) & (made[1] >= 0.88), Tissue.CORTEX, 0)
            made[0].paint(made[1] < 0.88, Tissue.EPIDURAL_FAT, 0)
        ends = ((side * (lateral - 2), depth / 2, 3.0), (side * (lateral + 1), -depth / 2, -3.0))
        nerve = capsule(canvas, frame, ends, (2.6 - 0.4 * n, 2.8 - 0.4 * n))
        if nerve is not None:
            nerve[0].paint(nerve[1] < 0, Tissue.ROOT, 0)


def _paint_sacral_facets(canvas: Canvas, spine: Spine) -> None:
    """The superior articular processes of S1."""
    for side in (-1, 1):
        centre, normal, frame = _joint(spine, 0, side)
        local = frame.axes @ (centre - frame.centre)
        start = (float(local[0]) + side * 3, float(local[1]) - 3, -12.0)
        end = (float(local[0]) + side * 2.5, float(local[1]) - 3, 9.0)
        part = capsule(canvas, frame, (start, end), (6.5, 4.5))
        if part is not None:
            region, distance = _cut(part, centre, normal, keep=-1)
            region.paint(distance < 0, Tissue.CORTEX, value_of("S1"))
            region.paint(distance < -CORTEX_MM, Tissue.MARROW)


def paint_ilium(canvas: Canvas, spine: Spine) -> None:
    """The posterior part of each iliac bone, beside the sacrum behind the sacroiliac joint."""
    frame = frame_between(spine.sacrum[0], spine.sacrum[1])
    scale = spine.sacrum_scale
    for side in (-1, 1):
        turned = np.radians(side * 25.0)
        axes = np.array(((np.cos(turned), np.sin(turned), 0), (-np.sin(turned), np.cos(turned), 0), (0, 0, 1.0)))
        centre, radii = (side * 60 * scale, -2.0, 0.0), (10 * scale, 32 * scale, 42 * scale)
        made = ellipsoid(canvas, LocalFrame(frame.centre, axes), centre, radii)
        if made is not None:
            region, r = made
            free = (region.label == 0) & (region.tissue != Tissue.AIR) & (region.tissue != Tissue.SKIN)
            region.paint((r < 1) & free, Tissue.CORTEX)
            region.paint((r < 0.96) & free, Tissue.MARROW)
