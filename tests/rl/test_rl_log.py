"""The log of reinforcement learning where there is little to log."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
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
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RLLog(objective)],  # type: ignore[arg-type]
        **{"num_sanity_val_steps": 0, **settings},
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


def test_an_epoch_without_a_scored_scene_logs_no_reward(tmp_path: Path) -> None:
    nothing = {**step(math.nan), "reward/scenes_not_scored": 1.0}
    found = fit(Scripted([nothing, nothing], scored=3.0), tmp_path)
    assert found["train/reward/scenes_not_scored_epoch"] == 1
    assert not [name for name in found if name.startswith(("train/reward/m",))]
    assert all(math.isfinite(value) for value in found.values())
    found = fit(Scripted([nothing, step(0.6)], scored=3.0), tmp_path)
    assert (found["train/reward/mean_epoch"], found["train/reward/min_epoch"]) == pytest.approx((0.6, 0.5))


def test_a_validation_without_a_scored_scene_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(NothingScored, match=r"no scene of this validation could be scored.*agent\.metric_cache_path"):
        fit(Scripted([step(0.2), step(0.6)], scored=0.0), tmp_path)


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
