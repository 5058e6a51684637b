"""A tiny model whose raw weights are noted after every optimizer step, so that their average can be computed by hand.

As a script it is one rank of two: ``torchrun --nproc_per_node=2 averaged_training.py FOLDER`` trains with DDP and
writes what each rank holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from navsim_recogdrive.policy.averaging import WeightAverage
from navsim_recogdrive.policy.training_configuration import EMAConfig


class Model(pl.LightningModule):
    """Two trained layers, one of them tied to a second name, beside a frozen one and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.tied = self.second
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("schedule", torch.linspace(0, 1, 5))

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, outputs = batch
        hidden = torch.tanh(self.first(self.frozen(inputs)))
        return nn.functional.mse_loss(self.tied(hidden).float(), outputs)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


TRAINED = ("first.weight", "first.bias", "second.weight", "second.bias")


def weights(model: pl.LightningModule) -> dict[str, torch.Tensor]:
    """What is trained, copied."""
    named = dict(model.named_parameters())
    return {name: named[name].detach().clone() for name in TRAINED}


class Notes(pl.Callback):
    """Raw weights after every optimizer step, and the weights that every validation sees."""

    def __init__(self) -> None:
        self.raw: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step  # not 0 in a run that is resumed

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step > self._step:
            self.raw.append(weights(pl_module))
        self._step = trainer.global_step

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(weights(pl_module))


def batches(samples: int = 14, batch_size: int = 2) -> DataLoader:
    """Always the same, in the same order."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 3, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=batch_size)


def trainer(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """On the CPU, silent, with these callbacks in this order."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 2, "num_sanity_val_steps": 1, "devices": 1}
    return pl.Trainer(**{**quiet, **defaults, "enable_checkpointing": False, **settings}, callbacks=list(callbacks))


def by_hand(raw: list[dict[str, torch.Tensor]], decays: list[float]) -> dict[str, torch.Tensor]:
    """The average after these weights in float64; the first is copied, ``decays`` are those of the others."""
    average = {name: value.double() for name, value in raw[0].items()}
    for step, decay in zip(raw[1:], decays, strict=True):
        average = {name: decay * average[name] + (1 - decay) * step[name].double() for name in average}
    return average


def main(folder: Path) -> None:
    """One rank: other first weights and other data than the other's."""
    rank = int(os.environ["RANK"])
    average, notes, model = WeightAverage(EMAConfig(0.6, warmup=False)), Notes(), Model(seed=rank)
    runner = trainer(average, notes, devices=2, strategy="ddp", accumulate_grad_batches=2, gradient_clip_val=1.0)
    runner.fit(model, batches(), batches())
    runner.save_checkpoint(folder / "last.ckpt")
    torch.save({"raw": notes.raw, "validated": notes.validated, "start": weights(Model(rank))}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
