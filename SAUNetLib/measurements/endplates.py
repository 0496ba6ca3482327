"""Endplates, and the bodies and discs whose upper and lower surfaces they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .outline import Outline
from .results import LOW_CONFIDENCE
from .space import AnatomicalFrame

EVEN = 0.7
"""A body one of whose endplates is shorter than this part of the other one is no regular one; nor is an estimated
endplate that is so much shorter than the one above, nor a body whose endplate is so much shorter than the one across
the disc (0.79 and more in SPIDER's label maps)."""
_GAP_MM = 3.0
"""So far at most bone is taken to lie from a disc's mask."""


@dataclass(frozen=True)
class Endplate:
    """An endplate in the mid-sagittal plane.

    Attributes:
        front, back, middle: (3,) mm in the space: the rims, and the surface half-way between them.
        along: (3,) unit vector from rim to rim, as a reader lays the line. The surface's own mean would be turned by
            several degrees where its hollow is deepest behind the middle, as below most lumbar bodies.
        frame: the axes of the body or disc that it was seen in.
        tilt: slope toward the left against the frame's left axis, mm per mm; None where too little is seen.
        cut: the border of the field of view cuts it.
        flags: what its section's figures must be read with.
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
    """A vertebral body or a disc: its label value, its frame, its two endplates or surfaces, and what they rest on.

    Attributes:
        frame: its own axes, which follow the two surfaces.
        shape: the outline of the section, in the frame `sampled_in`.
        flags: what its figures must be read with.
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
        """The same with low confidence, its endplates too."""
        flags = self.flags | {LOW_CONFIDENCE}
        upper, lower = (replace(plate, flags=plate.flags | flags) for plate in (self.upper, self.lower))
        return replace(self, flags=flags, upper=upper, lower=lower)

    def as_endplate(self, above: Endplate | None) -> Endplate:
        """A disc's lower border in the place of the endplate below it.

        The bone is taken to lie as far from the disc's mask as the endplate `above` does from its upper border. Of a
        disc that is much shorter than that endplate only a part is segmented: its corners are not the bone's.
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
