from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rl_rank
import torch
import torch.distributed as dist
from small_problem import small_planner

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks of ``rl_rank.py`` found."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "rl_rank.py"), str(rank), str(folder / "store"), str(folder / "out")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(2)]


def test_a_rank_without_scored_scenes_neither_hangs_nor_drifts(ranks):
    first, second = (rank["weights"] for rank in ranks)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, small_planner("ddim").parameters(), strict=True))


def test_two_ranks_learn_what_one_process_learns_from_all_scenes(ranks, monkeypatch):
    """Rank 0 has two scenes of a wide spread of rewards, rank 1 one of a narrow spread and one without a score."""
    monkeypatch.setattr(rl_rank.objective_module, "group_advantages", rl_rank.objective_module.group_advantages)
    step = rl_rank.Step(**rl_rank.SETTINGS)
    scenes = slice(0, rl_rank.SCENES)
    noted = rl_rank.fix_draws(step, scenes)
    rl_rank.one_gradient(step, scenes)
    (alone,) = noted
    torch.testing.assert_close(torch.cat([rank["advantages"] for rank in ranks]), alone)
    assert 0 < alone[2].abs().max() < 0.1 * alone[0].abs().max()
    expected = rl_rank.gradients(step)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for rank in ranks:
        assert rank["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(rank["gradients"][name], gradient, rtol=1e-3, atol=1e-6, msg=name)
