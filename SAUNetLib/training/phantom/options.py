"""Options of a phantom: the acquisition, and the patient's anatomy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ...errors import UsageError

Contrast = Literal["t1", "t2", "stir", "random"]

SPINE_WIDTH_MM = 84.0
"""Width that the slices cover unless their number is given: up to the tips of most transverse processes."""


@dataclass(frozen=True)
class PhantomOptions:
    """The acquisition and the patient. Given values are honoured exactly; None is drawn from the seed.

    The patient depends on the seed and the anatomical options only; the acquisition (contrast, slices, pixel, field of
    view, noise, bias) does not change the anatomy.

    Attributes:
        seed: of everything random.
        contrast: ``t1``, ``t2`` (both turbo spin echo), ``stir``, or ``random``, a fictitious sequence for training.
        slices: number of sagittal slices; None covers 84 mm.
        slice_thickness, gap: mm; slices lie thickness + gap apart.
        pixel: mm of a square pixel.
        field_of_view: mm, superior-inferior and anterior-posterior.
        lumbar: number of lumbar vertebrae, 4 to 6.
        ribs: whether the thoracic vertebrae bear ribs.
        lordosis: degrees in the sagittal plane between the upper endplates of L1 and of S1.
        scoliosis: degrees in the coronal plane between the most tilted endplates (Cobb); the sign gives the side.
        noise: standard deviation as a fraction of the brightest tissue's signal.
        bias: strength of the surface coil's fall-off, 0 none, 1 strong.
        disc_height_loss: by disc (``L4/L5``), the lost fraction of the disc's height, 0 to 0.85.
        wedge: by vertebra (``L1``), degrees of anterior wedging, 0 to 25.
        slip: by disc, mm by which its upper vertebra lies in front of the lower one (negative: behind), -8 to 12.
        canal_diameter: by vertebra (its mid-height) or disc, mm from front to back of the dural sac, 3 to 22.
        vertebra_from: share of a voxel, 0 to 0.5, from which on it is labelled as vertebra. 0.5 is exact; readers draw
            what they see, from a smaller share on.

    Raises:
        UsageError: USAGE, one of these is out of range.
    """

    seed: int = 0
    contrast: Contrast = "t2"
    slices: int | None = None
    slice_thickness: float = 4.0
    gap: float = 0.4
    pixel: float = 0.6
    field_of_view: tuple[float, float] = (300.0, 240.0)
    lumbar: int = 5
    ribs: bool = True
    lordosis: float | None = None
    scoliosis: float | None = None
    noise: float | None = None
    bias: float | None = None
    disc_height_loss: Mapping[str, float] = field(default_factory=dict)
    wedge: Mapping[str, float] = field(default_factory=dict)
    slip: Mapping[str, float] = field(default_factory=dict)
    canal_diameter: Mapping[str, float] = field(default_factory=dict)
    vertebra_from: float = 0.5

    def __post_init__(self) -> None:
        if self.contrast not in get_args(Contrast):
            raise UsageError("USAGE", f"{self.contrast!r} is not a contrast", "Choose t1, t2, stir or random")
        _check("seed", self.seed, 0, 2**63)
        _check("lumbar", self.lumbar, 4, 6)
        _check("slice_thickness", self.slice_thickness, 0.3, 10)
        _check("gap", self.gap, 0, 10)
        _check("pixel", self.pixel, 0.2, 3)
        _check("vertebra_from", self.vertebra_from, 0, 0.5)
        _check("field_of_view", self.field_of_view[0], 60, 420)
        _check("field_of_view", self.field_of_view[1], 60, 400)
        limits = {"slices": (1, 400), "lordosis": (5, 80), "scoliosis": (-45, 45), "noise": (0, 0.5), "bias": (0, 1)}
        for name, (least, most) in limits.items():
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), least, most)
        knobs = {"disc_height_loss": (0, 0.85), "wedge": (0, 25), "slip": (-8, 12), "canal_diameter": (3, 22)}
        for name, (least, most) in knobs.items():
            for level, value in getattr(self, name).items():
                _check(f"{name} of {level}", value, least, most)

    @property
    def pitch(self) -> float:
        """mm from slice to slice."""
        return self.slice_thickness + self.gap

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels (k, j, i): slices, rows and columns."""
        slices = self.slices if self.slices is not None else max(1, round(SPINE_WIDTH_MM / self.pitch))
        rows, columns = (max(8, round(extent / self.pixel)) for extent in self.field_of_view)
        return slices, rows, columns


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise UsageError("USAGE", f"{name.replace('_', ' ')} is {value}", f"Give a number from {least} to {most}")
