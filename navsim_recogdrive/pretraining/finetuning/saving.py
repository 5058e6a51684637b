"""Writes a fine-tuned VLM as a whole checkpoint folder: weights, configuration, tokenizer, prompt profile."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from navsim_recogdrive.pretraining.finetuning.layouts import LazyTensor, config_of, stored_names
from navsim_recogdrive.pretraining.finetuning.processors import companion_files
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, SINGLE_FILE, read_json
from navsim_recogdrive.vlm.identity import MAX_TILES
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.prompts import PROFILE_FILE, PromptProfile

SHARD_BYTES = 4_000_000_000

_MODEL_TYPES = {"hub": "internvl_chat", "native": "internvl"}

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries that write files themselves say of it.
_SAY_NO_SPACE = ("No space left", "quota exceeded", "File too large", "os error 28", "inline_container")


class CannotSave(RuntimeError):
    """A checkpoint that could not be written for lack of space; earlier ones are as they were."""


@contextmanager
def says_what_was_not_saved(folder: Path) -> Iterator[None]:
    """Turns a full disk into :class:`CannotSave`, whichever library notices it; other errors pass."""
    try:
        yield
    except CannotSave:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        full = error.errno in _NO_SPACE if isinstance(error, OSError) else False
        if full or any(text in str(error) for text in _SAY_NO_SPACE):
            reason = str(error).splitlines()[0]
            raise CannotSave(
                f"{folder} cannot be saved, the disk or a quota is full ({reason:.200}): make room and "
                "continue from the checkpoint before it with --resume"
            ) from error
        raise


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes checkpoints of one model.

    Attributes:
        base: folder of the checkpoint that was fine-tuned; its tokenizer and processor files are copied, and its
            ``config.json`` where the layout stays the same.
        architecture: of the model.
        image_token_id: id of the token in place of an image's rows.
        profile: prompt profile that is saved with the weights.
        layout: ``native`` or ``hub``.
        max_tiles: most tiles of an image that the model was trained with.
    """

    base: Path
    architecture: InternVLArchitecture
    image_token_id: int
    profile: PromptProfile
    layout: str
    max_tiles: int = MAX_TILES

    def write(self, folder: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Write a whole checkpoint.

        Everything is written under other names first and then put in place, the weights last; files of an earlier
        checkpoint that are not replaced are deleted after that.

        Args:
            folder: is made; files of an earlier checkpoint in it are replaced.
            state: of ``InternVLForConditionalGeneration``, without adapters.
            dtype: weights are stored in.

        Raises:
            CannotSave: if the disk is full; the folder's files are as they were.
        """
        with says_what_was_not_saved(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tied = self.architecture.tied_head and "lm_head.weight" in state and _same_weight(state)
            files = {
                **companion_files(self.base, self.architecture, self.layout, self.max_tiles),
                PROFILE_FILE: self.profile.to_json().encode(),
                "config.json": _as_json(self._config(dtype)),
            }
            new = _Replacement(folder)
            try:
                for name, content in files.items():
                    new.path(name).write_bytes(content)
                weights = _write_shards(new, stored_names(state, self.layout, dtype, tied=tied))
            except BaseException:
                new.discard()
                raise
            new.put_in_place()
            # A stale index comes first: while it is there, readers follow it.
            stale = {INDEX_FILE, *sorted(path.name for path in folder.glob("model*.safetensors"))} - weights
            for name in sorted(stale, key=lambda name: name != INDEX_FILE):
                (folder / name).unlink(missing_ok=True)

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


def _as_json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


class _Replacement:
    """Files of a folder under other names, until they are put in place in the order in which they were begun.

    Args:
        folder: where they belong.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}

    def path(self, name: str) -> Path:
        """Where to write the file that is to be called ``name``."""
        self._files[name] = self._folder / f".{name}.partial"
        return self._files[name]

    def put_in_place(self) -> None:
        """Give all files their names."""
        for name, path in self._files.items():
            path.replace(self._folder / name)

    def discard(self) -> None:
        """Delete what was written."""
        for path in self._files.values():
            path.unlink(missing_ok=True)


def _write_shards(new: _Replacement, tensors: Mapping[str, LazyTensor]) -> set[str]:
    """Write the weights, the index after them; returns the names of the files."""
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {name: tensor.make() for name, tensor in shard.items()}
        save_file(made, new.path(file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    if len(shards) == 1:
        return {SINGLE_FILE}
    total = sum(tensor.bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    new.path(INDEX_FILE).write_bytes(_as_json(index))
    return {INDEX_FILE, *weight_map.values()}
