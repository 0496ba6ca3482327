"""A volume with its geometry, its view as a stack of sagittal slices, and the mapping back to the source grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import SimpleITK as sitk

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = TypeVar("Pixels", np.ndarray, "Tensor")

LARGEST_PIXEL_MM = 3.0
"""Coarser pixels than this show no disc; the image is refused."""
SMALLEST_STEP_MM, LARGEST_STEP_MM, LARGEST_FIELD_MM = 0.05, 20.0, 2000.0
"""Limits of voxel spacing, slice spacing and the extent of a slice: beyond them the unit is not mm."""
FARTHEST_MM = 6.0
"""Largest slice spacing in anything that a model was trained or measured on."""
THICK_RATIO = 1.5
"""An axis is thick when its voxels are this many times longer than along the other two."""
SMALLEST_SLICE = 4
"""Fewest rows and columns of a sagittal slice."""
LARGEST_VALUE = 1e30
"""Largest intensity; well within single precision."""
LABELS, FLAT = 64, 0.8
"""A label map has at most this many values, and more than this share of neighbours along a line are equal."""
AIR_HU, CT_AIR = (-1100, -900), 0.05
"""Hounsfield units of air, and the share of voxels that must have them in what is taken for a CT."""
CT_RANGE = (-3100, 100)
"""A CT's lowest value, padding included, is no lower than the first, and its highest one above the second."""
ORTHONORMAL_TOLERANCE = 1e-3
MOST_VOXELS = 2**28
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4), from the patient's axes of ITK and DICOM to Slicer's, and back."""
STRAIGHTEN = "Resample it to a grid with perpendicular axes first (in Slicer: harden the acquisition transform)"
SHRINK = "Crop it to the spine or resample it to coarser voxels"
REPLACE = "Replace them (for example with zero) and try again"
"""Remedies for an image with these faults, wherever they are noticed."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """The voxel grid of a volume in ITK's conventions.

    Attributes:
        size: voxels along the axes i, j, k (an array's shape read backwards).
        spacing: mm along i, j, k.
        origin: position of the first voxel's centre, mm, LPS (left, posterior, superior positive).
        direction: (3, 3); column n is the unit vector of axis n, LPS.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray

    @classmethod
    def of_matrix(cls, size: Sequence[int], matrix: np.ndarray) -> Geometry:
        """The grid of this size (i, j, k) with this `matrix`."""
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        origin = tuple(matrix[:3, 3].tolist())
        return cls(tuple(size), tuple(spacing.tolist()), origin, matrix[:3, :3] / spacing)  # type: ignore[arg-type]

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3."""
        return float(np.prod(self.spacing))

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4), from voxel indices i, j, k to mm, LPS."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    def points(self, indices: np.ndarray) -> np.ndarray:
        """Positions (..., 3) in mm, LPS, of voxel indices (..., 3) in the order i, j, k."""
        matrix = self.matrix
        return np.asarray(indices) @ matrix[:3, :3].T + matrix[:3, 3]

    def turned(self, order: Sequence[int], flipped: Sequence[bool]) -> Geometry:
        """The same grid with its axes i, j, k permuted and some of the new axes reversed."""
        axes, first = list(order), np.zeros(3)
        first[axes] = np.where(flipped, np.array(self.size)[axes] - 1, 0)
        return Geometry(
            tuple(self.size[axis] for axis in axes),  # type: ignore[arg-type]
            tuple(self.spacing[axis] for axis in axes),  # type: ignore[arg-type]
            tuple(self.points(first).tolist()),
            np.asarray(self.direction)[:, axes] * np.where(flipped, -1.0, 1.0),
        )

    def part(self, box: tuple[slice, slice, slice]) -> Geometry:
        """The grid of a box of voxels, given in the array's order k, j, i."""
        i, j, k = reversed(box)
        size = (i.stop - i.start, j.stop - j.start, k.stop - k.start)
        origin = self.points(np.array([i.start, j.start, k.start]))
        return replace(self, size=size, origin=tuple(origin.tolist()))

    def same_grid(self, other: Geometry) -> bool:
        """Whether two grids agree: size exactly, positions to a twentieth of a voxel.

        NIfTI keeps a direction as the nearest rotation, in single precision: an oblique grid comes back slightly
        displaced, and one whose axes are not quite perpendicular, such as DICOM's rounded ones, as that rotation.
        """
        if self.size != other.size:
            return False
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.size))))
        as_kept, in_nifti = (self, other), (self._rectangular(), other._rectangular())
        return any(
            np.abs(first.points(corners) - second.points(corners)).max() <= 0.05 * min(self.spacing)
            for first, second in (as_kept, in_nifti)
        )

    def _rectangular(self) -> Geometry:
        """The grid with its axes made perpendicular; a grid sheared beyond the tolerance is returned unchanged."""
        axes = np.asarray(self.direction)
        return replace(self, direction=rectified(axes)) if orthonormal(axes) else self


