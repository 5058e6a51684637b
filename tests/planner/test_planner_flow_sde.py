"""Flow matching's stochastic form: the same distribution of actions as the ordinary one, and a density of its steps."""

from __future__ import annotations

import math

import pytest
import torch

from navsim_recogdrive.planner import SamplerSettings
from navsim_recogdrive.planner.samplers import FlowMatching

MEAN, SPREAD = 0.3, 0.25


def exact_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[x_0 - noise | x_t] for actions from N(MEAN, SPREAD^2), coordinate by coordinate."""
    variance = (1 - t) ** 2 + t**2 * SPREAD**2
    surprise = (x - t * MEAN) / variance
    return (MEAN + t * SPREAD**2 * surprise) - (1 - t) * surprise


@pytest.mark.parametrize("level", [0.0, 0.2, 0.7])
def test_actions_keep_their_distribution(level):
    torch.manual_seed(0)
    num_steps = 200
    steps = FlowMatching().steps(num_steps, level, torch.device("cpu"))
    x = torch.randn(500, 8, 3)
    for k in range(num_steps):
        x, std = steps.step(k, x, exact_velocity(x, k / num_steps))
        if std is not None:
            x = x + std * torch.randn_like(x)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(SPREAD, rel=0.05)


def test_noise_makes_a_step_forget(conditioned):
    planner, condition = conditioned("flow")
    initial = torch.randn(3, 1, 8, 3)
    ordinary = [
        planner.sample_chain(
            condition, initial_noise=initial, settings=SamplerSettings.rollout(flow_noise_level=level), **options
        ).states
        for level, options in ((0.0, {}), (0.7, {"deterministic": True}))
    ]
    assert torch.equal(*ordinary)
    drawn = [planner.sample_chain(condition, initial_noise=initial).states for _ in range(2)]
    assert not torch.allclose(*drawn)


def test_the_default_ends_with_the_noise_of_a_published_rollout():
    std = FlowMatching().steps(5, SamplerSettings.rollout().flow_noise_level, torch.device("cpu")).std
    assert std[-1].item() == pytest.approx(0.04, abs=0.006)
    assert (std.diff() < 0).all()
    assert torch.isfinite(std).all()


def test_the_first_step_has_no_pole():
    steps = FlowMatching().steps(5, 1.0, torch.device("cpu"))
    x, velocity = torch.ones(8, 3), torch.full((8, 3), 2.0)
    mean, std = steps.step(0, x, velocity)
    variance = 1 / 0.2  # (1 - t) / t with t = 0 in the numerator and 1 / K below
    torch.testing.assert_close(mean, x + 0.2 * (velocity - variance / 2 * x))
    assert std.item() == pytest.approx(math.sqrt(variance * 0.2))
