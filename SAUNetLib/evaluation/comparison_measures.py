"""Quality and cost of a network in `saunet compare`: agreement on held-out patients, size and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import cc3d
import numpy as np
import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import benchmark

from ..anatomy import CLASS_NAMES, VERTEBRA
from ..engine import GPU_CHUNK, computes_bfloat16, network_input, resample
from ..metrics import agreement, compare_labels
from ..network import DenseUNet, SAUNet, cost_of, fold_batch_norm, pack_for_processor
from ..training.folders import UNKNOWN
from ..training.held_out import VALIDATIONS, HeldOutCase
from ..training.train import TrainingConfig
from ..volume import SagittalStack, Volume
from .comparison_networks import CANDIDATES, TASKS, Trial, UNet
from .comparison_records import FIGURES, CaseMetrics, Cost

ISLAND = 0.01
"""A component below this fraction of a structure's prediction is an island; fixed before any result was seen."""
REPEATS = 2


def measure(
    network: nn.Module, trial: Trial, pixel_mm: float, patients: Sequence[HeldOutCase], device: torch.device
) -> tuple[list[CaseMetrics], float | None]:
    """Agreement with the truth on the source grid, and `TrialResult.moved`."""
    figures, moved = [], []
    values = (VERTEBRA,) if TASKS[trial.task] == 1 else tuple(range(1, TASKS[trial.task]))
    for case in patients:
        predicted = np.where(case.labels == UNKNOWN, 0, predict(network, case.volume, pixel_mm, device))
        spacing = tuple(reversed(case.volume.geometry.spacing))
        truth = np.where(np.isin(case.labels, values), case.labels, 0)
        for value, structure_agreement in compare_labels(predicted, truth, spacing, values).items():
            figures.append(
                CaseMetrics(
                    slices=case.slices,
                    patient=case.patient,
                    structure=CLASS_NAMES[value],
                    cleaned_hausdorff_mm=agreement(
                        without_islands(predicted == value), truth == value, spacing
                    ).hausdorff_mm,
                    **{name: figure for name, figure in asdict(structure_agreement).items() if name in FIGURES},
                )
            )
        if isinstance(network, SAUNet) and network.attention == "scores":
            before = predict(_ScoresBeforeAttention(network), case.volume, pixel_mm, device)
            without = np.where(case.labels == UNKNOWN, 0, before)
            moved.append(int(np.sum(predicted != without)) / max(1, int(np.sum(predicted > 0))))
    return figures, float(np.mean(moved)) if moved else None


def without_islands(mask: np.ndarray) -> np.ndarray:
    """A mask (k, j, i) without components smaller than `ISLAND` of it; voxels that share a corner are connected."""
    kept: np.ndarray = cc3d.dust(mask, int(np.ceil(ISLAND * np.count_nonzero(mask))), connectivity=26)
    return kept


class _ScoresBeforeAttention(nn.Module):
    """SAU-Net without its last step: the class scores before ISA, with the same weights."""

    def __init__(self, network: SAUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, stacks: Tensor) -> Tensor:
        return self.network.rough(stacks.flatten(0, 1))[0].unflatten(0, stacks.shape[:2])


@torch.inference_mode()
def predict(network: nn.Module, volume: Volume, pixel_mm: float, device: torch.device) -> np.ndarray:
    """Classes (k, j, i) uint8 of a volume, on its own grid; a single score means vertebra where above zero."""
    stack = SagittalStack.of(volume)
    with _precision(device):
        scores = network(_image(stack, pixel_mm, device))[0].float()
    rows, columns = stack.working_shape(pixel_mm)
    size = (stack.slices.shape[1], stack.slices.shape[2])
    classes = np.empty(stack.slices.shape, np.uint8)
    for number, slice_scores in enumerate(scores[..., :rows, :columns].split(1)):
        full = resample(slice_scores, size)
        classes[number] = (full[0].argmax(0) if full.shape[1] > 1 else full[0, 0] > 0).byte().cpu().numpy()
    return stack.restore(classes)


def _image(stack: SagittalStack, pixel_mm: float, device: torch.device) -> Tensor:
    """The networks' input (1, S, 1, h, w)."""
    shape, intensity = stack.working_shape(pixel_mm), stack.intensity()
    return network_input(stack.slices, intensity, shape, DenseUNet.stride, device)[None]


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device))


@torch.inference_mode()
def network_costs(
    config: TrainingConfig, task: str, patients: Sequence[HeldOutCase], device: torch.device
) -> dict[str, Cost]:
    """The cost of every network; times are taken in turn, patient by patient, and the fastest of `REPEATS` counts.

    On a CPU it is the CPU time of one thread, so that other work on the machine does not count.
    """
    clock = time.process_time if device.type == "cpu" else benchmark.timer
    dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    seconds = {name: dict.fromkeys(VALIDATIONS, 0.0) for name in CANDIDATES}
    networks = {name: _ready(Trial(name, task, config.seed).build(config), device, dtype) for name in CANDIDATES}
    first = _image(SagittalStack.of(patients[0].volume), config.pixel_mm, device)
    for case in patients:
        image = _image(SagittalStack.of(case.volume), config.pixel_mm, device).to(dtype)
        timers = {
            name: benchmark.Timer("answer()", globals={"answer": partial(_answer, network, image)}, timer=clock)
            for name, network in networks.items()
        }
        taken = [{name: timer.timeit(1).mean for name, timer in timers.items()} for _ in range(REPEATS)]
        for name in CANDIDATES:
            seconds[name][case.slices] += min(run[name] for run in taken)
    costs = {}
    for name in CANDIDATES:
        # Not on PyTorch's meta device, where MONAI's sliding window does not work.
        parameters, operations = cost_of(Trial(name, task, config.seed).build(config).eval().to(device), first.float())
        costs[name] = Cost(
            parameters=parameters,
            megabytes=4 * parameters / 1e6,
            gigaflop=operations / first.shape[1] / 1e9,
            seconds=seconds[name],
        )
    return costs


def _ready(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network prepared for inference, as the engine prepares SAU-Net; batch norm is folded in all of them.

    Packed weights hardly help MONAI's U-Nets: 2 % of the time of the two-dimensional one, nothing for the other.
    """
    network = fold_batch_norm(network.eval())
    for block in network.modules():
        if isinstance(block, UnetBasicBlock):
            block.conv1.conv, block.norm1 = fuse_conv_bn_eval(block.conv1.conv, block.norm1), nn.Identity()
            block.conv2.conv, block.norm2 = fuse_conv_bn_eval(block.conv2.conv, block.norm2), nn.Identity()
    network = network.to(device, dtype)
    return pack_for_processor(network) if device.type == "cpu" and isinstance(network, SAUNet) else network


def _answer(network: nn.Module, image: Tensor) -> None:
    """Run a patient's slices (1, S, 1, h, w) through a network, as many at once as suits it best."""
    if isinstance(network, UNet) and network.dimensions == 3:
        network(image)
        return
    at_once = 1 if image.device.type == "cpu" else GPU_CHUNK
    if isinstance(network, SAUNet):
        for _ in network.stream(image[0].split(at_once)):
            pass
    else:
        for part in image.split(at_once, 1):
            network(part)
