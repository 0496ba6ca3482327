"""Renaming: all names move together along the spine, or nothing changes and the reason is said."""

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
from builders import geometry, segmentation
from hypothesis import given
from hypothesis import strategies as st

from SAUNetLib.anatomy import CANAL_VALUE, PARTS_OFFSET, disc_between, encodings, structures, usual_levels, value_of
from SAUNetLib.errors import InputError, UsageError
from SAUNetLib.formats.endings import SEGMENTATIONS
from SAUNetLib.formats.segmentations import read_segmentation, write_segmentation, write_table
from SAUNetLib.measurements import split_parts
from SAUNetLib.notices import Notice
from SAUNetLib.relabel import relabel, relabel_file
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.volume import Geometry, to_sitk

CHAIN = list(usual_levels())


def line(*levels: str) -> Segmentation:
    """One voxel per structure, in the order given, after the canal's."""
    values = [2, *(value_of(level) for level in levels)]
    grid = Geometry(
        (1, len(values), 1), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.array(((0, 0, -1), (1, 0, 0), (0, -1, 0.0)))
    )
    return Segmentation(np.array(values, np.uint8).reshape(1, -1, 1), grid)


def levels_of(result: Segmentation) -> list[str]:
    return [structures()[int(value)].level for value in result.labels.ravel()[1:]]


def spine(first: int, count: int) -> list[str]:
    """Vertebrae of the usual spine with the discs between them."""
    vertebrae = CHAIN[first : first + count]
    discs = [f"{a}/{b}" for a, b in itertools.pairwise(vertebrae)]
    known = {one.level for one in structures().values()}
    mixed = [level for pair in itertools.zip_longest(vertebrae, discs) for level in pair if level]
    return [level for level in mixed if level in known]


def test_one_disc_moves_everything():
    before = line("T12", "T12/L1", "L1", "L1/L2", "L4/L5", "L5", "L5/S1")
    after = relabel(before, {"95": "L3/L4"})
    assert levels_of(after) == ["T11", "T11/T12", "T12", "T12/L1", "L3/L4", "L4", "L4/L5"]
    assert int(after.labels.ravel()[0]) == 2


@given(st.integers(3, 14), st.integers(2, 7), st.integers(-3, 6), st.data())
def test_any_structure_gives_the_same_result(first, count, shift, data):
    old, new = spine(first, count), spine(first + shift, count)
    if len(new) != len(old) or first + shift < 2 or first + shift + count > len(CHAIN):
        return
    place = data.draw(st.integers(0, len(old) - 1))
    told = data.draw(
        st.sampled_from([old[place], str(value_of(old[place])), structures()[value_of(old[place])].name.upper()])
    )
    assert levels_of(relabel(line(*old), {told: new[place]})) == new
    assert levels_of(relabel(line(*new), {new[0]: old[0]})) == old


def test_the_table_runs_from_top_to_bottom_with_a_sixth_lumbar_vertebra():
    given = ["L4", "L4/L5", "L5", "L5/L6", "L6", "L5/S1"]
    assert [row.structure.level for row in line(*reversed(given)).table()] == ["", *given]


def test_thirteen_thoracic_vertebrae():
    before = line("T11", "T11/T12", "T12", "T12/L1", "L1", "L1/L2", "L2")
    after = relabel(before, {"T12": "T13"})
    assert levels_of(after) == ["T12", "T12/T13", "T13", "T12/L1", "L1", "L1/L2", "L2"]
    assert [row.structure.level for row in after.table()] == ["", *levels_of(after)]
    assert levels_of(relabel(after, {"T13": "T12"})) == levels_of(before)


def test_six_lumbar_vertebrae():
    before = line("L4", "L4/L5", "L5", "L5/S1")
    after = relabel(before, {"L5": "L6", "L4": "L5"})
    assert levels_of(after) == ["L5", "L5/L6", "L6", "L5/S1"]
    assert levels_of(relabel(after, {"L6": "L5"})) == ["L4", "L4/L5", "L5", "L5/S1"]
    assert levels_of(relabel(before, {"L5": "L6"})) == ["L5", "L5/L6", "L6", "L5/S1"]


