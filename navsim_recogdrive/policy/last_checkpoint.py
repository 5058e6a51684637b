"""``last.ckpt``: all that a run needs to go on, after every epoch, every few minutes or steps, and when it must end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from navsim_recogdrive.policy import random_state
from navsim_recogdrive.policy.data_order import OrderedScenes
from navsim_recogdrive.policy.preemption import Preempted, StopRequest, note_preemption
from navsim_recogdrive.policy.run_settings import RunSettings
from navsim_recogdrive.policy.training_configuration import CheckpointConfig

logger = logging.getLogger(__name__)

NAME = "last.ckpt"
KEY, STATE = "navsim_recogdrive", "resume"
"""Where a checkpoint holds what only a resumed run reads."""

FORMAT = 1

_FIT, _EPOCHS, _BATCHES = "fit_loop", "epoch_progress", "epoch_loop.batch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"
_LOOP, _STEPPED = "epoch_loop.state_dict", "_batches_that_stepped"


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` beside the best checkpoint, with everything that decides how the run goes on.

    Beside what Lightning saves (weights, optimizer, schedule, loops, gradient scaler, callbacks) the file holds, under
    ``navsim_recogdrive.resume``, the position in the data, the settings, and every rank's random generators. It is
    written between two optimizer steps, never while gradients accumulate. Asked to stop by a signal, the run writes it
    after the running step, or at the next batch of a validation, and ends as
    :class:`~navsim_recogdrive.policy.preemption.Preempted`. A validation that is cut short so is not repeated.

    Args:
        config: how often.
        scenes: where the training data's order is known.
        settings: of the run, for a resumed one to be compared with.

    Attributes:
        path: of the file; ``""`` before the run has begun.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        scenes: OrderedScenes,
        settings: RunSettings,
    ) -> None:
        self._config = config
        self._scenes = scenes
        self._settings = settings
        self._stop = StopRequest()
        self._position: dict[str, int] | None = None
        self._saved_at = 0.0
        self._saved_step = 0
        self._step = 0
        self.path = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write where the best checkpoint goes; that callback stands before this one."""
        best = next((found for found in trainer.checkpoint_callbacks if isinstance(found, ModelCheckpoint)), None)
        folder = trainer.default_root_dir if best is None else best.dirpath
        self.path = os.path.join(folder, NAME)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to signals; end if SIGTERM has come already, which Lightning takes for the end of a training."""
        self._stop.listen()
        self._saved_at = time.monotonic()
        self._step = self._saved_step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False):
            self._stop.stop_listening()
            if trainer.is_global_zero:
                logger.warning("Stopped before its first step. The same command with agent.resume=auto goes on")
            note_preemption(self.path)
            raise Preempted

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time or a signal has come, on all ranks alike."""
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        # At an epoch's last batch the epoch's end, or its validation, comes next.
        if not stepped or trainer.is_last_batch:
            return
        due = self._is_due(trainer) and not _validation_follows(trainer, batch_idx)
        if not trainer.strategy.reduce_boolean_decision(due or self._stop.received is not None, all=False):
            return
        self._save(trainer, trainer.current_epoch, batch_idx + 1, in_step=True)
        self._end_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and end if a signal has come."""
        if trainer.sanity_checking or self._step == 0 or not self._asked(trainer):
            return
        done = trainer.fit_loop.batch_idx + 1
        epoch, batches = (trainer.current_epoch + 1, 0) if trainer.is_last_batch else (trainer.current_epoch, done)
        self._save(trainer, epoch, batches, in_step=True)
        if trainer.is_global_zero:
            logger.warning("The validation of epoch %d was cut short and is not repeated", trainer.current_epoch)
        self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and end if a signal has come."""
        self._save(trainer, trainer.current_epoch + 1, 0, in_step=False)
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._end_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run is done."""
        self._stop.stop_listening()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run has failed, or Lightning has ended it at SIGTERM: what was written last is what stays."""
        if isinstance(exception, SIGTERMException):
            note_preemption(self.path)
        self._stop.stop_listening()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a resumed run needs, to the files that this callback writes; called on all ranks."""
        if self._position is None:
            return
        position = self._position
        _count_as_done(checkpoint["loops"][_FIT], position)
        checkpoint[KEY] = {
            **checkpoint.get(KEY, {}),
            STATE: {
                "format": FORMAT,
                "epoch": position["epoch"],
                "batches": position["batches"],
                "global_step": trainer.global_step,
                "batches_per_epoch": int(trainer.num_training_batches),
                "settings": dict(self._settings.fixed),
                "changeable": changeable(self._settings, trainer),
                "data": data_of(self._scenes, trainer),
                "random": _of_all_ranks(random_state.capture(trainer.strategy.root_device)),
            },
        }

    def _is_due(self, trainer: pl.Trainer) -> bool:
        config = self._config
        if config.every_steps is not None and trainer.global_step - self._saved_step >= config.every_steps:
            return True
        # One clock, so that the ranks do not save one after the other.
        minutes = (time.monotonic() - self._saved_at) / 60
        return trainer.is_global_zero and config.every_minutes is not None and minutes >= config.every_minutes

    def _asked(self, trainer: pl.Trainer) -> bool:
        asked = trainer.strategy.reduce_boolean_decision(self._stop.received is not None, all=False)
        return bool(asked)

    def _save(self, trainer: pl.Trainer, epoch: int, batches: int, *, in_step: bool) -> None:
        """Write the file, as a run that goes on with batch ``batches`` of ``epoch``.

        Lightning counts a batch as completed only after its callbacks, hence ``in_step``.
        """
        if trainer.fast_dev_run:
            return  # Lightning's trial of a few batches leaves no files
        self._position = {"epoch": epoch, "batches": batches, "in_step": int(in_step)}
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self._position = None
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        if not self._asked(trainer):
            return
        if trainer.is_global_zero:
            signal = "a signal to another rank" if self._stop.received is None else self._stop.received.name
            logger.warning(
                "Stopped by %s after step %d; %s is written. The same command with agent.resume=auto goes on",
                signal,
                trainer.global_step,
                self.path,
            )
        note_preemption(self.path)
        raise Preempted


def changeable(settings: RunSettings, trainer: pl.Trainer) -> dict[str, Any]:
    """The settings that a resumed run may change, with those of the trainer."""
    return {
        **settings.changeable,
        "trainer.params.max_epochs": trainer.max_epochs,
        "trainer.params.precision": str(trainer.precision),
        "trainer.params.gradient_clip_val": trainer.gradient_clip_val,
    }


def data_of(scenes: OrderedScenes, trainer: pl.Trainer) -> dict[str, Any]:
    """What decides which scenes a step is made of; a run stopped inside of an epoch must be resumed with the same."""
    return {**scenes.describe(), "accumulated batches": trainer.accumulate_grad_batches}


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation may come before the next batch: what it draws would be missing in the saved state."""
    return bool(trainer.enable_validation and (batch_idx + 1) % (trainer.val_check_batch or 1) == 0)


def _count_as_done(loop: dict[str, Any], position: Mapping[str, int]) -> None:
    """Write into the state of Lightning's loops that the position has been reached, no more and no less.

    Saved in its hooks, the state is one of "this batch is nearly done", which Lightning's versions read in different
    ways: before 2.5 they train the batch again. One where nothing is under way they all read alike.
    """
    epoch, batches = position["epoch"], position["batches"]
    inside = int(batches > 0)
    for progress in loop[_EPOCHS].values():
        progress.update(ready=epoch + inside, started=epoch + inside, processed=epoch, completed=epoch)
    counts = (
        (loop[_BATCHES], loop[_BATCHES]["total"]["ready"], batches),
        (loop[_VALIDATION], 0, 0),
    )
    for progress, total, current in counts:
        for name, done in (("total", total), ("current", current)):
            progress[name].update(ready=done, started=done, processed=done, completed=done)
        progress["is_last_batch"] = False
    loop[_LOOP][_STEPPED] += position["in_step"]


def _of_all_ranks(state: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
