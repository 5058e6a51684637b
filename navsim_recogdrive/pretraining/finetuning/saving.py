"""Writes a fine-tuned VLM as a whole checkpoint folder: weights, configuration, tokenizer, prompt profile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from navsim_recogdrive.pretraining.finetuning.layouts import LazyTensor, config_of, stored_names
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, SINGLE_FILE, read_json
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.prompts import PROFILE_FILE, PromptProfile
from navsim_recogdrive.vlm.tiny_checkpoint import write_json

SHARD_BYTES = 4_000_000_000

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
_MODEL_TYPES = {"hub": "internvl_chat", "native": "internvl"}


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes checkpoints of one model.

    Attributes:
        base: folder of the checkpoint that was fine-tuned; its tokenizer files are copied, and its ``config.json``
            where the layout stays the same.
        architecture: of the model.
        image_token_id: id of the token in place of an image's rows.
        profile: prompt profile that is saved with the weights.
        layout: ``native`` or ``hub``.
    """

    base: Path
    architecture: InternVLArchitecture
    image_token_id: int
    profile: PromptProfile
    layout: str

    def write(self, folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Write a whole checkpoint.

        Args:
            folder: is made; files of an earlier checkpoint in it are replaced.
            state: of ``InternVLForConditionalGeneration``, without adapters.
            dtype: weights are stored in.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob("model*.safetensors"), folder / INDEX_FILE):
            old.unlink(missing_ok=True)
        tied = self.architecture.tied_head and "lm_head.weight" in state and _same_weight(state)
        for name in _TOKENIZER_FILES:
            if (self.base / name).is_file():
                shutil.copyfile(self.base / name, folder / name)
        (folder / PROFILE_FILE).write_text(self.profile.to_json(), encoding="utf-8")
        write_json(folder / "config.json", self._config(dtype))
        _write_shards(folder, stored_names(state, self.layout, dtype, tied=tied))

    def _config(self, dtype: torch.dtype) -> dict[str, object]:
        base = read_json(self.base / "config.json")
        if base.get("model_type") == _MODEL_TYPES[self.layout]:
            return _with_dtype(base, str(dtype).removeprefix("torch."))
        return config_of(self.architecture, self.layout, self.image_token_id, dtype)


def _same_weight(state: Mapping[str, Tensor]) -> bool:
    return torch.equal(state["lm_head.weight"], state["model.language_model.embed_tokens.weight"])


def _with_dtype(config: dict[str, object], dtype: str) -> dict[str, object]:
    """A configuration whose sections say what the weights are stored in."""
    changed: dict[str, object] = {}
    for name, value in config.items():
        if name in ("dtype", "torch_dtype") and isinstance(value, str):
            changed[name] = dtype
        elif isinstance(value, dict):
            changed[name] = _with_dtype(value, dtype)
        else:
            changed[name] = value
    return changed


def _write_shards(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.bytes
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {name: tensor.make() for name, tensor in shard.items()}
        partial = folder / f".{file}"
        save_file(made, partial, metadata={"format": "pt"})
        partial.replace(folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) > 1:
        total = sum(tensor.bytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
