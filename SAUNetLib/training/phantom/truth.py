"""The true measures of a phantom, by level."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class BodyTruth:
    """A vertebral body in its mid-sagittal plane; mm and degrees.

    Attributes:
        anterior, middle, posterior: heights between the endplates' rims, and between their deepest points.
        depth: front to back at the upper endplate.
        width: left to right at the endplates.
        wedge: angle between the endplates in the sagittal plane, positive where the front is lower.
        corners: (4, 3) mm, LPS: upper anterior, upper posterior, lower anterior, lower posterior rim.
        centre: (3,) mm, LPS.
    """

    anterior: float
    middle: float
    posterior: float
    depth: float
    width: float
    wedge: float
    corners: np.ndarray
    centre: np.ndarray


@dataclass(frozen=True)
class DiscTruth:
    """A disc in its mid-sagittal plane; mm and degrees.

    Attributes:
        anterior, middle, posterior: heights along the normal of the disc's mid-plane: between the rims of the bodies
            above and below, and between the deepest points of the endplates.
        slip: how far the lower posterior rim of the body above lies in front of the upper posterior rim of the body
            below, along the latter's endplate.
        angle: between the endplates in the sagittal plane, positive where the front is taller.
        height_loss: fraction of the height lost.
        degeneration: 0 (bright nucleus) to 4 (dark).
        bulge: mm by which it protrudes behind the bodies.
        centre: (3,) mm, LPS.
    """

    anterior: float
    middle: float
    posterior: float
    slip: float
    angle: float
    height_loss: float
    degeneration: float
    bulge: float
    centre: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What was built, in the field of view or not.

    Attributes:
        lordosis: degrees, upper endplate of L1 to upper endplate of S1, sagittal plane.
        scoliosis: degrees between the most tilted endplates, coronal plane.
        sacral_slope: degrees between the upper endplate of S1 and the horizontal.
        bodies: by vertebra.
        discs: by disc; the lowest is ``L5/S1`` whatever the number of lumbar vertebrae, as is its label value.
        canal: anterior-posterior diameter of the dural sac in mm, by vertebra (at mid-height) and disc.
        canal_points: centre of the sac where these apply, (3,) mm LPS.
    """

    lordosis: float
    scoliosis: float
    sacral_slope: float
    bodies: dict[str, BodyTruth] = field(default_factory=dict)
    discs: dict[str, DiscTruth] = field(default_factory=dict)
    canal: dict[str, float] = field(default_factory=dict)
    canal_points: dict[str, np.ndarray] = field(default_factory=dict)
