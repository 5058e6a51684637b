"""Checkpoint files that a killed writer leaves whole, and random states."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted_training import run

from navsim_recogdrive.policy import random_state
from navsim_recogdrive.policy.checkpoint_files import AtomicCheckpointIO

# A tensor that is announced and then kills the process: half a file has been written by then.
KILLED_WRITER = """
import os, signal, sys, torch
from navsim_recogdrive.policy.checkpoint_files import AtomicCheckpointIO
save = torch.save
def half(content, file):
    save(content, file)
    file.truncate(file.tell() // 2)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
AtomicCheckpointIO().save_checkpoint({"value": 2}, sys.argv[1])
"""


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"value": 1}, path)
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2
    assert files.load_checkpoint(path) == {"value": 1}
    files.save_checkpoint({"value": 3}, path)
    assert files.load_checkpoint(path) == {"value": 3}
    assert list(path.parent.iterdir()) == [path], "what the killed one left is gone"


def test_two_writers_have_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes, and clears up, while the first is in the middle of its own."""
    path = tmp_path / "last.ckpt"
    left_by_other_machines = [tmp_path / f".last.ckpt.elsewhere.{number}.partial" for number in (1, 2)]
    for left in left_by_other_machines:
        left.touch()
    os.utime(left_by_other_machines[0], (0, 0))
    save = torch.save

    def interrupted(content: object, file: object) -> None:
        save(content, file)
        second = os.fork()
        if second == 0:
            torch.save = save
            AtomicCheckpointIO().save_checkpoint({"value": 2}, path)
            os._exit(0)
        os.waitpid(second, 0)
        assert AtomicCheckpointIO().load_checkpoint(path) == {"value": 2}

    monkeypatch.setattr(torch, "save", interrupted)
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"value": 1}
    assert sorted(tmp_path.iterdir()) == [left_by_other_machines[1], path], "its writer may be at work"


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"value": 1}, path)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save_checkpoint({"value": 2}, path)
    assert files.load_checkpoint(path) == {"value": 1}


def test_a_checkpoint_is_read_as_data_only(tmp_path: Path) -> None:
    torch.save({"code": Path("x")}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)


def test_a_run_writes_and_reads_with_it(tmp_path: Path) -> None:
    _, _, trainer = run(tmp_path, epochs=1)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["best-epoch=000.ckpt", "last.ckpt"]
    for path in tmp_path.rglob("*.ckpt"):
        assert torch.load(path, weights_only=True)["state_dict"]


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), np.random.normal(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    draw()  # half of a pair of normal numbers is kept by both
    cpu = torch.device("cpu")
    torch.save(random_state.capture(cpu), tmp_path / "state")
    expected = [draw(), draw()]
    random_state.restore(torch.load(tmp_path / "state", weights_only=True), cpu)
    assert [draw(), draw()] == expected
