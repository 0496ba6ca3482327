"""How well a chain of vertebrae fits each level, by sizes and curvature, and whether it is upside down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from ..anatomy import usual_levels
from .bodies import Chain
from .discs import Interface
from .interfaces import distances

LEVELS = usual_levels()

_FIRST, _LEAST_SIZES = 2, 2
"""Index of C3 among the levels; and the fewest sizes from which the size of a spine is judged."""
# By level from C3 down. T10 to L5 are medians over the 30 patients with T2 SPACE scans in SPIDER, the others are the
# vertebral dimensions in Panjabi et al., Spine 1991;16:861-869 and 888-901, scaled to join them.
_SPACING = (17.0, 17.0, 17.0, 17.0, 18.0,
            20.0, 20.5, 20.5, 21.0, 21.5, 22.0, 22.5, 23.5, 25.0, 26.5, 27.8, 30.5,
            33.7, 35.5, 37.0, 36.5, 35.7)  # fmt: skip
"""Distance in mm between the discs above and below."""
_DEPTH = (16.0, 16.0, 16.0, 16.5, 17.0,
          18.0, 19.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 25.5, 26.0, 26.5, 27.8,
          30.4, 32.4, 32.8, 34.3, 38.0)  # fmt: skip
"""Mean extent in mm from front to back of those discs."""
_TURN = (-2.0, -2.0, -2.0, -2.0, -1.0,
         1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.7,
         -0.3, -3.7, -8.2, -11.5, -22.3)  # fmt: skip
"""Degrees from the plane of the disc above to that of the disc below; negative where the spine is lordotic."""
_SPREAD, _PATIENT = {"spacing": 0.09, "depth": 0.14, "turn": 5.5}, {"spacing": 0.10, "depth": 0.12, "turn": 0.0}
"""Standard deviations between levels of one patient and between patients; of logarithms, for the turn of degrees."""
_DEPENDENT = 0.5
"""Neighbours and measures are not independent, so their evidence counts half."""
_LARGE, _DEEP, _LITTLE = 1.3, 1.35, 0.82
"""Vertebrae are larger than an adult's if the median ratio of their heights to the table's is above the first or that
of their depths above the second, smaller if both are below the third: 0.74 to 1.12 and 0.78 to 1.23 in 47 volumes, none
with both below 0.89; all copies with voxels 1.4 or 0.7 times as large are outside."""
_ENOUGH, _RISES, _MORE = 4, 26.0, 10.0
"""An image of at least this many interfaces is upside down if one of the upper two rises to the front by more than the
second (degrees), and by the third more than the lowest falls: the lumbosacral disc, which falls, lies on top (chosen by
hand). So it is in all 8 images of SPIDER that are stored upside down, and in none of 425 others and 47 volumes."""


def log_likelihoods(chain: Chain) -> np.ndarray:
    """Log-likelihood of a chain for each level of its vertebra 0, (24,) from C1; -inf where it cannot fit.

    Sizes are compared relative to the patient's own, so their growth along the spine counts most.
    """
    result = np.full(len(LEVELS), -np.inf)
    for start in range(len(LEVELS)):
        if start + chain.lowest < len(LEVELS):
            result[start] = _fit(chain, start)
    return result


def size_of(chain: Chain, level: Mapping[int, str]) -> float | None:
    """Size of the vertebrae relative to an adult's at their levels if that is unusual, else None.

    Args:
        chain: the vertebrae.
        level: by number of the vertebra.
    """
    height, depth = [], []
    for n, above, below in _between_discs(chain):
        at = LEVELS.index(level[n]) - _FIRST if level.get(n) in LEVELS else -1
        if 0 <= at < len(_SPACING):
            height.append(float(np.linalg.norm(below.point - above.point)) / _SPACING[at])
            depth.append((above.depth + below.depth) / 2 / _DEPTH[at])
    if len(height) < _LEAST_SIZES:
        return None
    ratios = float(np.median(height)), float(np.median(depth))
    large = ratios[0] > _LARGE or ratios[1] > _DEEP
    return max(ratios) if large or max(ratios) < _LITTLE else None


def _between_discs(chain: Chain) -> Iterator[tuple[int, Interface, Interface]]:
    """The bodies with a disc of their own above and below, by number, from the top."""
    for n, (above, below) in enumerate(pairwise(chain.interfaces), 1):
        if above.number and below.number and n <= chain.last:
            yield n, above, below


def is_upside_down(chain: Chain) -> bool:
    """Whether a chain looks like a lumbar spine with its upper end at the bottom.

    The lowest discs of a kyphotic thoracic spine rise as steeply, and the lumbosacral one may lie outside the image;
    but there the levels grow downwards, as everywhere from the neck to the sacrum.
    """
    lean = [interface.lean for interface in chain.interfaces]
    if len(lean) < _ENOUGH or chain.odontoid:
        return False
    height = distances(chain.interfaces)
    half = len(height) // 2
    shrinks = np.mean(height[:half]) > np.mean(height[-half:])
    return bool(shrinks and max(lean[:2]) > max(_RISES, _MORE - lean[-1]))


def _fit(chain: Chain, start: int) -> float:
    """Log-likelihood that vertebra 0 has the level of that index; levels not in the tables (C1, C2) fit poorly."""
    residuals: dict[str, list[float]] = {"spacing": [], "depth": [], "turn": []}
    for n, above, below in _between_discs(chain):
        at = start + n - _FIRST
        known = 0 <= at < len(_SPACING)
        spacing = float(np.linalg.norm(below.point - above.point))
        residuals["spacing"].append(np.log(spacing / _SPACING[at]) if known else 1.0)
        depth = max((above.depth + below.depth) / 2, 0.1)  # 0 for discs one column wide
        residuals["depth"].append(np.log(depth / _DEPTH[at]) if known else 1.0)
        residuals["turn"].append(below.lean - above.lean - _TURN[at] if known else 20.0)
    return _DEPENDENT * sum(_gaussian(np.array(r), _SPREAD[key], _PATIENT[key]) for key, r in residuals.items() if r)


def _gaussian(residuals: np.ndarray, spread: float, patient: float) -> float:
    """Log density, up to a constant, of residuals (N,) that share a deviation of the patient's.

    Single levels that fit badly (collapsed, degenerated) count as at most two and a half standard deviations.
    """
    n = len(residuals)
    shared = np.median(residuals) * n * patient**2 / (n * patient**2 + spread**2)
    own = np.clip((residuals - shared) / spread, -2.5, 2.5)
    return float(-0.5 * (own @ own) - (0.5 * (shared / patient) ** 2 if patient else 0.0))
