"""The road of the scripts on the synthetic world: train, score on each of NAVSIM's workers, submit, check."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from script_runs import SCRIPTS, script_environment
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"
OURS = [*TINY_AGENT[1:], EVERY_FRAME]
THREADS = ("single_machine_thread_pool", "worker.max_workers=2")
RAY = ("ray_distributed_no_torch", "worker.threads_per_node=2")


class Scripts:
    """Runs scripts on one world, one set of experiments."""

    def __init__(self, world: Path, vlm: Path, folder: Path) -> None:
        repository = str(SCRIPTS.parent)
        self.experiments = folder
        self.environment = script_environment(
            OPENSCENE_DATA_ROOT=str(world),
            NUPLAN_MAPS_ROOT=str(world / "maps"),
            NAVSIM_EXP_ROOT=str(folder),
            VLM_PATH=str(vlm),
            GPUS_PER_NODE="0",
            SPLIT="test",
            PYTHONPATH=os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), repository) if path),
        )

    def run(self, script: str, *arguments: str, **settings: str) -> str:
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env={**self.environment, **settings},
            cwd=self.experiments,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    def scores(self, script: str, worker: tuple[str, ...], *arguments: str, **settings: str) -> pd.DataFrame:
        """Scores by scene; the mean's last bit depends on the order of the scenes."""
        name, *more = worker
        experiment = f"{Path(script).stem}_{name}"
        printed = self.run(script, *arguments, *more, WORKER=name, EXPERIMENT=experiment, **settings)
        (table,) = (self.experiments / experiment).rglob("*.csv")
        scores = pd.read_csv(table)
        scenes = scores[~scores["token"].astype(str).str.startswith("average")]
        assert f"{len(scenes)} " in printed.splitlines()[-1], "the table of the script"
        assert scenes["valid"].astype(bool).all()
        return scenes.select_dtypes(["number"]).set_index(scenes["token"]).filter(regex="^(?!Unnamed)").sort_index()


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
