"""Says what lowers the memory of a training run when the GPU has not enough, wherever in the step that shows."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch

logger = logging.getLogger(__name__)


class MemoryAdvice(pl.Callback):
    """Logs the settings that lower the memory when a step runs out of it; in the backward pass most of all.

    Args:
        trained_vlm: a VLM is trained with the planner.
        gradient_checkpointing: its activations are computed again instead of kept.
    """

    def __init__(self, trained_vlm: bool = False, gradient_checkpointing: bool = False) -> None:
        self._advice = ["lower dataloader.params.batch_size (and raise trainer.params.accumulate_grad_batches)"]
        if trained_vlm and not gradient_checkpointing:
            self._advice.append("set agent.vlm.gradient_checkpointing=true")
        if trained_vlm:
            self._advice.append("train adapters only (agent.vlm.training=lora) or nothing of the VLM (frozen)")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Log the advice; the exception goes on as it is."""
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            logger.error("The GPU's memory is too small for this training step: %s", "; or ".join(self._advice))
