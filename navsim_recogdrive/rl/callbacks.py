"""Callbacks of reinforcement learning: what is logged, and that the reward ends with the run."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from navsim_recogdrive.rl.objective import PLANS, RLObjective
from navsim_recogdrive.rl.reward import Reward
from navsim_recogdrive.rl.stopwatch import Stopwatch

_log = logging.getLogger(__name__)

GRADIENT_NORM = "gradient_norm"
_REWARD = "reward/mean"
_BACKWARD = "backward"
_ON_DEVICE = ("condition", "rollout", "log_prob", _BACKWARD)
_EXTREMES = {"min": (min, math.inf), "max": (max, -math.inf)}  # by the end of a name; others are averaged


class NothingScored(RuntimeError):
    """An epoch of training of which no scene could be scored: nothing is learned, while weight decay goes on."""


class RLLog(pl.Callback):
    """Logs the objective's statistics: of each step under ``train/NAME``, of each epoch under ``train/NAME_epoch``.

    The value of a step is that of rank 0 (the log's). That of an epoch is over the steps of all ranks: the mean, and
    the smallest and largest for names that end with ``/min`` and ``/max``. Steps without a value (``reward/...`` where
    no scene could be scored) do not count; an epoch without any logs nothing under that name. Beside the statistics of
    :class:`~.objective.RLObjective`:

    - ``gradient_norm``: of all gradients, averaged over ranks and before clipping; once per optimizer step;
    - ``seconds/backward``: of the device; it includes activations that are computed again;
    - ``seconds/device``: of the device, the sum of condition, rollout, log-probabilities and backward pass;
    - ``seconds/step``: of a batch, without loading it;
    - ``val/score_deterministic``, ``val/score_stochastic``: mean reward of validation plans without and with noise,
      over all scored scenes of all ranks; ``val/scored_scenes``: how many these are. Not of the sanity check. Without
      any the scores are NaN, with a warning: the epoch counts as the worst for the best checkpoint.

    At the start it warns of settings that cannot act together.

    Args:
        objective: whose statistics are read after each batch.

    Raises:
        NothingScored: at the end of a whole epoch of training of which no scene on any rank could be scored.
    """

    def __init__(self, objective: RLObjective) -> None:
        self._objective = objective
        self._epoch: dict[str, list[float]] = {}
        self._steps = 0
        self._gradient_norm: float | None = None
        self._started = 0.0
        self._watch = Stopwatch(torch.device("cpu"))
        self._scores = torch.zeros(1 + len(PLANS), dtype=torch.float64)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn of rollouts that are used again before anything is learned from them."""
        updates, accumulated = self._objective.config.updates_per_rollout, trainer.accumulate_grad_batches
        if updates > 1 and accumulated > 1 and trainer.is_global_zero:
            _log.warning(
                "agent.rl.updates_per_rollout=%d counts batches, and trainer.params.accumulate_grad_batches=%d steps "
                "the weights after that many: rollouts are used again before the weights have changed, where the "
                "importance ratio is 1 and the gradient that of the first use. Set one of the two to 1",
                updates,
                accumulated,
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._epoch, self._steps = {}, 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._gradient_norm = None
        self._started = time.perf_counter()
        self._watch = Stopwatch(pl_module.device)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """The forward pass is over."""
        self._watch.begin(_BACKWARD)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is over, on several ranks with the exchange of gradients."""
        self._watch.end(_BACKWARD)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradients: they are complete and unscaled here, and not yet clipped."""
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norms = [gradient.float().norm() for gradient in gradients]
        self._gradient_norm = float(torch.stack(norms).norm()) if norms else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step."""
        self._steps += 1
        measured = dict(self._objective.statistics)
        for part, seconds in self._watch.seconds().items():
            measured[f"seconds/{part}"] = seconds
        measured["seconds/device"] = sum(measured.get(f"seconds/{part}", 0.0) for part in _ON_DEVICE)
        measured["seconds/step"] = time.perf_counter() - self._started
        if self._gradient_norm is not None:
            measured[GRADIENT_NORM] = self._gradient_norm
        for name, value in measured.items():
            values = self._epoch.setdefault(name, [])
            if math.isfinite(value):
                values.append(value)
        known = {f"train/{name}": value for name, value in measured.items() if math.isfinite(value)}
        pl_module.log_dict(known, on_step=True, on_epoch=False, rank_zero_only=True, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch over all ranks; raises :class:`NothingScored`."""
        nothing_scored = False
        for name, values in self._epoch.items():  # every rank has the same names in the same order
            last = name.rpartition("/")[2]
            if last in _EXTREMES:
                best, empty = _EXTREMES[last]
                value = self._reduce(trainer, pl_module, [best(values, default=empty)], last)[0]
                is_known = math.isfinite(value)
            else:
                total, count = self._reduce(trainer, pl_module, [sum(values), len(values)], "sum")
                value, is_known = total / count.clamp(min=1), bool(count)
            if not is_known:  # on no rank, so all ranks skip it
                nothing_scored |= name == _REWARD
                continue
            # Already equal on all ranks; sync_dist only tells Lightning so.
            pl_module.log(f"train/{name}_epoch", value, sync_dist=True, batch_size=1)
        # The rest of an epoch that was resumed in its middle may well be a few scenes that are left out.
        if nothing_scored and self._steps == trainer.num_training_batches:
            raise NothingScored(
                f"no scene of epoch {trainer.current_epoch} could be scored, so there is nothing to learn from (the "
                "warnings above say why scenes are left out)"
            )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self._scores = torch.zeros_like(self._scores)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's scored scenes."""
        statistics = self._objective.statistics
        scenes = statistics["score/scenes"]
        if scenes:
            sums = [scenes, *(scenes * statistics[f"score/{name}"] for name in PLANS)]
            self._scores += torch.tensor(sums, dtype=torch.float64)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the mean scores over all ranks."""
        scenes, *sums = self._reduce(trainer, pl_module, self._scores.tolist(), "sum")
        if trainer.sanity_checking:  # of a few batches, which may well be scenes that are left out
            return
        if not scenes and trainer.is_global_zero:
            _log.warning(
                "no scene of this validation could be scored, so there is no val/score to choose the best checkpoint "
                "by: agent.metric_cache_path needs metric caches of validation scenes too (the warnings above say why "
                "scenes are left out)"
            )
        pl_module.log("val/scored_scenes", scenes, sync_dist=True)
        for name, total in zip(PLANS, sums, strict=True):
            # NaN without scenes is worse than any score; without a value Lightning's ModelCheckpoint would end the run.
            pl_module.log(f"val/score_{name}", total / scenes, prog_bar=True, sync_dist=True)

    @staticmethod
    def _reduce(trainer: pl.Trainer, pl_module: pl.LightningModule, values: list[float], by: str) -> Tensor:
        reduced = trainer.strategy.reduce(torch.tensor(values, device=pl_module.device), reduce_op=by)
        assert isinstance(reduced, Tensor)
        return reduced


class CloseReward(pl.Callback):
    """Ends the reward's processes with the run, however it ends."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The run is over."""
        self._reward.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The run failed, or was interrupted."""
        self._reward.close()
