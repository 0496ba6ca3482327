"""Ratio of disc to cerebrospinal fluid signal on T2, after correction of the bias field."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from ..errors import check_memory
from .centreline import STEP
from .endplates import Section
from .landmarks import Landmarks
from .results import LOW_CONFIDENCE, MISSING, NOT_T2, PARTIAL, Measure
from .space import AnatomicalFrame, LabelSpace, SamplingGrid, resample

_BIAS_MM, _BIAS_MARGIN_MM = 7.0, 8.0
"""Edge of the voxels on which the bias is estimated, within which it hardly changes, and margin around the vertebrae
(chosen by hand)."""
_BIAS_ITERATIONS, _BIAS_THRESHOLD = (40, 40), 1e-6
"""N4's maximum iterations at the coarse and the fine level, and its convergence threshold (chosen by hand)."""
_BIAS_WIDTH = 0.3
"""Full width at half maximum of N4's histogram kernel: wider than usual, since marrow is a single tissue."""
_BIAS_SHARE = 0.8
"""A coarse voxel is used if more than this fraction of it is marrow."""
_BIAS_LEAST = 40
"""Fewest such voxels for an estimate of the bias (chosen by hand)."""
_FLUID_MM, _FLUID_PERCENTILE = 30.0, 75.0
"""The fluid's signal is this percentile of the canal's this far up and down; cord and roots are darker (chosen by
hand)."""
_FEW_FLUID, _FEW_DISC = 30, 10
"""Fewest voxels of the canal, and nodes of a disc's middle, that give a signal."""
_DISC_MM, _DISC_PART = 8.0, 0.5
"""A disc's middle: its width, and the fraction of the disc's depth and height (chosen by hand)."""
_MARROW_MM = (2.0, 5.0, 4.0)
"""Half-extent of the marrow sample about a body's centre: to the sides, front to back, up and down (chosen by hand)."""
_NEGATIVE = 0.05
"""How far below zero interpolation may leave the darkest hundredth of an image, as a fraction of the fluid's signal."""
_BRIGHTER = 1.15
"""Fluid is brighter than marrow by at least this factor on T2 and STIR; on T1 it is darker."""
_BRIGHTER_THAN_DISCS = 1.7
"""And than the median of all discs' voxels by this one: 2.2 to 11.5 times on T2 from three scanners, young people's
included, 1.2 to 1.5 times on water images from another, on which fluid is brighter than marrow too."""
_USUAL = 1.0
"""Highest plausible ratio: what is brighter than fluid is not a disc, or the image is not T2."""


class CorrectedSignal:
    """Bias-corrected signal of an image around the spine.

    The bias field is N4's (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908), estimated on voxels of about 7 mm in
    the vertebrae: bodies and spinous processes are one tissue on both sides of the canal. On all tissues N4 takes the
    anatomy itself for bias, because only a few of these large voxels lie in any one tissue.
    """

    def __init__(
        self, space: LabelSpace, voxels: np.ndarray, landmarks: Landmarks, canal: int, vertebrae: list[int]
    ) -> None:
        """`voxels` (k, j, i): the image on the segmentation's grid."""
        self._space, self._landmarks = space, landmarks
        self._image = space.stack.slices_of(voxels)
        self._bias = _bias(space, self._image, vertebrae)
        self._station, self._fluid, self._cut_off = np.zeros(0), np.zeros(0), False
        if landmarks.line is not None and landmarks.canal_seen:
            points = space.points(canal, 1.0)
            self._station = landmarks.line.station(points)
            self._fluid = self._corrected(points)
            self._cut_off = float(np.percentile(self._seen(points), _FLUID_PERCENTILE)) >= self._image.max()
        self.is_t2 = self._fluid_is_bright()
        self._darkest = float(np.percentile(self._image[::2, ::4, ::4], 1))

    def ratio(self, section: Section | None) -> Measure:
        """Mean signal of a disc's middle divided by that of the fluid beside it.

        The disc's middle: half of its depth, half of its height, 8 mm wide. The fluid's signal: the 75th percentile of
        the canal within 30 mm up and down, since roots and cord are darker than fluid. An image well below zero, such
        as one of z-scores, has lost the zero that a ratio needs: no figure. Flagged are fluid at the image's maximum,
        which may be clipped, and discs cut by the image, whose true middle is elsewhere.
        """
        if len(self._fluid) == 0 or self._landmarks.line is None:
            return Measure.none(MISSING)
        if section is None:
            return Measure.none(LOW_CONFIDENCE)
        if not self.is_t2:
            return Measure.none(NOT_T2)
        here = float(self._landmarks.line.station(section.centre[None])[0])
        near = np.abs(self._station - here) * STEP <= _FLUID_MM
        if near.sum() < _FEW_FLUID:
            return Measure.none(MISSING)
        fluid = float(np.percentile(self._fluid[near], _FLUID_PERCENTILE))
        disc = self._middle_of(section)
        if disc is None or min(disc, fluid) <= 0 or self._darkest < -_NEGATIVE * fluid:
            return Measure.none(LOW_CONFIDENCE)
        flags = set(section.flags)
        if section.upper.cut or section.lower.cut or any(self._space.touches(section.value, axis) for axis in (1, 2)):
            flags.add(PARTIAL)
        if self._cut_off or disc > _USUAL * fluid:
            flags.add(LOW_CONFIDENCE)
        return Measure.of(disc / fluid, flags)

    def _seen(self, points: np.ndarray) -> np.ndarray:
        """The image (N,) in the voxels nearest to points (N, 3)."""
        return np.asarray(self._image[tuple(np.round(points / self._space.spacing).astype(int).T)])

    def _corrected(self, points: np.ndarray) -> np.ndarray:
        """The same after correction of the bias field."""
        return np.asarray(self._seen(points) / self._bias(points))

    def _middle_of(self, section: Section) -> float | None:
        frame, shape = section.sampled_in, section.shape
        low, high = shape.ends
        quarter = (high - low) * (1 - _DISC_PART) / 2
        pixel = self._space.pixel
        middle = sum(shape.middles) / 2
        reach = max(abs(shape.middles[0] - shape.middles[1]) * _DISC_PART / 2, pixel)
        nodes = SamplingGrid.spanning(
            (-_DISC_MM / 2, _DISC_MM / 2, 2),
            (low + quarter, high - quarter, pixel),
            (middle - reach, middle + reach, pixel / 2),
        )
        share = self._space.sample(section.value, frame, nodes)
        inside = share >= 0.5
        return float(self._sampled(frame, nodes)[inside].mean()) if inside.sum() >= _FEW_DISC else None

    def _fluid_is_bright(self) -> bool:
        """Whether the canal's fluid is brighter than marrow and discs, where there are any."""
        if len(self._fluid) == 0:
            return False
        fluid = float(np.percentile(self._fluid, _FLUID_PERCENTILE))
        discs = [self._corrected(self._space.points(value)) for value in self._landmarks.discs]
        if discs and fluid < _BRIGHTER_THAN_DISCS * float(np.median(np.concatenate(discs))):
            return False
        marrow = []
        for body in self._landmarks.bodies.values():
            nodes = SamplingGrid.spanning(
                *((-reach, reach, step) for reach, step in zip(_MARROW_MM, (2, 1, 1), strict=True))
            )
            marrow.append(float(np.median(self._sampled(AnatomicalFrame(body.centre, body.frame.axes), nodes))))
        return not marrow or fluid > _BRIGHTER * float(np.median(marrow))

    def _sampled(self, frame: AnatomicalFrame, nodes: SamplingGrid) -> np.ndarray:
        """Corrected signal (X, Y, Z) at nodes."""
        corners = np.array(
            [frame.point(x, y, z) for x in nodes.x[[0, -1]] for y in nodes.y[[0, -1]] for z in nodes.z[[0, -1]]]
        )
        spacing, shape = self._space.spacing, np.array(self._image.shape)
        first = np.clip(np.floor(corners.min(axis=0) / spacing).astype(int) - 1, 0, shape - 1)
        last = np.clip(np.ceil(corners.max(axis=0) / spacing).astype(int) + 2, first + 1, shape)
        part = self._image[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].astype(np.float32)
        padded = np.pad(part, 1, mode="edge")
        values = resample(padded, (first - 1) * spacing, spacing, frame, nodes)
        x, y, z = np.meshgrid(nodes.x, nodes.y, nodes.z, indexing="ij")
        points = frame.origin + np.stack([x, y, z], axis=-1).reshape(-1, 3) @ frame.axes
        return values / self._bias(points).reshape(values.shape)


