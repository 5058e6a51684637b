from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_recogdrive.rl.advantages import group_advantages
from navsim_recogdrive.rl.configuration import RLConfig

ALL = torch.ones(2, dtype=torch.bool)


@given(reward=st.floats(0, 1, width=32), size=st.integers(2, 16), epsilon=st.sampled_from([0.0, 1e-8]))
@settings(max_examples=50, deadline=None)
def test_equal_rewards_give_exactly_zero(reward, size, epsilon):
    for scale in ("group", "global"):
        config = RLConfig(advantage_epsilon=epsilon, advantage_scale=scale)
        found = group_advantages(torch.full((2, size), reward), ALL, config)
        assert torch.equal(found.values, torch.zeros(2, size))
        assert not found.has_spread.any()


def test_rewards_equal_up_to_rounding_give_zero_too():
    rewards = torch.tensor([[0.1, 0.1 + 1e-8, 0.1 + 1e-7], [0.1, 0.1, 0.1001]])
    found = group_advantages(rewards, ALL, RLConfig())
    assert found.values[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.values[1], torch.tensor([-0.57735, -0.57735, 1.1547]), rtol=1e-3, atol=0)


def test_a_group_is_centred_and_scaled_by_itself():
    found = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 20.0]]), ALL, RLConfig()).values
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]]))


def test_scenes_that_are_not_valid_count_for_nothing():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [torch.nan, 1e9, 0.0], [0.0, 0.0, 0.6]])
    valid = torch.tensor([True, False, True])
    for settings_ in ({}, {"advantage_scale": "global"}, {"advantage_quantiles": (0.1, 0.9)}):
        config = RLConfig(**settings_)
        found = group_advantages(rewards, valid, config)
        alone = group_advantages(rewards[valid], torch.ones(2, dtype=torch.bool), config)
        torch.testing.assert_close(found.values[valid], alone.values)
        assert (found.values[1] == 0).all()
        assert found.has_spread.tolist() == [True, False, True]
    nothing = group_advantages(rewards, torch.zeros(3, dtype=torch.bool), RLConfig(advantage_quantiles=(0.1, 0.9)))
    assert (nothing.values == 0).all()


def test_global_scale_is_that_of_all_centred_rewards_of_all_ranks():
    config = RLConfig(advantage_scale="global")
    rewards = torch.rand(4, 8) * torch.tensor([[1.0], [0.01], [0.5], [0.0]])
    valid = torch.tensor([True, True, True, True])
    whole = group_advantages(rewards, valid, config).values
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    torch.testing.assert_close(whole, centred / centred.std(), rtol=1e-4, atol=1e-6)
    assert whole[1].abs().max() < 0.1 * whole[0].abs().max()

    shared: list[torch.Tensor] = []
    halves: list[Any] = [(rewards[:2], valid[:2]), (rewards[2:], valid[2:])]
    for half in halves:
        group_advantages(*half, config, lambda values: shared.append(values) or values)
    ranks = [group_advantages(*half, config, lambda values: shared[0] + shared[1]).values for half in halves]
    torch.testing.assert_close(torch.cat(ranks), whole)


def test_quantiles_bound_advantages_and_leave_zero_alone():
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    free = group_advantages(rewards, ALL, RLConfig()).values
    found = group_advantages(rewards, ALL, RLConfig(advantage_quantiles=(0.4, 0.9))).values
    low, high = torch.quantile(free, torch.tensor([0.4, 0.9]))
    torch.testing.assert_close(found[0], free[0].clamp(low, high))
    assert found[0].max() < free[0].max()
    assert (found[1] == 0).all()


@pytest.mark.parametrize("scale", ["group", "global"])
def test_better_trajectories_have_higher_advantages(scale):
    rewards = torch.rand(3, 8)
    found = group_advantages(rewards, torch.ones(3, dtype=torch.bool), RLConfig(advantage_scale=scale)).values
    assert torch.equal(found.argsort(dim=1), rewards.argsort(dim=1))
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(3), rtol=0, atol=1e-5)