def test_four_lumbar_vertebrae_when_the_sacrum_stays():
    before = line("L1", "L1/L2", "L4", "L4/L5", "L5", "L5/S1", "S1")
    after = relabel(before, {"L5": "L4"})
    assert levels_of(after) == ["T12", "T12/L1", "L3", "L3/L4", "L4", "L5/S1", "S1"]
    unseen = line("L4", "L4/L5", "L5", "L5/S1")
    assert levels_of(relabel(unseen, {"L5": "L4"})) == ["L3", "L3/L4", "L4", "L4/L5"]
    assert levels_of(relabel(unseen, {"L5": "L4", "100": "L5/S1"})) == ["L3", "L3/L4", "L4", "L5/S1"]


FOUR = ["L2", "L2/L3", "L3", "L3/L4", "L4", "L5/S1"]
ELEVEN = ["T10", "T10/T11", "T11", "T12/L1", "L1", "L1/L2", "L2"]


@pytest.mark.parametrize(
    ("given", "stated", "number"),
    [
        (("L4", "L4/L5", "L5", "L5/S1"), {"L5": "L6"}, "six"),
        (("L5", "L5/L6", "L6"), {"L6": "L6"}, "six"),
        (("L5", "L5/L6", "L6"), {"L6": "L5"}, ""),
        (("T12", "L5", "S1"), {"T12": "L1"}, "six"),
        (("L4", "L4/L5", "L5", "S1"), {"L5": "L4"}, "four"),
        (("L3", "L3/L4", "L4", "L5/S1"), {"L3": "L3"}, "four"),
        (("L4", "S1"), {"L4": "L4"}, ""),
        (("L4", "L4/L5", "L5"), {"L5": "L4"}, ""),
    ],
)
def test_four_or_six_lumbar_vertebrae_are_told_where_the_label_map_shows_them(given, stated, number):
    told = relabel(replace(line(*given), warnings=(Notice("TRANSITIONAL", "L6?"),)), stated).warnings
    assert [notice.code for notice in told] == (["TRANSITIONAL"] if number else [])
    assert all(f"With these names, {number} lumbar vertebrae lie" in notice.text for notice in told)


@pytest.mark.parametrize(
    ("old", "said", "new"),
    [
        (FOUR, {"L5/S1": "L4/L5"}, ["L2", "L2/L3", "L3", "L3/L4", "L4", "L4/L5"]),
        (FOUR, {"L4": "L5"}, ["L3", "L3/L4", "L4", "L4/L5", "L5", "L5/S1"]),
        (ELEVEN, {"T12/L1": "T11/T12"}, ["T10", "T10/T11", "T11", "T11/T12", "T12", "T12/L1", "L1"]),
        (["L3", "L3/L4", "L5", "L5/S1"], {"L5": "L4"}, ["L2", "L2/L3", "L4", "L4/L5"]),
        (["T10", "L2", "L2/L3"], {"L2": "L3"}, ["T11", "L3", "L3/L4"]),
    ],
)
def test_what_touches_stays_together_and_a_gap_stays_one(old, said, new):
    """Names that skip a level tell of a spine with fewer vertebrae, not of one that is missing."""
    assert levels_of(relabel(line(*old), said)) == new


@pytest.mark.parametrize("names", [FOUR, ELEVEN, ["T12", "T12/T13", "T13"], ["L5", "L5/L6", "L6"], ["L4", "S1"]])
def test_what_is_so_already_moves_nothing(names):
    assert all(levels_of(relabel(line(*names), {level: level})) == names for level in names)


def test_a_spine_may_have_every_structure_that_has_a_level():
    """Whatever levels a label map has, one kind of spine has them all: none can contradict each other."""
    spine = [*CHAIN[: CHAIN.index("L1")], "T13", *CHAIN[CHAIN.index("L1") :], "L6", "S1"]
    discs = [*itertools.starmap(disc_between, itertools.pairwise(spine)), None]
    names = [level for pair in zip(spine, discs, strict=True) for level in pair if level]
    assert set(names) == {one.level for one in structures().values() if one.level}
    assert levels_of(relabel(line(*names), {"L6": "L6"})) == names


def test_the_lowest_vertebra_may_turn_out_to_be_the_sacrum():
    assert levels_of(relabel(line("L3", "L3/L4", "L4", "L4/L5", "L5"), {"L4": "L5"})) == [
        "L4",
        "L4/L5",
        "L5",
        "L5/S1",
        "S1",
    ]


