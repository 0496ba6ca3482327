"""A phantom from its options: anatomy, tissues on a fine grid, then image and label map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...volume import Geometry, Volume
from .bones import paint_bones, paint_ilium, paint_sacrum
from .canvas import Canvas
from .nerves import paint_epidural_fat, paint_root_exits, paint_sac
from .options import PhantomOptions
from .render import drop_specks, render, slice_labels
from .soft import Habitus, SpineProfile, paint_soft_tissues
from .spine import Spine, build_spine
from .truth import Truth

DIRECTION = np.array(((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))
"""Columns i, j, k of a sagittal stack: toward posterior, inferior and right, LPS."""


@dataclass(frozen=True)
class Phantom:
    """The MRI of a procedural patient.

    Attributes:
        volume: int16 voxels (k, j, i) of a sagittal stack, k from the patient's left to the right.
        labels: (k, j, i) uint8, vertebrae, discs, spinal canal (dural sac) and sacrum as in `anatomy.structures`.
        truth: measures known by construction.
        options: the options it was made with.
    """

    volume: Volume
    labels: np.ndarray
    truth: Truth
    options: PhantomOptions


def make_phantom(options: PhantomOptions | None = None) -> Phantom:
    """A lumbar spine MRI and its label map; the same options give the same bits.

    Raises:
        UsageError: USAGE, a level in the options that this patient does not have.
    """
    options = options if options is not None else PhantomOptions()
    seeds = np.random.SeedSequence(options.seed).spawn(8)
    rng = [np.random.default_rng(seed) for seed in seeds]
    spine = build_spine(options, rng[0])
    habitus = Habitus.draw(rng[1])
    profile = SpineProfile(spine, habitus)
    canvas = Canvas(options, _centre(options, spine, profile, rng[2]))
    paint_soft_tissues(canvas, spine, habitus, rng[3])
    paint_ilium(canvas, spine)
    paint_sacrum(canvas, spine)
    paint_epidural_fat(canvas, spine)
    paint_bones(canvas, spine, options.ribs, rng[4])
    paint_root_exits(canvas, spine)
    paint_sac(canvas, spine, rng[5])
    labels = slice_labels(canvas, options.vertebra_from)
    drop_specks(labels, options.pixel**2 * options.pitch)
    voxels = render(canvas, options, rng[6], rng[7], float(profile.skin(np.array(100.0))))
    size = (labels.shape[2], labels.shape[1], labels.shape[0])
    geometry = Geometry(size, (options.pixel, options.pixel, options.pitch), tuple(canvas.origin.tolist()), DIRECTION)
    return Phantom(Volume(voxels, geometry, f"phantom-{options.seed}"), labels, spine.truth, options)


def _centre(options: PhantomOptions, spine: Spine, profile: SpineProfile, rng: np.random.Generator) -> np.ndarray:
    """Middle of the field of view: the sacrum at its lower end, the skin of the back near its posterior border."""
    height, depth = options.field_of_view
    low, behind = rng.uniform(0.24, 0.31), rng.uniform(6, 14)
    z = spine.sacrum[0].centre[2] + height / 2 - low * height
    lumbar = [v.frame.centre for v in spine.vertebrae if v.lumbar]
    x = float(np.mean([centre[0] for centre in lumbar]))
    rows = np.linspace(z - height / 2, z + height / 2, 50)
    y = max(profile.skin(rows).max() + behind - depth / 2, lumbar[0][1] - depth * 0.15)
    spine_behind = max(centre[1] for centre in lumbar) + 45
    return np.array((x, min(y, spine_behind + depth * 0.35), z))
