"""One rank of a DDP run over gloo: python rl_rank.py RANK STORE OUT; rank 1 has no scene that can be scored."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from small_problem import small_batch, small_objective
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Step(nn.Module):
    """As NAVSIM's Lightning module: prediction and loss inside of what DDP calls ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.objective, self.action_head, _ = small_objective(
            advantage_scale="global", updates_per_rollout=2, ratio_clip=0.2
        )

    def forward(self, features, targets):  # type: ignore[no-untyped-def]
        return self.objective.loss(features, targets, self.objective.predict(features))


def main(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    step = Step()
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
    torch.save([parameter.detach() for parameter in step.action_head.parameters()], f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
