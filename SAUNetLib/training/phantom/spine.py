"""The patient: sizes, degeneration and the chain of endplates from the sacrum upwards, in mm, LPS."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...errors import UsageError
from .options import PhantomOptions
from .truth import BodyTruth, DiscTruth, Truth

# mm, for a patient of size 1, from L5 to L1 and T12 to T8; above, the last value shrinks from level to level.
# Chosen by hand, as is every number here without a source, to look like adult spines, not as a norm.
BODY_HEIGHT = (27.5, 28.0, 27.5, 27.0, 26.0, 25.0, 23.5, 22.5, 22.0, 21.5)
BODY_DEPTH = (34.5, 34.5, 34.0, 33.0, 32.0, 30.5, 29.5, 29.0, 28.5, 28.0)
BODY_WIDTH = (51.0, 49.0, 47.0, 45.0, 43.0, 41.0, 38.5, 36.0, 34.0, 33.0)
DISC_HEIGHT = (10.0, 11.0, 10.5, 9.5, 8.5, 7.0, 6.0, 5.5, 5.0, 4.5)
PEDICLE_WIDTH = (15.0, 12.5, 10.5, 9.0, 8.5, 8.5, 8.5, 7.5, 7.0, 6.5)
CANAL_WIDTH = (27.0, 25.0, 24.0, 23.0, 22.5, 22.0, 20.0, 18.0, 17.5, 17.0)
TRANSVERSE_TIP = (37.0, 37.0, 39.0, 37.0, 33.0, 23.0, 24.0, 27.0, 28.0, 28.0)
"""From the midline to the tip of a transverse process."""
DECREMENT = 0.985
"""Ratio of a measure to that of the level below, above T8."""
LORDOSIS_OF_DISC = (14.0, 10.0, 8.0, 6.0, 4.0)
LORDOSIS_OF_BODY = (9.0, 3.0, 1.0, -1.0, -2.0)
"""Degrees from endplate to endplate; the difference between a patient's lordosis and their sum is spread over them."""
SACRUM_HEIGHT = (30.0, 25.0, 21.0, 17.0, 15.0, 26.0)
"""Of S1 to S5 and the coccyx, mm."""
SACRUM_DEPTH = (31.0, 22.0, 16.5, 12.5, 10.0, 8.0, 4.0)
SACRUM_HALF_WIDTH = (32.0, 33.0, 31.0, 28.0, 23.0, 9.0, 4.0)
"""Of S1 to S5 and the coccyx at their upper ends, and at the coccyx's lower end, mm."""
SACRAL_HOLLOW = 1.0
"""Depth of the concavity of S1's endplate, mm."""
SACRUM_TURN = (6.0, 4.0, -6.0, -22.0, -42.0, -75.0)
"""Degrees by which each lower end leans further forward than the sacrum's endplate, before the patient's factor."""


@dataclass(frozen=True)
class LocalFrame:
    """A local coordinate system: origin `centre` (3,) mm; the rows of `axes` (3, 3) are the unit vectors toward left,
    posterior and superior.
    """

    centre: np.ndarray
    axes: np.ndarray

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """Patient position (3,), LPS, of local coordinates, mm."""
        return self.centre + np.array((x, y, z)) @ self.axes


def frame_at_angles(centre: np.ndarray, sagittal: float, coronal: float, turn: float) -> LocalFrame:
    """A frame whose upward axis leans forward by `sagittal` and to the left by `coronal` degrees in projection, and
    whose posterior axis is turned about it by `turn` degrees."""
    up = np.array((np.tan(np.radians(coronal)), -np.tan(np.radians(sagittal)), 1.0))
    turned = np.array((-np.sin(np.radians(turn)), np.cos(np.radians(turn)), 0.0))
    return LocalFrame(np.asarray(centre, float), _axes(up, turned))


def frame_between(first: LocalFrame, second: LocalFrame, part: float = 0.5) -> LocalFrame:
    """The frame at the fraction `part` of the way from one to another."""
    mixed = (1 - part) * first.axes + part * second.axes
    return LocalFrame((1 - part) * first.centre + part * second.centre, _axes(mixed[2], mixed[1]))


def _axes(up: np.ndarray, posterior: np.ndarray) -> np.ndarray:
    up = up / np.linalg.norm(up)
    posterior = posterior - (posterior @ up) * up
    posterior = posterior / np.linalg.norm(posterior)
    return np.stack((np.cross(posterior, up), posterior, up))


