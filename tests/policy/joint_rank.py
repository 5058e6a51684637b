"""One rank of joint training over gloo: python joint_rank.py RANK STORE VLM OUT.

The VLM has LoRA adapters and checkpoints its gradients. Ranks start from other adapters, so what they end with is equal
only if DDP hands out the weights and averages the gradients of VLM and planner.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from random_observation import random_observation
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_PLANNER
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.features import ego_features
from navsim_recogdrive.policy.image_features import tile_features
from navsim_recogdrive.policy.imitation import imitation_loss
from navsim_recogdrive.policy.joint import OwnBackbone, TrainableVLM
from navsim_recogdrive.policy.objective import ImitationObjective
from navsim_recogdrive.policy.policy import ReCogDrivePolicy

SCENES = 2
STEPS = 2


class Step(nn.Module):
    """As NAVSIM's Lightning module: prediction and loss inside of what DDP calls ``forward``."""

    def __init__(self, vlm: str, seed: int) -> None:
        super().__init__()
        config = PolicyConfig.from_mapping(
            {
                "vlm": {
                    "path": vlm,
                    "dtype": "float32",
                    "hidden_length": TINY_HIDDEN_LENGTH,
                    "training": "lora",
                    "gradient_checkpointing": True,
                },
                "lora": {"rank": 2, "dropout": 0.0},
                "planner": TINY_PLANNER,
                "cache_hidden_state": False,
                "device": "cpu",
            }
        )
        torch.manual_seed(seed)
        self.action_head = DiffusionPlanner(config.planner)
        for parameter in self.action_head.parameters():  # adaLN starts at zero, which would hide the condition
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
        self.vlm = TrainableVLM(config)
        self.backbone = OwnBackbone(config.vlm, self.vlm.backbone)
        policy = ReCogDrivePolicy(self.action_head, self.backbone, config.sampling)
        self.objective = ImitationObjective(policy, config.imitation)

    def forward(self, features: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        condition = self.objective.predict(features)["condition"]
        return imitation_loss(self.action_head, condition, **targets)


def batch(step: Step, scenes: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Features, and trajectories with noise and timesteps, by the number of the scene among all."""
    generator = torch.Generator().manual_seed(0)
    targets = {
        "trajectories": torch.randn(SCENES, 8, 3, generator=generator),
        "noise": torch.randn(SCENES, 1, 8, 3, generator=generator),
        "levels": torch.randint(0, 100, (SCENES, 1), generator=generator),
    }
    observations = [random_observation(seed) for seed in range(SCENES)][scenes]
    features = [{**tile_features(step.backbone.preparation, one), **ego_features(one)} for one in observations]
    return default_collate(features), {name: values[scenes] for name, values in targets.items()}


def train(vlm: str, seed: int, scenes: slice, wrap: Any = lambda step: step) -> dict[str, Tensor]:
    """What a checkpoint holds after some steps on ``scenes``."""
    step = Step(vlm, seed)
    module = wrap(step.train())
    # Plain descent: Adam would turn rounding of gradients near zero into whole steps.
    optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], 0.1)
    features, targets = batch(step, scenes)
    for _ in range(STEPS):
        optimizer.zero_grad()
        module(features, targets).backward()
        optimizer.step()
    return {name: value.clone() for name, value in step.state_dict().items()}


def main(rank: int, store: str, vlm: str, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    half = SCENES // 2
    torch.save(train(vlm, rank, slice(half * rank, half * (rank + 1)), DistributedDataParallel), out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
