"""Says what lowers the memory of a training run when the GPU has not enough, wherever in the step that shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytorch_lightning as pl
import torch

from navsim_recogdrive.policy.configuration import VLMConfig

logger = logging.getLogger(__name__)


def advice_on_vlm(vlm: VLMConfig) -> list[str]:
    """What lowers the memory of training with this VLM."""
    if vlm.training == "frozen":
        return []
    advice = [] if vlm.gradient_checkpointing else ["set agent.vlm.gradient_checkpointing=true"]
    return [*advice, "train adapters only (agent.vlm.training=lora) or nothing of the VLM (frozen)"]


class MemoryAdvice(pl.Callback):
    """Logs the settings that lower the memory when a step runs out of it; in the backward pass most of all.

    Args:
        more: what helps beside a smaller batch, in the words of the settings.
    """

    def __init__(self, more: Sequence[str] = ()) -> None:
        batches = "lower dataloader.params.batch_size (and raise trainer.params.accumulate_grad_batches)"
        self._advice = [batches, *more]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Log the advice; the exception goes on as it is."""
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            logger.error("The GPU's memory is too small for this training step: %s", "; or ".join(self._advice))