@dataclass(frozen=True, eq=False)
class Volume:
    """A greyscale 3D image.

    Attributes:
        voxels: array (k, j, i), any real type.
        geometry: where it lies.
        name: what messages call it, usually the file's name.
    """

    voxels: np.ndarray
    geometry: Geometry
    name: str = "volume"

    @classmethod
    def from_sitk(cls, image: sitk.Image, name: str = "volume") -> Volume:
        """The volume of a SimpleITK image.

        Raises:
            InputError: INPUT_DIMENSION or INPUT_PIXEL_TYPE; other checks are `check_volume`'s.
        """
        size = image.GetSize()
        if len(size) == 4 and size[3] == 1:
            image, size = image[:, :, :, 0], size[:3]
        if len(size) != 3:
            raise InputError(
                "INPUT_DIMENSION",
                f"{name} has {len(size)} dimensions ({' x '.join(map(str, size))})",
                "Give one 3D volume; extract a single time point from a series of volumes"
                if len(size) > 3
                else "Give the whole volume, not one slice of it",
            )
        if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
            raise not_greyscale(name, image.GetPixelIDTypeAsString())
        geometry = Geometry(
            size, image.GetSpacing(), image.GetOrigin(), np.array(image.GetDirection(), float).reshape(3, 3)
        )
        return cls(sitk.GetArrayFromImage(image), geometry, name)

    def to_sitk(self) -> sitk.Image:
        """The volume as a SimpleITK image."""
        return to_sitk(self.voxels, self.geometry)


def not_greyscale(name: str, kind: str) -> InputError:
    """The error for an image with several values in each voxel."""
    remedy = "Give a greyscale magnitude image, not a colour, vector or complex one"
    return InputError("INPUT_PIXEL_TYPE", f"{name} holds {kind} voxels", remedy)


def to_sitk(voxels: np.ndarray, geometry: Geometry) -> sitk.Image:
    """A SimpleITK image of voxels (k, j, i) of any real type; float16 and bool, which ITK lacks, are converted."""
    kept: dict[str, np.dtype] = {"?": np.dtype(np.uint8), "e": np.dtype(np.float32), "g": np.dtype(np.float64)}
    dtype = kept.get(voxels.dtype.char, voxels.dtype.newbyteorder("="))
    image = sitk.GetImageFromArray(voxels.astype(dtype, copy=False))
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.asarray(geometry.direction).ravel().tolist())
    return image


