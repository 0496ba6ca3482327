"""Dense U-Net: the intra-slice network, applied to each slice alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Reading = Literal["add", "concat"]


class ConvBNReLU(nn.Sequential):
    """Convolution 3 x 3, batch normalisation, ReLU: the unit drawn as one box in the authors' figure."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class DenseBlock(nn.Module):
    """Two convolution units, the block's input x carried to the (+) after each of them.

    The authors call the block densely connected and do not write out what (+) does inside it (SAU-Net, MIDL 2020,
    poster 54, slide 5). Both readings are implemented:

    ``add``
        h1 = unit(x) + P x;  y = unit(h1) + P x, with P a 1 x 1 convolution where the widths differ, else identity.
        The sign means this in the figure of the inter-slice attention.
    ``concat``
        h1 = [x, unit(x)];  y = [x, unit(h1)]: the dense connection of DenseNet (Huang et al., CVPR 2017).

    Args:
        in_channels: channels of x.
        width: output channels of each unit.
        reading: ``add`` or ``concat``.

    Shape:
        x (N, in_channels, H, W) -> (N, ``out_channels``, H, W); ``out_channels`` is ``width`` for ``add`` and
        ``in_channels + width`` for ``concat``.

    Raises:
        ValueError: `reading` is neither.
    """

    def __init__(self, in_channels: int, width: int, reading: Reading = "add") -> None:
        super().__init__()
        if reading not in ("add", "concat"):
            raise ValueError(f"reading must be 'add' or 'concat', not {reading!r}")
        self.reading = reading
        self.first = ConvBNReLU(in_channels, width)
        if reading == "add":
            self.carry = nn.Identity() if in_channels == width else nn.Conv2d(in_channels, width, 1, bias=False)
            self.second = ConvBNReLU(width, width)
            self.out_channels = width
        else:
            self.carry = nn.Identity()
            self.second = ConvBNReLU(in_channels + width, width)
            self.out_channels = in_channels + width

    def forward(self, x: Tensor) -> Tensor:
        carried = self.carry(x)
        if self.reading == "add":
            return self.second(self.first(x) + carried) + carried
        return torch.cat((carried, self.second(torch.cat((carried, self.first(x)), 1))), 1)


class DenseUNet(nn.Module):
    """U-Net of dense blocks: four Down blocks, a Bottom, four Up blocks, skip connections by concatenation.

    A Down block ends in max-pooling; the Bottom and every Up block but the last end in a 2 x 2 deconvolution. The last
    Up block's output is what this network returns: features at full resolution, which a 1 x 1 convolution turns into
    class scores (`SAUNet`).

    Args:
        in_channels: channels of a slice, 1 for MRI.
        widths: width of the block at each of the five levels, finest first.
        reading: what (+) means inside a block, see `DenseBlock`.

    Shape:
        (N, in_channels, H, W) -> (N, ``out_channels``, H, W); H and W multiples of ``stride`` (16).

    Raises:
        ValueError: not five positive widths; in ``forward``, as `encode`.
    """

    stride = 16

    def __init__(
        self, in_channels: int = 1, widths: Sequence[int] = (16, 32, 64, 128, 256), reading: Reading = "add"
    ) -> None:
        super().__init__()
        if len(widths) != 5 or min(widths) < 1:
            raise ValueError(f"widths needs five positive values (four Down blocks and the Bottom), not {widths}")
        self.down, self.up, self.deconvolution = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, skips = in_channels, []
        for width in widths[:-1]:
            block = DenseBlock(channels, width, reading)
            self.down.append(block)
            channels = block.out_channels
            skips.append(channels)
        self.pool = nn.MaxPool2d(2)
        self.bottom = DenseBlock(channels, widths[-1], reading)
        channels = self.bottom.out_channels
        self.skip_channels = (*skips, channels)
        for width, skip in zip(reversed(widths[:-1]), reversed(skips), strict=True):
            self.deconvolution.append(nn.ConvTranspose2d(channels, width, 2, stride=2))
            block = DenseBlock(width + skip, width, reading)
            self.up.append(block)
            channels = block.out_channels
        self.out_channels = channels

    def encode(self, x: Tensor) -> list[Tensor]:
        """The decoder's input: the four skip connections' maps, finest first, and the Bottom's.

        Shape:
            (N, in_channels, H, W) -> five of (N, ``skip_channels[level]``, H / 2^level, W / 2^level).

        Raises:
            ValueError: slices of another shape, or H or W not a multiple of ``stride``.
        """
        if x.ndim != 4 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(
                f"slices must be (N, C, H, W) with H and W multiples of {self.stride}, not {tuple(x.shape)}"
            )
        maps = []
        for block in self.down:
            x = block(x)
            maps.append(x)
            x = self.pool(x)
        return [*maps, self.bottom(x)]

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (N, ``out_channels``, H, W) of the maps that `encode` gave."""
        *skips, x = maps
        for deconvolution, block in zip(self.deconvolution, self.up, strict=True):
            x = block(torch.cat((skips.pop(), deconvolution(x)), 1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
