"""`saunet compare`: the paper's table on own data, with every network trained alike and with several seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ..anatomy import VERTEBRA
from ..engine import choose_device, computes_bfloat16
from ..errors import CancelledError, InputError, UsageError
from ..training.datasets import Case, check_unseen, load_cases
from ..training.folders import INFO, UNKNOWN, case_names, patients_of, write_settings
from ..training.folders import patients as cases_by_patient
from ..training.held_out import held_out_images
from ..training.train import GOES_ON, NetworkConfig, RunData, TrainedOn, TrainingConfig, TrainingRun, fit
from .comparison_measures import measure, network_costs
from .comparison_networks import BUDGETS, CANDIDATES, TASKS, Trial
from .comparison_records import SETTINGS, SHIPPED, Comparison, TrialResult, is_finished, read_comparison, write_trial

HELD_OUT = ("045", "081", "127", "209", "239")
"""SPIDER patients that no network of the project is trained on."""
SEEDS = 3
"""Default number of training runs per network."""
_LOCK, _COSTS_LOCK = "training.lock", "costs.lock"
"""Lock files of the run that trains a network, or that measures times, so that several runs can share the work."""


class _Run(TrainingRun):
    """A training run whose network may have a single score, the paper's binary form: vertebra against the rest."""

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if scores.shape[1] == 1:
            # The softmax over (0, F) is the sigmoid of F.
            scores = torch.cat((torch.zeros_like(scores), scores), 1)
            labels = torch.where(labels == UNKNOWN, labels, (labels == VERTEBRA).long())
        return super().loss(scores, labels)

    def check_weights(self) -> None:
        """A network that diverged is measured as it is: the others go on."""


def trials(tasks: Sequence[str], seeds: int, first: int) -> Iterator[Trial]:
    """All networks seed by seed, so that an interrupted comparison is still balanced."""
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
    held_out: Sequence[str] = HELD_OUT,
    device: str = "auto",
) -> None:
    """Train and measure every network, or continue where an interrupted comparison with the same output stopped.

    Several runs with one output share the work, on one computer or on a shared drive that supports locks.

    Args:
        data: folder of cases, see `folders.case_names`.
        output: folder of the comparison: ``comparison.json``, and one folder per trial.
        budget: name in `BUDGETS`.
        tasks: names in `TASKS`.
        seeds: training runs per network.
        held_out: names of the cases to measure on.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.

    Raises:
        UsageError: USAGE, the folder holds another comparison, or one on data that have changed.
        InputError: the data cannot be used.
        CancelledError: it was interrupted; what is finished is kept.
    """
    chosen = choose_device(device)
    comparison = _begin(data, output, budget, held_out, chosen)
    with _going_on():
        _go_on(data, output, comparison, tasks, seeds, chosen)


@contextmanager
def _going_on() -> Iterator[None]:
    """Report a cancellation inside, at whatever point of any trial, with the advice that the same command continues."""
    try:
        yield
    except (KeyboardInterrupt, CancelledError) as error:
        raise CancelledError(GOES_ON) from error


def _go_on(
    data: Path, output: Path, comparison: Comparison, tasks: Sequence[str], seeds: int, chosen: torch.device
) -> None:
    """Measure the costs and train the trials that are not finished."""
    config = comparison.config
    patients = list(held_out_images(data, comparison.held_out))
    waiting = [trial for trial in trials(tasks, seeds, config.seed) if not is_finished(output, trial)]
    cases, record = _cases(data, comparison) if waiting else ([], None)
    with FileLock(output / _COSTS_LOCK):
        comparison, _ = read_comparison(output)
        if record:
            _keep(record, comparison, output)
        missing = {title: one for title, one in _timed(tasks, config).items() if title not in comparison.costs}
        if missing:
            print("timing all networks; this takes minutes", file=sys.stderr, flush=True)
        for title, (task, measured) in missing.items():
            comparison.costs[title] = network_costs(measured, task, patients, chosen)
            write_settings(comparison, output / SETTINGS)
    for trial in _taken(waiting, output):
        network, seconds = _train(trial, config, cases, output / trial.name, chosen)
        figures, moved = measure(network, trial, config.pixel_mm, patients, chosen)
        result = TrialResult(
            network=trial.network,
            task=trial.task,
            seed=trial.seed,
            date=datetime.now(UTC).date().isoformat(),
            seconds=seconds,
            moved=moved,
            figures=figures,
        )
        write_trial(output, trial, network, result)
        (output / trial.name / "last.ckpt").unlink()


