"""Decide which level each vertebra of a chain is, from the user's statement, the sacrum, C2, or sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..anatomy import CANAL, DISC, VERTEBRA, usual_levels, vertebra_levels
from .column import REACH_MM
from .discs import Interface
from .grid import Image, rows_with
from .profile import LEVELS, is_upside_down, log_likelihoods
from .spine import Spine

SACRUM = "S1"
_ABOVE_SACRUM = ("L4", "L5", "L6")
"""The last lumbar vertebra if there are four, five or six."""
_NUMBERS = {4: "four", 5: "five", 6: "six"}
_C2, _T11, _L5 = (LEVELS.index(level) for level in ("C2", "T11", "L5"))
_MOST = {"both": 0.98, "counted": 0.92, "sacrum": 0.89, "C2": 0.92, "sizes": 0.75}
"""Highest confidence of a name, by the evidence for it (chosen by hand, except for the sacrum alone). Of 418 whole
spines 7.7 % had 23 or 25 vertebrae above the sacrum instead of 24, and 3.3 % a transitional one (Tins and Balain,
Insights into Imaging 2016;7:199-203): in that many the vertebra above the sacrum is not L5, which only counting shows.
0.89 includes only this; ``counted`` is the sacrum below five vertebrae with the processes of lumbar ones."""
_UNUSUAL = 0.6
"""Highest confidence where there are signs of a transitional vertebra."""
_FEW = 0.3
"""Highest confidence where so little was found that it may be no spine (chosen by hand): of 57 such crops of 47 volumes
and 56 phantoms, 34 were named correctly."""
_SHARPER = 2.0
"""Power to which probabilities by sizes alone are raised, as these are too low: in 1,000 crops without a sacrum of 45
scans of three scanners 62 % of the names were right at a mean stated probability of 34 %. Raised, it is 48 %, and the
mean log probability of the right name is highest at 2 to 3 on each scanner."""
_SURE = 0.7
"""A name with a lower confidence is doubtful."""
_MISSED = 0.85
"""Probability that an interface without a disc was put in the right place."""
_DOUBTED = 0.5
"""Probability that a level is exactly one: at a disc between two bodies of about half the usual height, a body far
smaller than its neighbours, a disc more than twice as thick, or one beside vertebrae not its own (chosen by hand)."""
_LOWEST_L5, _LUMBAR = 0.5, 3.0
"""Fraction of spine MRI in which L5 is the lowest complete vertebra; the others share the rest, T11 to L4 `_LUMBAR`
times as often as those above: most scans are lumbar, as is all that the shipped model has seen."""
_ODONTOID = 8.0
"""Evidence for C2 from its shape, as log odds."""
_COUNTED, _HARDLY = 0.85, 0.1
"""Confidence of names counted from C2 to a sacrum with an unusual number of vertebrae; and of names of more vertebrae
than a spine has, or in an image that is upside down (chosen by hand)."""
_LUMBAR_WORDS = "have the long transverse processes of lumbar vertebrae"
_FIVE_WORDS = f"five vertebrae above it {_LUMBAR_WORDS}"
_SMALL_WORDS = "far less was found of the lowest complete vertebra than of its neighbours"
_C2_WORDS = "the highest vertebra is taller than it is deep and has no disc above it, like C2 with its odontoid process"


@dataclass(frozen=True)
class Anchor:
    """The names of the vertebrae and the evidence for them.

    Attributes:
        level: by vertebra number, including vertebrae that are not visible, and the sacrum.
        source: ``user``, ``sacrum``, ``C2``, ``both`` or ``sizes``.
        basis: the same in words.
        confidence: of the name at the anchor itself, 0 to 1.
        unusual: evidence for an unusual number of vertebrae, in words.
        counted: whether the lumbar vertebrae above the sacrum were counted, not assumed to be five.
        contradicted: evidence against a level that the user stated, in words.
        doubt: evidence against the vertebra from which the names were counted, in words.
        upside_down: whether the image seems to be upside down, so that all names are wrong.
    """

    level: dict[int, str]
    source: str
    basis: str
    confidence: float
    unusual: tuple[str, ...] = ()
    counted: bool = False
    contradicted: str = ""
    doubt: str = ""
    upside_down: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether the names are only the most likely ones; upside-down images, where they are wrong, are excluded."""
        unsure = self.source == "sizes" or self.doubt or (self.confidence < _SURE and not self.unusual)
        return bool(unsure) and not self.upside_down

    def confidences(self, spine: Spine) -> dict[int, float]:
        """Confidence by vertebra number; each uncertain interface between the vertebra and the anchor lowers it."""
        chain = spine.chain
        sure = [_MISSED if interface.number == 0 else 1.0 for interface in chain.interfaces]
        for k in {*chain.halved, *chain.tall, *spine.mixed, *(k - 1 for k in chain.small)}:  # above a small body
            sure[k] = min(sure[k], _DOUBTED)
        doubt = np.cumsum([0.0, *-np.log(sure)])
        lowest, result = spine.chain.lowest, {}
        for k in self.level:
            at, bottom = (float(doubt[min(max(n, 0), len(doubt) - 1)]) for n in (k, lowest))
            steps = {"C2": at, "both": min(at, abs(bottom - at))}.get(self.source, abs(bottom - at))
            result[k] = round(self.confidence * float(np.exp(-steps)), 3)
        return result


