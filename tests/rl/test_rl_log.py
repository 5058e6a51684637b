"""The log of reinforcement learning where there is little to log."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from navsim_recogdrive.rl.callbacks import NothingScored, RLLog
from navsim_recogdrive.rl.configuration import RLConfig


class Scripted:
    """Statistics of an objective, batch after batch."""

    def __init__(self, train: list[dict[str, float]], scored: float, config: RLConfig | None = None) -> None:
        self.config = config or RLConfig()
        self.statistics: dict[str, float] = {}
        self.train = iter(train)
        self.scored = scored

    def validate(self) -> None:
        mean = 0.5 if self.scored else math.nan
        self.statistics = {"score/deterministic": mean, "score/stochastic": mean, "score/scenes": self.scored}


class Module(pl.LightningModule):
    def __init__(self, objective: Scripted) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._objective = objective

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self._objective.statistics = next(self._objective.train)
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self._objective.validate()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(objective: Scripted, folder: Path, **settings: Any) -> dict[str, float]:
    """Two training batches and two of validation; what was logged."""
    callbacks = [RLLog(objective), *settings.pop("callbacks", [])]  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **{"num_sanity_val_steps": 0, "max_epochs": 1, "enable_checkpointing": False, **settings},
    )
    loader: DataLoader[torch.Tensor] = DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]
    trainer.fit(Module(objective), loader, loader)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def step(reward: float) -> dict[str, float]:
    return {
        "reward/mean": reward,
        "reward/min": reward - 0.1,
        "reward/max": reward + 0.1,
        "reward/scenes_not_scored": 0,
    }


def test_an_epoch_is_the_mean_and_the_extremes_of_its_steps(tmp_path: Path) -> None:
    found = fit(Scripted([step(0.2), step(0.6)], scored=3.0), tmp_path, num_sanity_val_steps=1)
    assert found["train/reward/mean_epoch"] == pytest.approx(0.4)
    assert found["train/reward/min_epoch"] == pytest.approx(0.1)
    assert found["train/reward/max_epoch"] == pytest.approx(0.7)
    assert found["val/scored_scenes"] == 6
    assert found["val/score_stochastic"] == pytest.approx(0.5)


NOTHING = {**step(math.nan), "reward/scenes_not_scored": 1.0}


def test_steps_without_a_scored_scene_do_not_count(tmp_path: Path) -> None:
    found = fit(Scripted([NOTHING, step(0.6)], scored=3.0), tmp_path)
    assert (found["train/reward/mean_epoch"], found["train/reward/min_epoch"]) == pytest.approx((0.6, 0.5))
    assert found["train/reward/scenes_not_scored_epoch"] == 0.5


def test_an_epoch_without_a_scored_scene_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NothingScored, match="no scene of epoch 0 could be scored"):
        fit(Scripted([NOTHING, NOTHING], scored=3.0), tmp_path)


def test_part_of_an_epoch_without_a_scored_scene_does_not(tmp_path: Path) -> None:
    found = fit(Scripted([NOTHING], scored=3.0), tmp_path, max_steps=1)
    assert found["train/reward/scenes_not_scored_epoch"] == 1
    assert not [name for name in found if name.startswith("train/reward/m")]


def test_a_validation_without_a_scored_scene_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The epoch is kept, a checkpoint that was the best stays it, and one to come can be."""
    objective = Scripted([step(0.2)] * 6, scored=3.0)
    validations = iter([0.0, 3.0, 0.0])
    best = ModelCheckpoint(tmp_path, "best-{epoch}", monitor="val/score_stochastic", mode="max")
    kept = []

    class Script(pl.Callback):
        def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            objective.scored = next(validations)

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            kept.append(Path(best.best_model_path).name)

    found = fit(objective, tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[Script(), best])
    assert kept == ["", "best-epoch=0.ckpt", "best-epoch=1.ckpt"]
    assert Path(best.best_model_path).name == "best-epoch=1.ckpt"
    assert (found["val/scored_scenes"], caplog.text.count("no scene of this validation could be scored")) == (0, 2)
    assert math.isnan(found["val/score_stochastic"])


def test_a_sanity_check_without_a_scored_scene_does_not(tmp_path: Path) -> None:
    objective = Scripted([step(0.2), step(0.6)], scored=0.0)

    def one_sanity_check_then_scores() -> None:
        Scripted.validate(objective)
        objective.scored = 3.0

    objective.validate = one_sanity_check_then_scores  # type: ignore[method-assign]
    assert fit(objective, tmp_path, num_sanity_val_steps=1)["val/scored_scenes"] == 6


@pytest.mark.parametrize(("updates", "accumulated", "warned"), [(2, 2, True), (2, 1, False), (1, 2, False)])
def test_rollouts_used_again_with_the_same_weights_are_warned_of(
    updates: int, accumulated: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RLConfig(updates_per_rollout=updates, ratio_clip=0.2 if updates > 1 else None)
    with caplog.at_level(logging.WARNING):
        fit(Scripted([step(0.2), step(0.6)], 3.0, config), tmp_path, accumulate_grad_batches=accumulated)
    assert ("used again before the weights have changed" in caplog.text) == warned
