"""Which vertebra is which: what the names of a chain of vertebrae rest on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..anatomy import CANAL, DISC, VERTEBRA, usual_levels, vertebra_levels
from .grid import rows_with
from .profile import LEVELS, log_likelihoods
from .spine import Spine

SACRUM = "S1"
_C2, _L5 = LEVELS.index("C2"), LEVELS.index("L5")
_MOST = {"both": 0.98, "sacrum": 0.92, "C2": 0.92, "sizes": 0.75}
"""No name is more certain than this, by what it rests on: about one person in twelve has not the usual number of
vertebrae, which shows only to those who count from both ends."""
_UNUSUAL = 0.6
"""Nor than this where something speaks for a transitional vertebra."""
_SURE = 0.7
"""A less probable name is doubtful."""
_MISSED = 0.85
"""Probability that an interface without a disc was rightly put where it is."""
_LOWEST_L5 = 0.5
"""Of spine MRI, how often L5 is the lowest complete vertebra; the others share the rest."""
_ODONTOID = 8.0
"""How the shape of C2 speaks for it: logarithm of the odds."""
_C2_WORDS = "the highest vertebra is taller than deep and has no disc above, as C2 with its odontoid process"


@dataclass(frozen=True)
class Anchor:
    """Names of the vertebrae and what they rest on.

    Attributes:
        level: by number of the vertebra, those that do not show and the sacrum among them.
        source: ``user``, ``sacrum``, ``C2``, ``both`` or ``sizes``.
        basis: the same in words.
        confidence: of the name at the anchor itself, 0 to 1.
        unusual: what speaks for another number of vertebrae than the usual one, in words.
    """

    level: dict[int, str]
    source: str
    basis: str
    confidence: float
    unusual: tuple[str, ...] = ()

    @property
    def doubtful(self) -> bool:
        """Whether the names are only the most likely ones."""
        return self.source == "sizes" or (self.confidence < _SURE and not self.unusual)

    def confidences(self, spine: Spine) -> dict[int, float]:
        """By number of the vertebra: less with every interface without a disc between it and the anchor."""
        chain = spine.chain
        missing = np.cumsum([0, *(one.number == 0 for one in chain.interfaces)])
        lowest, result = spine.chain.lowest, {}
        for k in self.level:
            at, bottom = (int(missing[min(max(n, 0), len(missing) - 1)]) for n in (k, lowest))
            steps = {"C2": at, "both": min(at, abs(bottom - at))}.get(self.source, abs(bottom - at))
            result[k] = round(self.confidence * _MISSED**steps, 3)
        return result


def find_anchor(spine: Spine, lowest: str | None) -> Anchor:
    """Names by what the user says of the lowest complete vertebra, else by the sacrum and C2, else by sizes."""
    bottom, sacrum, odontoid = spine.chain.lowest, _sacrum(spine), spine.chain.odontoid
    if lowest is not None:
        last = lowest == "L4" and sacrum.seen and sacrum.steep
        words = f"the lowest complete vertebra is {lowest}, as stated"
        return Anchor(_levels(bottom, lowest, last), "user", words, 1.0)
    if odontoid and sacrum.seen and abs(_L5 - bottom - _C2) == 1:
        return _counted(spine, bottom + 2)
    fit = log_likelihoods(spine.chain)
    if not np.isfinite(fit).any():
        return Anchor(_levels(bottom, "L5"), "sizes", "more vertebrae were found than a spine has", 0.1)
    chance = _chances(spine, fit, sacrum)
    start = int(chance.argmax())
    at_sacrum, at_c2 = sacrum.seen and start + bottom == _L5, odontoid and start == _C2
    source = "both" if at_sacrum and at_c2 else "sacrum" if at_sacrum else "C2" if at_c2 else "sizes"
    basis = {
        "both": f"{_C2_WORDS}; {sacrum.words}",
        "sacrum": sacrum.words,
        "C2": _C2_WORDS,
        "sizes": f"{sacrum.words}, so the sizes and the curvature of the vertebrae decided",
    }[source]
    unusual = _unusual(spine, source)
    most = min(_MOST[source], _UNUSUAL) if unusual else _MOST[source]
    return Anchor(_levels(bottom, LEVELS[start + bottom]), source, basis, min(most, float(chance[start])), unusual)


def _chances(spine: Spine, fit: np.ndarray, sacrum: _Sacrum) -> np.ndarray:
    """By level of vertebra 0, (24,): probability, given how well the sizes fit there."""
    share = np.full(len(LEVELS), (1 - _LOWEST_L5) / (len(LEVELS) - 1))
    weight = np.zeros(len(LEVELS))
    if spine.chain.lowest <= _L5:
        share[_L5 - spine.chain.lowest] = _LOWEST_L5
        weight[_L5 - spine.chain.lowest] = sacrum.weight
    weight[_C2] += _ODONTOID * spine.chain.odontoid
    score = fit + np.log(share) + weight
    chance = np.exp(score - score.max())
    return np.asarray(chance / chance.sum())


def _levels(number: int, level: str, last: bool = False) -> dict[int, str]:
    """Levels of all vertebrae, given that of one; T13 and L6 only where the given one is one of them.

    With `last` the sacrum follows it, whatever it is.
    """
    usual = [one for one in vertebra_levels() if one in usual_levels() or one == level]
    at = usual.index(level)
    usual = usual[: at + 1] if last else usual
    return {number + n - at: name for n, name in enumerate([*usual, SACRUM])}


def _counted(spine: Spine, count: int) -> Anchor:
    """Names counted from C2 to a sacrum after an unusual number of vertebrae."""
    lowest = "L6" if count == 25 else "L4"
    text = f"{count} vertebrae lie between the skull and the sacrum instead of 24"
    basis = f"counted from C2, whose odontoid process shows, down to the sacrum: {text}"
    return Anchor(_levels(spine.chain.lowest, lowest, last=True), "C2", basis, 0.85, (text,))


@dataclass(frozen=True)
class _Sacrum:
    """How what lies below the lowest complete vertebra speaks for the sacrum.

    Attributes:
        weight: logarithm of the odds.
        seen: whether its place is in the image, with a disc above it.
        words: the evidence.
        steep: whether that disc is much steeper than the one above.
    """

    weight: float
    seen: bool
    words: str
    steep: bool = False


_STEEP = -8.0
"""Degrees by which the lumbosacral disc falls more steeply to the front than the disc above, at least."""
_ROOM_MM = (5.0, 30.0)
"""Image below the lowest disc in which another vertebra would begin to show, and would show well."""
_PROCESSES_MM = 64.0
"""From tip to tip of a lumbar vertebra's transverse processes it is at least so far."""
_CANAL_MM = 10.0
"""A canal that goes on for so long below the lowest disc lies in the sacrum, since no vertebra lies in front of it."""


