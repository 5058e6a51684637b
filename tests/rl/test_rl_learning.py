"""Every method, and every option, raises the reward on a problem with a known optimum."""

from __future__ import annotations

import copy

import pytest
import torch
from small_problem import denoiser, small_objective, train

from navsim_recogdrive.rl import objective as objective_module

METHODS = ["ddim", "ddpm", "flow"]
STEPS = 30


@pytest.fixture(scope="module")
def denoisers():
    return {method: denoiser(method) for method in METHODS}


def start_and_end(planner, **settings) -> tuple[float, float]:
    """Mean reward of the first rollout, drawn before anything is learned, and of the last eight."""
    torch.manual_seed(1)
    objective, planner, _ = small_objective(planner=copy.deepcopy(planner), group_size=32, **settings)
    rewards = train(objective, planner, STEPS, learning_rate=2e-3, scenes=2)
    return rewards[0], sum(rewards[-8:]) / 8


@pytest.mark.parametrize("method", METHODS)
def test_published_settings_raise_the_reward(denoisers, method):
    start, end = start_and_end(denoisers[method])
    assert end > start + 0.04


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_sign_lowers_it(denoisers, method, monkeypatch):
    original = objective_module.group_advantages

    def flipped(*args):
        found = original(*args)
        return found._replace(values=-found.values)

    monkeypatch.setattr(objective_module, "group_advantages", flipped)
    start, end = start_and_end(denoisers[method])
    assert end < start - 0.04


@pytest.mark.parametrize(
    "settings",
    [
        {"updates_per_rollout": 2, "ratio_clip": 0.2},
        {"bc_weight": 0.0, "kl_weight": 0.1},
        {"advantage_scale": "global"},
        {"rollout_std_floor": 0.1, "clamp_chain_end": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_option_raises_it_too(denoisers, settings):
    start, end = start_and_end(denoisers["ddim"], **settings)
    assert end > start + 0.04
