"""Going on with a run that was killed or has ended, through a runner that hands Lightning no checkpoint.

Lightning restores a checkpoint by itself only for a callback that is an ``OnExceptionCheckpoint``: ``Trainer.fit``
without ``ckpt_path`` then loads what that names. :class:`ContinueRun` is one that names the run's ``last.ckpt``. It
makes sure that the training really goes on there, and stops it otherwise.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from navsim_recogdrive.planner.checkpoints import read_checkpoint
from navsim_recogdrive.policy import random_state
from navsim_recogdrive.policy.data_order import OrderedScenes
from navsim_recogdrive.policy.last_checkpoint import FORMAT, KEY, NAME, STATE, changeable, data_of
from navsim_recogdrive.policy.run_settings import RunSettings

logger = logging.getLogger(__name__)

AUTO = "auto"
_TIME_STAMP = re.compile(r"\d{4}\.\d{2}\.\d{2}\.\d{2}\.\d{2}\.\d{2}")


class ResumeError(ValueError):
    """A run that cannot go on as asked: no checkpoint, one of another run, or a Lightning that does not restore it."""


@dataclass(frozen=True)
class Resumed:
    """The run to go on with.

    Attributes:
        path: of its ``last.ckpt``.
        state: what :class:`~navsim_recogdrive.policy.last_checkpoint.LastCheckpoint` wrote into it.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def position(self) -> str:
        """Where the run goes on, in words."""
        state = self.state
        inside = f", after {state['batches']} of its {state['batches_per_epoch']} batches" if state["batches"] else ""
        return f"epoch {state['epoch']}{inside} (step {state['global_step']})"


def find_checkpoint(resume: str, output_dir: str | Path | None) -> Path | None:
    """The file that ``agent.resume`` means.

    ``auto`` looks below ``output_dir``. If that ends with a time stamp (``YYYY.MM.DD.HH.MM.SS``), as NAVSIM's does
    where it is not set, every run of the same experiment has a folder of its own, so the folders of that kind beside it
    are looked through as well. The ``last.ckpt`` that was written last is taken.

    Args:
        resume: ``auto``, a checkpoint file, or the folder of a run.
        output_dir: of this run; needed for ``auto``.

    Returns:
        The file; ``None`` for ``auto`` where there is none yet.

    Raises:
        ResumeError: if a file or folder does not exist or holds none, or ``output_dir`` is not known.
    """
    if resume != AUTO:
        path = Path(resume)
        if path.is_file():
            return path
        if not path.exists():
            raise ResumeError(f"agent.resume={resume}: no such file or folder. Use auto, a {NAME}, or a run's folder")
        found = _newest([path])
        if found is None:
            raise ResumeError(f"agent.resume={resume}: no {NAME} in or below this folder; the run wrote none")
        return found
    if output_dir is None:
        raise ResumeError(f"agent.resume=auto needs the runner's output_dir, which is not set: name the {NAME} instead")
    here = Path(output_dir)
    runs = [here]
    if _TIME_STAMP.fullmatch(here.name) and here.parent.is_dir():
        runs += [run for run in here.parent.iterdir() if run != here and _TIME_STAMP.fullmatch(run.name)]
    return _newest(runs)


def read_resumed(path: Path, settings: RunSettings) -> Resumed:
    """Read what a resumed run needs to know, and make sure that it is set up as the checkpoint's run.

    Args:
        path: of the file; read with ``weights_only=True``.
        settings: of this run.

    Raises:
        PlannerCheckpointError: if the file cannot be read or holds anything but tensors and plain values.
        ResumeError: if it cannot be resumed from, or settings differ, with each of them.
    """
    kept = read_checkpoint(path).get(KEY)
    state = kept.get(STATE) if isinstance(kept, Mapping) else None
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        what = "no state to resume from" if state is None else f"a state of format {state.get('format')}"
        raise ResumeError(
            f"{path} holds {what}, a {NAME} of this version holds format {FORMAT}. To start a new run from its "
            "weights: agent.checkpoint_path=FILE, without agent.resume"
        )
    differing = _differences(state["settings"], settings.fixed)
    if differing:
        raise ResumeError(
            f"the run of {path} cannot go on with other settings:\n  "
            + "\n  ".join(differing)
            + "\nSet them as they were, or start a new run: without agent.resume, with agent.checkpoint_path=FILE for "
            "its weights"
        )
    return Resumed(path, state)


