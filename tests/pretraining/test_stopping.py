"""A signal to one process of a fine-tuning run; whole runs with one are in ``test_finetuning_runs.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from navsim_recogdrive.pretraining.finetuning.stopping import StopAtSignal


def test_all_processes_stop_after_the_same_step() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"),
            *("--rdzv_endpoint=localhost:0", str(Path(__file__).with_name("stopping_rank.py"))),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} saves and stops after step 3: True" for rank in (0, 1)]


def test_the_last_step_finishes_the_run(tmp_path: Path) -> None:
    arguments: Any = SimpleNamespace(device=torch.device("cpu"))
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    state = SimpleNamespace(global_step=6, max_steps=6)
    stop = StopAtSignal()
    stop.on_train_begin(arguments, state, control)
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_step_end(arguments, state, control)
    stop.on_train_end(arguments, state, control)
    assert not control.should_training_stop
    stop.end_if_stopped(tmp_path, main=True)
