"""The small files of a checkpoint beside weights and ``config.json``: tokenizer, image processor, generation.

This package reads the tokenizer alone. The others let transformers' own ``AutoProcessor`` and ``generate`` use a saved
model, in the native layout; the hub's layout has its code for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.finetuning.conversations import TURN_END
from navsim_recogdrive.vlm.checkpoint_files import read_json
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.preparation import PAD_TOKEN
from navsim_recogdrive.vlm.prompts import added_token_id
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiling import IMAGENET_MEAN, IMAGENET_STD

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
_GENERATION_FILE = "generation_config.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<|video_pad|>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def companion_files(base: Path, architecture: InternVLArchitecture, layout: str, max_tiles: int) -> dict[str, bytes]:
    """Names and contents of these files for a model that was fine-tuned from another.

    Args:
        base: folder of that model; what it has is kept, as far as it is of the same layout.
        architecture: of both.
        layout: ``native`` or ``hub``.
        max_tiles: most tiles of an image, for the image processor.
    """
    files = _copied(base, (*_TOKENIZER_FILES, _GENERATION_FILE))
    if read_json(base / "config.json").get("model_type") == "internvl":
        if layout == "native":
            files |= _copied(base, _PROCESSOR_FILES)
    elif layout == "native":
        # The hub's template knows no images: its code puts them into the text.
        files["chat_template.jinja"] = _CHAT_TEMPLATE.encode()
        files.pop("chat_template.json", None)
    if layout == "native":
        written = {name: _as_json(content) for name, content in _processors(architecture, max_tiles).items()}
        files = {**written, **files}
        files["tokenizer_config.json"] = _as_json(_tokenizer_config(base, architecture))
        if _GENERATION_FILE not in files:
            tokenizer = load_qwen2_tokenizer(base)
            ends = {"eos_token_id": TURN_END, "pad_token_id": PAD_TOKEN}
            files[_GENERATION_FILE] = _as_json({key: added_token_id(tokenizer, token) for key, token in ends.items()})
    return files


def _copied(base: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (base / name).read_bytes() for name in names if (base / name).is_file()}


def _tokenizer_config(base: Path, architecture: InternVLArchitecture) -> dict[str, Any]:
    """The tokenizer's configuration with the names by which transformers' InternVL processor asks for its tokens."""
    path, tokens = base / "tokenizer_config.json", architecture.image_tokens
    config = read_json(path) if path.is_file() else {"tokenizer_class": "Qwen2Tokenizer"}
    names = {
        "start_image_token": tokens.start,
        "end_image_token": tokens.end,
        "context_image_token": tokens.context,
        # A token of its own would be one more than the model's vocabulary has.
        "video_token": "<|video_pad|>",
    }
    known = set(config)
    for section in ("extra_special_tokens", "model_specific_special_tokens"):
        names_there = config.get(section)
        if isinstance(names_there, dict):  # else a list of tokens without names
            known |= names_there.keys()
    config |= {name: token for name, token in names.items() if name not in known}
    config["processor_class"] = "InternVLProcessor"
    if read_json(base / "config.json").get("model_type") != "internvl":
        config.pop("chat_template", None)  # lies beside it, in a file
    return config


def _processors(architecture: InternVLArchitecture, max_tiles: int) -> dict[str, dict[str, Any]]:
    """What transformers' InternVL processor reads, from the architecture."""
    processor = {"processor_class": "InternVLProcessor"}
    side = {"height": architecture.tile_size, "width": architecture.tile_size}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": side,
        **processor,
    }
    tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": max_tiles}
    return {
        "processor_config.json": {"image_seq_length": architecture.image_tokens_per_tile, **processor},
        "preprocessor_config.json": {"image_processor_type": "GotOcr2ImageProcessor", **tiles, **pixels},
        "video_preprocessor_config.json": {"video_processor_type": "InternVLVideoProcessor", **pixels},
    }


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
