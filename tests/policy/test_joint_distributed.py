from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import joint_rank
import pytest
import torch
import torch.distributed as dist

HERE = Path(__file__).parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_with_adapters_end_where_one_process_ends(tiny_vlm: Path, tmp_path: Path) -> None:
    paths = [*map(str, (HERE, HERE.parent, HERE.parents[1])), os.environ.get("PYTHONPATH", "")]
    arguments = [str(tmp_path / "store"), str(tiny_vlm), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "joint_rank.py"), str(rank), *arguments],
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
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())

    alone = joint_rank.train(str(tiny_vlm), 0, slice(0, joint_rank.SCENES))
    start = joint_rank.Step(str(tiny_vlm), 0).state_dict()
    assert first.keys() == alone.keys() == start.keys()
    moved = {name for name, value in alone.items() if (value.float() - start[name].float()).abs().max() > 1e-5}
    adapters = {name for name in first if "lora_" in name}
    assert len(adapters) == 2 * 7 * 2
    assert all(any(part in name for name in moved) for part in ("lora_A", "lora_B"))
    assert any(name.startswith("action_head.") for name in moved)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=name)
