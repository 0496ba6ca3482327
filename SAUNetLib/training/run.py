"""`saunet train`: data and configuration in, a verified model with its card and validation figures out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from ..anatomy import CLASS_NAMES
from ..console import table_console
from ..engine import Engine, choose_device
from ..errors import InputError, UsageError
from ..evaluation.kept_out import FIGURES, per_patient
from ..formats.atomic import check_writable
from ..metrics import deviation
from ..model import load_model, save_model
from .folders import patients, patients_of, read_settings, write_settings
from .train import NetworkConfig, TrainingConfig, train

LOCK = "training.lock"
FINE_TUNING = {"steps": 400, "learning_rate": 5e-4, "averaging": 0.99}
"""Of a run that starts from a model and does not say otherwise."""


def run_training(
    data: Sequence[Path],
    output: Path,
    config_file: str | None = None,
    device: str = "auto",
    start: str | None = None,
) -> Path:
    """Train or go on, then validate and write the model; called again on a finished run, it only does the latter.

    Args:
        data: folders, see `folders.find_cases`; the cases to validate on are in the first one.
        output: folder of the run.
        config_file: JSON of a `TrainingConfig`; default: the run's own, else the standard configuration.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        start: name or file of a model to go on from with other data (fine-tuning).

    Returns:
        The model's weights file, RUN/NAME.safetensors; the card lies beside it.

    Raises:
        UsageError: USAGE, the configuration is wrong or is not the one that the run was started with.
        InputError: the data cannot be used.
        ModelError: the model to start from cannot be used.
    """
    config = _config(output, config_file, start, patients(data[0]))
    if config.shares and len(config.shares) != len(data):
        raise UsageError("USAGE", f"{len(config.shares)} shares for {len(data)} data folders", "Give one for each")
    if device != "auto":
        choose_device(device)
    check_writable(output / "config.json", (".json",))
    with _alone(output):
        network = train(data, output, config, device)
    path = output / f"{config.name}.safetensors"
    if getattr(rank_zero_only, "rank", 0):  # of several processes, one writes the result
        return path
    card = _card(config, data)
    save_model(network, path, card)
    write_settings(config, output / f"{config.name}.train.json")
    figures = validate(Engine(load_model(path), device), data[0], config.validation)
    save_model(network, path, {**card, "metrics": figures})
    _print_figures(figures)
    print(path)
    return path


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """No other command works on a run meanwhile; of several processes of one run, the first one sees to it."""
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / LOCK, timeout=0):
            yield
            new = False
    except Timeout as busy:
        raise UsageError(
            "USAGE", f"another command trains in {output}", "Wait until it has finished, or give another folder"
        ) from busy
    finally:
        if new and {path.name for path in output.iterdir()} <= {LOCK}:  # refused before anything was begun
            shutil.rmtree(output, ignore_errors=True)


def _print_figures(figures: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
    """A table of `validate`'s figures on stdout: mean ± standard deviation over patients."""
    from rich.table import Table

    def cell(mean: float | None, spread: float | None) -> str:
        return "-" if mean is None else f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")

    table = Table(box=None, header_style="bold")
    table.add_column("Validated on")
    table.add_column("Structure")
    for title in FIGURES.values():
        table.add_column(title, justify="right")
    for title, of_title in figures.items():
        for structure in (*CLASS_NAMES[1:], "mean"):
            row = [cell(*of_title.get(f"{figure} {structure}", (None, None))) for figure in FIGURES]
            if any(text != "-" for text in row):
                table.add_row(title, structure, *row)
    table_console().print(table)


def _card(config: TrainingConfig, data: Sequence[Path]) -> dict[str, Any]:
    """The entries of the model's card but for its figures."""
    origin = f" --from {Path(config.start).stem}" if config.start else ""
    folders = " ".join(folder.resolve().name for folder in data)
    return {
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "classes": list(CLASS_NAMES),
        "pixel_mm": config.pixel_mm,
        "network": config.network.model_dump(mode="json"),
        "licence": config.licence,
        "attribution": config.attribution,
        "data": config.data,
        "command": f"saunet train {folders}{origin} --output RUN --config {config.name}.train.json",
        "date": datetime.now(UTC).date().isoformat(),
        "limits": list(config.limits),
    }


