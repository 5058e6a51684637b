"""The way back from transformers' InternVL to checkpoint files: names, fused tensors and ``config.json``.

The inverse of :mod:`navsim_recogdrive.vlm.internvl`, for both layouts: the hub's InternVLChat, as InternVL3 and
ReCogDrive-VLM are published, and transformers' own, as the repositories named ``...-hf`` are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture

_TO_HUB = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^model\.multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^model\.multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"^model\.vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^model\.vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (
        r"^model\.vision_tower\.embeddings\.patch_embeddings\.projection\.",
        "vision_model.embeddings.patch_embedding.",
    ),
    (r"^model\.vision_tower\.encoder\.layer\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.lambda_([12])$", r"\1.ls\2"),
    (r"^(vision_model\.encoder\.layers\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.attention\.projection_layer\.", r"\1.attn.proj."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.attention\.", r"\1.attn."),
)
_TO_NATIVE = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.", ""),
)
_QUERY = re.compile(r"(.*\.attn\.)q_proj\.(weight|bias)")


def hub_name(name: str) -> str:
    """A parameter of ``InternVLForConditionalGeneration`` in the hub's layout; queries, keys, values not yet fused."""
    return _renamed(name, _TO_HUB)


def native_name(name: str) -> str:
    """A parameter of ``InternVLForConditionalGeneration`` as published ``...-hf`` repositories store it."""
    return _renamed(name, _TO_NATIVE)


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file, made when it is written: casting a whole model at once would hold it in memory twice.

    Attributes:
        parts: what it is concatenated of, along the first dimension.
        dtype: it is stored in.
    """

    parts: tuple[Tensor, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return sum(part.numel() for part in self.parts) * self.dtype.itemsize

    def make(self) -> Tensor:
        """The tensor, on the CPU."""
        # Copied, for what FSDP gathers may still be on its way.
        parts = [part.detach().to("cpu", self.dtype, copy=True) for part in self.parts]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).contiguous()


def stored_names(state: Mapping[str, Tensor], layout: str, dtype: torch.dtype, *, tied: bool) -> dict[str, LazyTensor]:
    """A model's state dict as a layout stores it.

    Args:
        state: of ``InternVLForConditionalGeneration``, without adapters.
        layout: ``native`` or ``hub``.
        dtype: of the files.
        tied: the head is the embedding matrix and is left out.
    """
    rename: Callable[[str], str] = hub_name if layout == "hub" else native_name
    named = {rename(name): weight for name, weight in state.items() if not (tied and name == "lm_head.weight")}
    stored: dict[str, LazyTensor] = {}
    for name, weight in named.items():
        if layout == "hub" and (query := _QUERY.fullmatch(name)):
            fused = tuple(named[f"{query[1]}{part}_proj.{query[2]}"] for part in "qkv")
            stored[f"{query[1]}qkv.{query[2]}"] = LazyTensor(fused, dtype)
        elif not (layout == "hub" and re.search(r"\.attn\.[kv]_proj\.", name)):
            stored[name] = LazyTensor((weight,), dtype)
    return stored


def config_of(
    architecture: InternVLArchitecture, layout: str, image_token_id: int, dtype: torch.dtype
) -> dict[str, Any]:
    """``config.json`` of a layout, for a model that came in the other one.

    Args:
        architecture: of the model.
        layout: ``native`` or ``hub``.
        image_token_id: id of the token in place of an image's rows.
        dtype: of the files.
    """
    name = str(dtype).removeprefix("torch.")
    return _hub_config(architecture, name) if layout == "hub" else _native_config(architecture, image_token_id, name)


def _text(architecture: InternVLArchitecture, dtype: str) -> dict[str, Any]:
    """The language model's section; both layouts use transformers' names."""
    text = {key: value for key, value in architecture.text.items() if key != "rope_parameters"}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **text,
        "rope_theta": architecture.text["rope_parameters"]["rope_theta"],
        "tie_word_embeddings": architecture.tied_head,
        "torch_dtype": dtype,
    }


def _native_config(architecture: InternVLArchitecture, image_token_id: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": architecture.downsample_ratio,
        "image_seq_length": architecture.image_tokens_per_tile,
        "image_token_id": image_token_id,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": _text(architecture, dtype),
        "tie_word_embeddings": architecture.tied_head,
        "torch_dtype": dtype,
        "vision_config": {
            "model_type": "internvl_vision",
            **architecture.vision,
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def _hub_config(architecture: InternVLArchitecture, dtype: str) -> dict[str, Any]:
    vision = dict(architecture.vision)
    renamed = {
        "qkv_bias": vision.pop("attention_bias"),
        "qk_normalization": vision.pop("use_qk_norm"),
        "initializer_factor": vision.pop("layer_scale_init_value", 1.0),
        "dropout": vision.pop("projection_dropout", 0.0),
    }
    vision.pop("hidden_dropout_prob", None)
    image_size, patch_size = vision.pop("image_size")[0], vision.pop("patch_size")[0]
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": architecture.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": architecture.tile_size,
        "llm_config": _text(architecture, dtype),
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": architecture.tied_head,
        "torch_dtype": dtype,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": architecture.thumbnail,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            **vision,
            **renamed,
            "image_size": image_size,
            "patch_size": patch_size,
            "torch_dtype": dtype,
        },
    }
