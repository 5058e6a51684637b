from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.callbacks import NoisePerRank
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.objective import ImitationObjective, InvalidFeature
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.training_configuration import ImitationConfig


@pytest.fixture(params=["ddim", "ddpm", "flow"])
def objective(request: pytest.FixtureRequest) -> ImitationObjective:
    torch.manual_seed(0)
    config = PlannerConfig(
        hidden_state_size=16,
        num_heads=2,
        head_dim=8,
        num_layers=2,
        output_size=16,
        mlp_hidden_size=16,
        method=request.param,
    )
    planner = DiffusionPlanner(config)
    for parameter in planner.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return ImitationObjective(ReCogDrivePolicy(planner, SharedBackbone(VLMConfig())), ImitationConfig())


def _batch(scenes: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    features = {
        "hidden_state": torch.randn(scenes, 9, 16, generator=generator).bfloat16(),
        "past_poses": torch.randn(scenes, 4, 3, generator=generator),
        "ego_status": torch.randn(scenes, 8, generator=generator),
    }
    targets = {
        "trajectory": torch.randn(scenes, 8, 3, generator=generator),
        "token": [f"scene{index}" for index in range(scenes)],
    }
    return features, targets


def _validation_loss(objective: ImitationObjective, features: dict[str, Any], targets: dict[str, Any]) -> torch.Tensor:
    objective._policy.planner.eval()
    with torch.no_grad():
        return objective.loss(features, targets, objective.predict(features))


def test_validation_loss_does_not_depend_on_the_batching(objective: ImitationObjective) -> None:
    features, targets = _batch(4)
    whole = _validation_loss(objective, features, targets)
    torch.randn(3)
    single = [
        _validation_loss(
            objective,
            {name: values[index : index + 1] for name, values in features.items()},
            {"trajectory": targets["trajectory"][index : index + 1], "token": targets["token"][index : index + 1]},
        )
        for index in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(single).mean())
    assert len({value.item() for value in single}) == 4


def test_training_draws_anew_and_evaluation_plans(objective: ImitationObjective) -> None:
    features, targets = _batch(2)
    objective._policy.planner.train()
    predictions = objective.predict(features)
    assert set(predictions) == {"condition"}
    first, second = (objective.loss(features, targets, predictions) for _ in range(2))
    assert first != second
    objective._policy.planner.eval()
    assert objective.predict(features)["trajectory"].shape == (2, 8, 3)


def test_scenes_to_blame_are_named(objective: ImitationObjective) -> None:
    features, targets = _batch(3)
    features["past_poses"][1, 2, 0] = torch.inf
    with pytest.raises(InvalidFeature, match="past_poses of scene scene1"):
        objective.loss(features, targets, objective.predict(features))


def test_ranks_draw_different_noise_and_rank_0_keeps_the_seed() -> None:
    draws = []
    for rank in range(3):
        torch.manual_seed(7)
        NoisePerRank().on_fit_start(cast(Any, SimpleNamespace(global_rank=rank)), cast(Any, None))
        draws.append(torch.randn(4))
    torch.manual_seed(7)
    assert torch.equal(draws[0], torch.randn(4))
    assert len({tuple(values.tolist()) for values in draws}) == 3
