"""The files of `saunet compare`: ``comparison.json``, and each trial's weights and ``result.json``."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from ..errors import UsageError
from ..formats.atomic import write_beside
from ..training.folders import write_settings
from ..training.train import TrainedOn, TrainingConfig
from .comparison_networks import CANDIDATES, TASKS, Trial

SETTINGS = "comparison.json"
SHIPPED = "shipped"
"""Name, beside those of the tasks, for costs at the shipped model's network and pixel size."""
FIGURES = ("dice", "precision", "recall", "jaccard", "hausdorff_mm", "cleaned_hausdorff_mm", "hausdorff95_mm")
_WEIGHTS = "weights.safetensors"


class CaseMetrics(BaseModel):
    """Agreement on one structure of one held-out patient, see `metrics.Agreement`.

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


class TrialResult(BaseModel):
    """The result of a finished trial: ``result.json`` in its folder.

    Attributes:
        date: of completion, ISO.
        seconds: of training.
        moved: voxels whose class ISA on scores changed, as a share of the predicted foreground; mean over patients and
            `VALIDATIONS`; None for the other networks.
        figures: per validation set, patient and structure.
    """

    network: str
    task: str
    seed: int
    date: str
    seconds: float
    moved: float | None
    figures: list[CaseMetrics]


class Cost(BaseModel):
    """The cost of a network, independent of its training.

    Attributes:
        parameters: number of trained weights.
        megabytes: their size in float32.
        gigaflop: operations of the convolutions for a slice of the first held-out patient.
        seconds: of the network alone for the held-out patients, by the names of `VALIDATIONS`.
    """

    parameters: int
    megabytes: float
    gigaflop: float
    seconds: dict[str, float]


class Comparison(BaseModel):
    """``comparison.json``: the settings shared by all trials of a comparison, and the cost of the networks.

    Attributes:
        data: name of the data folder.
        budget: name of the budget.
        config: settings of every network.
        held_out, trained_on: names of the cases.
        record: of the data that its trials are trained and measured on; None in earlier comparisons.
        device, precision: of the timing.
        costs: task, or ``shipped`` for the shipped model's widths and pixel size -> network -> cost.
    """

    data: str
    budget: str
    config: TrainingConfig
    held_out: tuple[str, ...]
    trained_on: tuple[str, ...]
    device: str
    precision: str
    costs: dict[str, dict[str, Cost]] = {}
    record: TrainedOn | None = None


def read_comparison(output: Path) -> tuple[Comparison, list[TrialResult]]:
    """A comparison and its finished trials, in the order of running.

    Raises:
        UsageError: USAGE, the folder holds no comparison.
    """
    try:
        comparison = Comparison.model_validate_json((output / SETTINGS).read_bytes())
        results = [TrialResult.model_validate_json(path.read_bytes()) for path in output.glob("*/result.json")]
    except (OSError, ValidationError) as error:
        raise UsageError(
            "USAGE", f"{output} holds no comparison", "Give the output folder of `saunet compare`"
        ) from error
    tasks, networks = list(TASKS), list(CANDIDATES)
    results.sort(key=lambda result: (result.seed, tasks.index(result.task), networks.index(result.network)))
    return comparison, results


def is_finished(output: Path, trial: Trial) -> bool:
    """Whether a trial has been trained and measured."""
    return _result_file(output, trial).exists()


def write_trial(output: Path, trial: Trial, network: nn.Module, result: TrialResult) -> None:
    """Store the network and the figures of a trial; the figures come last, as they mark it as finished.

    Raises:
        UsageError: OUTPUT_WRITE.
    """
    with write_beside(output / trial.name / _WEIGHTS, ".safetensors") as temporary:
        try:
            save_model(network.to(memory_format=torch.contiguous_format), str(temporary))  # type: ignore[call-overload]
        except SafetensorError as failure:
            raise RuntimeError("a full disk, for example") from failure  # which `write_beside` reports
    write_settings(result, _result_file(output, trial))


def trained(output: Path, trial: Trial, config: TrainingConfig) -> nn.Module:
    """The network of a finished trial.

    Raises:
        UsageError: USAGE, the trial's weights are of another network.
    """
    network = trial.build(config)
    weights = load_file(output / trial.name / _WEIGHTS)
    # MONAI's networks have several names for one weight, of which the file has one.
    names = network.state_dict(keep_vars=True)
    _, foreign = network.load_state_dict(weights, strict=False)
    if foreign or {id(weight) for weight in names.values()} - {id(names[name]) for name in weights}:
        raise UsageError(
            "USAGE", f"{output / trial.name} holds a different network", "Remove this folder and compare again"
        )
    return network.eval()


def _result_file(output: Path, trial: Trial) -> Path:
    return output / trial.name / "result.json"
