"""The shell scripts: help without side effects, and clear refusals."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def _bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_help(name: str) -> None:
    done = _bash(str(SCRIPTS / name), "--help")
    assert done.returncode == 0
    assert f"bash scripts/{name}" in done.stdout
    assert "set -euo pipefail" not in done.stdout


def test_unknown_option() -> None:
    done = _bash(str(SCRIPTS / "quickstart.sh"), "--fast")
    assert done.returncode == 2
    assert "unknown option --fast" in done.stderr


def test_wrong_devkit_root(tmp_path: Path) -> None:
    done = _bash(str(SCRIPTS / "test.sh"), NAVSIM_V1_DEVKIT_ROOT=str(tmp_path))
    assert done.returncode == 2
    assert f"NAVSIM_V1_DEVKIT_ROOT={tmp_path} is not a NAVSIM checkout" in done.stderr


def test_score_table_reads_both_versions(tmp_path: Path) -> None:
    v2 = {
        "token": ["a", "b", "average_all_frames"],
        "valid": [True] * 3,
        "score": [0.5, 1.0, 0.75],
        "comfort": [1, 0, 0.5],
    }
    v1 = {"token": ["a", "b", "average"], "valid": [True] * 3, "score": [0.0, 0.5, 0.25]}
    pd.DataFrame(v2).to_csv(tmp_path / "v2.csv")
    pd.DataFrame(v1).to_csv(tmp_path / "v1.csv")
    done = subprocess.run(
        ["python", str(SCRIPTS / "score_table.py"), f"ours={tmp_path / 'v2.csv'}", f"old one={tmp_path / 'v1.csv'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    header, ours, old = done.stdout.splitlines()
    assert header.split() == ["scenes", "C", "score"]
    assert ours.split() == ["ours", "2", "0.5000", "0.7500"]
    assert old.split() == ["old", "one", "2", "NaN", "0.2500"]


def test_score_table_of_two_stages(tmp_path: Path) -> None:
    """The mean over scenes of both stages would be another number than NAVSIM's."""
    sums = [f"extended_pdm_score_{name}" for name in ("stage_one", "stage_two", "combined")]
    table = {"token": ["a", "b", *sums], "valid": [True, False, True, True, True], "score": [0.1, 0.3, 0.8, 0.5, 0.4]}
    pd.DataFrame(table).to_csv(tmp_path / "two.csv")
    done = subprocess.run(
        ["python", str(SCRIPTS / "score_table.py"), f"ours={tmp_path / 'two.csv'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    header, ours = done.stdout.splitlines()
    assert header.split() == ["scenes", "score", "stage", "1", "stage", "2"]
    assert ours.split() == ["ours", "2", "0.4000", "0.8000", "0.5000"]
    assert done.stderr == "ours: 1 of 2 scenes failed, see the runner's log\n"
