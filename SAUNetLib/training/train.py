"""The training run, with Lightning and MONAI metrics; killed at any moment, it loses at most one short epoch."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import suggested_max_num_workers
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..anatomy import CLASS_NAMES
from ..engine import best_class, choose_device, computes_bfloat16, network_input
from ..errors import CancelledError, InputError, UsageError, check_memory
from ..formats.atomic import ending_of, write_beside
from ..formats.endings import IMAGES
from ..formats.headers import voxel_file
from ..model import check_finite, load_model
from ..model_card import is_model_name
from ..network import DenseUNet, SAUNet
from ..network.dense_unet import Reading
from ..network.sau_net import Attention
from ..process import signals_to
from ..volume import Intensity
from .datasets import Case, StackDataset, can_thicken, check_drawn, check_unseen, load_cases, thick_slices
from .folders import (
    ANY_OF,
    INFO,
    UNKNOWN,
    check_one_encoding,
    find_cases,
    patients,
    patients_of,
    read_settings,
    write_settings,
)
from .workers import worker_context

STEPS_PER_EPOCH = 100
VALIDATE_EVERY = 5
"""Epochs between validations; validating five patients takes as long as some hundred steps."""
LOG_EVERY = 20
"""Steps between entries in the log, and between checks that the training has not diverged."""
MOST_WORKERS = 8
"""Most processes that prepare batches; each holds the cases it draws from."""
CONFIG, CASES, START = "config.json", "cases.json", "start.json"
"""Records in a run's folder: `TrainingConfig`, `TrainedOn`, and `run.Start` if it started from a model."""
LAST, BEST = "last.ckpt", "best.ckpt"
"""Checkpoints in a run's folder: the latest, and with patience that of the best validation."""
GOES_ON = "The same command continues from the last checkpoint"
BEGINS_ANEW = "Nothing was saved yet: the same command starts from the beginning"
Sixteens = Annotated[int, Field(ge=16, multiple_of=DenseUNet.stride)]


