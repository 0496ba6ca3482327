"""A trained network on disk: weights (safetensors) and card; find, verify, load, add."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .errors import ModelError, UsageError
from .network import SAUNet
from .resources import resource

DEFAULT_MODEL = "saunet-lumbar"
SHIPPED = "install SAUNet again, or choose another model with --model"
LARGEST_FILE, LARGEST_CARD = 256 * 2**20, 2**20
"""Bytes of weights and of a card; more is not read."""


@dataclass(frozen=True)
class ModelCard:
    """What a model file is: beside NAME.safetensors lies NAME.json with these entries.

    Attributes:
        name: what ``--model`` calls it.
        version: of the weights.
        description: one sentence.
        classes: names of the network's classes, background first.
        pixel_mm: working pixel size.
        network: arguments of `SAUNet`.
        sha256: of the weights file.
        licence: of the weights.
        attribution: whom the licence wants named.
        data: what it was trained and validated on.
        command: prints the metrics below.
        date: of training, ISO.
        metrics: validation set -> figure -> [mean, standard deviation over patients].
        limits: what it has not seen, in plain words.
    """

    name: str
    version: str
    description: str
    classes: list[str]
    pixel_mm: float
    network: dict[str, Any]
    sha256: str
    licence: str
    attribution: str
    data: str
    command: str
    date: str
    metrics: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """The card in a file.

        Raises:
            ModelError: MODEL_CARD.
        """
        try:
            if not path.is_file() or path.stat().st_size > LARGEST_CARD:
                raise OSError("it is no file of a card's size")
            card = cls(**json.loads(path.read_text(encoding="utf-8")))
            usable = card._usable()
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError("MODEL_CARD", f"the card {path.name} cannot be read ({error})", SHIPPED) from error
        if not usable:
            raise ModelError("MODEL_CARD", f"the card {path.name} holds values that no model has", SHIPPED)
        return card

    def _usable(self) -> bool:
        """Whether the entries on which the engine relies are such as a model has."""
        return (
            isinstance(self.classes, list)
            and all(isinstance(text, str) for text in (self.name, self.version, self.sha256, *self.classes))
            and Path(self.name).name == self.name  # a model is kept under its name: it leads nowhere else
            and isinstance(self.network, dict)
            and len(self.classes) == self.network.get("classes", 4) == 4
            and isinstance(self.pixel_mm, int | float)
            and 0.1 <= self.pixel_mm <= 5
        )

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Model:
    """A network with its verified weights (float32, evaluation mode, on the CPU) and its card."""

    network: SAUNet
    card: ModelCard


def model_folders() -> list[Path]:
    """Where models are found by name: the user's own (``SAUNET_MODELS`` or ~/.saunet/models), then the shipped ones."""
    own = os.environ.get("SAUNET_MODELS")
    return [Path(own) if own else Path.home() / ".saunet" / "models", resource("models")]


def available_models() -> list[ModelCard]:
    """Cards of all models that can be chosen by name, unreadable ones left out."""
    cards = []
    for name in sorted({path.stem for folder in model_folders() for path in folder.glob("*.json")}):
        weights = _newest(name)
        if weights is not None:
            with contextlib.suppress(ModelError):  # said when it is asked for by name
                cards.append(ModelCard.read(weights.with_suffix(".json")))
    return cards


def find_model(model: str = DEFAULT_MODEL) -> Path:
    """The weights file of a model given by name or by path; of several versions of one name the newest.

    Raises:
        ModelError: MODEL_NOT_FOUND.
    """
    path = Path(model)
    if path.suffix == ".safetensors":
        if os.path.isfile(path):  # noqa: PTH113 - no failure for a name that no system takes
            return path
        raise ModelError("MODEL_NOT_FOUND", f"there is no file {model}", "Check the path given with --model")
    newest = _newest(model) if path.name == model else None
    if newest is not None:
        return newest
    names = ", ".join(card.name for card in available_models()) or "none"
    raise ModelError("MODEL_NOT_FOUND", f"there is no model {model!r}", f"Choose one of these: {names}")


def _newest(name: str) -> Path | None:
    """The weights file of a name; an old copy among the user's own models does not hide the one shipped since."""
    found = [folder / f"{name}.safetensors" for folder in model_folders()]
    found = [path for path in found if os.path.isfile(path)]  # noqa: PTH113 - no failure for any name
    return max(found, key=_version, default=None)  # of equals the first, the user's own


def _version(weights: Path) -> tuple[int, ...]:
    """The numbers in a model's version; none where its card cannot be read."""
    try:
        card = ModelCard.read(weights.with_suffix(".json"))
    except ModelError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d{1,9}", card.version))


def load_model(model: str = DEFAULT_MODEL) -> Model:
    """Find, verify and load a model. Nothing is unpickled.

    Raises:
        ModelError: MODEL_NOT_FOUND; MODEL_CARD; MODEL_DAMAGED, the file's SHA-256 is not the card's; MODEL_MISMATCH,
            the weights are not those of the network that the card describes.
    """
    path = find_model(model)
    card = ModelCard.read(path.with_suffix(".json"))
    weights = _verified_weights(path, card)
    try:
        # Shapes first, on the meta device: a card that asks for an absurd network costs nothing.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = SAUNet(**card.network)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ModelError("MODEL_CARD", f"the card of {path.name} describes no possible network", SHIPPED) from error
    expected = {name: _kind(value) for name, value in network.state_dict().items()}
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    found = {name: _kind(value) for name, value in weights.items()}
    if expected != found or not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ModelError("MODEL_MISMATCH", f"the weights in {path.name} are not those of its card", SHIPPED)
    network.load_state_dict(weights, assign=True)
    return Model(network.eval().requires_grad_(False), card)


def _kind(value: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return value.dtype, tuple(value.shape)


def _verified_weights(path: Path, card: ModelCard) -> dict[str, torch.Tensor]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError("MODEL_DAMAGED", f"{path.name} is far too large for a SAU-Net", SHIPPED)
        content = path.read_bytes()
    except OSError as error:
        raise ModelError("MODEL_DAMAGED", f"{path.name} cannot be read ({error.strerror})", SHIPPED) from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ModelError("MODEL_DAMAGED", f"{path.name} is truncated or was changed: its SHA-256 is wrong", SHIPPED)
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError("MODEL_DAMAGED", f"{path.name} is no safetensors file", SHIPPED) from error


def save_model(network: SAUNet, path: Path, card: Mapping[str, Any]) -> ModelCard:
    """Write NAME.safetensors (float16) and NAME.json; ``card`` holds the card's entries but for ``sha256``."""
    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    content = safetensors.torch.save(half)
    path.write_bytes(content)
    result = ModelCard(**card, sha256=hashlib.sha256(content).hexdigest())
    result.write(path.with_suffix(".json"))
    return result


def add_model(path: Path) -> ModelCard:
    """Verify a model file and copy it with its card to the user's models, so that its name selects it everywhere.

    Raises:
        ModelError: as `load_model`.
        UsageError: USAGE, there is a newer model of its name; OUTPUT_WRITE.
    """
    from .formats.atomic import write_beside, write_together

    card = load_model(str(path)).card
    newest = _newest(card.name)
    if newest is not None and _version(newest) > _version(path):
        raise UsageError(
            "USAGE",
            f"there is a newer model {card.name} already",
            "Rename it in its card, or use the file",
        )
    with write_together():
        for source in (path, path.with_suffix(".json")):
            with write_beside(model_folders()[0] / f"{card.name}{source.suffix}", source.suffix) as temporary:
                shutil.copyfile(source, temporary)
    return card
