"""Turn classes into named structures: label values, confidence, and notices for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..anatomy import disc_between, value_of, vertebra_levels
from ..errors import UsageError
from ..masks import bounding_box, cut_structures
from ..notices import Notice, unusual_number
from ..volume import SagittalStack
from .anchor import SACRUM, Anchor, find_anchor
from .grid import Grid, Image
from .profile import size_of
from .spine import Spine

_MUCH_MM3 = 20_000.0
"""More than this apart from the spine is a ghost of it: at most 13,000 mm3 in 47 volumes; 48,000 and more in copies
with a ghost of 30 %, shifted by 60 or 90 mm."""
_FEW = 2
"""Up to this many vertebrae are few even in an image cropped to part of the spine."""

HEAD_AND_FEET = Notice(
    "HEAD_AND_FEET",
    "This image seems to be stored upside down, with the feet at the top. If so, any level names are wrong and "
    "stating a level does not help: correct the orientation in the file, or export it again.",
)


@dataclass(frozen=True)
class Levels:
    """Individual structures with their levels.

    Attributes:
        labels: (S, H, W) uint8 in the encoding of `anatomy.structures`.
        partial: label values of structures that the border of the field of view cuts.
        notices: what the user should know.
        confidence: by label value of a vertebra or disc, how certain its name is, 0 to 1.
        anchor: the evidence for the names, in words; empty if nothing was named.
        unnamed_mm3: volume of vertebrae and discs without a label, because with these names they are the sacrum or lie
            beyond the ends of a spine.
    """

    labels: np.ndarray
    partial: frozenset[int]
    notices: tuple[Notice, ...]
    confidence: Mapping[int, float] = field(default_factory=dict)
    anchor: str = ""
    unnamed_mm3: float = 0.0


def name_structures(stack: SagittalStack, lowest: str | None = None, image: np.ndarray | None = None) -> Levels:
    """Separate vertebrae and discs into individual structures and name them.

    A voxel keeps its class or becomes background: in a speck, apart from the spine, or in a structure without a name.
    The sacrum is not a class, but its top is taken for a vertebra where the image's border cuts it. Discs are found
    first; they give the planes between the bodies. A level without its disc is found from the spacing of the others.
    Posterior elements are assigned to the body whose front reaches them first through the vertebra mask; a front slows
    down away from where the arch and processes of its body are expected.

    Names are counted from the most certain reference: the user's statement; the sacrum, recognised by a disc without a
    vertebra below it; C2, by its odontoid process; else the sizes and the curvature of the vertebrae.

    Args:
        stack: its slices are classes (S, H, W): 0 background, 1 vertebra, 2 disc, 3 canal.
        lowest: level of the lowest vertebra that the field of view does not cut, if the user states it.
        image: the slices (S, H, W) in which the classes were found, to check whether the image shows anything where no
            class was found.

    Raises:
        UsageError: USAGE, `lowest` is not a vertebra.
    """
    lowest = check_lowest(lowest)
    labels = np.zeros(stack.slices.shape, np.uint8)
    box = bounding_box(stack.slices)
    if box is None:
        return Levels(labels, frozenset(), (Notice("NOTHING_FOUND", "No part of the spine was found in this volume."),))
    grid = Grid.of(stack, box)
    if not grid.classes.any():
        return Levels(labels, frozenset(), (Notice("NOTHING_FOUND", "Only specks were found in this volume."),))
    spine = Spine(grid)
    corner = np.array([part.start for part in box]) * grid.spacing
    anchor = find_anchor(spine, lowest, None if image is None else Image(image, grid.spacing, -corner))
    vertebrae, discs = _values(spine, anchor)
    labels[box] = spine.labels(vertebrae, discs)
    confidence = _confidence(spine, anchor, vertebrae, discs)
    return Levels(
        labels,
        cut_structures(labels),
        tuple(_notices(spine, anchor)),
        confidence,
        anchor.basis if confidence else "",
        _unnamed(spine, vertebrae, discs),
    )


def check_lowest(lowest: str | None) -> str | None:
    """The level in the spelling used here.

    Raises:
        UsageError: USAGE, it is not a vertebra.
    """
    if lowest is None:
        return None
    level = lowest.strip().upper()
    if level not in vertebra_levels():
        raise UsageError(
            "USAGE", f"{level or 'nothing'} is not a vertebra", f"Choose one of {', '.join(vertebra_levels())}"
        )
    return level


def _values(spine: Spine, anchor: Anchor) -> tuple[dict[int, int], dict[int, int]]:
    """Label values by the number of the vertebra and of the disc."""
    present = spine.numbers
    vertebrae = {k: value_of(name) for k, name in anchor.level.items() if k in present and name != SACRUM}
    discs = {}
    for k, interface in enumerate(spine.chain.interfaces):
        name = disc_between(anchor.level.get(k), anchor.level.get(k + 1))
        if interface.number and name:
            discs[interface.number] = value_of(name)
    return vertebrae, discs


def _unnamed(spine: Spine, vertebrae: dict[int, int], discs: dict[int, int]) -> float:
    """Volume in mm3 of the vertebrae and discs that have no label value."""
    bone = np.count_nonzero(np.isin(spine.number, sorted(spine.numbers - vertebrae.keys()))) * spine.grid.voxel
    return float(bone + sum(one.volume for one in spine.chain.interfaces if one.number and one.number not in discs))


def _confidence(spine: Spine, anchor: Anchor, vertebrae: dict[int, int], discs: dict[int, int]) -> dict[int, float]:
    """Confidence by label value; a disc gets the higher of its neighbours'."""
    of = anchor.confidences(spine)
    result = {value: of[k] for k, value in vertebrae.items()}
    for k, interface in enumerate(spine.chain.interfaces):
        if interface.number in discs:
            result[discs[interface.number]] = max(of.get(k, 0.0), of.get(k + 1, 0.0))
    return dict(sorted(result.items()))