def on_grid(volume: Volume, grid: Geometry, owner: str) -> Volume:
    """The volume with its axes ordered and oriented as in another grid; ``owner`` names that grid in the error.

    Programs may reverse axes: 3D Slicer does so with left-handed images when it loads them.

    Raises:
        InputError: INPUT_GEOMETRY, its voxels are not those of the grid.
    """
    own = volume.geometry
    if own.same_grid(grid):
        return volume
    cosines = np.asarray(own.direction).T @ np.asarray(grid.direction)
    order = np.abs(cosines).argmax(axis=0)  # the volume's axis along each of the grid's
    if sorted(order) == [0, 1, 2]:
        flipped = cosines[order, range(3)] < 0
        if own.turned(order, flipped).same_grid(grid):
            voxels = volume.voxels.transpose([2 - axis for axis in reversed(order)])
            return Volume(np.ascontiguousarray(_flip(voxels, tuple(reversed(flipped)))), grid, volume.name)
    raise InputError(
        "INPUT_GEOMETRY",
        f"{volume.name} and {owner} are not on the same grid",
        "Give two that belong together, or resample one onto the other's grid",
    )


def rectified(axes: np.ndarray) -> np.ndarray:
    """The orthogonal matrix nearest to the axes (3, 3): their polar factor (Higham, 1986)."""
    left, _, right = np.linalg.svd(axes)
    nearest: np.ndarray = left @ right
    return nearest


def orthonormal(axes: np.ndarray, tolerance: float = ORTHONORMAL_TOLERANCE) -> bool:
    """Whether the columns of a (3, n) matrix are perpendicular unit vectors; False if they contain NaN."""
    return bool(np.abs(axes.T @ axes - np.eye(axes.shape[1])).max() <= tolerance)


def check_geometry(geometry: Geometry, name: str = "volume") -> None:
    """Reject a grid on which sagittal slices cannot be trusted.

    Raises:
        InputError: INPUT_SPACING, INPUT_DIRECTION, INPUT_NOT_SAGITTAL, INPUT_DIMENSION or INPUT_TOO_LARGE.
    """
    _check_grid(geometry, name)
    left_right, *in_plane = _anatomical_axes(np.asarray(geometry.direction, float))
    _check_plane(geometry, left_right, in_plane, name)
    _check_units(geometry, left_right, in_plane, name)


def _check_grid(geometry: Geometry, name: str) -> None:
    """Reject an invalid voxel grid, whatever its orientation, and one that is too large."""
    spacing = np.asarray(geometry.spacing, float)
    if not ((spacing > 0) & (spacing <= LARGEST_FIELD_MM)).all():
        cause = f"{name} has voxels of {_by_axis(spacing)} mm"
        raise InputError("INPUT_SPACING", cause, "Correct the voxel size in its header")
    if not np.isfinite(geometry.origin).all():
        cause = f"{name} has the impossible origin {geometry.origin}"
        raise InputError("INPUT_DIRECTION", cause, "Correct the position in its header")
    if not orthonormal(np.asarray(geometry.direction, float)):
        raise InputError("INPUT_DIRECTION", f"the axes of {name} are sheared or not of unit length", STRAIGHTEN)
    if np.prod(np.asarray(geometry.size, float)) > MOST_VOXELS:
        cause = f"{name} has {_by_axis(geometry.size)} voxels; the limit is {MOST_VOXELS / 1e6:.0f} million"
        raise InputError("INPUT_TOO_LARGE", cause, SHRINK)


def _check_plane(geometry: Geometry, left_right: int, in_plane: list[int], name: str) -> None:
    """Reject thick slices in another plane, and slices that are only lines of voxels."""
    spacing = np.asarray(geometry.spacing, float)
    thick = int(np.argmax(spacing))
    if thick != left_right and spacing[thick] > THICK_RATIO * np.median(spacing):
        plane = {in_plane[0]: "an axial", in_plane[1]: "a coronal"}[thick]
        remedy = "Choose the sagittal series of the same study, or an isotropic volume"
        if np.array_equal(np.abs(geometry.direction), np.eye(3)):  # as from a header without orientation
            remedy += ". If these are sagittal slices, the file has lost their orientation: convert the series again"
        raise InputError(
            "INPUT_NOT_SAGITTAL",
            f"{name} is {plane} stack: its slices lie {spacing[thick]:.3g} mm apart along the wrong axis",
            remedy,
        )
    if min(geometry.size[axis] for axis in in_plane) < SMALLEST_SLICE:
        raise InputError(
            "INPUT_DIMENSION",
            f"{name} has {_by_axis(geometry.size)} voxels, so its sagittal slices are only lines",
            "Give the whole sagittal series",
        )


