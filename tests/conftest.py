"""Fixtures shared by all rooms: the tiny VLM checkpoint, a world of seconds, and whether NAVSIM is here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_HIDDEN_SIZE, TINY_PLANNER, TINY_TILE

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
def planner_checkpoint(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As training leaves it: a planner that looks at its condition, and what VLM it was trained with."""
    import torch

    from navsim_recogdrive.planner.configuration import PlannerConfig
    from navsim_recogdrive.planner.planner import DiffusionPlanner
    from navsim_recogdrive.policy.backbones import SharedBackbone
    from navsim_recogdrive.policy.configuration import VLMConfig

    torch.manual_seed(0)
    planner = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    for parameter in planner.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    vlm = VLMConfig(path=str(tiny_vlm), dtype="float32", hidden_length=TINY_HIDDEN_LENGTH)
    path = tmp_path_factory.mktemp("planner") / "last.ckpt"
    torch.save(
        {
            "state_dict": {f"agent.action_head.{key}": value for key, value in planner.state_dict().items()},
            "navsim_recogdrive": {"vlm": SharedBackbone(vlm, "cpu").identity().to_dict()},
        },
        path,
    )
    return path


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
