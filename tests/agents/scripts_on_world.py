"""The shell scripts on one world, for tests of the whole road."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
from script_runs import SCRIPTS, script_environment


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