def _sacrum(spine: Spine) -> _Sacrum:
    chain, grid = spine.chain, spine.grid
    if chain.last_cut:
        return _Sacrum(-4.0, False, "the image ends in the vertebra below")
    disc = chain.last < len(chain.interfaces) and chain.interfaces[chain.last].number > 0
    rows = np.flatnonzero(rows_with((grid.classes == VERTEBRA) | (grid.classes == DISC)))
    end = float(chain.interfaces[-1].point[1]) if disc else float(rows[-1] * grid.spacing[1]) if len(rows) else 0.0
    room = float(np.interp(grid.last_row + grid.below_mm - end, _ROOM_MM, (-2.0, 4.0)))
    canal = np.flatnonzero(rows_with(grid.classes == CANAL))
    beyond = len(canal) > 0 and canal[-1] * grid.spacing[1] - end > _CANAL_MM
    if not disc:
        return _Sacrum(room + 1.5 * beyond, False, "no disc was found below the lowest complete vertebra")
    if room < 0.0:
        return _Sacrum(room + 1.0, False, "the image ends at the disc below the lowest complete vertebra")
    if chain.volume[chain.last] <= 0 or len(spine.numbers) < 2:
        return _Sacrum(room, False, "too few vertebrae show to tell the sacrum from one that was not found")
    lean = chain.interfaces[-1].lean - (chain.interfaces[-2].lean if len(chain.interfaces) > 1 else 0.0)
    words = "a disc lies below the lowest vertebra and no further vertebra, as above the sacrum"
    words += f"; it is steeper than the disc above by {-lean:.0f} degrees" if lean < _STEEP else ""
    words += "; the canal goes on below it" if beyond else ""
    return _Sacrum(room + 1.0 + 1.5 * beyond, True, words, lean < _STEEP)


def _unusual(spine: Spine, source: str) -> tuple[str, ...]:
    """What speaks for a transitional vertebra or another number of lumbar vertebrae above a sacrum that shows."""
    if source not in ("sacrum", "both"):
        return ()
    found = []
    if _rudimentary(spine):
        found.append(
            "the lowest disc is much smaller than the others, as between a transitional vertebra and the sacrum"
        )
    lumbar = _long_processes(spine)
    if lumbar in (4, 6):
        found.append(
            f"{lumbar} vertebrae above the sacrum have the long transverse processes of lumbar ones, so the lowest may "
            f"be L{lumbar}"
        )
    return tuple(found)


def _long_processes(spine: Spine) -> int | None:
    """How many vertebrae from the lowest up have long transverse processes, which the thoracic ones above lack.

    None where the slices do not reach so far or there is no clear step.
    """
    width = spine.widths()
    row = [width.get(k, 0.0) for k in range(spine.chain.lowest, -1, -1)]
    usual = float(np.median(row[:3])) if len(row) >= 3 else 0.0
    if usual < _PROCESSES_MM:
        return None
    steps = [n for n in range(1, len(row)) if row[n] < 0.8 * row[n - 1]]
    if not steps:
        return None
    volume = spine.chain.volume[spine.chain.lowest :: -1]
    short = [row[n] < 0.75 * usual for n in range(steps[0], len(row)) if volume[n] > 0.6 * volume[n - 1]]
    return steps[0] if short and all(short[:2]) else None


def _rudimentary(spine: Spine) -> bool:
    """Whether the lowest disc is far smaller than the two above it."""
    discs = [one for one in spine.chain.interfaces if one.number]
    if len(discs) < 4:
        return False
    last, above = discs[-1], discs[-3:-1]
    return last.volume < 0.25 * min(one.volume for one in above) and last.depth < 0.7 * min(one.depth for one in above)
