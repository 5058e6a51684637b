"""Fixtures shared by all rooms: the tiny VLM checkpoint, a world of seconds, and whether NAVSIM is here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sizes import TINY_HIDDEN_SIZE, TINY_TILE

# Tiny models gain nothing from more threads, and OpenMP threads that spin for a busy core cost 60 times as much.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[1]


def _why_no_navsim() -> str | None:
    try:
        if importlib.util.find_spec("navsim.agents.abstract_agent") is None:
            return "the importable 'navsim' is not the driving benchmark"
    except ModuleNotFoundError:
        return "NAVSIM is not importable (set NAVSIM_DEVKIT_ROOT, or install it from requirements/devkits.txt)"
    return None if importlib.util.find_spec("nuplan") else "nuplan-devkit is not importable"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _why_no_navsim()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("navsim"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny randomly initialised InternVLChat checkpoint, hidden size 32."""
    from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("vlm") / "tiny"
    write_tiny_checkpoint(folder, hidden_size=TINY_HIDDEN_SIZE, tile_size=TINY_TILE)
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``seconds`` preset of the synthetic world on disk."""
    root = tmp_path_factory.mktemp("world") / "openscene"
    subprocess.run(
        [sys.executable, "-m", "navsim_recogdrive.world", str(root), "--preset", "seconds"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    )
    return root
