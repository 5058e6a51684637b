"""The road of the scripts on the synthetic world: train, score on each of NAVSIM's workers, submit, check."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scripts_on_world import Scripts
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"
OURS = [*TINY_AGENT[1:], EVERY_FRAME]
THREADS = ("single_machine_thread_pool", "worker.max_workers=2")
RAY = ("ray_distributed_no_torch", "worker.threads_per_node=2")


@pytest.fixture(scope="module")
def scripts(tiny_world: Path, tiny_vlm: Path, metric_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    scripts = Scripts(tiny_world, tiny_vlm, tmp_path_factory.mktemp("scripts"))
    scripts.environment["METRIC_CACHE_PATH"] = str(metric_cache)
    return scripts


def test_from_training_to_a_checked_submission(scripts: Scripts) -> None:
    """Joint mode with a frozen VLM: training needs no cache, and its checkpoint is an ordinary planner."""
    scripts.run(
        "training/run_recogdrive_train_multi_node_ema_2b.sh",
        *OURS,
        "agent.cache_hidden_state=false",
        "train_logs=[world-0000-train-0000]",
        "val_logs=[world-0000-val-0000]",
        "dataloader.params.num_workers=1",
        "agent.optimizer.warmup_epochs=0",
        "+trainer.params.enable_progress_bar=false",
        SPLIT="trainval",
        CACHE_PATH="none",
        EPOCHS="1",
        BATCH_SIZE="4",
        RESUME="1",
    )
    (last,) = (scripts.experiments / "training_recogdrive_2b_ema").rglob("last.ckpt")
    evaluation = "evaluation/run_recogdrive_agent_pdm_score_evaluation_2b.sh"
    expected = scripts.scores(evaluation, ("sequential",), *OURS, CHECKPOINT=str(last))
    assert len(expected) == 14
    assert expected["score"].between(0, 1).all()
    for worker in (THREADS, RAY):
        found = scripts.scores(evaluation, worker, *OURS, CHECKPOINT=str(last))
        pd.testing.assert_frame_equal(found, expected, check_exact=True)

    submission = "submission/run_recogdrive_create_submission_pickle_2b.sh"
    credit = {"TEAM_NAME": "T's", "AUTHORS": "A, B", "EMAIL": "a@b.c", "INSTITUTION": "{I}", "COUNTRY": "CH"}
    printed = scripts.run(submission, *OURS, CHECKPOINT=str(last), **credit)
    assert printed.splitlines()[-1].startswith("valid: 0 errors")
    assert "14 scenes in " in printed
