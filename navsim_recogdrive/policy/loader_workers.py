"""Worker processes of data loaders: they outlive the signals that announce the end of a job, and end with their parent.

Slurm signals every process of a job step. A worker that ended at once would fail the step that its parent still
finishes before the checkpoint, see :mod:`navsim_recogdrive.policy.preemption`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from ctypes import c_bool
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader

GRACE_S = 3600
"""Seconds that a worker goes on after SIGTERM, for its parent to finish the step and the checkpoint.

A worker that ends under its parent's hands fails it, and the checkpoint of a large model takes minutes.
"""

_BEFORE_CHILDREN_ARE_TERMINATED = 100


class WorkerStart:
    """``worker_init_fn`` of a loader: lets the signals pass, then does what would have been the start.

    Args:
        then: the loader's own ``worker_init_fn``; ``None``: Lightning's, where it seeds workers.
        rank: of this process, the parent.
    """

    def __init__(self, then: Callable[[int], None] | None, rank: int) -> None:
        self._then = then
        self._rank = rank
        # Shared memory without a lock: it is read inside a signal handler.
        self._parent_ends = multiprocessing.RawValue(c_bool, False)
        # Loaders whose iterators are alive when Python ends do not end their workers themselves: Python sends those
        # SIGTERM then, and waits for them.
        Finalize(self, _set, args=(self._parent_ends,), exitpriority=_BEFORE_CHILDREN_ARE_TERMINATED)

    def __call__(self, worker_id: int) -> None:
        """In the worker, counted from 0."""
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)
        if self._then is not None:
            self._then(worker_id)
        elif int(os.environ.get("PL_SEED_WORKERS", 0)):
            pl_worker_init_function(worker_id, self._rank)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._parent_ends.value:
            os._exit(0)
        signal.alarm(GRACE_S)  # never ignored for good: SIGALRM ends this process


def let_signals_pass(loader: DataLoader[Any], rank: int) -> None:
    """Start the loader's workers, when they are, with :class:`WorkerStart`; a second call does nothing."""
    if not isinstance(loader.worker_init_fn, WorkerStart):
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn, rank)


def _set(flag: c_bool) -> None:
    flag.value = True