@dataclass(frozen=True)
class Vertebra:
    """A vertebra's measures (mm); `lower` and `upper` are frames at the centres of its endplates."""

    level: str
    lower: LocalFrame
    upper: LocalFrame
    width: float
    depth: float
    hollow: tuple[float, float]  # depth of the lower and of the upper endplate's concavity
    waist: float
    spurs: float
    canal: tuple[float, float]  # bony canal: front to back, left to right
    pedicle: float
    tip: float
    arch_shift: float  # how far the arch stays behind where the pars is interrupted
    size: float

    @property
    def frame(self) -> LocalFrame:
        return frame_between(self.lower, self.upper)

    @property
    def height(self) -> float:
        """Between the endplates' planes at their centres."""
        return float((self.upper.centre - self.lower.centre) @ self.frame.axes[2])

    @property
    def lumbar(self) -> bool:
        return self.level.startswith("L")


@dataclass(frozen=True)
class Disc:
    """A disc between `lower` (the upper endplate of the body below) and `upper`."""

    level: str
    lower: LocalFrame
    upper: LocalFrame
    width: float
    depth: float
    grade: float
    bulge: float

    @property
    def frame(self) -> LocalFrame:
        return frame_between(self.lower, self.upper)


@dataclass(frozen=True)
class Spine:
    """Vertebrae from the lowest upwards, the disc below each, the sacrum's frames from the top down, the dural sac."""

    vertebrae: list[Vertebra]
    discs: list[Disc]
    sacrum: list[LocalFrame]
    sacrum_scale: float
    sac: list[LocalFrame]  # centres of the dural sac from below upwards
    sac_depth: np.ndarray
    sac_width: np.ndarray
    truth: Truth


def level_names(lumbar: int) -> list[str]:
    """Levels from the lowest lumbar vertebra up to T1, whatever the field of view, so that the patient is the same."""
    return [f"L{n}" for n in range(lumbar, 0, -1)] + [f"T{n}" for n in range(12, 0, -1)]


def build_spine(options: PhantomOptions, rng: np.random.Generator) -> Spine:
    """The patient of these options.

    Raises:
        UsageError: USAGE, a level that this patient does not have.
    """
    # The order and number of draws are fixed, so that setting one option leaves the rest of the patient unchanged.
    size, wear = float(np.clip(rng.normal(1, 0.06), 0.86, 1.14)), float(rng.beta(1.6, 1.8))
    drawn_lordosis, drawn_scoliosis = float(np.clip(rng.normal(48, 9), 28, 70)), float(rng.normal(0, 5))
    lordosis = options.lordosis if options.lordosis is not None else drawn_lordosis
    scoliosis = options.scoliosis if options.scoliosis is not None else drawn_scoliosis
    slope = 11 + 0.55 * lordosis + float(rng.normal(0, 2))
    levels = level_names(options.lumbar)
    disc_levels = ["L5/S1", *(f"{upper}/{lower}" for lower, upper in pairwise(levels))]
    _check_levels(options, levels, disc_levels)
    plan = _Plan.draw(options, rng, levels, disc_levels, size, wear)
    turns = _sagittal_turns(options, plan, lordosis)
    vertebrae, discs = _stack(plan, turns, slope, scoliosis)
    sacrum = _sacrum_frames(discs[0].lower, size, rng)
    sac, depth, width, points = _dural_sac(options, rng, vertebrae, discs, sacrum)
    truth = Truth(
        lordosis,
        scoliosis,
        slope,
        {vertebra.level: _body_truth(vertebra) for vertebra in vertebrae},
        {disc.level: _disc_truth(plan, n, disc, vertebrae) for n, disc in enumerate(discs)},
        {name: diameter for name, (_, diameter) in points.items()},
        {name: centre for name, (centre, _) in points.items()},
    )
    return Spine(vertebrae, discs, sacrum, size, sac, depth, width, truth)


def _check_levels(options: PhantomOptions, levels: list[str], disc_levels: list[str]) -> None:
    for option, known in (("wedge", levels), ("disc_height_loss", disc_levels), ("slip", disc_levels)):
        unknown = set(getattr(options, option)) - set(known)
        if unknown:
            raise UsageError(
                "USAGE", f"{option} names {', '.join(sorted(unknown))}", f"Choose among {', '.join(known)}"
            )
    unknown = set(options.canal_diameter) - set(levels) - set(disc_levels)
    if unknown:
        raise UsageError(
            "USAGE", f"canal_diameter names {', '.join(sorted(unknown))}", "Name a vertebra or a disc in view"
        )


