"""A VLM that is wired by hand to answer with what its prompt ends with: generation with a known result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from navsim_recogdrive.vlm.prompts import PromptProfile
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

WIDTH = 16
"""Features that carry a token's code; the other 16 carry the code of the token that is to be written next."""


def write_copying_vlm(folder: Path, answer: str, tile_size: int) -> tuple[Path, Path]:
    """A checkpoint that answers every prompt with ``answer``, and the prompt profile that it needs.

    The profile's prompts end with the answer, its end token and the start of the assistant's turn. The only attention
    head that does anything looks a fixed number of tokens back, by rotary position alone, and the output head names the
    token that it finds there.

    Returns:
        The checkpoint's folder, and the profile's path.
    """
    write_tiny_checkpoint(folder, hidden_size=2 * WIDTH, num_layers=1, tile_size=tile_size)
    tokenizer = load_qwen2_tokenizer(folder)
    profile = folder.parent / f"{folder.name}_profile.json"
    content = {
        "before_image": "<|im_start|>user\n",
        "question_head": "",
        "before_command": " ",
        "after_command": f" {answer}<|im_end|>\n<|im_start|>assistant\n",
        "history_item": "({x}, {y}, {heading})",
        "history_steps": [3, 2, 1, 0],
        "history_join": " ",
        "number": {"format": "%+.2f", "decimals": 2, "zero": "0.0", "zero_limit": 0.01},
        "commands": ["LEFT", "STRAIGHT", "RIGHT", "UNKNOWN"],
    }
    profile.write_text(json.dumps(content))
    PromptProfile.load(profile)
    copied = tokenizer.encode(content["after_command"], add_special_tokens=False)
    path = folder / "model.safetensors"
    weights = load_file(path)
    _wire(weights, sorted(set(copied)), len(copied) - 1)
    save_file(weights, path, metadata={"format": "pt"})
    return folder, profile


def _wire(weights: dict[str, torch.Tensor], token_ids: list[int], distance: int) -> None:
    """Write the code of the token ``distance`` back into the second half of the hidden state, and read it out."""
    for name, weight in weights.items():
        if name.startswith("language_model."):
            weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    codes = torch.randn(len(token_ids), WIDTH, generator=torch.Generator().manual_seed(0)).sign()
    assert len({tuple(code) for code in codes.tolist()}) == len(token_ids)
    weights["language_model.model.embed_tokens.weight"][token_ids, :WIDTH] = codes.bfloat16()
    weights["language_model.lm_head.weight"][token_ids, WIDTH:] = codes.bfloat16()
    attention = "language_model.model.layers.0.self_attn"
    angles = torch.tensor([distance * 1e6 ** (-2 * index / WIDTH) for index in range(WIDTH // 2)], dtype=torch.float64)
    query = torch.cat([angles.cos(), -angles.sin()])
    key = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    weights[f"{attention}.q_proj.bias"][:WIDTH] = (40 * query).bfloat16()
    weights[f"{attention}.k_proj.bias"].copy_(40 * key)
    weights[f"{attention}.v_proj.weight"][:, :WIDTH] = torch.eye(WIDTH).bfloat16()
    weights[f"{attention}.o_proj.weight"][WIDTH:, :WIDTH] = torch.eye(WIDTH).bfloat16()


ANSWER_POSES = np.array([[0.5 * k + 0.02 * k**2, 0.03 * k**2, 0.05 * k] for k in range(1, 9)]).round(2)
"""A plan: pulling away, slightly to the left."""


def answer_text(poses: np.ndarray = ANSWER_POSES) -> str:
    """As the published profile writes it."""
    written = ", ".join("({:+.2f}, {:+.2f}, {:+.2f})".format(*pose) for pose in poses)
    return f"Here is the planning trajectory [PT, {written}]."
