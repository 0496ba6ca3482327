"""`saunet compare`: the paper's table on own patients, every network trained by the same command with several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import cc3d
import lightning.pytorch as pl
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets import DynUNet
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

from ..anatomy import CLASS_NAMES, VERTEBRA
from ..engine import GPU_CHUNK, choose_device, computes_bfloat16, network_input, resample
from ..errors import InputError, UsageError
from ..metrics import agreement, compare_labels
from ..network import DenseUNet, SAUNet, fold_batch_norm, pack_for_processor
from ..network.sau_net import Attention
from ..training.datasets import Case, can_thicken, load_cases, thick_volume
from ..training.folders import UNKNOWN, case_names, patients_of, read_pair, write_settings
from ..training.folders import patients as cases_by_patient
from ..training.run import VALIDATIONS
from ..training.train import NetworkConfig, TrainingConfig, TrainingRun, fit
from ..volume import SagittalStack, Volume

KEPT_OUT = ("045", "081", "127", "209", "239")
"""SPIDER's patients that no network of the project is trained on."""
SEEDS = 3
"""Trainings of every network, where nothing else is said."""
TASKS = {"spine": 1, "structures": len(CLASS_NAMES)}
"""What is segmented -> scores of the network: all vertebrae in the paper's binary form, or the three structures."""
SHIPPED = "shipped"
"""What the costs of networks and pixels of the shipped model's size are called, beside those of the tasks."""
WEIGHTS = "weights.safetensors"
ISLAND = 0.01
"""A smaller share of what was found of a structure is an island; fixed before any result was seen."""
REPEATS = 2

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
    "full": TrainingConfig(
        description="the full budget, for a GPU",
        network=NetworkConfig(widths=(32, 64, 128, 256, 512)),
        pixel_mm=0.75,
        slices=6,
        stacks=4,
        contrasts=0.0,
        steps=20_000,
    ),
}
"""What every network of a comparison gets; its name, classes, attention and validation cases are set per run."""
BUDGETS["medium"] = BUDGETS["small"].model_copy(
    update={"description": "a budget for one processor core and a night: coarse pixels, narrow networks", "steps": 2000}
)


class UNet(nn.Module):
    """MONAI's U-Net (DynUNet: two convolutions a level, batch norm, strided convolutions, deconvolutions) on stacks.

    The three-dimensional one takes a stack as a volume. It halves rows and columns but not the slices, which are few
    and, where thick, farther apart than the coarsest level's pixels are wide. Outside of training it works, as usual
    for such networks, in windows of as many slices as it was trained on, laid and blended as MONAI's default has it
    (a quarter of overlap).

    Args:
        dimensions: 2, every slice alone, or 3.
        classes, widths: as `SAUNet`.
        window: slices of a window, for three dimensions.

    Shape:
        That of `SAUNet`: (B, S, 1, H, W) -> (B, S, classes, H, W), H and W multiples of 16.
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
    """A network that takes part: its title in the table, and how it is made for a number of classes and a budget."""

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
    """One training of one network."""

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


FIGURES = ("dice", "precision", "recall", "jaccard", "hausdorff_mm", "cleaned_hausdorff_mm", "hausdorff95_mm")


class Figures(BaseModel):
    """Agreement of one structure of one kept-out patient, see `metrics.Agreement`.

    Attributes:
        slices: a key of `VALIDATIONS`.
        cleaned_hausdorff_mm: Hausdorff distance `without_islands`.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    slices: str
    patient: str
    structure: str
    dice: float
    precision: float
    recall: float
    jaccard: float
    hausdorff_mm: float
    cleaned_hausdorff_mm: float
    hausdorff95_mm: float


class Result(BaseModel):
    """What a finished trial left: ``result.json`` in its folder.

    Attributes:
        date: of the end, ISO.
        seconds: of training.
        moved: voxels that ISA on scores gave another class, as a share of the predicted foreground; mean over patients
            and `VALIDATIONS`; None for the other networks.
        figures: per slices, patient and structure.
    """

    network: str
    task: str
    seed: int
    date: str
    seconds: float
    moved: float | None
    figures: list[Figures]


class Cost(BaseModel):
    """What a network costs, whatever it has learnt.

    Attributes:
        parameters: trained weights.
        megabytes: of these in float32.
        gigaflop: operations of the convolutions for a slice of the first kept-out patient.
        seconds: of the network alone for the kept-out patients, by the names of `VALIDATIONS`.
    """

    parameters: int
    megabytes: float
    gigaflop: float
    seconds: dict[str, float]


