"""A planner checkpoint that does not say how its VLM was run, beside ``planner_checkpoint``, which does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def silent_checkpoint(planner_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same planner in a file like the published ones, which says nothing of its VLM."""
    path = tmp_path_factory.mktemp("planner") / "published.ckpt"
    torch.save({"state_dict": torch.load(planner_checkpoint, weights_only=True)["state_dict"]}, path)
    return path
