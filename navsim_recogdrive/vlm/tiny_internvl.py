"""InternVL at a tiny size: configuration and random weights in the hub's layout and in transformers' own."""

from __future__ import annotations

from typing import Any

from navsim_recogdrive.vlm.internvl import native_names
from navsim_recogdrive.vlm.tiny_weights import HEAD_SIZE, Draws, Named

PATCH_SIZE = 14
VISION_HEADS = 4
VISION_LAYERS = 2
IMAGE_TOKEN_ID = 151667

_SHARED_VISION = (
    *("attention_dropout", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "norm_type"),
    *("num_attention_heads", "num_channels", "num_hidden_layers", "torch_dtype"),
)


def hub_config(
    hidden_size: int, num_layers: int, vision_hidden_size: int, tile_size: int, vocabulary_size: int
) -> dict[str, Any]:
    """``config.json`` of the hub's InternVLChat layout."""
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": tile_size,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "max_position_embeddings": 32768,
            "model_type": "qwen2",
            "num_attention_heads": hidden_size // HEAD_SIZE,
            "num_hidden_layers": num_layers,
            "num_key_value_heads": hidden_size // HEAD_SIZE // 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary_size,
        },
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": vision_hidden_size,
            "image_size": tile_size,
            "initializer_factor": 1.0,
            "intermediate_size": 2 * vision_hidden_size,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": VISION_HEADS,
            "num_channels": 3,
            "num_hidden_layers": VISION_LAYERS,
            "patch_size": PATCH_SIZE,
            "qk_normalization": False,
            "qkv_bias": True,
            "torch_dtype": "bfloat16",
        },
    }


def hub_weights(config: dict[str, Any], seed: int) -> Named:
    """Yield the tensors under their hub names."""
    draws = Draws(seed)
    vision, text = config["vision_config"], config["llm_config"]
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // PATCH_SIZE) ** 2
    yield "vision_model.embeddings.class_embedding", draws.normal(1, 1, width)
    yield "vision_model.embeddings.position_embedding", draws.normal(1, patches + 1, width, std=0.3)
    yield "vision_model.embeddings.patch_embedding.bias", draws.normal(width, std=0.1)
    patch = 3 * PATCH_SIZE**2
    yield (
        "vision_model.embeddings.patch_embedding.weight",
        draws.normal(width, 3, PATCH_SIZE, PATCH_SIZE, std=2.0 * patch**-0.5),
    )
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{index}"
        yield from draws.norm(f"{layer}.norm1", width, bias=True)
        yield from draws.linear(f"{layer}.attn.qkv", 3 * width, width, bias=True)
        yield from draws.linear(f"{layer}.attn.proj", width, width, bias=True)
        yield from draws.norm(f"{layer}.norm2", width, bias=True)
        yield from draws.linear(f"{layer}.mlp.fc1", inner, width, bias=True)
        yield from draws.linear(f"{layer}.mlp.fc2", width, inner, bias=True)
        yield f"{layer}.ls1", draws.normal(width, std=0.1, mean=vision["initializer_factor"])
        yield f"{layer}.ls2", draws.normal(width, std=0.1, mean=vision["initializer_factor"])

    size, inner = text["hidden_size"], text["intermediate_size"]
    yield from draws.norm("mlp1.0", 4 * width, bias=True)
    yield from draws.linear("mlp1.1", size, 4 * width, bias=True)
    yield from draws.linear("mlp1.3", size, size, bias=True, gain=2.0)

    yield "language_model.model.embed_tokens.weight", draws.normal(text["vocab_size"], size)
    yield from draws.decoder("language_model.model", layers=text["num_hidden_layers"], size=size, inner=inner)
    yield from draws.linear("language_model.lm_head", text["vocab_size"], size, bias=False)


def native_config(config: dict[str, Any]) -> dict[str, Any]:
    """A hub configuration as transformers' own layout has it."""
    vision = dict(config["vision_config"])
    tile_size, ratio = config["force_image_size"], config["downsample_ratio"]
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": ratio,
        "image_seq_length": int(tile_size // PATCH_SIZE * ratio) ** 2,
        "image_token_id": IMAGE_TOKEN_ID,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": config["llm_config"],
        "torch_dtype": "bfloat16",
        "vision_config": {
            **{name: vision[name] for name in _SHARED_VISION},
            "attention_bias": vision["qkv_bias"],
            "hidden_dropout_prob": 0.0,
            "image_size": [tile_size, tile_size],
            "layer_scale_init_value": vision["initializer_factor"],
            "model_type": "internvl_vision",
            "patch_size": [PATCH_SIZE, PATCH_SIZE],
            "projection_dropout": vision["dropout"],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": vision["qk_normalization"],
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def native_weights(weights: Named) -> Named:
    """The same tensors under the names of published repositories in transformers' own layout."""
    for stored, weight in weights:
        if stored.startswith("language_model."):  # named alike in both
            yield stored, weight
            continue
        names = native_names(stored)
        for name, part in zip(names, weight.chunk(len(names)), strict=True):
            yield name, part.contiguous()
