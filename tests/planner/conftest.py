"""The tiny golden planner and its scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from navsim_recogdrive.planner import Condition, DiffusionPlanner, PlannerConfig

DATA = Path(__file__).parents[1] / "data" / "planner"
TINY = {"num_heads": 2, "head_dim": 8, "num_layers": 4, "output_size": 32, "mlp_hidden_size": 32}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(DATA / f"{name}.safetensors")


@pytest.fixture(scope="session")
def tiny_planner(golden: Callable[[str], dict[str, Tensor]]) -> Callable[..., DiffusionPlanner]:
    def build(method: str = "ddim", weights: str = "planner_tiny") -> DiffusionPlanner:
        planner = DiffusionPlanner(PlannerConfig(**TINY, method=method))
        state = golden("planner_tiny") | golden(weights)
        planner.load_state_dict({key: state[key] for key in planner.state_dict()})
        return planner

    return build


@pytest.fixture(scope="session")
def scenes(golden: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Arguments of ``planner.condition`` for three scenes."""
    inputs = golden("tiny_inputs")
    return {
        "hidden_states": inputs["vl_features"],
        "past_poses": inputs["his_traj"].view(3, 4, 3),
        "ego_status": inputs["status_feature"],
    }


@pytest.fixture(scope="session")
def conditioned(
    tiny_planner: Callable[..., DiffusionPlanner], scenes: dict[str, Tensor]
) -> Callable[..., tuple[DiffusionPlanner, Condition]]:
    def build(method: str = "ddim", weights: str = "planner_tiny") -> tuple[DiffusionPlanner, Condition]:
        planner = tiny_planner(method, weights)
        with torch.no_grad():
            return planner, planner.condition(**scenes)

    return build


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
