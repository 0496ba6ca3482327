"""From tissues to the image that a scanner would produce, and from fine labels to those of the slices."""

from __future__ import annotations

import numpy as np

from ...anatomy import structures
from ...masks import bounding_box, connected_components
from .canvas import Canvas, Texture
from .options import PhantomOptions
from .tissues import signals

SCALE = 1000.0
"""Signal of CSF on T2 in the written image."""
VERTEBRAE = [value for value, structure in structures().items() if structure.kind == "vertebra"]
SPECK_MM3 = 80.0
"""Smaller detached pieces of a structure are dropped."""


def slice_labels(canvas: Canvas, vertebra_from: float = 0.5) -> np.ndarray:
    """(k, j, i) uint8: the most frequent label of each voxel's samples; in a tie the one nearest the slice's middle.

    If that is background but at least the share ``vertebra_from`` of the samples is vertebra, it is the vertebra.
    """
    samples = canvas.samples
    stack = canvas.label.reshape(-1, samples, *canvas.label.shape[1:])
    order = sorted(range(samples), key=lambda n: abs(n - samples // 2))
    result = stack[:, samples // 2].copy()
    for k, subs in enumerate(stack):
        mixed = np.zeros(subs.shape[1:], bool)
        for n in range(1, samples):
            mixed |= subs[n] != subs[0]
        values = subs[:, mixed]
        most, best = np.zeros(values.shape[1], np.int8), values[samples // 2].copy()
        for n in order:
            votes = (values == values[n]).sum(0).astype(np.int8)
            better = votes > most
            most[better], best[better] = votes[better], values[n][better]
        if vertebra_from < 0.5:
            bone = np.isin(values, VERTEBRAE)
            seen = (best == 0) & (bone.mean(0) >= vertebra_from)
            best[seen] = _commonest(np.where(bone, values, 0)[:, seen])
        result[k][mixed] = best
    return result


def _commonest(values: np.ndarray) -> np.ndarray:
    """The most frequent value other than 0 in each column of values (n, N) uint8: (N,); 0 where there is none."""
    best, most = np.zeros(values.shape[1], np.uint8), np.zeros(values.shape[1], int)
    for value in np.unique(values[values > 0]):
        votes = (values == value).sum(0)
        best[votes > most] = value
        most = np.maximum(most, votes)
    return best


def drop_specks(labels: np.ndarray, voxel_mm3: float) -> None:
    """Clear, in place, specks that the sampling leaves where a structure is thinner than a voxel."""
    most = SPECK_MM3 / voxel_mm3
    for value in np.unique(labels)[1:]:
        mask = labels == value
        box = bounding_box(mask)
        parts = connected_components(mask[box])
        sizes = np.bincount(parts.ravel())
        crumbs = np.flatnonzero((sizes < most) & (sizes < sizes[1:].max(initial=0)))
        labels[box][np.isin(parts, crumbs[crumbs > 0])] = 0


def render(
    canvas: Canvas, options: PhantomOptions, patient: np.random.Generator, scan: np.random.Generator, skin: float
) -> np.ndarray:
    """(k, j, i) int16: signal averaged over each slice, coil and saturation shading, blur, Rician noise.

    `patient` draws what belongs to the patient (texture), `scan` what belongs to the acquisition; `skin` is the coil's
    y (mm).
    """
    table = signals(options.contrast, patient)
    kinds = (((1.6, 1.4, 1.4), 80), ((5.0, 4.0, 4.0), 48), ((26.0, 22.0, 22.0), 24))
    textures = [Texture(patient, scale, count) for scale, count in kinds]
    weights = [texture.weights(canvas.row, canvas.column) for texture in textures]
    image = np.zeros((len(canvas.x) // canvas.samples, *canvas.tissue.shape[1:]), np.float32)
    for s, (x, tissue) in enumerate(zip(canvas.x, canvas.tissue, strict=True)):
        target = image[s // canvas.samples]
        target += table[0][tissue]
        for texture, weight, amplitude in zip(textures, weights, table[1:], strict=True):
            target += amplitude[tissue] * texture.plane(x, *weight)
    image /= canvas.samples
    np.maximum(image, 0, out=image)
    image = _blur(image, float(scan.uniform(0.08, 0.2)))
    image *= _shading(canvas, options, scan, skin)
    drawn = float(np.exp(scan.uniform(np.log(0.008), np.log(0.035))))
    noise = np.float32(options.noise if options.noise is not None else drawn)
    for k in range(len(image)):
        real = image[k] + noise * scan.standard_normal(image.shape[1:], np.float32)
        image[k] = np.hypot(real, noise * scan.standard_normal(image.shape[1:], np.float32))
    return np.clip(np.rint(image * SCALE), 0, 32767).astype(np.int16)


def _blur(image: np.ndarray, part: float) -> np.ndarray:
    """Blur along rows and columns; each pixel passes `part` of its signal to each neighbour."""
    for axis in (1, 2):
        padded = np.pad(image, [(1, 1) if axis == n else (0, 0) for n in range(3)], mode="edge")
        before, after = (padded.take(np.arange(image.shape[axis]) + offset, axis) for offset in (0, 2))
        image = (1 - 2 * part) * image + part * (before + after)
    return image.astype(np.float32, copy=False)


def _shading(canvas: Canvas, options: PhantomOptions, scan: np.random.Generator, skin: float) -> np.ndarray:
    """(k, j, i) factors: a coil behind the back, weaker toward the ends, and sometimes a saturated abdomen."""
    drawn = float(scan.beta(2, 2.2))
    strength = options.bias if options.bias is not None else drawn
    band, edge, ends = scan.uniform(), scan.uniform(58, 85), scan.uniform(0.2, 0.6)
    uneven = Texture(scan, (70, 60, 60), 12)
    weights = uneven.weights(canvas.row, canvas.column)
    depth = np.maximum(skin - canvas.column, -10)[None, :]
    reach = 95 / max(strength, 1e-6)
    near = (1 + (75 / reach) ** 2) / (1 + (np.maximum(depth, 0) / reach) ** 2)  # 1 at the spine's usual depth
    half = (canvas.row[0] - canvas.row[-1]) / 2 + 1e-6
    along = 1 - strength * ends * np.abs((canvas.row - canvas.row.mean()) / half)[:, None] ** 4
    if band < 0.45:  # an anterior saturation band against ghosts from the abdomen
        from_front = depth - edge - 28 - 0.12 * (canvas.row[:, None] - canvas.row.mean())
        near = near * (1 - 0.8 * min(1.0, 1.5 * strength) / (1 + np.exp(-from_front / 5)))
    middles = canvas.x.reshape(-1, canvas.samples).mean(1)
    planes = [near * along * np.exp(0.1 * strength * uneven.plane(x, *weights)) for x in middles]
    return np.stack(planes).astype(np.float32)
