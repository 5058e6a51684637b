from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from navsim_recogdrive.pretraining.locking import InUse, only_one


def _hold(path: Path, pipe: Connection) -> None:
    try:
        with only_one(path):
            pipe.send("held")
            pipe.recv()
    except InUse as error:
        pipe.send(str(error))
    pipe.send("done")


class _Other:
    """Another process that locks a file until it is told to let go."""

    def __init__(self, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_hold, args=(path, there))
        self.process.start()
        self.said = self.pipe.recv()

    def let_go(self) -> None:
        self.pipe.send("let go")
        assert self.pipe.recv() == "done"
        self.process.join()


def test_a_second_process_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.jsonl"
    other = _Other(path)
    assert other.said == "held"
    with pytest.raises(InUse, match=r"data.jsonl is being written by another process: wait for it"), only_one(path):
        pytest.fail("locked twice")
    assert list(path.parent.iterdir()) == [path.with_name("data.jsonl.lock")], "the other's lock stays"
    other.let_go()
    with only_one(path):
        pass
    assert not list(path.parent.iterdir())


def test_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    other = _Other(path)
    other.process.kill()
    other.process.join()
    assert path.with_name("data.jsonl.lock").exists()
    with only_one(path):
        pass


def test_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with only_one(path):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    other = _Other(path)
    os.write(write, b"x")
    os.waitpid(child, 0)
    assert other.said == "held"
    other.let_go()


def test_errors_inside_let_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / "data.jsonl"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