@pytest.mark.parametrize("stated, sure", [({"L5": "L4"}, (1.0, 1.0, 0.5, 0.5)), ({"L3": "L2"}, (0.5, 0.5, 1.0, 1.0)),
                                          ({"L5": "L5", "L3": "L3"}, (1.0,) * 4)])  # fmt: skip
def test_doubts_of_the_count_stay_where_a_name_is_stated(stated, sure):
    """Whoever names L5 knows no more of what lies beyond a disc that may be a dark band."""
    before = line("L3", "L3/L4", "L4", "L5")
    before = Segmentation(
        before.labels, before.geometry, confidence={43: 0.4, 94: 0.4, 44: 0.8, 45: 0.8},
        warnings=(Notice("LEVELS_LOW", "L3 and L4 are little more than half as high."), Notice("TRANSITIONAL", "L6?")),
    )  # fmt: skip
    after = relabel(before, stated)
    moved = {"L5": "L2 and L3", "L3": "L2 and L3"}.get(next(iter(stated)) if len(stated) == 1 else "", "L3 and L4")
    assert [(notice.code, notice.text[: len(moved)]) for notice in after.warnings] == [("LEVELS_LOW", moved)]
    assert tuple(after.confidence[value] for value in sorted(after.confidence, reverse=True) if value < 60) == (
        sure[0],
        sure[0],
        sure[2],
    )


@pytest.mark.parametrize("most", [1.0, 0.8])
@pytest.mark.parametrize("stated, sure", [("L5", (0.25, 0.5, 1.0)), ("L4", (0.5, 1.0, 0.5)), ("L3", (1.0, 0.5, 0.25))])
def test_doubts_on_both_sides_of_a_stated_name_add_up(stated, sure, most):
    """As after a correction in the middle: from L5 to L3 two doubts are passed, however sure the surest name is."""
    before = line("L3", "L4", "L5")
    confidence = {43: most / 2, 44: most, 45: most / 2}
    before = Segmentation(before.labels, before.geometry, confidence=confidence)
    assert tuple(relabel(before, {stated: stated}).confidence.values()) == sure


