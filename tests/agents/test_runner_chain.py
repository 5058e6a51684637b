"""The whole road through NAVSIM's own, unmodified runners: cache, train, cache metrics, score, submit."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

ON_CPU = [
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32",
    "dataloader.params.num_workers=1",
    "dataloader.params.pin_memory=false",
    "dataloader.params.batch_size=4",
]
REPOSITORY = Path(__file__).parents[2]
# Root may write to read-only folders; without these two rights it may not.
NO_OVERRIDE = "-dac_override,-dac_read_search"
EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"


class Runners:
    """Runs NAVSIM's scripts from an empty folder, as a user would."""

    def __init__(self, world: Path, vlm: Path, folder: Path) -> None:
        import navsim.planning.script as script

        from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

        self.major = NAVSIM_MAJOR
        self.experiments = folder / "exp"
        self._scripts = Path(script.__file__).parent
        self._cwd = folder / "elsewhere"
        self._cwd.mkdir()
        self._env = {
            **os.environ,
            "OPENSCENE_DATA_ROOT": str(world),
            "NUPLAN_MAPS_ROOT": str(world / "maps"),
            "NAVSIM_EXP_ROOT": str(self.experiments),
            "PYTHONPATH": os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), str(REPOSITORY)) if path),
            "NAVSIM_DEVKIT_ROOT": str(self._scripts.parents[2]),
            "VLM_PATH": str(vlm),
            "HYDRA_FULL_ERROR": "1",
        }

    def run(
        self, script: str, *overrides: str, expect_failure: bool = False, prefix: tuple[str, ...] = (sys.executable,)
    ) -> str:
        done = subprocess.run(
            [*prefix, str(self._scripts / script), *overrides],
            cwd=self._cwd,
            env=self._env,
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == expect_failure, output[-6000:]
        return output

    def score(self, agent: list[str], name: str) -> pd.DataFrame:
        script = "run_pdm_score_one_stage.py" if self.major >= 2 else "run_pdm_score.py"
        self.run(
            script,
            *agent,
            "train_test_split=test",
            EVERY_FRAME,
            "worker=sequential",
            f"experiment_name={name}",
            f"metric_cache_path={self.experiments / 'metric_cache'}",
        )
        (table,) = (self.experiments / name).rglob("*.csv")
        return pd.read_csv(table)


@pytest.fixture(scope="module")
def runners(tiny_world: Path, tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Runners:
    return Runners(tiny_world, tiny_vlm, tmp_path_factory.mktemp("chain"))


def test_chain(runners: Runners, tiny_world: Path) -> None:
    index = json.loads((tiny_world / "world.json").read_text())
    splits = [f"{part}_logs=[{','.join(index[f'{part}_logs'])}]" for part in ("train", "val")]
    cache = runners.experiments / "training_cache"

    runners.run(
        "run_dataset_caching.py",
        *TINY_AGENT,
        "train_test_split=trainval",
        EVERY_FRAME,
        "worker=sequential",
        "experiment_name=caching",
        f"cache_path={cache}",
    )
    cached = {path.parent.name for path in cache.glob("*/*/recogdrive_hidden_state.gz")}
    assert len(cached) > 20

    runners.run(
        "run_training.py",
        *TINY_AGENT,
        *ON_CPU,
        *splits,
        "train_test_split=trainval",
        "experiment_name=training",
        f"cache_path={cache}",
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        "trainer.params.max_epochs=2",
        "trainer.params.gradient_clip_val=1.0",
        "+trainer.params.enable_progress_bar=false",
        "agent.optimizer.warmup_epochs=1",
    )
    (last,) = (runners.experiments / "training").rglob("last.ckpt")
    assert list(last.parent.glob("best-*.ckpt"))
    assert last.stat().st_size < 50e6, "the VLM must not be in the checkpoint"

    if runners.major >= 2:
        metric_cache = [f"metric_cache_path={runners.experiments / 'metric_cache'}"]
    else:
        metric_cache = [f"cache.cache_path={runners.experiments / 'metric_cache'}"]
    runners.run(
        "run_metric_caching.py",
        "train_test_split=test",
        EVERY_FRAME,
        "worker=sequential",
        *metric_cache,
    )

    ours = [*TINY_AGENT, f"agent.checkpoint_path={last}"]
    table = runners.score(ours, "score")
    scenes = table[~table["token"].astype(str).str.startswith("average")]
    assert len(scenes) > 5
    assert scenes["valid"].astype(bool).all()
    assert scenes["score"].between(0, 1).all()
    again = runners.score(ours, "score_again")
    columns = ["token", "score"]
    first, second = (frame[columns].sort_values("token").reset_index(drop=True) for frame in (table, again))
    pd.testing.assert_frame_equal(first, second)

    submission = [
        *ours,
        "train_test_split=test",
        EVERY_FRAME,
        "experiment_name=submission",
        *(f"{key}=test" for key in ("team_name", "authors", "email", "institution", "country")),
    ]
    if runners.major >= 2:
        submission.append("+train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]")
    runners.run("run_create_submission_pickle.py", *submission)
    (pickled,) = (runners.experiments / "submission").rglob("submission.pkl")
    content = pickle.loads(pickled.read_bytes())
    predictions = content["first_stage_predictions" if runners.major >= 2 else "predictions"][0]
    assert set(predictions) == set(scenes["token"])
    for trajectory in predictions.values():
        assert trajectory.poses.shape == (8, 3)
        assert np.isfinite(trajectory.poses).all()


def test_errors_come_early_through_the_runners(runners: Runners) -> None:
    nowhere = ["train_test_split=trainval", "experiment_name=bad", "train_logs=[nowhere]", "val_logs=[nowhere]"]
    output = runners.run("run_training.py", "agent=recogdrive_2b", *ON_CPU, *nowhere, expect_failure=True)
    assert "hidden size 32, the planner expects 1536" in output
    output = runners.run("run_training.py", *TINY_AGENT, *ON_CPU, *nowhere, expect_failure=True)
    assert "train_logs selects no scene" in output

    cache = runners.experiments / "read_only"
    cache.mkdir(mode=0o555, parents=True)
    prefix: tuple[str, ...] = (sys.executable,)
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("running as root without setpriv: no folder is read-only")
        prefix = ("setpriv", f"--bounding-set={NO_OVERRIDE}", f"--inh-caps={NO_OVERRIDE}", sys.executable)
    output = runners.run(
        "run_dataset_caching.py",
        *TINY_AGENT,
        "train_test_split=trainval",
        "worker=sequential",
        "experiment_name=bad",
        f"cache_path={cache}",
        expect_failure=True,
        prefix=prefix,
    )
    assert f"the cache folder {cache} is read-only" in output