class Comparison(BaseModel):
    """``comparison.json`` of a comparison's folder: what makes its trials comparable, and what the networks cost.

    Attributes:
        data: name of the data folder.
        budget: name of the budget.
        config: what every network gets.
        kept_out, trained_on: names of the cases.
        device, precision: of the timing.
        costs: task, or ``shipped`` for networks as wide and pixels as fine as those of the shipped model -> network ->
            cost.
    """

    data: str
    budget: str
    config: TrainingConfig
    kept_out: tuple[str, ...]
    trained_on: tuple[str, ...]
    device: str
    precision: str
    costs: dict[str, dict[str, Cost]] = {}


class _Run(TrainingRun):
    """A training run whose network may have one score, the paper's binary form: vertebra against the rest."""

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if scores.shape[1] == 1:
            # A softmax over (0, F) is the sigmoid of F.
            scores = torch.cat((torch.zeros_like(scores), scores), 1)
            labels = torch.where(labels == UNKNOWN, labels, (labels == VERTEBRA).long())
        return super().loss(scores, labels)


@dataclass(frozen=True)
class KeptOut:
    """A kept-out patient in one of the ways of `VALIDATIONS`."""

    slices: str
    patient: str
    volume: Volume
    labels: np.ndarray


def trials(tasks: Sequence[str], seeds: int, first: int) -> Iterator[Trial]:
    """Seed by seed through all networks, so that a comparison that was stopped is still balanced."""
    for seed in range(first, first + seeds):
        for task in tasks:
            for network in CANDIDATES:
                yield Trial(network, task, seed)


def compare(
    data: Path,
    output: Path,
    budget: str = "small",
    tasks: Sequence[str] = tuple(TASKS),
    seeds: int = SEEDS,
    kept_out: Sequence[str] = KEPT_OUT,
    device: str = "auto",
) -> None:
    """Train and measure every network, or go on where a killed comparison of the same output stopped.

    Args:
        data: folder of cases, see `folders.case_names`.
        output: folder of the comparison: ``comparison.json``, and one folder a trial.
        budget: name in `BUDGETS`.
        tasks: names in `TASKS`.
        seeds: trainings of every network.
        kept_out: names of the cases to measure on.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.

    Raises:
        UsageError: USAGE, the folder holds another comparison.
        InputError: the data cannot be used.
    """
    chosen = choose_device(device)
    comparison = _begin(data, output, budget, kept_out, chosen)
    config = comparison.config
    patients = kept_out_patients(data, kept_out)
    for title in (*tasks, SHIPPED):
        if title not in comparison.costs:
            task, measured = (title, config) if title != SHIPPED else ("structures", _as_shipped(config))
            comparison.costs[title] = _costs(measured, task, patients, chosen)
            write_settings(comparison, output / "comparison.json")
    waiting = [trial for trial in trials(tasks, seeds, config.seed) if not _result_file(output, trial).exists()]
    cases = _cases(data, comparison) if waiting else []
    for trial in waiting:
        network, seconds = _train(trial, config, cases, output / trial.name, chosen)
        figures, moved = _measure(network, trial, config.pixel_mm, patients, chosen)
        result = Result(
            network=trial.network,
            task=trial.task,
            seed=trial.seed,
            date=datetime.now(UTC).date().isoformat(),
            seconds=seconds,
            moved=moved,
            figures=figures,
        )
        save_model(network.to(memory_format=torch.contiguous_format), str(output / trial.name / WEIGHTS))  # type: ignore[call-overload]
        write_settings(result, _result_file(output, trial))
        (output / trial.name / "last.ckpt").unlink()


def _as_shipped(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"network": NetworkConfig(), "pixel_mm": TrainingConfig().pixel_mm})


def read_comparison(output: Path) -> tuple[Comparison, list[Result]]:
    """A comparison and its finished trials, in the order in which they are run.

    Raises:
        UsageError: USAGE, the folder holds no comparison.
    """
    try:
        comparison = Comparison.model_validate_json((output / "comparison.json").read_bytes())
        found = [Result.model_validate_json(path.read_bytes()) for path in output.glob("*/result.json")]
    except (OSError, ValidationError) as error:
        raise UsageError("USAGE", f"{output} holds no comparison", "Give the folder of `saunet compare`") from error
    order = (list(TASKS), list(CANDIDATES))
    return comparison, sorted(found, key=lambda one: (one.seed, order[0].index(one.task), order[1].index(one.network)))