Field = Callable[[np.ndarray], np.ndarray]
"""Values (N,) of a smooth field at points (N, 3)."""


def _field(values: np.ndarray, first: np.ndarray, spacing: np.ndarray) -> Field:
    """Values on a coarse grid as a field: linear between nodes, constant beyond the border."""
    return lambda points: map_coordinates(values, ((points - first) / spacing).T, order=1, mode="nearest")


def _bias(space: LabelSpace, image: np.ndarray, vertebrae: list[int]) -> Field:
    """N4's field from the marrow of the given structures; 1 everywhere if there is too little marrow."""
    if not vertebrae:
        return _field(np.ones((1, 1, 1)), np.zeros(3), np.ones(3))
    boxes = [space.box(value) for value in vertebrae]
    margin = np.ceil(_BIAS_MARGIN_MM / space.spacing).astype(int)
    low = [max(0, min(box[n].start for box in boxes) - int(margin[n])) for n in range(3)]
    high = [min(image.shape[n], max(box[n].stop for box in boxes) + int(margin[n])) for n in range(3)]
    crop = tuple(map(slice, low, high))
    factors = [
        max(1, min((b - a) // 4, round(_BIAS_MM / size))) for a, b, size in zip(low, high, space.spacing, strict=True)
    ]
    coarse = _shrunken(image[crop], factors)
    values = sitk.GetArrayViewFromImage(coarse)
    # Shifted above zero for N4's logarithm, by a fraction of the image's range, whatever its unit.
    coarse = coarse - min(float(values.min()), 0.0) + 1e-5 * float(np.ptp(values))
    table = np.zeros(256, np.float32)
    table[vertebrae] = 1
    mask = _shrunken(table[space.labels[crop]], factors) > _BIAS_SHARE
    shape = sitk.GetArrayViewFromImage(mask).shape
    field = np.ones(shape)
    if min(shape) >= 2 and sitk.GetArrayViewFromImage(mask).sum() >= _BIAS_LEAST:
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations(_BIAS_ITERATIONS)
        corrector.SetConvergenceThreshold(_BIAS_THRESHOLD)
        corrector.SetBiasFieldFullWidthAtHalfMaximum(_BIAS_WIDTH)
        corrector.SetNumberOfThreads(1)  # fixed order of summation: bitwise reproducible
        try:
            corrector.Execute(coarse, mask)
            field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(coarse)))
        except RuntimeError as failure:  # marrow of a single value has an empty histogram: nothing to correct
            check_memory(failure, 4 * coarse.GetNumberOfPixels())
            field = np.ones(shape)
    first = (np.array(low) + (np.array(factors) - 1) / 2) * space.spacing
    return _field(field, first, space.spacing * np.array(factors))


def _shrunken(values: np.ndarray, factors: list[int]) -> sitk.Image:
    """Means over blocks of voxels (S, H, W), float32."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32))
    return sitk.BinShrink(image, [int(factor) for factor in reversed(factors)])
