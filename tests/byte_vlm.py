"""A tiny InternVL whose vocabulary is the 256 bytes: trained in seconds, where Qwen's vocabulary takes minutes."""

from __future__ import annotations

import json
from pathlib import Path

from navsim_recogdrive.vlm.prompts import PromptProfile
from navsim_recogdrive.vlm.tiny_checkpoint import INTERNVL_TOKENS, write_json, write_weights
from navsim_recogdrive.vlm.tiny_internvl import hub_config, hub_weights, native_config, native_weights

PROFILE = {
    "before_image": "<|im_start|>system\nPlan.<|im_end|>\n<|im_start|>user\n",
    "question_head": "\n",
    "before_command": " [",
    "after_command": "]<|im_end|>\n<|im_start|>assistant\n",
    "answer_head": "[PT, ",
    "history_item": "({x}, {y}, {heading})",
    "history_steps": [3, 2, 1, 0],
    "history_join": " ",
    "number": {"format": "%+.2f", "decimals": 2, "zero": "0.0", "zero_limit": 0.01},
    "commands": ["LEFT", "STRAIGHT", "RIGHT", "UNKNOWN"],
}
"""A short prompt: bytes are many tokens."""


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level BPE writes each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(plain)))
    return [symbols[byte] for byte in range(256)]


def write_byte_vlm(folder: Path, *, layout: str = "internvl_chat", hidden_size: int = 64, tile_size: int = 56) -> Path:
    """A checkpoint with random weights, in the hub's layout or transformers' own (``internvl_hf``)."""
    folder.mkdir(parents=True)
    ids = {token: 256 + index for index, token in enumerate(INTERNVL_TOKENS)}
    config = hub_config(hidden_size, 2, 32, tile_size, 256 + len(ids))
    weights = hub_weights(config, 0)
    if layout == "internvl_hf":
        config, weights = native_config(config), native_weights(weights)
        config["image_token_id"] = ids["<IMG_CONTEXT>"]
    write_json(folder / "config.json", config)
    write_weights(folder, dict(weights))
    (folder / "vocab.json").write_text(json.dumps({symbol: byte for byte, symbol in enumerate(_byte_symbols())}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(number): {"content": token, **flags} for token, number in ids.items()},
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )
    return folder


def write_short_profile(path: Path) -> PromptProfile:
    """:data:`PROFILE` as a file."""
    path.write_text(json.dumps(PROFILE))
    return PromptProfile.load(path)
