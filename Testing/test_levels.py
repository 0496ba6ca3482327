"""Levels: instances and names on block spines of known truth, on damaged ones, and on SPIDER's label maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from SAUNetLib.anatomy import CANAL, DISC, VERTEBRA, structures, value_of, vertebra_levels
from SAUNetLib.errors import UsageError
from SAUNetLib.levels import Levels, name_structures
from SAUNetLib.volume import Geometry, SagittalStack, Volume

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
LUMBAR = ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]
DISCS = ["T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
BODY, GAP = 26.0, 8.0  # mm


def block_spine(
    spacing: tuple[float, float, float] = (4.0, 1.0, 1.0),
    lordosis: float = 0.25,
    top: float = 12.0,
    bottom: float = 30.0,
) -> np.ndarray:
    """Label values (S, H, W) of T11 to L5 with their discs: bodies, pedicles, facets that touch, spinous processes.

    `lordosis` is how far the column leans back per mm downwards below its middle and forwards above it; `top` and
    `bottom` are mm of background above and below.
    """
    height = top + len(LUMBAR) * (BODY + GAP) + bottom
    size = [max(1, round(length / step)) for length, step in zip((56.0, height, 120.0), spacing, strict=True)]
    side, row, column = np.meshgrid(
        *((np.arange(n) + 0.5) * d for n, d in zip(size, spacing, strict=True)), indexing="ij"
    )
    side = np.abs(side - 28.0) if size[0] > 1 else np.zeros_like(side)
    lean = lordosis * ((row - top) / 238.0 - 0.5)  # slope of the column
    back = column - 50.0 - lordosis * 119.0 * ((row - top) / 238.0 - 0.5) ** 2
    down = row - lean * back - top  # place along the column
    labels = np.zeros(side.shape, np.uint8)
    labels[(np.hypot(back - 8, side) < 7) & (row > 2)] = 2
    for n, (vertebra, disc) in enumerate(zip(LUMBAR, DISCS, strict=True)):
        start = n * (BODY + GAP)
        within = (down > start) & (down < start + BODY)
        body = within & (back > -32) & (back < 0) & (side < 22)
        pedicle = (down > start + 3) & (down < start + 14) & (back >= 0) & (back < 14) & (side > 9) & (side < 17)
        lamina = (down > start + 6) & (down < start + 28) & (back > 15) & (back < 22) & (side < 17)
        joint = (down > start - 4) & (down < start + 8) & (back > 8) & (back < 15) & (side > 9) & (side < 17)
        process = (down > start + 12) & (down < start + 32) & (back >= 22) & (back < 46) & (side < 4)
        labels[body | pedicle | lamina | joint | process] = value_of(vertebra)
        between = (down > start + BODY + 1) & (down < start + BODY + GAP - 1)
        labels[between & (back > -32) & (back < 0) & (side < 20)] = value_of(disc)
    return labels


def class_map() -> np.ndarray:
    kinds = {"vertebra": VERTEBRA, "disc": DISC, "canal": CANAL, "sacrum": VERTEBRA}
    table = np.zeros(256, np.uint8)
    for value, structure in structures().items():
        table[value] = kinds[structure.kind]
    return table


CLASS_OF = class_map()


def stack_of(slices: np.ndarray, spacing: tuple[float, float, float] = (4.0, 1.0, 1.0)) -> SagittalStack:
    return SagittalStack(slices, spacing[0], spacing[1:], (0, 1, 2), (False, False, False))


def named(truth: np.ndarray, spacing: tuple[float, float, float] = (4.0, 1.0, 1.0), lowest: str = "L5") -> Levels:
    return name_structures(stack_of(CLASS_OF[truth], spacing), lowest)


def dice(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """By level, of every structure in the truth but the canal."""
    result = {}
    for value in np.unique(truth[truth > 2]):
        a, b = truth == value, labels == value
        result[structures()[int(value)].level] = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
    return result


def levels_in(labels: np.ndarray) -> set[str]:
    return {structures()[int(value)].level for value in np.unique(labels) if value > 2}


def codes(levels: Levels) -> list[str]:
    return [notice.code for notice in levels.notices]


def agreement(truth: np.ndarray, labels: np.ndarray, but: set[int] = frozenset()) -> float:  # type: ignore[assignment]
    """Share of voxels named in both maps that have the same name."""
    both = (truth > 2) & (labels > 2) & ~np.isin(truth, list(but))
    return float((truth[both] == labels[both]).mean())


@pytest.fixture(scope="module")
def spine() -> np.ndarray:
    return block_spine()


@pytest.mark.parametrize(
    "spacing",
    [(4.0, 1.0, 1.0), (4.4, 0.6, 0.6), (3.3, 0.5, 0.9), (1.5, 1.5, 1.5), (1.0, 1.0, 1.0), (56.0, 0.7, 0.7)],
    ids=str,
)
def test_every_structure_has_its_level(spacing: tuple[float, float, float]) -> None:
    truth = block_spine(spacing)
    result = named(truth, spacing)
    assert levels_in(result.labels) == set(LUMBAR + DISCS)
    scores = dice(truth, result.labels)
    assert min(scores.values()) > 0.9, scores
    assert np.median(list(scores.values())) > 0.95, scores
    assert ((result.labels == 2) == (truth == 2)).all()


@pytest.mark.parametrize("lordosis", [0.0, 0.5, 0.8])
def test_curved_spines(lordosis: float) -> None:
    truth = block_spine(lordosis=lordosis)
    assert min(dice(truth, named(truth).labels).values()) > 0.85


def test_a_class_never_changes(spine: np.ndarray) -> None:
    labels = named(spine).labels
    assert (CLASS_OF[labels] == CLASS_OF[spine])[labels > 0].all()
    assert ((labels == 0) & (spine > 0)).sum() * 4.0 < 60  # a speck of mm3


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    axes=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    angle=st.floats(-0.5, 0.5),
)
def test_source_grid_does_not_matter(axes: list[int], flips: tuple[bool, ...], angle: float) -> None:
    spacing = (6.0, 1.5, 1.5)
    canonical = block_spine(spacing)
    expected = named(canonical, spacing)
    # The canonical axes (left, inferior, posterior) as directions, turned a little about the left-right axis.
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    towards = turn @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    source = canonical.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    columns = [towards[:, axis] * (-1 if flip else 1) for axis, flip in zip(axes, flips, strict=True)]
    geometry = Geometry(
        tuple(reversed(source.shape)), tuple(spacing[axis] for axis in reversed(axes)), (5.0, -3.0, 2.0),
        np.stack(columns[::-1], axis=1),
    )  # fmt: skip
    stack = SagittalStack.of(Volume(CLASS_OF[source], geometry))
    result = name_structures(stack)
    assert (result.labels == expected.labels).all()
    assert result.partial == expected.partial
    back = stack.restore(result.labels)
    assert (CLASS_OF[back] == CLASS_OF[source]).all()


def test_same_input_same_output(spine: np.ndarray) -> None:
    before = CLASS_OF[spine]
    first, second = named(spine), named(spine)
    assert (first.labels == second.labels).all() and first.notices == second.notices
    assert (before == CLASS_OF[spine]).all()


def test_border_rows_of_background_do_not_matter(spine: np.ndarray) -> None:
    padded = np.pad(spine, ((1, 2), (30, 17), (9, 40)))
    assert (named(padded).labels[1:-2, 30:-17, 9:-40] == named(spine).labels).all()


@pytest.mark.parametrize("gone", DISCS[:-1])
@pytest.mark.parametrize("fused", [False, True])
def test_a_missing_disc_swallows_no_level(spine: np.ndarray, gone: str, fused: bool) -> None:
    damaged = CLASS_OF[spine]
    damaged[spine == value_of(gone)] = VERTEBRA if fused else 0
    result = name_structures(stack_of(damaged))
    assert levels_in(result.labels) == set(LUMBAR + DISCS) - {gone}
    assert agreement(spine, result.labels, {value_of(gone)}) > 0.97
    assert "DISC_MISSING" in codes(result)


def test_two_neighbouring_discs_missing(spine: np.ndarray) -> None:
    damaged = np.where(np.isin(spine, [value_of("L2/L3"), value_of("L3/L4")]), 0, spine)
    assert agreement(spine, named(damaged).labels) > 0.97


def test_no_discs_at_all(spine: np.ndarray) -> None:
    damaged = np.where(CLASS_OF[spine] == DISC, 0, spine)
    result = named(damaged)
    assert levels_in(result.labels) == set(LUMBAR)
    assert agreement(spine, result.labels) > 0.95


@pytest.mark.parametrize("kept", [{VERTEBRA, DISC}, {VERTEBRA}, {DISC}, {DISC, CANAL}], ids=str)
def test_classes_may_be_missing(spine: np.ndarray, kept: set[int]) -> None:
    damaged = np.where(np.isin(CLASS_OF[spine], list(kept)), spine, 0)
    result = named(damaged)
    assert levels_in(result.labels) == levels_in(damaged)
    assert agreement(spine, result.labels) > 0.9


def test_a_missing_vertebra_shifts_no_level(spine: np.ndarray) -> None:
    for gone in (["L3"], ["L3", "L3/L4"], ["L3", "L2/L3", "L3/L4"]):
        damaged = np.where(np.isin(spine, [value_of(level) for level in gone]), 0, spine)
        assert agreement(spine, named(damaged).labels) > 0.97, gone


def test_a_gap_in_a_vertebra_makes_no_level(spine: np.ndarray) -> None:
    damaged = spine.copy()
    rows = np.flatnonzero((spine == value_of("L2")).any(axis=(0, 2)))
    middle = int(rows.mean()) - 3
    damaged[:, middle : middle + 5, :52][CLASS_OF[damaged[:, middle : middle + 5, :52]] == VERTEBRA] = 0
    assert agreement(spine, named(damaged).labels) > 0.97


@pytest.mark.parametrize("detached", [False, True])
def test_discs_joined_by_a_bridge(spine: np.ndarray, detached: bool) -> None:
    damaged = CLASS_OF[spine]
    rows = np.flatnonzero(np.isin(spine, [value_of("L2/L3"), value_of("L3/L4")]).any(axis=(0, 2)))
    strip = damaged[5:9, rows[0] : rows[-1], 30:34]
    strip[(strip == VERTEBRA) | (not detached)] = DISC
    result = name_structures(stack_of(damaged))
    assert levels_in(result.labels) == set(LUMBAR + DISCS)
    unchanged = damaged == CLASS_OF[spine]
    assert agreement(np.where(unchanged, spine, 0), result.labels) > 0.97


def test_a_disc_in_two_pieces_is_one(spine: np.ndarray) -> None:
    damaged = spine.copy()
    damaged[:, :, 33:36][damaged[:, :, 33:36] == value_of("L3/L4")] = 0
    assert agreement(spine, named(damaged).labels) > 0.97


def test_stacked_pieces_of_one_disc_make_no_level(spine: np.ndarray) -> None:
    damaged = spine.copy()
    rows = np.flatnonzero((spine == value_of("L3/L4")).any(axis=(0, 2)))
    middle = int(rows.mean())
    front, behind = damaged[:, middle : rows[-1] + 1, :33], damaged[:, rows[0] : middle, 33:]
    front[front == value_of("L3/L4")] = 0
    behind[behind == value_of("L3/L4")] = 0
    assert agreement(spine, named(damaged).labels) > 0.97


def test_specks_are_removed(spine: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    damaged = CLASS_OF[spine]
    for _ in range(40):
        s, y, x = (int(rng.integers(0, n - 3)) for n in spine.shape)
        if not damaged[s, y - 1 : y + 4, x - 1 : x + 4].any():
            damaged[s, y : y + 3, x : x + 3] = rng.integers(1, 4)
    result = name_structures(stack_of(damaged))
    assert agreement(spine, result.labels) > 0.97
    assert not result.labels[(damaged > 0) & (spine == 0)].any()


def test_stray_canal_and_disc_are_removed(spine: np.ndarray) -> None:
    damaged = CLASS_OF[spine]
    damaged[5:8, 100:112, 2:9] = CANAL
    damaged[6:8, 150:156, 108:116] = DISC
    result = name_structures(stack_of(damaged))
    assert not result.labels[5:8, 100:112, 2:9].any()
    assert not result.labels[6:8, 150:156, 108:116].any()
    assert agreement(spine, result.labels) > 0.97


def test_lateral_processes_without_a_body_get_a_level(spine: np.ndarray) -> None:
    posterior_only = spine.copy()
    posterior_only[:3][CLASS_OF[spine[:3]] != VERTEBRA] = 0
    posterior_only[2, :, :52] = 0  # a lateral slice without bodies
    result = named(posterior_only)
    lost = (CLASS_OF[posterior_only] == VERTEBRA) & (result.labels == 0)
    assert lost.sum() * 4.0 < 60


def test_a_piece_of_the_sacrum_is_left_out(spine: np.ndarray) -> None:
    damaged = CLASS_OF[spine]
    last = int(np.flatnonzero((spine == value_of("L5/S1")).any(axis=(0, 2)))[-1])
    sacrum = np.zeros_like(damaged, bool)
    sacrum[4:10, last + 3 : last + 11, 32:50] = True
    damaged[sacrum & (damaged == 0)] = VERTEBRA
    result = name_structures(stack_of(damaged))
    assert levels_in(result.labels) == set(LUMBAR + DISCS)
    assert agreement(spine, result.labels) > 0.97
    assert (result.labels[sacrum & (spine == 0)] == 0).mean() > 0.8


def test_a_vertebra_below_the_lowest_disc_counts() -> None:
    truth = block_spine()
    truth[truth == value_of("L5/S1")] = 0
    result = named(truth)
    assert agreement(truth, result.labels) > 0.97
    assert "LEVELS_DOUBTFUL" in codes(result)


def test_vertebrae_cut_by_the_border() -> None:
    truth = block_spine()
    row = int(
        np.flatnonzero((truth == value_of("L5")).any(axis=(0, 2)) & (truth == value_of("L4/L5")).any(axis=(0, 2)))[-1]
    )
    first = int(np.flatnonzero((truth == value_of("T11")).any(axis=(0, 2)))[0])
    cropped = np.ascontiguousarray(truth[:, first + 12 : row + 9])
    result = named(cropped, lowest="L4")
    assert agreement(cropped, result.labels) > 0.97
    assert {value_of("T11"), value_of("L5")} <= result.partial
    assert not result.partial & {value_of("L2"), value_of("L2/L3"), value_of("L4")}
    assert "LEVELS_DOUBTFUL" in codes(named(cropped))


def test_partial_in_the_outermost_slices(spine: np.ndarray) -> None:
    whole, half = named(spine), named(np.ascontiguousarray(spine[7:]))
    assert value_of("L3") not in whole.partial
    assert {value_of("L3"), value_of("L3/L4"), 2} <= half.partial


@pytest.mark.parametrize(
    ("lowest", "expected"),
    [
        ("L4", ["T10", "T11", "T12", "L1", "L2", "L3", "L4"]),
        ("L6", ["T12", "L1", "L2", "L3", "L4", "L5", "L6"]),
        ("t12", ["T6", "T7", "T8", "T9", "T10", "T11", "T12"]),
        ("T13", ["T7", "T8", "T9", "T10", "T11", "T12", "T13"]),
        ("T3", ["C4", "C5", "C6", "C7", "T1", "T2", "T3"]),
    ],
)
def test_counting_starts_at_lowest(spine: np.ndarray, lowest: str, expected: list[str]) -> None:
    result = named(spine, lowest=lowest)
    order = [level for level in vertebra_levels() if level in levels_in(result.labels)]
    assert order == expected
    base = named(spine).labels
    for old, new in zip(LUMBAR, expected, strict=True):
        assert ((base == value_of(old)) == (result.labels == value_of(new))).all()
    assert "TOO_MANY_VERTEBRAE" not in codes(result)


def test_nothing_above_c1(spine: np.ndarray) -> None:
    result = named(spine, lowest="C4")
    assert levels_in(result.labels) == {"C1", "C2", "C3", "C4", "C2/C3", "C3/C4", "C4/C5"}
    assert "TOO_MANY_VERTEBRAE" in codes(result)


@pytest.mark.parametrize("lowest", ["", "S1", "L7", "L4/L5", "five"])
def test_a_level_that_is_none_is_refused(spine: np.ndarray, lowest: str) -> None:
    with pytest.raises(UsageError) as refused:
        named(spine, lowest=lowest)
    assert refused.value.code == "USAGE" and "L5" in refused.value.remedy


def test_assumption_is_told(spine: np.ndarray) -> None:
    result = named(spine)
    assert codes(result) == ["LEVELS_ASSUMED"]
    assert "L5" in result.notices[0].text and "sacrum" in result.notices[0].text


def test_a_rudimentary_lowest_disc_is_suspect(spine: np.ndarray) -> None:
    damaged = spine.copy()
    value = value_of("L5/S1")
    column = np.flatnonzero((damaged == value).any(axis=(0, 1)))
    damaged[:, :, : column[len(column) // 2]][damaged[:, :, : column[len(column) // 2]] == value] = 0
    damaged[:5][damaged[:5] == value] = 0
    damaged[9:][damaged[9:] == value] = 0
    assert "TRANSITIONAL" in codes(named(damaged))


def test_nothing_or_nearly_nothing() -> None:
    empty = name_structures(stack_of(np.zeros((5, 40, 40), np.uint8)))
    assert codes(empty) == ["NOTHING_FOUND"] and not empty.labels.any() and not empty.partial
    canal = np.zeros((5, 80, 40), np.uint8)
    canal[1:4, 5:75, 20:30] = CANAL
    only = name_structures(stack_of(canal))
    assert codes(only) == ["FEW_STRUCTURES"] and ((only.labels == 2) == (canal == CANAL)).all()
    voxel = np.zeros((1, 3, 3), np.uint8)
    voxel[0, 1, 1] = DISC
    assert name_structures(stack_of(voxel)).labels.shape == voxel.shape


def test_one_vertebra_alone() -> None:
    classes = np.zeros((9, 60, 60), np.uint8)
    classes[2:7, 15:40, 10:42] = VERTEBRA
    result = name_structures(stack_of(classes))
    assert (result.labels[classes == VERTEBRA] == value_of("L5")).all()
    assert "FEW_STRUCTURES" in codes(result)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=arrays(
        np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6)), elements=st.integers(0, 3)
    ),
    spacing=st.tuples(st.floats(0.9, 5.0), st.floats(0.3, 1.5), st.floats(0.3, 1.5)),
    lowest=st.sampled_from(vertebra_levels()),
)
def test_any_classes_are_survived(blocks: np.ndarray, spacing: tuple[float, float, float], lowest: str) -> None:
    classes = np.ascontiguousarray(blocks.repeat(12, axis=1).repeat(12, axis=2))
    result = name_structures(stack_of(classes, spacing), lowest)
    kept = result.labels > 0
    assert result.labels.dtype == np.uint8 and result.labels.shape == classes.shape
    assert (CLASS_OF[result.labels][kept] == classes[kept]).all()
    assert result.partial <= set(np.unique(result.labels).tolist()) - {0}


SPIDER = {"005": LUMBAR, "127": ["T10", *LUMBAR], "162": ["T10", *LUMBAR], "241": ["T9", "T10", *LUMBAR]}


@pytest.fixture(params=SPIDER)
def patient(request: pytest.FixtureRequest) -> tuple[str, SagittalStack]:
    path = DATA / "spider_t2space" / f"{request.param}_labels.nii.gz"
    if not path.is_file():
        pytest.skip("shared/data/spider_t2space is not here")
    return request.param, SagittalStack.of(Volume.from_sitk(sitk.ReadImage(str(path))))


def test_real_label_maps(patient: tuple[str, SagittalStack]) -> None:
    name, stack = patient
    result = name_structures(stack)
    vertebrae = {level for level in levels_in(result.labels) if "/" not in level}
    assert vertebrae == set(SPIDER[name])
    discs = {level for level in levels_in(result.labels) if "/" in level}
    assert len(discs) == {"005": 7, "127": 8, "162": 9, "241": 9}[name]
    thick = stack.slices[: len(stack.slices) // 4 * 4]
    votes = [(thick == n).reshape(-1, 4, *thick.shape[1:]).mean(axis=1) for n in range(4)]
    averaged = replace(stack, slices=np.argmax(votes, axis=0).astype(np.uint8), slice_spacing=4 * stack.slice_spacing)
    assert agreement(result.labels[2 : len(thick) : 4], name_structures(averaged).labels) > 0.97


def test_real_instances() -> None:
    """A T2w crop whose vertebrae were told apart by others: 5 to 7 from above, 100 + n the disc below n."""
    folder = DATA / "real_volumes"
    paths = [folder / f"sub-mri_seg-{kind}_label-6_msk.nii.gz" for kind in ("vert", "subreg")]
    if not all(path.is_file() for path in paths):
        pytest.skip("shared/data/real_volumes is not here")
    stacks = [SagittalStack.of(Volume.from_sitk(sitk.ReadImage(str(path)))) for path in paths]
    truth, parts = (np.asarray(stack.slices) for stack in stacks)
    classes = np.zeros(truth.shape, np.uint8)
    classes[((truth > 0) & (truth < 100)) | (truth >= 200)] = VERTEBRA
    classes[(truth >= 100) & (truth < 200)] = DISC
    classes[(parts == 60) | (parts == 61)] = CANAL
    labels = name_structures(stacks[0].with_slices(classes), "L3").labels
    expected = np.zeros_like(labels)
    for number, level in ((5, "L2"), (6, "L3"), (7, "L4"), (105, "L2/L3"), (106, "L3/L4")):
        expected[truth == number] = value_of(level)
    scores = dice(expected, np.where(truth < 200, labels, 0))
    assert min(scores.values()) > 0.95, scores
