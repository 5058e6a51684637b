"""NAVSIM v2.x's splits of two stages, and its challenge, through the scripts: cached, scored, reported, submitted."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scripts_on_world import Scripts
from tiny_sizes import TINY_AGENT, TINY_HIDDEN_SIZE, TINY_PLANNER
from two_stage_world import CHALLENGE, SPLIT, TwoStageSplit, write_two_stages

from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.normalization import normalize_trajectory
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.report.__main__ import main as report
from navsim_recogdrive.report.runs import read_scores

pytestmark = pytest.mark.navsim

OURS = TINY_AGENT[1:]
TOTALS = {f"extended_pdm_score_{name.replace(' ', '_')}": name for name in ("combined", "stage one", "stage two")}
"""NAVSIM's rows, in the order of our table, and what the report calls them."""


@pytest.fixture
def split(imported_navsim_world: Path, tmp_path: Path) -> TwoStageSplit:
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    if NAVSIM_MAJOR < 2:
        pytest.skip("NAVSIM v1.x has no second stage")
    return write_two_stages(imported_navsim_world, tmp_path / "openscene")


@pytest.fixture
def cruising(planner_checkpoint: Path, tmp_path: Path) -> Path:
    """A planner that goes on straight at the ego's speed, within a metre or two: its plans are worth scoring."""
    checkpoint = torch.load(planner_checkpoint, weights_only=True)
    prefix = "agent.action_head."
    torch.manual_seed(0)
    planner = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    planner.load_state_dict({key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items()})
    optimizer = torch.optim.Adam([one for one in planner.parameters() if one.requires_grad], fused=True)
    steps, scenes, draws = 200, 32, 4
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
    for _ in range(steps):
        speed = 14 * torch.rand(scenes, 1)
        past, ahead = torch.zeros(scenes, 4, 3), torch.zeros(scenes, draws, 8, 3)
        past[..., 0] = speed * torch.arange(-1.5, 0.5, 0.5)
        ahead[..., 0] = (speed * torch.arange(0.5, 4.5, 0.5)).unsqueeze(1)
        command = torch.eye(4)[torch.randint(4, (scenes,))]
        status = torch.cat([command, speed, 0.3 * torch.randn(scenes, 3)], dim=1)
        condition = planner.condition(torch.randn(scenes, 2, TINY_HIDDEN_SIZE), past, status)
        levels = planner.method.draw_levels((scenes, draws), ahead.device, None)
        noise = torch.randn_like(ahead)
        example = planner.method.training_example(normalize_trajectory(ahead), noise, levels)
        prediction = planner.predict(condition, example.noisy_actions, example.timesteps)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(prediction, example.target).backward()
        optimizer.step()
        schedule.step()
    path = tmp_path / "cruising.ckpt"
    weights = {f"{prefix}{key}": value for key, value in planner.state_dict().items()}
    torch.save({**checkpoint, "state_dict": weights}, path)
    return path