class ContinueRun(OnExceptionCheckpoint):
    """Makes Lightning restore a run, and checks that it did.

    Args:
        resumed: the run.
        scenes: starts its data where the run stopped.
        settings: of this run.

    Raises:
        ResumeError: in training, if Lightning did not restore the checkpoint, or did not go on at its position; for a
            run stopped inside of an epoch also if the data are not the same, or in other batches.
    """

    def __init__(self, resumed: Resumed, scenes: OrderedScenes, settings: RunSettings) -> None:
        super().__init__(resumed.path.parent, resumed.path.stem)
        self._resumed = resumed
        self._scenes = scenes
        self._settings = settings
        self._loaded = self._random_restored = False
        scenes.begin_at(resumed.state["epoch"], resumed.state["batches"])
        # Said for any OnExceptionCheckpoint; of two settings of fit() that no runner's user has.
        warnings.filterwarnings("ignore", message=r"`\.fit\(ckpt_path=None\)` was called without a model")
        # Said for all loaders that Lightning cannot restore by itself: ours starts where it shall.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        # Said of every folder that holds files: this is the run's own.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")

    @property
    def ckpt_path(self) -> str:
        """What Lightning shall restore."""
        return str(self._resumed.path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Go on in the run's folder, where its best checkpoint is; all ranks must have found the same file."""
        if stage != "fit":
            return
        path = self.ckpt_path
        first = trainer.strategy.broadcast(path)
        if first != path:
            raise ResumeError(
                f"rank {trainer.global_rank} found {path} to resume, rank 0 found {first}: name the file with "
                "agent.resume=FILE, on a file system that all nodes see"
            )
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = str(self._resumed.path.parent)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning restores a checkpoint: is it ours?"""
        found = checkpoint.get(KEY, {}).get(STATE, {})
        state = self._resumed.state
        names = ("epoch", "batches", "global_step")
        self._loaded = all(found.get(name) == state[name] for name in names)
        if self._loaded and trainer.is_global_zero:
            logger.info("Resuming %s at %s", self.ckpt_path, self._resumed.position)
            if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= state["epoch"]:
                logger.warning(
                    "The run has had its trainer.params.max_epochs=%s epochs: nothing is left to train. A new run "
                    "needs agent.resume=null or another experiment_name",
                    trainer.max_epochs,
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything is restored: compare."""
        state = self._resumed.state
        here = (trainer.current_epoch, trainer.global_step)
        if not self._loaded or here != (state["epoch"], state["global_step"]):
            raise self._not_restored(f"training would begin at epoch {here[0]}, step {here[1]}")
        differing = _differences(state["data"], data_of(self._scenes, trainer))
        if differing and state["batches"]:
            raise ResumeError(
                f"{self.ckpt_path} stopped inside of an epoch, which cannot go on with other data or batches:\n  "
                + "\n  ".join(differing)
                + "\nUse them as they were until the epoch's end, or start a new run from its weights "
                "(agent.checkpoint_path=FILE, without agent.resume)"
            )
        for line in (*differing, *_differences(state["changeable"], changeable(self._settings, trainer))):
            if trainer.is_global_zero:
                logger.warning("The resumed run goes on with another %s", line)
        _follow_curve(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning 2.4 steps the schedule twice at the end of an epoch that it resumed inside."""
        _follow_curve(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first step: at the right batch, and with the random numbers that would have come next."""
        if self._random_restored:
            return
        self._random_restored = True
        state = self._resumed.state
        if (trainer.current_epoch, batch_idx) != (state["epoch"], state["batches"]):
            raise self._not_restored(f"the first batch is number {batch_idx} of epoch {trainer.current_epoch}")
        if trainer.global_rank < len(state["random"]):
            random_state.restore(state["random"][trainer.global_rank], trainer.strategy.root_device)

    def on_exception(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Save nothing: ``last.ckpt`` is that of a state that was sound."""

    def teardown(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Remove nothing."""

    def _not_restored(self, found: str) -> ResumeError:
        return ResumeError(
            f"Lightning {pl.__version__} did not restore {self.ckpt_path} at {self._resumed.position}: {found}. "
            "Nothing was trained or overwritten. Use a pytorch-lightning between 2.4 and 2.6, and report this"
        )


def _newest(folders: list[Path]) -> Path | None:
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob(NAME)]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    absent = object()
    names = [*before, *(name for name in now if name not in before)]

    def text(value: Any) -> str:
        return "not set" if value is absent else str(value)

    return [
        f"{name}: {text(before.get(name, absent))} in the checkpoint, {text(now.get(name, absent))} in this run"
        for name in names
        if before.get(name, absent) != now.get(name, absent)
    ]


def _follow_curve(trainer: pl.Trainer) -> None:
    """Set the learning rates that this run's schedule has for this epoch; of other ``epochs`` it is another curve."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR) or config.interval != "epoch":
            continue
        scheduler.last_epoch = trainer.current_epoch
        curves = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * curve(scheduler.last_epoch) for base, curve in curves]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