def _keep(record: TrainedOn, comparison: Comparison, output: Path) -> None:
    """Store the record of the data, or refuse to mix trials on other data into the comparison's tables."""
    if comparison.record and record.differs(comparison.record):
        cause = f"images, label maps or {INFO} have changed since the comparison in {output} began"
        raise UsageError("USAGE", cause, "Give another folder as --output")
    comparison.record = record
    write_settings(comparison, output / SETTINGS)


def _taken(waiting: Sequence[Trial], output: Path) -> Iterator[Trial]:
    """The trials that no other run of the same comparison finishes, each locked until the next one is requested.

    Trials locked by another run are waited for at the end, since that run may be stopped.
    """
    for patience in (0, -1):
        for trial in waiting:
            (output / trial.name).mkdir(exist_ok=True)
            try:
                with FileLock(output / trial.name / _LOCK, timeout=patience):
                    if not is_finished(output, trial):
                        yield trial
            except Timeout:
                continue


def _timed(tasks: Sequence[str], config: TrainingConfig) -> dict[str, tuple[str, TrainingConfig]]:
    """What is timed: title in `Comparison.costs` -> task, and the configuration of networks and pixels."""
    shipped = config.model_copy(update={"network": NetworkConfig(), "pixel_mm": TrainingConfig().pixel_mm})
    timed = {task: (task, config) for task in tasks}
    return timed if ("structures", shipped) in timed.values() else timed | {SHIPPED: ("structures", shipped)}


def _begin(data: Path, output: Path, budget: str, held_out: Sequence[str], device: torch.device) -> Comparison:
    """The folder's comparison, which must be the same as the requested one, or a new one."""
    names = case_names(data)
    missing = sorted(set(held_out) - set(names))
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"{data} has no case {', '.join(missing)}",
            "Name the held-out cases with --hold-out",
        )
    cases = cases_by_patient(data)
    held_out_names = {name for patient in patients_of(held_out, cases) for name in cases[patient]}
    training_names = tuple(name for name in names if name not in held_out_names)
    if not held_out or not training_names:
        raise InputError("INPUT_EMPTY", "no case is left for training or measuring", "Give at least two cases")
    requested = Comparison(
        data=data.resolve().name,
        budget=budget,
        config=BUDGETS[budget],
        held_out=tuple(held_out),
        trained_on=training_names,
        device=device.type,
        precision="bfloat16" if computes_bfloat16(device) else "float32",
    )
    file = output / SETTINGS
    if not file.exists():
        write_settings(requested, file)
        return requested
    earlier, _ = read_comparison(output)
    if any(getattr(earlier, key) != getattr(requested, key) for key in ("config", "held_out", "trained_on", "device")):
        raise UsageError(
            "USAGE", f"{output} holds a comparison with a different budget, data or device", "Give another folder"
        )
    return earlier


def _cases(data: Path, comparison: Comparison) -> tuple[list[Case], TrainedOn]:
    """The training cases, and the record of all; refused if one is a held-out case under another name."""
    cases = load_cases(data, comparison.trained_on, comparison.config.pixel_mm)
    partial = [case.name for case in cases if case.background]
    if partial:
        raise InputError(
            "INPUT_LABELS",
            f"{partial[0]} does not have all structures drawn",
            "Compare on cases with all three structures drawn",
        )
    single = [case.name for case in cases if len(case.images) == 1]
    if single:
        raise InputError("INPUT_DIMENSION", f"{single[0]} is a single slice", "Compare on volumes")
    held_out = load_cases(data, comparison.held_out, comparison.config.pixel_mm)
    check_unseen(held_out, [cases])
    return cases, TrainedOn.of([data], [cases], held_out)


def _train(
    trial: Trial, config: TrainingConfig, cases: Sequence[Case], folder: Path, device: torch.device
) -> tuple[nn.Module, float]:
    """The trained network on the device, and the seconds of its training."""
    # With several devices, the process of each would go through the whole comparison.
    config = config.model_copy(update={"seed": trial.seed, "devices": 1})
    pl.seed_everything(trial.seed, verbose=False)
    run = _Run(config, trial.build(config))
    seconds = fit(run, RunData(config, [cases], []), folder, device.type)
    return run.network.eval().to(device), seconds
