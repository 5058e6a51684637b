"""NAVSIM's own, unmodified scripts as subprocesses, for every test of the whole road."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
from preloaded_python import PreloadedPython

ON_CPU = [
    "trainer.params.accelerator=cpu",
    "trainer.params.precision=32",
    "dataloader.params.num_workers=1",
    "dataloader.params.pin_memory=false",
    "dataloader.params.batch_size=4",
]
EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"
REPOSITORY = Path(__file__).parents[2]
_PYTHON = PreloadedPython()
_METRIC_CACHES: dict[tuple[Path, str], Path] = {}
"""Of a world and a split, where the first test had them made."""


class Runners:
    """Runs NAVSIM's scripts from an empty folder, as a user would; ``output`` is what the last one printed.

    They run in ``environment``, which a test may change. ``run`` starts them with the words of ``prefix``, by default
    with Python.
    """

    def __init__(self, world: Path, vlm: Path, folder: Path) -> None:
        import navsim.planning.script as script

        from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

        self.major = NAVSIM_MAJOR
        self.experiments = folder / "exp"
        self.output = ""
        self._world = world
        self._scripts = Path(script.__file__).parent
        self._cwd = folder / "elsewhere"
        self._cwd.mkdir()
        self.environment = {
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
        self, script: str, *overrides: str, expect_failure: bool = False, prefix: tuple[str, ...] | None = None
    ) -> str:
        words = [str(self._scripts / script), *overrides]
        if prefix is None:
            status, self.output = _PYTHON.run(words, self._cwd, self.environment)
        else:
            done = subprocess.run(
                [*prefix, *words], cwd=self._cwd, env=self.environment, capture_output=True, text=True
            )
            status, self.output = done.returncode, done.stdout + done.stderr
        assert (status != 0) == expect_failure, self.output[-6000:]
        return self.output

    def cache_metrics(self, split: str = "test", folder: str = "metric_cache") -> Path:
        """Fill a metric cache, by default the one that :meth:`score` reads; in one process once for each split.

        Where it was filled for another test it is a link: not to be changed.
        """
        setting = "metric_cache_path" if self.major >= 2 else "cache.cache_path"
        root = self.experiments / folder
        key = (self._world, split)
        if key not in _METRIC_CACHES:
            self.run(
                *("run_metric_caching.py", f"train_test_split={split}", EVERY_FRAME),
                *("worker=sequential", f"{setting}={root}"),
            )
            _METRIC_CACHES[key] = root
        elif not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            root.symlink_to(_METRIC_CACHES[key])
        return root

    def score(self, agent: list[str], name: str, worker: tuple[str, ...] = ("worker=sequential",)) -> pd.DataFrame:
        script = "run_pdm_score_one_stage.py" if self.major >= 2 else "run_pdm_score.py"
        self.run(
            script,
            *agent,
            "train_test_split=test",
            EVERY_FRAME,
            *worker,
            f"experiment_name={name}",
            f"metric_cache_path={self.experiments / 'metric_cache'}",
        )
        (table,) = (self.experiments / name).rglob("*.csv")
        return pd.read_csv(table)

    def submit(self, agent: list[str], name: str) -> dict[str, Any]:
        """The trajectories of a submission, by scene token."""
        overrides = [
            *agent,
            "train_test_split=test",
            EVERY_FRAME,
            f"experiment_name={name}",
            *(f"{key}=test" for key in ("team_name", "authors", "email", "institution", "country")),
        ]
        if self.major >= 2:
            overrides.append("+train_test_split.scene_filter.reactive_synthetic_initial_tokens=[]")
        self.run("run_create_submission_pickle.py", *overrides)
        (pickled,) = (self.experiments / name).rglob("submission.pkl")
        content = pickle.loads(pickled.read_bytes())
        predictions: dict[str, Any] = content["first_stage_predictions" if self.major >= 2 else "predictions"][0]
        return predictions
