"""Small encoders round the DiT: history, ego status, noisy actions, and the decoder of its output."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """``fc2(LayerNorm(GELU(fc1(x))))``: the history and ego-status encoders and the action decoder."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.fc2 = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., input_size]`` to ``[..., output_size]``."""
        out: Tensor = self.fc2(self.norm(F.gelu(self.fc1(x))))
        return out


class ActionEncoder(nn.Module):
    """Embeds a noisy pose together with its denoising timestep: ``fc3(SiLU(fc2([fc1(x), e(t)])))``."""

    def __init__(self, action_size: int, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(action_size, size)
        self.fc2 = nn.Linear(2 * size, size)
        self.fc3 = nn.Linear(size, size)

    def encode_timesteps(self, timesteps: Tensor) -> Tensor:
        """``e(t) = [sin, cos](t * 10000^(-i / half))``, i < half = size / 2: ``[...]`` to ``[..., size]`` float32."""
        half = self.fc1.out_features // 2
        angles = _angles(timesteps, half, half)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(self, actions: Tensor, encoded_timesteps: Tensor) -> Tensor:
        """``[..., horizon, action_size]`` and :meth:`encode_timesteps` ``[..., size]`` to ``[..., horizon, size]``."""
        x = self.fc1(actions)
        time = encoded_timesteps.to(x.dtype).unsqueeze(-2).expand_as(x)
        out: Tensor = self.fc3(F.silu(self.fc2(torch.cat([x, time], dim=-1))))
        return out


class TimestepEmbedder(nn.Module):
    """The two linear layers of the timestep embedding, under the names the checkpoints store them by."""

    FREQUENCIES = 128

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * self.FREQUENCIES, size)
        self.linear_2 = nn.Linear(size, size)

    def forward(self, features: Tensor) -> Tensor:
        """``[..., 256]`` to ``[..., size]``."""
        out: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return out


class TimestepEncoder(nn.Module):
    """Sinusoidal features of a denoising timestep, then :class:`TimestepEmbedder`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(size)

    def features(self, timesteps: Tensor) -> Tensor:
        """``[cos, sin](t * 10000^(-i / 127))``, i < 128: ``[...]`` to ``[..., 256]`` float32."""
        count = TimestepEmbedder.FREQUENCIES
        angles = _angles(timesteps, count, count - 1)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps ``[...]`` to their embedding ``[..., size]``, in the parameters' dtype."""
        out: Tensor = self.timestep_embedder(self.features(timesteps).to(self.timestep_embedder.linear_1.weight.dtype))
        return out


def _angles(timesteps: Tensor, count: int, denominator: int) -> Tensor:
    # In float32: bfloat16 cannot tell timestep 999 from 1000.
    index = torch.arange(count, dtype=torch.float32, device=timesteps.device)
    return timesteps.float().unsqueeze(-1) * torch.exp(index * (-math.log(10000.0) / denominator))
