"""DiffGRPO against numbers of the published code: advantages, losses and every gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_problem import FunctionReward
from torch import Tensor

from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig
from navsim_recogdrive.planner import planner as planner_module
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.rl.advantages import group_advantages
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.rl.reference import ReferencePolicy

DATA = Path(__file__).parents[1] / "data" / "planner"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def golden(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def tiny(weights: str) -> DiffusionPlanner:
    planner = DiffusionPlanner(PlannerConfig(num_heads=2, head_dim=8, num_layers=4, output_size=32, mlp_hidden_size=32))
    state = golden("planner_tiny") | golden(weights)
    planner.load_state_dict({key: state[key] for key in planner.state_dict()})
    return planner


@pytest.fixture
def published() -> dict[str, Tensor]:
    return golden("tiny_grpo_default")


def test_advantages(published):
    found = group_advantages(published["rewards"], torch.ones(3, dtype=torch.bool), RLConfig())
    torch.testing.assert_close(found.values.flatten(), published["advantage"], **CLOSE)
    assert found.has_spread.tolist() == [True, True, False]
    assert (found.values[2] == 0).all()


def test_objective_loss_and_every_gradient(published, monkeypatch):
    draws = iter(
        [
            published["actor_init_noise"].view(3, 8, 8, 3),
            *published["actor_step_noise"].view(5, 3, 8, 8, 3),
            published["teacher_init_noise"][:, None],
            *published["teacher_step_noise"][:, :, None],
        ]
    )

    def draw(name: str, given: Any, shape: tuple[int, ...], *rest: Any) -> Tensor:
        noise = next(draws)
        assert noise.shape == shape
        return noise

    monkeypatch.setattr(planner_module, "_noise", draw)
    seen = []

    def rewards(trajectories: Any) -> Any:
        seen.append(torch.from_numpy(trajectories))
        return published["rewards"].numpy().copy()

    actor = tiny("planner_tiny_actor").train()
    objective = RLObjective(
        ReCogDrivePolicy(actor, SharedBackbone(VLMConfig())),
        RLConfig(),
        FunctionReward(rewards),
        ReferencePolicy(tiny("planner_tiny")),
    )
    inputs = golden("tiny_inputs")
    features = {
        "hidden_state": inputs["vl_features"],
        "past_poses": inputs["his_traj"].view(3, 4, 3),
        "ego_status": inputs["status_feature"],
    }
    loss = objective.loss(features, {"token": ["a", "b", "c"]}, objective.predict(features))
    loss.backward()

    torch.testing.assert_close(seen[0].view(24, 8, 3), published["actor_traj"], rtol=0, atol=1e-3)
    torch.testing.assert_close(loss, published["loss"], **CLOSE)
    found = objective.statistics
    assert found["loss/policy"] == pytest.approx(published["policy_loss"].item(), abs=1e-6)
    assert found["loss/behaviour_cloning"] == pytest.approx(published["bc_loss"].item(), abs=1e-5)
    assert found["reward/mean"] == pytest.approx(published["reward_mean"].item(), abs=1e-6)
    assert found["log_prob/mean"] == pytest.approx(published["actor_log_prob"].mean().item(), abs=1e-5)
    assert found["log_prob/clamped"] == pytest.approx(0.0020833, abs=1e-6)
    assert found["reward/groups_without_spread"] == pytest.approx(1 / 3)
    trained = {name: parameter for name, parameter in actor.named_parameters() if parameter.requires_grad}
    assert {f"grad.{name}" for name in trained} == {key for key in published if key.startswith("grad.")}
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, published[f"grad.{name}"], rtol=1e-4, atol=1e-5, msg=name)
