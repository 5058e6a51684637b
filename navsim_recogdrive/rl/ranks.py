"""What the ranks of a distributed run tell each other, so that together they train as one process would."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of ``values`` over all DDP ranks; ``values`` itself where there is one process."""
    if _num_ranks() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def scenes_per_rank(valid: Tensor, reduce_sum: Callable[[Tensor], Tensor] = sum_over_ranks) -> Tensor:
    """Scored scenes of a rank on average: what a rank's sum over its own scored scenes is to be divided by.

    DDP averages gradients over ranks. Were each rank's loss a mean over its own scored scenes, the scenes of a rank
    with few of them would count for more.

    Args:
        valid: [B] bool, whether the scene was scored.
        reduce_sum: sums a tensor over all ranks; called once, on every rank.

    Returns:
        Scalar float32; ``valid.sum()`` where all ranks have as many, and not 0 where none has any.
    """
    return reduce_sum(valid.sum().float()).clamp(min=1) / _num_ranks()


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