def find_anchor(spine: Spine, lowest: str | None, image: Image | None = None) -> Anchor:
    """Name the vertebrae: from the user's statement of the lowest complete one, else the sacrum and C2, else sizes."""
    chain = spine.chain
    anchor = replace(_anchor(spine, lowest, image), upside_down=is_upside_down(chain))
    if anchor.source == "user":
        return anchor
    if anchor.upside_down or spine.few:
        most = _HARDLY if anchor.upside_down else _FEW
        return replace(anchor, confidence=min(anchor.confidence, most))
    if anchor.source in ("sacrum", "sizes") and chain.lowest in chain.small:
        return replace(anchor, confidence=min(anchor.confidence, _DOUBTED), doubt=_SMALL_WORDS)
    return anchor


def _anchor(spine: Spine, lowest: str | None, image: Image | None) -> Anchor:
    """Name the vertebrae of an image that is not upside down."""
    bottom, sacrum = spine.chain.lowest, _sacrum(spine, image)
    if lowest is not None:
        return _stated(spine, lowest, sacrum)
    if spine.chain.odontoid and sacrum.seen and abs(_L5 - bottom - _C2) == 1:
        return _counted(spine, bottom + 2)
    return _by_fit(spine, sacrum)


def _stated(spine: Spine, lowest: str, sacrum: _Sacrum) -> Anchor:
    """Name the vertebrae from the level that the user states for the lowest complete one."""
    last = lowest == "L4" and sacrum.seen and sacrum.steep
    levels = _levels(spine.chain.lowest, lowest, last)
    words = f"the lowest complete vertebra is {lowest}, as stated"
    against = sacrum.words if sacrum.seen and lowest not in _ABOVE_SACRUM else ""
    lumbar = _long_processes(spine) if sacrum.seen and not against else None
    if lumbar is not None and lowest != f"L{lumbar}":
        against = f"{_NUMBERS[lumbar]} vertebrae above the sacrum {_LUMBAR_WORDS}"
    number = _NUMBERS[4] if last else _NUMBERS[6] if lowest == "L6" else None
    unusual = (f"with {lowest} as stated, {number} lumbar vertebrae lie above the sacrum",) if number else ()
    return Anchor(levels, "user", words, 1.0, unusual, contradicted=against)