@dataclass(frozen=True)
class _Plan:
    """Measures of every level before they are stacked, from the lowest upwards."""

    levels: list[str]
    discs: list[str]
    lumbar: int
    size: float
    height: np.ndarray
    depth: np.ndarray
    width: np.ndarray
    hollow: np.ndarray
    disc_height: np.ndarray
    loss: np.ndarray
    grade: np.ndarray
    bulge: np.ndarray
    slip: np.ndarray
    wedge: np.ndarray
    pedicle: np.ndarray
    canal_width: np.ndarray
    tip: np.ndarray
    canal_depth: np.ndarray
    waist: np.ndarray
    spurs: np.ndarray

    @classmethod
    def draw(
        cls,
        options: PhantomOptions,
        rng: np.random.Generator,
        levels: list[str],
        discs: list[str],
        size: float,
        wear: float,
    ) -> _Plan:
        count = len(levels)

        def table(values: tuple[float, ...], spread: float) -> np.ndarray:
            return _by_level(values, options.lumbar, count) * size * np.clip(rng.normal(1, spread, count), 0.9, 1.1)

        place = np.arange(count)
        tendency = wear * np.where(place < 2, 1.25, np.where(place < options.lumbar, 0.95, 0.6))
        grade = np.clip(4.2 * tendency * rng.uniform(0.35, 1.25, count), 0, 4)
        loss = np.clip((grade - 2.2) * rng.uniform(0.05, 0.28, count), 0, 0.6)
        slip = np.where(rng.uniform(size=count) < 0.06 * wear, rng.uniform(-3, 6, count), rng.normal(0, 0.35, count))
        slip = np.where(place < options.lumbar, slip, 0.0)
        for n, disc in enumerate(discs):
            loss[n] = options.disc_height_loss.get(disc, loss[n])
            grade[n] = max(grade[n], min(4.0, 6 * options.disc_height_loss.get(disc, 0.0)))
            slip[n] = options.slip.get(disc, slip[n])
        disc_height = table(DISC_HEIGHT, 0.05) * (1 - loss)
        hollow = np.stack((rng.uniform(1.0, 2.4, count), rng.uniform(0.6, 1.8, count)), 1) * size
        limit = np.stack((disc_height, np.append(disc_height[1:], 5.0)), 1)
        hollow = np.minimum(hollow, 0.22 * limit)  # flat discs have flat endplates
        return cls(
            levels=levels,
            discs=discs,
            lumbar=options.lumbar,
            size=size,
            height=table(BODY_HEIGHT, 0.025),
            depth=_by_level(BODY_DEPTH, options.lumbar, count) * size,
            width=_by_level(BODY_WIDTH, options.lumbar, count) * size,
            hollow=hollow,
            disc_height=disc_height,
            loss=loss,
            grade=grade,
            bulge=np.clip(rng.uniform(-0.4, 1.0, count) * grade, 0, 3.0),
            slip=slip,
            wedge=np.array([options.wedge.get(level, 0.0) for level in levels]),
            pedicle=table(PEDICLE_WIDTH, 0.08),
            canal_width=table(CANAL_WIDTH, 0.03),
            tip=table(TRANSVERSE_TIP, 0.05),
            canal_depth=_bony_canal(options, levels, discs, size * float(np.clip(rng.normal(18.5, 1.2), 16, 21))),
            waist=rng.uniform(0.07, 0.14, count),
            spurs=np.clip(rng.uniform(-0.1, 0.12, count) * grade / 2, 0, 0.16),
        )


def _bony_canal(options: PhantomOptions, levels: list[str], discs: list[str], usual: float) -> np.ndarray:
    """Anterior-posterior diameter of the bony canal by level, wide enough for a dural sac given in the options."""
    stated = options.canal_diameter
    return np.array(
        [
            max(usual * (1.0 if level.startswith("L") else 0.93), stated.get(level, 0) + 3.5, stated.get(disc, 0) + 3.5)
            for level, disc in zip(levels, discs, strict=True)
        ]
    )


