"""A trained network on disk, weights (safetensors) and card: verify, load, save, add."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .errors import ModelError, UsageError
from .formats.atomic import write_beside, write_together
from .model_card import REINSTALL, ModelCard, find_model, keep_model, verified_weights
from .network import SAUNet


@dataclass(frozen=True)
class Model:
    """A network with its verified weights (float32, evaluation mode, on the CPU) and its card."""

    network: SAUNet
    card: ModelCard


def load_model(model: str | Path | None = None) -> Model:
    """Find, verify and load a model, given by name or by path. Nothing is unpickled.

    Raises:
        ModelError: MODEL_NOT_FOUND; MODEL_CARD; MODEL_DAMAGED, the file's SHA-256 is not the card's, or it holds values
            that are no numbers; MODEL_MISMATCH, the weights are not those of the network that the card describes.
    """
    path = find_model(model)
    card = ModelCard.read(path)
    content = verified_weights(path, card)
    try:
        weights = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError("MODEL_DAMAGED", f"{path.name} is not a safetensors file", REINSTALL) from error
    try:
        # Shapes first, on the meta device: a card that asks for an absurd network costs nothing.
        with torch.device("meta"):
            network = SAUNet(**card.network).float()  # whatever the caller's default type is
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ModelError(
            "MODEL_CARD", f"the card of {path.name} does not describe a valid network", REINSTALL
        ) from error
    expected = {name: _kind(value) for name, value in network.state_dict().items()}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    found = {name: _kind(value) for name, value in weights.items()}
    if not all(_is_finite(value) for value in weights.values()):
        raise ModelError("MODEL_DAMAGED", f"{path.name} contains weights that are not finite numbers", REINSTALL)
    if expected != found:
        raise ModelError("MODEL_MISMATCH", f"the weights in {path.name} do not match its card", REINSTALL)
    network.load_state_dict(weights, assign=True)
    return Model(network.eval().requires_grad_(False), card)


def _kind(value: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return value.dtype, tuple(value.shape)


def _is_finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def check_finite(network: torch.nn.Module) -> None:
    """Reject the network of a training that diverged.

    Raises:
        UsageError: USAGE, its weights are no numbers.
    """
    if not all(_is_finite(value) for value in network.state_dict().values()):
        remedy = "Train again into another folder with a smaller learning_rate"
        raise UsageError("USAGE", "the training diverged: its weights are not finite numbers", remedy)


def save_model(network: SAUNet, path: str | Path, card: Mapping[str, Any]) -> ModelCard:
    """Write NAME.safetensors and NAME.json; ``card`` holds the card's entries except ``sha256``.

    Weights are float16, but float32 where float16 cannot hold them, as a batch norm's large variance.

    Raises:
        UsageError: as `check_finite`; OUTPUT_WRITE. A model that was there stays as it was.
    """
    path, weights = Path(path), network.state_dict()
    check_finite(network)
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    kept = {name: (value if _is_finite(value) else weights[name]).contiguous() for name, value in half.items()}
    content = safetensors.torch.save(kept)
    result = ModelCard(**card, sha256=hashlib.sha256(content).hexdigest())
    with write_together():
        with write_beside(path, path.suffix) as temporary:
            temporary.write_bytes(content)
        with write_beside(path.with_suffix(".json"), ".json") as temporary:
            result.write(temporary)
    return result


def add_model(path: str | Path) -> ModelCard:
    """Verify a model file and copy it with its card to the user's models, so that its name selects it everywhere.

    Raises:
        ModelError: as `load_model`; MODEL_NOT_FOUND for a name too, as that model is there already.
        UsageError: as `keep_model`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        remedy = "Give the path of a file NAME.safetensors with its card NAME.json beside it"
        raise ModelError("MODEL_NOT_FOUND", f"{path} is not a model file", remedy)
    card = load_model(path).card
    keep_model(path, card)
    return card
