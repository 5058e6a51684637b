"""What a training run says when the GPU's memory is too small."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.memory_advice import MemoryAdvice, advice_on_vlm
from navsim_recogdrive.rl.configuration import RLConfig


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
        (advice_on_vlm(VLMConfig()), None),
        (advice_on_vlm(VLMConfig(training="lora")), "agent.vlm.gradient_checkpointing=true"),
        (advice_on_vlm(VLMConfig(training="lora", gradient_checkpointing=True)), None),
        (RLConfig().memory_advice(), None),
        (RLConfig(recompute_activations=False).memory_advice(), "agent.rl.recompute_activations=true"),
        (RLConfig(updates_per_rollout=2, ratio_clip=0.2).memory_advice(), "agent.rl.updates_per_rollout"),
    ],
)
def test_a_backward_pass_without_memory_names_the_settings(
    advice: list[str], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MemoryAdvice(advice)],
    )
    with caplog.at_level(logging.ERROR), pytest.raises(torch.cuda.OutOfMemoryError):
        trainer.fit(RunsOut(), DataLoader([0, 1]))
    assert "lower dataloader.params.batch_size" in caplog.text
    names = ("agent.vlm.gradient_checkpointing=true", "agent.rl.recompute_activations=true", "updates_per_rollout")
    assert [name for name in names if name in caplog.text] == [name for name in names if told and name in told]
