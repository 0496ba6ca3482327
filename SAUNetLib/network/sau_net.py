"""SAU-Net: Dense U-Net on every slice, then inter-slice attention across the stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .dense_unet import DenseUNet, Reading
from .inter_slice_attention import InterSliceAttention

Attention = Literal["features", "scores", "none"]


class SAUNet(nn.Module):
    """SAU-Net (Zhang, Yuan, Wang, Zhang: MIDL 2020, short paper P054).

    Args:
        classes: 1 for the paper's binary form (foreground score, to be followed by a sigmoid), otherwise the number of
            classes with the background (scores, to be followed by a softmax: our extension).
        widths: see `DenseUNet`.
        reading: see `DenseBlock`.
        attention: where ISA works: ``scores``, the per-slice class scores as the paper's formula has it; ``features``,
            the feature maps ahead of them (the word on another of its slides); ``none``, Dense U-Net alone.

    Shape:
        (B, S, 1, H, W): B stacks of S consecutive slices -> scores (B, S, classes, H, W). S >= 1; H and W multiples
        of 16. Every slice goes through the Dense U-Net exactly once.
    """

    def __init__(
        self,
        classes: int = 4,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        reading: Reading = "add",
        attention: Attention = "features",
    ) -> None:
        super().__init__()
        if attention not in ("features", "scores", "none"):
            raise ValueError(f"attention must be 'features', 'scores' or 'none', not {attention!r}")
        self.classes, self.widths, self.reading = classes, tuple(widths), reading
        self.attention = attention
        self.encoder = DenseUNet(1, widths, reading)
        self.head = nn.Conv2d(self.encoder.out_channels, classes, 1)
        channels = {"features": self.encoder.out_channels, "scores": classes, "none": 0}[attention]
        self.isa = InterSliceAttention(channels) if channels else None

    def cost(self, rows: int, columns: int) -> tuple[int, int]:
        """Number of weights, and floating-point operations of the convolutions for a slice of rows x columns pixels."""
        weights = self.state_dict()
        with torch.device("meta"):
            network = type(self)(self.classes, self.widths, self.reading, self.attention).eval()
            slices = torch.empty(1, 1, 1, rows, columns)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(slices)
        trained = {name for name, _ in self.named_parameters()}
        return sum(weights[name].numel() for name in trained), counter.get_total_flops()

    def rough(self, slices: Tensor) -> Tensor:
        """The per-slice rough result F (N, C, H, W) of slices (N, 1, H, W): what ISA takes in."""
        features = self.encoder(slices)
        return features if self.attention == "features" else self.head(features)

    def scores(self, refined: Tensor) -> Tensor:
        """Class scores (N, classes, H, W) of what ISA gave (N, C, H, W)."""
        return self.head(refined) if self.attention == "features" else refined

    def forward(self, stacks: Tensor) -> Tensor:
        if stacks.ndim != 5:
            raise ValueError(f"stacks must be (B, S, 1, H, W), not {tuple(stacks.shape)}")
        number = stacks.shape[:2]
        refined = self.rough(stacks.flatten(0, 1)).unflatten(0, number)
        if self.isa is not None:
            refined = self.isa(refined)
        return self.scores(refined.flatten(0, 1)).unflatten(0, number)
