"""The golden InternVL checkpoint run through the backbone, and checkpoints rewritten for the tests of loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vlm_golden import DATA

from navsim_recogdrive.vlm import internvl
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.backbone import Backbone, VLMInputs
from navsim_recogdrive.vlm.identity import VLMIdentity
from navsim_recogdrive.vlm.loading import load_family
from navsim_recogdrive.vlm.preparation import ScenePreparation

FOLDER = DATA / "tiny_internvl_chat"
GOLDEN = np.load(FOLDER / "golden.npz")
TOKEN_IDS = GOLDEN["input_ids"][0]
IMAGE_TOKEN_ID = int(GOLDEN["image_token_id"])
_IDS = {"<IMG_CONTEXT>": IMAGE_TOKEN_ID, "<|endoftext|>": int(GOLDEN["pad_token_id"])}


def load(folder: Path, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", with_head: bool = False) -> Any:
    return load_family(
        folder,
        read_architecture(folder),
        image_token_id=IMAGE_TOKEN_ID,
        with_head=with_head,
        dtype=dtype,
        device=torch.device("cpu"),
        attention=attention,
    )


class GoldenTokens:
    """Tokenizer and prompt profile of the golden prompt, which is a list of ids without a text."""

    def convert_tokens_to_ids(self, token: str) -> int:
        return _IDS[token]

    def encode(self, token: str, *, add_special_tokens: bool) -> list[int]:
        return [_IDS[token]]

    def prefix_ids(self, tokenizer: Any, image_tokens: Any) -> list[int]:
        return TOKEN_IDS[: int((TOKEN_IDS == IMAGE_TOKEN_ID).argmax())].tolist()


def hidden_states(family: Any, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Padded hidden states ``[64, 64]`` of the golden prompt and its nine tiles.

    The golden pixels are random numbers that no byte gives, so they stand in for the normalised tiles.
    """
    pixels = torch.from_numpy(GOLDEN["pixel_values"])
    monkeypatch.setattr(internvl, "normalize_tiles", lambda tiles: pixels)
    length = len(GOLDEN["padded_input_ids"][0])
    tokens: Any = GoldenTokens()
    preparation = ScenePreparation(
        family.architecture, tokens, tokens, cameras=("front",), max_tiles=12, hidden_length=length
    )
    backbone = Backbone(family, preparation, VLMIdentity(hidden_size=64, hidden_length=length, fingerprint=""))
    tiles = np.zeros((len(pixels), 56, 56, 3), dtype=np.uint8)
    return backbone.hidden_states([VLMInputs(tiles, TOKEN_IDS)])[0]


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a single-file checkpoint in place."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the tensors of a single-file checkpoint other names."""
    weights = load_file(folder / "model.safetensors")
    save_file({rename(name): weight for name, weight in weights.items()}, folder / "model.safetensors")


def edit(folder: Path, key: str, value: Any) -> Path:
    """Set a dotted key of ``config.json``, or delete it with ``None``."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part]
    if value is None:
        del section[name]
    else:
        section[name] = value
    path.write_text(json.dumps(config))
    return folder
