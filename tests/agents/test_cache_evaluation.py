"""Scoring and submission from a cache of hidden states, without the VLM, through NAVSIM's unmodified runners."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from runners import EVERY_FRAME, Runners
from tiny_sizes import TINY_AGENT, TINY_PLANNER

from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner

pytestmark = pytest.mark.navsim

# In bf16, the default: only then does the lossless cache hold what the VLM would compute.
AGENT = [*(setting for setting in TINY_AGENT if not setting.startswith("agent.vlm.dtype")), "agent.vlm.dtype=bfloat16"]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path_factory.mktemp("planner") / "last.ckpt"
    torch.save({"state_dict": {f"agent.action_head.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def cache(runners: Runners) -> Path:
    folder = runners.experiments / "evaluation_cache"
    overrides = ["train_test_split=test", EVERY_FRAME, "worker=sequential", "experiment_name=caching_for_evaluation"]
    runners.run("run_dataset_caching.py", *AGENT, *overrides, f"cache_path={folder}")
    return folder


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Of the scenes, without the average, whose last bit depends on the order of the scenes."""
    scenes = table[~table["token"].astype(str).str.startswith("average")]
    return scenes.select_dtypes(["number"]).set_index(scenes["token"]).filter(regex="^(?!Unnamed)").sort_index()


def test_scores_and_submission_equal_those_of_the_vlm(
    runners: Runners,
    cache: Path,
    planner: Path,
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    tmp_path: Path,
) -> None:
    runners.cache_metrics()
    ours = [*AGENT, f"agent.checkpoint_path={planner}"]
    moved = shutil.copytree(cache, tmp_path / "moved cache")

    expected = scores(runners.score(ours, "with_vlm"))
    cached = [*ours, "agent.vlm.path=null", f"agent.hidden_state_cache='{moved}'"]
    found = scores(runners.score(cached, "from_cache"))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert f"hidden-state cache {moved}: {len(expected)} hits, 0 misses" in runners.output

    agent = make_agent(checkpoint_path=str(planner), vlm={"dtype": "bfloat16"})
    agent.initialize()
    loader = scene_loader("test", agent.get_sensor_config())
    submitted = runners.submit(cached, "submit_from_cache")
    assert set(submitted) == set(expected.index)
    for token, trajectory in submitted.items():
        plan = agent.compute_trajectory(loader.get_agent_input_from_token(token))
        assert np.array_equal(trajectory.poses, plan.poses)


def test_a_cache_of_another_split_stops_at_the_first_scene(runners: Runners, cache: Path, planner: Path) -> None:
    other = shutil.copytree(cache, cache.with_name("other_split"))
    shutil.rmtree(min(path for path in other.iterdir() if path.name != "_recogdrive"))
    runners.cache_metrics()
    script = "run_pdm_score_one_stage.py" if runners.major >= 2 else "run_pdm_score.py"
    overrides = [
        *AGENT,
        f"agent.checkpoint_path={planner}",
        f"agent.hidden_state_cache={other}",
        "train_test_split=test",
        EVERY_FRAME,
        "worker=sequential",
        f"metric_cache_path={runners.experiments / 'metric_cache'}",
    ]
    output = runners.run(script, *overrides, "experiment_name=missing", expect_failure=True)
    assert f"the hidden-state cache {other} " in output
    assert "does not hold this scene" in output
    output = runners.run(script, *overrides, "experiment_name=computed", "agent.hidden_state_cache_miss=vlm")
    assert "misses" in output
    assert " 0 misses" not in output


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_file_stops_scoring(runners: Runners, cache: Path, planner: Path, tmp_path: Path) -> None:
    """Swallowed scene by scene it would raise v1.1's mean. The reason crosses from a Ray worker to the user."""
    damaged = shutil.copytree(cache, tmp_path / "damaged")
    for file in damaged.glob("*/*/recogdrive_hidden_state.gz"):
        flip_a_bit(file)
    runners.cache_metrics()
    script = "run_pdm_score_one_stage.py" if runners.major >= 2 else "run_pdm_score.py"
    output = runners.run(
        script,
        *AGENT,
        f"agent.checkpoint_path={planner}",
        f"agent.hidden_state_cache={damaged}",
        "train_test_split=test",
        EVERY_FRAME,
        *("worker=ray_distributed_no_torch", "worker.threads_per_node=1"),
        f"metric_cache_path={runners.experiments / 'metric_cache'}",
        "experiment_name=damaged",
        expect_failure=True,
    )
    output = output[output.rindex("Traceback") :]
    assert "EvaluationStopped" in output
    assert f"the cache file {damaged}" in output
    assert "navsim_recogdrive.cache repair" in output
