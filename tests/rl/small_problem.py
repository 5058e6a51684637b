"""A planning problem with a known optimum: drive so that the plan ends at a given point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.imitation import imitation_loss
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.rl.reference import ReferencePolicy
from navsim_recogdrive.rl.reward import RewardResult

TARGET = np.array([45.0, -8.0])
"""Metres ahead and to the left."""


@dataclass
class FunctionReward:
    """A reward of a function of trajectories [B, G, 8, 3]; scenes named ``unscorable...`` have none."""

    function: Callable[[Any], Any]
    calls: list[str] = field(default_factory=list)

    def submit(self, tokens: Sequence[str], trajectories: Any) -> FunctionReward:
        assert isinstance(trajectories, np.ndarray)
        assert trajectories.shape[0] == len(tokens)
        assert trajectories.shape[2:] == (8, 3)
        assert trajectories.dtype == np.float32
        self.calls.append("submit")
        scores = np.asarray(self.function(trajectories), np.float32)
        valid = np.array([not token.startswith("unscorable") for token in tokens])
        scores[~valid] = np.nan
        self._result = RewardResult(scores, valid, {"progress": 2 * scores}, 0.5)
        return self

    def result(self) -> RewardResult:
        self.calls.append("result")
        return self._result

    def close(self) -> None:
        self.calls.append("close")


def closeness(trajectories: Any) -> Any:
    """1 at the target, 0 at 50 m from it and further."""
    distance = np.linalg.norm(trajectories[..., -1, :2] - TARGET, axis=-1)
    return np.clip(1 - distance / 50, 0, 1)


def small_planner(method: str) -> DiffusionPlanner:
    torch.manual_seed(0)
    planner = DiffusionPlanner(
        PlannerConfig(
            hidden_state_size=8,
            num_heads=2,
            head_dim=8,
            num_layers=2,
            output_size=16,
            mlp_hidden_size=16,
            method=method,  # type: ignore[arg-type]
            # DDPM's chain only leads to an action if it visits every timestep.
            num_train_timesteps=5 if method == "ddpm" else 100,
        )
    )
    for parameter in planner.parameters():
        if parameter.requires_grad:  # a fresh planner's gates are zero
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return planner


def denoiser(method: str) -> DiffusionPlanner:
    """A planner that has learned to end somewhere round (32, 0)."""
    planner = small_planner(method)
    features, _ = small_batch(2)
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(planner.parameters(), 5e-3, betas=(0.9, 0.95))
    ramp = torch.linspace(1 / 8, 1, 8)[:, None]
    names = {"hidden_state": "hidden_states"}
    many = {names.get(name, name): values.repeat_interleave(8, dim=0) for name, values in features.items()}
    for _ in range(100):
        ends = torch.tensor([32.0, 0.0, 0.0]) + torch.randn(16, 1, 3, generator=generator) * torch.tensor([6, 4, 0.1])
        loss = imitation_loss(planner, planner.condition(**many), ends * ramp, draws_per_scene=8, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return planner


def small_batch(scenes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    features = {
        "hidden_state": torch.randn(scenes, 5, 8, generator=generator),
        "past_poses": torch.randn(scenes, 4, 3, generator=generator),
        "ego_status": torch.randn(scenes, 8, generator=generator),
    }
    targets = {
        "trajectory": torch.randn(scenes, 8, 3, generator=generator),
        "token": [f"scene{index}" for index in range(scenes)],
    }
    return features, targets


def small_objective(
    method: str = "ddim",
    *,
    function: Callable[[Any], Any] = closeness,
    planner: DiffusionPlanner | None = None,
    reference: DiffusionPlanner | None = None,
    **settings: Any,
) -> tuple[RLObjective, DiffusionPlanner, FunctionReward]:
    """An objective over a planner in training mode; the reference is a copy of it if none is given."""
    planner = (planner or small_planner(method)).train()
    config, reward = RLConfig(**settings), FunctionReward(function)
    held_to = ReferencePolicy(reference or planner) if config.needs_reference else None
    policy = ReCogDrivePolicy(planner, SharedBackbone(VLMConfig()))
    return RLObjective(policy, config, reward, held_to), planner, reward


def train(
    objective: RLObjective, planner: DiffusionPlanner, steps: int, learning_rate: float, scenes: int = 8
) -> list[float]:
    """Train on one batch; the mean rewards of all steps' rollouts."""
    features, targets = small_batch(scenes)
    optimizer = torch.optim.AdamW(planner.parameters(), learning_rate, betas=(0.9, 0.95))
    rewards = []
    for _ in range(steps):
        loss = objective.loss(features, targets, objective.predict(features))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(planner.parameters(), 1.0)
        optimizer.step()
        rewards.append(objective.statistics["reward/mean"])
    return rewards
