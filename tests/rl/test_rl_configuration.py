from __future__ import annotations

from typing import Any

import pytest
from small_problem import small_objective, small_planner

from navsim_recogdrive.planner import PlannerCheckpointError, PlannerConfig
from navsim_recogdrive.policy.settings import InvalidSetting, build_settings
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.rl.reference import ReferencePolicy


def test_defaults_are_the_published_values():
    config = RLConfig()
    assert (config.group_size, config.denoising_discount, config.bc_weight) == (8, 0.6, 0.1)
    assert (config.log_prob_std_floor, config.log_prob_clamp) == (0.1, (-5.0, 2.0))
    rollout = config.rollout("ddim")
    assert (rollout.std_floor, rollout.noise_clamp, rollout.clamp_chain_end) == (0.04, 5.0, True)
    assert config.rollout("ddpm").clamp_chain_end
    assert not config.rollout("flow").clamp_chain_end
    assert RLConfig(clamp_chain_end=True).rollout("flow").clamp_chain_end
    assert not RLConfig(clamp_chain_end=False).rollout("ddim").clamp_chain_end
    assert (config.kl_weight, config.updates_per_rollout, config.advantage_scale) == (0.0, 1, "group")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("group_size", 1, "whole number of at least 2, found 1"),
        ("group_size", True, "whole number"),
        ("updates_per_rollout", 0, "whole number of at least 1"),
        ("rollout_std_floor", -0.1, "at least 0, found -0.1"),
        ("rollout_noise_clamp", 0, "positive or null"),
        ("clamp_chain_end", "yes", "true, false or null"),
        ("flow_noise_level", 0.0, "positive"),
        ("log_prob_std_floor", 0.0, "positive"),
        ("log_prob_clamp", (2.0, -5.0), "the smaller first, found"),
        ("denoising_discount", 0.0, r"in \(0, 1\]"),
        ("denoising_discount", float("nan"), r"in \(0, 1\]"),
        ("advantage_scale", "batch", r"one of \('group', 'global'\), found 'batch'"),
        ("advantage_epsilon", -1e-8, "at least 0"),
        ("min_reward_spread", "small", "at least 0"),
        ("advantage_quantiles", (0.1, 1.5), "both in 0..1"),
        ("bc_weight", -1, "at least 0"),
        ("kl_weight", float("inf"), "at least 0"),
        ("ratio_clip", -0.2, "positive or null"),
        ("recompute_activations", 1, "true or false"),
    ],
)
def test_impossible_values_are_refused_by_name(name, value, message):
    with pytest.raises(InvalidSetting, match=rf"rl\.{name} must be .*{message}"):
        RLConfig(**{name: value})


@pytest.mark.parametrize("settings", [{"updates_per_rollout": 2}, {"ratio_clip": 0.2}])
def test_replay_and_clip_belong_together(settings):
    with pytest.raises(InvalidSetting, match="belong together"):
        RLConfig(**settings)


def test_settings_of_a_yaml():
    settings: dict[str, Any] = {"log_prob_clamp": [-4.0, 1.0], "bc_weight": 1}
    assert build_settings(RLConfig, settings, "rl").log_prob_clamp == (-4.0, 1.0)
    with pytest.raises(InvalidSetting, match=r"unknown setting\(s\) bc_coeff in 'rl'"):
        build_settings(RLConfig, {"bc_coeff": 1.0}, "rl")


def test_a_missing_reference_is_refused():
    objective, _, reward = small_objective()
    with pytest.raises(InvalidSetting, match="agent.reference_policy_checkpoint=FILE"):
        RLObjective(objective._policy, RLConfig(kl_weight=0.1, bc_weight=0.0), reward, None)
    with pytest.raises(InvalidSetting, match="agent.reference_policy_checkpoint=FILE"):
        ReferencePolicy.from_checkpoint(None, PlannerConfig())
    RLObjective(objective._policy, RLConfig(bc_weight=0.0), reward, None)


def test_an_absent_or_unfit_reference_checkpoint_is_refused(tmp_path):
    import torch

    planner = small_planner("ddim")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ReferencePolicy.from_checkpoint(tmp_path / "nowhere.ckpt", planner.config)
    path = tmp_path / "reference.ckpt"
    torch.save({"state_dict": {f"agent.action_head.{k}": v for k, v in planner.state_dict().items()}}, path)
    with pytest.raises(PlannerCheckpointError):
        ReferencePolicy.from_checkpoint(path, PlannerConfig(hidden_state_size=8))
    loaded = ReferencePolicy.from_checkpoint(path, planner.config).on(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), planner.parameters(), strict=True))


def test_a_reference_of_another_method_is_refused():
    with pytest.raises(InvalidSetting, match="method: flow in the reference, ddim in the planner"):
        small_objective("ddim", reference=small_planner("flow"))
