"""What a training run says when the GPU's memory is too small."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from navsim_recogdrive.policy.memory_advice import MemoryAdvice


class RunsOut(pl.LightningModule):
    """Runs out of memory in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("advice", "told"),
    [
        (MemoryAdvice(), False),
        (MemoryAdvice(trained_vlm=True), True),
        (MemoryAdvice(trained_vlm=True, gradient_checkpointing=True), False),
    ],
)
def test_a_backward_pass_without_memory_names_the_settings(
    advice: MemoryAdvice, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[advice],
    )
    with caplog.at_level(logging.ERROR), pytest.raises(torch.cuda.OutOfMemoryError):
        trainer.fit(RunsOut(), DataLoader([0, 1]))
    assert "lower dataloader.params.batch_size" in caplog.text
    assert ("agent.vlm.gradient_checkpointing=true" in caplog.text) == told
