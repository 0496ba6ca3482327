"""The networks of `saunet compare`, and their training budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from ..anatomy import CLASS_NAMES
from ..network import SAUNet
from ..network.sau_net import Attention
from ..training.train import NetworkConfig, TrainingConfig

TASKS = {"spine": 1, "structures": len(CLASS_NAMES)}
"""Task -> scores of the network: all vertebrae in the paper's binary form, or the three structures."""

BUDGETS = {
    "smoke": TrainingConfig(
        description="a budget that only shows that everything runs: the figures mean nothing",
        network=NetworkConfig(widths=(2, 2, 2, 2, 2)),
        pixel_mm=3.0,
        crop=(32, 32),
        slices=3,
        stacks=1,
        steps=2,
    ),
    "small": TrainingConfig(
        description="a budget for one processor core: coarse pixels and narrow networks, which bound what any of them "
        "can reach below the shipped model",
        network=NetworkConfig(widths=(8, 16, 32, 64, 128)),
        pixel_mm=1.5,
        crop=(160, 128),
        slices=6,
        stacks=1,
        contrasts=0.0,
        steps=800,
        learning_rate=4e-3,
        averaging=0.98,
    ),
    "large": TrainingConfig(
        description="a budget for a GPU: pixels and widths of the shipped model",
        pixel_mm=0.75,
        slices=6,
        stacks=4,
        contrasts=0.0,
        steps=2000,
        averaging=0.992,
    ),
}
"""Settings of every network in a comparison; name, classes, attention and validation cases are set per run."""
BUDGETS["medium"] = BUDGETS["small"].model_copy(
    update={"description": "a budget for one processor core and a night: coarse pixels, narrow networks", "steps": 2000}
)


class UNet(nn.Module):
    """MONAI's U-Net (DynUNet: two convolutions per level, batch norm, strided and transposed convolutions) on stacks.

    The three-dimensional one takes a stack as a volume. It halves rows and columns but not slices, which are few and,
    where thick, farther apart than the coarsest level's pixels are wide. Outside of training it works, as usual for
    such networks, in windows of as many slices as it was trained on, with MONAI's default overlap (a quarter) and
    blending.

    Args:
        dimensions: 2, every slice by itself, or 3.
        classes, widths: as `SAUNet`.
        window: slices per window, for three dimensions.

    Shape:
        As `SAUNet`: (B, S, 1, H, W) -> (B, S, classes, H, W), H and W multiples of 16.
    """

    def __init__(self, dimensions: int, classes: int, widths: Sequence[int], window: int) -> None:
        super().__init__()
        self.dimensions, self.window = dimensions, window
        steps: list[Any] = [1, 2, 2, 2, 2] if dimensions == 2 else [1, *[(1, 2, 2)] * 4]
        relu = ("relu", {"inplace": True})
        self.layers = DynUNet(
            dimensions, 1, classes, [3] * 5, steps, steps[1:], widths, norm_name="batch", act_name=relu
        )

    def forward(self, stacks: Tensor) -> Tensor:
        if self.dimensions == 3:
            volumes = stacks.transpose(1, 2)
            if self.training:
                return self.layers(volumes).transpose(1, 2)
            window = (min(self.window, volumes.shape[2]), *volumes.shape[3:])
            return cast(Tensor, sliding_window_inference(volumes, window, 1, self.layers)).transpose(1, 2)
        return self.layers(stacks.flatten(0, 1)).unflatten(0, stacks.shape[:2])


@dataclass(frozen=True)
class Candidate:
    """A network to compare: its title in the table, and how it is built for a number of scores and a budget."""

    title: str
    make: Callable[[int, TrainingConfig], nn.Module]


def _unet(dimensions: int) -> Callable[[int, TrainingConfig], nn.Module]:
    return lambda classes, budget: UNet(dimensions, classes, budget.network.widths, budget.slices)


def _saunet(attention: Attention, reach: int = 1) -> Callable[[int, TrainingConfig], nn.Module]:
    return lambda classes, budget: SAUNet(classes, budget.network.widths, attention=attention, reach=reach)


CANDIDATES = {
    "unet-2d": Candidate("2D U-Net", _unet(2)),
    "unet-3d": Candidate("3D U-Net", _unet(3)),
    "dense": Candidate("SAU-Net without ISA (Dense U-Net)", _saunet("none")),
    "isa-scores": Candidate("SAU-Net, ISA on scores (as written)", _saunet("scores")),
    "isa-features": Candidate("SAU-Net, ISA on features", _saunet("features")),
    "isa-farther": Candidate("SAU-Net, ISA on features, two slices on each side", _saunet("features", 2)),
    "isa-skips": Candidate("SAU-Net, ISA on skip connections", _saunet("skips")),
}


@dataclass(frozen=True)
class Trial:
    """One training run of one network."""

    network: str
    task: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.network}-{self.seed}"

    def build(self, budget: TrainingConfig) -> nn.Module:
        """The network with random weights."""
        network = CANDIDATES[self.network].make(TASKS[self.task], budget)
        layout = torch.channels_last_3d if self.network == "unet-3d" else torch.channels_last
        return network.to(memory_format=layout)  # type: ignore[call-overload]
