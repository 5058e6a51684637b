"""Callbacks of a training run, through NAVSIM's ``run_training.py`` or the offline loop."""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from torch import Tensor

from navsim_recogdrive.cache.identity import CacheIdentity
from navsim_recogdrive.policy.averaging import NoWeightAverage, WeightAverage
from navsim_recogdrive.policy.checkpoint_files import AtomicCheckpoints
from navsim_recogdrive.policy.data_order import OrderedScenes
from navsim_recogdrive.policy.divergence import GradientWatch
from navsim_recogdrive.policy.last_checkpoint import LastCheckpoint
from navsim_recogdrive.policy.remembered_vlm import RememberVLM
from navsim_recogdrive.policy.resume import ContinueRun, Resumed
from navsim_recogdrive.policy.run_settings import RunSettings
from navsim_recogdrive.policy.training_configuration import CheckpointConfig, DivergenceConfig, EMAConfig

logger = logging.getLogger(__name__)

PUBLISHED_GRADIENT_CLIP = 1.0


class RecipeCheck(pl.Callback):
    """Says at the start where NAVSIM's trainer defaults differ from the published recipe; changes nothing."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn once if gradients are not clipped as published."""
        # NAVSIM's module logs without a batch size, so Lightning looks for one in the batch and warns that the list of
        # scene tokens could be meant. It takes the first it finds, a feature's, which is right.
        warnings.filterwarnings("ignore", message="Trying to infer the `batch_size` from an ambiguous collection")
        if trainer.is_global_zero and trainer.gradient_clip_val != PUBLISHED_GRADIENT_CLIP:
            logger.warning(
                "trainer.params.gradient_clip_val is %s, published is %s: add trainer.params.gradient_clip_val=%s",
                trainer.gradient_clip_val,
                PUBLISHED_GRADIENT_CLIP,
                PUBLISHED_GRADIENT_CLIP,
            )


class NoisePerRank(pl.Callback):
    """Lets every DDP rank draw its own noise and timesteps.

    NAVSIM seeds all ranks alike before the model is built, so without this the ranks of a run would train on the same
    draws. Rank 0 keeps the run's seed: a run on one GPU is not changed.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reseed, after the ranks have been given the same weights."""
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)


class ValidationDisplacement(pl.Callback):
    """Logs ``val/ade`` and ``val/fde``: mean and final distance (metres) of planned from driven positions.

    Unlike the loss they say how far the plans are off. The agent plans with each scene's own noise, so the numbers of
    two epochs differ by the weights alone.

    Attributes:
        latest: planned and driven trajectories, each [B, 8, 3], of the last batch; ``None`` before the first.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3)
        self.latest: tuple[Tensor, Tensor] | None = None

    def update(self, planned: Tensor, driven: Tensor) -> None:
        """Add a batch of trajectories [B, 8, 3], metres."""
        self.latest = planned.detach(), driven
        distance = (planned[..., :2].float() - driven[..., :2].float()).norm(dim=-1)
        count = torch.full_like(distance[:, 0].sum(), len(distance))
        batch = torch.stack([distance.mean(dim=1).sum(), distance[:, -1].sum(), count])
        self._sums = self._sums.to(batch.device) + batch

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._sums = torch.zeros(3, device=pl_module.device)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means over all scenes of all ranks."""
        sums = trainer.strategy.reduce(self._sums.to(pl_module.device), reduce_op="sum")
        # Already equal on all ranks; sync_dist only tells Lightning so.
        pl_module.log("val/ade", sums[0] / sums[2], prog_bar=True, sync_dist=True)
        pl_module.log("val/fde", sums[1] / sums[2], sync_dist=True)


def training_callbacks(
    displacement: ValidationDisplacement,
    vlm: CacheIdentity | None = None,
    *,
    best_score: str | None = None,
    ema: EMAConfig | None = None,
    checkpoint: CheckpointConfig | None = None,
    divergence: DivergenceConfig | None = None,
    settings: RunSettings | None = None,
    resumed: Resumed | None = None,
) -> list[pl.Callback]:
    """Average, recipe check, noise per rank, displacement, learning rate, gradients, order, best and last checkpoint.

    Args:
        displacement: of the objective.
        vlm: what the hidden states come from, for the checkpoints to remember; ``None`` where that is not known.
        best_score: logged value whose largest is the best checkpoint; ``None``: the smallest ``val/loss`` is.
        ema: the average of the weights; ``None``, or without a decay: none.
        checkpoint: how often ``last.ckpt`` is written; ``None``: the defaults.
        divergence: when gradients stop the run; ``None``: the defaults.
        settings: for a resumed run to be compared with; ``None``: nothing is compared.
        resumed: the run to go on with; ``None``: a new one.
    """
    monitor, mode = ("val/loss_epoch", "min") if best_score is None else (best_score, "max")
    averaging = NoWeightAverage() if ema is None or ema.decay is None else WeightAverage(ema)
    scenes, settings = OrderedScenes(), settings or RunSettings()
    return [
        averaging,  # first: others see the average in validation, and save what this one has brought up to date
        *([] if vlm is None else [RememberVLM(vlm)]),
        RecipeCheck(),
        NoisePerRank(),
        displacement,
        LearningRateMonitor(logging_interval="epoch"),
        GradientWatch(divergence or DivergenceConfig()),
        scenes,
        AtomicCheckpoints(),
        *([] if resumed is None else [ContinueRun(resumed, scenes, settings)]),
        # No counter: a run that repeats an epoch writes its best checkpoint again.
        ModelCheckpoint(
            filename="best-{epoch:03d}", monitor=monitor, mode=mode, save_top_k=1, enable_version_counter=False
        ),
        LastCheckpoint(checkpoint or CheckpointConfig(), scenes, settings),
    ]
