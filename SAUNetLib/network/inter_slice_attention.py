"""Inter-slice attention (ISA): a slice's rough result refined by what its two neighbours attend to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .dense_unet import ConvBNReLU


class InterSliceAttention(nn.Module):
    """ISA of SAU-Net (Zhang et al., MIDL 2020, poster 54, slides 6-7), up to the final activation:

        A_j   = AttentionGeneration(F_j)
        out_i = F_i + A_{i-1} * F_i + A_{i+1} * F_i

    The branch of a neighbour that does not exist (before the first slice, after the last one) is pruned: there is no
    padding. The authors do not give the attention-generation layers; here they are a convolution unit (3 x 3, batch
    norm, ReLU), a 3 x 3 convolution and a sigmoid: one mask per channel, with values in 0..1.

    With one sigmoid channel of logits such a mask rescales F_i by 1 to 3 and cannot change its sign: it sharpens or
    softens a slice's probability but never moves a voxel across 0.5. On several classes, or on features ahead of the
    class scores, it can; `SAUNet` offers these places.

    Args:
        channels: channels of F.

    Shape:
        F (B, S, C, H, W): B stacks of S consecutive slices, S >= 1; the result has the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.generation = nn.Sequential(
            ConvBNReLU(channels, channels), nn.Conv2d(channels, channels, 3, padding=1), nn.Sigmoid()
        )

    def attention(self, rough: Tensor) -> Tensor:
        """Masks A (N, C, H, W) of slices F (N, C, H, W)."""
        return self.generation(rough)

    @staticmethod
    def combine(rough: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
        """F_i + A_{i-1} * F_i + A_{i+1} * F_i, a missing neighbour (None) left out; all of one shape."""
        gain: Tensor | float = 1.0
        if before is not None:
            gain = gain + before
        if after is not None:
            gain = gain + after
        return rough * gain

    def forward(self, rough: Tensor) -> Tensor:
        masks = self.attention(rough.flatten(0, 1)).unflatten(0, rough.shape[:2])
        return self.combine(rough, *neighbours(masks))


def neighbours(masks: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The masks A_{i-1} and A_{i+1} that slice i meets, each of the shape (B, S, C, H, W) of the masks.

    Zero is the pruned branch: F + 0 * F. Shifting the masks costs no loop over slices. ``apart`` (B,) bool: stacks of
    unrelated slices, all of whose branches are pruned.
    """
    if apart is not None:
        masks = masks.masked_fill(apart[:, None, None, None, None], 0)
    nothing = torch.zeros_like(masks[:, :1])
    return torch.cat((nothing, masks[:, :-1]), 1), torch.cat((masks[:, 1:], nothing), 1)