def _notices(spine: Spine, anchor: Anchor) -> list[Notice]:
    """Notices on what the names are based on and what is doubtful about them."""
    discs = sum(interface.number > 0 for interface in spine.chain.interfaces)
    if not spine.numbers and not discs:
        return [Notice("FEW_STRUCTURES", "No vertebrae or discs were found, so no level could be named.")]
    guessed = spine.few and anchor.source != "user"  # one notice on its names is enough
    return [
        *([_about_few(spine, discs, guessed)] if spine.few else []),
        *([] if guessed else _about_anchor(spine, anchor)),
        *((HEAD_AND_FEET,) if anchor.upside_down else ()),
        *([] if guessed else _about_sizes(spine, anchor)),
        *_about_image(spine, anchor),
        *_about_ends(spine, anchor),
    ]


def _about_few(spine: Spine, discs: int, guessed: bool) -> Notice:
    """Notice of too few structures for a spine, and of how unreliable their names are if the user stated no level."""
    vertebrae = len(spine.numbers)
    number = f"{_count(vertebrae, 'vertebra', 'vertebrae')} and {_count(discs, 'disc', 'discs')} were found"
    text = (
        f"{'Only ' if vertebrae <= _FEW else ''}{number}{'' if spine.has_canal else ', and no canal'}. Check whether "
        "the volume shows the spine."
    )
    if guessed and spine.numbers:
        text += " Level names are little more than guesses unless you state the level of the lowest vertebra."
    return Notice("FEW_STRUCTURES", text)


def _about_sizes(spine: Spine, anchor: Anchor) -> list[Notice]:
    """Notices of missing discs, and of bodies, levels and discs of unusual sizes."""
    notices = []
    if missing := spine.chain.guessed:
        text = (
            f"{_count(missing, 'disc was', 'discs were')} not found; the vertebrae there were separated by their "
            "height. Check the levels."
        )
        notices.append(Notice("DISC_MISSING", text))
    if small := [level for k in spine.chain.small if (level := anchor.level.get(k))]:
        text = (
            f"Far less was found of {', '.join(small)} than of the neighbouring vertebrae: collapsed, outside the "
            "slices, or incompletely found. Check this and the levels above."
        )
        notices.append(Notice("VERTEBRA_SMALL", text))
    if spine.chain.halved:
        low = "; ".join(f"{anchor.level.get(k, '?')} and {anchor.level.get(k + 1, '?')}" for k in spine.chain.halved)
        text = (
            f"{low} are little more than half as high as the neighbouring levels: both are collapsed, or they are one "
            "vertebra split by a dark band, and the names beyond are off by one. Check the levels."
        )
        notices.append(Notice("LEVELS_LOW", text))
    if spine.chain.tall:
        text = (
            f"More than twice as thick as the neighbouring discs: {_discs(spine.chain.tall, anchor)}. It may contain a "
            "collapsed vertebra (the names beyond are then off by one) or an implant. Check the levels."
        )
        notices.append(Notice("LEVELS_TALL", text))
    if spine.mixed:
        text = (
            f"Vertebrae other than those expected lie directly above or below {_discs(spine.mixed, anchor)}. The image "
            "may wrap around, metal may divide a disc, or the upper border may cut the highest vertebra. Names there "
            "and beyond may be wrong. Check the levels."
        )
        notices.append(Notice("LEVELS_MIXED", text))
    return notices


