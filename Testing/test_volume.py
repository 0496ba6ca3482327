"""Geometry: every axis order, oblique directions, one slice, and what cannot be trusted."""

import itertools
from dataclasses import astuple

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from builders import SLICES_TO_LEFT, SLICES_TO_RIGHT, euler, least_seconds, rearranged
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from strategies import ANGLES, FLIPS, ORDERS

from SAUNetLib.errors import InputError
from SAUNetLib.formats.volumes import read_volume, write_volume
from SAUNetLib.volume import (
    Geometry,
    Intensity,
    SagittalStack,
    Volume,
    check_geometry,
    check_volume,
    on_grid,
    to_sitk,
)


def volume(shape=(5, 40, 30), spacing=(0.8, 0.8, 4.0), direction=SLICES_TO_LEFT, dtype=np.float32) -> Volume:
    voxels = np.random.default_rng(3).normal(100, 20, shape).astype(dtype)
    return Volume(voxels, Geometry(tuple(reversed(shape)), spacing, (3.0, -20.0, 70.0), direction), "test")


@settings(max_examples=60, deadline=None)
@given(ORDERS, FLIPS, ANGLES)
def test_stack_is_the_same_whatever_the_order_of_axes_and_comes_back_exactly(order, reverse, angles):
    source = volume(direction=euler(angles) @ SLICES_TO_LEFT)
    other = rearranged(source, order, reverse)
    check_volume(other)
    stack, reference = SagittalStack.of(other), SagittalStack.of(source)
    assert np.array_equal(stack.slices, reference.slices)
    assert stack.pixel == pytest.approx(reference.pixel) and stack.slice_spacing == pytest.approx(4.0)
    assert np.array_equal(stack.restore(stack.slices), other.voxels)


@settings(max_examples=30, deadline=None)
@given(ORDERS, FLIPS)
def test_slices_are_canonical(order, reverse):
    """Rows run to inferior, columns to posterior, slices to the left."""
    source = rearranged(volume(), order, reverse)
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in source.voxels.shape), indexing="ij"), -1)[..., ::-1]
    points = source.geometry.points(indices)
    left, posterior, superior = (
        SagittalStack.of(Volume(points[..., axis], source.geometry)).slices for axis in range(3)
    )
    assert (np.diff(left, axis=0) > 0).all()
    assert (np.diff(superior, axis=1) < 0).all()
    assert (np.diff(posterior, axis=2) > 0).all()


@settings(max_examples=30, deadline=None)
@given(ORDERS, FLIPS, ANGLES)
def test_a_grid_is_its_size_and_matrix(order, reverse, angles):
    grid = rearranged(volume(direction=euler(angles) @ SLICES_TO_LEFT), order, reverse).geometry
    corner = np.array(grid.size) - 1
    assert (grid.matrix @ [*corner, 1])[:3] == pytest.approx(grid.points(corner))
    again = Geometry.of_matrix(grid.size, grid.matrix)
    assert again.size == grid.size and again.spacing == pytest.approx(grid.spacing) and again.same_grid(grid)


def test_one_slice_is_a_stack():
    stack = SagittalStack.of(volume((1, 40, 30)))
    assert stack.slices.shape == (1, 40, 30)


@pytest.mark.parametrize("take", [SagittalStack.restore, SagittalStack.with_slices])
def test_another_shape_is_refused(take):
    with pytest.raises(ValueError, match="shape"):
        take(SagittalStack.of(volume()), np.zeros((1, 2, 3)))


@settings(max_examples=20, deadline=None)
@given(ORDERS, FLIPS)
def test_a_cropped_stack_is_that_of_the_cropped_volume(order, reverse):
    source = rearranged(volume(), order, reverse)
    stack, box = SagittalStack.of(source), (slice(1, 4), slice(5, 30), slice(2, 20))
    crop = stack.source_box(box)
    again = SagittalStack.of(Volume(source.voxels[crop], source.geometry.part(crop)))
    assert np.array_equal(stack.cropped(box).slices, again.slices)
    assert np.array_equal(stack.cropped(box).restore(again.slices), source.voxels[crop])


def test_working_shape_keeps_the_field_of_view_and_has_a_least_size():
    stack = SagittalStack.of(volume())
    assert stack.working_shape(0.4) == (80, 60)
    assert stack.working_shape(100) == (16, 16)


