"""Who has left a scene out, and is that run still alive?"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from small_cache import LAYOUT, dump, write_cache

from navsim_recogdrive.cache import runs
from navsim_recogdrive.cache.__main__ import main
from navsim_recogdrive.cache.failed import FailedFeature
from navsim_recogdrive.cache.runs import Run, claimed_scenes, forget_dead_runs
from navsim_recogdrive.cache.scan import FAILED, LEFT_OUT, remove, scan_cache


def _files(root: Path) -> list[Path]:
    return sorted((root / "_recogdrive" / "runs").glob("*"))


def _dead(root: Path, scenes: list[str]) -> None:
    """Claim scenes in a process that is killed."""
    child = os.fork()
    if child == 0:
        Run(root).claim(scenes)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)


def test_a_scene_belongs_to_those_that_claim_it(tmp_path: Path) -> None:
    assert claimed_scenes(tmp_path) == set()
    first, second = Run(tmp_path), Run(tmp_path)
    assert not _files(tmp_path), "nothing is claimed"
    first.claim(["log/a", "log/b"])
    second.claim(["log/b"])
    second.claim(["log/c"])
    assert claimed_scenes(tmp_path) == {"log/a", "log/b", "log/c"}
    assert first.leave() == {"log/b", "log/c"}
    first.end()
    assert claimed_scenes(tmp_path) == {"log/b", "log/c"}
    assert second.leave() == set()
    second.end()
    assert not _files(tmp_path)


def test_two_that_leave_together_leave_nothing_behind(tmp_path: Path) -> None:
    first, second = Run(tmp_path), Run(tmp_path)
    first.claim(["log/a"])
    second.claim(["log/a"])
    first.leave()
    assert second.leave() == set()


def test_a_claim_waits_for_a_run_that_is_leaving(tmp_path: Path) -> None:
    leaver, other = Run(tmp_path), Run(tmp_path)
    leaver.claim(["log/a"])
    leaver.leave()
    other.claim(["log/a"])
    ended = threading.Event()
    timer = threading.Timer(0.3, lambda: (ended.set(), leaver.end()))
    timer.start()
    other.wait_for_leavers()
    assert ended.is_set()
    other.end()


def test_a_killed_run_is_dead_at_once(tmp_path: Path) -> None:
    _dead(tmp_path, ["log/a"])
    living = Run(tmp_path)
    living.claim(["log/b"])
    assert claimed_scenes(tmp_path) == {"log/b"}
    assert len(_files(tmp_path)) == 2
    forget_dead_runs(tmp_path)
    assert len(_files(tmp_path)) == 1
    assert claimed_scenes(tmp_path) == {"log/b"}
    living.end()


def test_a_killed_run_is_not_yet_reaped(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        Run(tmp_path).claim(["log/a"])
        os.kill(os.getpid(), 9)
    while not (tmp_path / "_recogdrive" / "runs").is_dir() or runs._started(child) is not None:
        time.sleep(0.01)
    assert claimed_scenes(tmp_path) == set()
    os.waitpid(child, 0)


def test_another_process_with_the_same_number(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.claim(["log/a"])
    (path,) = _files(tmp_path)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(header), "started": "1"}), *lines]))
    assert claimed_scenes(tmp_path) == set()
    run.end()


def test_on_another_machine_the_time_of_the_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_machine", lambda: "elsewhere")
    monkeypatch.setattr(runs, "BEAT_S", 0.05)
    run = Run(tmp_path)
    run.claim(["log/a"])
    monkeypatch.undo()
    (path,) = _files(tmp_path)
    long_ago = time.time() - runs.DEAD_AFTER_S - 60
    assert claimed_scenes(tmp_path) == {"log/a"}
    os.utime(path, (long_ago, long_ago))
    _until(lambda: path.stat().st_mtime > long_ago)  # the run renews it
    path.unlink()
    run._write()
    run.end()
    run._path.touch()
    (path,) = _files(tmp_path)
    assert claimed_scenes(tmp_path) == set(), "an empty file claims nothing"
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": "1"}) + "\nlog/a\n")
    assert claimed_scenes(tmp_path) == {"log/a"}
    os.utime(path, (long_ago, long_ago))
    assert claimed_scenes(tmp_path) == set()
    forget_dead_runs(tmp_path)
    assert not _files(tmp_path)


def _until(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_run_in_progress_left_out_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT

    folders = write_cache(tmp_path)
    for folder in folders[:2]:
        for name in LAYOUT.files:
            dump(folder / f"{name}.gz", {name: FailedFeature("a bad image")})
    ours, others = (str(folder.relative_to(tmp_path)) for folder in folders[:2])
    run = Run(tmp_path)
    run.claim([ours])
    _dead(tmp_path, [others])
    report = scan_cache(tmp_path, LAYOUT)
    assert {one.scene: one.kind for one in report.findings} == {ours: LEFT_OUT, others: FAILED}
    assert {one.reason.partition("(")[2] for one in report.findings if one.kind == LEFT_OUT} == {
        "a bad image); a run in progress leaves the scene out, and removes this file when it ends"
    }
    assert {one.scene for one in remove(report.findings)} == {others}

    for folder in folders:  # the tools know the names of this package
        for name, other in zip(LAYOUT.files, HIDDEN_STATE_LAYOUT.files, strict=True):
            if (folder / f"{name}.gz").exists():
                (folder / f"{name}.gz").rename(folder / f"{other}.gz")
    before = sorted(tmp_path.rglob("*"))
    assert main(["repair", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("left alone") == 4
    assert "0 files removed" in printed
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path not in _dead_files(before, run)]
    assert main(["inspect", str(tmp_path)]) == 0
    assert "left out: " in capsys.readouterr().out
    run.end()
    assert main(["inspect", str(tmp_path)]) == 1
    assert main(["repair", str(tmp_path)]) == 0
    assert "4 files removed" in capsys.readouterr().out


def _dead_files(paths: list[Path], run: Run) -> list[Path]:
    return [path for path in paths if path.parent.name == "runs" and path != run._path]