def _check_units(geometry: Geometry, left_right: int, in_plane: list[int], name: str) -> None:
    """Reject sizes that are implausible in mm for a spine MRI."""
    spacing = np.asarray(geometry.spacing, float)
    pixel = spacing[in_plane]
    extent = pixel * np.asarray(geometry.size)[in_plane]
    steps = spacing.min() < SMALLEST_STEP_MM or spacing[left_right] > LARGEST_STEP_MM
    if pixel.max() > LARGEST_PIXEL_MM or steps or extent.max() > LARGEST_FIELD_MM:
        raise InputError(
            "INPUT_SPACING",
            f"{name} has voxels of {_by_axis(spacing)} mm and sagittal slices of {extent[1]:.4g} x {extent[0]:.4g} mm",
            "Check the unit of the voxel size in its header: it must be millimetres",
        )


def _by_axis(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)


def check_volume(volume: Volume) -> None:
    """Reject a volume that cannot be segmented because of its geometry (`check_geometry`) or voxels.

    Raises:
        InputError: as `check_geometry`; INPUT_PIXEL_TYPE, INPUT_DIMENSION, INPUT_VALUES or INPUT_CONSTANT.
    """
    voxels, name = volume.voxels, volume.name
    if voxels.ndim != 3 or tuple(reversed(voxels.shape)) != tuple(volume.geometry.size) or 0 in voxels.shape:
        raise InputError("INPUT_DIMENSION", f"{name} has the shape {voxels.shape}", "Give one 3D volume")
    if voxels.dtype.kind not in "iuf":
        raise InputError("INPUT_PIXEL_TYPE", f"{name} holds {voxels.dtype} voxels", "Give a greyscale image")
    check_geometry(volume.geometry, name)
    low, high = float(voxels.min()), float(voxels.max())
    if not -LARGEST_VALUE <= low <= high <= LARGEST_VALUE:  # false for NaN, too
        raise InputError(
            "INPUT_VALUES",
            f"{name} contains NaN, infinite or implausibly large values",
            REPLACE,
        )
    if low == high:
        raise InputError("INPUT_CONSTANT", f"every voxel of {name} has the same value", "Choose another volume")


