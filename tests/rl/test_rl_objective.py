from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problem import FunctionReward, closeness, small_batch, small_objective, small_planner

from navsim_recogdrive.policy.objective import InvalidFeature
from navsim_recogdrive.rl import objective as objective_module
from navsim_recogdrive.rl.objective import InvalidReward
from navsim_recogdrive.rl.reference import ReferencePolicy

METHODS = ["ddim", "ddpm", "flow"]
STATISTICS = {
    *(f"reward/{name}" for name in ("mean", "std", "min", "max", "progress")),
    "reward/groups_without_spread",
    "reward/scenes_not_scored",
    *(f"loss/{name}" for name in ("total", "policy", "behaviour_cloning")),
    "kl",
    *(f"log_prob/{name}" for name in ("mean", "min", "max", "clamped")),
    *(f"seconds/{name}" for name in ("condition", "rollout", "log_prob", "reward", "reward_wait")),
}


def gradients(objective, planner, features, targets):
    planner.zero_grad()
    loss = objective.loss(features, targets, objective.predict(features))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in planner.named_parameters() if p.requires_grad}


def perturbed(planner, seed=5):
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(planner)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.mark.parametrize("method", METHODS)
def test_a_step_has_a_gradient_everywhere_and_numbers_for_the_log(method):
    planner = small_planner(method)
    objective, planner, _ = small_objective(method, planner=planner, reference=perturbed(planner))
    loss, found = gradients(objective, planner, *small_batch(3))
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found.values())
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    statistics = objective.statistics
    assert statistics.keys() == STATISTICS
    assert all(isinstance(value, float) and math.isfinite(value) for value in statistics.values())
    assert statistics["loss/total"] == pytest.approx(loss.item())
    assert statistics["reward/progress"] == pytest.approx(2 * statistics["reward/mean"], rel=1e-5)
    assert statistics["reward/min"] < statistics["reward/mean"] < statistics["reward/max"]
    assert statistics["kl"] > 0
    assert statistics["seconds/reward"] == 0.5


def test_the_reward_works_while_log_probabilities_are_computed(monkeypatch):
    objective, _, reward = small_objective()
    for name in ("draw_group", "draw_reference", "score_chains"):
        original = getattr(objective_module, name)

        def record(*args, _name=name, _original=original, **kwargs):
            reward.calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(objective_module, name, record)
    features, targets = small_batch(2)
    objective.loss(features, targets, objective.predict(features))
    assert reward.calls == ["draw_group", "submit", "draw_reference", "score_chains", "result"]


def test_one_condition_per_scene_and_one_pass_for_all_log_probabilities(monkeypatch):
    objective, planner, _ = small_objective(group_size=4)
    rows = []
    planner.feature_encoder.register_forward_hook(lambda module, args, output: rows.append(output.shape))
    queries = []
    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v: (queries.append(q.shape), attention(q, k, v))[1]
    )
    features, targets = small_batch(3)
    predictions = objective.predict(features)
    objective.loss(features, targets, predictions)
    assert rows == [(3, 5, 16)]
    # The actor's four chains and the reference's one, five steps of eight poses, on five keys shared by all.
    assert [q for q in queries if q[0] == 3 and q[2] == (4 + 1) * 5 * 8] == [(3, 2, 200, 8)]


