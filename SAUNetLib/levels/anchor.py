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
"""Of four, five and six lumbar vertebrae the last."""
_NUMBERS = {4: "four", 5: "five", 6: "six"}
_C2, _T11, _L5 = (LEVELS.index(level) for level in ("C2", "T11", "L5"))
_MOST = {"both": 0.98, "counted": 0.92, "sacrum": 0.89, "C2": 0.92, "sizes": 0.75}
"""No name is more certain than this, by what it rests on (chosen, but for the sacrum alone). Of 418 whole spines 7.7 %
had 23 or 25 vertebrae above the sacrum instead of 24, and 3.3 % a transitional one (Tins and Balain, Insights into
Imaging 2016;7:199-203): so often the vertebra above the sacrum is not L5, which shows only to those who count. This is
all that 0.89 includes; ``counted`` is the sacrum below five vertebrae with the processes of lumbar ones."""
_UNUSUAL = 0.6
"""Nor than this where something speaks for a transitional vertebra."""
_FEW = 0.3
"""Nor than this in what is hardly a spine and may be none (chosen): of 57 crops of 47 volumes and 56 phantoms in which
no more was found, 34 were named right."""
_SHARPER = 2.0
"""Names by sizes alone are right more often than their probabilities say: in 1,000 crops without a sacrum of 45 scans
of three scanners 62 % were right, where 34 % were stated in the mean; raised to this power it is 48 %, and the mean
logarithm of the right name's probability is highest at 2 to 3 on each scanner."""
_SURE = 0.7
"""A less probable name is doubtful."""
_MISSED = 0.85
"""Probability that an interface without a disc was rightly put where it is."""
_DOUBTED = 0.5
"""Probability that a level is one, and one only: a disc between two bodies of about half the usual height, a body far
smaller than those beside, a disc more than twice as thick or beside other vertebrae than its own (chosen)."""
_LOWEST_L5, _LUMBAR = 0.5, 3.0
"""Of spine MRI, how often L5 is the lowest complete vertebra; the others share the rest, T11 to L4 so many times as
often as those above: most is lumbar, as is all that the shipped model has seen."""
_ODONTOID = 8.0
"""How the shape of C2 speaks for it: logarithm of the odds."""
_COUNTED, _HARDLY = 0.85, 0.1
"""How certain names are that were counted from C2 to a sacrum after an unusual number of vertebrae, and those of more
vertebrae than a spine has or of an image that stands on its head (chosen)."""
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
    """Levels of all vertebrae, given that of one; T13 and L6 only where the given one is one of them.

    With `last` the sacrum follows it, whatever it is.
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
"""Degrees by which the lumbosacral disc falls more steeply to the front than the disc above, at least."""
_ROOM_MM, _ROOM_ODDS = (5.0, 30.0), (-2.0, 4.0)
"""Extent of the image below the lowest disc at which another vertebra would begin to be visible, and would be clearly
visible; and the evidence for the sacrum if there is none, here and below as logarithms of the odds (chosen)."""
_DISC_ODDS, _CANAL_ODDS = 1.0, 1.5
"""Evidence for it from a disc, and from a canal that continues (chosen)."""
_CUT_SHARE, _CUT_ODDS = (0.22, 0.32), (-2.0, -4.0)
"""Evidence against it from a vertebra below in which the image ends: weaker for a small piece (by its share of the
usual volume), which may be the top of the sacrum (0.09 to 0.29 of it in four scans; half an L5 has 0.28 and more). A
smaller one above a disc, such as a bright S1/S2, is no sign of the sacrum either (0.06 in one crop of water-fat)."""
_PROCESSES_MM = 64.0
"""From tip to tip of a lumbar vertebra's transverse processes it is at least so far."""
_STEP, _SHORT, _WHOLE = 0.8, 0.75, 0.6
"""Parts of the width of the vertebra below, and of lumbar ones, that the lowest thoracic one and those above it are
narrower than, of which those count that have more than this part of the volume of the one below (chosen)."""
_FRONT_MM, _RIBS_MM, _BODY = 14.0, 12.0, 0.4
"""Ribs and thoracic transverse processes lie farther behind the canal's anterior border than the first, lumbar ones in
front of that; ribs make a vertebra wider by more than the second; what is narrower without them than this share (the
third) of lumbar ones is an arch without its body. Chosen on 56 phantoms: in none of 15 real volumes that reach so far
are enough of the transverse processes found to count them."""
_SMALL, _SHALLOW = 0.25, 0.7
"""A rudimentary disc has less than these parts of the volume and the depth of both discs above (chosen)."""
_CANAL_MM = 10.0
"""A canal that goes on for so long below the lowest disc lies in the sacrum, since no vertebra lies in front of it."""
_BONE_BELOW_MM = ((7.0, 20.0), (22.0, 33.0))
"""How far from the lowest disc's plane bone must show where the sacrum is, and how far above a disc in the vertebrae
that it is compared with (the first of both)."""
_BONE = 0.3
"""Its signal is at least this share of the vertebrae's: 0.47 in 47 volumes and 207 slices; 0.09 in padding, voids."""
_LEFT_MM3, _LEFT_BELOW_MM, _LEFT_FAR_MM, _LEFT_ASIDE_MM, _LEFT_BEHIND_MM = 180.0, 15.0, 50.0, 16.0, 10.0
"""So much of a vertebra so far below the lowest disc, no farther than the next one and no farther beside the column and
behind it, is no sacrum: 140 mm3 at most in 47 volumes, 190 and more where a vertebra below was found in part."""
_PIECES_ODDS = -3.0
"""Evidence against it from such pieces: as from a middling part of a vertebra at the border (chosen). Of 425 slices
and 47 volumes two show any: one where L5 was missed, right below -2.7, and one that ends in the sacrum's top, right
above -4.8."""


def _sacrum(spine: Spine, image: Image | None) -> _Sacrum:
    """The evidence for the sacrum below the lowest complete vertebra, by classes and image."""
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
    """Evidence for the sacrum from the image below the last disc or vertebra; whether the canal continues there."""
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
    # The arch above a steep disc reaches far down.
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
    """Signs of a transitional vertebra, or of other than five lumbar vertebrae, above a visible sacrum.

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

    None where they could not be counted: the slices do not reach so far, processes were not found, or neither ribs nor
    a clear step of the widths shows where they end; and where there are not four to six.
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

    Sections of ribs are taken for a vertebra's bone, up to the outermost slices; but like the transverse processes of
    thoracic vertebrae they lie farther back than those of lumbar ones.

    Args:
        row: widths (N,) of the vertebrae from the lowest up, mm; 3 or more.
        front: the same of what lies in front of ribs.
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