def check_content(volume: Volume) -> None:
    """Reject a volume that passed `check_volume` but is evidently not an MRI: a label map or a CT.

    Raises:
        InputError: INPUT_PIXEL_TYPE or INPUT_MODALITY.
    """
    voxels, name = volume.voxels, volume.name
    step = max(1, voxels.shape[0] // 32)
    sample = voxels[::step]
    lines = np.moveaxis(sample, int(np.argmax(sample.shape)), 0)
    flat = np.count_nonzero(lines[1:] == lines[:-1]) / lines[1:].size
    if flat > FLAT and len(np.unique(sample)) <= LABELS:
        raise InputError(
            "INPUT_PIXEL_TYPE",
            f"{name} looks like a label map: only a few distinct values, in large uniform areas",
            "Give the image on which it was drawn",
        )
    lowest, highest = CT_RANGE
    if not (lowest <= sample.min() <= AIR_HU[1] and sample.max() > highest):  # most MRI, without counting
        return
    stack = SagittalStack.of(volume)
    if stack.slices[stack.field()].min() >= 0:  # an MRI with padding like air; a CT has fat and air inside, too
        return
    if np.count_nonzero((sample >= AIR_HU[0]) & (sample <= AIR_HU[1])) > CT_AIR * sample.size:
        raise InputError(
            "INPUT_MODALITY", f"{name} looks like a CT: it contains the Hounsfield units of air", "Choose an MR image"
        )


def _anatomical_axes(direction: np.ndarray) -> tuple[int, int, int]:
    """Which voxel axes (0 i, 1 j, 2 k) run left-right, superior-inferior and anterior-posterior.

    The permutation whose axes lie closest to the patient's, so that an oblique volume still has one of each.
    """
    patient = (0, 2, 1)  # rows of the direction matrix: L, S, P
    return max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(direction[row, axis]) for row, axis in zip(patient, axes, strict=True)),
    )  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class SagittalStack:
    """A volume seen as sagittal slices: a view of its voxels, nothing interpolated.

    Attributes:
        slices: (S, H, W) in the source type: slices from the patient's right to left, rows from superior to inferior,
            columns from anterior to posterior.
        slice_spacing: mm between slices.
        pixel: mm of a row and of a column.
        axes, flipped: how the source array (k, j, i) was permuted and then reversed.
    """

    slices: np.ndarray
    slice_spacing: float
    pixel: tuple[float, float]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def of(cls, volume: Volume) -> SagittalStack:
        """The stack of a volume that has passed `check_volume`."""
        direction = np.asarray(volume.geometry.direction, float)
        grid = _anatomical_axes(direction)
        axes = tuple(2 - axis for axis in grid)  # array axes are k, j, i
        # Wanted: toward left (+L), toward inferior (-S), toward posterior (+P).
        toward = (direction[0, grid[0]], -direction[2, grid[1]], direction[1, grid[2]])
        flipped = tuple(bool(value < 0) for value in toward)
        view = _flip(volume.voxels.transpose(axes), flipped)
        spacing = [float(volume.geometry.spacing[axis]) for axis in grid]
        return cls(view, spacing[0], (spacing[1], spacing[2]), axes, flipped)  # type: ignore[arg-type]

    def slices_of(self, voxels: np.ndarray) -> np.ndarray:
        """Another array (k, j, i) of the source grid as slices (S, H, W)."""
        return _flip(voxels.transpose(self.axes), self.flipped)

    def restore(self, slices: np.ndarray) -> np.ndarray:
        """Map an array (S, H, W) of this stack's shape back to the source grid (k, j, i), contiguous.

        Raises:
            ValueError: it has another shape.
        """
        self._check_shape(slices)
        return np.ascontiguousarray(_flip(slices, self.flipped).transpose(np.argsort(self.axes)))

    def _check_shape(self, slices: np.ndarray) -> None:
        if slices.shape != self.slices.shape:
            raise ValueError(f"shape {slices.shape} is not the stack's {self.slices.shape}")

    def source_box(self, box: tuple[slice, slice, slice]) -> tuple[slice, slice, slice]:
        """Convert a box of slices, rows and columns to a box of the source array (k, j, i)."""
        source = [slice(0)] * 3
        for part, axis, flipped, count in zip(box, self.axes, self.flipped, self.slices.shape, strict=True):
            source[axis] = slice(count - part.stop, count - part.start) if flipped else part
        return source[0], source[1], source[2]

    def grid(self, source: Geometry) -> Geometry:
        """The grid of the slices as an array (S, H, W), given that of the source."""
        return source.turned([2 - axis for axis in reversed(self.axes)], self.flipped[::-1])

    def with_slices(self, slices: np.ndarray) -> SagittalStack:
        """The same stack with other values, such as labels.

        Raises:
            ValueError: as `restore`.
        """
        self._check_shape(slices)
        return replace(self, slices=slices)

    def cropped(self, box: tuple[slice, slice, slice]) -> SagittalStack:
        """A box of slices, rows and columns as a stack of its own: of the volume cropped to `source_box`."""
        return replace(self, slices=self.slices[box])

    def field(self) -> tuple[slice, slice, slice]:
        """The box of the slices that holds acquired data, without the constant lines of padding at the borders."""
        box = []
        for axis in range(3):
            lines = np.moveaxis(self.slices, axis, 0)
            first, end = 0, len(lines)
            while first < end - 1 and lines[first].min() == lines[first].max():
                first += 1
            while end > first + 1 and lines[end - 1].min() == lines[end - 1].max():
                end -= 1
            box.append(slice(first, end))
        return box[0], box[1], box[2]

    def intensity(self) -> Intensity:
        """The intensity within `field`: padding may be darker than everything that was acquired."""
        return Intensity.of(self.slices[self.field()])

    def working_shape(self, pixel_mm: float) -> tuple[int, int]:
        """Rows and columns of a slice at a working pixel size: the same field of view, at least 16 pixels each."""
        rows, columns = (
            max(16, round(count * size / pixel_mm))
            for count, size in zip(self.slices.shape[1:], self.pixel, strict=True)
        )
        return rows, columns


