"""Many different phantoms as a training folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...formats.atomic import write_together
from ...formats.segmentations import write_segmentation
from ...formats.volumes import write_volume
from ...segmentation import Segmentation
from .build import Phantom, make_phantom
from .options import Contrast, PhantomOptions

CONTRASTS: tuple[Contrast, ...] = ("t2", "random", "t1", "random", "t2", "random", "stir", "random", "t1", "random")


READERS_DRAW_FROM = 0.25
"""`PhantomOptions.vertebra_from` for training: readers continue a body into the slices in which it ends."""


def draw_options(seed: int) -> PhantomOptions:
    """A routine scan of another patient for every seed: contrast, slice thickness, pixel and field of view vary."""
    options = PhantomOptions(seed=seed)  # refuses an invalid seed
    random = np.random.default_rng((2020, seed))
    return replace(
        options,
        contrast=CONTRASTS[seed % len(CONTRASTS)],
        slice_thickness=float(random.uniform(2.5, 4.5)),
        gap=float(random.uniform(0.0, 0.8)),
        pixel=float(random.uniform(0.55, 0.85)),
        field_of_view=(float(random.uniform(240, 340)), float(random.uniform(200, 300))),
        vertebra_from=READERS_DRAW_FROM,
        lumbar=int(random.choice((4, 5, 6), p=(0.06, 0.88, 0.06))),
    )


def write_phantom(phantom: Phantom, image: Path, labels: Path) -> None:
    """Write image and label map (levels).

    Raises:
        UsageError: OUTPUT_FORMAT or OUTPUT_WRITE.
    """
    with write_together():
        write_volume(phantom.volume, image)
        write_segmentation(Segmentation(phantom.labels, phantom.volume.geometry), labels)


def write_phantoms(folder: Path, count: int, seed: int = 0) -> None:
    """Write ``count`` pairs phantomNNN_image.nii.gz and phantomNNN_labels.nii.gz, seeds from ``seed`` on."""
    for number in range(seed, seed + count):
        phantom = make_phantom(draw_options(number))
        write_phantom(
            phantom, folder / f"phantom{number:03}_image.nii.gz", folder / f"phantom{number:03}_labels.nii.gz"
        )