class NetworkConfig(BaseModel):
    """The shape of the network; arguments of `SAUNet`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: Literal[4] = 4
    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 64, 128, 256)
    reading: Reading = "add"
    attention: Attention = "features"
    reach: int = Field(1, ge=1)

    def build(self) -> SAUNet:
        """A network of this shape with random weights."""
        return SAUNet(**self.model_dump())


class TrainingConfig(BaseModel):
    """All settings that determine a run, stored beside its weights.

    Attributes:
        name, version, description, data, licence, attribution, limits: what the model's card will say.
        network: see `NetworkConfig`.
        pixel_mm: working pixel size.
        crop: rows and columns of a training slice.
        slices: consecutive slices in a stack.
        stacks: stacks in a batch.
        shares: how often each data folder is drawn from; default: in proportion to its number of cases.
        contrasts: see `Augmentation`.
        start: name or file of the model to start from (fine-tuning); default: random weights.
        steps: optimiser steps.
        learning_rate, weight_decay: of AdamW.
        averaging: decay of the moving average of the weights, which is what gets saved.
        patience: stop after this many validations in a row without a better mean Dice, and save the best weights;
            default: never. With patience, the average covers the run from its warm-up on, not only its second half.
        devices, nodes: GPUs per computer, and computers; Lightning's ``devices`` and ``num_nodes``. A batch has
            ``stacks`` stacks on each GPU.
        seed: of weights and data.
        validation: names of the cases to validate on; no image of their patients is trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "mine"
    version: str = "1"
    description: str = "SAU-Net trained on own data"
    data: str = "not stated"
    licence: str = "not stated"
    attribution: str = "not stated"
    limits: tuple[str, ...] = ()
    network: NetworkConfig = NetworkConfig()
    pixel_mm: float = Field(0.75, ge=0.1, le=5)
    crop: tuple[Sixteens, Sixteens] = (320, 256)
    slices: int = Field(4, ge=1)
    stacks: int = Field(2, ge=1)
    shares: tuple[PositiveFloat, ...] = ()
    contrasts: float = Field(1.0, ge=0, le=1)
    start: str | None = None
    steps: int = Field(4000, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    averaging: float = Field(0.998, ge=0, lt=1)
    patience: int | None = Field(None, ge=1)
    devices: PositiveInt | Literal["auto"] = "auto"
    nodes: int = Field(1, ge=1)
    seed: int = Field(2020, ge=0, lt=2**32)
    validation: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_name(cls, text: str) -> str:
        if not is_model_name(text):
            raise ValueError("a model's name must be a valid file name without an extension")
        if f"{text.casefold()}.json" in (CONFIG, CASES, START):
            raise ValueError(f"the name {text} is taken by one of the run's own files, {text}.json")
        return text

    @model_validator(mode="after")
    def _watched(self) -> TrainingConfig:
        if self.patience is not None and self.steps < STEPS_PER_EPOCH:
            raise ValueError(
                f"patience needs at least {STEPS_PER_EPOCH} steps: the first validation takes place after them"
            )
        return self


class TrainedOn(BaseModel):
    """``cases.json`` of a run: its training data.

    Attributes:
        cases: names of the cases of each data folder.
        labels: SHA-256 of the label maps' files, validation cases first; empty in runs of version 0.1.
        images, validated: `folders.image_hash` of the training and validation images; likewise.
        meaning: the encodings of each folder's label maps and the structures drawn; absent in earlier runs.
    """

    model_config = ConfigDict(frozen=True)

    cases: tuple[tuple[str, ...], ...]
    labels: str = ""
    images: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()
    meaning: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, folders: Sequence[Path], sources: Sequence[Sequence[Case]], validation: Sequence[Case]) -> TrainedOn:
        """The record of these cases of each folder."""
        names = [[case.name for case in cases] for cases in sources]
        digest = hashlib.sha256()
        for folder, some in ((folders[0], [case.name for case in validation]), *zip(folders, names, strict=True)):
            files = find_cases(folder)
            for name in some:
                digest.update(_file_hash(files[name].labels))
        return cls(
            cases=tuple(map(tuple, names)),
            labels=digest.hexdigest(),
            images=tuple(case.image for cases in sources for case in cases),
            validated=tuple(case.image for case in validation),
            meaning=tuple(
                _meaning([*cases, *(validation if not number else ())]) for number, cases in enumerate(sources)
            ),
        )

    def keep(self, output: Path) -> None:
        """Write it into the run's folder, or refuse to continue there with other cases.

        Raises:
            UsageError: USAGE.
        """
        path = output / CASES
        if path.exists() and is_begun(output):
            self._check(read_settings(TrainedOn, path), output)
        write_settings(self, path)

    def _check(self, before: TrainedOn, output: Path) -> None:
        if before.cases != self.cases:
            raise other_cases(output)
        if self.differs(before):
            raise UsageError(
                "USAGE",
                f"images, label maps or {INFO} have changed since the run in {output} began",
                "Give another folder as --output, or start from its model with --from",
            )

    def differs(self, before: TrainedOn) -> bool:
        """Whether the data are not those of an earlier record, as far as that one knows them."""
        return any(getattr(self, name) != getattr(before, name) for name in before.model_fields_set)


def _meaning(cases: Sequence[Case]) -> tuple[str, ...]:
    """What a folder's label values and their background mean."""
    drawn = {CLASS_NAMES[value] for case in cases for value in case.drawn}
    return (*sorted({case.encoding or "" for case in cases} - {""}), *sorted(drawn))


def _file_hash(path: Path) -> bytes:
    """SHA-256 of an image's file, together with the separate file of its voxels if there is one."""
    files = dict.fromkeys((path, voxel_file(path, ending_of(path, IMAGES))))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def is_begun(output: Path) -> bool:
    """Whether the run in a folder has anything to continue from."""
    return any((output / name).exists() for name in (LAST, BEST))


def other_cases(output: Path) -> UsageError:
    """The error for continuing a run with other data."""
    return UsageError(
        "USAGE",
        f"{output} holds a run with other cases",
        "Give that run's data folders in the same order, another folder as --output, or start from its model "
        "with --from",
    )


