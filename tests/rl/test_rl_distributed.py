from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_problem import small_planner

HERE = Path(__file__).parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_rank_without_scored_scenes_neither_hangs_nor_drifts(tmp_path):
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "rl_rank.py"), str(rank), str(tmp_path / "store"), str(tmp_path / "out")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    first, second = (torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, small_planner("ddim").parameters(), strict=True))
