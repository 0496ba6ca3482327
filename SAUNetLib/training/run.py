"""`saunet train`: data and configuration in, a verified model with its card and validation figures out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from pydantic import BaseModel, ConfigDict

from ..anatomy import CLASS_NAMES
from ..console import table_console
from ..engine import Engine, choose_device
from ..errors import InputError, UsageError, printable
from ..formats.atomic import check_writable
from ..formats.volumes import read_image
from ..metrics import deviation
from ..model import load_model, save_model
from ..model_card import ModelCard
from ..volume import Volume
from .folders import find_cases, image_hash, patients, patients_of, read_settings, write_settings
from .held_out import FIGURES, per_patient
from .train import CASES, CONFIG, START, NetworkConfig, TrainedOn, TrainingConfig, is_begun, other_cases, train

LOCK = "training.lock"
"""File in a run's folder: the lock held by the training command."""
WORSE = 0.005
"""A Dice that drops by more than this in fine-tuning is reported."""
Summaries = dict[str, dict[str, list[float | None]]]
"""Validation set -> figure -> [mean, standard deviation over patients]; None where a patient has none."""
FINE_TUNING = {"steps": 400, "learning_rate": 5e-4, "averaging": 0.99}
"""Defaults of a run that starts from a model."""


class Start(BaseModel):
    """``start.json`` of a run: the model that it started from, as it was then.

    Attributes:
        name: name and version.
        trained_on: as in its card.
        metrics: its figures on the run's validation cases.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    trained_on: tuple[str, ...]
    metrics: Summaries


def run_training(
    data: Sequence[Path],
    output: Path,
    config_file: str | None = None,
    device: str = "auto",
    start: str | None = None,
) -> Path:
    """Train or continue, then validate and write the model; a finished run is only validated and written.

    Args:
        data: folders, see `folders.find_cases`; the validation cases are in the first one.
        output: folder of the run.
        config_file: JSON of a `TrainingConfig`; default: the run's own, else the standard configuration.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        start: name or file of a model to fine-tune.

    Returns:
        The model's weights file, RUN/NAME.safetensors; the card lies beside it.

    Raises:
        UsageError: USAGE, the configuration is invalid or not the one that the run was started with.
        InputError: the data cannot be used.
        ModelError: the model to start from cannot be used.
    """
    config = _config(output, config_file, start, data[0])
    if config.shares and len(config.shares) != len(data):
        raise UsageError("USAGE", f"{len(config.shares)} shares for {len(data)} data folders", "Give one for each")
    if device != "auto":
        choose_device(device)
    check_writable(output / CONFIG, (".json",))
    first = not getattr(rank_zero_only, "rank", 0)  # only one of several processes measures and writes the result
    with _alone(output):
        before = _start(output, config, data[0], device) if config.start and first else None
        network = train(data, output, config, device)
    path = output / f"{config.name}.safetensors"
    if not first:
        return path
    card = _card(config, data, read_settings(TrainedOn, output / CASES), before)
    save_model(network, path, card)
    # It is passed on with the card, so it names no cases and no folders.
    nameless = config.model_copy(update={"validation": (), "start": _start_name(config)})
    write_settings(nameless, output / f"{config.name}.train.json")
    figures = validate(Engine(load_model(path), device), data[0], config.validation)
    earlier = {f"{title}, before: {before.name}": of for title, of in before.metrics.items()} if before else {}
    save_model(network, path, {**card, "metrics": figures | earlier})
    _print_figures(figures | earlier)
    print(printable(_validated(config, names=True)))
    if before and (worse := _worse(before.metrics, figures)):
        print(printable(f"note: worse than {before.name} on these cases: {worse}"), file=sys.stderr, flush=True)
    print(printable(str(path)))
    return path


def _start(output: Path, config: TrainingConfig, data: Path, device: str) -> Start | None:
    """Measure the model that a run starts from before the first step; by the end its name may mean another model.

    None for a run already begun that has no record of it.
    """
    path = output / START
    if is_begun(output):
        return read_settings(Start, path) if path.exists() else None
    model = load_model(config.start or "")
    card = model.card
    print(printable(f"measuring the starting model {card.name} {card.version}"), file=sys.stderr, flush=True)
    metrics = validate(Engine(model, device), data, config.validation)
    start = Start(name=f"{card.name} {card.version}", trained_on=tuple(card.trained_on), metrics=metrics)
    write_settings(start, path)
    return start


def _worse(before: Summaries, after: Summaries) -> str:
    """The Dice figures of native slices that fell by more than `WORSE`, such as ``dice disc 0.912 to 0.853``."""
    first, second = (one.get("native slices", {}) for one in (before, after))
    pairs = {name: (old[0], second.get(name, [None])[0]) for name, old in first.items() if name.startswith("dice")}
    return ", ".join(
        f"{name} {old:.3f} to {new:.3f}"
        for name, (old, new) in pairs.items()
        if old is not None and new is not None and new < old - WORSE
    )


def _validated(config: TrainingConfig, names: bool) -> str:
    """How far the model's figures can be trusted: the validation cases, and what was chosen on them.

    The card, which is shared with the model, has no case names: they may be patients'.
    """
    count = len(config.validation)
    text = f"Validated on {count} own case{'s' * (count != 1)}" + (f": {', '.join(config.validation)}" if names else "")
    chosen = "; the weights were chosen on the same cases (patience), so this is not a test"
    return text + (chosen if config.patience is not None else "") + "."


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Lock a run against other commands; only the first of a run's processes does so."""
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
            "USAGE", f"another command trains in {output}", "Wait until it finishes, or give another folder"
        ) from busy
    finally:
        if new and {path.name for path in output.iterdir()} <= {LOCK, START}:  # refused before it began
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