def _by_fit(spine: Spine, sacrum: _Sacrum) -> Anchor:
    """Find the most probable names, and whether they rest on the sacrum, on C2 or on sizes alone."""
    bottom, fit = spine.chain.lowest, log_likelihoods(spine.chain)
    if not np.isfinite(fit).any():
        return Anchor(_levels(bottom, "L5"), "sizes", "more vertebrae were found than a spine has", _HARDLY)
    chance = _chances(spine, fit, sacrum)
    start = int(chance.argmax())
    levels, at_c2 = _levels(bottom, LEVELS[start + bottom]), spine.chain.odontoid and start == _C2
    if sacrum.seen and start + bottom == _L5:
        return _by_sacrum(spine, sacrum, levels, float(chance[start]), at_c2)
    if at_c2:
        return Anchor(levels, "C2", _C2_WORDS, min(_MOST["C2"], float(chance[start])))
    chance = chance**_SHARPER / np.sum(chance**_SHARPER)
    basis = f"{sacrum.words}, so the level was inferred from the sizes and the curvature of the vertebrae"
    return Anchor(levels, "sizes", basis, min(_MOST["sizes"], float(chance[start])))


def _by_sacrum(spine: Spine, sacrum: _Sacrum, levels: dict[int, str], chance: float, with_c2: bool) -> Anchor:
    """Names based on the sacrum, or on both the sacrum and C2; `chance` is their probability."""
    lumbar = _long_processes(spine)
    unusual = _unusual(spine, lumbar)
    source, basis, most = "sacrum", sacrum.words, _MOST["sacrum"]
    if with_c2:
        source, basis, most = "both", f"{_C2_WORDS}; {sacrum.words}", _MOST["both"]
    elif lumbar == 5:
        basis, most = f"{sacrum.words}; {_FIVE_WORDS}", _MOST["counted"]
    sure = min(most, chance, _UNUSUAL if unusual else 1.0)
    return Anchor(levels, source, basis, sure, unusual, counted=with_c2 or lumbar is not None)


def _chances(spine: Spine, fit: np.ndarray, sacrum: _Sacrum) -> np.ndarray:
    """Probability of each level of vertebra 0, (24,), given how well the sizes fit there."""
    common = np.where(np.arange(len(LEVELS)) < _T11, 1.0, _LUMBAR)
    common[_L5] = 0.0
    lowest = (1 - _LOWEST_L5) * common / common.sum()
    lowest[_L5] = _LOWEST_L5
    share = np.full(len(LEVELS), lowest.min())
    share[: len(LEVELS) - spine.chain.lowest] = lowest[spine.chain.lowest :]
    weight = np.zeros(len(LEVELS))
    if spine.chain.lowest <= _L5:
        weight[_L5 - spine.chain.lowest] = sacrum.weight
    weight[_C2] += _ODONTOID * spine.chain.odontoid
    score = fit + np.log(share) + weight
    chance = np.exp(score - score.max())
    return np.asarray(chance / chance.sum())


def _levels(number: int, level: str, last: bool = False) -> dict[int, str]:
    """Levels of all vertebrae, given that of one; T13 or L6 is included only if it is the given level.

    With `last` the sacrum follows that vertebra, whatever its level.
    """
    usual = [usual_level for usual_level in vertebra_levels() if usual_level in usual_levels() or usual_level == level]
    at = usual.index(level)
    usual = usual[: at + 1] if last else usual
    return {number + n - at: name for n, name in enumerate([*usual, SACRUM])}


def _counted(spine: Spine, count: int) -> Anchor:
    """Names counted down from C2 to the sacrum, with one vertebra more or fewer than usual between them."""
    lowest = "L6" if count == 25 else "L4"
    text = f"{count} vertebrae lie between the skull and the sacrum instead of 24"
    basis = f"counted from C2, whose odontoid process is visible, down to the sacrum: {text}"
    return Anchor(_levels(spine.chain.lowest, lowest, last=True), "C2", basis, _COUNTED, (text,))


