"""The terms of the DiffGRPO loss, all float32 means over coordinates, denoising steps, samples and scored scenes."""

from __future__ import annotations

import torch
from torch import Tensor


def scene_mean(values: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean over the scenes that count.

    Where none does the result is 0, and still a function of ``values``: its gradients are zeros, not missing, which is
    what DDP waits for.

    Args:
        values: [B, ...] finite.
        valid: [B] bool.
        count: scalar to divide by in place of ``valid.sum()``: with :func:`.ranks.scenes_per_rank` the average over
            ranks is the mean over the scenes of all ranks.
    """
    per_scene = values.flatten(1).mean(dim=1)
    return torch.where(valid, per_scene, 0.0).sum() / (valid.sum().clamp(min=1) if count is None else count)


def step_discounts(num_steps: int, discount: float, device: torch.device) -> Tensor:
    """``discount ** (K - 1 - k)`` of the steps k = 0 (the noisiest) to K - 1: [K] float32."""
    return discount ** torch.arange(num_steps - 1, -1, -1, device=device, dtype=torch.float32)


def policy_loss(
    log_prob: Tensor,
    advantages: Tensor,
    valid: Tensor,
    *,
    discount: float,
    old_log_prob: Tensor | None = None,
    ratio_clip: float | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """The policy gradient's loss: ``-log_prob * advantage * discount^(K - 1 - k)``.

    With ``old_log_prob`` it is GRPO's ``-min(ratio * advantage, clip(ratio) * advantage) * discount^(K - 1 - k)`` with
    ``ratio = exp(log_prob - old_log_prob)`` of each denoising step. As log-probabilities are means over a step's 24
    coordinates, so is the ratio's logarithm; where both are equal the gradient is that of the plain loss.

    Args:
        log_prob: [B, G, K], mean over a step's coordinates, with gradients.
        advantages: [B, G].
        valid: [B] bool.
        discount: per denoising step.
        old_log_prob: [B, G, K], of the policy that drew the chains.
        ratio_clip: the ratio is clipped to 1 +- this; needed with ``old_log_prob``.
        count: as in :func:`scene_mean`.

    Raises:
        ValueError: if one of ``old_log_prob`` and ``ratio_clip`` is given without the other.
    """
    if (old_log_prob is None) != (ratio_clip is None):
        raise ValueError("policy_loss takes old_log_prob and ratio_clip together or neither")
    weights = advantages[..., None] * step_discounts(log_prob.shape[-1], discount, log_prob.device)
    if old_log_prob is None or ratio_clip is None:
        return -scene_mean(log_prob * weights, valid, count)
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    return -scene_mean(torch.minimum(ratio * weights, clipped * weights), valid, count)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two Gaussians with the same standard deviation, per coordinate, in nats.

    The schedule alone decides a denoising step's standard deviation, so it is the same for every planner.

    Args:
        mean: [..., horizon, 3].
        reference_mean: [..., horizon, 3].
        std: broadcasting.
    """
    return 0.5 * ((mean - reference_mean) / std) ** 2