def _start_name(config: TrainingConfig) -> str | None:
    """The model that a run starts from, without folder and extension."""
    return Path(config.start).name.removesuffix(".safetensors") if config.start else None


def _card(config: TrainingConfig, data: Sequence[Path], cases: TrainedOn, before: Start | None) -> dict[str, Any]:
    """The entries of the model's card except its figures."""
    origin = f" --from {_start_name(config)}" if config.start else ""
    folders = " ".join(["DIR"] if len(data) == 1 else [f"DIR{number}" for number in range(1, len(data) + 1)])
    return {
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "classes": list(CLASS_NAMES),
        "pixel_mm": config.pixel_mm,
        "network": config.network.model_dump(mode="json"),
        "licence": config.licence,
        "attribution": config.attribution,
        "data": f"{config.data.rstrip('.')}. {_validated(config, names=False)}",
        "command": f"saunet train {folders}{origin} --output RUN --config {config.name}.train.json",
        "date": datetime.now(UTC).date().isoformat(),
        "limits": list(config.limits),
        "trained_on": sorted({*cases.images, *(before.trained_on if before else ())}),
        "validated_on": sorted(cases.validated),
    }


def _config(output: Path, config_file: str | None, start: str | None, folder: Path) -> TrainingConfig:
    """The configuration of a run whose validation cases are in `folder`."""
    cases = patients(folder)
    if config_file and not Path(config_file).exists():
        raise UsageError("USAGE", f"there is no configuration {config_file}", "Check the path")
    own = output / CONFIG
    begun = read_config(own) if own.exists() else None
    config = read_config(Path(config_file)) if config_file else begun or TrainingConfig()
    start = start or config.start
    trained: set[str] = set()
    validated: set[str] = set()
    if start and (begun is None or (config_file and Path(config_file) != own)):
        config, card = _starting_from(start, config)
        trained, validated = _known_to(card, folder)
    names = {name for of_patient in cases.values() for name in of_patient}
    if begun is not None and is_begun(output) and not names.issuperset(begun.validation):
        raise other_cases(output)
    config = _with_validation(config.model_copy(update={"start": start}), cases, trained, validated)
    if begun is not None and begun != config:
        raise UsageError(
            "USAGE",
            f"{output} holds a run with a different configuration",
            "Give another folder, or leave out --config and --from to continue that run",
        )
    return config