def _by_level(values: tuple[float, ...], lumbar: int, count: int) -> np.ndarray:
    """Lumbar values interpolated over 4 to 6 vertebrae, then the thoracic ones, then shrinking ones."""
    low = np.interp(np.linspace(0, 4, lumbar), np.arange(5), values[:5])
    high = np.array(values[5:])
    above = high[-1] * DECREMENT ** np.arange(1, 20)
    return np.concatenate((low, high, above))[:count]


def _sagittal_turns(options: PhantomOptions, plan: _Plan, lordosis: float) -> tuple[np.ndarray, np.ndarray]:
    """Degrees by which each disc and each body turns the next endplate backwards; up to L1 they sum to the lordosis."""
    lumbar, count = plan.lumbar, len(plan.levels)
    discs, bodies = np.full(count, -1.0), np.full(count, -2.5)
    discs[:lumbar] = np.interp(np.linspace(0, 4, lumbar), np.arange(5), LORDOSIS_OF_DISC)
    bodies[:lumbar] = np.interp(np.linspace(0, 4, lumbar), np.arange(5), LORDOSIS_OF_BODY)
    collapsed = np.array([level in options.wedge for level in plan.levels])
    bodies[collapsed] = -plan.wedge[collapsed]
    # A disc's angle is limited by its height: 1.2 mm must remain at the back.
    most = np.degrees(2 * np.arctan(np.maximum(plan.disc_height - 2 * plan.hollow.max(1) - 1.2, 0.3) / plan.depth))
    free = ~collapsed[:lumbar]
    for _ in range(30):
        missing = lordosis - discs[:lumbar].sum() - bodies[:lumbar].sum()
        discs[:lumbar] = np.clip(discs[:lumbar] + 0.7 * missing / lumbar, -3.0, most[:lumbar])
        bodies[:lumbar][free] += 0.2 * missing / max(1, free.sum())
    missing = lordosis - discs[:lumbar].sum() - bodies[:lumbar].sum()
    if free.any():
        bodies[:lumbar][free] += missing / free.sum()
    return discs, bodies


def _stack(
    plan: _Plan, turns: tuple[np.ndarray, np.ndarray], slope: float, scoliosis: float
) -> tuple[list[Vertebra], list[Disc]]:
    """Stack the endplates from the sacrum upwards."""
    coronal, twist = _coronal(plan, scoliosis)
    vertebrae: list[Vertebra] = []
    discs: list[Disc] = []
    angle, below_depth, below_width = slope, plan.depth[0] * 0.97, plan.width[0]
    below = frame_at_angles(np.zeros(3), angle, coronal[0], 0.0)
    for n in range(len(plan.levels)):
        angle -= turns[0][n]
        depth, width = plan.depth[n], plan.width[n]
        lower = frame_at_angles(np.zeros(3), angle, coronal[2 * n + 1], twist[n])
        middle = frame_between(below, lower).axes
        gap = plan.disc_height[n] - plan.hollow[n, 0] - (plan.hollow[n - 1, 1] if n else SACRAL_HOLLOW)
        centre = below.centre + max(gap, 0.8) * middle[2]
        rim = centre + depth / 2 * lower.axes[1] - below.centre - below_depth / 2 * below.axes[1]
        # Moved along the disc until the posterior rim has the planned slip.
        centre = centre - (plan.slip[n] + rim @ below.axes[1]) / (middle[1] @ below.axes[1]) * middle[1]
        lower = LocalFrame(centre, lower.axes)
        discs.append(
            Disc(
                plan.discs[n],
                below,
                lower,
                (width + below_width) / 2,
                (depth + below_depth) / 2,
                plan.grade[n],
                plan.bulge[n],
            )
        )
        angle -= turns[1][n]
        upper = frame_at_angles(np.zeros(3), angle, coronal[2 * n + 2], twist[n])
        height = plan.height[n] - depth * np.tan(np.radians(plan.wedge[n])) / 2
        upper = LocalFrame(centre + height * frame_between(lower, upper).axes[2], upper.axes)
        vertebrae.append(_vertebra(plan, n, lower, upper))
        below, below_depth, below_width = upper, depth, width
    return vertebrae, discs


def _vertebra(plan: _Plan, n: int, lower: LocalFrame, upper: LocalFrame) -> Vertebra:
    slip = plan.slip[n]
    return Vertebra(
        level=plan.levels[n],
        lower=lower,
        upper=upper,
        width=plan.width[n],
        depth=plan.depth[n],
        hollow=(plan.hollow[n, 0], plan.hollow[n, 1]),
        waist=plan.waist[n],
        spurs=plan.spurs[n],
        canal=(plan.canal_depth[n], plan.canal_width[n]),
        pedicle=plan.pedicle[n],
        tip=plan.tip[n],
        arch_shift=float(0.8 * slip if slip > 3 else 0.0),
        size=plan.size,
    )


