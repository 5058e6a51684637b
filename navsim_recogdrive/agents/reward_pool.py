"""Worker processes that score scenes while the GPU works, and that may die without harm."""

from __future__ import annotations

import itertools
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.agents.reward_messages import SceneScores, ScoringSettings

_log = logging.getLogger(__name__)

_DEATHS_PER_SCENE = 2
_DEATHS_AT_START = 3  # in a row, of workers that can start as far as is known: the machine may be short of memory
_SECONDS_TO_START = 600.0  # NAVSIM and nuPlan read from a slow network disk
_SECONDS_TO_END = 5.0
_ONE_THREAD_EACH = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class RewardWorkerFailed(RuntimeError):
    """A worker process that cannot score any scene."""


class ScoringJob:
    """One scene to score."""

    def __init__(self, number: int, token: str, trajectories: NDArray[np.float32]) -> None:
        self.number = number
        self.token = token
        self.message = pickle.dumps((number, token, trajectories))
        self.deaths = 0
        self.scores: SceneScores | None = None


class _Worker:
    """A process, the connection to it, and the jobs it has; it does them in order."""

    def __init__(self, settings: ScoringSettings) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # The same modules as here, without the current folder, which `python -c` would put in front.
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from navsim_recogdrive.agents.reward_worker import main; main({theirs.fileno()})"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_ONE_THREAD_EACH, "1"), "CUDA_VISIBLE_DEVICES": ""},
            )
        self.connection = Connection(ours.detach())
        self.jobs: deque[ScoringJob] = deque()
        self.is_ready = False
        self.was_silent = False
        self.last_heard = time.monotonic()
        self._post(pickle.dumps(settings))

    def send(self, job: ScoringJob) -> None:
        """Hand over a job."""
        self.jobs.append(job)
        self._post(job.message)

    def _post(self, message: bytes) -> None:
        # To a dead process too: its end is found, and its jobs with it, when its answers are read.
        with suppress(OSError):
            self.connection.send_bytes(message)

    def end(self) -> None:
        """Let the process end: it does when the connection closes."""
        # Shut down, not only closed: a process forked from this one, as a loader's worker, holds it open as well.
        with suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def how_it_ended(self) -> str:
        """Wait for the end, for a while."""
        try:
            code = self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class RewardPool:
    """Scores scenes in worker processes.

    A scene goes to the worker that had it before, so that its metric cache is still in memory, unless that worker
    already has more than its share: then to the least busy one. A worker that dies is replaced and its scenes are
    scored again; a scene at which workers died twice is given up. One that dies while it starts is replaced, too, if a
    signal ended it or another has started before; the fourth in a row ends the run.

    The processes end with this one, however it ends. Each rank of a distributed run has its own pool.

    Args:
        settings: for each worker.
        workers: how many, at least 1. One BLAS thread each.
        timeout_s: a worker that has work and from which nothing is heard for so many seconds is taken for dead.
    """

    def __init__(self, settings: ScoringSettings, workers: int, timeout_s: float = 300.0) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._owner = os.getpid()
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        self._one_was_ready = False
        self._deaths_at_start = 0
        self._close = weakref.finalize(self, _end_all, self._workers, self._owner)
        for _ in range(workers):
            self._workers.append(_Worker(settings))

    @property
    def process_ids(self) -> list[int]:
        """Of the workers, in order."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, tokens: Sequence[str], trajectories: Iterable[NDArray[np.float32]]) -> list[ScoringJob]:
        """Start to score scenes, each with its [G, 8, 3] trajectories; returns at once.

        Raises:
            RuntimeError: the pool is closed, or belongs to the process this one was forked from.
            RewardWorkerFailed: a worker could not start.
        """
        if not self._close.alive:
            raise RuntimeError("the reward's worker processes were closed")
        if os.getpid() != self._owner:
            raise RuntimeError(f"the reward's worker processes belong to process {self._owner}: make a reward here")
        self._read(timeout=0.0)
        jobs = [
            ScoringJob(next(self._numbers), token, group) for token, group in zip(tokens, trajectories, strict=True)
        ]
        waiting = sum(len(worker.jobs) for worker in self._workers)
        share = math.ceil((waiting + len(jobs)) / len(self._workers))
        late = []
        for job in jobs:
            worker = self._workers[zlib.crc32(job.token.encode()) % len(self._workers)]
            if len(worker.jobs) < share:
                worker.send(job)
            else:
                late.append(job)
        for job in late:
            min(self._workers, key=lambda worker: len(worker.jobs)).send(job)
        return jobs

    def wait_for(self, jobs: Sequence[ScoringJob]) -> list[SceneScores]:
        """Scores of submitted jobs, in order.

        Raises:
            RewardWorkerFailed: a worker could not start.
        """
        since = time.monotonic()
        while any(job.scores is None for job in jobs):
            if not self._close.alive:
                raise RuntimeError("the reward's worker processes were closed before all scenes were scored")
            self._read(timeout=1.0)
            self._kill_silent(since)
        return [job.scores for job in jobs if job.scores is not None]

    def _read(self, timeout: float) -> None:
        """Take what the workers have sent; replace those that ended."""
        by_connection = {worker.connection: worker for worker in self._workers}
        while ready := wait(list(by_connection), timeout):
            timeout = 0.0  # wait for the first message, then take what is there
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    self._replace(by_connection.pop(connection))
                else:
                    self._take(by_connection[connection], message)

    def _take(self, worker: _Worker, message: object) -> None:
        worker.last_heard = time.monotonic()
        if message is None:
            worker.is_ready = self._one_was_ready = True
            self._deaths_at_start = 0
        elif isinstance(message, str):
            self.close()
            raise RewardWorkerFailed(f"a worker process of the reward cannot score: {message}")
        else:
            assert isinstance(message, tuple)
            number, scores = message
            job = worker.jobs.popleft()
            assert job.number == number
            job.scores = scores

    def _replace(self, dead: _Worker) -> None:
        dead.end()
        ended = dead.how_it_ended()
        if not dead.is_ready:
            self._deaths_at_start += 1
            was_killed = dead.process.returncode < 0 and not dead.was_silent
            if self._deaths_at_start > _DEATHS_AT_START or not (was_killed or self._one_was_ready):
                self.close()
                raise RewardWorkerFailed(f"a worker process of the reward ended with {ended} before it could score")
        jobs = list(dead.jobs)
        _log.warning("a worker process of the reward ended with %s: replaced, %d scenes again", ended, len(jobs))
        if jobs and dead.is_ready:
            jobs[0].deaths += 1  # it was in work
            if jobs[0].deaths >= _DEATHS_PER_SCENE:
                error = f"{_DEATHS_PER_SCENE} worker processes ended while they scored it, the last with {ended}"
                jobs.pop(0).scores = SceneScores(None, error, time.monotonic())
        successor = _Worker(self._settings)
        self._workers[self._workers.index(dead)] = successor
        for job in jobs:
            successor.send(job)

    def _kill_silent(self, since: float) -> None:
        now = time.monotonic()
        for worker in self._workers:
            allowed = self._timeout_s if worker.is_ready else _SECONDS_TO_START
            if worker.jobs and now - max(worker.last_heard, since) > allowed:
                _log.warning("nothing heard from a worker process of the reward for %.0f s: killed", allowed)
                worker.process.kill()
                worker.was_silent = True
                worker.last_heard = now

    def close(self) -> None:
        """End the worker processes. A second call does nothing."""
        self._close()


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked copy: the processes are not its children
    for worker in workers:
        worker.end()
    deadline = time.monotonic() + _SECONDS_TO_END
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    workers.clear()
