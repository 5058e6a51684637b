"""Pictures of plans in the log of a training run.

Training reads caches of features, in which there is neither a map nor an image: pictures show the ego, its past, what
the human drove and what is planned. Everything that a scene has is drawn by ``viz`` and ``agents/draw_scenes.py`` from
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from navsim_recogdrive.policy.callbacks import ValidationDisplacement
from navsim_recogdrive.policy.features import PAST_POSES, TOKEN, TRAJECTORY
from navsim_recogdrive.policy.training_configuration import PicturesConfig
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.viz.bird_eye import Window, fitting_window
from navsim_recogdrive.viz.commands import spread, write_png
from navsim_recogdrive.viz.scene_view import FloatArray, Image, Plan, SampleGroup, SceneView
from navsim_recogdrive.viz.sheet import draw_grid

FOLDER = "pictures"
"""Of PNG files, in the folder of the run's log."""

VALIDATION, GROUPS = "val/plans", "train/groups"
"""Names of the pictures in the log."""

_LEAST = Window(behind=-8.0, ahead=14.0, right=-9.0, left=9.0)
"""There is no map to be seen, and a car that hardly moves is hidden by its own size."""

_COLUMNS = 4
_SIDE_PX = 360


class TrainingPictures(pl.Callback):
    """Draws plans after the first epoch, after every so many, and after the last.

    Pictures go to TensorBoard and Weights & Biases, where a run has them, and to PNG files ``val_plans.0004.png``
    (after the fifth epoch), which :mod:`.film` makes a film of. Validation shows the same scenes each time, spread over
    those of rank 0. In reinforcement learning a second picture shows groups of samples coloured by their reward.

    Args:
        config: how often, and how many scenes.
        displacement: of the objective; it knows the last batch's plans.
        objective: of reinforcement learning, for its groups; ``None``: imitation learning.
    """

    def __init__(
        self, config: PicturesConfig, displacement: ValidationDisplacement, objective: RLObjective | None = None
    ) -> None:
        self._config = config
        self._displacement = displacement
        self._objective = objective
        self._folder: Path | None = None
        self._wanted: dict[int, int] = {}
        self._views: list[SceneView] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the folder; all ranks ask for it, because Lightning has them agree on it."""
        self._folder = None if trainer.log_dir is None else Path(trainer.log_dir) / FOLDER

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the groups of an epoch's first batch."""
        if self._objective is None or batch_idx > 0 or not self._is_due(trainer):
            return
        group = self._objective.latest
        if group is None:
            return
        features, targets = batch
        scenes = np.flatnonzero(group.valid)[: self._config.scenes].tolist()
        views = [
            SceneView(
                title=str(targets[TOKEN][scene]),
                past_poses=_array(features[PAST_POSES][scene]),
                human=_array(targets[TRAJECTORY][scene]) if TRAJECTORY in targets else None,
                samples=SampleGroup(group.trajectories[scene], group.scores[scene]),
            )
            for scene in scenes
        ]
        self._log(trainer, GROUPS, views)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the scenes: so many of each batch, by its number."""
        self._views, self._wanted = [], {}
        if self._is_due(trainer) and not trainer.sanity_checking:
            batches = sum(int(count) for count in trainer.num_val_batches)
            for scene in range(self._config.scenes):
                batch = scene * batches // self._config.scenes
                self._wanted[batch] = self._wanted.get(batch, 0) + 1

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember the chosen scenes of a batch."""
        wanted, latest = self._wanted.get(batch_idx, 0), self._displacement.latest
        if not wanted or latest is None:
            return
        features, targets = batch
        planned, driven = latest
        for scene in spread(len(planned), wanted):
            human, plan = _array(driven[scene]), _array(planned[scene])
            distance = float(np.linalg.norm(plan[:, :2] - human[:, :2], axis=1).mean())
            self._views.append(
                SceneView(
                    title=str(targets[TOKEN][scene]),
                    subtitle=f"ADE {distance:.2f} m",
                    past_poses=_array(features[PAST_POSES][scene]),
                    human=human,
                    plans=(Plan("plan", plan),),
                )
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them."""
        self._log(trainer, VALIDATION, self._views)
        self._views = []

    def _is_due(self, trainer: pl.Trainer) -> bool:
        epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and epoch + 1 == trainer.max_epochs
        return trainer.is_global_zero and (epoch == 0 or last or (epoch + 1) % self._config.every_epochs == 0)

    def _log(self, trainer: pl.Trainer, name: str, views: Sequence[SceneView]) -> None:
        if not views:
            return
        epoch = trainer.current_epoch
        # Not the plans decide what is shown: those of the first epochs are noise, which would set the scale.
        windows = [fitting_window([replace(view, plans=())], _LEAST) for view in views]
        heading = f"{name}, epoch {epoch}, step {trainer.global_step}"
        picture = draw_grid(views, _COLUMNS, _SIDE_PX, heading=heading, windows=windows)
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_png(self._folder / f"{name.replace('/', '_')}.{epoch:04d}.png", picture)
        for logger in trainer.loggers:
            _log_picture(logger, name, picture, trainer.global_step)


def training_pictures(
    config: PicturesConfig, displacement: ValidationDisplacement, objective: object | None = None
) -> list[pl.Callback]:
    """The callback that ``config`` asks for, or none; ``objective`` as far as it is one of reinforcement learning."""
    if config.every_epochs == 0:
        return []
    return [TrainingPictures(config, displacement, objective if isinstance(objective, RLObjective) else None)]


def _log_picture(logger: Any, name: str, picture: Image, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step=step)


def _array(tensor: Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().to("cpu", torch.float64).numpy()
    return array
