"""The procedural phantom: what is asked for is there, its labels and its truth agree, the picture obeys the physics."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SAUNetLib.anatomy import structures, value_of
from SAUNetLib.errors import UsageError
from SAUNetLib.training.phantom import Phantom, PhantomOptions, dataset, make_phantom
from SAUNetLib.training.phantom.render import drop_specks
from SAUNetLib.volume import SagittalStack, check_volume

LUMBAR = ("L1", "L2", "L3", "L4", "L5")
DISCS = ("L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
TINY = {"slices": 1, "pixel": 3.0, "field_of_view": (60.0, 60.0)}


@cache
def usual(contrast: Literal["t1", "t2", "stir"] = "t2", seed: int = 1) -> Phantom:
    return make_phantom(PhantomOptions(seed=seed, contrast=contrast, pixel=1.0, noise=0.0, bias=0.0))


@cache
def thin() -> Phantom:
    """Midline slices for measuring."""
    flat = {**dict.fromkeys(DISCS, 0.0), "T12/L1": 0.0}
    diameters = {"L3/L4": 7.0, "L4": 11.0, "L2": 15.0}
    return make_phantom(
        PhantomOptions(
            seed=4, slices=5, slice_thickness=1.0, gap=0.0, scoliosis=0.0, slip=flat, canal_diameter=diameters,
            disc_height_loss={"L4/L5": 0.5}, wedge={"L1": 12.0}, field_of_view=(300.0, 160.0),
        )
    )  # fmt: skip


def truth(**options: object) -> Phantom:
    return make_phantom(PhantomOptions(**TINY, **options))  # type: ignore[arg-type]


def length(phantom: Phantom, centre: np.ndarray, toward: np.ndarray, value: int, reach: float) -> float:
    """mm of a label along a line, its samples taken from the nearest voxels."""
    geometry = phantom.volume.geometry
    steps = np.arange(-reach, reach, 0.05)
    points = centre + steps[:, None] * toward / np.linalg.norm(toward) - np.array(geometry.origin)
    index = np.rint(points @ geometry.direction / np.array(geometry.spacing)).astype(int)
    inside = ((index >= 0) & (index < np.array(geometry.size))).all(1)
    i, j, k = index[inside].T
    return float((phantom.labels[k, j, i] == value).sum() * 0.05)


def components(mask: np.ndarray) -> int:
    labelled = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return int(sitk.GetArrayFromImage(labelled).max())


def test_same_options_same_bits() -> None:
    options = PhantomOptions(seed=5, slices=3, pixel=1.5)
    first, second, other = (
        make_phantom(options),
        make_phantom(options),
        make_phantom(PhantomOptions(6, "t2", 3, pixel=1.5)),
    )
    assert np.array_equal(first.volume.voxels, second.volume.voxels)
    assert np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.labels, other.labels)


def test_grid() -> None:
    phantom = usual()
    check_volume(phantom.volume)
    assert phantom.labels.shape == phantom.volume.voxels.shape == (19, 300, 240)
    assert phantom.labels.dtype == np.uint8
    stack = SagittalStack.of(phantom.volume)
    assert stack.slice_spacing == pytest.approx(4.4)
    labels = stack.with_slices(np.asarray(stack.slices)).restore(stack.slices)
    assert np.array_equal(labels, phantom.volume.voxels)
    image = sitk.GetImageFromArray(phantom.labels)
    assert image.GetSize() == phantom.volume.geometry.size


def test_orientation() -> None:
    """Rows run down, columns to the back, slices to the right: checked where anatomy leaves no doubt."""
    phantom = usual()
    middle = {level: np.argwhere(phantom.labels == value_of(level)).mean(0) for level in ("L1", "L5", "S1")}
    canal = np.argwhere(phantom.labels[:, : int(middle["L5"][1])] == 2).mean(0)
    bodies = np.argwhere(phantom.labels == value_of("L2/L3")).mean(0)
    assert middle["L1"][1] < middle["L5"][1] < middle["S1"][1]
    assert bodies[2] < canal[2]
    liver_side = phantom.volume.geometry.direction[:, 2]
    assert np.allclose(liver_side, (-1, 0, 0))


def test_only_known_labels_and_all_of_them() -> None:
    found = set(np.unique(usual().labels).tolist()) - {0}
    assert found <= set(structures())
    assert {value_of(level) for level in (*LUMBAR, *DISCS, "T12", "T12/L1", "S1")} | {2} <= found


@pytest.mark.parametrize("seed", [1, 2])
def test_each_vertebra_and_disc_is_one_piece(seed: int) -> None:
    labels = usual(seed=seed).labels
    assert {level: components(labels == value_of(level)) for level in (*LUMBAR, *DISCS)} == dict.fromkeys(
        (*LUMBAR, *DISCS), 1
    )
    assert components(labels == 2) == 1


def test_vertebrae_have_posterior_elements_and_processes_on_both_sides() -> None:
    phantom = usual()
    geometry = phantom.volume.geometry
    for level in ("L2", "L3", "L4"):
        found = geometry.points(np.argwhere(phantom.labels == value_of(level))[:, ::-1])
        centre, depth = phantom.truth.bodies[level].centre, phantom.truth.bodies[level].depth
        assert (found[:, 1] > centre[1] + depth / 2 + 30).any(), "no spinous process"
        for side in (-1, 1):
            assert ((found[:, 0] - centre[0]) * side > 28).any(), "no transverse process"


def test_discs_touch_only_their_own_vertebrae() -> None:
    labels = usual().labels
    pairs = set()
    for axis in (0, 1, 2):
        first, second = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        different = first != second
        pairs |= set(zip(first[different].tolist(), second[different].tolist(), strict=True))
    for disc in DISCS:
        value = value_of(disc)
        touched = {b for a, b in pairs if a == value} | {a for a, b in pairs if b == value}
        assert touched - {0, 2} == {value_of(level) for level in disc.split("/")}


def test_canal_runs_through_every_row_down_to_the_sacrum() -> None:
    labels = usual().labels
    sacrum = np.argwhere(labels == value_of("S1"))[:, 1].min()
    assert (labels[:, : sacrum + 10] == 2).any((0, 2)).all()


def test_wide_field_of_view_holds_the_whole_spine() -> None:
    phantom = make_phantom(PhantomOptions(seed=2, slices=29, pixel=1.5, scoliosis=10.0))
    outer = phantom.labels[[0, -1]]
    assert set(np.unique(outer)) <= {0}
    assert (phantom.labels == value_of("L3")).any()


@pytest.mark.parametrize("level", ["L2", "L3", "L4", "L5", "L1"])
def test_body_height_on_labels(level: str) -> None:
    phantom = thin()
    body = phantom.truth.bodies[level]
    upward = body.corners[:2].mean(0) - body.corners[2:].mean(0)
    assert length(phantom, body.centre, upward, value_of(level), 22) == pytest.approx(body.middle, abs=0.6)


@pytest.mark.parametrize("disc", DISCS[:4])
def test_disc_height_on_labels(disc: str) -> None:
    phantom = thin()
    upper, lower = (phantom.truth.bodies[level].corners for level in disc.split("/"))
    upward = upper[2:].mean(0) - lower[:2].mean(0)
    expected = phantom.truth.discs[disc]
    assert length(phantom, expected.centre, upward, value_of(disc), 12) == pytest.approx(expected.middle, abs=0.6)


@pytest.mark.parametrize("place", ["L3/L4", "L4", "L2", "L2/L3", "L3", "L4/L5"])
def test_canal_diameter_on_labels(place: str) -> None:
    phantom = thin()
    points = phantom.truth.canal_points
    order = sorted(points, key=lambda name: points[name][2])
    n = order.index(place)
    along = points[order[n + 1]] - points[order[n - 1]]
    across = np.array((0.0, along[2], -along[1]))
    measured = length(phantom, points[place], across, 2, 14)
    assert measured == pytest.approx(phantom.truth.canal[place], abs=0.6)


def test_given_canal_diameters_are_the_true_ones() -> None:
    assert {name: thin().truth.canal[name] for name in ("L3/L4", "L4", "L2")} == {"L3/L4": 7.0, "L4": 11.0, "L2": 15.0}


def test_disc_height_loss_takes_its_fraction() -> None:
    whole, flat = (truth(seed=3, disc_height_loss={"L3/L4": loss}).truth.discs["L3/L4"] for loss in (0.0, 0.6))
    assert flat.middle == pytest.approx(0.4 * whole.middle, rel=1e-6)
    assert flat.height_loss == 0.6
    assert flat.degeneration >= 3


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 50),
    lordosis=st.floats(15, 75),
    scoliosis=st.floats(-40, 40),
    slip=st.floats(-5, 10),
    wedge=st.floats(0, 22),
    lumbar=st.integers(4, 6),
)
def test_given_curves_slips_and_wedges_are_the_true_ones(
    seed: int, lordosis: float, scoliosis: float, slip: float, wedge: float, lumbar: int
) -> None:
    found = truth(
        seed=seed, lordosis=lordosis, scoliosis=scoliosis, lumbar=lumbar, slip={"L3/L4": slip}, wedge={"L2": wedge}
    ).truth
    levels = [f"L{n}" for n in range(1, lumbar + 1)]
    discs = ["L5/S1"] + [f"{upper}/{lower}" for upper, lower in pairwise(levels)]
    total = sum(found.discs[disc].angle for disc in discs) - sum(found.bodies[level].wedge for level in levels)
    assert total == pytest.approx(lordosis, abs=1e-6)
    front, back = found.bodies["L1"].corners[:2]
    rise = np.degrees(np.arctan2(back[2] - front[2], back[1] - front[1]))
    if abs(scoliosis) < 5:  # otherwise the rim's line is turned out of the sagittal plane
        assert rise == pytest.approx(found.sacral_slope - lordosis, abs=0.5)
    assert found.discs["L3/L4"].slip == pytest.approx(slip, abs=0.05)
    assert found.bodies["L2"].wedge == pytest.approx(wedge, abs=1e-6)
    assert found.scoliosis == scoliosis
    for body in found.bodies.values():
        assert min(body.anterior, body.middle, body.posterior) > 8
    for disc in found.discs.values():
        assert disc.middle > 0.5


def test_a_wedged_body_is_lower_in_front_by_what_its_depth_and_angle_say() -> None:
    body = truth(seed=3, wedge={"L1": 20.0}, scoliosis=0.0).truth.bodies["L1"]
    assert body.posterior - body.anterior == pytest.approx(2 * body.depth * np.sin(np.radians(10)), abs=0.05)


def test_the_dural_sac_gives_way_to_a_slip() -> None:
    """Its front lies behind the rims of both bodies."""
    found = truth(seed=3, slip={"L4/L5": 10.0}, scoliosis=0.0).truth
    front = found.canal_points["L4/L5"][1] - found.canal["L4/L5"] / 2
    assert front > max(found.bodies["L5"].corners[1][1], found.bodies["L4"].corners[3][1]) - 1


@pytest.mark.parametrize("angle", [30.0, -20.0])
def test_scoliosis_on_labels(angle: float) -> None:
    """The planes fitted to the discs lean apart by the Cobb angle."""
    phantom = make_phantom(PhantomOptions(seed=2, scoliosis=angle, slices=23, gap=0.0, pixel=1.3))
    leans = []
    for disc in ("T11/T12", "T12/L1", "L1/L2", "L2/L3", "L3/L4", "L4/L5"):
        points = phantom.volume.geometry.points(np.argwhere(phantom.labels == value_of(disc))[:, ::-1])
        design = np.column_stack((points[:, :2], np.ones(len(points))))
        leans.append(-np.degrees(np.arctan(np.linalg.lstsq(design, points[:, 2], rcond=None)[0][0])))
    # A disc leans as the mean of its two endplates: the outermost discs differ by a little less than Cobb's angle.
    assert 0.84 < (leans[0] - leans[-1]) / angle < 1.02
    assert 0.84 < (max(leans) - min(leans)) / abs(angle) < 1.05


def test_patient_does_not_depend_on_the_scan() -> None:
    first = truth(seed=8).truth
    second = make_phantom(
        PhantomOptions(8, "t1", 2, pixel=2.5, field_of_view=(200.0, 150.0), noise=0.1, bias=1.0)
    ).truth
    assert first.bodies.keys() == second.bodies.keys()
    for level, body in first.bodies.items():
        assert np.array_equal(body.corners, second.bodies[level].corners)
    assert first.canal == second.canal
    assert np.array_equal(usual("t1").labels, usual("t2").labels)


def test_contrasts_are_ordered_as_physics_demands() -> None:
    labels = usual().labels
    middle = slice(labels.shape[0] // 2, labels.shape[0] // 2 + 1)
    below_conus = np.argwhere(labels[middle] == value_of("L4"))[:, 1].mean().astype(int)
    csf = np.zeros(labels[middle].shape, bool)
    csf[:, below_conus - 15 : below_conus + 15] = (labels[middle] == 2)[:, below_conus - 15 : below_conus + 15]
    bone = (labels[middle] == value_of("L3")) | (labels[middle] == value_of("L4"))
    fat = (usual("t1").volume.voxels[middle] > 850) & (labels[middle] == 0)
    signal = {
        contrast: [float(np.median(usual(contrast).volume.voxels[middle][mask])) for mask in (csf, bone, fat)]
        for contrast in ("t1", "t2", "stir")
    }
    assert fat.sum() > 1000
    assert signal["t2"][0] > signal["t2"][2] > signal["t2"][1]
    assert signal["t1"][0] < signal["t1"][1] < signal["t1"][2]
    assert signal["stir"][0] > 5 * signal["stir"][2]
    assert signal["stir"][2] < signal["stir"][1]


def test_thick_slice_is_the_mean_of_thin_ones() -> None:
    options = PhantomOptions(seed=9, slices=3, pixel=1.2, gap=0.0, noise=0.0, bias=0.0, field_of_view=(200.0, 150.0))
    thick = make_phantom(options).volume.voxels
    fine = make_phantom(replace(options, slices=12, slice_thickness=1.0)).volume.voxels
    mean = fine.reshape(3, 4, *fine.shape[1:]).mean(1)
    assert np.corrcoef(thick.ravel(), mean.ravel())[0, 1] > 0.985
    assert thick.mean() == pytest.approx(mean.mean(), rel=0.01)


def test_noise_and_bias_are_as_strong_as_asked() -> None:
    shared = {"seed": 3, "slices": 1, "pixel": 1.0}
    clean, noisy, shaded = (
        make_phantom(PhantomOptions(noise=noise, bias=bias, **shared)).volume.voxels.astype(float)  # type: ignore[arg-type]
        for noise, bias in ((0.0, 0.0), (0.05, 0.0), (0.0, 1.0))
    )
    bright = clean > 400
    assert np.std((noisy - clean)[bright]) == pytest.approx(50, rel=0.05)
    assert noisy[clean == 0].mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.05)  # Rayleigh in air
    ratio = np.where(bright, shaded / np.maximum(clean, 1), np.nan)[0]
    columns = np.flatnonzero(np.isfinite(ratio).sum(0) > 20)
    assert np.nanmean(ratio[:, columns[-20:]]) > 2 * np.nanmean(ratio[:, columns[:20]])


@pytest.mark.parametrize(("lumbar", "present", "absent"), [(6, (46, 96, 100), ()), (4, (44, 100), (45, 95))])
def test_number_of_lumbar_vertebrae(lumbar: int, present: tuple[int, ...], absent: tuple[int, ...]) -> None:
    found = set(np.unique(make_phantom(PhantomOptions(seed=1, lumbar=lumbar, slices=3, pixel=1.5)).labels).tolist())
    assert found.issuperset(present)
    assert found.isdisjoint(absent)


def test_ribs_change_the_picture_and_not_the_labels() -> None:
    with_ribs, without = (make_phantom(PhantomOptions(seed=1, ribs=ribs, pixel=1.5)) for ribs in (True, False))
    assert np.array_equal(with_ribs.labels, without.labels)
    assert not np.array_equal(with_ribs.volume.voxels, without.volume.voxels)


def test_vertebrae_may_be_drawn_as_readers_do_in_all_slices_that_show_them() -> None:
    """Nothing else changes: not the picture, nor what is labelled otherwise."""
    exact, wide = (make_phantom(PhantomOptions(seed=1, vertebra_from=share, pixel=1.5)) for share in (0.5, 0.25))
    assert np.array_equal(exact.volume.voxels, wide.volume.voxels)
    more = exact.labels != wide.labels
    assert not exact.labels[more].any()
    assert {structures()[value].kind for value in np.unique(wide.labels[more]).tolist()} == {"vertebra"}
    slices = [[np.any(one.labels == value_of(level), (1, 2)).sum() for level in LUMBAR] for one in (exact, wide)]
    assert 0 < np.mean(slices[1]) - np.mean(slices[0]) < 2


def test_phantoms_to_train_on_are_drawn_as_readers_do() -> None:
    assert dataset.draw_options(0).vertebra_from == dataset.READERS_DRAW_FROM < PhantomOptions().vertebra_from


def test_specks_are_measured_in_mm3() -> None:
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[0, 5:25, 5:25], labels[0, 40:45, 5:15], labels[0, 40:43, 30:40] = 43, 43, 43
    drop_specks(labels, 2.0)
    assert labels[0, 42, 10] == 43 and labels[0, 41, 35] == 0, "100 mm3 stay, 60 do not"


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrast": "pd"},
        {"vertebra_from": 0.6},
        {"pixel": 0.0},
        {"slices": 0},
        {"slice_thickness": float("nan")},
        {"gap": -1.0},
        {"lumbar": 7},
        {"lordosis": 120.0},
        {"wedge": {"L1": 60.0}},
        {"canal_diameter": {"L3": 40.0}},
        {"field_of_view": (1000.0, 200.0)},
    ],
)
def test_impossible_values_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError) as caught:
        PhantomOptions(**wrong)
    assert caught.value.code == "USAGE"


@pytest.mark.parametrize("slip", [-8.0, 6.0, 12.0])
def test_a_slipped_body_keeps_its_corner(slip):
    """The dural sac goes round it."""
    made = make_phantom(PhantomOptions(seed=21, slices=5, slice_thickness=1.0, gap=0.0, scoliosis=0.0,
                                       slip={"L3/L4": slip}))  # fmt: skip
    level, corner = ("L4", 1) if slip > 0 else ("L3", 3)
    body = made.truth.bodies[level]
    inward = body.centre - body.corners[corner]
    for mm in (1.0, 2.0, 4.0):
        place = body.corners[corner] + inward / np.linalg.norm(inward) * mm
        grid = made.volume.geometry
        index = np.linalg.solve(np.asarray(grid.direction) * grid.spacing, place - grid.origin).round().astype(int)
        assert made.labels[tuple(index[::-1])] == value_of(level)


@pytest.mark.parametrize("knob", ["wedge", "slip", "disc_height_loss", "canal_diameter"])
def test_unknown_levels_are_refused(knob: str) -> None:
    with pytest.raises(UsageError, match="L9"):
        truth(**{knob: {"L9": 5.0 if knob != "disc_height_loss" else 0.5}})


def test_of_a_phantom_that_cannot_be_written_whole_no_file_stays(tmp_path, monkeypatch) -> None:
    def fails(*_):
        raise UsageError("OUTPUT_WRITE", "the disk is full", "Free some space")

    monkeypatch.setattr(dataset, "write_segmentation", fails)
    with pytest.raises(UsageError):
        dataset.write_phantom(truth(seed=1), tmp_path / "a.nii.gz", tmp_path / "a_labels.nii.gz")
    assert not list(tmp_path.iterdir())
