"""Worker processes of loaders: they outlive the signals of a job, and not their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from navsim_recogdrive.policy import loader_workers
from navsim_recogdrive.policy.loader_workers import WorkerStart
from navsim_recogdrive.policy.preemption import EXIT_STATUS

# Keeps the iterators of both loaders alive to the end, as the exception's traceback does.
STOPPED_IN_VALIDATION = """
import os, signal, sys
from pathlib import Path
import pytorch_lightning as pl
from interrupted_training import run

class Signal(pl.Callback):
    def on_validation_batch_start(self, trainer, *_):
        os.kill(os.getpid(), signal.SIGTERM)

class Keep(pl.Callback):
    def on_exception(self, trainer, module, exception):
        kept.append(exception)

kept = []
run(Path(sys.argv[1]), workers=1, callbacks=[Signal(), Keep()])
raise kept[0]
"""


def test_a_worker_outlives_the_signals_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_workers, "GRACE_S", 1)
    started: list[int] = []
    start = WorkerStart(started.append, 0)
    child = os.fork()
    if child == 0:
        start(3)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        if started != [3]:
            os._exit(1)
        time.sleep(30)
        os._exit(2)
    begun = time.monotonic()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGALRM, "the grace is over"
    assert time.monotonic() - begun < 20


def test_a_run_stopped_in_a_validation_does_not_wait_for_its_workers(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parents[1])])}
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_VALIDATION, str(tmp_path)],
        env=environment,
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert stopped.returncode == EXIT_STATUS, stopped.stderr
    assert list(tmp_path.rglob("last.ckpt"))