def _discs(interfaces: Sequence[int], anchor: Anchor) -> str:
    """The names of the discs at interfaces."""
    return ", ".join(disc_between(anchor.level.get(k), anchor.level.get(k + 1)) or "one at the end" for k in interfaces)


def _about_image(spine: Spine, anchor: Anchor) -> list[Notice]:
    """Notices of apparent problems of the image: sizes that are not an adult's, a second spine."""
    notices = []
    larger = size_of(spine.chain, anchor.level)
    if larger is not None:
        text = (
            f"According to the voxel size in the file, these vertebrae are {abs(larger - 1):.0%} "
            f"{'larger' if larger > 1 else 'smaller'} than an adult's. Check the voxel size, on which all sizes "
            "depend, and any level names."
        )
        notices.append(Notice("SIZES_UNUSUAL", text))
    if spine.apart_mm3 > _MUCH_MM3:
        text = (
            f"{spine.apart_mm3 / 1000:.0f} ml of bone and canal lie apart from the spine and got no label. Ghosting "
            "from motion or flow may show the spine twice, or the image may wrap around and show part of it on the "
            "other side. Check the outlines and any level names."
        )
        notices.append(Notice("PIECES_APART", text))
    return notices


def _about_ends(spine: Spine, anchor: Anchor) -> list[Notice]:
    """Notice of structures that, with these names, lie beyond the ends of the spine."""
    chain = spine.chain
    cut_sacrum = chain.last_cut and anchor.level.get(chain.last) == SACRUM  # a piece of it, taken for a vertebra's bone
    pieces = {chain.last} if cut_sacrum else set()
    extra = [k for k in spine.numbers - pieces if anchor.level.get(k, SACRUM) == SACRUM]
    # Between C1 and C2 there is no disc.
    above = sum(
        interface.number > 0 and anchor.level.get(k + 1) in ("C1", "C2") for k, interface in enumerate(chain.interfaces)
    )
    if not extra and not above:
        return []
    number = _count(len(extra), "vertebra", "vertebrae") if extra else _count(above, "disc", "discs")
    text = (
        f"With these names {number} would lie beyond the end of the spine and got no label. State the correct level of "
        "the lowest vertebra."
    )
    return [Notice("TOO_MANY_VERTEBRAE", text)]


def _about_anchor(spine: Spine, anchor: Anchor) -> list[Notice]:
    """Notices on what the names are based on; if the user stated a level, only on what speaks against it."""
    level = anchor.level[spine.chain.lowest]
    if anchor.contradicted:
        text = f"The lowest complete vertebra was stated to be {level}, but {anchor.contradicted}. Check that level."
        return [Notice("LEVELS_CONTRADICTED", text)]
    if anchor.source == "user":
        return _about_number(anchor)
    text = f"The lowest complete vertebra was named {level}: {anchor.basis}."
    if spine.chain.last_cut and anchor.level.get(spine.chain.last) == SACRUM:
        text += " The structure below it, cut by the lower border, was taken for the sacrum and has no label."
    elif spine.chain.last_cut:
        text += " A vertebra cut by the lower border lies below it."
    if anchor.source == "sacrum" and not anchor.counted and not anchor.upside_down:
        text += (
            " Five lumbar vertebrae were assumed, since they could not be counted. If there are four or six, all names "
            "are off by one: state the lowest level (--lowest)."
        )
    notices = [Notice("LEVELS_ASSUMED", text)]
    if anchor.doubtful:
        doubt = anchor.doubt or "neither the sacrum nor C2 is clearly visible"
        notices.append(
            Notice(
                "LEVELS_DOUBTFUL",
                f"{doubt[0].upper()}{doubt[1:]}; {level} is only the most likely name for the lowest complete "
                f"vertebra ({anchor.confidence:.0%}). If you know its level, state it (--lowest). Make sure that the "
                "image is not upside down.",
            )
        )
    return notices + _about_number(anchor)


def _about_number(anchor: Anchor) -> list[Notice]:
    """Notice of an unusual number of lumbar vertebrae, whether found or stated."""
    if not anchor.unusual:
        return []
    return [unusual_number("; ".join(anchor.unusual), "state the lowest level (--lowest)")]


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"
