"""Shared by the tests of the vision-language backbone: a tiny checkpoint and a golden one that may be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden_internvl import FOLDER, edit

from navsim_recogdrive.vlm import load_backbone, write_tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("vlm") / "tiny", tile_size=112)


@pytest.fixture(scope="session")
def backbone(checkpoint):
    return load_backbone(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(backbone):
    return backbone.tokenizer


@pytest.fixture
def golden_checkpoint(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint (no tokenizer) that a test may damage."""
    folder = tmp_path / "internvl_chat"
    shutil.copytree(FOLDER, folder)
    return folder


@pytest.fixture
def edit_config(golden_checkpoint: Path) -> Callable[..., Path]:
    """Change ``config.json`` of the golden checkpoint: ``edit_config("llm_config.model_type", "llama")``."""

    return lambda key, value: edit(golden_checkpoint, key, value)
