"""Correct the levels of a segmentation: the true level of one structure shifts all names along the spine."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .anatomy import PARTS_OFFSET, disc_between, encodings, named_structure, structures, usual_levels, value_of
from .errors import InputError, UsageError
from .formats.atomic import check_writable, ending_of, same_place, write_together
from .formats.endings import SEGMENTATIONS, SEGMENTS, TABLES
from .formats.places import check_outputs
from .formats.segmentations import LOST, read_segmentation, write_segmentation, write_table
from .formats.slicer_segments import Marks, is_segment_file, read_marks
from .notices import About, Notice, unusual_number
from .segmentation import Segmentation, count_labels

Assignments = Mapping[str, str] | Sequence[tuple[str, str]]
"""What structures really are, by structure; in pairs, a structure may occur twice by mistake."""


def relabel(segmentation: Segmentation, assignments: Assignments) -> Segmentation:
    """Rename the structures.

    They keep their order: stating that the disc named L4/L5 is L3/L4 moves all vertebrae and discs up by one level. The
    spine is the usual one (12 thoracic, 5 lumbar vertebrae) unless the assignments, or a sacrum that keeps its name,
    fit only a spine with a T13, with an L6, without L5 or without T12.

    Args:
        segmentation: one with levels; bodies and posterior elements may be separate (`measurements.split_parts`).
        assignments: what structures really are (level, name or label value), by structure (its label value, level or
            name, such as ``95``, ``L4/L5``, ``L4/L5 disc``).

    Raises:
        UsageError: USAGE for three classes without levels, for a structure that is not there or a level that does not
            exist, for assignments that contradict each other, for names that would go beyond C1 or the sacrum, or for
            present names that are not in anatomical order.
    """
    segmentation.require_levels()
    if not assignments:
        raise _refusal("no structure was given a name", "Name at least one structure, such as 95=L3/L4")
    present = _present(segmentation)
    wanted = _wanted(assignments, present)
    table, chain = _new_values(present, wanted)
    if any(old != new for old, new in table.items()):
        _check_order(segmentation)
    labels = _mapped(segmentation, table)
    changes = ", ".join(f"{structures()[old].level}={structures()[new].level}" for old, new in wanted.items())
    earlier = segmentation.provenance.get("relabelled")
    kept = {key: value for key, value in segmentation.provenance.items() if key != "anchor"}  # the user is the anchor
    return replace(
        segmentation,
        labels=labels,
        partial=frozenset(_moved(value, table) for value in segmentation.partial),
        provenance={**kept, "relabelled": f"{earlier}; {changes}" if earlier else changes},
        confidence=_confidence(segmentation, wanted, table),
        warnings=tuple(
            Notice(notice.code, _renamed(notice.text, table))
            for notice in segmentation.warnings
            if not notice.is_about(About.ANCHOR | About.FILE)
        )
        + _about_number(chain),
    )


def _about_number(chain: Sequence[str]) -> tuple[Notice, ...]:
    """Notice of a spine with four or six lumbar vertebrae, as after segmenting with a stated level that implies it."""
    if "L5" in chain and "L6" not in chain:
        return ()
    number = "six" if "L6" in chain else "four"
    return (unusual_number(f"with these names, {number} lumbar vertebrae lie above the sacrum", "relabel again"),)


def _check_order(segmentation: Segmentation) -> None:
    """Reject names of vertebrae and discs that contradict each other: shifted together they still would."""
    from .measurements import names_out_of_order

    try:
        exchanged = names_out_of_order(segmentation)
    except InputError:  # cannot be measured: the order is unknown
        return
    if exchanged is not None:
        raise _refusal(
            f"the names are not in anatomical order ({exchanged[0]} lies above {exchanged[1]}), and would remain so",
            "Correct the label map by hand so that vertebrae and discs agree, then relabel it; or segment the image "
            "again with --lowest",
        )


def _confidence(segmentation: Segmentation, wanted: Mapping[int, int], table: Mapping[int, int]) -> dict[int, float]:
    """Confidence by new label value: 1 for what the user has named, elsewhere that of counting from there.

    Confidences fall with every doubt between a structure and the surest ones, from which the names were counted: two
    on one side of these differ by the doubts between them, two on opposite sides by all doubts of both. With notices of
    doubts, but no confidences, only what the user has named is known.
    """
    before = segmentation.confidence
    values = [old for old in count_labels(segmentation.labels) if _whole(segmentation, old) in table]
    if not before and any(notice.is_about(About.COUNT) for notice in segmentation.warnings):
        return {_moved(old, table): 1.0 for old in values if _whole(segmentation, old) in wanted}
    place, _ = _old_places(list(table))
    most = max((before.get(value, 1.0) for value in table), default=1.0)
    surest = [place[value] for value in table if before.get(value, 1.0) == most]

    def side(value: int) -> int:
        return (place[value] > max(surest)) - (place[value] < min(surest))

    def sure(value: int, stated: int) -> float:
        own, known = before.get(value, 1.0), before.get(stated, 1.0)
        if value == stated or not most:
            return 1.0 if value == stated else 0.0
        if side(value) * side(stated) < 0:
            return own * known / most**2
        return min(own, known) / max(own, known, 1e-9)

    return {
        _moved(old, table): round(max(sure(_whole(segmentation, old), stated) for stated in wanted), 3)
        for old in values
    }


def _renamed(text: str, table: Mapping[int, int]) -> str:
    """The text of a notice with the new names of levels."""
    names = {structures()[old].level: structures()[new].level for old, new in table.items()}
    return re.sub(r"\b[CTL]\d+(?:/[TLS]\d+)?\b", lambda match: names.get(match[0], match[0]), text)


def relabel_file(
    path: str | Path,
    assignments: Assignments,
    output: str | Path | None = None,
    table: str | Path | None = None,
) -> Segmentation:
    """Relabel a saved segmentation of any format that `formats.segmentations` writes.

    If a file that lists segments is written to a 3D Slicer segmentation, segments keep what
    `formats.slicer_segments.read_marks` finds on them.

    Args:
        path: the file.
        assignments: as in `relabel`.
        output: where to write; None replaces the file itself, which stays as it is if anything fails.
        table: CSV of the structures with their new names, see `formats.segmentations.write_table`.

    Returns:
        What was written, with its own notices and those about the file that was read.

    Raises:
        InputError: as `read_segmentation`.
        UsageError: as `relabel`; OUTPUT_FORMAT or OUTPUT_WRITE; USAGE if the file is to be replaced and would lose what
            `LOST` names, or is a label map that lists segments, which only 3D Slicer segmentations keep.
    """
    target = Path(path if output is None else output)
    check_writable(target, SEGMENTATIONS)
    in_place = same_place(target, Path(path))
    check_outputs([(None if in_place else target, SEGMENTATIONS), (table, TABLES)], [path])
    saved = read_segmentation(path)
    how_read = [notice for notice in saved.warnings if notice.is_about(About.FILE)]
    lost = [LOST[notice.code] for notice in how_read if notice.code in LOST]
    if in_place and lost:
        cause = f"{target.name} holds {' and '.join(lost)}, which would be lost"
        raise _refusal(cause, "Give the result another name (--output)")
    marked = is_segment_file(path)
    if in_place and marked and ending_of(target, SEGMENTATIONS) != SEGMENTS:
        cause = f"{target.name} lists segments, whose status, colours and tags a label map does not store"
        raise _refusal(cause, f"Give the result another name, ending in {SEGMENTS} (--output)")
    segmentation = relabel(saved.with_cuts(), assignments)
    marks = _marks(path, saved, assignments) if marked else {}
    with write_together():
        write_segmentation(segmentation, target, marks)
        if table is not None:
            write_table(segmentation, table)
    return replace(segmentation, warnings=(*segmentation.warnings, *how_read))


def _marks(path: str | Path, saved: Segmentation, assignments: Assignments) -> Marks:
    """What a user set on the segments, by new label value; that of the body if a vertebra in parts becomes sacrum."""
    present = _present(saved)
    table, _ = _new_values(present, _wanted(assignments, present))
    marks = read_marks(path, saved.encoding)
    return {_moved(old, table): marks[old] for old in reversed(count_labels(saved.labels)) if old in marks}


def _refusal(cause: str, remedy: str) -> UsageError:
    return UsageError("USAGE", cause, remedy)


def _present(segmentation: Segmentation) -> list[int]:
    """Values of the structures with a level, posterior elements counted as their vertebra."""
    whole = {_whole(segmentation, value) for value in count_labels(segmentation.labels)}
    return sorted(value for value in whole if value in structures() and structures()[value].level)


def _whole(segmentation: Segmentation, value: int) -> int:
    return value - PARTS_OFFSET if value > PARTS_OFFSET and segmentation.has_parts else value


def _wanted(assignments: Assignments, present: list[int]) -> dict[int, int]:
    """New label value by old one, as the user assigned them."""
    wanted: dict[int, int] = {}
    for key, text in assignments.items() if isinstance(assignments, Mapping) else assignments:
        old, new = _value(key), _value(text)
        if old not in present:
            shown = ", ".join(f"{value} {structures()[value].level}" for value in present) or "none"
            raise _refusal(f"there is no structure {key} in this segmentation", f"Choose among: {shown}")
        kinds = {structures()[old].kind, structures()[new].kind}
        if ("disc" in kinds) != (kinds == {"disc"}):
            raise _refusal(
                f"{structures()[old].name} cannot become {structures()[new].name}",
                "Give discs the level of a disc (such as L3/L4) and vertebrae the level of a vertebra (such as L4)",
            )
        if wanted.get(old, new) != new:
            levels = f"{structures()[wanted[old]].level} and {structures()[new].level}"
            raise _refusal(f"{structures()[old].name} was given two levels, {levels}", "Give it only one")
        wanted[old] = new
    return wanted


def _value(text: str) -> int:
    """The label value of a structure with a level, from its value, level or name."""
    plain = text.strip()
    for known in (structures(), encodings()["parts"].structures):
        number = plain.isdecimal() and len(plain) < 10  # Python refuses thousands of digits
        structure = known.get(int(plain)) if number else named_structure(plain, known)
        if structure is not None and structure.level:
            return structure.value if structure.value in structures() else structure.value - PARTS_OFFSET
    raise _refusal(
        f"{text.strip() or 'nothing'} is not a level", "Give a level such as L4 or L3/L4, or a label value such as 44"
    )


def _chains() -> list[tuple[str, ...]]:
    """Vertebrae of possible spines from C1 down to the sacrum, the usual one first."""
    variants = []
    thoracic = ((), ("T13",), ("-T12",))
    lumbar = ((), ("L6",), ("-L5",))
    for chest, loin in sorted(itertools.product(thoracic, lumbar), key=lambda pair: len(pair[0]) + len(pair[1])):
        levels = list(usual_levels())
        for change in (*chest, *loin):
            if change.startswith("-"):
                levels.remove(change[1:])
            else:
                levels.insert(levels.index("L1") if change == "T13" else len(levels), change)
        variants.append((*levels, "S1"))
    return variants


def _places(chain: tuple[str, ...]) -> dict[float, int]:
    """Label values by place in a chain: a vertebra's index, and half a step more for the disc below it."""
    result: dict[float, int] = {}
    for n, (upper, lower) in enumerate(itertools.zip_longest(chain, chain[1:])):
        result[float(n)] = value_of(upper)
        level = disc_between(upper, lower)
        if level:
            result[n + 0.5] = value_of(level)
    return result


