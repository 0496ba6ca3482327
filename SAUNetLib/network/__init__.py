"""The neural networks: tensors in, tensors out, nothing of the project imported."""

from .dense_unet import ConvBNReLU, DenseBlock, DenseUNet
from .inference import fold_batch_norm, pack_for_processor
from .inter_slice_attention import InterSliceAttention
from .sau_net import SAUNet, cost_of

__all__ = [
    "ConvBNReLU",
    "DenseBlock",
    "DenseUNet",
    "InterSliceAttention",
    "SAUNet",
    "cost_of",
    "fold_batch_norm",
    "pack_for_processor",
]
