"""Signal ratio of discs and cerebrospinal fluid on T2, after correction of the bias field."""

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
"""Edge of the voxels that the bias is found on, over which it hardly changes, and margin around the vertebrae
(chosen)."""
_BIAS_ITERATIONS, _BIAS_THRESHOLD = (40, 40), 1e-6
"""N4's own: most iterations of its coarse and its fine level, and the change of the field that ends them (chosen)."""
_BIAS_WIDTH = 0.3
"""Full width at half maximum of N4's histogram kernel: wider than usual, since marrow is one tissue and not several."""
_BIAS_SHARE = 0.8
"""A coarse voxel tells of the bias if so much of it is marrow."""
_BIAS_LEAST = 40
"""Fewer of them tell no bias (chosen)."""
_FLUID_MM, _FLUID_PERCENTILE = 30.0, 75.0
"""The fluid's signal is this percentile of the canal's so far up and down: roots and cord are darker (chosen)."""
_FEW_FLUID, _FEW_DISC = 30, 10
"""Fewer voxels of the canal, or nodes of a disc's middle, tell no signal."""
_DISC_MM, _DISC_PART = 8.0, 0.5
"""A disc's middle: so wide, and this part of its depth and height (chosen)."""
_MARROW_MM = (2.0, 5.0, 4.0)
"""Marrow is looked at so far to either side, in front and behind, above and below a body's middle (chosen)."""
_NEGATIVE = 0.05
"""Interpolation may leave the darkest hundredth of an image so far below zero, as a part of the fluid's signal."""
_BRIGHTER = 1.15
"""Fluid outshines marrow by at least this factor on T2 and STIR; on T1 it is the darker one."""
_BRIGHTER_THAN_DISCS = 1.7
"""And the median of all discs' voxels by this one: 2.2 to 11.5 times on the T2 of three scanners, young people's among
them, 1.2 to 1.5 times on the water images of another, on which fluid outshines marrow too."""
_USUAL = 1.0
"""A disc brighter than fluid is none, or no T2 shows it so."""


class CorrectedSignal:
    """Bias-corrected signal of an image around the spine.

    The bias is N4's (Tustison et al. 2010, doi:10.1109/TMI.2010.2046908), found on voxels of about 7 mm that lie in
    vertebrae: bodies and spinous processes are one tissue in front of and behind the canal. Over all tissues N4 takes
    the anatomy itself for a bias, because only a few of these large voxels lie in any one of them.
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
        """Mean signal of a disc's middle by that of the fluid beside it.

        The disc's middle: half of its depth, half of its height, 8 mm wide. The fluid's signal: the 75th percentile of
        the canal within 30 mm up and down, since roots and cord are darker than fluid. An image with a good deal below
        zero, as one of z-scores, has lost the zero that a ratio needs; fluid as bright as the image gets may have been
        brighter. Of a disc that the image cuts the middle is another one.
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
        """The image (N,) at the voxels nearest to points (N, 3)."""
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
        """Whether the canal's fluid outshines marrow and discs, where there are any."""
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
    """Values on a coarse grid as a field: linear between nodes, the border's beyond."""
    return lambda points: map_coordinates(values, ((points - first) / spacing).T, order=1, mode="nearest")


def _bias(space: LabelSpace, image: np.ndarray, vertebrae: list[int]) -> Field:
    """N4's field in the marrow of the given structures; 1 everywhere where there is too little of it."""
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
    # Above zero, of which N4 takes the logarithm: by a part of the image's own range, whatever its unit.
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
        corrector.SetNumberOfThreads(1)  # sums in one order: the same bits every time
        try:
            corrector.Execute(coarse, mask)
            field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(coarse)))
        except RuntimeError as failure:  # marrow of one value leaves its histogram empty: nothing to correct
            check_memory(failure, 4 * coarse.GetNumberOfPixels())
            field = np.ones(shape)
    first = (np.array(low) + (np.array(factors) - 1) / 2) * space.spacing
    return _field(field, first, space.spacing * np.array(factors))


def _shrunken(values: np.ndarray, factors: list[int]) -> sitk.Image:
    """Means over blocks of voxels (S, H, W), float32."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, np.float32))
    return sitk.BinShrink(image, [int(factor) for factor in reversed(factors)])
