"""Random weights that behave like a trained model's: activations of order one, attention that picks a few rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

HEAD_SIZE = 16

Named = Iterator[tuple[str, Tensor]]
"""Tensors under the names of their layout."""


class Draws:
    """Random bfloat16 tensors of one seed.

    Matrices have the standard deviation 1 / sqrt(inputs), which keeps activations at order one, but for queries and
    keys, which are larger: attention then picks a few of some thousand rows, as in a trained model, where an average
    over all of them would wash out what differs between two images.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        """Normally distributed numbers."""
        return (torch.randn(shape, generator=self._generator) * std + mean).to(torch.bfloat16)

    def linear(self, name: str, outputs: int, inputs: int, *, bias: bool, gain: float = 1.0) -> Named:
        """A linear layer."""
        yield f"{name}.weight", self.normal(outputs, inputs, std=gain * inputs**-0.5)
        if bias:
            yield f"{name}.bias", self.normal(outputs, std=0.1)

    def norm(self, name: str, size: int, *, bias: bool, mean: float = 1.0) -> Named:
        """A normalisation's scale and shift."""
        yield f"{name}.weight", self.normal(size, std=0.1, mean=mean)
        if bias:
            yield f"{name}.bias", self.normal(size, std=0.1)

    def decoder(
        self, name: str, *, layers: int, size: int, inner: int, attention_bias: bool = True, head_norms: bool = False
    ) -> Named:
        """The layers of a Qwen language model: ``bias`` for Qwen2's queries, keys and values, norms for Qwen3's."""
        shared = size // 2  # half as many heads for keys and values
        gain = 1.0 if head_norms else 2.0
        for index in range(layers):
            layer = f"{name}.layers.{index}"
            yield from self.norm(f"{layer}.input_layernorm", size, bias=False)
            yield from self.linear(f"{layer}.self_attn.q_proj", size, size, bias=attention_bias, gain=gain)
            yield from self.linear(f"{layer}.self_attn.k_proj", shared, size, bias=attention_bias, gain=gain)
            yield from self.linear(f"{layer}.self_attn.v_proj", shared, size, bias=attention_bias)
            yield from self.linear(f"{layer}.self_attn.o_proj", size, size, bias=False, gain=2.0)
            if head_norms:
                yield from self.norm(f"{layer}.self_attn.q_norm", HEAD_SIZE, bias=False, mean=2.0)
                yield from self.norm(f"{layer}.self_attn.k_norm", HEAD_SIZE, bias=False, mean=2.0)
            yield from self.norm(f"{layer}.post_attention_layernorm", size, bias=False)
            yield from self.linear(f"{layer}.mlp.gate_proj", inner, size, bias=False)
            yield from self.linear(f"{layer}.mlp.up_proj", inner, size, bias=False)
            yield from self.linear(f"{layer}.mlp.down_proj", size, inner, bias=False)
        yield from self.norm(f"{name}.norm", size, bias=False)
