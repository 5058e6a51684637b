"""Every setting of the objective changes the drawn chains or the loss: none is forgotten on its way."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pytest
import torch
from small_problem import closeness, small_batch, small_objective, small_planner

from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.rollout import draw_reference, scene_condition, score_chains

BASE: dict[str, Any] = {"group_size": 4, "rollout_std_floor": 0.3}  # with so much noise chains reach +-1
AGAIN: dict[str, Any] = {"updates_per_rollout": 2, "ratio_clip": 0.2}
# Setting: what is set beside it, its two values, and whether it acts on the chains or only on the loss.
CASES: dict[str, tuple[dict[str, Any], Any, Any, str]] = {
    "group_size": ({}, 4, 5, "chains"),
    "rollout_std_floor": ({}, 0.3, 0.5, "chains"),
    "rollout_noise_clamp": ({}, None, 0.5, "chains"),
    "clamp_chain_end": ({}, True, False, "loss"),  # trajectories are clamped in both cases
    "flow_noise_level": ({"method": "flow"}, 0.7, 0.3, "chains"),
    "log_prob_std_floor": ({}, 0.1, 0.3, "loss"),
    "log_prob_clamp": ({}, (-5.0, 2.0), (-0.5, 0.5), "loss"),
    "denoising_discount": ({}, 0.6, 0.9, "loss"),
    "advantage_scale": ({}, "group", "global", "loss"),
    "advantage_epsilon": ({}, 1e-8, 1.0, "loss"),
    "min_reward_spread": ({}, 1e-6, 10.0, "loss"),
    "advantage_quantiles": ({}, (0.0, 1.0), (0.2, 0.8), "loss"),
    "bc_weight": ({}, 0.1, 0.2, "loss"),
    "kl_weight": ({}, 0.0, 0.1, "loss"),
    "updates_per_rollout": (AGAIN, 2, 3, "loss"),
    "ratio_clip": (AGAIN, 0.2, 1e-4, "loss"),
    "recompute_activations": ({}, True, False, "memory"),
}


def moved(planner: Any) -> Any:
    """A reference policy that is not the planner."""
    other = copy.deepcopy(planner)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    return other


def three_steps(method: str = "ddim", **settings: Any) -> tuple[list[torch.Tensor], list[float]]:
    """The trajectories of three steps on one batch, and their losses."""
    drawn: list[torch.Tensor] = []

    def reward(trajectories: Any) -> Any:
        drawn.append(torch.from_numpy(trajectories.copy()))
        return closeness(trajectories)

    planner = small_planner(method)
    objective, planner, _ = small_objective(
        method, function=reward, planner=planner, reference=moved(planner), **{**BASE, **settings}
    )
    features, targets = small_batch(3)
    optimizer = torch.optim.SGD(planner.parameters(), 0.05)
    torch.manual_seed(2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective.loss(features, targets, objective.predict(features))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return drawn, losses


def test_no_setting_is_left_out_here() -> None:
    assert set(CASES) == {field.name for field in fields(RLConfig)}


@pytest.mark.parametrize("name", CASES)
def test_a_setting_acts(name: str) -> None:
    beside, first, second, on = CASES[name]
    drawn, losses = three_steps(**{**beside, name: first})
    drawn_again, losses_again = three_steps(**{**beside, name: first})
    assert torch.equal(drawn[0], drawn_again[0])
    assert losses == losses_again
    other_drawn, other_losses = three_steps(**{**beside, name: second})
    same_chains = drawn[0].shape == other_drawn[0].shape and torch.equal(drawn[0], other_drawn[0])
    assert same_chains == (on != "chains")
    if on == "memory":
        assert losses == other_losses
        return
    assert losses != pytest.approx(other_losses, rel=1e-5)


class KeptBytes:
    """What autograd keeps for backward passes inside a ``with``: storages, each once, those of ``known`` left out."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._found: dict[int, torch.Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in self._known:
            self._found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def __int__(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._found.values())


@pytest.mark.parametrize("method", ["ddim", "flow"])
def test_recomputing_keeps_little_per_sample_and_changes_no_gradient(method: str) -> None:
    planner = small_planner(method).train()
    features, _ = small_batch(2)

    def backward(group: int, recompute: bool, autocast: bool = False) -> tuple[int, list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(group)
        states = 0.3 * torch.randn(2, group, planner.config.num_inference_steps + 1, 8, 3, generator=generator)
        config = RLConfig(group_size=group, recompute_activations=recompute)
        planner.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            condition = scene_condition(planner, features)
            with KeptBytes([*planner.parameters(), *planner.buffers(), *features.values()]) as kept:
                scores = score_chains(planner, condition, states, None, config)
        scores.log_prob.sum().backward()
        return int(kept), [parameter.grad for parameter in planner.parameters() if parameter.grad is not None]

    for autocast in (False, True):
        (few, found), (many, expected) = backward(4, True, autocast), backward(4, False, autocast)
        assert len(found) == len(expected) > 0
        assert all(map(torch.equal, found, expected))
        per_sample = [(backward(8, recompute)[0] - backward(4, recompute)[0]) / 4 for recompute in (True, False)]
        assert 0 < per_sample[0] < per_sample[1] / 3
        assert few < many / 2


@pytest.mark.parametrize(
    ("method", "settings"),
    [("ddim", {"log_prob_std_floor": 0.3}), ("flow", {"flow_noise_level": 0.3})],
)
def test_the_same_chains_score_differently(method: str, settings: dict[str, Any]) -> None:
    planner = small_planner(method).train()
    reference = moved(planner)
    features, _ = small_batch(2)
    states = 0.3 * torch.randn(2, 4, planner.config.num_inference_steps + 1, 8, 3)
    means, scores = [], []
    for config in (RLConfig(), RLConfig(**settings)):
        drawn = draw_reference(reference, features, states, config)
        means.append(drawn.means)
        scores.append(score_chains(planner, scene_condition(planner, features), states, drawn, config).unclamped)
    assert not torch.allclose(*scores)
    assert torch.equal(*means) == (method == "ddim")  # a floor is no part of a mean
