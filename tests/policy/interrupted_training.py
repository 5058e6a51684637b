"""A small training run, without NAVSIM, with every callback that lets a run go on: stopped and resumed."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from navsim_recogdrive.policy.checkpoint_files import AtomicCheckpoints
from navsim_recogdrive.policy.data_order import OrderedScenes
from navsim_recogdrive.policy.divergence import GradientWatch
from navsim_recogdrive.policy.last_checkpoint import LastCheckpoint
from navsim_recogdrive.policy.optimization import lightning_optimizers
from navsim_recogdrive.policy.resume import ContinueRun, find_checkpoint, read_resumed
from navsim_recogdrive.policy.run_settings import RunSettings
from navsim_recogdrive.policy.training_configuration import CheckpointConfig, DivergenceConfig, OptimizerConfig


class Scenes(Dataset[Any]):
    """``count`` scenes of three features, and their tokens."""

    def __init__(self, count: int = 14) -> None:
        self.tokens = [f"scene{(5 * index) % 97:02d}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        value = float(self.tokens[index][-2:])
        return {"x": torch.tensor([value, value**2, 1.0]) / 10}, {"token": self.tokens[index]}


class Model(pl.LightningModule):
    """Its loss draws from every global generator, so that a run goes on exactly only with all of them restored."""

    def __init__(self, epochs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self._config = OptimizerConfig(learning_rate=0.05, warmup_epochs=1, epochs=epochs)
        self.steps: list[tuple[tuple[str, ...], float]] = []
        self.logged: list[int] = []
        self.validations = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        features, targets = batch
        noise = torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        loss = (self.layer(features["x"]) - noise).square().mean()
        self.steps.append((tuple(targets["token"]), float(loss.detach())))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validations += 1
        self.log("val/loss", self.layer(batch[0]["x"]).square().mean())

    def configure_optimizers(self) -> dict[str, Any]:
        return lightning_optimizers(self.layer, self._config)


class Stop(Exception):
    """Stands for a kill."""


class StopAfter(pl.Callback):
    """Kills the run in the middle of a training step."""

    def __init__(self, batches: int | None) -> None:
        self._left = batches

    def on_before_optimizer_step(self, *_: Any) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Stop


class LoggedSteps(pl.loggers.Logger):
    """The step of every logged training loss."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.steps: list[int] = []
        self._folder = folder

    @property
    def name(self) -> str:
        return "log"

    @property
    def version(self) -> str:
        return "0"

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if "train/loss" in metrics and step is not None:
            self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def run(
    folder: Path,
    *,
    stop_after: int | None = None,
    resume: str | None = None,
    epochs: int = 3,
    settings: dict[str, Any] | None = None,
    every_steps: int | None = 1,
    scenes: int = 14,
    batch_size: int = 4,
    callbacks: list[pl.Callback] | None = None,
    workers: int = 0,
    **trainer: Any,
) -> tuple[Model, LoggedSteps, pl.Trainer]:
    """Train; the trainer's ``interrupted`` says whether the run was stopped."""
    pl.seed_everything(3, workers=True)
    common = RunSettings({"size": 3} if settings is None else settings, {"agent.optimizer.epochs": epochs})
    order = OrderedScenes()
    path = None if resume is None else find_checkpoint(resume, folder)
    resumed = [] if path is None else [ContinueRun(read_resumed(path, common), order, common)]
    log = LoggedSteps(folder)
    runner = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=log,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        callbacks=[
            *(callbacks or []),
            StopAfter(stop_after),
            GradientWatch(DivergenceConfig()),
            order,
            AtomicCheckpoints(),
            *resumed,
            ModelCheckpoint(filename="best-{epoch:03d}", monitor="val/loss", enable_version_counter=False),
            LastCheckpoint(CheckpointConfig(every_minutes=None, every_steps=every_steps), order, common),
        ],
        **trainer,
    )
    model = Model(epochs)
    loader = {"batch_size": batch_size, "num_workers": workers}
    with contextlib.suppress(Stop, SystemExit):
        runner.fit(
            model,
            train_dataloaders=DataLoader(Scenes(scenes), shuffle=True, **loader),
            val_dataloaders=DataLoader(Scenes(5), **loader),
        )
    return model, log, runner
