"""Gradients that stop a run before they reach the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from interrupted_training import run
from torch import nn

from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.divergence import Diverged, GradientWatch
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import DivergenceConfig


class Gradients:
    """Steps with gradients of given norms, as a trainer would make them."""

    def __init__(self, scaler: object | None = None, **config: Any) -> None:
        self.watch = GradientWatch(DivergenceConfig(**config))
        self.module = pl.LightningModule()
        self.module.layer = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.module.parameters(), 0.1)

        class Trainer:
            global_step = 0
            global_rank = 1
            precision_plugin = type("Precision", (), {"scaler": scaler})()

        self.trainer = Trainer()

    def step(self, *norms: float, token: str = "a") -> None:
        for norm in norms:
            self.watch.on_train_batch_start(self.trainer, self.module, ({}, {"token": [token, "z"]}), 0)
            self.module.layer.weight.grad = torch.tensor([[norm]])
            self.watch.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
            self.trainer.global_step += 1


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_stops_at_once(norm: float) -> None:
    steps = Gradients(factor=None)
    steps.step(1.0, 1.0)
    with pytest.raises(Diverged, match="from layer.weight") as error:
        steps.step(norm, token="culprit")
    assert "Step 2 of rank 1 was not made; scenes of its batch: culprit, z" in str(error.value)


def test_a_gradient_scaler_may_skip_steps_but_not_for_ever() -> None:
    steps = Gradients(scaler=object(), skipped_steps=3)
    steps.step(float("inf"), float("inf"), 1.0, float("inf"), float("inf"))
    with pytest.raises(Diverged, match="in 3 steps in a row"):
        steps.step(float("inf"))


def test_norms_far_above_the_median_stop_after_some_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    steps = Gradients(factor=10.0, window=3, patience=2)
    steps.step(500.0, 1.0, 2.0)  # nothing to compare with before
    steps.step(19.0)  # the median is 2
    assert not caplog.text
    steps.step(21.0, 18.0, token="jump")  # above ten times 2, then below: not two in a row
    assert caplog.text.count("scenes jump, z") == 1
    steps.step(181.0)  # the median is 18: the one above was left out
    with pytest.raises(Diverged, match=r"in 2 steps in a row more than agent.divergence.factor=10 times .*\(18\)"):
        steps.step(181.0)


def test_without_a_bound_large_norms_pass() -> None:
    Gradients(factor=None, window=2, patience=1).step(1.0, 1.0, 1e9, 1e12)


def test_no_gradients_at_all_are_no_yardstick() -> None:
    Gradients(factor=2.0, window=2, patience=1).step(0.0, 0.0, 5.0)


def test_a_resumed_run_goes_on_with_its_median() -> None:
    first, second = (Gradients(factor=10.0, window=2, patience=1) for _ in range(2))
    first.step(1.0, 1.0)
    second.watch.load_state_dict(first.watch.state_dict())
    with pytest.raises(Diverged):
        second.step(11.0)


class Poison(pl.Callback):
    """A gradient that is not finite in one step."""

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == 6:
            module.layer.weight.grad[0, 1] = float("nan")


def test_the_last_good_checkpoint_stays_and_the_scenes_are_named(tmp_path: Path) -> None:
    expected, _, _ = run(tmp_path / "whole")
    with pytest.raises(Diverged, match=r"Step 6 of rank 0 was not made") as error:
        run(tmp_path / "run", callbacks=[Poison()])
    for token in expected.steps[6][0]:
        assert token in str(error.value)
    resumed, _, _ = run(tmp_path / "run", resume="auto")
    assert resumed.steps == expected.steps[6:]


def test_gradients_that_accumulate_are_of_the_scenes_of_all_batches(tmp_path: Path) -> None:
    expected, _, _ = run(tmp_path / "whole", accumulate_grad_batches=2, epochs=4)
    with pytest.raises(Diverged) as error:
        run(tmp_path / "run", accumulate_grad_batches=2, epochs=4, callbacks=[Poison()])
    named = {token for tokens, _ in expected.steps[12:14] for token in tokens}
    assert {
        word.strip(".,") for word in str(error.value).split() if word.startswith("scene") and word[5:7].isdigit()
    } == named


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("divergence", "factor", 1.0),
        ("divergence", "factor", "large"),
        ("divergence", "window", 0),
        ("divergence", "patience", 1.5),
        ("divergence", "skipped_steps", True),
        ("checkpoint", "every_minutes", 0),
        ("checkpoint", "every_minutes", float("nan")),
        ("checkpoint", "every_steps", 0),
    ],
)
def test_settings_that_cannot_work(group: str, name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=f"{group}.{name} must be .* found {value!r}"):
        PolicyConfig.from_mapping({group: {name: value}})


def test_resume_must_be_text() -> None:
    with pytest.raises(InvalidSetting, match="resume must be auto, a checkpoint file"):
        PolicyConfig.from_mapping({"resume": True})
