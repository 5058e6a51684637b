"""Imitation learning on cached scenes with Lightning: the counterpart of NAVSIM's ``run_training.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from navsim_recogdrive.cache.identity import CacheIdentity
from navsim_recogdrive.offline.feature_cache import CachedScenes
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.callbacks import training_callbacks
from navsim_recogdrive.policy.joint import CarriedVLM
from navsim_recogdrive.policy.last_checkpoint import LastCheckpoint
from navsim_recogdrive.policy.objective import ImitationObjective
from navsim_recogdrive.policy.optimization import lightning_optimizers
from navsim_recogdrive.policy.tracking import WandbTracking
from navsim_recogdrive.policy.training_configuration import EMAConfig, OptimizerConfig, PicturesConfig, WandbConfig
from navsim_recogdrive.viz.training_pictures import training_pictures
from navsim_recogdrive.vlm.adapters import TrainedVLM

Batch = tuple[dict[str, Tensor], dict[str, Any]]


class _AgentShell(pl.LightningModule):
    """Names the planner ``agent.action_head``, so that checkpoints are those of the NAVSIM runner."""

    def __init__(self, planner: DiffusionPlanner, trained: TrainedVLM | None) -> None:
        super().__init__()
        self.action_head = planner
        if trained is not None:
            self.vlm = CarriedVLM(trained)


class OfflineModule(pl.LightningModule):
    """One planner under the imitation objective, and the trained VLM that it belongs to, if any."""

    def __init__(
        self,
        planner: DiffusionPlanner,
        objective: ImitationObjective,
        optimizer: OptimizerConfig,
        trained: TrainedVLM | None = None,
    ) -> None:
        super().__init__()
        self.agent = _AgentShell(planner, trained)
        self._objective = objective
        self._optimizer = optimizer

    def _step(self, batch: Batch, stage: str) -> Tensor:
        features, targets = batch
        loss = self._objective.loss(features, targets, self._objective.predict(features))
        size = len(targets["token"])
        self.log(f"{stage}/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        return loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a validation batch."""
        return self._step(batch, "val")

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW and its schedule."""
        return lightning_optimizers(self, self._optimizer)


def train(
    module: OfflineModule,
    objective: ImitationObjective,
    training: CachedScenes,
    validation: CachedScenes,
    dataloader: Mapping[str, Any],
    trainer: Mapping[str, Any],
    vlm: CacheIdentity | None = None,
    ema: EMAConfig | None = None,
    pictures: PicturesConfig | None = None,
    wandb: WandbConfig | None = None,
) -> str:
    """Train and return the path of the last checkpoint, which remembers ``vlm``."""
    callbacks = training_callbacks(objective.displacement, vlm, ema=ema)
    callbacks += training_pictures(pictures or PicturesConfig(), objective.displacement)
    callbacks += [] if wandb is None or wandb.project is None else [WandbTracking(wandb)]
    runner = pl.Trainer(**trainer, callbacks=callbacks)
    runner.fit(
        module,
        DataLoader(training, shuffle=True, **dataloader),
        DataLoader(validation, shuffle=False, **dataloader),
    )
    return last_checkpoint(runner)


def last_checkpoint(trainer: pl.Trainer) -> str:
    """Path of ``last.ckpt`` of a finished run."""
    return next(found.path for found in trainer.checkpoint_callbacks if isinstance(found, LastCheckpoint))