@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_stacks_of_other_planes_are_refused_by_name(plane):
    spacing = {"axial": (0.8, 4.0, 0.8), "coronal": (4.0, 0.8, 0.8)}[plane]
    with pytest.raises(InputError, match=plane) as caught:
        check_volume(volume(spacing=spacing))
    assert caught.value.code == "INPUT_NOT_SAGITTAL"


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), euler((0.0, 0.0, 5.0))])
def test_slices_without_an_orientation_may_be_sagittal_after_all(direction):
    """A file that says nothing of its axes has the identity for them, and is an axial stack by that."""
    with pytest.raises(InputError, match="axial") as caught:
        check_volume(volume(direction=direction))
    straight = np.array_equal(np.abs(direction), np.eye(3))
    assert ("lost their orientation: convert the series again" in caught.value.remedy) == straight


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_isotropic_volumes_of_any_plane_are_accepted(order):
    sagittal = volume((20, 40, 30), (1.0, 1.0, 1.0))
    source = rearranged(sagittal, order, (False, True, False))
    check_volume(source)
    assert np.array_equal(SagittalStack.of(source).slices, SagittalStack.of(sagittal).slices)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"spacing": (0.8, 0.0, 4.0)}, "INPUT_SPACING"),
        ({"spacing": (0.8, -0.8, 4.0)}, "INPUT_SPACING"),
        ({"spacing": (np.nan, 0.8, 4.0)}, "INPUT_SPACING"),
        ({"spacing": (0.0008, 0.0008, 0.004)}, "INPUT_SPACING"),
        ({"spacing": (800.0, 800.0, 4000.0)}, "INPUT_SPACING"),
        ({"spacing": (5.0, 5.0, 5.0)}, "INPUT_SPACING"),
        ({"spacing": (0.8, 0.8, 1e-6)}, "INPUT_SPACING"),
        ({"spacing": (0.8, 0.8, 25.0)}, "INPUT_SPACING"),
        ({"size": (30, 2600, 5)}, "INPUT_SPACING"),
        ({"size": (2600, 30, 5)}, "INPUT_SPACING"),
        ({"direction": SLICES_TO_LEFT * 1.1}, "INPUT_DIRECTION"),
        ({"direction": SLICES_TO_LEFT + 0.05 * np.eye(3)}, "INPUT_DIRECTION"),
        ({"direction": np.zeros((3, 3))}, "INPUT_DIRECTION"),
        ({"direction": np.full((3, 3), np.nan)}, "INPUT_DIRECTION"),
        ({"origin": (np.inf, 0.0, 0.0)}, "INPUT_DIRECTION"),
        ({"size": (4096, 4096, 4096)}, "INPUT_TOO_LARGE"),
    ],
)
def test_untrustworthy_geometry_is_refused(change, code):
    values = {"size": (30, 40, 5), "spacing": (0.8, 0.8, 4.0), "origin": (0.0, 0.0, 0.0), "direction": SLICES_TO_LEFT}
    with pytest.raises(InputError) as caught:
        check_geometry(Geometry(**(values | change)), "test")
    assert caught.value.code == code
    assert "test" in caught.value.cause and caught.value.remedy


def test_too_many_voxels_are_refused_with_the_limit():
    with pytest.raises(InputError, match="4096 x 4096 x 4096 voxels; the limit is 268 million"):
        check_geometry(Geometry((4096, 4096, 4096), (0.8, 0.8, 0.8), (0.0, 0.0, 0.0), SLICES_TO_LEFT))


def test_one_axis_with_small_voxels_makes_no_stack_of_another_plane():
    """1.2 x 1 mm pixels, slices 0.5 mm apart: nothing is thick."""
    check_geometry(Geometry((200, 240, 100), (1.2, 1.0, 0.5), (0.0, 0.0, 0.0), SLICES_TO_LEFT), "test")


