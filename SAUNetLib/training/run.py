"""`saunet train`: data and configuration in, a verified model with its card and validation figures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..engine import Engine
from ..errors import InputError, UsageError
from ..metrics import Agreement, compare_labels
from ..model import load_model, save_model
from ..pipeline import segment
from ..volume import Volume
from .datasets import case_names, read_pair, thick_volume
from .train import CLASS_NAMES, TrainingConfig, train

VALIDATIONS = {"native slices": 1, "4 slices averaged": 4}


def run_training(data: Sequence[Path], output: Path, config_file: str | None = None, device: str = "auto") -> Path:
    """Train or go on, then validate and write the model; called again on a finished run, it only does the latter.

    Args:
        data: folders, see `datasets.case_names`; the cases to validate on are in the first one.
        output: folder of the run.
        config_file: JSON of a `TrainingConfig`; default: the run's own, else the standard configuration.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.

    Returns:
        The model's weights file, RUN/NAME.safetensors; the card lies beside it.

    Raises:
        UsageError: USAGE, the configuration is wrong or is not the one that the run was started with.
        InputError: the data cannot be used.
    """
    names = [case_names(folder) for folder in data]
    config = _config(output, config_file, names[0])
    if config.shares and len(config.shares) != len(data):
        raise UsageError("USAGE", f"{len(config.shares)} shares for {len(data)} data folders", "Give one for each")
    network = train(data, output, config, device)
    path = output / f"{config.name}.safetensors"
    folders = " ".join(folder.name for folder in data)
    card: dict[str, Any] = {
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "classes": ["background", *CLASS_NAMES],
        "pixel_mm": config.pixel_mm,
        "network": config.network.model_dump(mode="json"),
        "licence": config.licence,
        "attribution": config.attribution,
        "data": config.data,
        "command": f"saunet train {folders} --output RUN --config {config.name}.train.json",
        "date": datetime.now(UTC).date().isoformat(),
        "limits": list(config.limits),
    }
    save_model(network, path, card)
    (output / f"{config.name}.train.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    figures = validate(Engine(load_model(str(path)), device), data[0], config.validation)
    save_model(network, path, {**card, "metrics": figures})
    print(json.dumps(figures, indent=2))
    return path


def _config(output: Path, config_file: str | None, names: Sequence[str]) -> TrainingConfig:
    started = output / "config.json"
    source = Path(config_file) if config_file else started
    try:
        config = TrainingConfig.model_validate_json(source.read_bytes()) if source.exists() else TrainingConfig()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError("USAGE", f"{source.name}: {where}: {first['msg']}", "Correct the configuration") from error
    if config_file and not source.exists():
        raise UsageError("USAGE", f"there is no configuration {config_file}", "Check the path")
    if started.exists() and TrainingConfig.model_validate_json(started.read_bytes()) != config:
        raise UsageError(
            "USAGE",
            f"{output} holds a run of another configuration",
            "Give another folder, or leave out --config to go on with that run",
        )
    missing = sorted(set(config.validation) - set(names))
    if missing:
        raise InputError(
            "INPUT_NOT_FOUND",
            f"validation cases are missing: {', '.join(missing)}",
            "Correct the configuration or the data",
        )
    if not config.validation:
        kept = np.random.default_rng(config.seed).permutation(list(names))[: max(1, len(names) // 6)]
        config = config.model_copy(update={"validation": tuple(sorted(map(str, kept)))})
    if len(set(names) - set(config.validation)) == 0:
        raise InputError("INPUT_EMPTY", "no case is left to train on", "Give at least two cases")
    return config


def validate(engine: Engine, data: Path, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Figures of the whole pipeline on labelled cases, on the source grid.

    Returns:
        validation set -> figure (``dice vertebra`` ... ``hsd_mm canal``) -> [mean, standard deviation over patients].
    """
    figures: dict[str, dict[str, list[float]]] = {}
    cases = [read_pair(data, name) for name in names]
    for title, count in VALIDATIONS.items():
        found = [_agreements(engine, *thick_volume(volume, labels, count)) for volume, labels in cases]
        figures[title] = _summary(found)
    return figures


def _agreements(engine: Engine, volume: Volume, labels: np.ndarray) -> dict[int, Agreement]:
    predicted = segment(volume, engine, levels=False).labels
    return compare_labels(predicted, labels, tuple(reversed(volume.geometry.spacing)), (1, 2, 3))


def _summary(found: Sequence[dict[int, Agreement]]) -> dict[str, list[float]]:
    result: dict[str, list[float]] = {}
    for value, structure in enumerate(CLASS_NAMES, start=1):
        for title, figure in (("dice", "dice"), ("hsd_mm", "hausdorff_mm"), ("hd95_mm", "hausdorff95_mm")):
            values = [getattr(one[value], figure) for one in found]
            result[f"{title} {structure}"] = [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]
    mean = [np.mean([one[value].dice for value in (1, 2, 3)]) for one in found]
    result["dice mean"] = [round(float(np.mean(mean)), 4), round(float(np.std(mean)), 4)]
    return result
