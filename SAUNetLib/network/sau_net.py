"""SAU-Net: Dense U-Net on every slice, then inter-slice attention across the stack."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .dense_unet import DenseUNet, Reading
from .inter_slice_attention import InterSliceAttention, from_neighbour, refine

Attention = Literal["skips", "features", "scores", "none"]
Maps = tuple[Tensor, ...]


class SAUNet(nn.Module):
    """SAU-Net (Zhang, Yuan, Wang, Zhang: MIDL 2020, short paper P054).

    Args:
        classes: 1 for the paper's binary form (foreground score, to be followed by a sigmoid), otherwise the number of
            classes including background (scores, to be followed by a softmax: our extension).
        widths: see `DenseUNet`.
        reading: see `DenseBlock`.
        attention: where ISA is applied: ``scores``, the per-slice class scores as in the paper's formula; ``features``,
            the feature maps before them (the word on another of its slides; for which is best see docs/results.md);
            ``skips``, the encoder's maps of all levels but the finest, before the decoder (ours, several scales);
            ``none``, Dense U-Net alone.
        reach: how many slices on each side attend to a slice, see `InterSliceAttention`.

    Shape:
        (B, S, 1, H, W): B stacks of S consecutive slices -> scores (B, S, classes, H, W). S >= 1; H and W multiples
        of 16. Every slice goes through the Dense U-Net exactly once. ``apart`` (B,) bool: stacks whose slices are not
        neighbours and get no masks.

    Raises:
        ValueError: `attention` is none of these, `widths`, `reading` or `reach` is invalid (see there); in
            ``forward``, stacks of another shape.
    """

    def __init__(
        self,
        classes: int = 4,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        reading: Reading = "add",
        attention: Attention = "features",
        reach: int = 1,
    ) -> None:
        super().__init__()
        if attention not in ("skips", "features", "scores", "none"):
            raise ValueError(f"attention must be 'skips', 'features', 'scores' or 'none', not {attention!r}")
        self.classes, self.widths, self.reading = classes, tuple(widths), reading
        self.attention, self.reach = attention, reach
        self.encoder = DenseUNet(1, widths, reading)
        self.head = nn.Conv2d(self.encoder.out_channels, classes, 1)
        self.isa: nn.ModuleList | InterSliceAttention | None = None
        if attention == "skips":
            self.isa = nn.ModuleList(InterSliceAttention(size, reach) for size in self.encoder.skip_channels[1:])
        elif attention != "none":
            self.isa = InterSliceAttention(self.encoder.out_channels if attention == "features" else classes, reach)

    def outline(self) -> SAUNet:
        """A network of the same form without weights (PyTorch's meta device), for counting."""
        with torch.device("meta"):
            return type(self)(self.classes, self.widths, self.reading, self.attention, self.reach).eval()

    def cost(self, rows: int, columns: int) -> tuple[int, int]:
        """Number of weights, and floating-point operations of the convolutions for a slice of rows x columns pixels."""
        return cost_of(self.outline(), torch.empty(1, 1, 1, rows, columns, device="meta"))

    def rough(self, slices: Tensor) -> Maps:
        """The rough results F of slices (N, 1, H, W), each on its own: one map (N, C, H, W), or those of all levels."""
        if self.attention == "skips":
            return tuple(self.encoder.encode(slices))
        features = self.encoder(slices)
        return (self.head(features) if self.attention == "scores" else features,)

    def masks(self, rough: Maps) -> tuple[Maps, ...]:
        """The attention A of slices: one set of masks per distance 1, 2, ..., each for the maps of F that ISA refines.

        Without ISA there are none.
        """
        attentions = self._attentions()
        attended = rough[len(rough) - len(attentions) :]
        return tuple(zip(*(isa(maps) for isa, maps in zip(attentions, attended, strict=True)), strict=True))

    def scores(self, rough: Maps, beside: Sequence[Maps] = ()) -> Tensor:
        """Class scores (N, classes, H, W) of slices from their F and the masks of each neighbour that they have."""
        refined = list(rough)
        first = len(rough) - len(self._attentions())
        for place in range(first, len(rough)):
            refined[place] = refine(rough[place], [masks[place - first] for masks in beside])
        if self.attention == "skips":
            return self.head(self.encoder.decode(refined))
        return refined[0] if self.attention == "scores" else self.head(refined[0])

    def stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Scores (1, classes, H, W) slice by slice of one stack that comes in chunks (n, 1, H, W).

        Every slice is encoded once, however the stack is divided, and memory does not grow with it.
        """
        waiting: deque[Maps] = deque()  # rough results of slices i, i + 1, ...
        masks: deque[tuple[Maps, ...]] = deque()  # masks of slices i - reach to i + reach, where they exist
        for slices in chunks:
            rough = self.rough(slices)
            by_distance = self.masks(rough)
            for number in range(slices.shape[0]):
                waiting.append(_maps_of_slice(rough, number))
                masks.append(tuple(_maps_of_slice(maps, number) for maps in by_distance))
                if len(waiting) > len(by_distance):
                    yield self._next(waiting, masks)
        while waiting:
            yield self._next(waiting, masks)

    def _next(self, waiting: deque[Maps], masks: deque[tuple[Maps, ...]]) -> Tensor:
        """Scores of the first slice in the queue, which leaves it."""
        due = len(masks) - len(waiting)
        steps = [step for d in range(1, len(masks[due]) + 1) for step in (-d, d)]
        beside = [masks[due + step][abs(step) - 1] for step in steps if 0 <= due + step < len(masks)]
        scores = self.scores(waiting.popleft(), beside)
        if due == len(masks[due]):
            masks.popleft()
        return scores

    def forward(self, stacks: Tensor, apart: Tensor | None = None) -> Tensor:
        if stacks.ndim != 5:
            raise ValueError(f"stacks must be (B, S, 1, H, W), not {tuple(stacks.shape)}")
        number = stacks.shape[:2]
        rough = self.rough(stacks.flatten(0, 1))
        beside = [
            tuple(from_neighbour(mask.unflatten(0, number), step, apart).flatten(0, 1) for mask in masks)
            for d, masks in enumerate(self.masks(rough), 1)
            for step in (-d, d)
        ]
        return self.scores(rough, beside).unflatten(0, number)

    def _attentions(self) -> list[InterSliceAttention]:
        if self.isa is None:
            return []
        return [self.isa] if isinstance(self.isa, InterSliceAttention) else list(self.isa)  # type: ignore[arg-type]


def cost_of(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Number of any network's weights, and floating-point operations of its convolutions for an input."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)
    return sum(weights.numel() for weights in network.parameters()), counter.get_total_flops()


def _maps_of_slice(maps: Maps, number: int) -> Maps:
    """The maps (1, C, H, W) of one slice."""
    return tuple(part[number : number + 1] for part in maps)
