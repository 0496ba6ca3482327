"""Augmentation of training stacks: scanners, contrasts, artefacts and fields of view."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import torchio as tio
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandCoarseDropoutd,
    RandGaussianSharpend,
    RandGaussianSmoothd,
    RandGibbsNoised,
    RandHistogramShiftd,
    RandRicianNoised,
    RandSimulateLowResolutiond,
)
from torch import Tensor


class Augmentation:
    """Random changes of a stack; the slices are MONAI's channels, so that all of them are transformed alike.

    Args:
        crop: rows and columns of the result.
        contrasts: share of the stacks, 0..1, with simulated pulse sequence, resolution and artefacts; the others vary
            only as patients of one sequence do.

    Call:
        images (S, H, W) float 0..1, labels (S, H, W) uint8, a generator -> the same two, (S, *crop).
    """

    def __init__(self, crop: tuple[int, int], contrasts: float = 1.0) -> None:
        self.contrasts = contrasts
        self.crop = crop
        self.geometry = RandAffined(
            ("image", "label"),
            prob=1.0,
            rotate_range=0.26,
            shear_range=(0.08, 0.08),
            translate_range=(crop[0] * 3 / 16, crop[1] / 5),
            scale_range=(0.3, 0.3),
            spatial_size=crop,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )
        self.one_sequence, self.other_scanners = _one_sequence(), _other_scanners()
        self.artefacts = tio.OneOf(
            {
                tio.Lambda(_moved): 1,
                tio.RandomGhosting(num_ghosts=(2, 6), axes=(0, 1), intensity=(0.2, 0.7)): 2,
                tio.RandomSpike(num_spikes=(1, 2), intensity=(0.1, 0.4)): 1,
            },
            p=0.2,
        )

    def __call__(self, images: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows, columns = (_window(*sizes, random) for sizes in zip(images.shape[1:], self.crop, strict=True))
        images, labels = images[:, rows, columns], labels[:, rows, columns]
        seed = int(random.integers(2**31))
        sample = self.geometry.set_random_state(seed)({"image": images, "label": labels.float()})
        label = torch.as_tensor(sample["label"]).to(torch.uint8)
        image = torch.as_tensor(sample["image"]).clamp_(0, 1)
        made_up = random.random() < self.contrasts
        if made_up:
            image = tissue_contrast(image, label, random)
        intensity = self.other_scanners if made_up else self.one_sequence
        image = torch.as_tensor(intensity.set_random_state(seed + 1)({"image": image})["image"]).float()
        if made_up:
            image = self._acquire(image, seed + 2)
        return image.contiguous(), label

    def _acquire(self, images: Tensor, seed: int) -> Tensor:
        """Motion, ghosting or spikes of the acquisition; TorchIO draws from torch's global generator."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return self.artefacts(images.movedim(0, -1)[None])[0].movedim(-1, 0)


def _window(size: int, crop: int, random: np.random.Generator) -> slice:
    """The part of a large field of view, along one axis, on whose middle the affine map is centred.

    Its middle is drawn from the whole axis and then moved inside, so that borders are seen as often as those of small
    fields. Small fields are not cropped: `RandAffined` reaches their borders by itself.
    """
    wide = crop * 3 // 2
    start = int(np.clip(random.uniform(-wide / 2, size - wide / 2), 0, max(0, size - wide)))
    return slice(start, start + wide)


def _moved(images: Tensor) -> Tensor:
    """Simulate a patient who moves twice, within the plane of the slices (1, H, W, S), during their acquisition.

    TorchIO's own random transform (Shaw et al., MIDL 2019) also moves through the slices and divides time along the
    last axis, here that of the slices: it would mix slices, and shift a single one as a whole, away from its labels.
    """
    degrees, translation = torch.zeros(2, 3), torch.zeros(2, 3)
    degrees[:, 0].uniform_(-3, 3)
    translation[:, 1:].uniform_(-4, 4)
    times = torch.tensor((1 / 3, 2 / 3)) + torch.empty(2).uniform_(-0.1, 0.1)
    motion = tio.Motion(
        degrees=degrees.numpy(), translation=translation.numpy(), times=times.numpy(), image_interpolation="linear"
    )
    moved = motion(images[0].movedim(-1, 0)[:, None])  # slices as channels, a spatial axis of one
    return torch.as_tensor(moved)[:, 0].movedim(0, -1)[None]


def _other_scanners() -> Compose:
    """Intensities and resolution as they differ between scanners."""
    return Compose(
        [
            RandBiasFieldd("image", prob=0.5, degree=3, coeff_range=(0.0, 0.35)),
            RandHistogramShiftd("image", prob=0.4, num_control_points=(4, 10)),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.5, 2.0)),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2)),
            RandGaussianSharpend("image", prob=0.1),
            RandSimulateLowResolutiond(
                "image", prob=0.3, zoom_range=(0.4, 1.0), downsample_mode="area", upsample_mode="bilinear"
            ),
            RandGibbsNoised("image", prob=0.15, alpha=(0.2, 0.6)),
            RandRicianNoised("image", prob=0.4, std=0.08, sample_std=True),
            RandCoarseDropoutd(
                "image",
                prob=0.1,
                holes=1,
                max_holes=3,
                spatial_size=(10, 10),
                max_spatial_size=(40, 40),
                fill_value=0,
            ),
        ]
    )


def _one_sequence() -> Compose:
    """Intensities as they differ between patients of one sequence."""
    return Compose(
        [
            RandBiasFieldd("image", prob=0.3, degree=3, coeff_range=(0.0, 0.2)),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandRicianNoised("image", prob=0.3, std=0.04, sample_std=True),
        ]
    )


def tissue_contrast(images: Tensor, labels: Tensor, random: np.random.Generator) -> Tensor:
    """Other pulse sequences: a smooth, not always monotone intensity map, and a gain for each structure.

    T1, STIR and fat-suppressed images order the tissues differently from the T2 images that carry the labels. A random
    map may change the order of all tissues; gains of vertebra, disc and canal, soft at their borders, change it
    further.

    Shape:
        images (S, H, W) 0..1, labels (S, H, W) -> images (S, H, W) 0..1.
    """
    if random.random() < 0.5:
        images = _bend(images, random)
    if random.random() < 0.5:
        gains = np.where(random.random(3) < 0.6, np.exp(random.uniform((-1.2, -1.5, -2.2), 0.8)), 1.0)
        gain = torch.ones_like(images)
        for value, factor in enumerate(gains, start=1):
            gain = torch.where(labels == value, float(factor), gain)
        size = int(random.choice((1, 3, 5)))
        if size > 1:
            gain = F.avg_pool2d(gain[:, None], size, stride=1, padding=size // 2, count_include_pad=False)[:, 0]
        images = (images * gain).clamp_(0, 1)
    return images


def _bend(images: Tensor, random: np.random.Generator) -> Tensor:
    """Map intensities piecewise linearly between random knots; air mostly stays dark."""
    knots = int(random.integers(3, 7))
    places = np.sort(np.concatenate(([0.0, 1.0], random.uniform(0.02, 0.6, knots - 2))))
    heights = random.uniform(0, 1, knots)
    if random.random() < 0.5:
        heights = np.sort(heights)
    heights[0] = 0.0 if random.random() < 0.85 else heights[0]
    table = np.interp(np.linspace(0, 1, 1024), places, heights).astype(np.float32)
    # Up to half of the original is mixed in, so that detail does not vanish where the map is flat.
    bent = torch.from_numpy(table)[(images * 1023).long()]
    share = float(random.uniform(0.0, 0.5))
    return (1 - share) * bent + share * images
