"""Endplates, and sections of the bodies and discs that they bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .outline import Outline
from .results import LOW_CONFIDENCE
from .space import AnatomicalFrame

EVEN = 0.7
"""Least ratio of two endplates' depths: of a body's own two, an estimated one to the one above, or the two at a disc
(0.79 and more in SPIDER's label maps). Below it, the body or, of two at a disc, the one with the shorter endplate is of
low confidence."""
_GAP_MM = 3.0
"""Largest distance, mm, assumed between a disc's mask and the bone."""


@dataclass(frozen=True)
class Endplate:
    """An endplate in the mid-sagittal plane.

    Attributes:
        front, back, middle: (3,) mm in the space: the rims, and the surface half-way between them.
        along: (3,) unit vector from rim to rim, as a reader draws the line. A line fitted to the surface would be off
            by several degrees where its hollow is deepest behind the middle, as below most lumbar bodies.
        frame: the frame of the body or disc in which it was found.
        tilt: slope toward the left relative to the frame's left axis, mm per mm; None where too little is seen.
        cut: the border of the field of view cuts it.
        flags: quality flags of its section's measures.
        estimated: taken from the disc's border, since the bone below is not segmented.
    """

    front: np.ndarray
    back: np.ndarray
    middle: np.ndarray
    along: np.ndarray
    frame: AnatomicalFrame
    tilt: float | None
    cut: bool = False
    flags: frozenset[str] = frozenset()
    estimated: bool = False

    @property
    def depth(self) -> float:
        """mm from rim to rim."""
        return float(np.linalg.norm(self.back - self.front))

    @property
    def across(self) -> np.ndarray | None:
        """Unit vector (3,) within the endplate toward the left."""
        if self.tilt is None:
            return None
        vector = self.frame.axes[0] + self.tilt * self.frame.axes[2]
        return np.asarray(vector / np.linalg.norm(vector))

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) upwards, perpendicular to the endplate."""
        left = self.across if self.across is not None else self.frame.axes[0]
        vector = np.cross(left, self.along)
        vector = vector if vector @ self.frame.axes[2] > 0 else -vector
        return np.asarray(vector / np.linalg.norm(vector))


@dataclass(frozen=True)
class Section:
    """A vertebral body or a disc: its label value, its two endplates or surfaces, and what they rest on.

    Attributes:
        frame: its own axes, which follow the two surfaces.
        shape: the outline of the section, in the frame `sampled_in`.
        flags: quality flags of its measures.
    """

    value: int
    frame: AnatomicalFrame
    upper: Endplate
    lower: Endplate
    shape: Outline
    sampled_in: AnatomicalFrame
    flags: frozenset[str]

    @property
    def centre(self) -> np.ndarray:
        """(3,) mm, the mean of the four corners."""
        return np.asarray((self.upper.front + self.upper.back + self.lower.front + self.lower.back) / 4)

    def doubted(self) -> Section:
        """A copy flagged as of low confidence, as are its endplates."""
        flags = self.flags | {LOW_CONFIDENCE}
        upper, lower = (replace(plate, flags=plate.flags | flags) for plate in (self.upper, self.lower))
        return replace(self, flags=flags, upper=upper, lower=lower)

    def as_endplate(self, above: Endplate | None) -> Endplate:
        """A disc's lower border in place of the endplate below it.

        The bone is assumed to lie as far from the disc's mask as the endplate `above` lies from its upper border. A
        disc much shorter than that endplate is only partly segmented, so its corners are not the bone's: it is flagged.
        """
        up = self.frame.axes[2]
        gap = float((above.middle - self.upper.middle) @ up) if above is not None else 0.0
        shift = -float(np.clip(gap, 0.0, _GAP_MM)) * up
        lower, flags = self.lower, self.lower.flags
        if above is not None and lower.depth < EVEN * above.depth:
            flags = flags | {LOW_CONFIDENCE}
        return replace(
            lower,
            front=lower.front + shift,
            back=lower.back + shift,
            middle=lower.middle + shift,
            flags=flags,
            estimated=True,
        )
