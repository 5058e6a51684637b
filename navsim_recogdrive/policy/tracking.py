"""Weights & Biases beside the logger that Lightning makes by itself (TensorBoard).

NAVSIM's runner hands ``trainer.params`` to Lightning as they are, without making objects of them, so that no logger can
be named there. A callback adds it before training begins.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

from navsim_recogdrive.policy.training_configuration import WandbConfig


class WandbMissing(ImportError):
    """A run shall be logged to Weights & Biases, and its package is not installed."""


class WandbTracking(pl.Callback):
    """Logs a training run to Weights & Biases too: scalars, hyperparameters, pictures.

    What else there is to choose its own environment variables say: ``WANDB_MODE=offline``, ``WANDB_ENTITY``, and to go
    on with a run, ``WANDB_RUN_ID`` with ``WANDB_RESUME=allow``.

    Args:
        config: with a project.

    Raises:
        WandbMissing: if the package ``wandb`` is not installed.
    """

    def __init__(self, config: WandbConfig) -> None:
        if find_spec("wandb") is None:
            raise WandbMissing(
                f"agent.wandb.project={config.project} needs Weights & Biases: pip install -e '.[wandb]' in the "
                "checkout of navsim-recogdrive"
            )
        self._config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the logger, after those that are there: the first decides where checkpoints lie."""
        if stage != "fit" or any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            return
        options: dict[str, Any] = {"project": self._config.project, "name": self._config.name}
        trainer.loggers = [*trainer.loggers, WandbLogger(save_dir=trainer.default_root_dir, **options)]
