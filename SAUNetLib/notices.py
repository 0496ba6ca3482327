"""Notices: what the user should know about a result that can still be used, and what each code is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Flag


class About(Flag):
    """What a notice is about, where that makes a difference."""

    NOTHING = 0
    LEVELS = 1
    """Level names, which a result with three classes does not have."""
    ANCHOR = 2
    """The reference from which names were counted, which a stated level replaces."""
    COUNT = 4
    """Something that may make the names on one side wrong, even if the other side is right."""
    FILE = 8
    """The file that was read, not the result in it."""


@dataclass(frozen=True)
class Notice:
    """Something the user should know about a result that can still be used.

    Attributes:
        code: short and stable, such as ``LEVELS_ASSUMED``: one of `CODES`, or in a file perhaps another version's.
        text: one or two sentences for a clinician.
    """

    code: str
    text: str

    def is_about(self, what: About) -> bool:
        """Whether the notice is about any of these."""
        return bool(what & CODES.get(self.code, Code()).about)

    def as_dict(self) -> dict[str, str]:
        """JSON-ready: code and text."""
        return asdict(self)


@dataclass(frozen=True)
class Code:
    """The properties of all notices with one code.

    Attributes:
        about: what they are about.
        word, later: the word stored for them in a NIfTI file, which has no room for texts, and the text shown when it
            is read; empty if nothing is stored.
    """

    about: About = About.NOTHING
    word: str = ""
    later: str = ""


_ANCHOR, _COUNT = About.LEVELS | About.ANCHOR, About.LEVELS | About.COUNT
CODES: Mapping[str, Code] = {
    "FRONT_AND_BACK": Code(word="BACK", later="the image's front and back seemed to be swapped; if so, much is wrong."),
    "HEAD_AND_FEET": Code(
        word="HEAD_AND_FEET", later="the image seemed to be stored upside down; if so, levels are wrong."
    ),
    "FEW_STRUCTURES": Code(word="FEW", later="too little was found for a spine."),
    "LEVELS_ASSUMED": Code(_ANCHOR, "LEVELS_ASSUMED", "the level names were assumed, not stated."),
    "LEVELS_DOUBTFUL": Code(_ANCHOR, "LEVELS_DOUBTFUL", "the level names were only the most likely ones."),
    "TRANSITIONAL": Code(_ANCHOR, "TRANS", "there were signs of a number of lumbar vertebrae other than five."),
    "SIZES_UNUSUAL": Code(word="SIZES", later="the vertebrae were not of adult size; the voxel size may be wrong."),
    "LEVELS_LOW": Code(
        _COUNT, "LOW", "two levels were so low that they may be one; the names beyond may be off by one."
    ),
    "LEVELS_TALL": Code(
        _COUNT, "TALL", "a disc was so thick that it may hold a vertebra; the names beyond may be off by one."
    ),
    "LEVELS_MIXED": Code(
        _COUNT, "MIXED", "vertebrae other than those expected lay next to a disc; names may be wrong there."
    ),
    "VERTEBRA_SMALL": Code(_COUNT, "SMALL", "far less was found of a vertebra than of its neighbours."),
    "DISC_MISSING": Code(_COUNT, "MISSING", "a disc was not found; its vertebrae were separated by their height."),
    "PIECES_APART": Code(
        word="APART", later="bone or canal lay apart from the spine, as with ghosting, and got no label."
    ),
    "LEVELS_CONTRADICTED": Code(_ANCHOR),
    "TOO_MANY_VERTEBRAE": Code(_ANCHOR),
    "LEVELS_ORDER": Code(About.LEVELS),
    **dict.fromkeys(("NOTHING_FOUND", "LEFT_OUT", "PARTS_MISSING"), Code()),
    **dict.fromkeys(("SLICES_ORDER", "SLICES_MOVED", "SLICES_FAR_APART", "EMPTY_SLICES", "OUTSIDE_IMAGE"), Code()),
    **dict.fromkeys(("MOVED_TO_CPU", "SMALLER_CHUNKS", "GPU_FAILED"), Code()),
    **dict.fromkeys(("CANAL_MISSING", "CANAL_IN_FRONT", "SACRUM_ESTIMATED", "NOT_T2"), Code()),
    **dict.fromkeys(("CORD", "SPIDER", "ENCODING_ASSUMED", "OVERLAP", "SEGMENTS_LEFT_OUT"), Code(About.FILE)),
    **dict.fromkeys(("UNKNOWN", "SERIES_SPLIT"), Code()),
}
"""All codes; if a NIfTI file has no room for all words, it keeps the first ones."""


def unusual_number(reason: str, remedy: str) -> Notice:
    """Notice of a number of lumbar vertebrae other than five, and what to do if that number is wrong."""
    check = f"Check the number of lumbar vertebrae, and {remedy} if it is a different one"
    return Notice("TRANSITIONAL", f"{reason[0].upper()}{reason[1:]}. {check}.")
