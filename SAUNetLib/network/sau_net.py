"""SAU-Net: Dense U-Net on every slice, then inter-slice attention across the stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .dense_unet import DenseUNet, Reading
from .inter_slice_attention import InterSliceAttention, neighbours

Attention = Literal["skips", "features", "scores", "none"]
Maps = tuple[Tensor, ...]


class SAUNet(nn.Module):
    """SAU-Net (Zhang, Yuan, Wang, Zhang: MIDL 2020, short paper P054).

    Args:
        classes: 1 for the paper's binary form (foreground score, to be followed by a sigmoid), otherwise the number of
            classes with the background (scores, to be followed by a softmax: our extension).
        widths: see `DenseUNet`.
        reading: see `DenseBlock`.
        attention: where ISA works: ``scores``, the per-slice class scores as the paper's formula has it; ``features``,
            the feature maps ahead of them (the word on another of its slides; what is best, docs/results.md);
            ``skips``, the encoder's maps of all levels but the finest, ahead of the decoder (ours, several scales);
            ``none``, Dense U-Net alone.

    Shape:
        (B, S, 1, H, W): B stacks of S consecutive slices -> scores (B, S, classes, H, W). S >= 1; H and W multiples
        of 16. Every slice goes through the Dense U-Net exactly once. ``apart`` (B,) bool: stacks whose slices are no
        neighbours; they meet no masks.
    """

    def __init__(
        self,
        classes: int = 4,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        reading: Reading = "add",
        attention: Attention = "features",
    ) -> None:
        super().__init__()
        if attention not in ("skips", "features", "scores", "none"):
            raise ValueError(f"attention must be 'skips', 'features', 'scores' or 'none', not {attention!r}")
        self.classes, self.widths, self.reading = classes, tuple(widths), reading
        self.attention = attention
        self.encoder = DenseUNet(1, widths, reading)
        self.head = nn.Conv2d(self.encoder.out_channels, classes, 1)
        self.isa: nn.ModuleList | InterSliceAttention | None = None
        if attention == "skips":
            self.isa = nn.ModuleList(InterSliceAttention(channels) for channels in self.encoder.skip_channels[1:])
        elif attention != "none":
            self.isa = InterSliceAttention(self.encoder.out_channels if attention == "features" else classes)

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

    def rough(self, slices: Tensor) -> Maps:
        """The rough results F of slices (N, 1, H, W), each alone: one map (N, C, H, W), or those of all levels."""
        if self.attention == "skips":
            return tuple(self.encoder.encode(slices))
        features = self.encoder(slices)
        return (self.head(features) if self.attention == "scores" else features,)

    def masks(self, rough: Maps) -> Maps:
        """The attention A of slices for their neighbours, one mask for each of the last maps of F; none without ISA."""
        attentions = self._attentions()
        attended = rough[len(rough) - len(attentions) :]
        return tuple(isa.attention(one) for isa, one in zip(attentions, attended, strict=True))

    def scores(self, rough: Maps, before: Maps | None = None, after: Maps | None = None) -> Tensor:
        """Class scores (N, classes, H, W) of slices by their F and their neighbours' masks; None: no neighbour."""
        refined = list(rough)
        first = len(rough) - len(self._attentions())
        for place in range(first, len(rough)):
            beside = [None if masks is None else masks[place - first] for masks in (before, after)]
            refined[place] = InterSliceAttention.combine(rough[place], *beside)
        if self.attention == "skips":
            return self.head(self.encoder.decode(refined))
        return refined[0] if self.attention == "scores" else self.head(refined[0])

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Scores (1, classes, H, W) slice by slice of one stack that comes in chunks (n, 1, H, W).

        Every slice is encoded once, however the stack is cut, and memory does not grow with it.
        """
        before: Maps | None = None  # masks of slice i - 1
        current: tuple[Maps, Maps] | None = None  # rough results and masks of slice i
        for slices in chunks:
            rough = self.rough(slices)
            masks = self.masks(rough)
            for number in range(slices.shape[0]):
                one, mask = (tuple(part[number : number + 1] for part in parts) for parts in (rough, masks))
                if current is not None:
                    yield self.scores(current[0], before, mask)
                    before = current[1]
                current = (one, mask)
        if current is not None:
            yield self.scores(current[0], before, None)

    def forward(self, stacks: Tensor, apart: Tensor | None = None) -> Tensor:
        if stacks.ndim != 5:
            raise ValueError(f"stacks must be (B, S, 1, H, W), not {tuple(stacks.shape)}")
        number = stacks.shape[:2]
        rough = self.rough(stacks.flatten(0, 1))
        shifted = [neighbours(masks.unflatten(0, number), apart) for masks in self.masks(rough)]
        before, after = (tuple(pair[side].flatten(0, 1) for pair in shifted) for side in (0, 1))
        return self.scores(rough, before, after).unflatten(0, number)

    def _attentions(self) -> list[InterSliceAttention]:
        if self.isa is None:
            return []
        return [self.isa] if isinstance(self.isa, InterSliceAttention) else list(self.isa)  # type: ignore[arg-type]
