"""Signals that announce the end of a job: fine-tuning writes a checkpoint first, after the same step everywhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainingArguments

from navsim_recogdrive.policy.preemption import Preempted, StopRequest, note_preemption

logger = logging.getLogger(__name__)


class StopAtSignal(TrainerCallback):
    """Ends training with a checkpoint after the step in which any process got SIGTERM or SIGUSR1.

    At the last step there is nothing to stop: the run is finished as it would have been.
    """

    def __init__(self) -> None:
        self._request = StopRequest()
        self._stopped_at: int | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen."""
        self._request.listen()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if a signal has come."""
        if self._asked(args.device) and state.global_step < state.max_steps:
            self._stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back the handlers that were there before."""
        self._request.stop_listening()

    def end_if_stopped(self, output: Path, *, main: bool) -> None:
        """To be called after training.

        Args:
            output: folder of the run.
            main: whether this process speaks for all.

        Raises:
            Preempted: if training was stopped; the model of the run is not to be written.
        """
        if self._stopped_at is None:
            return
        checkpoint = output / f"checkpoint-{self._stopped_at}"
        if main:
            signal = "a signal to another process" if self._request.received is None else self._request.received.name
            logger.warning(
                "Stopped by %s after step %d; %s is written. The same command with --resume goes on",
                signal,
                self._stopped_at,
                checkpoint,
            )
        note_preemption(str(checkpoint))
        raise Preempted

    def _asked(self, device: torch.device) -> bool:
        asked = self._request.received is not None
        if not distributed.is_initialized():
            return asked
        any_process = torch.tensor([float(asked)], device=device)
        distributed.all_reduce(any_process, distributed.ReduceOp.MAX)
        return bool(any_process)