@dataclass(frozen=True)
class _Sacrum:
    """The evidence for the sacrum below the lowest complete vertebra.

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
"""The lowest disc is steep if its lean minus that of the disc above is below this, in degrees: it falls to the
front."""
_ROOM_MM, _ROOM_ODDS = (5.0, 30.0), (-2.0, 4.0)
"""Extent of the image below the lowest disc at which another vertebra would begin to be visible, and would be clearly
visible; and the evidence for the sacrum if there is none, in log odds like all evidence below (chosen by hand)."""
_DISC_ODDS, _CANAL_ODDS = 1.0, 1.5
"""Evidence for the sacrum from a disc, and from a canal that continues (chosen by hand)."""
_CUT_SHARE, _CUT_ODDS = (0.22, 0.32), (-2.0, -4.0)
"""Evidence against the sacrum where the image ends within a vertebra below, by that piece's share of the usual volume:
weaker for a small piece, which may be the top of the sacrum (0.09 to 0.29 in four scans; half an L5 has 0.28 and more).
A smaller piece above a disc, such as a bright S1/S2, is no sign of the sacrum either (0.06 in one water-fat crop)."""
_PROCESSES_MM = 64.0
"""Least distance between the tips of a lumbar vertebra's transverse processes."""
_STEP, _SHORT, _WHOLE = 0.8, 0.75, 0.6
"""The lowest thoracic vertebra is narrower than the first share of the one below; it and those above, than the second
of lumbar ones, if they have more than the third of the volume of the one below (chosen by hand)."""
_FRONT_MM, _RIBS_MM, _BODY = 14.0, 12.0, 0.4
"""Ribs and thoracic transverse processes lie more than the first behind the canal's anterior border, lumbar ones in
front of that; ribs widen a vertebra by more than the second; one that is narrower without them than the third, as a
share of lumbar ones, is an arch without its body. Chosen on 56 phantoms: in none of 15 real volumes that reach so far
are enough of the transverse processes found to count them."""
_SMALL, _SHALLOW = 0.25, 0.7
"""A rudimentary disc has less than these shares of the volume and the depth of both discs above (chosen by hand)."""
_CANAL_MM = 10.0
"""A canal that continues beyond this below the lowest disc lies in the sacrum: no vertebra lies in front of it."""
_BONE_BELOW_MM = ((7.0, 20.0), (22.0, 33.0))
"""Distances below the lowest disc's plane at which the sacrum shows bone; and (the first) above a disc, where vertebrae
are sampled for comparison."""
_BONE = 0.3
"""Least share of the vertebrae's signal in bone there: 0.47 and more in 47 volumes, 207 slices; 0.09 in padding,
voids."""
_LEFT_MM3, _LEFT_BELOW_MM, _LEFT_FAR_MM, _LEFT_ASIDE_MM, _LEFT_BEHIND_MM = 180.0, 15.0, 50.0, 16.0, 10.0
"""More vertebra than this is not the sacrum if it lies between the second and the third (the next level) below the
lowest disc, within the last two beside the column and behind it: at most 140 mm3 in 47 volumes, 190 and more where a
vertebra below was found in part."""
_PIECES_ODDS = -3.0
"""Evidence against the sacrum from such pieces: as from a medium piece of a vertebra at the border (chosen by hand). Of
425 slices and 47 volumes two have any: one where L5 was missed, named right below -2.7, and one that ends in the top of
the sacrum, named right above -4.8."""