class RunData(pl.LightningDataModule):
    """The training and monitoring data of a run.

    Not part of `TrainingRun`, which Lightning copies for its averaged weights: all images would be copied with it.

    Args:
        config: of the run.
        sources: cases of every data set to train on.
        validation: cases to monitor during training.
    """

    def __init__(self, config: TrainingConfig, sources: Sequence[Sequence[Case]], validation: Sequence[Case]) -> None:
        super().__init__()
        self.config, self.sources, self.validation = config, sources, validation
        # Only what every case allows: several processes must log the same metrics, or they wait for each other.
        self.watched = {
            name: count
            for name, count in (("native", 1), ("thick", 4))
            if all(can_thicken(len(case.images), case.slice_spacing, count) for case in validation)
        }

    def train_dataloader(self) -> DataLoader[Any]:
        config, trainer = self.config, cast(pl.Trainer, self.trainer)
        # The last epoch is shortened: with Lightning's limit of steps, a resumed run would repeat one of its steps.
        steps = min(STEPS_PER_EPOCH, config.steps - trainer.current_epoch * STEPS_PER_EPOCH)
        dataset = StackDataset(
            self.sources,
            config.shares or [len(cases) for cases in self.sources],
            steps * config.stacks * trainer.world_size,
            config.slices,
            config.crop,
            config.seed,
            config.contrasts,
        )
        dataset.epoch = trainer.current_epoch
        # An item depends on its number alone, not on the worker that prepares it.
        workers = min(MOST_WORKERS, suggested_max_num_workers(trainer.num_devices))
        context = worker_context(trainer.world_size)
        return DataLoader(dataset, config.stacks, num_workers=workers, multiprocessing_context=context)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(list(range(len(self.validation))), batch_size=None)  # type: ignore[arg-type]


