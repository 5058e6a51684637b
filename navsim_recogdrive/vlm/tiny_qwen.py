"""Qwen2.5-VL and Qwen3-VL at a tiny size: configuration and random weights as published repositories have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from navsim_recogdrive.vlm.tiny_weights import HEAD_SIZE, Draws, Named

VISION_HEADS = 4
VISION_LAYERS = 2
VISION_UNIT = 4 * VISION_HEADS
"""A head of the vision tower rotates by height and by width, each in pairs."""

MERGE = 2
FRAMES = 2

_TOKEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}


def _text(hidden_size: int, num_layers: int, vocabulary_size: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": hidden_size // HEAD_SIZE,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": hidden_size // HEAD_SIZE // 2,
        "rms_norm_eps": 1e-06,
        "vocab_size": vocabulary_size,
    }


def _vision(width: int, hidden_size: int, patch_size: int) -> dict[str, Any]:
    return {
        "depth": VISION_LAYERS,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_heads": VISION_HEADS,
        "out_hidden_size": hidden_size,
        "patch_size": patch_size,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
    }


def qwen2_5_vl_config(
    hidden_size: int, num_layers: int, vision_hidden_size: int, vocabulary_size: int
) -> dict[str, Any]:
    """``config.json`` of Qwen2.5-VL, the language model's keys beside the vision tower's section."""
    return {
        **_text(hidden_size, num_layers, vocabulary_size),
        **_TOKEN_IDS,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "max_position_embeddings": 128000,
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            **_vision(vision_hidden_size, hidden_size, 14),
            "fullatt_block_indexes": [VISION_LAYERS - 1],
            "hidden_act": "silu",
            "in_chans": 3,
            "model_type": "qwen2_5_vl",
            "window_size": 112,
        },
    }


def qwen2_5_vl_weights(config: dict[str, Any], seed: int) -> Named:
    """Yield the tensors of Qwen2.5-VL under their hub names."""
    draws = Draws(seed)
    vision = config["vision_config"]
    width, inner, side = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    inputs = 3 * FRAMES * side**2
    yield "visual.patch_embed.proj.weight", draws.normal(width, 3, FRAMES, side, side, std=2.0 * inputs**-0.5)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        yield from draws.norm(f"{block}.norm1", width, bias=False)
        yield from draws.linear(f"{block}.attn.qkv", 3 * width, width, bias=True)
        yield from draws.linear(f"{block}.attn.proj", width, width, bias=True)
        yield from draws.norm(f"{block}.norm2", width, bias=False)
        yield from draws.linear(f"{block}.mlp.gate_proj", inner, width, bias=True)
        yield from draws.linear(f"{block}.mlp.up_proj", inner, width, bias=True)
        yield from draws.linear(f"{block}.mlp.down_proj", width, inner, bias=True)
    merged, size = width * MERGE**2, config["hidden_size"]
    yield from draws.norm("visual.merger.ln_q", width, bias=False)
    yield from draws.linear("visual.merger.mlp.0", merged, merged, bias=True)
    yield from draws.linear("visual.merger.mlp.2", size, merged, bias=True, gain=2.0)

    yield "model.embed_tokens.weight", draws.normal(config["vocab_size"], size)
    yield from draws.decoder("model", layers=config["num_hidden_layers"], size=size, inner=config["intermediate_size"])
    yield from draws.linear("lm_head", config["vocab_size"], size, bias=False)


def qwen3_vl_config(hidden_size: int, num_layers: int, vision_hidden_size: int, vocabulary_size: int) -> dict[str, Any]:
    """``config.json`` of Qwen3-VL."""
    return {
        **_TOKEN_IDS,
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            **_text(hidden_size, num_layers, vocabulary_size),
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": HEAD_SIZE,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            **_vision(vision_hidden_size, hidden_size, 16),
            "deepstack_visual_indexes": [0],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "model_type": "qwen3_vl",
            "num_position_embeddings": 2304,
        },
    }


def qwen3_vl_weights(config: dict[str, Any], seed: int) -> Named:
    """Yield the tensors of Qwen3-VL under their hub names; the embedding matrix is the language modelling head too."""
    draws = Draws(seed)
    vision, text = config["vision_config"], config["text_config"]
    width, inner, side = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    inputs = 3 * FRAMES * side**2
    yield "model.visual.patch_embed.proj.weight", draws.normal(width, 3, FRAMES, side, side, std=2.0 * inputs**-0.5)
    yield "model.visual.patch_embed.proj.bias", draws.normal(width, std=0.1)
    yield "model.visual.pos_embed.weight", draws.normal(vision["num_position_embeddings"], width, std=0.3)
    for index in range(vision["depth"]):
        block = f"model.visual.blocks.{index}"
        yield from draws.norm(f"{block}.norm1", width, bias=True)
        yield from draws.linear(f"{block}.attn.qkv", 3 * width, width, bias=True)
        yield from draws.linear(f"{block}.attn.proj", width, width, bias=True)
        yield from draws.norm(f"{block}.norm2", width, bias=True)
        yield from draws.linear(f"{block}.mlp.linear_fc1", inner, width, bias=True)
        yield from draws.linear(f"{block}.mlp.linear_fc2", width, inner, bias=True)
    merged, size = width * MERGE**2, text["hidden_size"]
    deeper = [f"deepstack_merger_list.{index}" for index in range(len(vision["deepstack_visual_indexes"]))]
    for name in ("merger", *deeper):
        merger = f"model.visual.{name}"
        yield from draws.norm(f"{merger}.norm", width if name == "merger" else merged, bias=True)
        yield from draws.linear(f"{merger}.linear_fc1", merged, merged, bias=True)
        yield from draws.linear(f"{merger}.linear_fc2", size, merged, bias=True, gain=2.0)

    yield "model.language_model.embed_tokens.weight", draws.normal(text["vocab_size"], size)
    yield from draws.decoder(
        "model.language_model",
        layers=text["num_hidden_layers"],
        size=size,
        inner=text["intermediate_size"],
        attention_bias=False,
        head_norms=True,
    )


CONFIGS: dict[str, Callable[[int, int, int, int], dict[str, Any]]] = {
    "qwen2_5_vl": qwen2_5_vl_config,
    "qwen3_vl": qwen3_vl_config,
}
WEIGHTS: dict[str, Callable[[dict[str, Any], int], Named]] = {
    "qwen2_5_vl": qwen2_5_vl_weights,
    "qwen3_vl": qwen3_vl_weights,
}
