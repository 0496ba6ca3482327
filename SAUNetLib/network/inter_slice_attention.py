"""Inter-slice attention (ISA): a slice's rough result refined by what its neighbours attend to."""

from __future__ import annotations

from collections.abc import Iterable

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
    softens a slice's probability but never moves a voxel across 0.5. On several classes, or on features before the
    class scores, it can; `SAUNet` offers these places.

    Args:
        channels: channels of F.
        reach: how many slices away the farthest neighbour is. The authors use 1; each further distance d (ours) has
            masks A^d of its own, and adds A^d_{i-d} * F_i + A^d_{i+d} * F_i.

    Shape:
        Slices F (N, C, H, W) -> their masks A^1, A^2, ... (N, C, H, W each) for the neighbours 1, 2, ... slices away.
        Which slices are neighbours is known to `SAUNet`, which gives the masks that exist to `refine`.

    Raises:
        ValueError: `reach` is below 1.
    """

    def __init__(self, channels: int, reach: int = 1) -> None:
        super().__init__()
        if reach < 1:
            raise ValueError(f"reach must be at least 1, not {reach}")
        self.reach = reach
        self.generation = nn.Sequential(
            ConvBNReLU(channels, channels), nn.Conv2d(channels, reach * channels, 3, padding=1), nn.Sigmoid()
        )

    def forward(self, rough: Tensor) -> tuple[Tensor, ...]:
        return self.generation(rough).chunk(self.reach, 1)


def refine(rough: Tensor, masks: Iterable[Tensor]) -> Tensor:
    """F_i + A_j * F_i + ... for the masks of the neighbours j that exist; all of one shape."""
    return rough * sum(masks, start=1.0)


def from_neighbour(masks: Tensor, step: int, apart: Tensor | None = None) -> Tensor:
    """The mask of slice i + step at slice i, for stacks of masks (B, S, C, H, W); the shape stays.

    Zero is the pruned branch: F + 0 * F. Shifting the masks avoids a loop over slices. ``apart`` (B,) bool: stacks of
    unrelated slices, all of whose branches are pruned.
    """
    if apart is not None:
        masks = masks.masked_fill(apart[:, None, None, None, None], 0)
    nothing = torch.zeros_like(masks[:, : abs(step)])
    return torch.cat((nothing, masks[:, :step]) if step < 0 else (masks[:, step:], nothing), 1)