def _sacrum(spine: Spine, image: Image | None) -> _Sacrum:
    """The evidence for the sacrum below the lowest complete vertebra, from classes and image."""
    chain = spine.chain
    above = chain.volume[max(0, chain.last - 3) : chain.last]
    share = float(chain.volume[chain.last] / max(np.median(above), 1.0)) if len(above) else 1.0
    if chain.last_cut:
        return _Sacrum(
            float(np.interp(share, _CUT_SHARE, _CUT_ODDS)), False, "the image ends within the vertebra below"
        )
    disc = chain.last < len(chain.interfaces) and chain.interfaces[chain.last].number > 0
    room, beyond = _below(spine, disc)
    goes_on = _CANAL_ODDS * beyond
    if not disc:
        return _Sacrum(room + goes_on, False, "no disc was found below the lowest complete vertebra")
    if room < 0.0:
        return _Sacrum(room + _DISC_ODDS, False, "the image ends at the disc below the lowest complete vertebra")
    if chain.volume[chain.last] <= 0 or len(spine.numbers) < 2:
        return _Sacrum(
            room, False, "too few vertebrae are visible to tell the sacrum from a vertebra that was not found"
        )
    if share < _CUT_SHARE[0]:
        return _Sacrum(0.0, False, "so little of the lowest vertebra was found that it may be the top of the sacrum")
    if _vertebra_below(spine):
        return _Sacrum(_PIECES_ODDS, False, "pieces of a vertebra lie below the lowest disc that was found")
    if image is not None and _bone_below(spine, image) < _BONE:
        return _Sacrum(0.0, False, "below the lowest disc the image shows no bone, as in padding or around metal")
    lean = chain.interfaces[-1].lean - (chain.interfaces[-2].lean if len(chain.interfaces) > 1 else 0.0)
    words = "a disc but no further vertebra lies below the lowest vertebra, as above the sacrum"
    words += f"; it is steeper than the disc above by {-lean:.0f} degrees" if lean < _STEEP else ""
    words += "; the canal continues below it" if beyond else ""
    return _Sacrum(room + _DISC_ODDS + goes_on, True, words, lean < _STEEP)


def _below(spine: Spine, disc: bool) -> tuple[float, bool]:
    """Evidence for the sacrum from the image's extent below the last disc or vertebra; whether the canal continues."""
    grid = spine.grid
    rows = np.flatnonzero(rows_with((grid.classes == VERTEBRA) | (grid.classes == DISC)))
    last = float(rows[-1] * grid.spacing[1]) if len(rows) else 0.0
    end = float(spine.chain.interfaces[-1].point[1]) if disc else last
    canal = np.flatnonzero(rows_with(grid.classes == CANAL))
    room = float(np.interp(grid.last_row + grid.below_mm - end, _ROOM_MM, _ROOM_ODDS))
    return room, len(canal) > 0 and bool(canal[-1] * grid.spacing[1] - end > _CANAL_MM)


def _vertebra_below(spine: Spine) -> bool:
    """Whether parts of a vertebra's body were found below the lowest disc."""
    grid, column, points = spine.grid, spine.column, spine.voxels.points
    disc = spine.chain.interfaces[-1]
    points = points[points[:, 1] > disc.point[1] + _LEFT_BELOW_MM]
    points = points[disc.below(points) < _LEFT_FAR_MM]
    aside = np.abs(points[:, 0] - np.interp(points[:, 1], column.rows, column.side))
    # Limited in depth: the arch above a steep disc reaches far down.
    depth = column.depth(points)
    low = (aside < _LEFT_ASIDE_MM) & (depth < _LEFT_BEHIND_MM) & (depth > -REACH_MM)
    return bool(low.sum() * grid.voxel > _LEFT_MM3 * grid.thin)


def _bone_below(spine: Spine, image: Image) -> float:
    """Lowest signal below the lowest disc relative to the darkest vertebra above; 1 if it cannot be measured.

    One vertebra alone may be brighter than the others, as with oedema.
    """
    discs = [interface for interface in spine.chain.interfaces if interface.number]

    def signal(disc: Interface, span: tuple[float, float], way: int) -> float | None:
        along = np.array([0.0, -disc.normal[2], disc.normal[1]])
        along /= np.linalg.norm(along)
        across = np.linspace(-0.3, 0.3, 9) * max(disc.depth, 20.0)
        side, off, step = np.meshgrid((-6.0, 0.0, 6.0), across, np.arange(*span, 2.0), indexing="ij")
        points = disc.point + way * step.reshape(-1, 1) * disc.normal + off.reshape(-1, 1) * along
        points[:, 0] += side.ravel()
        values = image.at(points)
        return float(np.median(values)) - image.darkest if len(values) >= 0.3 * len(points) else None

    signals_above = (signal(disc, _BONE_BELOW_MM[0], -1) for disc in discs[-3:])
    signals_below = (signal(discs[-1], span, 1) for span in _BONE_BELOW_MM)
    above = [value for value in signals_above if value is not None]
    below = [value for value in signals_below if value is not None]
    return min(below) / min(above) if above and min(above) > 0 and below else 1.0