def trained(output: Path, trial: Trial, config: TrainingConfig) -> nn.Module:
    """The network of a finished trial.

    Raises:
        UsageError: USAGE, the trial's weights are of another network.
    """
    network = trial.build(config)
    weights = load_file(output / trial.name / WEIGHTS)
    # MONAI's networks know one weight by several names, of which the file has one.
    names = network.state_dict(keep_vars=True)
    _, foreign = network.load_state_dict(weights, strict=False)
    if foreign or {id(weight) for weight in names.values()} - {id(names[name]) for name in weights}:
        raise UsageError(
            "USAGE", f"{output / trial.name} holds another network", "Remove this folder and compare again"
        )
    return network.eval()


def _begin(data: Path, output: Path, budget: str, kept_out: Sequence[str], device: torch.device) -> Comparison:
    """The comparison that the folder holds, or a new one."""
    names = case_names(data)
    missing = sorted(set(kept_out) - set(names))
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"{data} has no case {', '.join(missing)}",
            "Name the cases to measure on with --keep-out",
        )
    cases = cases_by_patient(data)
    known = {name for patient in patients_of(kept_out, cases) for name in cases[patient]}
    rest = tuple(name for name in names if name not in known)
    if not kept_out or not rest:
        raise InputError("INPUT_EMPTY", "no case is left to train or to measure on", "Give at least two cases")
    wanted = Comparison(
        data=data.resolve().name,
        budget=budget,
        config=BUDGETS[budget],
        kept_out=tuple(kept_out),
        trained_on=rest,
        device=device.type,
        precision="bfloat16" if computes_bfloat16(device) else "float32",
    )
    file = output / "comparison.json"
    if not file.exists():
        write_settings(wanted, file)
        return wanted
    found, _ = read_comparison(output)
    if any(getattr(found, key) != getattr(wanted, key) for key in ("config", "kept_out", "trained_on")):
        raise UsageError("USAGE", f"{output} holds a comparison with another budget or data", "Give another folder")
    return found


def _cases(data: Path, comparison: Comparison) -> list[Case]:
    """The cases to train on."""
    cases = load_cases(data, comparison.trained_on, comparison.config.pixel_mm)
    partial = [case.name for case in cases if case.background]
    if partial:
        raise InputError(
            "INPUT_LABELS", f"{partial[0]} has not all structures drawn", "Compare on cases with all three drawn"
        )
    single = [case.name for case in cases if len(case.images) == 1]
    if single:
        raise InputError("INPUT_DIMENSION", f"{single[0]} is a single slice", "Compare on volumes")
    return cases


def _result_file(output: Path, trial: Trial) -> Path:
    return output / trial.name / "result.json"


def kept_out_patients(data: Path, names: Sequence[str]) -> list[KeptOut]:
    """The patients to measure on, each with native and with averaged slices."""
    pairs = {name: read_pair(data, name) for name in names}
    stacks = {name: SagittalStack.of(volume) for name, (volume, _) in pairs.items()}
    return [
        KeptOut(slices, name, *thick_volume(volume, labels, count))
        for slices, count in VALIDATIONS.items()
        for name, (volume, labels) in pairs.items()
        if can_thicken(len(stacks[name].slices), stacks[name].slice_spacing, count)
    ]


def _train(
    trial: Trial, config: TrainingConfig, cases: Sequence[Case], folder: Path, device: torch.device
) -> tuple[nn.Module, float]:
    """The trained network on the device, and the seconds of its training."""
    config = config.model_copy(update={"seed": trial.seed})
    pl.seed_everything(trial.seed, verbose=False)
    run = _Run(config, [cases], [], trial.build(config))
    seconds = fit(run, folder, device.type)
    return run.network.eval().to(device), seconds


def _measure(
    network: nn.Module, trial: Trial, pixel_mm: float, patients: Sequence[KeptOut], device: torch.device
) -> tuple[list[Figures], float | None]:
    """Agreement with the truth on the source grid, and `Result.moved`."""
    figures, moved = [], []
    values = (VERTEBRA,) if TASKS[trial.task] == 1 else tuple(range(1, TASKS[trial.task]))
    for one in patients:
        found = np.where(one.labels == UNKNOWN, 0, predict(network, one.volume, pixel_mm, device))
        spacing = tuple(reversed(one.volume.geometry.spacing))
        truth = np.where(np.isin(one.labels, values), one.labels, 0)
        for value, agreed in compare_labels(found, truth, spacing, values).items():
            figures.append(
                Figures(
                    slices=one.slices,
                    patient=one.patient,
                    structure=CLASS_NAMES[value],
                    cleaned_hausdorff_mm=agreement(
                        without_islands(found == value), truth == value, spacing
                    ).hausdorff_mm,
                    **{name: figure for name, figure in asdict(agreed).items() if name in FIGURES},
                )
            )
        if isinstance(network, SAUNet) and network.attention == "scores":
            without = predict(_Rough(network), one.volume, pixel_mm, device)
            moved.append(int(np.sum(found != without)) / max(1, int(np.sum(found > 0))))
    return figures, float(np.mean(moved)) if moved else None


