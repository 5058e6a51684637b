"""Stochastic depth (arXiv 1603.09382) for transformers' InternVL vision tower, which has none of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """Leave a residual branch ``[N, ...]`` out for a random share ``rate`` of its N samples; scale the others up."""
    keep = torch.rand((len(branch), *[1] * (branch.ndim - 1)), device=branch.device) >= rate
    return branch * (keep.to(branch.dtype) / (1 - rate))


def add_drop_path(vision_tower: Any, rate: float) -> None:
    """Let each layer's attention and feed-forward branch drop out for single tiles, in training mode only.

    Rates rise linearly over the layers from 0 to ``rate``. A branch's layer scale only multiplies it, so dropping the
    branch before it is the same as behind it.

    Args:
        vision_tower: transformers' ``InternVLVisionModel``; changed in place.
        rate: of the last layer, of at least 0 and below 1.
    """
    layers = vision_tower.encoder.layer
    for index, layer in enumerate(layers):
        own = rate * index / max(1, len(layers) - 1)
        if own > 0:
            layer.attention.register_forward_hook(_Dropping(own))
            layer.mlp.register_forward_hook(_Dropping(own))


class _Dropping:
    """Forward hook of a residual branch; attention returns its weights beside the branch."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return None
        if isinstance(output, tuple):
            return (drop_path(output[0], self._rate), *output[1:])
        return drop_path(output, self._rate)