def _new_values(present: list[int], wanted: Mapping[int, int]) -> tuple[dict[int, int], tuple[str, ...]]:
    """New label values by old ones, in the first kind of spine in which everything fits, and its vertebrae.

    Raises:
        UsageError: USAGE, nothing fits.
    """
    known = structures()
    old, as_named = _old_places(present)
    if all(value == new for value, new in wanted.items()):
        return {value: value for value in present}, as_named  # whatever the count, the user agrees with it
    fixed = dict(wanted)
    sacrum = next((value for value in present if known[value].kind == "sacrum"), None)
    if sacrum is not None:
        fixed.setdefault(sacrum, sacrum)  # nothing else looks like a sacrum
    beyond = ""
    for chain in _chains():
        places = _places(chain)
        shift = _shift_in(places, fixed, old)
        if shift is None:
            continue
        outside = [value for value in present if old[value] + shift not in places]
        if not outside:
            return {value: places[old[value] + shift] for value in present}, chain
        beyond = beyond or f"{known[outside[0]].name} would lie beyond {_end(outside[0], old, shift, chain)}"
    if not beyond:
        claims = ", ".join(f"{known[value].level} is {known[new].level}" for value, new in fixed.items())
        raise _refusal(f"these cannot all be true: {claims}", "Name one structure only, or check the levels given")
    raise _refusal(beyond, "Check the level given")