def _known_to(card: ModelCard, folder: Path) -> tuple[set[str], set[str]]:
    """The cases of a folder that a model was trained on, and those it was validated on, recognised by their images."""
    if not card.trained_on:
        return set(), set()
    hashes = {
        name: image_hash(Volume.from_sitk(read_image(files.image), name)) for name, files in find_cases(folder).items()
    }
    trained, validated = (
        {name for name, image in hashes.items() if image in of} for of in (card.trained_on, card.validated_on)
    )
    return trained, validated


def _starting_from(start: str, config: TrainingConfig) -> tuple[TrainingConfig, ModelCard]:
    """The configuration for fine-tuning a model, unset values being the model's or `FINE_TUNING`, and its card."""
    card = load_model(start).card
    network = NetworkConfig.model_validate(card.network)
    stated = config.model_fields_set
    if "network" in stated and config.network != network:
        raise UsageError(
            "USAGE",
            f"the configuration's network is not that of {card.name}",
            "Remove the network from the configuration",
        )
    inherited = {
        "name": f"{card.name}-tuned",
        "description": f"{card.description}; tuned with own data",
        "data": f"Own data, starting from {card.name} {card.version} (SHA-256 {card.sha256[:12]}), whose card says of "
        f"itself: [{card.data}]",
        "licence": card.licence,
        "attribution": card.attribution,
        "limits": tuple(card.limits),
        "pixel_mm": card.pixel_mm,
        **FINE_TUNING,
    }
    gentle = {name: value for name, value in inherited.items() if name not in stated}
    return config.model_copy(update={"network": network, **gentle}), card


def _with_validation(
    config: TrainingConfig,
    cases: Mapping[str, Sequence[str]],
    trained: Collection[str] = (),
    validated: Collection[str] = (),
) -> TrainingConfig:
    """The configuration with validation patients drawn if none are stated: one in six, with all of their images.

    Args:
        config: of the run.
        cases: by patient.
        trained: cases that the starting model was trained on: their patients are not drawn.
        validated: cases that it was validated on: they are drawn first, so that its figures can be compared.

    Raises:
        InputError: INPUT_NOT_FOUND or INPUT_EMPTY, cases are missing; INPUT_SERIES, stated ones are of patients that
            the starting model was trained on.
    """
    seen = patients_of(trained, cases)
    names = {name for folder_cases in cases.values() for name in folder_cases}
    missing = sorted(set(config.validation) - names)
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"validation cases are missing: {', '.join(missing)}",
            "Correct the configuration or the data",
        )
    if known := sorted(set(config.validation) & {name for patient in seen for name in cases[patient]}):
        raise InputError(
            "INPUT_SERIES",
            f"the model to start from was trained on these validation patients: {', '.join(known)}",
            "Choose other validation cases in the configuration, or none",
        )
    if not config.validation:
        order = [str(patient) for patient in np.random.default_rng(config.seed).permutation(list(cases))]
        left = [patient for patient in order if patient not in seen]
        if not left:
            raise InputError(
                "INPUT_EMPTY",
                "the model to start from was trained on all these cases: none is left for validation",
                "Add a case that it was not trained on, such as one of its validation cases",
            )
        compared = patients_of(validated, cases)
        drawn = sorted(left, key=lambda patient: patient not in compared)[: max(1, len(cases) // 6)]
        kept = tuple(sorted(name for patient in drawn for name in cases[patient]))
        config = config.model_copy(update={"validation": kept})
    if not cases.keys() - patients_of(config.validation, cases):
        remedy = "Give at least two patients in the first folder"
        raise InputError("INPUT_EMPTY", "no case is left for training", remedy)
    return config


def read_config(path: Path) -> TrainingConfig:
    """The training configuration in a JSON file.

    Raises:
        UsageError: USAGE, it is not valid.
    """
    return read_settings(TrainingConfig, path)


def validate(engine: Engine, data: Path, names: Sequence[str]) -> Summaries:
    """`held_out.per_patient`, summarised for a model's card; None for a distance to a structure not found."""

    def summary(values: Sequence[float]) -> list[float | None]:
        if not np.isfinite(values).all():
            return [None, None]
        spread = deviation(values)
        return [round(float(np.mean(values)), 4), round(spread, 4) if np.isfinite(spread) else None]

    found = per_patient(engine, data, names)
    return {title: {figure: summary(values) for figure, values in figures.items()} for title, figures in found.items()}
