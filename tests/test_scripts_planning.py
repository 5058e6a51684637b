"""The scripts of evaluation and submission: exact commands for both NAVSIM versions, and clear refusals."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from script_runs import overrides, run, script_environment

EVALUATION_2B, EVALUATION_8B = (
    f"evaluation/run_recogdrive_agent_pdm_score_evaluation_{size}.sh" for size in ("2b", "8b")
)
TEXT_2B, TEXT_8B = (f"evaluation/run_recogdrive_vlm_pdm_score_evaluation_{size}.sh" for size in ("2b", "8b"))
SUBMISSION_2B, SUBMISSION_8B = (
    f"submission/run_recogdrive_create_submission_pickle_{size}.sh" for size in ("2b", "8b")
)
METRICS = "cache_dataset/run_metric_caching.sh"
HIDDEN_STATES = "cache_dataset/run_caching_recogdrive_hidden_state_eval.sh"
CHALLENGE = "private_test_hard_two_stage"
UNANNOTATED = f"SPLIT={CHALLENGE} has no annotations, without which NAVSIM can only submit"
CREDIT = {
    "TEAM_NAME": "<a href=https://a.b/c>Method</a>",
    "AUTHORS": "A. B, C",
    "EMAIL": "a@b",
    "INSTITUTION": "it's ours",
    "COUNTRY": "CH",
}


def environment(**settings: str) -> dict[str, str]:
    return script_environment(**{"CHECKPOINT": __file__, "VLM_PATH": "/vlm", "GPUS_PER_NODE": "0", **settings})


def major() -> int:
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    return NAVSIM_MAJOR


@pytest.mark.navsim
def test_scoring_with_the_vlm_on_the_cpu() -> None:
    runner, given = overrides(EVALUATION_2B, "agent.sampling.seed=3", environment=environment())
    assert runner == ("run_pdm_score_one_stage.py" if major() >= 2 else "run_pdm_score.py")
    assert given == [
        "agent=recogdrive_2b",
        f"agent.checkpoint_path='{__file__}'",
        "train_test_split=navtest",
        "experiment_name='evaluation_recogdrive_2b_navtest'",
        "metric_cache_path='/exp/metric_cache_navtest'",
        "worker=sequential",
        "agent.device=cpu",
        "agent.sampling.seed=3",
    ]


@pytest.mark.navsim
@pytest.mark.parametrize(
    ("script", "settings", "expected"),
    [
        (EVALUATION_8B, {}, {"agent=recogdrive_8b", "experiment_name='evaluation_recogdrive_8b_navtest'"}),
        (TEXT_2B, {"CHECKPOINT": ""}, {"agent=recogdrive_vlm_2b"}),
        (TEXT_8B, {"CHECKPOINT": ""}, {"agent=recogdrive_vlm_8b"}),
        (EVALUATION_2B, {"VLM_PATH": "", "CACHE_PATH": "/c d"}, {"agent.hidden_state_cache='/c d'"}),
        (EVALUATION_2B, {"WORKER": "single_machine_thread_pool"}, {"worker=single_machine_thread_pool"}),
        (
            EVALUATION_2B,
            {"SPLIT": "test", "METRIC_CACHE_PATH": "/m"},
            {"train_test_split=test", "metric_cache_path='/m'"},
        ),
    ],
)
def test_variables_become_overrides(script: str, settings: dict[str, str], expected: set[str]) -> None:
    _, given = overrides(script, environment=environment(**settings))
    assert set(given) >= expected


@pytest.mark.navsim
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["worker=ray_shared_gpus", "worker.gpus=2", "worker.workers_per_gpu=1"]),
        ({"CACHE_PATH": "/cache"}, ["worker=ray_shared_gpus", "worker.gpus=2", "worker.workers_per_gpu=4"]),
        ({"WORKERS_PER_GPU": "3"}, ["worker=ray_shared_gpus", "worker.gpus=2", "worker.workers_per_gpu=3"]),
        ({"WORKER": "sequential"}, ["worker=sequential"]),
    ],
)
def test_gpus_are_shared_by_rays_workers(settings: dict[str, str], expected: list[str]) -> None:
    gpus = environment(**settings) | {"CUDA_VISIBLE_DEVICES": "4,7", "GPUS_PER_NODE": ""}
    _, given = overrides(EVALUATION_2B, environment=gpus)
    assert [one for one in given if one.startswith("worker")] == expected
    assert "agent.device=cpu" not in given


@pytest.mark.navsim
def test_two_stages() -> None:
    wanted = environment(SPLIT="warmup_two_stage")
    if major() < 2:
        done = run(EVALUATION_2B, "--dry-run", environment=wanted)
        assert done.returncode == 2
        assert "SPLIT=warmup_two_stage needs NAVSIM v2.x, found v1" in done.stderr
        return
    paths = {
        "synthetic_sensor_path='/data/warmup_two_stage/sensor_blobs'",
        "synthetic_scenes_path='/data/warmup_two_stage/synthetic_scene_pickles'",
    }
    for script in (EVALUATION_2B, SUBMISSION_2B, METRICS, HIDDEN_STATES):
        for split in ("navtest_two_stage", "navsafe_two_stage", "warmup_navsafe_two_stage_extended"):
            done = run(script, "--dry-run", environment={**wanted, **CREDIT, "SPLIT": split})
            assert done.returncode == 2
            assert f"SPLIT={split}: NAVSIM's split lists no second-stage scenes" in done.stderr
    own = {**wanted, "SPLIT": "navhard_two_stage_mended"}
    done = run(EVALUATION_2B, "--dry-run", "synthetic_scenes_path=/own/scenes", environment=own)
    assert done.returncode == 2
    assert "say where its second stage lies: synthetic_scenes_path=FOLDER synthetic_sensor_path=FOLDER" in done.stderr
    folders = ["synthetic_scenes_path=/own/scenes", "synthetic_sensor_path=/own/images"]
    runner, given = overrides(EVALUATION_2B, *folders, environment=own)
    assert runner == "run_pdm_score.py"
    assert set(given) >= {*folders, "train_test_split=navhard_two_stage_mended"}
    # tests/agents/test_two_stage_chain.py runs the other scripts.
    runner, given = overrides(SUBMISSION_2B, environment={**wanted, **CREDIT})
    assert runner == "run_create_submission_pickle.py"
    assert set(given) >= paths


@pytest.mark.navsim
def test_the_leaderboard_of_the_installed_version() -> None:
    runner, given = overrides(SUBMISSION_8B, environment=environment(**CREDIT))
    assert given[:3] == ["agent=recogdrive_8b", f"agent.checkpoint_path='{__file__}'", "agent.device=cpu"]
    assert {
        "team_name='<a href=https://a.b/c>Method</a>'",
        "authors='A. B, C'",
        "email='a@b'",
        "institution='it\\'s ours'",
        "country='CH'",
    } <= set(given)
    if major() < 2:
        assert runner == "run_create_submission_pickle.py"
        assert "train_test_split=navtest" in given
    else:
        assert runner == "run_create_submission_pickle_challenge.py"
        assert {
            f"train_test_split={CHALLENGE}",
            f"synthetic_sensor_path='/data/{CHALLENGE}/sensor_blobs'",
            f"synthetic_scenes_path='/data/{CHALLENGE}/openscene_meta_datas'",
        } <= set(given)


@pytest.mark.navsim
def test_a_split_without_second_stage() -> None:
    runner, given = overrides(SUBMISSION_2B, environment=environment(**CREDIT, SPLIT="navtest"))
    assert runner == "run_create_submission_pickle.py"
    second = "++train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]"
    assert (second in given) == (major() >= 2)


@pytest.mark.parametrize(
    ("script", "settings", "message"),
    [
        (EVALUATION_2B, {"CHECKPOINT": ""}, "CHECKPOINT is not set"),
        (EVALUATION_2B, {"CHECKPOINT": "/nowhere"}, "CHECKPOINT=/nowhere is not a file"),
        (
            EVALUATION_2B,
            {"VLM_PATH": ""},
            "set VLM_PATH to run the VLM, or CACHE_PATH to take its hidden states of navtest",
        ),
        (EVALUATION_2B, {"SPLIT": CHALLENGE}, UNANNOTATED),
        (METRICS, {"SPLIT": CHALLENGE}, UNANNOTATED),
        (HIDDEN_STATES, {"SPLIT": CHALLENGE}, UNANNOTATED),
        (EVALUATION_2B, {"WORKER": "ray_shared_gpus"}, "there is no GPU: WORKER=ray_distributed_no_torch"),
        (
            EVALUATION_2B,
            {"WORKERS_PER_GPU": "2"},
            "WORKERS_PER_GPU is for WORKER=ray_shared_gpus, found WORKER=sequential",
        ),
        (EVALUATION_2B, {"GPUS_PER_NODE": "2", "WORKERS_PER_GPU": "0"}, "WORKERS_PER_GPU must be at least 1"),
        (EVALUATION_2B, {"GPUS_PER_NODE": "many"}, "GPUS_PER_NODE must be a whole number, found many"),
        (TEXT_2B, {}, "CHECKPOINT is set, but AGENT=recogdrive_vlm_2b is the VLM alone"),
        (TEXT_2B, {"CHECKPOINT": "", "CACHE_PATH": "/c"}, "CACHE_PATH is set, but AGENT=recogdrive_vlm_2b writes text"),
        (TEXT_8B, {"CHECKPOINT": "", "VLM_PATH": ""}, "VLM_PATH is not set"),
        *((SUBMISSION_2B, {**CREDIT, name: ""}, f"{name} is not set") for name in CREDIT),
    ],
)
def test_settings_that_cannot_work(script: str, settings: dict[str, str], message: str) -> None:
    done = run(script, "--dry-run", environment=environment(**settings))
    assert done.returncode == 2
    assert message in done.stderr


def test_caches_that_are_not_there_are_said_before_anything_starts() -> None:
    done = run(EVALUATION_2B, environment=environment(SPLIT="test"))
    assert done.returncode == 2
    assert "METRIC_CACHE_PATH=/exp/metric_cache_test is not a folder: fill it with SPLIT=test scripts/" in done.stderr
    done = run(EVALUATION_2B, environment=environment(CACHE_PATH="/nowhere"))
    assert "CACHE_PATH=/nowhere is not a folder: fill it with scripts/" in done.stderr


# In place of NAVSIM's runners and of what reads their results.
FAKE_PYTHON = """#!/bin/sh
case "$1" in
    *run_pdm_score* | *run_create_submission*)
        [ -z "$WRITTEN" ] || { mkdir -p "${WRITTEN%/*}" && echo new >"$WRITTEN"; } ;;
    *score_table.py) cat "${2##*=}" ;;
    -m) [ "$2" = navsim_recogdrive.agents.check_submission ] && cat "$3" ;;
    *) exec REAL "$@" ;;