def _unusual(spine: Spine, lumbar: int | None) -> tuple[str, ...]:
    """Signs of a transitional vertebra, or of a number of lumbar vertebrae other than five, above a visible sacrum.

    `lumbar` is how many were counted, or None.
    """
    reasons = []
    if _rudimentary(spine):
        reasons.append(
            "the lowest disc is much smaller than the others, as between a transitional vertebra and the sacrum"
        )
    if lumbar in (4, 6):
        reasons.append(
            f"{lumbar} vertebrae above the sacrum have the long transverse processes of lumbar vertebrae, so the "
            f"lowest may be L{lumbar}"
        )
    return tuple(reasons)


def _long_processes(spine: Spine) -> int | None:
    """Number of vertebrae, from the lowest up, with the long transverse processes that thoracic vertebrae lack.

    None if they could not be counted: the slices do not reach far enough, processes were not found, or neither ribs nor
    a clear step in width shows where they end; and if there are not four to six.
    """
    lowest, width = spine.chain.lowest, spine.widths()
    row = [width.get(k, 0.0) for k in range(lowest, -1, -1)]
    if len(row) < 3 or np.median(row[:3]) < _PROCESSES_MM:
        return None
    width = spine.widths(_FRONT_MM)
    front = [width.get(k, 0.0) for k in range(lowest, -1, -1)]
    count = _below_ribs(row, front) or _below_step(row, spine.chain.volume[lowest::-1])
    return count if count in (4, 5, 6) else None


def _below_ribs(row: Sequence[float], front: Sequence[float]) -> int | None:
    """Number of vertebrae with long processes and no ribs, if the next one has ribs and no such processes.

    Sections of ribs are labelled as vertebra, out to the outermost slices; but like thoracic transverse processes they
    lie farther back than lumbar ones.

    Args:
        row: widths (N,) of the vertebrae from the lowest up, mm; 3 or more.
        front: the same, counting only what lies in front of ribs.
    """
    usual = float(np.median(front[:3]))
    ribs = np.flatnonzero(np.subtract(row, front) > _RIBS_MM)
    if usual < _PROCESSES_MM or len(ribs) == 0 or ribs[0] == 0:
        return None
    first = int(ribs[0])
    clear = _BODY * usual < front[first] < _SHORT * usual <= front[first - 1]
    return first if clear else None


def _below_step(row: Sequence[float], volume: np.ndarray) -> int | None:
    """Number of vertebrae with long processes, if the next ones are clearly narrower.

    Args:
        row: widths (N,) of the vertebrae from the lowest up, mm; 3 or more.
        volume: (N,) of their bodies, mm3.
    """
    usual = float(np.median(row[:3]))
    steps = [n for n in range(1, len(row)) if row[n] < _STEP * row[n - 1]]
    if not steps:
        return None
    short = [row[n] < _SHORT * usual for n in range(steps[0], len(row)) if volume[n] > _WHOLE * volume[n - 1]]
    return steps[0] if short and all(short[:2]) else None


def _rudimentary(spine: Spine) -> bool:
    """Whether the lowest disc is far smaller than the two above it."""
    discs = [disc for disc in spine.chain.interfaces if disc.number]
    if len(discs) < 4:
        return False
    last, above = discs[-1], discs[-3:-1]
    small = last.volume < _SMALL * min(disc.volume for disc in above)
    return small and last.depth < _SHALLOW * min(disc.depth for disc in above)
