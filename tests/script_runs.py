"""The shell scripts as a user runs them, in an environment where nothing of this machine decides."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
# What a machine may have set that decides for the scripts.
_DECIDING = (
    *("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "GPUS_PER_NODE", "CUDA_VISIBLE_DEVICES", "WORKER", "SPLIT", "AGENT"),
    *("CHECKPOINT", "CACHE_PATH", "METRIC_CACHE_PATH", "VLM_PATH", "EXPERIMENT", "EPOCHS", "BATCH_SIZE", "EMA_DECAY"),
    *("OUTPUT", "KIND", "WORLD", "RESUME", "REWARD_WORKERS", "TEAM_NAME", "AUTHORS", "EMAIL", "INSTITUTION", "COUNTRY"),
)


def script_environment(**settings: str) -> dict[str, str]:
    """This process's environment, less what decides for the scripts, with the folders that all of them need."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_DECIDING)}
    folders = {"OPENSCENE_DATA_ROOT": "/data", "NUPLAN_MAPS_ROOT": "/data/maps", "NAVSIM_EXP_ROOT": "/exp"}
    return {**inherited, **folders, **settings}


def run(script: str | Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``script``, a path below ``scripts``."""
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def command(script: str | Path, *arguments: str, environment: dict[str, str]) -> list[str]:
    """The words of the last command that ``--dry-run`` prints."""
    done = run(script, "--dry-run", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1])


def overrides(script: str | Path, *arguments: str, environment: dict[str, str]) -> tuple[str, list[str]]:
    """Name of the runner that ``--dry-run`` prints, and what it is given."""
    words = command(script, *arguments, environment=environment)
    runner = next(index for index, word in enumerate(words) if word.endswith(".py"))
    return Path(words[runner]).name, words[runner + 1 :]