@pytest.mark.parametrize("unscorable", [0, 2])
def test_a_masked_scene_is_as_if_it_were_not_there(unscorable):
    features, targets = small_batch(3)
    targets["token"][unscorable] = "unscorable"
    everyone = [0, 1, 2]
    found = []
    for scenes in (everyone, [index for index in everyone if index != unscorable]):
        objective, planner, _ = small_objective(group_size=4, advantage_scale="global", kl_weight=0.1)
        torch.manual_seed(0)
        noise = torch.randn(6, 3, 4, 8, 3), torch.randn(6, 3, 1, 8, 3)

        def sample(condition, num_samples=1, *, settings, _planner=planner, _scenes=scenes, _noise=noise):
            drawn = _noise[0 if num_samples == 4 else 1][:, _scenes]
            return type(_planner).sample_chain(
                _planner, condition, num_samples, settings=settings, initial_noise=drawn[0], step_noise=drawn[1:]
            )

        planner.sample_chain = sample  # type: ignore[method-assign]
        objective._reference._planner.sample_chain = sample  # type: ignore[union-attr, method-assign]
        batch = {name: values[scenes] for name, values in features.items()}
        tokens = {"token": [targets["token"][index] for index in scenes]}
        found.append((*gradients(objective, planner, batch, tokens), objective.statistics))
    (loss, grads, statistics), (expected, expected_grads, expected_statistics) = found
    torch.testing.assert_close(loss, expected)
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, expected_grads[name], rtol=1e-4, atol=1e-6)
    assert statistics["reward/mean"] == pytest.approx(expected_statistics["reward/mean"])
    assert statistics["reward/scenes_not_scored"] == pytest.approx(1 / 3)


def test_without_a_scored_scene_the_loss_is_zero_and_still_connected():
    objective, planner, _ = small_objective()
    features, targets = small_batch(2)
    targets["token"] = ["unscorable0", "unscorable1"]
    loss, found = gradients(objective, planner, features, targets)
    assert loss.item() == 0
    assert all(gradient is not None and (gradient == 0).all() for gradient in found.values())
    assert math.isnan(objective.statistics["reward/mean"])
    assert objective.statistics["reward/scenes_not_scored"] == 1
    assert objective.statistics.keys() == STATISTICS


