"""Measures: on phantoms of known anatomy, in every orientation, and where something is missing."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from builders import SLICES_TO_LEFT, axis_orders, block_spine, geometry, labels_at, rotation, segmentation, volume
from builders import points as builders_points
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from SAUNetLib.anatomy import encodings, place_of, structures, value_of
from SAUNetLib.errors import InputError, OutOfMemoryError, UsageError
from SAUNetLib.evaluation.phantom_measures import _line, errors, turned
from SAUNetLib.measurements import (
    DISCLAIMER,
    FLAGS,
    QUANTITIES,
    Measure,
    Measurements,
    measure,
    merge_parts,
    split_parts,
    write_measurements,
    write_picture,
)
from SAUNetLib.measurements.alignment import coronal_angle
from SAUNetLib.measurements.centreline import smooth
from SAUNetLib.measurements.discs import NO_SLIP_MM, _slip
from SAUNetLib.measurements.endplates import Endplate, Section
from SAUNetLib.measurements.outline import edges, outline
from SAUNetLib.measurements.picture import _cells, _curve, _draw, draw_picture
from SAUNetLib.measurements.results import Markup, StructureMeasures
from SAUNetLib.measurements.space import BACK, AnatomicalFrame
from SAUNetLib.measurements.vertebrae import HEIGHTS, body_measures, height_losses, sagittal_angle
from SAUNetLib.notices import Notice
from SAUNetLib.segmentation import Segmentation
from SAUNetLib.training.phantom import Phantom, PhantomOptions, make_phantom
from SAUNetLib.volume import Geometry, SagittalStack, Volume, to_sitk

PIXEL = 0.8
LUMBAR = ("L1", "L2", "L3", "L4", "L5")
FINE = {"size": (56, 76, 25), "spacing": (0.9, 1.25, 1.0)}
"""A grid on which the builders' small spine has enough pixels."""


