"""The training run: Lightning drives it, MONAI measures it, a kill at any moment costs at most one short epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from monai.losses import DiceLoss
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import load_model
from ..network import SAUNet
from .datasets import UNKNOWN, Case, StackDataset, case_names, load_cases, thick_slices

STEPS_PER_EPOCH = 100
VALIDATE_EVERY = 5
CLASS_NAMES = ("vertebra", "disc", "canal")


class NetworkConfig(BaseModel):
    """The shape of the network; arguments of `SAUNet`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: int = 4
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 128, 256)
    reading: str = "add"
    attention: str = "features"

    def build(self) -> SAUNet:
        """A network of this shape with random weights."""
        return SAUNet(**self.model_dump())


class TrainingConfig(BaseModel):
    """Everything that decides a run, kept beside its weights.

    Attributes:
        name, version, description, data, licence, attribution, limits: what the model's card will say.
        network: see `NetworkConfig`.
        pixel_mm: working pixel size.
        crop: rows and columns of a training slice.
        slices: consecutive slices in a stack.
        stacks: stacks in a batch.
        shares: how often each data folder is drawn from; default: by its number of cases.
        start: name or file of the model to start from (fine-tuning); default: random weights.
        steps: optimiser steps.
        learning_rate, weight_decay: of AdamW.
        averaging: decay of the moving average of the weights, which is what gets saved.
        seed: of weights and data.
        validation: names of the cases kept out of training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("mine", pattern=r"^[A-Za-z0-9._-]+$")
    version: str = "1"
    description: str = "SAU-Net trained on own data"
    data: str = "not stated"
    licence: str = "not stated"
    attribution: str = "not stated"
    limits: tuple[str, ...] = ()
    network: NetworkConfig = NetworkConfig()
    pixel_mm: float = Field(0.75, gt=0)
    crop: tuple[int, int] = (320, 256)
    slices: int = Field(4, ge=1)
    stacks: int = Field(2, ge=1)
    shares: tuple[float, ...] = ()
    start: str | None = None
    steps: int = Field(4000, ge=1)
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    averaging: float = 0.998
    seed: int = 2020
    validation: tuple[str, ...] = ()


class TrainingRun(pl.LightningModule):
    """Loss, optimiser and validation of one run.

    Batches are those of `StackDataset`. The loss is Dice over the batch's foreground plus cross-entropy. The
    optimiser is AdamW with a warm-up of 5 % of the steps and a cosine to zero.
    """

    def __init__(self, config: TrainingConfig, sources: Sequence[Sequence[Case]], validation: Sequence[Case]) -> None:
        super().__init__()
        self.config = config
        self.network = config.network.build()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dice = DiceLoss(include_background=False, batch=True)
        self.sources, self.validation_cases = sources, validation

    def train_dataloader(self) -> DataLoader[Any]:
        config = self.config
        dataset = StackDataset(
            self.sources,
            config.shares or [len(cases) for cases in self.sources],
            STEPS_PER_EPOCH * config.stacks,
            config.slices,
            config.crop,
            config.seed,
        )
        dataset.epoch = self.current_epoch
        return DataLoader(dataset, config.stacks, num_workers=1, prefetch_factor=4)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(list(range(len(self.validation_cases))), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        scores = self.network(batch["image"]).float().flatten(0, 1)
        loss = self._loss(scores, batch["label"].flatten(0, 1))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Dice plus cross-entropy of scores (N, 4, H, W) and labels (N, H, W) where the labels are known."""
        known = (labels != UNKNOWN)[:, None]
        truth = F.one_hot(labels.masked_fill(~known[:, 0], 0), scores.shape[1]).movedim(-1, 1)
        dice = self.dice(scores.softmax(1) * known, truth * known)
        return dice + F.cross_entropy(scores, labels, ignore_index=UNKNOWN)

    def validation_step(self, number: Tensor | int, _: int) -> None:
        case = self.validation_cases[int(number)]
        for name, count in (("native", 1), ("thick", 4)):
            images, labels = thick_slices(case.images, case.labels, count)
            found = predict(self.network, images.float())
            for value, structure in enumerate(CLASS_NAMES, start=1):
                both = ((found == value) & (labels == value)).sum()
                total = (found == value).sum() + (labels == value).sum()
                dice = 2 * both / total.clamp(min=1)
                self.log(f"{name}/{structure}", dice.float(), batch_size=1)
                self.log(f"{name}/mean", dice.float(), batch_size=1)

    def configure_optimizers(self) -> Any:
        config = self.config
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, total_steps=config.steps + 1, pct_start=0.05, div_factor=25
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.inference_mode()
def predict(network: SAUNet, images: Tensor) -> Tensor:
    """Classes (S, H, W) of slices 0..1 (S, H, W) at the working pixel size, for validation while training."""
    from ..volume import Intensity

    array = images.numpy()
    normal = torch.from_numpy(Intensity.of(array).normalise(array))
    stride = network.encoder.stride
    rows, columns = normal.shape[1:]
    padded = torch.nn.functional.pad(normal, (0, -columns % stride, 0, -rows % stride), value=float(normal.min()))
    rough = torch.cat([network.rough(part[None, None].contiguous()) for part in padded])
    refined = network.isa(rough[None])[0] if network.isa is not None else rough
    return torch.cat([network.scores(part[None]).argmax(1) for part in refined])[:, :rows, :columns]


def train(folders: Sequence[Path], output: Path, config: TrainingConfig, accelerator: str = "auto") -> SAUNet:
    """Train on folders of cases, or go on where a killed run of the same output stopped.

    Args:
        folders: see `datasets.case_names`; the first one holds ``config.validation``.
        output: folder of the run: ``config.json``, ``last.ckpt``, TensorBoard's files.
        config: of the run.
        accelerator: as Lightning's Trainer takes it.

    Returns:
        The network with its averaged weights, on the CPU.
    """
    pl.seed_everything(config.seed, verbose=False)
    kept = config.validation
    names = [[name for name in case_names(folder) if folder != folders[0] or name not in kept] for folder in folders]
    sources = [load_cases(folder, some, config.pixel_mm) for folder, some in zip(folders, names, strict=True)]
    run = TrainingRun(config, sources, load_cases(folders[0], kept, config.pixel_mm))
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    last = output / "last.ckpt"
    if config.start and not last.exists():
        run.network.load_state_dict(load_model(config.start).network.state_dict())
    trainer = pl.Trainer(
        accelerator=accelerator,
        precision="bf16-mixed",
        max_steps=config.steps,
        check_val_every_n_epoch=VALIDATE_EVERY,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(output, name="", version="log"),
        callbacks=[
            # The first half only leads away from the start; an average over it would lag behind.
            EMAWeightAveraging(decay=config.averaging, update_starting_at_step=config.steps // 2),
            ModelCheckpoint(
                output, "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
            ),
            LearningRateMonitor("step"),
        ],
        enable_model_summary=False,
        log_every_n_steps=20,
    )
    trainer.fit(run, ckpt_path=last if last.exists() else None, weights_only=True if last.exists() else None)
    return run.network.cpu()
