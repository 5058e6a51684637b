"""The cosine noise schedule and its derived tables, kept in float32 whatever the planner's parameter dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Float32Buffers(nn.Module):
    """A module whose own floating-point buffers stay float32 through ``.half()``, ``.bfloat16()`` and ``.to(dtype)``.

    In bfloat16 the last cumulative alpha of the schedule (0.99937) rounds to 1, and DDIM then divides by
    ``sqrt(1 - alpha) = 0``: one NaN and every trajectory is lost. Devices are followed as usual.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(device=after.device)
        return self


def cosine_ddpm_tables(num_train_timesteps: int) -> dict[str, Tensor]:
    """The cosine schedule (Nichol and Dhariwal 2021, equation 17) with everything DDPM reads from it.

    With T training timesteps, ``abar(u) = cos^2((u / (T+1) + 0.008) / 1.008 * pi / 2)`` is taken at T + 1 points evenly
    spaced from 0 to T + 1, the end included; ``beta_t = min(1 - abar_{t+1} / abar_t, 0.999)``.

    Args:
        num_train_timesteps: T, 100 as published.

    Returns:
        Twelve float32 tensors ``[T]`` under the names a published checkpoint stores them by, in its order.
    """
    points = num_train_timesteps + 1
    u = torch.linspace(0, points, points, dtype=torch.float64)
    curve = torch.cos((u / points + 0.008) / 1.008 * torch.pi * 0.5) ** 2
    curve = curve / curve[0]
    betas = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999)
    # Rounded here and not at the end: the published tables derive from float32 betas.
    betas = betas.float()
    alphas = 1 - betas
    cumprod = torch.cumprod(alphas, 0)
    previous = torch.cat([torch.ones(1), cumprod[:-1]])
    variance = betas * (1 - previous) / (1 - cumprod)
    return {
        "ddpm_betas": betas,
        "ddpm_alphas": alphas,
        "ddpm_alphas_cumprod": cumprod,
        "ddpm_alphas_cumprod_prev": previous,
        "ddpm_sqrt_alphas_cumprod": cumprod.sqrt(),
        "ddpm_sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
        "ddpm_sqrt_recip_alphas_cumprod": (1 / cumprod).sqrt(),
        "ddpm_sqrt_recipm1_alphas_cumprod": (1 / cumprod - 1).sqrt(),
        "ddpm_var": variance,
        "ddpm_logvar_clipped": variance.clamp(min=1e-20).log(),
        "ddpm_mu_coef1": betas * previous.sqrt() / (1 - cumprod),
        "ddpm_mu_coef2": (1 - previous) * alphas.sqrt() / (1 - cumprod),
    }


def strided_timesteps(num_train_timesteps: int, num_steps: int, device: torch.device | None = None) -> Tensor:
    """The ``[num_steps]`` int64 timesteps of a denoising run, noisiest first: 80, 60, 40, 20, 0 for 100 and 5."""
    return torch.arange(num_steps - 1, -1, -1, device=device) * (num_train_timesteps // num_steps)


def ddim_tables(alphas_cumprod: Tensor, num_steps: int) -> dict[str, Tensor]:
    """The tables a published DDIM checkpoint stores besides the schedule itself.

    Args:
        alphas_cumprod: ``[T]`` float32.
        num_steps: K denoising steps.

    Returns:
        Seven tensors ``[K]`` (two int64, five float32) in the checkpoint's order, noisiest step first. ``ddim_sigmas``
        are those of eta = 0.
    """
    timesteps = strided_timesteps(len(alphas_cumprod), num_steps, alphas_cumprod.device)
    alphas = alphas_cumprod[timesteps]
    return {
        "ddim_t_schedule": timesteps.flip(0),
        "ddim_t": timesteps,
        "ddim_alphas": alphas,
        "ddim_alphas_sqrt": alphas.sqrt(),
        "ddim_alphas_prev": torch.cat([alphas[1:], torch.ones_like(alphas[:1])]),
        "ddim_sqrt_one_minus_alphas": (1 - alphas).sqrt(),
        "ddim_sigmas": torch.zeros_like(alphas),
    }