def _shift_in(places: Mapping[float, int], fixed: Mapping[int, int], old: Mapping[int, float]) -> float | None:
    """The shift of all structures in a spine with these places; None if the fixed ones do not fit there."""
    at = {value: place for place, value in places.items()}
    shifts = {at[new] - old[value] if new in at else None for value, new in fixed.items()}
    return shifts.pop() if len(shifts) == 1 else None


def _end(value: int, old: Mapping[int, float], shift: float, chain: tuple[str, ...]) -> str:
    place = old[value] + shift
    if place < len(chain) / 2:
        return "C1" if place < 0 else "C2/C3, the highest disc"
    return "the sacrum" if place > len(chain) - 1 else "the levels that have a name"


def _old_places(present: list[int]) -> tuple[dict[int, float], tuple[str, ...]]:
    """Places of the structures by their present names, in the kind of spine that has them all; its vertebrae.

    If several kinds do, the first that has most of them adjacent: if no vertebra lies between L4 and the disc L5/S1,
    none is assumed to be missing there. One always does: that with both T13 and L6 has every structure with a level.
    """
    best: dict[int, float] = {}
    touching, kind = -1, usual_levels()
    for chain in _chains():
        at = {value: place for place, value in _places(chain).items() if value in present}
        places = set(at.values())
        pairs = sum(place + 0.5 in places for place in places)
        if (len(at), pairs) > (len(best), touching):
            best, touching, kind = at, pairs, chain
    return best, kind


def _moved(value: int, table: Mapping[int, int]) -> int:
    """The new label value; posterior elements of a body that becomes the sacrum become part of the sacrum."""
    if value in table or value - PARTS_OFFSET not in table:
        return table.get(value, value)
    new = table[value - PARTS_OFFSET]
    return new + PARTS_OFFSET if new + PARTS_OFFSET in encodings()["parts"].structures else new


def _mapped(segmentation: Segmentation, table: Mapping[int, int]) -> np.ndarray:
    """Labels with new values."""
    moved = range(256) if segmentation.has_parts else table
    lookup = np.arange(256, dtype=np.uint8)
    lookup[list(moved)] = [_moved(value, table) for value in moved]
    return lookup[segmentation.labels]
