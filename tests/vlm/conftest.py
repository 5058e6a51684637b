"""Shared by the tests of the vision-language backbone: a tiny checkpoint and a golden one that may be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vlm_golden import DATA, HIDDEN_LENGTH

from navsim_recogdrive.vlm import load_backbone, write_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("vlm") / "tiny", tile_size=112)


@pytest.fixture(scope="session")
def backbone(checkpoint):
    return load_backbone(checkpoint, hidden_length=HIDDEN_LENGTH)


@pytest.fixture(scope="session")
def tokenizer(backbone):
    return backbone.tokenizer


@pytest.fixture
def golden_checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint (no tokenizer) that a test may damage."""
    folder = tmp_path / "internvl_chat"
    shutil.copytree(DATA / "tiny_internvl_chat", folder)
    return folder


@pytest.fixture
def edit_config(golden_checkpoint: Path) -> Callable[..., Path]:
    """Change ``config.json`` of the golden checkpoint: ``edit_config("llm_config.model_type", "llama")``."""

    def edit(key: str, value: Any) -> Path:
        path = golden_checkpoint / "config.json"
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
        return golden_checkpoint

    return edit
