"""The network optimised for inference: the same function in fewer passes over memory."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .dense_unet import ConvBNReLU

Network = TypeVar("Network", bound=nn.Module)


def fold_batch_norm(network: Network) -> Network:
    """The network with each batch norm folded into the convolution before it; changed in place, for evaluation only."""
    for module in network.modules():
        if isinstance(module, ConvBNReLU):
            convolution, norm, _ = module
            assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return network


def pack_for_processor(network: Network) -> Network:
    """The folded network with its convolutions' weights laid out once as oneDNN reads them and ReLU done inside them.

    Changed in place; the network must be in evaluation mode, on the processor and of its final type. Where PyTorch
    comes without oneDNN (Apple's processors), or with another form of its operation, nothing changes.
    """
    if not (torch.backends.mkldnn.is_available() and _packing_works()):
        return network
    for module in list(network.modules()):
        if isinstance(module, ConvBNReLU) and isinstance(module[0], nn.Conv2d):
            module[0], module[2] = PackedConvolution(module[0], "relu"), nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, PackedConvolution(child))
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, HalvingMaxPool())
    return network


@functools.cache
def _packing_works() -> bool:
    """Whether this PyTorch has the operation and it answers right: it is no part of PyTorch's public interface."""
    # Whatever the caller's default type, default device and autocast are, and without its random numbers.
    numbers = functools.partial(torch.linspace, -1, 1, dtype=torch.float32, device="cpu")
    convolution = nn.Conv2d(2, 3, 3, padding=1, device="meta")
    convolution.load_state_dict({"weight": numbers(54).view(3, 2, 3, 3), "bias": numbers(3)}, assign=True)
    x = numbers(40).view(1, 2, 5, 4)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            return torch.allclose(PackedConvolution(convolution, "relu")(x), convolution(x).relu(), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False


class PackedConvolution(nn.Module):
    """A convolution of stride 1 for the processor, optionally with its ReLU.

    PyTorch's own compiler emits the same operation; called alone it spares a reordering of the weights at every call
    and a pass over the result (docs/speed.md).
    """

    def __init__(self, convolution: nn.Conv2d, activation: str = "none") -> None:
        super().__init__()
        assert convolution.stride == (1, 1) and not isinstance(convolution.padding, str)
        # Everything that is neither the slices nor the activation.
        self._geometry: tuple[Any, ...] = (list(convolution.padding), [1, 1], list(convolution.dilation), 1)
        padding, stride, dilation, groups = self._geometry
        self._bias = convolution.bias
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            convolution.weight.detach(), padding, stride, dilation, groups, None
        )
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._geometry, self._activation, [], ""
        )


class HalvingMaxPool(nn.Module):
    """Max-pooling 2 x 2 without the places of the maxima, which only learning needs."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])