class TrainingRun(pl.LightningModule):
    """Loss, optimiser and validation of one run on the batches of `RunData`.

    The loss is Dice over the batch's foreground plus cross-entropy. The optimiser is AdamW under PyTorch's one-cycle
    policy: a warm-up over 5 % of the steps and a cosine to zero, with its first beta from 0.95 to 0.85 and back.

    Args:
        config: of the run.
        network: default: the one that the configuration describes; any other must have `SAUNet`'s tensor shapes.
    """

    def __init__(self, config: TrainingConfig, network: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if network is None:
            network = config.network.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module = network
        self.dice = DiceLoss(include_background=False, batch=True)
        self.agreement: dict[str, DiceMetric] = {}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        links = {"apart": batch["apart"]} if batch["apart"].any() else {}
        scores = self.network(batch["image"], **links).float().flatten(0, 1)
        labels = batch["label"].flatten(0, 1).long()
        loss = self.loss(scores, labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """`marginal_loss` of scores (N, classes, H, W) and labels (N, H, W)."""
        return marginal_loss(scores, labels, self.dice)

    def on_train_batch_end(self, *_: Any) -> None:
        # A loss that is no number has made the weights such. At every step, a GPU would be waited for.
        if self.trainer.global_step % LOG_EVERY == 0:
            self.check_weights()

    def on_save_checkpoint(self, _: dict[str, Any]) -> None:
        self.check_weights()  # before it replaces the last good one

    def check_weights(self) -> None:
        """Reject a network that diverged; with patience, the best weights are taken in the end."""
        if self.config.patience is None:
            check_finite(self.network)

    def validation_step(self, number: Tensor | int, index: int) -> None:
        data = cast(RunData, self.trainer.datamodule)  # type: ignore[attr-defined]
        case = data.validation[int(number)]
        # To give all processes equally many cases PyTorch repeats the first ones, which must not count twice.
        repeated = index * self.trainer.world_size + self.trainer.global_rank >= len(data.validation)
        for name, count in data.watched.items():
            images, labels = thick_slices(case.images, case.labels, count)
            unknown = (labels == UNKNOWN) | repeated
            found = predict(cast(SAUNet, self.network), images.float())
            metric = self.agreement.setdefault(name, _dice_metric())
            metric(*(one.masked_fill(unknown, 0)[None, None] for one in (found, labels)))

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice of each structure over the cases that have it, and the mean over structures."""
        for name, metric in self.agreement.items():
            dice, cases = metric.aggregate()
            metric.reset()
            drawn = cases > 0
            for structure, value, known in zip(CLASS_NAMES[1:], dice, drawn, strict=True):
                if known:
                    self.log(f"{name}/{structure}", float(value))
            self.log(f"{name}/mean", float(dice[drawn].mean()) if drawn.any() else 0.0)

    def configure_optimizers(self) -> Any:
        config = self.config
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, total_steps=config.steps + 1, pct_start=0.05, div_factor=25
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _dice_metric() -> DiceMetric:
    """Dice by structure; structures absent from a case are left out of the mean."""
    return DiceMetric(include_background=False, reduction="mean_batch", get_not_nans=True, num_classes=len(CLASS_NAMES))


def marginal_loss(scores: Tensor, labels: Tensor, dice: DiceLoss) -> Tensor:
    """Dice plus cross-entropy; a label may admit several classes, as background does in partly drawn data.

    The probability of such a label is the sum over all classes it admits (marginal loss: Shi et al., Medical Image
    Analysis 2021, doi:10.1016/j.media.2021.101979); a class's Dice leaves out the pixels that may or may not belong to
    it. Where every label is one class or `UNKNOWN`, this is the loss of fully drawn data.

    Shape:
        scores (N, classes, H, W), labels (N, H, W): a class, or `folders.ANY_OF` + bits.
    """
    number = torch.arange(scores.shape[1], device=labels.device)[:, None, None]
    single = labels[:, None] == number
    admitted = single | ((labels[:, None] - ANY_OF).clamp(min=0) >> number & 1).bool()
    decided = single.any(1, keepdim=True) | ~admitted
    entropy = scores.logsumexp(1) - scores.masked_fill(~admitted, -torch.inf).logsumexp(1)
    known = labels != UNKNOWN
    overlap: Tensor = dice(scores.softmax(1) * decided, single)
    return overlap + entropy[known].sum() / known.sum().clamp(min=1)


@torch.inference_mode()
def predict(network: SAUNet, images: Tensor) -> Tensor:
    """Classes (S, H, W) of slices 0..1 (S, H, W) at the working pixel size, for validation during training."""
    slices = images.numpy()
    rows, columns = slices.shape[1:]
    device = next(network.parameters()).device
    padded = network_input(slices, Intensity.of(slices), (rows, columns), network.encoder.stride, device)
    scores = network.stream(part[None] for part in padded)
    return torch.cat([best_class(one) for one in scores])[:, :rows, :columns].cpu()


def train(folders: Sequence[Path], output: Path, config: TrainingConfig, accelerator: str = "auto") -> SAUNet:
    """Train on folders of cases, or continue where an interrupted run with the same output stopped.

    Args:
        folders: see `folders.find_cases`; the first one holds ``config.validation``.
        output: folder of the run: ``config.json``, ``cases.json``, ``last.ckpt``, TensorBoard's files.
        config: of the run.
        accelerator: as Lightning's Trainer takes it.

    Returns:
        The network with its averaged weights, on the CPU.

    Raises:
        InputError: as `load_cases`, `check_unseen` and `check_drawn`; INPUT_EMPTY, a folder has no case to train on.
        UsageError: USAGE, the run was begun with other cases or labels.
    """
    pl.seed_everything(config.seed, verbose=False)
    kept = config.validation
    # In all folders: the same name, or the same folder by another path, means the same patient.
    own = [patients(folder) for folder in folders]
    unseen = patients_of(kept, own[0])
    names = [[name for patient, cases in one.items() if patient not in unseen for name in cases] for one in own]
    for folder, some in zip(folders, names, strict=True):
        if not some:
            raise InputError(
                "INPUT_EMPTY", f"all patients of {folder} are used for validation", "Leave this folder out"
            )
    sources = [load_cases(folder, some, config.pixel_mm) for folder, some in zip(folders, names, strict=True)]
    data = RunData(config, sources, load_cases(folders[0], kept, config.pixel_mm))
    check_one_encoding((case.encoding for case in (*sources[0], *data.validation)), folders[0])
    check_unseen(data.validation, sources)
    for folder, cases in zip(folders, sources, strict=True):
        check_drawn(cases, folder, data.validation if folder == folders[0] else ())
    run = TrainingRun(config)
    output.mkdir(parents=True, exist_ok=True)
    TrainedOn.of(folders, sources, data.validation).keep(output)
    if not (output / CONFIG).exists():
        write_settings(config, output / CONFIG)
    last = output / LAST
    if _is_finished(output, config):
        print(f"note: the run in {output} is already finished: it is not trained, only measured again. "
              "To train again, give another --output.", file=sys.stderr, flush=True)  # fmt: skip
    if config.start and not last.exists():
        run.network.load_state_dict(load_model(config.start).network.state_dict())
    fit(run, data, output, accelerator)
    return cast(SAUNet, run.network)


def fit(run: TrainingRun, data: RunData, output: Path, accelerator: str = "auto") -> float:
    """Train, or continue from ``last.ckpt`` in the run's folder; the run then holds its averaged weights, on the CPU.

    Returns:
        Seconds of training, including those before an interruption.
    """
    _without_chatter()
    last, timer = output / LAST, Timer()
    interruptible = _Interruptible(last)
    callbacks = [*_callbacks(run.config, output, choose_device(accelerator)), timer, interruptible]
    trainer = _trainer(run.config, data, output, accelerator, callbacks)
    if not (last.exists() and _stopped_early(_checkpoint(last))):
        several = trainer.world_size > 1
        if run.config.nodes > 1:
            print(f"note: waiting for the run to start on {run.config.nodes} computers", file=sys.stderr, flush=True)
        # While PyTorch waits for the other processes, no Python signal handler runs.
        with signals_to(signal.SIG_DFL if several else interruptible.ask, signal.SIGINT, signal.SIGTERM):
            try:
                trainer.fit(
                    run, data, ckpt_path=last if last.exists() else None, weights_only=True if last.exists() else None
                )
            except (SystemExit, SIGTERMException, RuntimeError) as error:
                # How Lightning ends an interrupted process; or its workers died of the same signal. Lightning's own
                # state "interrupted" does not tell, since any failure sets it.
                ended = isinstance(error, SystemExit | SIGTERMException) or trainer.received_sigterm
                if ended or interruptible.asked:
                    raise interruptible.cancelled() from error
                raise
    # For a run that was already finished, Lightning loads the last weights, not the averaged ones.
    best = output / BEST
    chosen = best if run.config.patience is not None and best.exists() else last
    run.load_state_dict(torch.load(chosen, map_location="cpu", weights_only=True)["state_dict"])
    run.cpu()
    return timer.time_elapsed()


def _is_finished(output: Path, config: TrainingConfig) -> bool:
    """Whether nothing is left to train in a run's folder."""
    last = output / LAST
    if not last.exists():
        return False
    reached = _checkpoint(last)
    return _stopped_early(reached) or reached["epoch"] + 1 >= _epochs(config)


def _epochs(config: TrainingConfig) -> int:
    return -(-config.steps // STEPS_PER_EPOCH)


def _callbacks(config: TrainingConfig, output: Path, device: torch.device) -> list[Callback]:
    """Averaging, checkpoints and early stopping; averages stay on `device`, which Lightning does not know yet."""
    # The first half only leads away from the start, so an average over it would lag behind. With early stopping,
    # averaging begins almost at once, since any validation may be the last.
    averaged_from = config.steps // (2 if config.patience is None else 20)
    callbacks: list[Callback] = [
        WeightAveraging(device, multi_avg_fn=partial(_average, decay=config.averaging, start=averaged_from)),
        _RunCheckpoint(
            output, Path(LAST).stem, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
        ),
        LearningRateMonitor("step"),
    ]
    if config.patience is not None:
        watched: dict[str, Any] = {"monitor": "native/mean", "mode": "max"}
        callbacks.append(EarlyStopping(patience=config.patience, **watched))
        callbacks.append(_RunCheckpoint(output, Path(BEST).stem, enable_version_counter=False, **watched))
    return callbacks


def _trainer(
    config: TrainingConfig, data: RunData, output: Path, accelerator: str, callbacks: list[Callback]
) -> pl.Trainer:
    return pl.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        precision="bf16-mixed" if computes_bfloat16(choose_device(accelerator)) else "32-true",
        max_epochs=_epochs(config),
        check_val_every_n_epoch=max(1, min(VALIDATE_EVERY, config.steps // (4 * STEPS_PER_EPOCH))),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(output, name="", version="log"),
        callbacks=callbacks,
        plugins=[_WholeCheckpoints()],
        limit_val_batches=1.0 if data.validation else 0,
        enable_model_summary=False,
        log_every_n_steps=LOG_EVERY,
    )


def _without_chatter() -> None:
    """Silence Lightning's tips and its notes on what is intended; they would bury what a user should read."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "Checkpoint directory .* exists and is not empty",
        "The number of training batches .* is smaller than the logging interval",  # as in a short last epoch
        r".*isinstance\(treespec, LeafSpec\)",
    ):
        warnings.filterwarnings("ignore", message)


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint in a run's folder, wherever it was copied to: Lightning's own would then forget the best score."""

    __qualname__ = "ModelCheckpoint"  # the key of its state in a checkpoint

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            # The run may come from Windows.
            return str(Path(cast(str, self.dirpath)) / PureWindowsPath(path).name) if path else path

        paths = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class _WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are always renamed into place: Lightning copies over the last one where it cannot rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with write_beside(Path(path), ".ckpt") as temporary:
            torch.save(checkpoint, temporary)


class _Interruptible(Callback):
    """Ends a run at its next batch after Ctrl-C or a scheduler's SIGTERM.

    An exception raised by the signal handler itself is lost during a fork or between two of Lightning's states. Several
    processes, which wait for each other, are left to Lightning.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.asked, self._checkpoint = False, checkpoint
        self._own = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def setup(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """All processes are connected by now: restore the command's own signal handlers."""
        if trainer.world_size > 1:
            for number, handler in self._own.items():
                signal.signal(number, handler)

    def ask(self, *_: object) -> None:
        """Ask the run to end at the next batch; asked again, it ends at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def cancelled(self) -> CancelledError:
        """The error for the user."""
        return CancelledError(GOES_ON if self._checkpoint.exists() else BEGINS_ANEW)

    def on_train_batch_start(self, *_: Any) -> None:
        if self.asked:
            raise self.cancelled()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.on_train_batch_start()


def _average(
    averaged: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor, *, decay: float, start: int
) -> None:
    """Moving average that equals the weights themselves until `start`, so that validation measures what is trained.

    All weights are updated at once: on a GPU, one operation per weight takes longer than the training step.
    """
    get_ema_multi_avg_fn(decay if updates > start else 0.0)(averaged, weights, updates)


def _stopped_early(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run's last checkpoint was written after its patience ran out."""
    states = checkpoint["callbacks"].items()
    return any(state["stopped_epoch"] > 0 for name, state in states if name.startswith("EarlyStopping"))


def _checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint in a file.

    Raises:
        UsageError: USAGE, it is damaged or cannot be read.
        OutOfMemoryError: MEMORY.
    """
    try:
        content = path.read_bytes()  # read apart from PyTorch: a disk error is not a damaged file
    except OSError as failure:
        check_memory(failure)
        cause = f"the checkpoint {path} cannot be read ({failure.strerror})"
        raise UsageError(
            "USAGE", cause, "Check the permissions of the file and its disk, then train again"
        ) from failure
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        found["callbacks"], found["epoch"]
    except Exception as failure:  # a damaged file may raise anything in PyTorch's reader
        check_memory(failure, len(content))
        raise UsageError(
            "USAGE", f"the checkpoint {path} is damaged", "Remove it to start the run from the beginning"
        ) from failure
    return cast(dict[str, Any], found)
