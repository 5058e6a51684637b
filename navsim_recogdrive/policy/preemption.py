"""Signals that announce the end of a job: the run writes its checkpoint first, on all ranks after the same step.

A cluster that takes its machines back sends SIGTERM some time before SIGKILL, or the signal that the job asked for
(Slurm: ``--signal=USR1@120``). The run then ends with exit status :data:`EXIT_STATUS`, and the same command with
``agent.resume=auto`` goes on. torchrun ends with a status of its own; who starts it may name a file in the environment
variable :data:`NOTE_VARIABLE`, to which the run adds a line.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

EXIT_STATUS = 75
"""Exit status of a run that was asked to end and wrote its checkpoint: sysexits' EX_TEMPFAIL, try again later."""

NOTE_VARIABLE = "RECOGDRIVE_PREEMPTED_FILE"
"""Environment variable with the file to which a process that ends as :class:`Preempted` adds its checkpoint's path."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """Ends a run after its checkpoint; no error, so that no traceback hides what the log says."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class StopRequest:
    """Whether one of :data:`SIGNALS` has come, while it listens.

    Its handlers take the place of Lightning's. Those would talk to the other ranks from inside the handler, which hangs
    where a rank is in another collective call, and under Slurm write a checkpoint in the middle of a step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Install the handlers; does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Put back what was there before."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # No logging here: the interrupted code may hold the log's lock.
        self.received = signal.Signals(number)


def note_preemption(checkpoint: str) -> None:
    """Tell who has started this process, through the file of :data:`NOTE_VARIABLE` where that is set."""
    if os.environ.get(NOTE_VARIABLE):
        with open(os.environ[NOTE_VARIABLE], "a", encoding="utf-8") as file:
            file.write(f"{checkpoint}\n")
