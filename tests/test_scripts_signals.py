"""Signals to the scripts: they reach what was started, whose end the script awaits and reports."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from script_runs import SCRIPTS, script_environment

# As torchrun: a process in a session of its own, and an end with 1 where that fails. A signal would end it at once.
LAUNCHER = """
echo $$ >launcher
trap 'echo signalled >>launcher_log; exit 3' TERM
LOCAL_RANK=0 setsid bash "$1" &
wait $! || exit 1
"""
# As a rank: ends some time after the signal, with the note that its checkpoint is written.
RANK = """
end() { sleep 0.3; echo last.ckpt >>"$RECOGDRIVE_PREEMPTED_FILE"; touch checkpoint; exit 75; }
trap end TERM
echo $$ >rank
while :; do sleep 0.02; done
"""
TRAIN = """
set -euo pipefail
source "$1/common.sh"; source "$1/train.sh"
NAVSIM_MAJOR=2 AGENT=a SPLIT=s NODE_RANK=0 NNODES=1 GPUS_PER_NODE=0 COMMON=() TRAINER=()
NAVSIM_SCRIPT_ROOT=. TORCHRUN=(bash launch.sh)
train
"""


def start(folder: Path, rank: str, launcher: str = LAUNCHER) -> subprocess.Popen[str]:
    """A training script in ``folder``; ``launcher`` stands for torchrun, ``rank`` for a process of it."""
    (folder / "launch.sh").write_text(launcher)
    (folder / "run_training.py").write_text(rank)
    (folder / "temporary").mkdir()
    return subprocess.Popen(
        ["bash", "-c", TRAIN, "_", SCRIPTS],
        cwd=folder,
        env=script_environment(TMPDIR=str(folder / "temporary")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end, "this does not happen"
        time.sleep(0.02)


def number(path: Path) -> int:
    until(lambda: path.is_file() and path.read_text().endswith("\n"))
    return int(path.read_text())


def runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_script_ends_after_the_checkpoint(tmp_path: Path, sent: signal.Signals) -> None:
    script = start(tmp_path, RANK)
    rank, launcher = number(tmp_path / "rank"), number(tmp_path / "launcher")
    if sent is signal.SIGINT:
        os.killpg(script.pid, sent)  # as a terminal
    else:
        script.send_signal(sent)
    if sent is signal.SIGUSR1:
        os.kill(launcher, sent)  # Slurm signals every process of a step
    time.sleep(0.1)
    script.send_signal(sent)
    _, errors = script.communicate(timeout=30)
    assert (tmp_path / "checkpoint").exists(), errors
    assert script.returncode == 75, errors
    assert not (tmp_path / "launcher_log").exists(), "torchrun would kill what has not ended after some time"
    assert not runs(rank)
    assert not runs(launcher)
    assert "Stopping: training ends after its checkpoint is written" in errors
    assert not list((tmp_path / "temporary").iterdir())


def test_a_signal_before_anything_trains_ends_torchrun(tmp_path: Path) -> None:
    script = start(tmp_path, RANK, "echo $$ >launcher; exec sleep 60")
    launcher = number(tmp_path / "launcher")
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == 75, "nothing to save, and the same command goes on"
    assert not runs(launcher)


@pytest.mark.parametrize(("rank", "status"), [("exit 0", 0), ("exit 9", 1)])
def test_a_run_that_is_not_stopped_ends_as_torchrun_does(tmp_path: Path, rank: str, status: int) -> None:
    script = start(tmp_path, rank)
    script.communicate(timeout=30)
    assert script.returncode == status
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "script",
    [
        "cache_dataset/run_metric_caching.sh",
        "submission/run_recogdrive_create_submission_pickle_2b.sh",
        "generate_dataset/generate_internvl_dataset.sh",
    ],
)
@pytest.mark.navsim
def test_no_script_leaves_its_runner_behind(tmp_path: Path, script: str, sent: signal.Signals) -> None:
    """Python is a program here that tells its number and stays, but for what asks where NAVSIM is."""
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/bash
        [[ $1$2 != -m*.log_shards ]] || exit 0
        [[ $1 == *.py || $1 == -m ]] || exec {shlex.quote(sys.executable)} "$@"
        echo $$ >{shlex.quote(str(tmp_path / "runner"))}
        exec sleep 60
        """
    )
    program.chmod(0o755)
    checkpoint = tmp_path / "planner.ckpt"
    checkpoint.touch()
    names = ("TEAM_NAME", "AUTHORS", "EMAIL", "INSTITUTION", "COUNTRY")
    started = subprocess.Popen(
        ["bash", str(SCRIPTS / script)],
        cwd=tmp_path,
        env=script_environment(
            PATH=f"{program.parent}:{os.environ['PATH']}",
            NAVSIM_EXP_ROOT=str(tmp_path / "exp"),
            CHECKPOINT=str(checkpoint),
            VLM_PATH=str(tmp_path),
            PYTHONPATH=os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(SCRIPTS.parent)]),
            **dict.fromkeys(names, "x"),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runner = number(tmp_path / "runner")
    started.send_signal(sent)
    _, errors = started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGTERM, errors
    assert not runs(runner)
