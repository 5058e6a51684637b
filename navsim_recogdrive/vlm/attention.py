"""Attention of a prompt behind a key/value prefix, on torch's fused kernels.

Queries that start behind cached keys need a causal mask aligned to the lower right. transformers would write it out as
a matrix, which keeps torch's flash kernel from being used; the kernel itself knows that alignment.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from navsim_recogdrive.vlm.architecture import ATTENTION_KERNELS

_SDPA = "sdpa_behind_prefix"

# Every layer asks for the same one, and torch allocates memory of a mask's size for each.
_lower_right = lru_cache(maxsize=1)(causal_lower_right)


def kernel_name(attention: str) -> str:
    """The name under which transformers knows one of ``ATTENTION_KERNELS``.

    Raises:
        ValueError: if it is unknown, or its package is not installed.
    """
    if attention not in ATTENTION_KERNELS:
        raise ValueError(f"attention must be one of {ATTENTION_KERNELS}, found {attention!r}")
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError(
            "attention=flash_attention_2 needs the package flash-attn, which is not installed: use attention=sdpa "
            "(torch's own flash kernel) or install flash-attn"
        )
    return _SDPA if attention == "sdpa" else attention


def _mask(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask but where tokens are padded; causality is the kernel's own."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    kwargs["allow_is_causal_skip"] = False
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **kwargs)
    return mask


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Rotary positions leave queries and keys in float32 where parameters are, and a cache its values with them. The
        # kernel is chosen before autocast would act, and torch's flash kernel takes 16 bits only.
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    queries, keys = query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if attention_mask is not None or not causal or queries in (1, keys):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)
    settings: dict[str, Any] = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}
    if query.device.type == "cpu":
        # Its kernel leaves out what causality hides only for as many queries as keys: rows in front that nobody reads
        # cost half of what a written-out mask would.
        query = pad(query, (0, 0, keys - queries, 0))
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        output = scaled_dot_product_attention(query, key, value, is_causal=True, **settings)[:, :, keys - queries :]
        return output.transpose(1, 2).contiguous(), None
    # Only the flash kernel takes shared key/value heads as they are; the others would fall back to plain products.
    shared = query.is_cuda and query.dtype != torch.float32
    if not shared:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_lower_right(queries, keys),
        enable_gqa=shared and groups > 1,
        **settings,
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_SDPA, _attend)
AttentionMaskInterface.register(_SDPA, _mask)