esac
"""


@pytest.mark.navsim
@pytest.mark.parametrize(
    ("script", "name"), [(EVALUATION_2B, "2025.01.01.00.00.00.csv"), (SUBMISSION_2B, "submission.pkl")]
)
def test_the_result_is_that_of_this_run(tmp_path: Path, script: str, name: str) -> None:
    """Never an older one, even where its file is dated later, as by the clock of a file server."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(FAKE_PYTHON.replace("REAL", sys.executable))
    python.chmod(0o755)
    older = tmp_path / "mine" / "1" / name
    older.parent.mkdir(parents=True)
    older.write_text("old\n")
    os.utime(older, (4e9, 4e9))
    for moved in ("experiment_name=other", "++output_dir=/elsewhere"):
        done = run(script, "--dry-run", moved, environment=environment(**CREDIT))
        assert done.returncode == 2
        assert f"{moved.lstrip('+')} hides where the result is written: set EXPERIMENT" in done.stderr
    ours = environment(
        **CREDIT,
        PATH=f"{python.parent}:{os.environ['PATH']}",
        NAVSIM_EXP_ROOT=str(tmp_path),
        METRIC_CACHE_PATH=str(tmp_path),
        EXPERIMENT="mine",
        WRITTEN="",
    )
    done = run(script, environment=ours)
    assert done.returncode == 1, done.stdout
    assert f"below {tmp_path}/mine: see its log" in done.stderr
    for written in (tmp_path / "mine" / "2" / name, older):
        done = run(script, environment={**ours, "WRITTEN": str(written)})
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "new"
