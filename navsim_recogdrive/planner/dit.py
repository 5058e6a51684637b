"""The diffusion transformer: adaLN blocks that alternate self-attention and cross-attention (arXiv 2506.08052).

Attribute names (``transformer_blocks``, ``adaLN_modulation``, ``w12``, ``modulation_proj``, ...) are those of the
published checkpoints.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import CrossAttention, RMSNorm, RotaryEmbedder, SelfAttention
from .configuration import PlannerConfig
from .encoders import TimestepEncoder


class Modulations(NamedTuple):
    """What adaLN reads: one tensor per block ``[..., 1, 6 * size]`` and one for the final layer ``[..., 1, 2 * size]``.

    The leading axes broadcast against a hidden state's ``[B, ..., horizon, size]``.
    """

    blocks: tuple[Tensor, ...]
    final: Tensor

    def at_step(self, step: int) -> Modulations:
        """Those of one denoising step, where axis 1 counts the steps; the axis stays, with length 1."""
        return Modulations(tuple(m[:, step : step + 1] for m in self.blocks), self.final[:, step : step + 1])


class Modulation(nn.Sequential):
    """``Linear(SiLU(c))`` to a number of chunks, zero at the start (adaLN-Zero: every block begins as the identity)."""

    def __init__(self, size: int, chunks: int) -> None:
        linear = nn.Linear(size, chunks * size)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.SiLU(), linear)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift``, broadcasting."""
    return x * (1 + scale) + shift


class FeedForward(nn.Module):
    """SwiGLU: ``w3(SiLU(x1) * x2)`` with ``x1, x2 = w12(x)``; the hidden width equals the embedding size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(size, 2 * size)
        self.w3 = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., size]``."""
        gate, up = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One DiT block: attention and feed-forward, each shifted, scaled and gated by the conditioning vector."""

    attn: SelfAttention | CrossAttention

    def __init__(self, num_heads: int, head_dim: int, cross: bool) -> None:
        super().__init__()
        size = num_heads * head_dim
        self.norm1 = RMSNorm(size)
        self.attn = CrossAttention(num_heads, head_dim) if cross else SelfAttention(num_heads, head_dim)
        self.norm2 = RMSNorm(size)
        self.ffn = FeedForward(size)
        self.adaLN_modulation = Modulation(size, 6)

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: RotaryEmbedder, keys_and_values: tuple[Tensor, ...]
    ) -> Tensor:
        """Advance the hidden state by one block.

        Args:
            x: ``[B, ..., horizon, size]``.
            modulation: ``[B, ..., 1, 6 * size]``, broadcasting.
            rotary: the position embedding of poses.
            keys_and_values: a scene's, each ``[B, heads, S, head_dim]``, or empty in a self-attention block.

        Returns:
            ``[B, ..., horizon, size]``.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=-1)
        x = x + gate_a * self.attn(modulate(self.norm1(x), shift_a, scale_a), rotary, *keys_and_values)
        return x + gate_f * self.ffn(modulate(self.norm2(x), shift_f, scale_f))


class FinalLayer(nn.Module):
    """Modulated RMSNorm and a linear map to the output size."""

    def __init__(self, size: int, output_size: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(size)
        self.linear = nn.Linear(size, output_size)
        self.modulation_proj = Modulation(size, 2)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``[B, ..., horizon, size]`` and ``[B, ..., 1, 2 * size]`` to ``[B, ..., horizon, output_size]``."""
        shift, scale = modulation.chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm_final(x), shift, scale))
        return out


class DiT(nn.Module):
    """The planner's transformer. Even blocks attend among poses, odd blocks to the scene's hidden states."""

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        heads, head_dim, size = config.num_heads, config.head_dim, config.embedding_size
        self.timestep_encoder = TimestepEncoder(size)
        self.rotary_embedder = RotaryEmbedder(head_dim, config.horizon)
        self.transformer_blocks = nn.ModuleList(
            Block(heads, head_dim, cross=bool(index % 2)) for index in range(config.num_layers)
        )
        self.final_layer = FinalLayer(size, config.output_size)

    def blocks(self) -> list[Block]:
        """The blocks, in order."""
        return [block for block in self.transformer_blocks if isinstance(block, Block)]

    def keys_and_values(self, projected: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of every cross-attention block: ``[B, S, size]`` to pairs of ``[B, heads, S, head_dim]``."""
        return tuple(
            block.attn.keys_and_values(projected) for block in self.blocks() if isinstance(block.attn, CrossAttention)
        )

    def modulations(self, ego_status: Tensor, timesteps: Tensor) -> Modulations:
        """The adaLN modulations of all blocks, for as many timesteps as wanted, in one pass over the weights.

        Args:
            ego_status: ``[B, size]`` ego-status embedding.
            timesteps: ``[1 or B, ...]`` denoising timesteps.

        Returns:
            :class:`Modulations` with leading axes ``[B, ...]``.
        """
        time = self.timestep_encoder(timesteps)
        conditioning = time + ego_status.reshape(len(ego_status), *[1] * (timesteps.ndim - 1), -1)
        conditioning = conditioning.unsqueeze(-2)
        return Modulations(
            tuple(block.adaLN_modulation(conditioning) for block in self.blocks()),
            self.final_layer.modulation_proj(conditioning),
        )

    def forward(
        self,
        x: Tensor,
        modulations: Modulations,
        keys_and_values: tuple[tuple[Tensor, Tensor], ...],
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: ``[B, ..., horizon, size]`` fused input.
            modulations: from :meth:`modulations`.
            keys_and_values: from :meth:`keys_and_values`.
            recompute: where gradients are recorded, keep only the blocks' inputs and run every block a second time in
                the backward pass: about a tenth of the memory per sample, the same numbers.

        Returns:
            ``[B, ..., horizon, output_size]``.
        """
        for index, block in enumerate(self.transformer_blocks):
            scene = keys_and_values[index // 2] if index % 2 else ()
            arguments = x, modulations.blocks[index], self.rotary_embedder, scene
            if recompute and torch.is_grad_enabled():
                # Blocks draw nothing at random, so there is no generator's state to save.
                x = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(*arguments)
        out: Tensor = self.final_layer(x, modulations.final)
        return out
