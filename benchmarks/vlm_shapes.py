"""Sizes of InternVL models for ``benchmarks/vlm.py``, with random weights, and what their arithmetic costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.vlm.attention import kernel_name
from navsim_recogdrive.vlm.internvl import InternVL, blueprint
from navsim_recogdrive.vlm.internvl_config import read_hub_internvl


@dataclass(frozen=True)
class Shape:
    """One model: the vision tower (width, layers, heads, mlp) and the language model (the same, key/value heads)."""

    vision: tuple[int, int, int, int]
    text: tuple[int, int, int, int, int]
    vocabulary: int = 151674

    def config(self) -> dict[str, Any]:
        """As the hub's ``config.json``."""
        width, layers, heads, inner = self.vision
        size, depth, query_heads, shared_heads, mlp = self.text
        return {
            "downsample_ratio": 0.5,
            "force_image_size": 448,
            "model_type": "internvl_chat",
            "ps_version": "v2",
            "select_layer": -1,
            "use_thumbnail": True,
            "vision_config": {
                "model_type": "intern_vit_6b",
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": inner,
                "image_size": 448,
                "patch_size": 14,
                "qkv_bias": True,
                "qk_normalization": False,
                "norm_type": "layer_norm",
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
            },
            "llm_config": {
                "model_type": "qwen2",
                "hidden_size": size,
                "num_hidden_layers": depth,
                "num_attention_heads": query_heads,
                "num_key_value_heads": shared_heads,
                "intermediate_size": mlp,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 32768,
                "rope_theta": 1e6,
                "vocab_size": self.vocabulary,
            },
        }

    def vision_flops(self, tiles: int) -> float:
        """Vision tower and projector over ``tiles`` tiles of 1025 tokens."""
        width, layers, _, inner = self.vision
        tokens, size = 1025, self.text[0]
        per_layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * width * tokens**2
        patches = 2 * 1024 * 3 * 14**2 * width
        projector = 2 * 256 * (4 * width * size + size**2)
        return tiles * (layers * per_layer + patches + projector)

    def language_flops(self, tokens: int, prefix: int = 0) -> float:
        """Language model over ``tokens`` tokens, the first ``prefix`` of which are not computed; causal attention."""
        size, depth, query_heads, shared_heads, mlp = self.text
        shared = size // query_heads * shared_heads
        linear = 2 * size**2 + 2 * size * shared + 3 * size * mlp
        pairs = (tokens * (tokens + 1) - prefix * (prefix + 1)) / 2
        return depth * (2 * linear * (tokens - prefix) + 4 * size * pairs)

    def head_flops(self, tokens: int) -> float:
        """Language modelling head over ``tokens`` rows."""
        return 2.0 * tokens * self.text[0] * self.vocabulary


SHAPES = {
    "tiny": Shape((64, 2, 4, 128), (64, 2, 4, 2, 128)),
    "mid": Shape((384, 6, 6, 1536), (512, 8, 8, 2, 2048)),
    "2b": Shape((1024, 24, 16, 4096), (1536, 28, 12, 2, 8960)),
    "8b": Shape((1024, 24, 16, 4096), (3584, 28, 28, 4, 18944)),
}


def random_internvl(
    shape: Shape, image_token_id: int, dtype: torch.dtype, device: str, attention: str, with_head: bool = False
) -> InternVL:
    """An InternVL with random weights, made on its device instead of loaded."""
    architecture = read_hub_internvl(Path("config.json"), shape.config())
    plan = blueprint(architecture, (), image_token_id, with_head)
    with torch.device(device):
        model = plan.kind._from_config(plan.config, attn_implementation=kernel_name(attention), dtype=dtype)
    return InternVL(architecture, model.requires_grad_(False).eval())