def test_left_handed_axes_are_no_shear():
    mirrored = volume(direction=SLICES_TO_RIGHT)
    check_volume(mirrored)
    assert np.array_equal(SagittalStack.of(mirrored).slices, SagittalStack.of(volume()).slices[::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    source = volume()
    source.voxels[2, 3, 4] = value
    with pytest.raises(InputError) as caught:
        check_volume(source)
    assert caught.value.code == "INPUT_VALUES"


def test_constant_data_are_refused():
    source = volume()
    source.voxels[:] = 7
    with pytest.raises(InputError) as caught:
        check_volume(source)
    assert caught.value.code == "INPUT_CONSTANT"


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (sitk.Image([8, 8], sitk.sitkFloat32), "INPUT_DIMENSION"),
        (sitk.Image([8, 8, 8, 3], sitk.sitkFloat32), "INPUT_DIMENSION"),
        (sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), "INPUT_PIXEL_TYPE"),
        (sitk.Image([8, 8, 8], sitk.sitkComplexFloat32), "INPUT_PIXEL_TYPE"),
    ],
)
def test_images_that_are_no_greyscale_volume_are_refused(image, code):
    with pytest.raises(InputError) as caught:
        Volume.from_sitk(image, "test")
    assert caught.value.code == code


def test_a_single_time_point_is_a_volume():
    assert Volume.from_sitk(sitk.Image([8, 9, 7, 1], sitk.sitkInt16)).voxels.shape == (7, 9, 8)


def test_sitk_and_back_is_exact():
    source = volume(direction=euler((5, 3, -8)) @ SLICES_TO_LEFT)
    again = Volume.from_sitk(to_sitk(source.voxels, source.geometry))
    assert np.array_equal(again.voxels, source.voxels)
    assert again.geometry.same_grid(source.geometry)


@pytest.mark.parametrize("dtype", [bool, ">i2", ">u2", ">f4", "<f2", ">f2", np.longdouble, np.int64])
def test_voxels_of_any_real_type_go_into_itk(dtype):
    source = volume()
    voxels = source.voxels.astype(dtype)
    again = Volume.from_sitk(to_sitk(voxels, source.geometry)).voxels
    assert np.array_equal(again, voxels) and again.dtype.isnative and again.dtype.kind in "iuf"


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_voxels_that_are_no_intensities_are_refused(dtype):
    source = volume()
    with pytest.raises(InputError) as caught:
        check_volume(Volume(source.voxels.astype(dtype), source.geometry))
    assert caught.value.code == "INPUT_PIXEL_TYPE"


def test_grids_are_compared_by_position():
    one = volume().geometry
    assert one.same_grid(Geometry(one.size, one.spacing, (3.0 + 1e-6, -20.0, 70.0), one.direction))
    assert not one.same_grid(Geometry(one.size, one.spacing, (3.1, -20.0, 70.0), one.direction))
    assert not one.same_grid(Geometry((30, 40, 6), one.spacing, one.origin, one.direction))
    aside = np.asarray(one.origin) + 0.04 * min(one.spacing)  # as a turned grid comes back from NIfTI
    assert one.same_grid(Geometry(one.size, one.spacing, tuple(aside.tolist()), one.direction))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_normalised_intensities_have_zero_mean_and_unit_deviation(dtype):
    slices = volume((5, 60, 60), dtype=dtype).voxels
    single = slices.astype(np.float32)
    normal = Intensity.of(slices).normalise(single)
    assert normal.dtype == np.float32
    assert np.array_equal(single, slices.astype(np.float32)), "what is given stays"
    assert np.array_equal(Intensity.of(slices).normalise(torch.from_numpy(single)).numpy(), normal)
    assert abs(normal.mean()) < 1e-3 and abs(normal.std() - 1) < 1e-3


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1e4) | st.sampled_from([1e-12, 1e-9, 1e-7]), st.floats(-1e4, 1e4))
def test_normalisation_forgets_scale_and_offset(scale, offset):
    slices = volume((3, 40, 40), dtype=np.float64).voxels
    other = slices * scale + offset * min(1.0, scale)
    np.testing.assert_allclose(Intensity.of(other).normalise(other), Intensity.of(slices).normalise(slices), atol=2e-2)


def test_a_few_bright_pixels_in_an_empty_field_do_not_divide_by_zero():
    slices = np.zeros((3, 100, 100), np.int16)
    slices[1, 5, 5] = 1000
    intensity = Intensity.of(slices)
    assert np.isfinite(intensity.normalise(slices)).all()
    assert (intensity.low, intensity.high) == (0, 1000), (
        "nor are they clipped to what is hardly brighter than the field"
    )