def _flip(array: np.ndarray, flipped: tuple[Any, ...]) -> np.ndarray:
    return array[tuple(slice(None, None, -1 if reverse else 1) for reverse in flipped)]


def _counted(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values (V,) float32 of integer pixels, increasing, and the number of pixels with each."""
    lowest = int(pixels.min())
    counts = np.bincount(pixels.ravel(order="K").astype(np.intp) - lowest)
    seen = np.flatnonzero(counts)
    return (seen + lowest).astype(np.float32), counts[seen]


def _percentiles(values: np.ndarray, counts: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Like `np.percentile`, for `_counted` pixels, of which each value's first and last place in order are known."""
    last = np.cumsum(counts) - 1
    places = np.column_stack([last - counts + 1, last]).ravel()
    percentiles: list[float] = np.interp(np.array(percents) / 100 * last[-1], places, np.repeat(values, 2)).tolist()
    return percentiles


@dataclass(frozen=True)
class Intensity:
    """How a volume's intensities become the network's input: clipped at two percentiles, zero mean, unit deviation."""

    low: float
    high: float
    mean: float
    deviation: float

    SAMPLE = 2_000_000
    PERCENTILES = (0.5, 99.5)

    @classmethod
    def of(cls, slices: np.ndarray) -> Intensity:
        """Measure the intensity of slices (S, H, W), subsampled evenly if there are very many pixels."""
        step = max(1, int(np.ceil(np.sqrt(slices.size / cls.SAMPLE))))
        sample, counts = slices[:, ::step, ::step], None
        if sample.dtype.kind in "iu" and sample.dtype.itemsize <= 2:  # few values: counting takes a fifth of the time
            sample, counts = _counted(sample)
            low, high = _percentiles(sample, counts, cls.PERCENTILES)
        else:
            sample = sample.astype(np.float32)
            low, high = np.percentile(sample.ravel(order="K"), cls.PERCENTILES).tolist()
        if high <= low:  # nearly constant: a few bright pixels in an empty field
            low = float(sample.min())
            high = max(float(sample.max()), low + 1, float(np.nextafter(sample.min(), np.float32(np.inf))))
        clipped = np.clip(sample, low, high).astype(np.float64)
        mean = float(np.average(clipped, weights=counts))
        variance = float(np.average((clipped - mean) ** 2, weights=counts))
        return cls(low, high, mean, variance**0.5 or 1.0)

    def unit(self, slices: np.ndarray) -> np.ndarray:
        """Slices of any real type -> float32 0..1 of the same shape: the percentiles become 0 and 1."""
        clipped = np.clip(slices.astype(np.float32), np.float32(self.low), np.float32(self.high))
        result: np.ndarray = (clipped - np.float32(self.low)) / np.float32(self.high - self.low)
        return result

    def normalise(self, slices: Pixels) -> Pixels:
        """Normalise float32 slices, NumPy or PyTorch on any device -> a new array of the same kind and shape."""
        result: Pixels = slices.clip(self.low, self.high)
        result -= self.mean
        result /= self.deviation
        return result
