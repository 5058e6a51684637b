"""The language model over several prompts that begin alike: shared prefix, one batch, no head.

Every prompt of a profile starts with the same tokens (291 in the published one). A causal model's rows for them are the
same for every scene, so a frozen model computes their keys and values once, and every batch continues from them, of
hidden states and of text. Training runs whole prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """What a language model keeps of the tokens that all prompts begin with.

    Attributes:
        rows: ``[P, D]`` last hidden states, after the final norm.
        keys_and_values: for each layer two ``[1, H, P, d]``.
    """

    rows: Tensor
    keys_and_values: tuple[tuple[Tensor, Tensor], ...]


class GrowingCache(DynamicCache):
    """A prefix as transformers' key/value cache of ``batch`` prompts, which generation adds to; a copy of its own."""

    def __init__(self, prefix: Prefix, batch: int) -> None:
        # Each layer joins what it is given into tensors of its own, so nothing is ever written to the prefix.
        super().__init__(
            [
                (keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1))
                for keys, values in prefix.keys_and_values
            ]
        )


class _Continued(GrowingCache):
    """The same for a single pass; what is added is handed on and not kept."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer: Any = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], dim=-2), torch.cat([layer.values, value_states], dim=-2)


def compute_prefix(language_model: Any, token_ids: Tensor) -> Prefix:
    """Run the common first tokens ``[P]`` once."""
    cache = DynamicCache()
    output = language_model(input_ids=token_ids[None], past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    return Prefix(output.last_hidden_state[0], tuple((layer.keys, layer.values) for layer in layers))


def continue_prefix(
    language_model: Any,
    prefix: Prefix | None,
    embeddings: Tensor,
    positions: Tensor,
    **deepstack: Any,
) -> Tensor:
    """Last hidden states ``[B, S, D]`` of prompts, after the final norm.

    No mask is needed where prompts of a batch differ in length: they are filled up at the end, and a causal model's
    rows do not see what follows them.

    Args:
        language_model: transformers' decoder.
        prefix: what comes before; ``None`` where the embeddings hold whole prompts.
        embeddings: ``[B, S, D]`` of the tokens behind the prefix.
        positions: ``[B, S]`` or ``[3, B, S]`` rotary positions of these tokens.
        deepstack: Qwen3-VL's ``visual_pos_masks`` and ``deepstack_visual_embeds``.
    """
    cache = None if prefix is None else _Continued(prefix, len(embeddings))
    output = language_model(
        inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=False, **deepstack
    )
    return output.last_hidden_state


def padding_row(language_model: Any, pad_token_id: int) -> Tensor:
    """The hidden state of every left-padded row, ``[D]``: one constant vector per checkpoint.

    The published pipeline pads to a fixed length and its planners average over the padding. With flash attention a
    padded row attends to nothing, so its attention output is zero and only the feed-forward path acts on the
    embedding of the pad token. Computed that way here, because what other kernels return for rows that attend to
    nothing depends on kernel and version.
    """
    hidden = language_model.embed_tokens.weight[pad_token_id][None, None]
    for layer in language_model.layers:
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return language_model.norm(hidden)[0, 0]
