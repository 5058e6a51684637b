"""From rewards to advantages, relative to a group: the trajectories drawn for one scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.ranks import sum_over_ranks


class Advantages(NamedTuple):
    """Advantages of a batch.

    Attributes:
        values: [B, G] float32; exactly 0 for scenes that could not be scored and for groups without spread.
        has_spread: [B] bool, whether the scene was scored and its rewards differ.
    """

    values: Tensor
    has_spread: Tensor


def group_advantages(
    rewards: Tensor, valid: Tensor, config: RLConfig, reduce_sum: Callable[[Tensor], Tensor] = sum_over_ranks
) -> Advantages:
    """``(r - mean of the group) / (std + epsilon)``, the standard deviation with G - 1 (arXiv 2506.08052, DiffGRPO).

    Computed in float64: in float32 the mean of equal rewards can differ from each of them.

    Args:
        rewards: [B, G]; those of scenes that are not valid are not read.
        valid: [B] bool, whether the scene was scored.
        config: whose ``advantage_*`` and ``min_reward_spread`` apply.
        reduce_sum: sums a tensor over all ranks; called once, on every rank, and only with ``advantage_scale`` global.
    """
    rewards = torch.where(valid[:, None], rewards.double(), 0.0)
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    has_spread = valid & (spread > config.min_reward_spread)
    centred = torch.where(has_spread[:, None], rewards - rewards.mean(dim=1, keepdim=True), 0.0)
    if config.advantage_scale == "group":
        std = rewards.std(dim=1, keepdim=True)
    else:
        # The centred rewards' mean is 0 in every group, so their squares are all that ranks have to share.
        count, squares = reduce_sum(torch.stack([valid.sum().double() * rewards.shape[1], centred.square().sum()]))
        std = (squares / (count - 1).clamp(min=1)).sqrt()
    values = torch.where(has_spread[:, None], centred / (std + config.advantage_epsilon), 0.0)
    if config.advantage_quantiles != (0.0, 1.0) and bool(valid.any()):
        bounds = torch.quantile(values[valid], values.new_tensor(config.advantage_quantiles))
        values = values.clamp(bounds[0], bounds[1])
        values = torch.where(has_spread[:, None], values, 0.0)  # a quantile need not leave 0 alone
    return Advantages(values.float(), has_spread)
