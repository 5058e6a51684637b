"""Every benchmark runs to its end at its smallest size; what it measures is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("planner", ["--quick"]),
        ("vlm", ["--shape", "tiny", "--repeats", "1", "--batches", "1"]),
        ("cache", ["--quick"]),
        ("image_tiles", ["--repeats", "1", "--tile-size", "56"]),
    ],
)
def test_benchmark_runs(name: str, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)
