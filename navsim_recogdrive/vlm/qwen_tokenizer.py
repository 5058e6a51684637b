"""Loads a checkpoint's tokenizer by its own class, never through classes that could run the checkpoint's code."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2Tokenizer

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError

_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


def load_qwen2_tokenizer(directory: Path) -> Qwen2Tokenizer:
    """Load the Qwen2 tokenizer of a checkpoint directory.

    Raises:
        VLMCheckpointError: if the tokenizer's files are absent or damaged.
    """
    found = [name for name in _FILES if (directory / name).is_file()]
    if "tokenizer.json" not in found and not {"vocab.json", "merges.txt"} <= set(found):
        raise VLMCheckpointError(
            f"{directory} has no tokenizer: looked for tokenizer.json, or vocab.json and merges.txt; found "
            f"{found or 'none of them'}. Download the checkpoint's tokenizer files into the same directory"
        )
    try:
        return Qwen2Tokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for damaged files
        raise VLMCheckpointError(f"{directory}: the tokenizer files {found} cannot be read: {error}") from error
