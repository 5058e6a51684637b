"""Attention of the DiT: among the poses of one trajectory, and from poses to the VLM's hidden states.

Both kinds share their parameters' names (``to_q``, ``to_k``, ``to_v``, ``q_norm``, ``k_norm``, ``to_out.0``), which are
those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schedules import Float32Buffers


class RMSNorm(nn.Module):
    """``x * rsqrt(mean(x^2) + 1e-6) * weight`` over the last axis, the normalisation in float32.

    The result has the dtype of ``x``: under autocast a float32 weight would otherwise promote a scene's keys to float32
    and double their memory.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., size]``, same dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class RotaryEmbedder(Float32Buffers):
    """Rotary position embedding (theta 10000, rotate-half) of a trajectory's pose indices.

    ``inv_freq`` is stored in a checkpoint, the tables are not.
    """

    inv_freq: Tensor
    cos_cached: Tensor
    sin_cached: Tensor

    def __init__(self, head_dim: int, horizon: int) -> None:
        super().__init__()
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
        angles = torch.outer(torch.arange(horizon, dtype=torch.float32), inv_freq).repeat(1, 2)
        self.register_buffer("inv_freq", inv_freq)
        self.register_buffer("cos_cached", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin_cached", angles.sin()[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate ``[..., horizon, heads, head_dim]`` by each pose's index; same shape and dtype."""
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return x * self.cos_cached.to(x.dtype) + rotated * self.sin_cached.to(x.dtype)


class Attention(nn.Module):
    """Parameters of one attention layer: projections with bias, an RMSNorm per head on queries and keys."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        size = num_heads * head_dim
        self.heads = (num_heads, head_dim)
        self.to_q = nn.Linear(size, size)
        self.to_k = nn.Linear(size, size)
        self.to_v = nn.Linear(size, size)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.to_out = nn.ModuleList([nn.Linear(size, size)])

    def query(self, x: Tensor, rotary: RotaryEmbedder) -> Tensor:
        """``[..., horizon, size]`` to normalised, rotated queries ``[..., horizon, heads, head_dim]``."""
        rotated: Tensor = rotary(self.q_norm(self.to_q(x).unflatten(-1, self.heads)))
        return rotated


class SelfAttention(Attention):
    """Attention among the poses of one trajectory; trajectories do not see each other."""

    def forward(self, x: Tensor, rotary: RotaryEmbedder) -> Tensor:
        """``[..., horizon, size]`` to ``[..., horizon, size]``."""
        query = self.query(x, rotary)
        key = rotary(self.k_norm(self.to_k(x).unflatten(-1, self.heads)))
        value = self.to_v(x).unflatten(-1, self.heads)
        query, key, value = (t.flatten(0, -4).transpose(1, 2) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](attended.transpose(1, 2).reshape(x.shape))
        return out


class CrossAttention(Attention):
    """Attention from poses to a scene's hidden states, whose keys and values come ready from the condition."""

    def keys_and_values(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a scene, computed once.

        Keys carry no rotary embedding: positions are those of poses, not of hidden states.

        Args:
            projected: ``[B, S, size]`` hidden states after the feature encoder.

        Returns:
            keys and values, each ``[B, heads, S, head_dim]``.
        """
        key = self.k_norm(self.to_k(projected).unflatten(-1, self.heads))
        value = self.to_v(projected).unflatten(-1, self.heads)
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(self, x: Tensor, rotary: RotaryEmbedder, key: Tensor, value: Tensor) -> Tensor:
        """Attend from every pose of every sample of a scene.

        Queries of all samples are folded along the query axis, so one ``[B, heads, S, head_dim]`` serves any number of
        samples without being repeated.

        Args:
            x: ``[B, ..., horizon, size]``.
            rotary: the position embedding of poses.
            key: ``[B, heads, S, head_dim]``.
            value: ``[B, heads, S, head_dim]``.

        Returns:
            ``[B, ..., horizon, size]``.
        """
        query = self.query(x, rotary).flatten(1, -3).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.to_out[0](attended.transpose(1, 2).reshape(x.shape))
        return out