def test_from_caches_to_the_challenge(
    split: TwoStageSplit,
    tiny_vlm: Path,
    cruising: Path,
    make_agent: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripts = Scripts(split.root, tiny_vlm, tmp_path)
    scripts.environment |= {"SPLIT": SPLIT, "WORKER": "sequential", "CHECKPOINT": str(cruising)}
    scenes = split.first | split.second
    assert (len(split.first), len(split.second)) == (4, 6)

    scripts.run("cache_dataset/run_metric_caching.sh", *split.scored)
    metrics = (scripts.experiments / f"metric_cache_{SPLIT}").rglob("metric_cache.pkl")
    assert {path.parent.name for path in metrics} == scenes
    scripts.run("cache_dataset/run_caching_recogdrive_hidden_state_eval.sh", *OURS, *split.scored)
    cache = scripts.experiments / f"recogdrive_2b_hidden_state_{SPLIT}"
    assert {path.parent.name for path in cache.rglob("recogdrive_hidden_state.gz")} == scenes

    evaluation = "evaluation/run_recogdrive_agent_pdm_score_evaluation_2b.sh"
    printed = scripts.run(evaluation, *OURS, *split.scored, VLM_PATH="", CACHE_PATH=str(cache))
    (scores,) = (scripts.experiments / f"evaluation_recogdrive_2b_{SPLIT}").rglob("*.csv")
    table = pd.read_csv(scores).set_index("token")
    totals = _check_scores(split, table)
    assert [float(word) for word in printed.split()[-4:]] == [10, *(round(total, 4) for total in totals)]
    _check_report(scores, tmp_path / "report.html", capsys)

    credit = {"TEAM_NAME": "T", "AUTHORS": "A", "EMAIL": "a@b.c", "INSTITUTION": "I", "COUNTRY": "CH"}
    submission = "submission/run_recogdrive_create_submission_pickle_2b.sh"
    printed = scripts.run(submission, *OURS, *split.tokens, SPLIT=CHALLENGE, **credit)
    assert printed.splitlines()[-1].startswith("valid: 0 errors")
    (pickled,) = (scripts.experiments / f"submission_recogdrive_2b_{CHALLENGE}").rglob("submission.pkl")
    cached = make_agent(checkpoint_path=str(cruising), hidden_state_cache=str(cache))
    plans = _check_plans(split, pickle.loads(pickled.read_bytes()), cached)
    _check_progress(table, {token: plans[token] for token in split.second}, scripts.experiments)


def _check_scores(split: TwoStageSplit, table: pd.DataFrame) -> list[float]:
    """Every scene is scored in its own stage; returns NAVSIM's totals, in the order of our table."""
    assert set(table.index) == split.first | split.second | set(TOTALS)
    assert table["valid"].astype(bool).all()
    assert table["score"].between(0, 1).all()
    assert len(set(table.loc[sorted(split.second), "score"].round(6))) > 2, "no two scenes are the same"
    for tokens, own, other in ((split.first, "_stage_one", "_stage_two"), (split.second, "_stage_two", "_stage_one")):
        scenes = table.loc[sorted(tokens)]
        assert scenes.filter(like=own).notna().all(axis=None)
        assert scenes.filter(like=other).isna().all(axis=None)
    combined, first, second = (float(table.loc[total, "score"]) for total in TOTALS)
    assert first == pytest.approx(table.loc[sorted(split.first), "score"].mean()), "no scene of it has weights"
    groups = [table.loc[list(tokens), "score"] for _, _, pairs in split.mapping for tokens in zip(*pairs, strict=True)]
    low, high = np.mean([[group.min(), group.max()] for group in groups], axis=0)
    assert 0.1 < low <= second <= high, "of a weighted mean of each group"
    assert 0.1 < combined < min(first, second)
    return [combined, first, second]


def _check_report(scores: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, run = pd.read_csv(scores).set_index("token"), read_scores(scores, "ours")
    assert run.stage is not None
    assert run.stage.tolist() == table["drivable_area_compliance_stage_one"].isna()[: len(run.tokens)].tolist()
    assert {name: run.summary[name]["score"] for name in TOTALS.values()} == {
        name: table.loc[total, "score"] for total, name in TOTALS.items()
    }
    capsys.readouterr()
    assert report([f"ours={scores}", "--output", str(page)]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [row[1].strip() for row in rows if row[0] == "ours"] == [
        *("stage one", "stage two"),
        *(f"{name} (NAVSIM)" for name in ("stage one", "stage two", "combined")),
    ]
    assert page.is_file()


def _check_plans(split: TwoStageSplit, submission: dict[str, Any], agent: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The challenge has the scenes that were scored, in files of another form: its plans are those from the cache.

    Returns the latter, [8, 3] by token.
    """
    from navsim.common.dataclasses import SceneFilter
    from navsim.common.dataloader import SceneLoader

    stages = [submission[f"{stage}_stage_predictions"][0] for stage in ("first", "second")]
    assert [set(stage) for stage in stages] == [split.first, split.second]
    chosen = SceneFilter(
        num_future_frames=8, frame_interval=1, tokens=sorted(split.first), include_synthetic_scenes=True
    )
    loader = SceneLoader(
        split.root / "navsim_logs" / "test",
        split.root / "sensor_blobs" / "test",
        chosen,
        synthetic_sensor_path=split.root / SPLIT / "sensor_blobs",
        synthetic_scenes_path=split.root / SPLIT / "synthetic_scene_pickles",
        sensor_config=agent.get_sensor_config(),
    )
    agent.initialize()
    plans = {}
    for token, trajectory in {**stages[0], **stages[1]}.items():
        assert np.isfinite(trajectory.poses).all()
        plans[token] = agent.compute_trajectory(loader.get_agent_input_from_token(token)).poses
        # The cache's bf16 moves a plan by 0.0001, the hidden state of another scene by more than 0.01.
        np.testing.assert_allclose(plans[token], trajectory.poses, atol=0.002, err_msg=token)
    return plans


def _check_progress(table: pd.DataFrame, plans: dict[str, np.ndarray[Any, Any]], experiments: Path) -> None:
    """Each second-stage scene was scored by its own plan: those of the others go elsewhere."""
    from navsim_recogdrive.agents.log_scene import score_plans

    tokens = list(plans)
    for index, token in enumerate(tokens):
        progress = score_plans(experiments / f"metric_cache_{SPLIT}", token, np.stack([*plans.values()]))[
            "ego_progress"
        ]
        ours = progress[index]
        assert table.loc[token, "ego_progress_stage_two"] == pytest.approx(ours, abs=1e-4), token
        assert max(abs(other - ours) for other in progress) > 0.05, token