def _coronal(plan: _Plan, scoliosis: float) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of tilt of each endplate (sacrum's, then lower and upper per vertebra), and of each vertebra's rotation.

    One curve between the lower endplate of the second vertebra from below and the upper endplate of T12, levelling off
    above and below, so that the extremes differ by exactly the Cobb angle.
    """
    end = 2 * plan.lumbar + 2
    places = np.array([0.0, 3.0, end, end + 8.0])
    at = np.arange(2 * len(plan.levels) + 1)
    part = np.interp(at, places, np.arange(4.0))
    swing = np.interp(part, np.linspace(0, 3, 61), _smooth_swing(np.linspace(0, 3, 61)))
    twist = -0.5 * scoliosis * np.exp(-(((at[1:-1:2] - (3 + end) / 2) / 5.0) ** 2))
    return scoliosis / 2 * swing, twist


def _smooth_swing(part: np.ndarray) -> np.ndarray:
    """0 at 0, -1 at 1, 1 at 2, 0 at 3, with zero slope at these points."""
    first, second = -(np.sin(part * np.pi / 2) ** 2), -np.cos((part - 1) * np.pi)
    return np.where(part < 1, first, np.where(part < 2, second, np.cos((part - 2) * np.pi / 2) ** 2))


def _sacrum_frames(top: LocalFrame, size: float, rng: np.random.Generator) -> list[LocalFrame]:
    """Frames of the sacrum's body: its upper endplate, four junctions, its lower end and the tip of the coccyx."""
    frames = [top]
    lean = np.degrees(np.arctan2(-top.axes[2, 1], top.axes[2, 2]))
    bend = rng.uniform(0.7, 1.2)
    for height, turn in zip(SACRUM_HEIGHT, SACRUM_TURN, strict=True):
        upward = frame_at_angles(np.zeros(3), np.clip(lean + bend * turn, -70, 75), 0.0, 0.0).axes
        step = _axes((frames[-1].axes + upward)[2], upward[1])
        frames.append(LocalFrame(frames[-1].centre - height * size * step[2], upward))
    return frames


def _dural_sac(
    options: PhantomOptions,
    rng: np.random.Generator,
    vertebrae: list[Vertebra],
    discs: list[Disc],
    sacrum: list[LocalFrame],
) -> tuple[list[LocalFrame], np.ndarray, np.ndarray, dict[str, tuple[np.ndarray, float]]]:
    """Frames along the dural sac about 4 mm apart, its depth and width there, and its centre and depth by level."""
    bony = min(vertebra.canal[0] for vertebra in vertebrae if vertebra.lumbar)
    usual = min(float(np.clip(rng.normal(13.8, 1.3), 11, 17)) * vertebrae[0].size, bony - 3.2)
    taper = rng.uniform(0.55, 1.0)
    centres: list[np.ndarray] = []
    depths: list[float] = []
    widths: list[float] = []
    names: list[str] = []

    def add(name: str, frame: LocalFrame, wall: float, gap: float, depth: float, width: float) -> None:
        sac_depth = options.canal_diameter.get(name, depth)
        centres.append(frame.at(0, wall + gap + sac_depth / 2, 0))
        depths.append(sac_depth)
        widths.append(width * (0.55 + 0.45 * min(1.0, sac_depth / depth)))
        names.append(name)

    size = vertebrae[0].size
    add("", sacrum[2], SACRUM_DEPTH[2] * size / 2, 2.0, 4.5, 7.0)
    add("", frame_between(sacrum[1], sacrum[2], 0.35), SACRUM_DEPTH[1] * size / 2 - 1, 2.0, 8.0 * taper + 1.5, 12.0)
    upper_sacral = frame_between(sacrum[0], sacrum[1], 0.45)
    add("", upper_sacral, SACRUM_DEPTH[0] * size / 2 - 2, 3.0, usual * (0.55 + 0.4 * taper), 16.0)
    for n, (disc, vertebra) in enumerate(zip(discs, vertebrae, strict=True)):
        lumbar = vertebra.lumbar
        low = 1.5 if n == 0 else 0.0  # fat in front of the sac at the lumbosacral junction
        width = vertebra.canal[1] * (0.72 if n else 0.66)
        depth = usual * (1.0 if lumbar else 0.93)
        narrowed = max(5.0, depth - 0.9 * disc.bulge - 0.35 * disc.grade)
        step = abs(float((disc.upper.centre - disc.lower.centre) @ disc.frame.axes[1]))  # a slip displaces the sac
        wall = disc.depth / 2 + step / 2
        add(disc.level, disc.frame, wall, 1.2 + low + disc.bulge, narrowed, width * narrowed / depth)
        add(vertebra.level, vertebra.frame, vertebra.depth / 2, 1.0 + low / 2, depth, width)
    return *_sac_frames(np.array(centres), np.array(depths), np.array(widths)), _named(names, centres, depths)


def _named(names: list[str], centres: list[np.ndarray], depths: list[float]) -> dict[str, tuple[np.ndarray, float]]:
    return {name: (c, float(d)) for name, c, d in zip(names, centres, depths, strict=True) if name}


def _sac_frames(
    centres: np.ndarray, depths: np.ndarray, widths: np.ndarray
) -> tuple[list[LocalFrame], np.ndarray, np.ndarray]:
    """Interpolate along the sac (centres by Catmull-Rom, sizes monotonically), with axes along its course."""
    fine = np.linspace(0, len(centres) - 1, 4 * (len(centres) - 1) + 1)
    path = catmull_rom(centres, fine)
    tangent = np.gradient(path, axis=0)
    frames = [LocalFrame(point, _axes(up, np.array((0.0, 1.0, 0.0)))) for point, up in zip(path, tangent, strict=True)]
    place = np.floor(fine).astype(int).clip(max=len(centres) - 2)
    part = fine - place
    ease = part * part * (3 - 2 * part)
    mix = [values[place] * (1 - ease) + values[place + 1] * ease for values in (depths, widths)]
    return frames, mix[0], mix[1]


def catmull_rom(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A smooth curve (M, D) through points (N, D) at parameters 0 to N - 1 (Catmull and Rom 1974)."""
    padded = np.concatenate((2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]))
    n = np.floor(at).astype(int).clip(0, len(points) - 2)
    t = (at - n)[:, None]
    p0, p1, p2, p3 = (padded[n + k] for k in range(4))
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)


def _body_truth(body: Vertebra) -> BodyTruth:
    half = body.depth / 2
    corners = np.stack(
        (body.upper.at(0, -half, 0), body.upper.at(0, half, 0), body.lower.at(0, -half, 0), body.lower.at(0, half, 0))
    )
    return BodyTruth(
        float(np.linalg.norm(corners[0] - corners[2])),
        body.height - sum(body.hollow),
        float(np.linalg.norm(corners[1] - corners[3])),
        body.depth,
        body.width,
        _lean(body.upper) - _lean(body.lower),
        corners,
        body.frame.centre,
    )


def _disc_truth(plan: _Plan, n: int, disc: Disc, vertebrae: list[Vertebra]) -> DiscTruth:
    up = disc.frame.axes[2]
    below = vertebrae[n - 1].depth / 2 if n else plan.depth[0] * 0.97 / 2
    above = vertebrae[n].depth / 2
    front = (disc.upper.at(0, -above, 0) - disc.lower.at(0, -below, 0)) @ up
    back = (disc.upper.at(0, above, 0) - disc.lower.at(0, below, 0)) @ up
    hollows = vertebrae[n].hollow[0] + (vertebrae[n - 1].hollow[1] if n else SACRAL_HOLLOW)
    middle = (disc.upper.centre - disc.lower.centre) @ up + hollows
    rim = disc.upper.at(0, above, 0) - disc.lower.at(0, below, 0)
    return DiscTruth(
        anterior=float(front),
        middle=float(middle),
        posterior=float(back),
        slip=float(-rim @ disc.lower.axes[1]),
        angle=_lean(disc.lower) - _lean(disc.upper),
        height_loss=float(plan.loss[n]),
        degeneration=float(disc.grade),
        bulge=float(disc.bulge),
        centre=disc.frame.centre,
    )


def _lean(endplate: LocalFrame) -> float:
    """Degrees by which an endplate faces forward in the sagittal plane."""
    up = endplate.axes[2]
    return float(np.degrees(np.arctan2(-up[1], up[2])))