def test_what_no_file_says_is_not_called_sure():
    """A NIfTI file keeps that there are doubts, and no confidences."""
    before = line("L3", "L4", "L5")
    doubted = Segmentation(before.labels, before.geometry, warnings=(Notice("LEVELS_TALL", "Thick."),))
    assert relabel(doubted, {"L5": "L5"}).confidence == {45: 1.0}
    named = Segmentation(before.labels, before.geometry, confidence={43: 0.4, 44: 0.4, 45: 0.0})
    assert relabel(named, {"L5": "L5"}).confidence[45] == 1.0


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".seg.nrrd"])
def test_what_the_border_cuts_is_told_of_every_format(tmp_path, ending):
    """NIfTI has no room for it, and its new table called cut vertebrae whole."""
    before = line("L3", "L4", "L5")
    before = replace(before, partial=frozenset({43, 45}))
    write_segmentation(before, tmp_path / f"a{ending}")
    relabel_file(tmp_path / f"a{ending}", {"L4": "L3"}, table=tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8-sig", newline="") as file:
        told = {row["level"]: row["partial"] for row in csv.DictReader(file)}
    assert {level for level, partial in told.items() if partial == "true"} >= {"L2", "L4"}


def test_the_rest_of_the_result_follows():
    before = line("L4", "L4/L5", "L5")
    before = Segmentation(
        before.labels, before.geometry, provenance={"model": "m"}, partial=frozenset({44, 2}),
        warnings=(Notice("LEVELS_ASSUMED", "Assumed."), Notice("OTHER", "Stays.")),
    )  # fmt: skip
    after = relabel(before, {"L4": "L3"})
    assert after.partial == {43, 2}
    assert after.confidence == {43: 1.0, 94: 1.0, 44: 1.0}
    assert after.provenance == {"model": "m", "relabelled": "L4=L3"}
    assert [notice.code for notice in after.warnings] == ["OTHER"]
    assert relabel(after, {"L3": "L2"}).provenance["relabelled"] == "L4=L3; L3=L2"
    np.testing.assert_array_equal(before.labels.ravel(), [2, 44, 95, 45])


def test_notices_name_discs_and_vertebrae_by_their_new_levels():
    said = Notice("OTHER", "L5/S1 is thin, T12/L1 too; L5 is cut, T12 is not.")
    before = replace(line("T12", "T12/L1", "L1", "L5", "L5/S1"), warnings=(said,))
    (told,) = relabel(before, {"L5": "L4"}).warnings
    assert told.text == "L4/L5 is thin, T11/T12 too; L4 is cut, T11 is not."


def test_parts_move_with_their_vertebra():
    parts = split_parts(segmentation(geometry(size=(56, 76, 25), spacing=(0.9, 1.25, 1.0))))
    moved = relabel(parts, {"L2": "L3"})
    np.testing.assert_array_equal(moved.labels == 43 + PARTS_OFFSET, parts.labels == 42 + PARTS_OFFSET)
    np.testing.assert_array_equal(moved.labels == 43, parts.labels == 42)
    assert moved.encoding is parts.encoding


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        ({"L4": "L3", "L5": "L5"}, "cannot all be true"),
        ({"L4": "C1"}, "beyond"),
        ({"L4/L5": "C2/C3"}, "the highest disc"),
        ({"L4": "X9"}, "X9 is not a level"),
        ({"L4": ""}, "not a level"),
        ({"": "L4"}, "not a level"),
        ({"L1": "L2"}, "no structure L1"),
        ({"99": "L2"}, "99 is not a level"),
        ({"L4": "L4/L5"}, "cannot become"),
        ({"L4/L5": "L4"}, "cannot become"),
        ({"L4": "L3", "44": "L5"}, "two levels, L3 and L5"),
        ([("L4", "L3"), ("L4", "L5")], "two levels, L3 and L5"),
        ({}, "no structure was given"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(assignments, told):
    before = line("L3", "L3/L4", "L4", "L4/L5", "L5")
    with pytest.raises(UsageError) as failure:
        relabel(before, assignments)
    assert told in failure.value.cause
    assert failure.value.remedy


@pytest.mark.parametrize("level, other", [("L2", "L3"), ("L2/L3", "L3/L4"), ("L1", "L2")])
def test_vertebrae_and_discs_that_disagree_are_not_moved_together(level, other):
    """L5/L6 came out above the sacrum, with no L6, where the vertebrae were named one level too high."""
    whole = segmentation(geometry(size=(56, 76, 25), spacing=(0.9, 1.25, 1.0)))
    assert (relabel(whole, {level: other}).labels != whole.labels).any()
    vertebrae = [value_of(name) for name in CHAIN]
    table = np.arange(256, dtype=np.uint8)
    table[vertebrae[1:]] = vertebrae[:-1]
    shifted = Segmentation(table[whole.labels], whole.geometry)
    with pytest.raises(UsageError, match="anatomical order") as failure:
        relabel(shifted, {level: other})
    assert "by hand" in failure.value.remedy


def set_in_slicer(path, statuses, empty=""):
    """Write by segment name what a reviewer says, and a segment without voxels."""
    content = slicerio.read_segmentation(str(path))
    content["segments"] += [{"id": "Segment_1", "name": empty, "labelValue": 99, "layer": 0}] if empty else []
    for one in content["segments"]:
        one["status"] = statuses.get(one["name"], "notstarted")
    slicerio.write_segmentation(str(path), content)


def statuses_in(path):
    return {one["name"]: one.get("status") for one in slicerio.read_segmentation(str(path))["segments"]}


def test_a_segment_without_voxels_gives_its_status_to_no_other(tmp_path):
    path = tmp_path / "x.seg.nrrd"
    write_segmentation(line("L4", "L5"), path)
    set_in_slicer(path, {"L4 vertebra": "completed", "L3 vertebra": "flagged"}, empty="L3 vertebra")
    relabel_file(path, {"L4": "L3"})
    assert statuses_in(path) == {"Spinal canal": "notstarted", "L3 vertebra": "completed", "L4 vertebra": "notstarted"}


def test_what_a_reviewer_writes_keeps_its_letters(tmp_path):
    path = tmp_path / "x.seg.nrrd"
    write_segmentation(line("L4", "L5"), path)
    tags = "Pr\u00fcfer:M\u00fcller, \u810a\u690e|Note:\0c3bc\0 \0c3\0|".encode()
    before = path.read_bytes()
    assert b"Segment1_Tags:=" in before
    path.write_bytes(before.replace(b"Segment1_Tags:=", b"Segment1_Tags:=" + tags))
    relabel_file(path, {"L4": "L3"})
    relabel_file(path, {"L3": "L4"})
    (written,) = [one for one in path.read_bytes().split(b"\n\n")[0].split(b"\n") if one.startswith(b"Segment1_Tags")]
    assert all(tag in written for tag in tags.split(b"|"))
    assert levels_of(read_segmentation(path)) == ["L4", "L5"]


def test_segments_in_a_file_of_any_ending_keep_their_status(tmp_path):
    """Slicer's export to .nrrd became a plain label map in place, without a word."""
    whole, path, other = tmp_path / "x.seg.nrrd", tmp_path / "x.nrrd", tmp_path / "other.seg.nrrd"
    write_segmentation(line("L4", "L5"), whole)
    set_in_slicer(whole, {"L4 vertebra": "completed"})
    before = whole.rename(path).read_bytes()
    with pytest.raises(UsageError, match="status, colours and tags") as failure:
        relabel_file(path, {"L4": "L3"})
    assert path.read_bytes() == before and ".seg.nrrd" in failure.value.remedy
    relabel_file(path, {"L4": "L3"}, other)
    assert statuses_in(other)["L3 vertebra"] == "completed"
    relabel_file(path, {"L4": "L3"}, tmp_path / "plain.nrrd")
    relabel_file(tmp_path / "plain.nrrd", {"L3": "L4"})


def test_segments_that_are_not_counted_from_0_keep_their_status_too(tmp_path):
    path = tmp_path / "x.seg.nrrd"
    write_segmentation(line("L4", "L5"), path)
    set_in_slicer(path, {"L4 vertebra": "completed"})
    header = path.read_bytes()
    for number in range(8, -1, -1):
        header = header.replace(b"Segment%d_" % number, b"Segment%d_" % (number + 1))
    path.write_bytes(header)
    relabel_file(path, {"L4": "L3"})
    assert statuses_in(path)["L3 vertebra"] == "completed"


def test_a_sacrum_made_of_two_parts_has_the_body_s_status(tmp_path):
    path, parts = tmp_path / "x.seg.nrrd", line("L4", "L5")
    labels = np.concatenate([parts.labels, parts.labels[:, 1:] + PARTS_OFFSET], axis=1)
    grid = replace(parts.geometry, size=(1, labels.shape[1], 1))
    write_segmentation(Segmentation(labels, grid, encodings()["parts"]), path)
    set_in_slicer(path, {"L5 vertebral body": "flagged", "L4 posterior elements": "completed"})
    relabel_file(path, {"L5": "S1"})
    said = statuses_in(path)
    assert said["Sacrum"] == "flagged" and said["L5 posterior elements"] == "completed"


@pytest.mark.parametrize("key", ["142", "L2 vertebral body", "L2 posterior elements"])
def test_a_part_may_be_named_as_its_own_table_names_it(key):
    parts = split_parts(segmentation(geometry(size=(56, 76, 25), spacing=(0.9, 1.25, 1.0))))
    assert key == "142" or key in {row.structure.name for row in parts.table()}
    np.testing.assert_array_equal(relabel(parts, {key: "L3"}).labels, relabel(parts, {"L2": "L3"}).labels)


def test_classes_are_refused():
    one = line("L4")
    with pytest.raises(UsageError):
        relabel(Segmentation(np.minimum(one.labels, 3), one.geometry, encodings()["classes"]), {"L4": "L3"})


@pytest.mark.parametrize("ending", SEGMENTATIONS)
def test_files_of_every_format(tmp_path, ending):
    path = tmp_path / f"result{ending}"
    whole = segmentation(geometry())
    write_segmentation(whole, path)
    other = tmp_path / "other.nrrd"
    returned = relabel_file(path, {"92": "L2/L3"}, other)
    np.testing.assert_array_equal(read_segmentation(path).labels, whole.labels)
    relabel_file(path, {"92": "L2/L3"})
    for written in (path, other):
        again = read_segmentation(written)
        np.testing.assert_array_equal(again.labels, returned.labels)
        assert [row.structure.level for row in again.table()][1] == "L1"
    assert np.array_equal(returned.labels == 42, whole.labels == 41)


def test_a_table_has_the_new_names_and_comes_with_the_file_or_not_at_all(tmp_path, monkeypatch):
    path, table = tmp_path / "result.nrrd", tmp_path / "result.csv"
    write_segmentation(segmentation(geometry()), path)
    before = path.read_bytes()
    with pytest.raises(UsageError):
        relabel_file(path, {"92": "L2/L3"}, table=tmp_path / "result.xlsx")
    monkeypatch.setattr("SAUNetLib.relabel.write_table", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        relabel_file(path, {"92": "L2/L3"}, table=table)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["result.nrrd"]
    monkeypatch.undo()
    returned = relabel_file(path, {"92": "L2/L3"}, table=table)
    write_table(returned, tmp_path / "expected.csv")
    assert table.read_bytes() == (tmp_path / "expected.csv").read_bytes()
    with open(table, newline="", encoding="utf-8") as file:
        assert "L2/L3" in [row["level"] for row in csv.DictReader(file)]


def test_a_refused_file_stays_as_it_is(tmp_path):
    path = tmp_path / "result.nrrd"
    write_segmentation(segmentation(geometry()), path)
    before = path.read_bytes()
    for assignments, output in (({"L4": "C1"}, None), ({"L4": "L5"}, tmp_path / "x.png")):
        with pytest.raises(UsageError):
            relabel_file(path, assignments, output)
    with pytest.raises(InputError):
        relabel_file(tmp_path / "absent.nrrd", {"L4": "L5"})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["result.nrrd"]


def test_a_cord_is_not_deleted_in_passing(tmp_path):
    whole = segmentation(geometry())
    labels = whole.labels.copy()
    labels[:, ::2][labels[:, ::2] == 2] = 1
    path, other = tmp_path / "totalspineseg.nii.gz", tmp_path / "other.nii.gz"
    sitk.WriteImage(to_sitk(labels, whole.geometry), str(path))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="spinal cord") as failure:
        relabel_file(path, {"92": "L2/L3"})
    assert path.read_bytes() == before and "--output" in failure.value.remedy
    relabel_file(path, {"92": "L2/L3"}, other)
    assert "CORD" not in [notice.code for notice in relabel_file(other, {"92": "L2/L3"}).warnings]


@pytest.mark.parametrize(
    ("upper", "lower", "disc"),
    [
        ("L4", "L5", "L4/L5"),
        ("L5", "S1", "L5/S1"),
        ("L4", "S1", "L5/S1"),
        ("L6", "S1", "L5/S1"),
        ("T12", "L1", "T12/L1"),
        ("T13", "L1", "T12/L1"),
        ("T11", "L1", "T12/L1"),
        ("T12", "T13", "T12/T13"),
        ("C1", "C2", None),
        ("L2", "L4", None),
        (None, "L1", "T12/L1"),
        ("L5", None, None),
    ],
)
def test_the_disc_between_two_vertebrae(upper, lower, disc):
    assert disc_between(upper, lower) == disc


def test_the_canal_has_its_label_value():
    assert structures()[CANAL_VALUE].kind == "canal"
    assert usual_levels()[0] == "C1" and usual_levels()[-1] == "L5" and len(usual_levels()) == 24


def test_what_is_behind_a_body_that_becomes_the_sacrum_becomes_a_part_of_it(tmp_path):
    """The sacrum has no parts: a value without a meaning, and the user's own file could not be read again."""
    parts = line("L4", "L5")
    labels = np.concatenate([parts.labels, parts.labels[:, 1:] + PARTS_OFFSET], axis=1)
    grid = replace(parts.geometry, size=(1, labels.shape[1], 1))
    before = Segmentation(labels, grid, encodings()["parts"], confidence=dict.fromkeys((44, 45, 144, 145), 0.5))
    path = tmp_path / "x.nii.gz"
    write_segmentation(before, path)
    relabel_file(path, {"L5": "S1"})
    read = read_segmentation(path)
    assert read.labels.ravel().tolist() == [2, 45, 50, 145, 50]
    after = relabel(before, {"L4": "L5"})
    assert all(row.confidence == 1.0 for row in after.table() if row.structure.value != CANAL_VALUE)