def test_equal_rewards_leave_behaviour_cloning_alone():
    def equal(trajectories):
        return np.full(trajectories.shape[:2], 0.7)

    objective, planner, _ = small_objective(function=equal)
    loss, _ = gradients(objective, planner, *small_batch(2))
    statistics = objective.statistics
    assert statistics["loss/policy"] == 0
    assert loss.item() == pytest.approx(0.1 * statistics["loss/behaviour_cloning"])
    assert statistics["reward/groups_without_spread"] == 1
    objective, planner, _ = small_objective(function=equal, bc_weight=0.0)
    loss, found = gradients(objective, planner, *small_batch(2))
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in found.values())
    assert "loss/behaviour_cloning" not in objective.statistics


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_behaviour_cloning_counts_with_its_weight(weight):
    objective, planner, _ = small_objective(bc_weight=weight)
    loss, _ = gradients(objective, planner, *small_batch(2))
    terms = objective.statistics
    assert loss.item() == pytest.approx(terms["loss/policy"] + weight * terms["loss/behaviour_cloning"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_divergence_in_place_of_behaviour_cloning(method):
    planner = small_planner(method)
    objective, planner, _ = small_objective(method, planner=planner, bc_weight=0.0, kl_weight=0.5)
    gradients(objective, planner, *small_batch(2))
    assert objective.statistics["kl"] == pytest.approx(0, abs=1e-9)  # the reference is a copy
    moved = perturbed(planner)
    objective, moved, _ = small_objective(method, planner=moved, reference=planner, bc_weight=0.0, kl_weight=0.5)
    features, targets = small_batch(2)
    optimizer = torch.optim.SGD(moved.parameters(), 0.02)
    divergences = []
    objective._reward.function = lambda trajectories: np.ones(trajectories.shape[:2])  # type: ignore[attr-defined]
    for _ in range(12):
        loss, _ = gradients(objective, moved, features, targets)
        terms = objective.statistics
        assert loss.item() == pytest.approx(terms["loss/policy"] + 0.5 * terms["kl"])
        divergences.append(terms["kl"])
        optimizer.step()
    assert sum(divergences[-3:]) < 0.8 * sum(divergences[:3])


@pytest.mark.parametrize("updates", [2, 3])
def test_a_rollout_is_used_again_in_the_batches_after_its_own(updates, monkeypatch):
    objective, planner, reward = small_objective(updates_per_rollout=updates, ratio_clip=0.2)
    used = []
    original = objective_module.policy_loss

    def record(log_prob, *args, old_log_prob, **kwargs):
        used.append((log_prob.detach() - old_log_prob).abs().max().item())
        return original(log_prob, *args, old_log_prob=old_log_prob, **kwargs)

    monkeypatch.setattr(objective_module, "policy_loss", record)
    optimizer = torch.optim.SGD(planner.parameters(), 0.1)
    counts = []
    for step in range(4):
        features, targets = small_batch(1 + step)  # the last batch of an epoch has another size
        used.clear()
        gradients(objective, planner, features, targets)
        optimizer.step()
        counts.append(len(used))
        assert used[0] == 0
        assert all(change > 1e-6 for change in used[1:])
    assert counts == [min(step + 1, updates) for step in range(4)]
    assert reward.calls.count("submit") == 4
    assert objective.statistics.keys() == STATISTICS | {"ratio/mean", "ratio/outside_clip"}


def test_a_rollout_used_again_has_the_conditions_of_the_policy_of_now():
    objective, planner, _ = small_objective(updates_per_rollout=2, ratio_clip=0.2, bc_weight=0.0)
    features, targets = small_batch(2)
    gradients(objective, planner, features, targets)
    kept = objective._used_again[0]
    with torch.no_grad():
        planner.feature_encoder.weight.add_(0.3)
    targets["token"] = ["unscorable0", "unscorable1"]
    _, found = gradients(objective, planner, features, targets)
    assert found["feature_encoder.weight"].abs().max() > 0
    assert 1e-5 < abs(objective.statistics["ratio/mean"] - 1) < 0.4
    assert kept.log_prob.requires_grad is False


def test_the_ratio_is_that_of_scored_rollouts_used_again():
    objective, planner, _ = small_objective(updates_per_rollout=2, ratio_clip=1e-9, bc_weight=0.0)
    found = []
    for number, unscorable in enumerate([False, False, True, False, False]):
        features, targets = small_batch(2)
        if unscorable:
            targets["token"] = ["unscorable0", "unscorable1"]
        gradients(objective, planner, features, targets)
        found.append((objective.statistics["ratio/mean"], objective.statistics["ratio/outside_clip"]))
        with torch.no_grad():
            planner.feature_encoder.weight.add_(0.3 + 0.1 * number)
    known = [math.isfinite(mean) for mean, _ in found]
    assert known == [False, True, True, False, True], "NaN of the first batch, and after the batch without scores"
    for mean, outside in (row for row, is_known in zip(found, known, strict=True) if is_known):
        assert outside > 0.9, "the fresh rollout's ratios of exactly 1 are not averaged in"
        assert abs(mean - 1) > 1e-5
    assert all(math.isnan(outside) for (_, outside), is_known in zip(found, known, strict=True) if not is_known)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_16_bit_autocast_keeps_log_probabilities_and_losses_in_float32(method, dtype, monkeypatch):
    objective, planner, _ = small_objective(method, kl_weight=0.1)
    dtypes = set()
    original = objective_module.score_chains

    def record(*args):
        scores = original(*args)
        dtypes.update(t.dtype for t in (scores.log_prob, scores.cloning, scores.kl, scores.unclamped))
        return scores

    monkeypatch.setattr(objective_module, "score_chains", record)
    network = []
    planner.action_decoder.register_forward_hook(lambda module, args, output: network.append(output.dtype))
    features, targets = small_batch(2)
    with torch.autocast("cpu", dtype=dtype):
        loss = objective.loss(features, targets, objective.predict(features))
    loss.backward()
    assert set(network) == {dtype}
    assert dtypes == {torch.float32}
    assert loss.dtype == torch.float32
    trained = {name: p for name, p in planner.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()]


def test_the_reference_is_frozen_and_belongs_to_nobody():
    class Agent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self._objective, self.action_head, _ = small_objective()

    agent = Agent()
    reference = agent._objective._reference._planner
    before = copy.deepcopy(reference.state_dict())
    assert all(name.startswith("action_head.") for name in agent.state_dict())
    assert len(list(agent.parameters())) == len(list(agent.action_head.parameters()))
    agent.train()
    features, targets = small_batch(2)
    optimizer = torch.optim.SGD(agent.parameters(), 1.0)
    gradients(agent._objective, agent.action_head, features, targets)
    optimizer.step()
    assert not reference.training
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert not torch.equal(agent.action_head.feature_encoder.weight, before["feature_encoder.weight"])


def test_the_reference_follows_the_device():
    reference = ReferencePolicy(small_planner("ddim"))
    moved = reference.on(torch.device("meta"))
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}


@pytest.mark.parametrize("method", METHODS)
def test_validation_plans_both_ways_and_scores_them(method):
    objective, planner, _ = small_objective(method)
    planner.eval()
    features, targets = small_batch(3)
    with torch.no_grad():
        predictions = objective.predict(features)
        again = objective.predict(features)
        loss = objective.loss(features, targets, predictions)
    assert predictions["deterministic"].shape == predictions["stochastic"].shape == (3, 8, 3)
    assert all(torch.equal(predictions[name], again[name]) for name in ("deterministic", "stochastic"))
    assert torch.equal(predictions["deterministic"], predictions["stochastic"]) == (method == "flow")
    assert predictions["trajectory"] is predictions["stochastic"]  # as the published evaluation
    expected = closeness(predictions["stochastic"].numpy()).mean()
    assert loss.item() == pytest.approx(-expected, rel=1e-5)
    assert objective.statistics["score/stochastic"] == pytest.approx(expected, rel=1e-5)
    assert objective.statistics["score/scenes"] == 3
    assert objective.displacement._sums[2] == 3
    targets["token"] = ["unscorable"] * 3
    with torch.no_grad():
        assert objective.loss(features, targets, predictions).item() == 0
    assert math.isnan(objective.statistics["score/deterministic"])
    assert objective.statistics["score/scenes"] == 0


def test_scenes_to_blame_are_named_before_the_reward_is_asked():
    objective, _, reward = small_objective()
    features, targets = small_batch(3)
    features["past_poses"][1, 2, 0] = torch.inf
    with pytest.raises(InvalidFeature, match="past_poses of scene scene1"):
        objective.loss(features, targets, objective.predict(features))
    assert reward.calls == []
    del targets["trajectory"]
    with pytest.raises(InvalidFeature, match="past_poses of scene scene1"):
        objective.loss(features, targets, objective.predict(features))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t: np.zeros((len(t), 3)), r"scores \[2, 8\] and valid \[2\], found \[2, 3\]"),
        (lambda t: np.full(t.shape[:2], np.nan), "not finite"),
    ],
)
def test_a_reward_that_answers_nonsense_is_refused(function, message):
    objective, _, _ = small_objective(function=function)
    features, targets = small_batch(2)
    with pytest.raises(InvalidReward, match=message):
        objective.loss(features, targets, objective.predict(features))


def test_batches_and_features_are_left_unchanged():
    objective, planner, _ = small_objective(updates_per_rollout=2, ratio_clip=0.2)
    features, targets = small_batch(2)
    before = {name: values.clone() for name, values in features.items()}
    for _ in range(2):
        gradients(objective, planner, features, targets)
    assert features.keys() == before.keys()
    assert all(torch.equal(values, before[name]) for name, values in features.items())
    assert targets.keys() == {"trajectory", "token"}


def test_the_reward_protocol_is_that_of_the_room():
    from navsim_recogdrive.rl.reward import Reward

    assert {name for name in vars(Reward) if not name.startswith("_")} == {"submit", "close"}
    assert all(hasattr(FunctionReward, name) for name in ("submit", "close"))