def test_values_that_float32_cannot_tell_apart_do_not_divide_by_zero():
    slices = 1e10 + np.arange(7.0).repeat(100).reshape(1, 70, 10)
    with np.errstate(all="raise"):
        assert np.isfinite(Intensity.of(slices).unit(slices)).all()


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 40, 31), (2, 1100, 1000)])
def test_intensities_are_clipped_at_numpy_s_percentiles(shape, dtype):
    slices = np.random.default_rng(5).normal(300, 80, shape).astype(dtype)
    step = 2 if slices.size > Intensity.SAMPLE else 1
    found = Intensity.of(slices)
    expected = np.percentile(slices[:, ::step, ::step].astype(np.float64), Intensity.PERCENTILES)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.uint8, np.int8, np.int16, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
    )
)
def test_whole_numbers_are_counted_with_the_same_result(slices):
    counted, sorted_ = Intensity.of(slices), Intensity.of(slices.astype(np.float32))
    np.testing.assert_allclose(astuple(counted), astuple(sorted_), rtol=1e-12, atol=1e-12)


def test_whole_numbers_are_counted_faster_than_they_are_sorted():
    slices = np.random.default_rng(5).gamma(2, 150, (12, 400, 400)).astype(np.int16)
    single = slices.astype(np.float32)
    counted, sorted_ = (least_seconds(lambda image=image: Intensity.of(image)) for image in (slices, single))
    assert counted < 0.7 * sorted_


@given(ORDERS, FLIPS, ANGLES)
@settings(max_examples=60, deadline=None)
def test_a_volume_whose_axes_were_turned_is_laid_back_onto_its_grid(order, reverse, angles):
    """As 3D Slicer turns left-handed images when it loads them."""
    source = volume((5, 9, 7), direction=euler(angles) @ SLICES_TO_LEFT)
    laid = on_grid(rearranged(source, order, reverse), source.geometry, "it")
    assert laid.geometry.same_grid(source.geometry)
    assert np.array_equal(laid.voxels, source.voxels)


def test_other_voxels_are_not_laid_onto_a_grid():
    source = volume((5, 9, 7))
    grid = source.geometry
    others = (
        Geometry((7, 9, 6), grid.spacing, grid.origin, grid.direction),
        Geometry(grid.size, (0.8, 0.9, 4.0), grid.origin, grid.direction),
        Geometry(grid.size, grid.spacing, (3.5, -20.0, 70.0), grid.direction),
        Geometry(grid.size, grid.spacing, grid.origin, euler((3, 0, 0)) @ SLICES_TO_LEFT),
        Geometry(grid.size, grid.spacing, grid.origin, euler((45, 45, 0)) @ SLICES_TO_LEFT),
    )
    for other in others:
        with pytest.raises(InputError, match="INPUT_GEOMETRY"):
            on_grid(source, other, "another")


@pytest.mark.parametrize("decimals", [2, 3, 4, 6])
def test_axes_that_were_rounded_come_back_from_nifti_as_the_same_grid(tmp_path, decimals):
    """DICOM's orientations are decimal text; NIfTI keeps the nearest rotation."""
    direction = np.round(euler((12, -7, 9)) @ SLICES_TO_LEFT, decimals)
    grid = Geometry((320, 320, 15), (0.9, 0.9, 4.0), (3.0, -40.0, 120.0), direction)
    volume = Volume(np.arange(320 * 320 * 15, dtype=np.int16).reshape(15, 320, 320), grid)
    if decimals == 2:
        with pytest.raises(InputError):
            check_volume(volume)
        return
    check_volume(volume)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_volume(volume, tmp_path / f"a{ending}")
        assert read_volume(tmp_path / f"a{ending}").geometry.same_grid(grid)
    beside = Geometry(grid.size, grid.spacing, (3.1, -40.0, 120.0), direction)
    assert not beside.same_grid(grid), "a ninth of a pixel is another place"


def test_grids_that_are_sheared_more_than_an_image_may_be_differ():
    sheared = SLICES_TO_LEFT @ np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    grids = [Geometry((48, 64, 4), (1.2, 1.2, 4.0), (0.0, 0.0, 0.0), axes) for axes in (SLICES_TO_LEFT, sheared)]
    assert not grids[0].same_grid(grids[1]) and grids[1].same_grid(grids[1])
