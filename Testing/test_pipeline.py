"""The pipeline: any volume in, a segmentation on exactly its grid out, the same in physical space."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import SimpleITK as sitk
from builders import CLASS_OF, SLICES_TO_LEFT, block_spine, euler, picture, rearranged, to_classes
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import ANGLES, FLIPS, ORDERS

import SAUNetLib
from SAUNetLib.anatomy import structures, value_of
from SAUNetLib.errors import CancelledError, InputError, UsageError
from SAUNetLib.notices import About
from SAUNetLib.pipeline import segment, segment_file
from SAUNetLib.training.phantom import PhantomOptions, make_phantom
from SAUNetLib.volume import Geometry, SagittalStack, Volume


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ORDERS, FLIPS, ANGLES)
def test_permuted_flipped_and_rotated_copies_give_the_same_segmentation(tiny_engine, order, reverse, angles):
    source = picture(direction=euler(angles) @ SLICES_TO_LEFT)
    other = rearranged(source, order, reverse)
    first, second = segment(source, tiny_engine), segment(other, tiny_engine)
    assert first.geometry.same_grid(source.geometry) and second.geometry.same_grid(other.geometry)
    back = rearranged(Volume(first.labels, source.geometry), order, reverse)
    assert np.array_equal(back.voxels, second.labels)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(20, 70), st.integers(20, 70), st.floats(0.5, 2.0))
def test_the_grid_is_the_input_s_whatever_its_size(tiny_engine, slices, rows, columns, pixel):
    source = picture((slices, rows, columns), (pixel, pixel * 1.1, 4.0))
    result = segment(source, tiny_engine, levels=False)
    assert result.labels.shape == source.voxels.shape and result.labels.dtype == np.uint8
    assert result.geometry is source.geometry


def test_an_isotropic_axial_volume_is_segmented(tiny_engine):
    source = rearranged(picture((20, 40, 40), (1.5, 1.5, 1.5)), (2, 0, 1), (True, False, False))
    assert segment(source, tiny_engine, levels=False).labels.any()


def test_padding_is_not_taken_for_image(tiny_engine, monkeypatch):
    """A vertebra that ended at the border before rows of zeros were added is cut all the same.

    What the network finds in these rows gets no label.
    """
    truth = block_spine()[:, :232]
    image = np.random.default_rng(0).uniform(1, 100, truth.shape).astype(np.float32)
    results = []
    for after in ((0, 0), (40, 3)):
        add = ((0, after[1]), (0, after[0]), (0, 0))
        found = np.pad(CLASS_OF[truth], add, constant_values=3)
        geometry = Geometry(tuple(reversed(found.shape)), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
        volume = Volume(np.pad(image, add), geometry, "picture")
        monkeypatch.setattr(tiny_engine, "classes", lambda stack, report, found=found: (found, ()))
        results.append(segment(volume, tiny_engine))
    whole, padded = results
    assert np.array_equal(padded.labels[: len(truth), : truth.shape[1]], whole.labels)
    assert padded.partial == whole.partial != frozenset() and padded.warnings == whole.warnings
    assert not padded.labels[len(truth) :].any() and not padded.labels[:, truth.shape[1] :].any()


@pytest.mark.parametrize(
    ("value", "below", "cleared"),
    [(0.0, 0.0, True), (-1.0, -3.0, True), (200.0, 0.0, False)],
    ids=["least", "undershot", "brightest"],
)
def test_nothing_is_found_in_the_padding_of_a_turned_volume(tiny_engine, monkeypatch, value, below, cleared):
    """Its wedges are no whole rows and columns. Of the same value are a hole in the canal and, in another one, fat."""
    truth = block_spine()
    image = np.random.default_rng(0).uniform(1, 100, truth.shape).astype(np.float32)
    image[:, 90:190, 58:63] = value
    image[0, 0, 0] = below  # as interpolation leaves it beside a sharp edge
    wedge = np.arange(truth.shape[2]) >= 40 + 6 * np.arange(len(truth))[:, None, None] + 0 * truth
    geometry = Geometry(tuple(reversed(truth.shape)), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)

    def found(classes, voxels):
        monkeypatch.setattr(tiny_engine, "classes", lambda stack, report: (classes.copy(), ()))
        return segment(Volume(voxels, geometry, "picture"), tiny_engine)

    classes = CLASS_OF[truth]
    turned = found(classes, np.where(wedge, np.float32(value), image))
    assert np.array_equal(turned.labels, found(np.where(wedge & cleared, 0, classes), image).labels)
    lost_ml = 4 * np.count_nonzero(classes[wedge]) / 1000
    said = f"{lost_ml:.1f} ml of the structures found lie where the file holds padding"
    assert any(one.text.startswith(said) for one in turned.warnings if one.code == "OUTSIDE_IMAGE") == cleared
    beside = set(np.unique(turned.labels[np.roll(wedge, -1, axis=2) & ~wedge])) - {0}
    assert beside and (beside <= turned.partial) == cleared, "what the padding cuts is cut"


def test_discs_that_a_window_makes_one_with_the_dark_in_front_are_no_padding(tiny_engine, monkeypatch):
    truth = block_spine()
    image = np.random.default_rng(0).uniform(1, 100, truth.shape).astype(np.float32)
    dark = np.maximum.accumulate((truth > 50)[..., ::-1], axis=2)[..., ::-1]  # each disc and all in front of it
    dark[..., :15] = True  # the front has few specks and a thin line
    dark[:, ::40, 3] = dark[:, :, 8] = False
    geometry = Geometry(tuple(reversed(truth.shape)), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
    monkeypatch.setattr(tiny_engine, "classes", lambda stack, report: (CLASS_OF[truth], ()))
    whole, windowed = (segment(Volume(voxels, geometry), tiny_engine) for voxels in (image, np.where(dark, 0, image)))
    assert np.array_equal(windowed.labels, whole.labels)
    assert windowed.partial == whole.partial and windowed.warnings == whole.warnings


def test_classes_or_levels(tiny_engine):
    three = segment(picture(), tiny_engine, levels=False)
    assert three.encoding.name == "classes" and set(np.unique(three.labels)) <= {0, 1, 2, 3}
    assert not any(notice.is_about(About.LEVELS) for notice in three.warnings), "there is nothing to name"
    named = segment(picture(), tiny_engine)
    assert named.encoding.name == "levels" and set(np.unique(named.labels)) - {0} <= structures().keys()
    assert np.array_equal(to_classes(named.labels), three.labels)


@pytest.mark.parametrize("pixel", [1.0, 1.7])
def test_three_classes_tell_of_sizes_but_ask_for_no_check_of_names(tiny_engine, monkeypatch, pixel):
    truth = block_spine()
    truth[truth == value_of("L3/L4")] = 0
    image = np.random.default_rng(0).uniform(1, 100, truth.shape).astype(np.float32)
    grid = Geometry(tuple(reversed(truth.shape)), (pixel, pixel, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
    monkeypatch.setattr(tiny_engine, "classes", lambda stack, report: (CLASS_OF[truth], ()))
    three, named = (segment(Volume(image, grid), tiny_engine, levels=levels).warnings for levels in (False, True))
    assert "DISC_MISSING" in [notice.code for notice in named]
    assert [notice.code for notice in three] == (["SIZES_UNUSUAL"] if pixel > 1 else [])
    assert not any("the level" in notice.text for notice in three)


@pytest.mark.parametrize("spines", [1, 4])
def test_three_classes_say_how_much_got_no_label(tiny_engine, monkeypatch, spines):
    """Where there are more vertebrae than a spine has, the names end before them."""
    truth = block_spine()
    truth = truth[:, (truth > 2).any(axis=(0, 2))]
    truth = np.pad(np.tile(truth, (1, spines, 1)), ((0, 0), (10, 10), (0, 0)))
    image = np.random.default_rng(0).uniform(1, 100, truth.shape).astype(np.float32)
    grid = Geometry(tuple(reversed(truth.shape)), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), SLICES_TO_LEFT)
    monkeypatch.setattr(tiny_engine, "classes", lambda stack, report: (CLASS_OF[truth], ()))
    result = segment(Volume(image, grid), tiny_engine, levels=False)
    told = [notice.text for notice in result.warnings if notice.code == "LEFT_OUT"]
    lost = np.count_nonzero((truth > 2) & (result.labels == 0)) * grid.voxel_volume / 1000
    assert [float(text.split()[0]) for text in told] == ([pytest.approx(lost, rel=0.01)] if spines > 1 else [])
    assert not any(notice.code == "LEFT_OUT" for notice in segment(Volume(image, grid), tiny_engine).warnings)


def test_slices_that_show_nothing_are_told(tiny_engine):
    volume = picture()
    axis = SagittalStack.of(volume).axes[0]
    hole = [slice(None)] * 3
    hole[axis] = 2
    empty = volume.voxels.copy()
    empty[tuple(hole)] = 0
    notices = {one.code: one.text for one in segment(replace(volume, voxels=empty), tiny_engine).warnings}
    assert notices["EMPTY_SLICES"].startswith("1 of 4 slices show nothing")
    padded = np.pad(volume.voxels, [(2, 2) if n == axis else (0, 0) for n in range(3)])
    size = tuple(reversed(padded.shape))
    wider = Volume(padded, replace(volume.geometry, size=size))
    told = [one.code for one in segment(wider, tiny_engine).warnings]
    assert "EMPTY_SLICES" not in told, "at the borders it is padding"
    assert "EMPTY_SLICES" not in [one.code for one in segment(volume, tiny_engine).warnings]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((0, 0, 32, 0), "1 of 4 slices show nothing in their lower part"),
        ((0, 0, 0, 9), "1 of 4 slices show nothing in their lower part"),
        ((0, 64, 40, 0), "1 of 4 slices show nothing; 1 of 4 slices show nothing in their lower part"),
        ((0, 0, 7, 0), ""),  # little
        ((0, 20, 24, 0), "2 of 4 slices show nothing in their lower part"),
        ((0, 0, 20, 24), ""),  # as in air
        ((30, 30, 30, 30), ""),
    ],
)
def test_slices_that_were_copied_in_part_are_told(tiny_engine, rows, said):
    volume = picture()
    stack = SagittalStack.of(volume)
    slices = stack.slices.copy()
    for pixels, count in zip(slices, rows, strict=True):
        pixels[len(pixels) - count :] = 0
    cut = replace(volume, voxels=stack.restore(slices))
    assert SagittalStack.of(cut).slices.shape == (4, 64, 48)
    notices = {one.code: one.text for one in segment(cut, tiny_engine).warnings}
    assert notices.get("EMPTY_SLICES", "").startswith(said) and ("EMPTY_SLICES" in notices) == bool(said)


@pytest.mark.parametrize(("spacing", "told"), [(6.0, False), (6.2, True), (14.0, True)])
def test_slices_farther_apart_than_any_that_were_tested_are_told(tiny_engine, spacing, told):
    volume = picture()
    steps = [*volume.geometry.spacing]
    steps[2 - SagittalStack.of(volume).axes[0]] = spacing  # i, j, k; the axes of voxels are k, j, i
    wide = replace(volume, geometry=replace(volume.geometry, spacing=tuple(steps)))
    assert SagittalStack.of(wide).slice_spacing == spacing
    notices = {one.code: one.text for one in segment(wide, tiny_engine).warnings}
    assert ("SLICES_FAR_APART" in notices) == told
    if told:
        assert notices["SLICES_FAR_APART"].startswith(
            f"Slices are {spacing:g} mm apart; SAUNet was tested with up to 6 mm"
        )


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("as they lie", None),
        ("noise beside", None),
        ("backwards", None),
        ("left as right", None),
        ("one moved", None),
        ("even, then odd", "SLICES_ORDER"),
        ("by chance", "SLICES_ORDER"),
        ("by file name", "SLICES_ORDER"),
        ("by file name, backwards", "SLICES_ORDER"),
        ("odd ones moved", "SLICES_MOVED"),
    ],
)
def test_slices_out_of_their_order_are_told(tiny_engine, order, said):
    """As conversions from files named 1, 10, 11, 2, ... leave them; no header says so."""
    volume = make_phantom(PhantomOptions(seed=2, pixel=1.5, slices=19)).volume
    stack = SagittalStack.of(volume)
    count = len(stack.slices)
    by_name = np.array(sorted(range(1, count + 1), key=str)) - 1
    places = {
        "backwards": np.arange(count)[::-1],
        "even, then odd": np.r_[0:count:2, 1:count:2],
        "by chance": np.random.default_rng(0).permutation(count),
        "by file name": by_name,
        "by file name, backwards": by_name[::-1],
    }.get(order, np.arange(count))
    slices = np.array(stack.slices[places])
    if order == "noise beside":
        for seed, beside in enumerate((slices[:5], slices[-5:])):
            beside[:] = np.random.default_rng(seed).integers(0, 40, beside.shape)
    elif order == "left as right":
        slices = (slices + slices[::-1]) // 2
    elif order == "one moved":
        slices[9] = np.roll(slices[9], 10, axis=1)
    elif order == "odd ones moved":
        slices[1::2] = np.roll(slices[1::2], 3, axis=2)  # 4.5 mm
    voxels = stack.restore(slices)
    told = [notice.code for notice in segment(replace(volume, voxels=voxels), tiny_engine).warnings]
    assert [code for code in told if code.startswith("SLICES_")] == ([said] if said else [])


@pytest.mark.parametrize("value", [-1000, -2000])
def test_padding_is_no_air_of_a_ct(tiny_engine, value):
    volume = picture()
    wide = [(0, 0) if axis == SagittalStack.of(volume).axes[0] else (40, 40) for axis in range(3)]
    padded = np.pad((1000 * (volume.voxels - volume.voxels.min())).astype(np.int16), wide, constant_values=value)
    larger = Volume(padded, replace(volume.geometry, size=tuple(reversed(padded.shape))))
    assert segment(larger, tiny_engine).labels.shape == padded.shape


def test_the_result_says_where_it_comes_from(tiny_engine):
    said = segment(picture(), tiny_engine, lowest="L4").provenance
    assert said["model"] == "tiny 1" and said["model_sha256"] == tiny_engine.model.card.sha256
    assert "SAUNet" in said["software"] and "L4" in said["options"] and said["device"] == "cpu float32"
    assert "auto" in segment(picture(), tiny_engine).provenance["options"]


def test_levels_have_a_confidence(tiny_engine):
    named = segment(picture(), tiny_engine)
    assert named.confidence.keys() == {row.structure.value for row in named.table() if row.structure.level}
    assert all(0 < one <= 1 for one in named.confidence.values())
    assert not segment(picture(), tiny_engine, levels=False).confidence


def test_stages_are_told_in_order(tiny_engine, tmp_path):
    told = []
    sitk.WriteImage(picture().to_sitk(), str(tmp_path / "a.nrrd"))
    segment_file(
        tmp_path / "a.nrrd",
        tmp_path / "b.nii.gz",
        tiny_engine,
        report=lambda stage, fraction: told.append((stage, fraction)),
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["read", "prepare", "segment", "levels", "write"]
    assert all(0 <= fraction <= 1 for _, fraction in told)


@pytest.mark.parametrize("at", range(12))
def test_cancelling_at_every_report_leaves_nothing(tiny_engine, tmp_path, at):
    source = tmp_path / "a.nrrd"
    sitk.WriteImage(picture().to_sitk(), str(source))
    count = 0

    def report(stage: str, fraction: float) -> None:
        nonlocal count
        if count == at:
            raise CancelledError
        count += 1

    with pytest.raises(CancelledError):
        segment_file(source, tmp_path / "b.nrrd", tiny_engine, table=tmp_path / "b.csv", report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nrrd"]
    count = -12  # there are no more than these twelve
    segment_file(source, tmp_path / "b.nrrd", tiny_engine, table=tmp_path / "b.csv", report=report)
    assert count == 0


def test_the_input_is_not_changed(tiny_engine, tmp_path):
    source = tmp_path / "a.nii.gz"
    sitk.WriteImage(picture().to_sitk(), str(source))
    before = hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns
    segment_file(source, tmp_path / "b.nii.gz", tiny_engine)
    assert (hashlib.sha256(source.read_bytes()).hexdigest(), source.stat().st_mtime_ns) == before


def test_the_image_is_not_overwritten_by_its_result(tiny_engine, tmp_path):
    source = tmp_path / "a.nii.gz"
    sitk.WriteImage(picture().to_sitk(), str(source))
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for output in (source, tmp_path / "link" / "a.nii.gz"):
        with pytest.raises(UsageError) as caught:
            segment_file(source, output, tiny_engine)
        assert caught.value.code == "OUTPUT_WRITE"
    assert source.read_bytes() == before


def test_the_voxels_given_are_not_changed(tiny_engine):
    source = picture()
    before = source.voxels.copy()
    segment(source, tiny_engine)
    assert np.array_equal(source.voxels, before)


def test_bad_input_is_refused_before_the_network_runs(tiny_engine):
    source = picture()
    source.voxels[0, 0, 0] = np.nan
    with pytest.raises(InputError) as caught:
        segment(source, tiny_engine, report=lambda stage, _: pytest.fail("ran") if stage == "segment" else None)
    assert caught.value.code == "INPUT_VALUES"


@pytest.mark.parametrize(
    ("output", "code"), [("b.xyz", "OUTPUT_FORMAT"), ("no/../a.nrrd/b.nrrd", "OUTPUT_WRITE"), (".", "OUTPUT_FORMAT")]
)
def test_an_impossible_output_is_refused_before_the_work(tiny_engine, tmp_path, output, code):
    sitk.WriteImage(picture().to_sitk(), str(tmp_path / "a.nrrd"))
    with pytest.raises(UsageError) as caught:
        segment_file(
            tmp_path / "a.nrrd", tmp_path / output, tiny_engine, report=lambda *_: pytest.fail("work was begun")
        )
    assert caught.value.code == code


def test_memory_does_not_grow_with_the_slices(tiny_engine):
    """Beside input and result, a stack of 48 slices takes no more than one of 6."""
    import tracemalloc

    peaks = []
    for slices in (6, 48):
        source = picture((slices, 64, 48))
        tracemalloc.start()
        segment(source, tiny_engine, levels=False)
        peaks.append(tracemalloc.get_traced_memory()[1] / source.voxels.size)
        tracemalloc.stop()
    # Bytes per voxel: constant parts make the small one larger; a float map per class would add 16 to both.
    assert peaks[1] <= peaks[0]


def test_public_names_are_found():
    for name in SAUNetLib.__all__:
        assert getattr(SAUNetLib, name).__name__ == name
        assert find_spec(f"SAUNetLib.{name}") is None, "once imported, a module would take the name's place"
    assert set(SAUNetLib.__all__) <= set(dir(SAUNetLib)) and SAUNetLib.segment is segment
    with pytest.raises(AttributeError, match="module 'SAUNetLib' has no attribute 'segments'"):
        _ = SAUNetLib.segments


def test_the_library_loads_nothing_heavy_until_it_is_used():
    """The panel imports it at Slicer's start."""
    code = (
        "import sys, SAUNetLib\n"
        "print(dir(SAUNetLib) and [name for name in ('torch', 'SimpleITK', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout == "[]\n", done.stderr
