"""One rank of a DDP run over gloo: python rl_rank.py RANK STORE OUT.

First rank 1 has no scene that can be scored, then both have scenes, and differ in their number and spread.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from small_problem import small_batch, small_objective
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from navsim_recogdrive.rl import objective as objective_module

SCENES = 4
GROUP = 4
TOKENS = ["scene0", "scene1", "scene2", "unscorable"]
SPREADS = np.array([1.0, 0.7, 0.01, 0.0])
SETTINGS: dict[str, Any] = {"advantage_scale": "global", "group_size": GROUP, "kl_weight": 0.1}


class Step(nn.Module):
    """As NAVSIM's Lightning module: prediction and loss inside of what DDP calls ``forward``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.objective, self.action_head, self.reward = small_objective(**settings)

    def forward(self, features, targets):  # type: ignore[no-untyped-def]
        return self.objective.loss(features, targets, self.objective.predict(features))


def fix_draws(step: Step, scenes: slice) -> list[Tensor]:
    """Draw and reward by the number of the scene among all; advantages are noted in the list that is returned."""
    generator = torch.Generator().manual_seed(7)
    noise = {group: torch.randn(6, SCENES, group, 8, 3, generator=generator)[:, scenes] for group in (GROUP, 1)}
    rewards = (np.random.default_rng(7).random((SCENES, GROUP)) * SPREADS[:, None])[scenes]
    step.reward.function = lambda trajectories: rewards.copy()
    reference = step.objective._reference
    assert reference is not None
    with torch.no_grad():
        for parameter in reference._planner.parameters():
            parameter.mul_(1.1)
    for planner in (step.action_head, reference._planner):

        def sample(condition: Any, num_samples: int = 1, *, settings: Any, _planner: Any = planner) -> Any:
            drawn = noise[num_samples]
            return type(_planner).sample_chain(
                _planner, condition, num_samples, settings=settings, initial_noise=drawn[0], step_noise=drawn[1:]
            )

        planner.sample_chain = sample  # type: ignore[method-assign]
    return noted_advantages()


def noted_advantages() -> list[Tensor]:
    noted: list[Tensor] = []
    original = objective_module.group_advantages

    def note(*args: Any) -> Any:
        found = original(*args)
        noted.append(found.values)
        return found

    objective_module.group_advantages = note
    return noted


def one_gradient(module: nn.Module, scenes: slice) -> None:
    """One backward pass on those of all scenes."""
    features, _ = small_batch(SCENES)
    batch = {name: values[scenes] for name, values in features.items()}
    module(batch, {"token": TOKENS[scenes]}).backward()


def gradients(step: Step) -> dict[str, Tensor]:
    return {name: p.grad for name, p in step.action_head.named_parameters() if p.grad is not None}


def train_with_an_idle_rank(rank: int) -> list[Tensor]:
    step = Step(advantage_scale="global", updates_per_rollout=2, ratio_clip=0.2)
    module = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    torch.manual_seed(rank)
    features, targets = small_batch(2)
    if rank == 1:
        targets["token"] = ["unscorable0", "unscorable1"]
    for _ in range(3):
        optimizer.zero_grad()
        module(features, targets).backward()
        optimizer.step()
    return [parameter.detach() for parameter in step.action_head.parameters()]


def main(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    weights = train_with_an_idle_rank(rank)
    step = Step(**SETTINGS)
    scenes = slice(2 * rank, 2 * rank + 2)
    noted = fix_draws(step, scenes)
    one_gradient(DistributedDataParallel(step), scenes)
    torch.save({"weights": weights, "advantages": noted[0], "gradients": gradients(step)}, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
