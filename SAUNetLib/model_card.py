"""Find models: their cards, the model folders, and the model of a name. Builds no network, and needs no PyTorch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import ModelError, UsageError
from .formats.atomic import write_beside, write_together
from .resources import resource

DEFAULT_MODEL = "saunet-lumbar"
REINSTALL = "Remove the model if it is your own; otherwise install SAUNet again"
LARGEST_CARD, LARGEST_FILE = 2**20, 256 * 2**20
"""Most bytes of a card and of a weights file; larger files are not read."""
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\xb9\xb2\xb3]) *(\..*)?", re.IGNORECASE)
"""Names that Windows takes for a device, whatever their extension."""


@dataclass(frozen=True)
class ModelCard:
    """The card of a model: NAME.json beside NAME.safetensors, with these entries.

    Attributes:
        name: for ``--model``.
        version: of the weights.
        description: one sentence.
        classes: names of the network's classes, background first.
        pixel_mm: working pixel size.
        network: arguments of `SAUNet`.
        sha256: of the weights file.
        licence: of the weights.
        attribution: the credit that the licence requires.
        data: what it was trained and validated on.
        command: the one that prints the metrics below.
        date: of training, ISO.
        metrics: validation set -> figure -> [mean, standard deviation over patients], None if there is none.
        limits: what it has not seen, in plain words.
        trained_on, validated_on: SHA-256 of the images, see `training.folders.image_hash`; the former include those of
            the model that it was fine-tuned from. Empty if not recorded.
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
    metrics: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    trained_on: list[str] = field(default_factory=list)
    validated_on: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, weights: Path) -> ModelCard:
        """The card beside a weights file.

        Raises:
            ModelError: MODEL_CARD.
        """
        path = weights.with_suffix(".json")
        if not os.path.lexists(path):
            remedy = f"Copy both files, NAME.safetensors and NAME.json. {REINSTALL}"
            raise ModelError("MODEL_CARD", f"there is no card {path.name} beside the weights", remedy)
        try:
            if not path.is_file() or path.stat().st_size > LARGEST_CARD:
                raise OSError("it is not a file, or it is too large for a card")
            card = cls(**json.loads(path.read_text(encoding="utf-8-sig")))
            usable = card._usable()
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ModelError("MODEL_CARD", f"the card {path.name} cannot be read ({error})", REINSTALL) from error
        if isinstance(card.name, str) and not is_model_name(card.name):
            cause = f"the card {path.name} names the model {card.name!r}, which cannot be a file name"
            raise ModelError(
                "MODEL_CARD", cause, "Change the name in the card to a valid file name without an extension"
            )
        if not usable:
            raise ModelError(
                "MODEL_CARD", f"the card {path.name} contains values that are not valid for a model", REINSTALL
            )
        return card

    def _usable(self) -> bool:
        """Whether the entries on which the engine and the panel rely have valid types and values."""
        return (
            all(isinstance(part, list) for part in (self.classes, self.limits, self.trained_on, self.validated_on))
            and all(isinstance(text, str) for text in (self.name, self.version, self.sha256, *self.classes))
            and all(isinstance(text, str) for text in (self.description, self.licence, self.attribution, *self.limits))
            and all(isinstance(text, str) for text in (*self.trained_on, *self.validated_on))
            and isinstance(self.network, dict)
            and len(self.classes) == self.network.get("classes", 4) == 4
            and isinstance(self.pixel_mm, int | float)
            and 0.1 <= self.pixel_mm <= 5
        )

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(
            json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def is_model_name(text: str) -> bool:
    """Whether a text can name a model and its files: not a path, a Windows device, or a name of a weights file."""
    plain = text.isprintable() and not set(text) & set('/\\:*?"<>|') and not _DEVICE.fullmatch(text)
    return plain and text.strip(". ") != "" and not text.lower().endswith(".safetensors")


def model_folders() -> list[Path]:
    """Folders searched for model names: the user's (``SAUNET_MODELS`` or ~/.saunet/models), then the shipped models."""
    own = os.environ.get("SAUNET_MODELS", "")
    with contextlib.suppress(RuntimeError):  # a user without a home, as in a container
        own = own or str(Path.home() / ".saunet" / "models")
    return [*([Path(own)] if own else []), resource("models")]


def model_names() -> list[str]:
    """Names that `find_model` knows and that have a card."""
    names = set()
    for folder in model_folders():
        with contextlib.suppress(OSError):  # one that may not be listed
            names |= {path.stem for path in folder.glob("[!.]*.json")}
    return sorted(name for name in names if newest_model(name) is not None)


def available_models() -> list[ModelCard]:
    """Cards of all models that can be chosen by name, unreadable ones left out."""
    cards = []
    for name in model_names():
        with contextlib.suppress(ModelError):  # reported when it is requested by name
            # A model is chosen by its file's name, whatever name the card gives.
            cards.append(replace(ModelCard.read(find_model(name)), name=name))
    return cards


def find_model(model: str | Path | None = None) -> Path:
    """The weights file of a model given by name or by path, None for the shipped one; of several versions the newest.

    Raises:
        ModelError: MODEL_NOT_FOUND.
    """
    model = DEFAULT_MODEL if model is None else model
    path = Path(model)
    if path.suffix == ".safetensors":
        if os.path.isfile(path):  # noqa: PTH113 - no failure for an invalid name
            return path
        raise ModelError("MODEL_NOT_FOUND", f"there is no file {model}", "Check the path")
    name = str(model)
    newest = newest_model(name) if path.name == name else None
    if newest is not None:
        return newest
    names = ", ".join(card.name for card in available_models()) or "none"
    cause = f"{model} is not a model file" if os.path.isfile(path) else f"there is no model {name!r}"  # noqa: PTH113
    raise ModelError("MODEL_NOT_FOUND", cause, f"Give a file NAME.safetensors or one of these names: {names}")


def verified_weights(path: Path, card: ModelCard) -> bytes:
    """The content of a weights file.

    Raises:
        ModelError: MODEL_DAMAGED, it cannot be read, or its SHA-256 is not the card's.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError("MODEL_DAMAGED", f"{path.name} is far too large for a SAU-Net", REINSTALL)
        content = path.read_bytes()
    except OSError as error:
        raise ModelError("MODEL_DAMAGED", f"{path.name} cannot be read ({error.strerror})", REINSTALL) from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ModelError(
            "MODEL_DAMAGED", f"{path.name} is truncated or was modified: its SHA-256 does not match", REINSTALL
        )
    return content


def keep_model(weights: Path, card: ModelCard) -> None:
    """Copy a verified model file and its card to the user's models, under the card's name: both, or none.

    Raises:
        UsageError: USAGE, there is a newer or another model of its name; OUTPUT_WRITE.
    """
    newest = newest_model(card.name)
    if newest is not None and model_version(newest) > model_version(weights):
        raise UsageError(
            "USAGE",
            f"there is already a newer model {card.name}",
            "Change the name in the card of this one, or use its file directly",
        )
    if newest is not None and model_version(newest) == model_version(weights):
        with contextlib.suppress(ModelError):  # one that is damaged may be replaced
            if ModelCard.read(newest).sha256 != card.sha256:
                cause = f"there is already another model {card.name} {card.version}"
                raise UsageError("USAGE", cause, "Give this one another name or version in its card")
    if len(model_folders()) < 2:
        cause = "this user has no home folder to keep models in"
        raise UsageError("OUTPUT_WRITE", cause, "Set the environment variable SAUNET_MODELS to a folder")
    own = model_folders()[0]
    if own.exists() and not own.is_dir():
        raise UsageError(
            "OUTPUT_WRITE", f"{own} is not a folder", "Set the environment variable SAUNET_MODELS to a folder"
        )
    with write_together():
        for source in (weights, weights.with_suffix(".json")):
            with write_beside(own / f"{card.name}{source.suffix}", source.suffix) as temporary:
                shutil.copyfile(source, temporary)


def newest_model(name: str) -> Path | None:
    """The newest weights file of a name: an old copy among the user's own models does not hide a newer shipped one."""
    found = [folder / f"{name}.safetensors" for folder in model_folders()]
    found = [path for path in found if os.path.isfile(path)]  # noqa: PTH113 - no failure for any name
    return max(found, key=model_version, default=None)  # if equal the first, the user's own


def model_version(weights: Path) -> tuple[int, ...]:
    """The numbers in a model's version; empty if its card cannot be read."""
    try:
        card = ModelCard.read(weights)
    except ModelError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d{1,9}", card.version))