def without_islands(mask: np.ndarray) -> np.ndarray:
    """A mask (k, j, i) without components smaller than `ISLAND` of it; voxels that share a corner are together."""
    kept: np.ndarray = cc3d.dust(mask, int(np.ceil(ISLAND * np.count_nonzero(mask))), connectivity=26)
    return kept


class _Rough(nn.Module):
    """SAU-Net's class scores before ISA, from the same weights."""

    def __init__(self, network: SAUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, stacks: Tensor) -> Tensor:
        return self.network.rough(stacks.flatten(0, 1))[0].unflatten(0, stacks.shape[:2])


@torch.inference_mode()
def predict(network: nn.Module, volume: Volume, pixel_mm: float, device: torch.device) -> np.ndarray:
    """Classes (k, j, i) uint8 of a volume, on its own grid; one score means vertebra where it is above zero."""
    stack = SagittalStack.of(volume)
    with _precision(device):
        scores = network(_image(stack, pixel_mm, device))[0].float()
    rows, columns = stack.working_shape(pixel_mm)
    size = (stack.slices.shape[1], stack.slices.shape[2])
    found = np.empty(stack.slices.shape, np.uint8)
    for number, one in enumerate(scores[..., :rows, :columns].split(1)):
        full = resample(one, size)
        found[number] = (full[0].argmax(0) if full.shape[1] > 1 else full[0, 0] > 0).byte().cpu().numpy()
    return stack.restore(found)


def _image(stack: SagittalStack, pixel_mm: float, device: torch.device) -> Tensor:
    """The networks' input (1, S, 1, h, w)."""
    shape, intensity = stack.working_shape(pixel_mm), stack.intensity()
    return network_input(stack.slices, intensity, shape, DenseUNet.stride, device)[None]


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device))


@torch.inference_mode()
def _costs(config: TrainingConfig, task: str, patients: Sequence[KeptOut], device: torch.device) -> dict[str, Cost]:
    """What every network costs; their times are taken in turn, patient by patient, the fastest of a few.

    On a processor it is the processor's time of one thread: other work on it does not count.
    """
    clock = time.process_time if device.type == "cpu" else benchmark.timer
    dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    seconds = {name: dict.fromkeys(VALIDATIONS, 0.0) for name in CANDIDATES}
    networks = {name: _ready(Trial(name, task, config.seed).build(config), device, dtype) for name in CANDIDATES}
    first = _image(SagittalStack.of(patients[0].volume), config.pixel_mm, device)
    for one in patients:
        image = _image(SagittalStack.of(one.volume), config.pixel_mm, device).to(dtype)
        timers = {
            name: benchmark.Timer("answer()", globals={"answer": partial(_answer, network, image)}, timer=clock)
            for name, network in networks.items()
        }
        taken = [{name: timer.timeit(1).mean for name, timer in timers.items()} for _ in range(REPEATS)]
        for name in CANDIDATES:
            seconds[name][one.slices] += min(run[name] for run in taken)
    costs = {}
    for name in CANDIDATES:
        network = Trial(name, task, config.seed).build(config).eval().to(device)
        with FlopCounterMode(display=False) as counter:
            network(first.float())
        parameters = sum(weights.numel() for weights in network.parameters())
        costs[name] = Cost(
            parameters=parameters,
            megabytes=4 * parameters / 1e6,
            gigaflop=counter.get_total_flops() / first.shape[1] / 1e9,
            seconds=seconds[name],
        )
    return costs


def _ready(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network made ready to answer, as the engine makes SAU-Net; batch norm is folded into every one."""
    network = fold_batch_norm(network.eval())
    for block in network.modules():
        if isinstance(block, UnetBasicBlock):
            block.conv1.conv, block.norm1 = fuse_conv_bn_eval(block.conv1.conv, block.norm1), nn.Identity()
            block.conv2.conv, block.norm2 = fuse_conv_bn_eval(block.conv2.conv, block.norm2), nn.Identity()
    network = network.to(device, dtype)
    return pack_for_processor(network) if device.type == "cpu" and isinstance(network, SAUNet) else network


def _answer(network: nn.Module, image: Tensor) -> None:
    """A patient's slices (1, S, 1, h, w) through a network, as many at once as is best for it."""
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