def _config(
    output: Path, config_file: str | None, start: str | None, cases: Mapping[str, Sequence[str]]
) -> TrainingConfig:
    """The configuration of a run; ``cases`` are those of each patient of the first folder."""
    started = output / "config.json"
    source = Path(config_file) if config_file else started
    if config_file and not source.exists():
        raise UsageError("USAGE", f"there is no configuration {config_file}", "Check the path")
    config = read_config(source) if source.exists() else TrainingConfig()
    start = start or config.start
    if start and not (source == started and started.exists()):
        config = _starting_from(start, config)
    config = _with_validation(config.model_copy(update={"start": start}), cases)
    if started.exists() and read_config(started) != config:
        raise UsageError(
            "USAGE",
            f"{output} holds a run of another configuration",
            "Give another folder, or leave out --config and --from to go on with that run",
        )
    return config


def _starting_from(start: str, config: TrainingConfig) -> TrainingConfig:
    """A configuration that goes on from a model: what it does not state itself is the model's, or gentle."""
    card = load_model(start).card
    network = NetworkConfig.model_validate(card.network)
    stated = config.model_fields_set
    if "network" in stated and config.network != network:
        raise UsageError(
            "USAGE", f"the configuration's network is not that of {card.name}", "Leave the network out of it"
        )
    inherited = {
        "name": f"{card.name}-tuned",
        "description": f"{card.description}; tuned with own data",
        "data": f"{card.data.rstrip('.')}; then own data, from {card.name} {card.version} (SHA-256 {card.sha256[:12]})",
        "licence": card.licence,
        "attribution": card.attribution,
        "limits": tuple(card.limits),
        "pixel_mm": card.pixel_mm,
        **FINE_TUNING,
    }
    gentle = {name: value for name, value in inherited.items() if name not in stated}
    return config.model_copy(update={"network": network, **gentle})


def _with_validation(config: TrainingConfig, cases: Mapping[str, Sequence[str]]) -> TrainingConfig:
    """The same with patients drawn to validate on where none are stated: one of six, all images of a patient together.

    Raises:
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY, there are not the cases for it.
    """
    names = {name for folder_cases in cases.values() for name in folder_cases}
    missing = sorted(set(config.validation) - names)
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"validation cases are missing: {', '.join(missing)}",
            "Correct the configuration or the data",
        )
    if not config.validation:
        drawn = np.random.default_rng(config.seed).permutation(list(cases))[: max(1, len(cases) // 6)]
        kept = tuple(sorted(name for patient in drawn for name in cases[str(patient)]))
        config = config.model_copy(update={"validation": kept})
    if not cases.keys() - patients_of(config.validation, cases):
        raise InputError("INPUT_EMPTY", "no case is left to train on", "Give at least two cases")
    return config


def read_config(path: Path) -> TrainingConfig:
    """The training configuration in a JSON file.

    Raises:
        UsageError: USAGE, it is none.
    """
    return read_settings(TrainingConfig, path)


def validate(engine: Engine, data: Path, names: Sequence[str]) -> dict[str, dict[str, list[float | None]]]:
    """`kept_out.per_patient`, summed up for a model's card.

    Returns:
        validation set -> figure -> [mean, standard deviation over patients]; None where a patient has none, as the
        distance to what was not found.
    """

    def summary(values: Sequence[float]) -> list[float | None]:
        if not np.isfinite(values).all():
            return [None, None]
        spread = deviation(values)
        return [round(float(np.mean(values)), 4), round(spread, 4) if np.isfinite(spread) else None]

    found = per_patient(engine, data, names)
    return {title: {figure: summary(values) for figure, values in figures.items()} for title, figures in found.items()}
