"""A sagittal stack in, a class per pixel out: device, memory, progress and cancelling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(slices: Tensor, shape: tuple[int, int]) -> Tensor:
    """Slices (N, C, H, W) on another pixel grid over the same field of view: bilinear, low-pass filtered when coarser."""
    if tuple(slices.shape[-2:]) == tuple(shape):
        return slices
    return F.interpolate(slices, shape, mode="bilinear", align_corners=False, antialias=True)