def phantom(seed: int, thickness: float, slices: int, **knobs: object) -> Phantom:
    """A patient from L1 to the sacrum, small enough for a test."""
    return make_phantom(
        PhantomOptions(
            seed=seed,
            slice_thickness=thickness,
            gap=0.0,
            slices=slices,
            pixel=PIXEL,
            field_of_view=(236.0, 200.0),
            **knobs,
        )  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def thin() -> Phantom:
    """2 mm slices; a collapsed disc, a wedge fracture, a slip, a narrow canal, a scoliosis."""
    return phantom(
        3, 2.0, 25, scoliosis=12.0, lordosis=40.0, wedge={"L2": 14.0}, slip={"L4/L5": 7.0, "L3/L4": -3.0},
        disc_height_loss={"L3/L4": 0.5, "L4/L5": 0.2}, canal_diameter={"L3/L4": 6.0, "L4/L5": 9.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def thick() -> Phantom:
    """4 mm slices, another patient."""
    return phantom(
        8, 4.0, 11, lordosis=62.0, wedge={"L4": 8.0}, slip={"L4/L5": -4.0}, disc_height_loss={"L2/L3": 0.35},
        canal_diameter={"L2/L3": 8.0},
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured(thin: Phantom, thick: Phantom) -> list[tuple[Phantom, Measurements]]:
    return [(one, measure(Segmentation(one.labels, one.volume.geometry))) for one in (thin, thick)]


def check_errors(found: dict[str, list[float]], least: int) -> None:
    """Median within a pixel or two degrees, from at least so many structures."""
    for name, values in found.items():
        limit = 2.0 if name.endswith("deg") else PIXEL
        assert len(values) >= least, name
        assert np.median(np.abs(values)) <= limit, (name, values)


def figures(found: Measurements) -> dict[tuple[str, str], float]:
    return {
        (row.level, name): one.value
        for row in found.rows
        for name, one in row.measures.items()
        if one.value is not None
    }


# --- known anatomy ----------------------------------------------------------------------------------


def test_phantoms_are_measured_to_a_pixel_and_two_degrees(measured):
    together: dict[str, list[float]] = {}
    for one, found in measured:
        for name, error in errors(one, found):
            together.setdefault(name, []).append(error)
    for name in ("lordosis_deg", "coronal_angle_deg"):  # one of a patient, see the next test
        del together[name]
    assert len(together) == 11
    check_errors(together, least=8)


def test_bias_is_the_mean_of_signed_errors():
    assert _line("slip_mm", [-0.1, 0.2, 2.0]).split() == ["slip_mm", "3", "0.20", "+0.70", "1.64"]


def test_curves_of_the_spine(measured):
    for one, found in measured:
        assert found.value("L1-S1", "lordosis_deg") == pytest.approx(one.truth.lordosis, abs=3.0)
    ((level, coronal),) = coronal_angles(measured[0][1])
    assert coronal.value == pytest.approx(12.0, abs=5.0)
    assert level == "T12-L4"  # this curve's end vertebrae; the column reaches to S1


@pytest.mark.parametrize(("degrees", "axis"), [(15, (0, 0, 1)), (12, (0, 1, 0)), (20, (1, 0, 0)), (-14, (1, 1, 1))])
def test_turning_the_slices_brings_no_bias(thin, measured, degrees, axis):
    oblique = measure(turned(thin, degrees, axis))
    straight = figures(measured[0][1])
    off: dict[str, list[float]] = {}
    for (level, name), value in figures(oblique).items():
        if level.split("/")[0] in LUMBAR and (level, name) in straight and name.endswith(("_mm", "_deg")):
            off.setdefault(name, []).append(value - straight[level, name])
    assert len(off) >= 8
    for name, values in off.items():
        assert abs(np.median(values)) <= (2.0 if name.endswith("deg") else PIXEL), (name, values)


def test_diseases_are_seen(thin, measured):
    found = measured[0][1]
    wedged = found.row("L2").measures
    assert wedged["wedge_ratio"].value < 0.85
    assert wedged["genant_grade"].value >= 1
    assert found.row("L4").measures["genant_grade"].value == 0
    assert found.row("L4/L5").measures["meyerding_grade"].value == 1
    assert found.value("L4/L5", "slip_mm") > 5 > 0 > found.value("L3/L4", "slip_mm")
    assert found.value("L3/L4", "canal_ap_mm") == pytest.approx(6.0, abs=PIXEL)
    index = {level: found.value(level, "disc_height_index") for level in ("L2/L3", "L3/L4")}
    assert index["L3/L4"] < 0.75 * index["L2/L3"]


def test_volumes_are_voxels_times_their_size(thin, measured):
    grid = thin.volume.geometry
    expected = np.count_nonzero(thin.labels == value_of("L3")) * grid.voxel_volume
    assert measured[0][1].value("L3", "volume_mm3") == pytest.approx(expected)


def test_without_a_sacrum_its_endplate_is_estimated_and_said_so(thick, measured):
    labels = np.where(thick.labels == value_of("S1"), 0, thick.labels).astype(np.uint8)
    found = measure(Segmentation(labels, thick.volume.geometry))
    lowest = found.row("L5/S1").measures
    assert "estimated" in lowest["slip_mm"].flags
    assert "estimated" not in measured[1][1].row("L5/S1").measures["slip_mm"].flags
    assert lowest["slip_mm"].value == pytest.approx(thick.truth.discs["L5/S1"].slip, abs=2.5)
    assert "SACRUM_ESTIMATED" in [notice.code for notice in found.warnings]
    assert found.value("L1-S1", "lordosis_deg") == pytest.approx(thick.truth.lordosis, abs=4.0)


@pytest.mark.parametrize("kept_mm", [4, 6, 12])
def test_a_remnant_of_the_lowest_disc_gives_no_slip_in_silence(thick, kept_mm):
    """Where the sacrum is estimated from it, as in all results of the shipped model."""
    labels = np.where(thick.labels == value_of("S1"), 0, thick.labels).astype(np.uint8)
    disc = labels == value_of("L5/S1")
    columns = np.flatnonzero(disc.any(axis=(0, 1)))
    labels[..., columns[0] + round(kept_mm / PIXEL) :][disc[..., columns[0] + round(kept_mm / PIXEL) :]] = 0
    found = measure(Segmentation(labels, thick.volume.geometry))
    for name in ("slip_mm", "slip_percent", "meyerding_grade", "segmental_angle_deg"):
        one = found.row("L5/S1").measures[name]
        assert one.value is None or "low_confidence" in one.flags
    curves = [row for row in found.rows if "lordosis_deg" in row.measures]
    assert [row.level for row in curves] in (["L1-L5"], ["L1-S1"])
    assert curves[0].level == "L1-L5" or "low_confidence" in curves[0].measures["lordosis_deg"].flags


def test_signal_ratio_needs_a_true_zero(thick):
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    voxels = thick.volume.voxels.astype(np.float32)
    scores = replace(thick.volume, voxels=(voxels - voxels.mean()) / voxels.std())
    assert measure(labelled, scores).row("L3/L4").measures["signal_ratio"] == Measure(None, ("low_confidence",))
    ringing = replace(thick.volume, voxels=np.where(voxels < 5, -1, voxels))
    assert measure(labelled, ringing).value("L3/L4", "signal_ratio") is not None


def test_signal_ratio_by_fluid_that_is_cut_off_is_flagged(thick):
    """A saturated image does not tell how bright the fluid was."""
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    most = np.percentile(thick.volume.voxels[thick.labels == 2], 60)
    cut = replace(thick.volume, voxels=np.minimum(thick.volume.voxels, most))
    assert "low_confidence" in measure(labelled, cut).row("L3/L4").measures["signal_ratio"].flags
    assert "low_confidence" not in measure(labelled, thick.volume).row("L3/L4").measures["signal_ratio"].flags


def test_signal_ratio_needs_fluid_brighter_than_discs(thick):
    """Water images show fluid brighter than marrow, and discs nearly as bright as fluid."""
    discs = np.isin(thick.labels, [value_of(level) for level in thick.truth.discs])
    fluid = np.percentile(thick.volume.voxels[thick.labels == 2], 75)
    for brightness, told in ((0.5, True), (0.75, False)):
        water = replace(thick.volume, voxels=np.where(discs, brightness * fluid, thick.volume.voxels))
        found = measure(Segmentation(thick.labels, thick.volume.geometry), water)
        assert (found.value("L3/L4", "signal_ratio") is not None) == told
        assert ("NOT_T2" in [one.code for one in found.warnings]) != told


def test_a_disc_is_compared_with_the_fluid_behind_it(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    away = np.abs(np.arange(thick.labels.shape[1]) - row_of(whole, "L3/L4", 0.5)) * PIXEL > 45
    brighter = np.where((thick.labels == 2) & away[:, None], 1.5 * thick.volume.voxels, thick.volume.voxels)
    ratios = [measure(whole, replace(thick.volume, voxels=one)) for one in (thick.volume.voxels, brighter)]
    plain, far = (one.value("L3/L4", "signal_ratio") for one in ratios)
    assert far == pytest.approx(plain, rel=1e-3)


def test_a_disc_brighter_than_fluid_is_doubtful(thick):
    bright = np.where(thick.labels == value_of("L3/L4"), thick.volume.voxels.max(), thick.volume.voxels)
    found = measure(Segmentation(thick.labels, thick.volume.geometry), replace(thick.volume, voxels=bright))
    assert found.value("L3/L4", "signal_ratio") > 1
    for level, flags in (("L3/L4", ("low_confidence",)), ("L2/L3", ())):
        assert found.row(level).measures["signal_ratio"].flags == flags


def test_signal_ratio_of_a_disc_that_the_image_cuts_is_flagged(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    columns = np.flatnonzero((thick.labels == value_of("L3/L4")).any(axis=(0, 1)))
    rows = np.flatnonzero((thick.labels == value_of("L4/L5")).any(axis=(0, 2)))
    ends = slice(rows[len(rows) // 2], None), slice(columns[12], None)
    for level, j, i in (("L4/L5", ends[0], slice(None)), ("L3/L4", slice(None), ends[1])):
        cut = part(whole, j=j, i=i)
        found = measure(cut, Volume(np.ascontiguousarray(thick.volume.voxels[:, j, i]), cut.geometry))
        assert "partial" in found.row(level).measures["signal_ratio"].flags
    assert measure(whole, thick.volume).row("L3/L4").measures["signal_ratio"].flags == ()


def test_the_canal_behind_a_cut_body_is_flagged(thick):
    """Its middle is the middle of what shows, another place than the whole body's."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    rows = np.flatnonzero((thick.labels == value_of("L2")).any(axis=(0, 2)))
    middle = int(rows.mean())
    keep = slice(0, middle) if (thick.labels[:, :middle] == value_of("L1")).any() else slice(middle, None)
    cut = measure(part(whole, j=keep))
    assert "partial" in cut.row("L2").measures["canal_ap_mm"].flags
    assert "partial" not in cut.row("L1").measures["canal_ap_mm"].flags


def test_signal_ratio_on_t2_only(thick, measured):
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    found = measure(labelled, thick.volume)
    ratios = {level: found.value(level, "signal_ratio") for level in ("L1/L2", "L2/L3", "L3/L4", "L4/L5")}
    assert all(0.02 < ratio < 1.2 for ratio in ratios.values())
    worn = {level: thick.truth.discs[level].degeneration for level in ("T12/L1", "L3/L4")}
    assert worn["T12/L1"] < 2 < worn["L3/L4"]
    assert found.value("T12/L1", "signal_ratio") > ratios["L3/L4"]
    inverted = replace(thick.volume, voxels=(thick.volume.voxels.max() - thick.volume.voxels))
    dark = measure(labelled, inverted)
    assert dark.row("L3/L4").measures["signal_ratio"] == Measure(None, ("not_t2",))
    assert measured[1][1].row("L3/L4").measures["signal_ratio"] == Measure(None, ("not_t2",))
    assert "NOT_T2" in [notice.code for notice in dark.warnings]


def test_signal_ratio_depends_neither_on_units_nor_on_the_coil(thick):
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    once = measure(labelled, thick.volume)
    scaled = [
        replace(thick.volume, voxels=thick.volume.voxels.astype(np.float32) * unit) for unit in (1e-6, 0.013, 1e5)
    ]
    # A surface coil behind the patient: twice the signal 60 mm further back.
    grid = thick.volume.geometry
    toward = np.arange(grid.size[0]) * grid.spacing[0] * np.log(2) / 60
    coil = replace(thick.volume, voxels=thick.volume.voxels * np.exp(toward, dtype=np.float32))
    scaled_measures = [measure(labelled, one) for one in scaled]
    for level in ("T12/L1", "L2/L3", "L4/L5"):
        expected = once.value(level, "signal_ratio")
        for one in scaled_measures:
            assert one.value(level, "signal_ratio") == pytest.approx(expected, rel=0.03)
        assert measure(labelled, coil).value(level, "signal_ratio") == pytest.approx(expected, rel=0.08)


def test_a_coil_that_is_not_corrected_for_want_of_memory_makes_no_figures(thick, monkeypatch):
    def full(*_):
        raise RuntimeError("itkImportImageContainer.hxx:179:\nFailed to allocate memory for image.")

    monkeypatch.setattr(sitk.N4BiasFieldCorrectionImageFilter, "Execute", full)
    with pytest.raises(OutOfMemoryError):
        measure(Segmentation(thick.labels, thick.volume.geometry), thick.volume)


# --- geometry ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(0, 48, 7))  # all flips, six orders of axes
def test_axis_order_changes_nothing(number):
    order, flips = axis_orders()[number]
    straight = figures(measure(segmentation(geometry(**FINE))))
    turned = figures(measure(segmentation(geometry(order, flips, **FINE))))
    assert straight.keys() == turned.keys()
    for key, value in straight.items():
        assert turned[key] == pytest.approx(value, abs=0.15 if "percent" not in key[1] else 1.5), key


def test_marks_lie_on_the_structures_in_the_patients_space():
    grid = geometry((2, 0, 1), (True, False, True), oblique=11.0, **FINE)
    found = measure(segmentation(grid, oblique=11.0))
    upright = np.concatenate([mark.points for mark in found.markups if mark.kind == "endplate"]) @ rotation(11.0)
    assert len(upright) >= 24
    assert np.abs(upright[:, 0]).max() < 3  # the midline
    assert upright[:, 1].min() == pytest.approx(-19, abs=1.5)
    assert upright[:, 1].max() == pytest.approx(3, abs=1.5)


def test_the_endplate_that_lordosis_ends_at_is_marked(thick, measured):
    """S1's, in the picture a broken line where it is estimated."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    without = replace(whole, labels=np.where(whole.labels == value_of("S1"), 0, whole.labels).astype(np.uint8))
    disc = thick.truth.discs["L5/S1"].centre
    for found, estimated in ((measured[1][1], False), (measure(without), True)):
        (mark,) = [one for one in found.markups if one.level == "S1"]
        assert mark.kind == "endplate" and mark.estimated == estimated
        assert 2 < np.linalg.norm(mark.points[1] - disc) < 9 and mark.points[1, 2] < disc[2]
        assert not any(one.estimated for one in found.markups if one.level != "S1")


def test_an_estimated_endplate_is_drawn_as_a_broken_line():
    points = np.array([[20.0, 10.0], [20.0, 50.0], [20.0, 90.0]])  # rows and columns
    lengths = []
    for estimated in (False, True):
        screen = Image.new("RGB", (100, 40))
        _draw(ImageDraw.Draw(screen), Markup("endplate", "S1", np.zeros((3, 3)), estimated), points)
        lengths.append(int(np.asarray(screen)[20].any(axis=1).sum()))
    assert lengths[0] >= 80 and 40 <= lengths[1] <= 60


# --- what is not there ------------------------------------------------------------------------------


def test_nothing_segmented_gives_no_rows():
    grid = geometry()
    found = measure(Segmentation(np.zeros(tuple(reversed(grid.size)), np.uint8), grid))
    assert found.rows == ()
    assert [notice.code for notice in found.warnings] == ["NOTHING_FOUND"]


@pytest.mark.parametrize("slices", [1, 2])
def test_few_slices_measure_the_section_but_no_coronal_angle(slices):
    grid = geometry(size=(56, 76, slices), spacing=(0.9, 1.25, 4.0))
    found = measure(segmentation(grid))
    assert found.value("L2", "height_middle_mm") == pytest.approx(16, abs=1.5)
    for name in ("height_middle_mm", "canal_ap_mm"):  # where the canal's middle lies is not to be seen
        assert "few_slices" in found.row("L2").measures[name].flags
    coronal = [row.measures["coronal_angle_deg"] for row in found.rows if "coronal_angle_deg" in row.measures]
    assert coronal == [Measure(None, ("few_slices",))]


def test_without_canal_what_needs_it_is_missing():
    whole = segmentation(geometry(**FINE))
    found = measure(replace(whole, labels=np.where(whole.labels == 2, 0, whole.labels).astype(np.uint8)))
    assert found.row("L2").measures["canal_ap_mm"] == Measure(None, ("missing",))
    assert found.value("L2", "height_middle_mm") == pytest.approx(
        measure(whole).value("L2", "height_middle_mm"), abs=0.7
    )
    assert found.row("L2").measures["height_middle_mm"].flags == ()  # its whole width tells its middle


@pytest.mark.parametrize("first", [0, 3, 15, 18])
def test_lateral_slices_without_a_canal_are_not_taken_for_the_middle(first):
    """Slips of 5 to 7 mm, grade 1, were told of slices beside the canal, without a flag."""
    whole = segmentation(geometry(**FINE))
    lateral = part(whole, k=slice(first, first + 7))
    found = measure(replace(lateral, labels=np.where(lateral.labels == 2, 0, lateral.labels).astype(np.uint8)))
    told = [one for row in found.rows for name, one in row.measures.items() if name != "volume_mm3"]
    assert any(one.value is not None for one in told) and all(one.flags for one in told)
    (notice,) = [one for one in found.warnings if one.code == "CANAL_MISSING"]
    assert "midline" in notice.text


def test_a_body_cut_by_the_border_has_no_height():
    cut = part(segmentation(geometry(**FINE)), j=slice(9, None))  # rows from above: T12 loses its upper half
    top = value_of("T12")
    assert (cut.labels[:, 0] == top).any()
    found = measure(replace(cut, partial=frozenset({top})))
    measures = found.row("T12").measures
    assert measures["height_middle_mm"] == Measure(None, ("partial",))
    assert measures["genant_grade"].value is None
    assert measures["volume_mm3"].flags == ("partial",)
    assert found.value("T12/L1", "height_middle_mm") is not None
    index = found.row("T12/L1").measures["disc_height_index"]  # by L1 alone
    assert index.value is not None and index.flags == ("partial",)


def part(whole: Segmentation, k: slice = slice(None), j: slice = slice(None), i: slice = slice(None)) -> Segmentation:
    """A segmentation of a part of the grid."""
    ends = (one.indices(count) for one, count in zip((k, j, i), whole.labels.shape, strict=True))
    box = tuple(slice(start, stop) for start, stop, _ in ends)
    return replace(whole, labels=np.ascontiguousarray(whole.labels[box]), geometry=whole.geometry.part(box))


def row_of(whole: Segmentation, level: str, share: float) -> int:
    """The row of a sagittal stack at a share of a structure's height."""
    rows = np.flatnonzero((whole.labels == value_of(level)).any(axis=(0, 2)))
    return int(rows[0] + share * (rows[-1] - rows[0]))


def test_what_was_drawn_over_padding_counts(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    voxels = thick.volume.voxels.copy()
    voxels[:, : row_of(whole, "L1", 0.2)] = 0
    volume = measure(whole, replace(thick.volume, voxels=voxels)).value("L1", "volume_mm3")
    assert volume == pytest.approx(np.count_nonzero(thick.labels == value_of("L1")) * whole.geometry.voxel_volume)


@pytest.mark.parametrize("with_image", [True, False])
def test_padding_hides_what_the_image_cuts(thick, with_image):
    """Black rows as distortion correction leaves them; without the image what is known to be cut tells."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    rows = slice(row_of(whole, "L1", 0.5), row_of(whole, "L5", 0.4))
    cut = part(whole, j=rows)
    before = measure(replace(cut, partial=frozenset({value_of("L1"), value_of("L5"), 2})))
    grid, black = cut.geometry, 14
    direction = np.asarray(grid.direction)
    origin = np.asarray(grid.origin) - black * grid.spacing[1] * direction[:, 1]
    padded = replace(grid, size=(grid.size[0], grid.size[1] + 2 * black, grid.size[2]), origin=tuple(origin.tolist()))
    border = ((0, 0), (black, black), (0, 0))
    labels = np.pad(cut.labels, border)
    image = Volume(np.pad(thick.volume.voxels[:, rows], border), padded)
    for order, flips in axis_orders()[::13]:
        turned = sitk.PermuteAxes(to_sitk(labels, padded), order)
        turned = sitk.Flip(turned, flips)
        shown = sitk.Flip(sitk.PermuteAxes(image.to_sitk(), order), flips)
        volume = Volume.from_sitk(shown, "image")
        result = Segmentation(sitk.GetArrayFromImage(turned), volume.geometry)
        result = replace(result, partial=frozenset() if with_image else frozenset({value_of("L1"), value_of("L5"), 2}))
        found = measure(result, volume if with_image else None)
        for level in ("L1", "L5"):
            assert found.row(level).measures["height_middle_mm"] == Measure(None, ("partial",))
        for level in ("L2", "L3", "L4", "L3/L4"):
            wanted = before.value(level, "height_middle_mm")
            assert found.value(level, "height_middle_mm") == pytest.approx(wanted, abs=0.3)
        assert [(one.kind, one.level) for one in found.markups] == [(one.kind, one.level) for one in before.markups]
        for one, wanted in zip(found.markups, before.markups, strict=True):
            assert np.allclose(one.points, wanted.points, atol=1.5)


@pytest.mark.parametrize(("level", "painted"), [("L4", "L1"), ("L5", "L3"), ("L2/L3", "L4")])
def test_a_stray_piece_neither_fails_nor_counts_in_silence(thick, level, painted):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    wanted = measure(whole)
    labels = whole.labels.copy()
    middle = np.median(np.argwhere(labels == value_of(painted)), axis=0).astype(int)
    box = tuple(slice(one - width, one + width + 1) for one, width in zip(middle, (1, 4, 4), strict=True))
    labels[box][labels[box] == value_of(painted)] = value_of(level)
    found = measure(replace(whole, labels=labels))
    name = "height_posterior_mm"
    assert found.value(level, name) == pytest.approx(wanted.value(level, name), abs=0.5)
    assert "low_confidence" in found.row(level).measures[name].flags


@pytest.mark.parametrize(("low", "doubtful"), [(-1, False), (5, True)])
def test_a_stray_piece_of_sacrum_turns_no_endplate(thick, low, doubtful):
    """Twelve voxels before the lowest disc turned the lordosis by 15 degrees, without a flag."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    wanted = measure(whole).row("L1-S1").measures["lordosis_deg"]
    disc = np.argwhere(whole.labels == value_of("L5/S1"))
    middle = whole.labels.shape[0] // 2
    front = disc[disc[:, 0] == middle]
    front = front[front[:, 2] <= front[:, 2].min() + 1].mean(axis=0).astype(int)
    labels = whole.labels.copy()
    labels[middle - 1 : middle + 2, front[1] + low : front[1] + low + 4, front[2] - 8 : front[2] - 3] = value_of("S1")
    found = measure(replace(whole, labels=labels))
    angle = found.row("L1-S1").measures["lordosis_deg"]
    assert angle.value == pytest.approx(wanted.value, abs=0.3)
    assert angle.flags == (("low_confidence",) if doubtful else ())
    assert found.row("L5/S1").measures["segmental_angle_deg"].flags == angle.flags


def test_a_sacrum_in_pieces_is_measured_by_the_one_below_the_disc(thick):
    """S1 and S2 are often drawn apart, and S1 need not be the larger piece."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    wanted = measure(whole).row("L5/S1").measures
    labels = whole.labels.copy()
    first = row_of(whole, "S1", 0.0)
    last = row_of(whole, "S1", 1.0)
    apart = first + round(14 / PIXEL)
    assert last > apart + 8
    labels[:, apart : apart + 3][labels[:, apart : apart + 3] == value_of("S1")] = 0
    upper, lower = (np.count_nonzero(one == value_of("S1")) for one in (labels[:, :apart], labels[:, apart:]))
    assert upper < lower
    found = measure(replace(whole, labels=labels)).row("L5/S1").measures
    for name in ("segmental_angle_deg", "slip_mm", "height_anterior_mm"):
        assert found[name].value == pytest.approx(wanted[name].value, abs=0.5) and found[name].flags == ()


@pytest.mark.parametrize("gap_mm", [3, 6, 10])
def test_a_stray_piece_of_canal_widens_nothing(thick, gap_mm):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    wanted = measure(whole).value("L4", "canal_ap_mm")
    labels = whole.labels.copy()
    row, middle = row_of(whole, "L4", 0.5), labels.shape[0] // 2
    back = np.flatnonzero(labels[middle, row] == 2)[-1] + round(gap_mm / PIXEL)
    labels[middle - 1 : middle + 2, row - 12 : row + 12, back : back + 4] = 2
    one = measure(replace(whole, labels=labels)).row("L4").measures["canal_ap_mm"]
    assert one.value == pytest.approx(wanted, abs=0.7) and "low_confidence" in one.flags


@pytest.mark.parametrize(("level", "gap_mm"), [("L1", 4), ("L5", 3), ("L5", 6)])
def test_a_gap_in_the_canal_narrows_nothing_in_silence(thick, measured, level, gap_mm):
    """Planes perpendicular to the canal cross it slantwise: diameters of 0.3 to 10 mm were told for 14."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    wanted = measured[1][1].row(level).measures["canal_ap_mm"]
    row, half = row_of(whole, level, 0.5), round(gap_mm / PIXEL / 2)
    labels = whole.labels.copy()
    labels[:, row - half : row + half][labels[:, row - half : row + half] == 2] = 0
    one = measure(replace(whole, labels=labels)).row(level).measures["canal_ap_mm"]
    assert wanted.flags == () and one.value is not None
    assert one.flags == ("low_confidence",) or one.value == pytest.approx(wanted.value, abs=PIXEL)


def test_pieces_painted_anywhere_never_fail(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    random = np.random.default_rng(5)
    there = np.argwhere(whole.labels > 2)
    values = np.unique(whole.labels[whole.labels > 2])
    for _ in range(25):
        labels = whole.labels.copy()
        for place in there[random.integers(len(there), size=3)]:
            box = tuple(
                slice(max(0, one - w), one + w + 1) for one, w in zip(place, random.integers(1, 7, 3), strict=True)
            )
            labels[box][labels[box] > 0] = random.choice([0, *values])
        found = measure(replace(whole, labels=labels))
        assert {row.value for row in found.rows} - {0} == set(np.unique(labels).tolist()) - {0}


@pytest.mark.parametrize("left", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("level", ["L2/L3", "L3", "L5/S1"])
def test_a_few_voxels_left_of_a_structure_end_nothing(thick, level, left):
    """What remains where one was edited away; between the voxels that clouds are thinned to."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    random = np.random.default_rng(left)
    own = np.argwhere(whole.labels == value_of(level))
    for _ in range(4):
        labels = np.where(whole.labels == value_of(level), 0, whole.labels)
        labels[tuple(own[random.choice(len(own), left, replace=False)].T)] = value_of(level)
        found = measure(replace(whole, labels=labels))
        assert found.row(level).value == value_of(level)
        split_parts(replace(whole, labels=labels))


def test_two_bodies_in_one_label_are_no_tall_one(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    labels = whole.labels.copy()
    labels[np.isin(labels, (value_of("L3"), value_of("L3/L4")))] = value_of("L4")
    found = measure(replace(whole, labels=labels))
    assert "low_confidence" in found.row("L4").measures["height_middle_mm"].flags
    assert found.value("L5", "height_loss_percent") < 20


@pytest.mark.parametrize("lost", [0.55, 0.7])
def test_a_body_that_is_labelled_in_part_is_not_collapsed_in_silence(thick, lost):
    """Where its upper part was missing a body was lower by that, of Genant's band 3, without a flag."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    labels = whole.labels.copy()
    columns = np.flatnonzero((labels == 2)[:, row_of(whole, "L3", 0.2)].any(axis=0))
    body = labels[:, : row_of(whole, "L3", lost), : columns[0]]
    body[body == value_of("L3")] = 0
    found = measure(replace(whole, labels=labels))
    for name in ("height_middle_mm", "height_loss_percent", "genant_grade"):
        assert "low_confidence" in found.row("L3").measures[name].flags
    one = found.row("L2/L3").measures["height_middle_mm"]
    assert one.value is None or "low_confidence" in one.flags
    assert found.row("L4").measures["height_middle_mm"].flags == ()


def test_a_body_without_its_front_is_doubtful(thick, measured):
    """A slip of 20 % was one of 50 of what was left of the endplate, Meyerding's grade 3, without a flag."""
    labels = thick.labels.copy()
    columns = np.flatnonzero((labels == value_of("L4")).any(axis=(0, 1)))
    disc = np.flatnonzero((labels == value_of("L3/L4")).any(axis=(0, 1)))
    front = labels[..., columns[0] : int(disc[0] + 0.5 * np.ptp(disc))]
    front[front == value_of("L4")] = 0
    found = measure(Segmentation(labels, thick.volume.geometry))
    for level, name in (("L4", "depth_mm"), ("L3/L4", "slip_percent"), ("L3/L4", "meyerding_grade")):
        assert "low_confidence" in found.row(level).measures[name].flags
        assert measured[1][1].row(level).measures[name].flags == ()
    assert found.row("L2").measures["depth_mm"].flags == ()


def test_a_canal_that_is_cut_says_so(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    columns = np.flatnonzero((whole.labels == 2)[:, row_of(whole, "L3", 0.5)].any(axis=0))
    cut = measure(part(whole, i=slice(0, int(columns[0] + 0.6 * (columns[-1] - columns[0]))))).row("L3")
    assert cut.measures["canal_ap_mm"].value < measure(whole).value("L3", "canal_ap_mm") - 2
    assert "partial" in cut.measures["canal_ap_mm"].flags
    slices = np.flatnonzero((whole.labels == 2).any(axis=(1, 2)))
    for beside in (slice(0, int(slices[0]) + 2), slice(int(slices[-1]) - 1, None)):
        measures = measure(part(whole, k=beside)).row("L3").measures
        for name in ("canal_ap_mm", "height_posterior_mm"):
            assert measures[name].value is None or "few_slices" in measures[name].flags
    assert not measure(whole).row("L3").measures["canal_ap_mm"].flags


@pytest.mark.parametrize(("left_mm", "flags"), [(2.4, ("partial",)), (4.8, ())])
def test_the_canal_is_not_measured_at_its_end_in_silence(thick, left_mm, flags):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    labels = whole.labels.copy()
    above = labels[:, : row_of(whole, "L2", 0.5) - round(left_mm / PIXEL)]
    above[above == 2] = 0
    assert measure(replace(whole, labels=labels)).row("L2").measures["canal_ap_mm"].flags == flags


@pytest.mark.parametrize("spacing", [0.9, 1.0, 2.0])
def test_a_thin_slab_of_a_canal_s_side_says_so(spacing):
    """Its depth rises toward the middle, which may lie outside; slices over less than 4 mm tell no side at all."""
    grid = geometry(size=(56, 76, round(40 / spacing)), spacing=(0.9, 1.25, spacing))
    whole = segmentation(grid)
    left, back, up = np.moveaxis(builders_points(grid), -1, 0)
    labels = np.where(whole.labels == 2, 0, whole.labels)
    labels[(left**2 + (back - 13) ** 2 < 81) & (np.abs(up) < 46)] = 2
    round_canal = replace(whole, labels=labels)
    wanted = measure(round_canal).row("L2").measures["canal_ap_mm"]
    assert wanted.flags == () and wanted.value == pytest.approx(17.5, abs=1)
    middle = grid.size[2] / 2
    for first, last, doubtful in ((1, 7, True), (-4, 4, False), (-1, 2, True), (-9, 9, False)):
        slab = slice(round(middle + first / spacing), round(middle + last / spacing))
        one = measure(part(round_canal, k=slab)).row("L2").measures["canal_ap_mm"]
        assert one.flags == (("few_slices",) if doubtful else ())
        assert doubtful or one.value == pytest.approx(wanted.value, abs=0.5)


def test_where_the_canal_is_not_seen_the_figures_say_so(thick):
    """As in a scoliotic spine that leaves the slices."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    labels = whole.labels.copy()
    below = labels[:, row_of(whole, "L3", 0.5) :]
    below[below == 2] = 0
    found = measure(replace(whole, labels=labels))
    assert "few_slices" in found.row("L5").measures["height_middle_mm"].flags
    assert not found.row("L2").measures["height_middle_mm"].flags


def test_lordosis_ends_at_whole_vertebrae(thick):
    whole = Segmentation(thick.labels, thick.volume.geometry)
    cut = measure(part(whole, j=slice(row_of(whole, "L1", 0.5), row_of(whole, "L5", 0.8))))
    assert [row.level for row in cut.rows if "lordosis_deg" in row.measures] == ["L2-L4"]
    truth = thick.truth.bodies
    upper, lower = (
        np.array([truth[level].corners[n] for n in pair]) for level, pair in (("L2", (0, 1)), ("L4", (2, 3)))
    )
    (z1, y1), (z2, y2) = ((one[1] - one[0])[[2, 1]] for one in (upper, lower))
    angle = math.degrees(math.atan2(z2, y2) - math.atan2(z1, y1))
    assert cut.value("L2-L4", "lordosis_deg") == pytest.approx(angle, abs=2.5)


def test_an_unknown_turn_of_the_patient_is_said(thin):
    slices = slice(8, 17)  # 18 mm in the middle
    found = measure(part(Segmentation(thin.labels, thin.volume.geometry), k=slices))
    ((_, angle),) = coronal_angles(found)
    assert angle.flags == ("few_slices",)


def test_bodies_cut_by_thin_slices_on_one_side_tell_no_turn(thin):
    """Their middle is not the middle of what shows, and the angle was twice the true one."""
    grid = thin.volume.geometry
    halved = replace(grid, size=(*grid.size[:2], 2 * grid.size[2]), spacing=(*grid.spacing[:2], grid.spacing[2] / 2))
    whole = Segmentation(np.repeat(thin.labels, 2, axis=0), halved)
    ((_, wanted),) = coronal_angles(measure(whole))
    assert not wanted.flags
    middle = int(np.argwhere(whole.labels == 2)[:, 0].mean())
    for slices in (slice(middle - 9, None), slice(None, middle + 10)):
        ((_, angle),) = coronal_angles(measure(part(whole, k=slices)))
        assert angle.flags == ("few_slices",) and angle.value == pytest.approx(wanted.value, abs=1.5)


def test_an_estimated_endplate_is_no_end_of_the_coronal_angle(thin):
    """It follows the border of a disc, and the outermost tilt makes the angle."""
    labels = np.where(thin.labels == value_of("S1"), 0, thin.labels).astype(np.uint8)
    for one, last in ((thin.labels, "S1"), (labels, "L5")):
        whole = Segmentation(one, thin.volume.geometry)
        low = part(whole, j=slice(row_of(whole, "L3", 0.5), None))  # where the curve swings back
        ((level, angle),) = coronal_angles(measure(low))
        assert level.endswith(f"-{last}") and not angle.flags


def blocks(labels: np.ndarray) -> Segmentation:
    """Slices as `block_spine` gives them, as a segmentation with 4 mm slices and pixels of 0.5 mm."""
    grid = Geometry(
        labels.shape[::-1], (0.5, 0.5, 4.0), (0.0, 0.0, 0.0), np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])
    )
    return Segmentation(labels, grid)


def test_a_hollow_that_is_deepest_behind_the_middle_turns_no_angle():
    """The curve through the whole surface leans toward it: L5 came out with 14 degrees for 8."""
    flat, hollow = (measure(blocks(block_spine((4.0, 0.5, 0.5), hollow=depth))) for depth in (0.0, 4.0))
    for level in ("L1", "L2", "L3", "L4"):
        assert abs(hollow.value(level, "wedge_angle_deg") - flat.value(level, "wedge_angle_deg")) < 1.0
        assert hollow.value(level, "height_middle_mm") < flat.value(level, "height_middle_mm") - 1.5
    for level in ("L1/L2", "L2/L3", "L3/L4"):
        assert abs(hollow.value(level, "segmental_angle_deg") - flat.value(level, "segmental_angle_deg")) < 1.0


def test_angles_agree_with_the_heights_beside_them(measured):
    """In one row of the table, front and back of equal height and a wedge of nine degrees contradict each other."""
    count = 0
    for _, found in measured:
        for row in found.rows:
            if row.kind != "vertebra" or row.measures.get("wedge_angle_deg", Measure(None)).value is None:
                continue
            front, back, depth, angle = (
                row.measures[name].value
                for name in ("height_anterior_mm", "height_posterior_mm", "depth_mm", "wedge_angle_deg")
            )
            assert abs(2 * math.degrees(math.atan((back - front) / 2 / depth)) - angle) < 1.5, row.level
            count += 1
    assert count > 8


@pytest.mark.parametrize(("discs", "canal_to"), [(("L1/L2", "L2/L3"), None), (("L2/L3", "L3/L4"), None), ((), "L3")])
def test_a_body_beside_which_nothing_tells_the_canal_is_doubtful(thin, discs, canal_to):
    """A straight line went on through it: L5 was 0.7 mm high in front and wedged by 75 degrees, without a flag."""
    kept = [value_of(level) for level in discs]
    kept += [value_of(f"L{number}") for number in range(1, 6)] + ([2] if canal_to else [])
    labels = np.where(np.isin(thin.labels, kept), thin.labels, 0).astype(np.uint8)
    if canal_to:
        below = int(np.argwhere(labels == value_of(canal_to))[:, 1].mean())
        labels[:, below:][labels[:, below:] == 2] = 0
    whole, found = (measure(Segmentation(one, thin.volume.geometry)) for one in (thin.labels, labels))
    for name in ("wedge_angle_deg", "depth_mm"):
        figure, right = found.row("L5").measures[name], whole.row("L5").measures[name]
        assert figure.value is None or figure.flags or figure.value == pytest.approx(right.value, abs=1.5)
    assert "low_confidence" in found.row("L5").measures["wedge_angle_deg"].flags
    lordosis = [row.measures["lordosis_deg"] for row in found.rows if "lordosis_deg" in row.measures]
    assert all(one.flags for one in lordosis)
    assert not whole.row("L4").measures["wedge_angle_deg"].flags


def test_too_little_of_a_sacrum_is_told_as_such(thin):
    rows = np.flatnonzero((thin.labels == value_of("S1")).any(axis=(0, 2)))
    for cut, said in ((rows[0] + 4, "Too little of the sacrum is segmented"), (rows[0], "No sacrum is segmented")):
        labels = thin.labels.copy()
        labels[:, cut:][labels[:, cut:] == value_of("S1")] = 0
        notices = {one.code: one.text for one in measure(Segmentation(labels, thin.volume.geometry)).warnings}
        if "SACRUM_ESTIMATED" in notices:
            assert notices["SACRUM_ESTIMATED"].startswith(said)
    assert "SACRUM_ESTIMATED" in notices


@pytest.mark.parametrize("first, second", [("T12/L1", "L5/S1"), ("L2", "L3")])
def test_names_out_of_the_spine_s_order_are_told(thin, first, second):
    """Two discs mixed up: the lordosis from L1 to S1 was 0.0 degrees, without a word."""
    a, b = value_of(first), value_of(second)
    table = np.arange(256)
    table[[a, b]] = b, a
    labels = table[thin.labels].astype(np.uint8)
    found = measure(Segmentation(labels, thin.volume.geometry))
    (notice,) = [notice for notice in found.warnings if notice.code == "LEVELS_ORDER"]
    assert " lies above " in notice.text
    curves = [row for row in found.rows if row.kind == "spine"]
    assert curves and all("low_confidence" in one.flags for row in curves for one in row.measures.values())
    for row in curves:
        assert row.measures.get("lordosis_deg", Measure(1.0)).value != pytest.approx(0.0, abs=0.1)
    assert "LEVELS_ORDER" not in [
        notice.code for notice in measure(Segmentation(thin.labels, thin.volume.geometry)).warnings
    ]


def test_vertebrae_alone_are_in_their_order_too(thin):
    """As of another tool whose numbers rise from the bottom up."""
    alone = np.where(np.isin(thin.labels, range(21, 47)), thin.labels, 0).astype(np.uint8)
    values = np.unique(alone)[1:]
    table = np.zeros(256, np.uint8)
    table[values] = values[::-1]
    for labels, told in ((alone, False), (table[alone], True)):
        found = measure(Segmentation(labels, thin.volume.geometry))
        assert ("LEVELS_ORDER" in [notice.code for notice in found.warnings]) == told


def test_a_canal_in_front_of_the_discs_is_told_and_nothing_measured_by_it(thin):
    """As of a file whose header swaps front and back: vertebrae were half as high then, without a word."""
    space = thin.volume.geometry
    stack = SagittalStack.of(Volume(thin.labels, space))
    turned = stack.restore(np.ascontiguousarray(stack.slices[:, :, ::-1]))
    found = measure(Segmentation(turned, space))
    assert "CANAL_IN_FRONT" in [notice.code for notice in found.warnings]
    figures = {name for row in found.rows for name, one in row.measures.items() if one.value is not None}
    assert figures == {"volume_mm3"}
    straight = measure(Segmentation(thin.labels, space)).warnings
    assert "CANAL_IN_FRONT" not in [notice.code for notice in straight]


def test_the_order_of_levels_knows_the_rare_ones():
    columns = (
        "C2 C2/C3 C3 C6 C6/C7 C7 C7/T1 T1 T11/T12 T12 T12/L1 L1 L4 L4/L5 L5 L5/S1",
        "T12 T12/T13 T13 T12/L1 L1", "T12 T12/T13 T13 T13/L1 L1", "L5 L5/L6 L6 L5/S1", "T11 T11/T12 T12/L1 L1",
    )  # fmt: skip
    for column in columns:
        places = [place_of(level) for level in column.split()]
        assert places == sorted(places) and len(set(places)) == len(places), column


def test_what_is_segmented_is_not_called_missing(thin):
    """A disc beside two bodies that the border cuts is partial itself."""
    rows = np.flatnonzero((thin.labels == value_of("L2")).any(axis=(0, 2)))
    whole = Segmentation(thin.labels, thin.volume.geometry)
    low = int(rows[0] + 0.55 * np.ptp(rows))
    for j in (slice(low, None), slice(None, low)):
        found = measure(part(whole, j=j))
        for row in found.rows:
            beside = row.level.split("/")
            present = {one.level for one in found.rows if one.kind == "vertebra"}
            if row.kind == "disc" and set(beside) <= present:
                assert "missing" not in row.measures["height_middle_mm"].flags, row.level
    alone = np.where(np.isin(thin.labels, [2, value_of("L3"), value_of("L3/L4")]), thin.labels, 0).astype(np.uint8)
    (disc,) = [row for row in measure(Segmentation(alone, thin.volume.geometry)).rows if row.kind == "disc"]
    assert disc.measures["height_middle_mm"] == Measure(None, ("missing",))


def test_an_estimate_is_told_only_where_there_is_one(thin):
    labels = np.where(thin.labels == value_of("S1"), 0, thin.labels).astype(np.uint8)
    told = [notice.code for notice in measure(Segmentation(labels, thin.volume.geometry)).warnings]
    assert "SACRUM_ESTIMATED" in told
    discs = np.where(
        np.isin(labels, [value for value, one in structures().items() if one.kind == "vertebra"]), 0, labels
    )
    told = [notice.code for notice in measure(Segmentation(discs, thin.volume.geometry)).warnings]
    assert "SACRUM_ESTIMATED" not in told


def test_a_coronal_angle_is_that_of_the_endplates_it_names():
    """Cropped from behind, a column of 18 degrees was one of 2 from the same levels."""
    tilts = [10.0, 8.0, 6.0, 3.0, 0.0, -3.0, -6.0, -8.0]
    names = ["L1", "L1", "L2", "L2", "L3", "L3", "L4", "L4"]
    plates = [endplate(tilt) for tilt in tilts]
    level, angle = coronal_angle(list(zip(names, plates, strict=True)), True)
    assert level == "L1-L4" and not angle.flags
    straight = [*zip(["T11", "T12", "T12"], [endplate(tilt) for tilt in (0.0, 4.0, 8.0)], strict=True)]
    longer = [*straight, *zip(names, plates, strict=True), ("L5", plates[6]), ("S1", plates[4])]
    assert coronal_angle(longer, True)[0] == "L1-L4"  # the end vertebrae, not the ends of what is in view
    assert angle.value == pytest.approx(17.0)  # 9.5 and -7.5: each outermost tilt is the mean with its neighbour
    for changed, flags in ((replace(plates[0], flags=frozenset({"partial"})), {"partial"}),
                           (replace(plates[0], tilt=None), {"few_slices"})):  # fmt: skip
        level, angle = coronal_angle(list(zip(names, [changed, changed, *plates[2:]], strict=True)), True)
        assert level == "L2-L4" and set(angle.flags) == flags and angle.value == pytest.approx(12.75)
    beyond = replace(plates[0], cut=True)  # it lies outside the field of view, and the name says so
    level, angle = coronal_angle(list(zip(names, [beyond, beyond, *plates[2:]], strict=True)), True)
    assert level == "L2-L4" and not angle.flags
    for unseen in (None, beyond, replace(plates[0], flags=frozenset({"few_slices"}))):
        column = [*plates[:2], *[unseen] * 4, *plates[6:]]  # half of what lies between is not known
        level, angle = coronal_angle(list(zip(names, column, strict=True)), True)
        assert level == "L1-L4" and angle == Measure(None, ("few_slices",))
    assert coronal_angle([("L1", plates[0]), ("L2", None), ("L3", plates[1])], True) is None
    wedged = [endplate(tilt) for tilt in (0.0, -2.0, 8.0, -8.0, 2.0, 0.0)]
    level, angle = coronal_angle(list(zip(names, wedged, strict=False)), True)
    assert level == "L2" and angle.value == pytest.approx(3.0)


def endplate(degrees: float) -> Endplate:
    """An endplate that slopes toward the left by so many degrees."""
    points = np.zeros((3, 3))
    return Endplate(*points, along=BACK, frame=AnatomicalFrame.facing(np.zeros(3), np.array([0, -1.0, 0]), BACK),
                    tilt=math.tan(math.radians(degrees)))  # fmt: skip


def test_the_coronal_angle_of_a_scan_cut_from_behind_says_where_it_was_measured(thin):
    whole = Segmentation(thin.labels, thin.volume.geometry)
    ((level, wanted),) = coronal_angles(measure(whole))
    assert level == "T12-L4" and not wanted.flags
    columns = np.flatnonzero(whole.labels.any(axis=(0, 1)))
    seen = []
    for share in (0.45, 0.5, 0.55, 0.6):
        end = int(columns[-1] - share * np.ptp(columns))
        for level, angle in coronal_angles(measure(part(whole, i=slice(None, end)))):
            seen.append(level)
            assert angle.flags or angle.value == pytest.approx(wanted.value, abs=1.5)
    assert set(seen) - {"T12-L4"}


def coronal_angles(found: Measurements) -> list[tuple[str, Measure]]:
    """The coronal angles with their levels."""
    return [(row.level, row.measures["coronal_angle_deg"]) for row in found.rows if "coronal_angle_deg" in row.measures]


def test_a_vertebra_that_is_not_segmented_makes_no_tall_disc():
    """Small as in the neck, where two discs lie within a lumbar vertebra's reach."""
    grid = geometry(size=(56, 76, 25), spacing=(0.5, 0.7, 0.6))
    places = builders_points(grid) / 0.56
    labels = labels_at(places)
    whole = Segmentation(labels, grid)
    assert measure(whole).value("L1/L2", "height_middle_mm") is not None
    found = measure(replace(whole, labels=np.where(labels == value_of("L2"), 0, labels).astype(np.uint8)))
    for level in ("L1/L2", "L2/L3"):
        assert found.row(level).measures["height_middle_mm"] == Measure(None, ("missing",))
    assert found.value("L3/L4", "height_middle_mm") is not None
    gone = np.isin(labels, (value_of("L2"), value_of("L1/L2")))  # nor with the disc that lies between
    found = measure(replace(whole, labels=np.where(gone, 0, labels).astype(np.uint8)))
    for name in ("height_middle_mm", "slip_mm", "segmental_angle_deg"):
        assert found.row("L2/L3").measures[name] == Measure(None, ("missing",))


def test_one_vertebra_alone_has_volume_and_little_else():
    whole = segmentation(geometry(**FINE))
    found = measure(replace(whole, labels=np.where(whole.labels == value_of("L2"), whole.labels, 0).astype(np.uint8)))
    row = found.row("L2")
    assert row.measures["volume_mm3"].value > 1000
    assert row.measures["height_middle_mm"].value is None
    assert row.measures["height_middle_mm"].flags


def test_classes_and_other_grids_are_refused():
    grid = geometry()
    whole = segmentation(grid)
    with pytest.raises(UsageError):
        measure(replace(whole, labels=np.minimum(whole.labels, 1), encoding=encodings()["classes"]))
    with pytest.raises(InputError) as failure:
        measure(whole, volume(geometry(size=(40, 64, 7))))
    assert failure.value.code == "INPUT_GEOMETRY"


def test_every_missing_figure_says_why(measured):
    for _, found in measured:
        for row in found.rows:
            for name, one in row.measures.items():
                assert name in QUANTITIES
                assert set(one.flags) <= FLAGS.keys()
                assert one.value is None or math.isfinite(one.value)
                assert one.value is not None or one.flags


# --- files ------------------------------------------------------------------------------------------


def test_csv_and_json_say_the_same_with_units(measured, tmp_path):
    found = measured[0][1]
    write_measurements(found, tmp_path / "m.csv")
    write_measurements(found, tmp_path / "m.json")
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert content["note"] == DISCLAIMER
    assert all(row["note"].startswith(DISCLAIMER) for row in rows)
    assert [row["level"] for row in rows] == [one["level"] for one in content["structures"]]
    for row, one in zip(rows, content["structures"], strict=True):
        for name, value in one["measures"].items():
            assert float(row[name]) == value if value is not None else row[name] == ""
    assert any("estimated" in row["quality"] or "partial" in row["quality"] for row in rows)


def test_names_that_are_only_assumed_are_told_with_the_figures(thick, tmp_path):
    assumed = Notice("LEVELS_ASSUMED", "The lowest complete vertebra was named L5.")
    found = measure(Segmentation(thick.labels, thick.volume.geometry, warnings=(assumed,)))
    assert assumed in found.warnings
    assert [one["code"] for one in found.summary()["warnings"]] == [one.code for one in found.warnings]
    write_measurements(found, tmp_path / "m.csv")
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        assert all(row["note"] == f"{DISCLAIMER}; LEVELS_ASSUMED" for row in csv.DictReader(file))


def test_a_table_of_nothing_says_so_and_what_it_is_for(tmp_path):
    grid = geometry()
    write_measurements(measure(Segmentation(np.zeros(tuple(reversed(grid.size)), np.uint8), grid)), tmp_path / "m.csv")
    with open(tmp_path / "m.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["name"] == "no structure was found" and row["value"] == ""
    assert row["note"] == f"{DISCLAIMER}; NOTHING_FOUND"


def test_unknown_endings_are_refused_and_leave_nothing(tmp_path):
    found = measure(segmentation(geometry()))
    with pytest.raises(UsageError):
        write_measurements(found, tmp_path / "m.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_the_landmarks(thick, tmp_path):
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    found = measure(labelled)
    write_picture(thick.volume, labelled, found, tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((255, 221, 87), (92, 200, 255), (255, 128, 190)):
        assert (pixels == colour).all(axis=1).sum() > 50
    write_picture(thick.volume, labelled, Measurements(()), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("loss", "grade", "shown"),
    [
        (Measure.of(19.7), Measure.of(0), "19.7 %, 0"),
        (Measure.of(24.8, {"low_confidence"}), Measure.of(1, {"low_confidence"}), "24.8 %, 1*"),
        (Measure.of(11.9, {"low_confidence"}), None, "11.9 %*"),
        (Measure.none("partial"), Measure.none("partial"), "-"),
    ],
)
def test_a_loss_is_shown_with_its_band_and_not_rounded_over_a_limit(loss, grade, shown):
    measures = {"height_loss_percent": loss} | ({"genant_grade": grade} if grade else {})
    assert _cells(StructureMeasures(44, "L4", "L4 vertebra", "vertebra", measures))[1] == shown


def test_an_angle_of_none_has_no_sign():
    assert _curve(Measure.of(-0.3)) == "0°" and _curve(Measure.of(-12.4, {"partial"})) == "-12°*"


def test_no_level_is_written_on_the_directions(thick, monkeypatch):
    """Where the upper border leaves little of a body."""
    whole = Segmentation(thick.labels, thick.volume.geometry)
    rows = slice(row_of(whole, "L1", 0.45), None)
    cut = part(whole, j=rows)
    written: dict[str, tuple[float, float]] = {}
    text = ImageDraw.ImageDraw.text

    def noted(draw: ImageDraw.ImageDraw, place: tuple[float, float], word: str, *arguments: object, **rest: object):
        written.setdefault(word, place)
        text(draw, place, word, *arguments, **rest)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    draw_picture(Volume(np.ascontiguousarray(thick.volume.voxels[:, rows]), cut.geometry), cut, measure(cut))
    assert written["L1"][1] - written["S"][1] > 25 and written["L2"][1] > written["L1"][1] + 10


def test_the_picture_holds_every_row(thick):
    """A whole spine has more rows than fit beside its slice."""
    labelled = Segmentation(thick.labels, thick.volume.geometry)
    found = measure(labelled)
    rows = [row for row in found.rows if row.kind in ("vertebra", "disc")]
    plain, many = (draw_picture(thick.volume, labelled, Measurements(tuple(rows * n))) for n in (1, 6))
    assert many.height > plain.height
    below = np.asarray(many)[-260:-130, -590:]
    assert (below == (92, 200, 255)).all(axis=-1).any()  # the last rows, in the discs' colour


# --- parts ------------------------------------------------------------------------------------------


@given(st.floats(-80, 80), st.floats(-80, 80))
def test_sagittal_angle_is_the_difference_of_slopes(first, second):
    def direction(angle: float) -> np.ndarray:
        return np.array([0.0, -np.sin(np.radians(angle)), np.cos(np.radians(angle))])

    angle = sagittal_angle(direction(first), direction(second), np.array([1.0, 0, 0]))
    assert angle == pytest.approx(second - first, abs=1e-6)


@given(st.lists(st.floats(10, 40), min_size=2, max_size=8), st.floats(0, 60))
@settings(max_examples=40)
def test_height_loss_is_that_against_equal_neighbours(heights, lost):
    alone = height_losses([body(20)])
    assert alone[0]["height_loss_percent"] == Measure(None, ("missing",))
    bodies = [body(30), body(30), body(30 * (1 - lost / 100)), body(30), body(30)]
    losses = height_losses(bodies)
    assert losses[2]["height_loss_percent"].value == pytest.approx(lost, abs=1e-6)
    if min(abs(lost - limit) for limit in (20, 25, 40)) > 1e-6:
        assert losses[2]["genant_grade"].value == sum(lost > limit for limit in (20, 25, 40))
    assert losses[1]["height_loss_percent"].value == pytest.approx(0, abs=1e-6)  # a collapsed neighbour does not count
    assert all(one["height_loss_percent"].value >= 0 for one in height_losses([body(h) for h in heights]))
    last_two = height_losses([body(30), body(30), body(30), body(18), body(30 * (1 - lost / 100))])
    assert last_two[4]["height_loss_percent"].value == pytest.approx(lost, abs=1e-6)
    assert last_two[4]["genant_grade"].flags == ("low_confidence",)  # all it is compared with lies above
    doubtful = body(90, "low_confidence")
    beside = height_losses([body(30), body(30), body(30), doubtful, body(30), body(30)])
    assert beside[4]["height_loss_percent"] == Measure.of(0.0)
    assert height_losses([body(30), doubtful, body(30)])[0]["height_loss_percent"].flags == ("low_confidence",)


@pytest.mark.parametrize(("height", "grade"), [(81, 0), (80, 1), (76, 1), (75, 2), (61, 2), (60, 3)])
def test_genant_s_grades_begin_at_their_limits(height, grade):
    middle = height_losses([body(100), body(100), body(height), body(100), body(100)])[2]
    assert middle["genant_grade"].value == grade


def body(height: float, *flags: str, depth: float = 40) -> dict[str, Measure]:
    """A block's measures."""
    return dict.fromkeys(HEIGHTS, Measure.of(height, flags)) | {"depth_mm": Measure.of(depth, flags)}


def test_a_body_is_compared_with_as_many_above_as_below():
    """Bodies become taller down a healthy spine, by 1.5 mm from one to the next."""
    losses = [one["height_loss_percent"] for one in height_losses([body(24 + 1.5 * n) for n in range(6)])]
    assert [one.flags for one in losses] == [("low_confidence",), (), (), (), (), ("low_confidence",)]
    assert [one.value for one in losses[1:-1]] == pytest.approx([0] * 4)


@pytest.mark.parametrize(("lower", "flags"), [(29, ()), (20, ("low_confidence",))])
def test_one_body_on_each_side_tells_the_usual_height_if_both_are_alike(lower, flags):
    assert height_losses([body(30), body(30), body(lower)])[1]["height_loss_percent"].flags == flags


def test_where_few_bodies_are_sure_the_doubtful_ones_tell_the_usual_height_too():
    doubtful = body(28, "low_confidence")
    first = height_losses([body(20), doubtful, doubtful, doubtful, body(22)])[0]["height_loss_percent"]
    assert first == Measure.of(100 * 8 / 28, ("low_confidence",))


@pytest.mark.parametrize(("height", "flags"), [(18, ("low_confidence",)), (26, ())])
def test_where_all_bodies_are_flat_no_loss_is_sure(height, flags):
    """It would be 0 throughout a spine of collapsed bodies."""
    middle = height_losses([body(height, depth=36)] * 5)[2]
    assert middle == {"height_loss_percent": Measure.of(0, flags), "genant_grade": Measure.of(0, flags)}


@given(st.floats(-8, 8), st.floats(0.3, 2.0))
def test_edges_are_where_the_share_is_one_half(place, step):
    nodes = np.arange(-20, 20, step)
    share = np.clip(0.5 + (nodes - place) / (2 * step), 0, 1)
    assert edges(share, nodes, last=False) == pytest.approx(place, abs=1e-6)
    assert edges(share[::-1], -nodes[::-1], last=True) == pytest.approx(-place, abs=1e-6)
    assert np.isnan(edges(np.zeros(5), np.arange(5.0), last=True))


@given(st.floats(20, 40), st.floats(15, 35), st.floats(-0.3, 0.3), st.floats(0.4, 0.8))
@settings(max_examples=30, deadline=None)
def test_corners_of_a_trapezium(depth, height, slope, pixel):
    y, z = np.arange(-30, 30, pixel), np.arange(-30, 30, pixel)
    top = height / 2 + slope * y
    inside = (np.abs(y)[:, None] < depth / 2) & (z[None] < top[:, None]) & (z[None] > -height / 2)
    found = outline(inside.astype(np.float32), y, z)
    assert found is not None
    expected = [(s * depth / 2, height / 2 + slope * s * depth / 2) for s in (-1, 1)]
    expected += [(s * depth / 2, -height / 2) for s in (-1, 1)]
    assert np.linalg.norm(found.corners - np.array(expected), axis=1).max() < 1.6 * pixel


def test_a_section_with_an_empty_quarter_has_no_outline():
    share = np.zeros((60, 60), np.float32)
    share[5:9, 5:50] = share[45:55, 5:9] = 1
    y = np.arange(60.0)
    assert outline(share, y, y) is None


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.5, 6))
def test_smoothing_keeps_straight_lines(start, slope, sigma):
    line = start + slope * np.arange(40.0)[:, None]
    assert np.abs(smooth(line, sigma) - line).max() < 1e-6


@pytest.mark.parametrize("slip", [0.0, 10.0, 20.0])
def test_a_slip_does_not_change_a_disc_s_heights(slip):
    """Its mask fills the space between the endplates and is sheared with them."""
    pixel, gap, bodies = 0.7, 10.0, (44, 45)
    labels = np.zeros((11, 140, 160), np.uint8)
    rows, columns = (np.arange(n) * pixel for n in labels.shape[1:])
    row, column = np.meshgrid(rows, columns, indexing="ij")
    for n, value in enumerate(bodies):
        top = 15 + n * (27 + gap)
        shift = 0.0 if n else -slip  # to the front
        labels[:, (row > top) & (row < top + 27) & (np.abs(column - 40 - shift) < 17)] = value
    share = (row - 42) / gap
    labels[:, (row >= 42) & (row <= 42 + gap) & (np.abs(column - 40 + slip * (1 - share)) < 17)] = value_of("L4/L5")
    labels[3:8, (np.abs(column - 68) < 7)] = 2
    found = measure(Segmentation(labels, Geometry((160, 140, 11), (pixel, pixel, 4.0), (0, 0, 0), SLICES_TO_LEFT)))
    disc = found.row("L4/L5").measures
    assert [disc[name].value for name in HEIGHTS] == pytest.approx([gap] * 3, abs=0.8)
    assert disc["slip_mm"].value == pytest.approx(slip, abs=1.0)


def test_a_small_displacement_is_no_slip():
    found = measure(segmentation(geometry(**FINE)))
    row = found.row("L2/L3").measures
    assert abs(row["slip_mm"].value) < NO_SLIP_MM
    assert row["meyerding_grade"].value == 0


def plate(depth: float, back: float, estimated: bool = False) -> Endplate:
    """A level endplate of a depth that ends so many mm behind the space's origin."""
    frame = AnatomicalFrame.facing(np.zeros(3), np.array([0.0, -1, 0]), BACK)
    front, rear = (back - depth) * BACK, back * BACK
    return Endplate(front, rear, (front + rear) / 2, BACK, frame, 0.0, estimated=estimated)


@pytest.mark.parametrize(("heights", "degrees"), [((20, 40), 45), ((40, 20), -45)])
def test_a_body_of_too_steep_a_wedge_is_doubtful_whichever_way_it_opens(heights, degrees):
    upper = plate(20, 0)
    down = -upper.frame.axes[2]
    front, back = (end + height * down for end, height in zip((upper.front, upper.back), heights, strict=True))
    lower = replace(upper, front=front, back=back, middle=(front + back) / 2, along=(back - front) / np.hypot(20, 20))
    section = Section(value_of("L1"), upper.frame, upper, lower, None, upper.frame, frozenset())  # type: ignore[arg-type]
    wedge = body_measures(section)["wedge_angle_deg"]
    assert wedge.value == pytest.approx(degrees) and wedge.flags == ("low_confidence",)


@pytest.mark.parametrize(("estimated", "percent", "grade"), [(True, 100 / 3, 2), (False, 25, 1)])
def test_a_slip_is_no_part_of_an_estimated_endplate(estimated, percent, grade):
    """The disc that it is estimated from reaches as far as the body above has slipped."""
    slip = _slip(plate(30, -10), plate(40, 0, estimated))
    assert slip["slip_mm"].value == pytest.approx(10)
    assert slip["slip_percent"].value == pytest.approx(percent) and slip["meyerding_grade"].value == grade


@pytest.mark.parametrize(("gap", "expected"), [(2.0, 2.0), (5.0, 3.0), (-1.0, 0.0), (None, 0.0)])
def test_an_estimated_endplate_lies_as_far_below_its_disc_as_the_one_above_lies_above_it(gap, expected):
    """Up to 3 mm: farther away, the mask is no whole disc."""
    above, lower = plate(30, 0), plate(30, 0)
    up = above.frame.axes[2]
    upper = replace(above, middle=above.middle - (gap or 0) * up)
    disc = Section(value_of("L5/S1"), above.frame, upper, lower, None, above.frame, frozenset())  # type: ignore[arg-type]
    found = disc.as_endplate(None if gap is None else above)
    for moved, place in ((found.front, lower.front), (found.back, lower.back), (found.middle, lower.middle)):
        assert moved == pytest.approx(place - expected * up)
    assert found.estimated


@pytest.mark.parametrize(("back", "depth", "doubtful"), [(5, 30, False), (6.5, 40, True), (5, 24, True)])
def test_a_slip_far_back_is_doubtful(back, depth, doubtful):
    """So far back lie rounded corners and spurs."""
    slip = _slip(plate(depth, back), plate(depth, 0))
    assert slip["slip_mm"].value == pytest.approx(-back) and slip["meyerding_grade"].value == 0
    assert all(("low_confidence" in one.flags) == doubtful for one in slip.values())


def test_meyerding_s_bands_are_of_slips_forwards(measured):
    """Healthy L4/L5 discs in lordosis would otherwise have one."""
    backwards = measured[1][1].row("L4/L5").measures
    assert backwards["slip_mm"].value < -NO_SLIP_MM and backwards["meyerding_grade"].value == 0


def test_genant_s_bands_are_of_t4_to_l4(measured):
    for _, found in measured:
        assert "genant_grade" not in found.row("L5").measures
        assert found.row("L5").measures["height_loss_percent"].value is not None


def test_two_stray_voxels_end_no_measurement(thick):
    """The T5 that they pass for has no height."""
    labels = thick.labels.copy()
    labels[4, 5, [5, 7]] = value_of("T5")
    one = Segmentation(labels, thick.volume.geometry)
    assert measure(one).value("T5", HEIGHTS[0]) is None and measure(one).value("L3", HEIGHTS[0]) is not None
    assert np.array_equal(merge_parts(split_parts(one)).labels, labels)


def test_discs_at_one_place_show_no_line_to_measure_along():
    labels = np.zeros((6, 24, 24), np.uint8)
    labels[2, 9, 9], labels[[1, 3], 9, 9] = value_of("L1/L2"), value_of("L3/L4")
    one = Segmentation(labels, geometry(size=(24, 24, 6)))
    assert all(measure(one).value(level, name) is None for level in ("L1/L2", "L3/L4") for name in HEIGHTS)
    assert np.array_equal(split_parts(one).labels, labels)


def test_a_volume_smaller_than_its_label_values_is_measured():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1:3, 1:3, 1:3] = value_of("L5/L6")
    assert measure(Segmentation(labels, geometry(size=(4, 4, 4)))).rows
