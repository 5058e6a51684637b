"""Stops a run whose gradients grow out of bounds, before they reach the weights, and names the batch."""

from __future__ import annotations

import logging
import statistics
from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch

from navsim_recogdrive.policy.features import TOKEN
from navsim_recogdrive.policy.training_configuration import DivergenceConfig

logger = logging.getLogger(__name__)

_NAMED = 3


class Diverged(RuntimeError):
    """Gradients that are not finite or far above those of the steps before; names the scenes of the batch."""


class GradientWatch(pl.Callback):
    """Looks at the norm of all gradients before every optimizer step, averaged over ranks and not yet clipped.

    A step is refused, and the run stopped with its weights as they were, if the norm

    - is not finite. With a gradient scaler (``precision=16-mixed``), which tries larger scales and leaves such steps
      out, only if that happens ``skipped_steps`` times in a row;
    - is more than ``factor`` times the median of the last ``window`` norms, ``patience`` times in a row. Clipping makes
      a single such step harmless. Nothing is compared until the window is full.

    Args:
        config: bounds.

    Raises:
        Diverged: in training, on every rank, with the scenes of that rank.
    """

    def __init__(self, config: DivergenceConfig) -> None:
        self._config = config
        self._norms: deque[float] = deque(maxlen=config.window)
        self._above = self._skipped = 0
        self._tokens: list[str] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the scenes; those of all batches whose gradients are added up."""
        self._tokens += [str(token) for token in batch[1].get(TOKEN, [])]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure, compare, remember."""
        tokens, self._tokens = self._tokens, []
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
        if not torch.isfinite(torch.tensor(norm)):
            self._not_finite(trainer, pl_module, norm, tokens)
            return
        self._skipped = 0
        factor = self._config.factor
        if factor is not None and len(self._norms) == self._config.window:
            median = statistics.median(self._norms)
            if norm > factor * median > 0:
                self._too_large(trainer, norm, median, tokens)
                return  # not remembered: the median is that of sound steps
            self._above = 0
        self._norms.append(norm)

    def state_dict(self) -> dict[str, Any]:
        """The norms that the next is compared with."""
        return {"norms": list(self._norms), "above": self._above, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with those of the run that is resumed."""
        self._norms.extend(state_dict["norms"])
        self._above, self._skipped = state_dict["above"], state_dict["skipped"]

    def _not_finite(self, trainer: pl.Trainer, module: pl.LightningModule, norm: float, tokens: list[str]) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        allowed = self._config.skipped_steps if scaler is not None else 1
        self._skipped += 1
        if self._skipped < allowed:
            return
        named = [
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        times = f" in {self._skipped} steps in a row" if self._skipped > 1 else ""
        raise Diverged(
            f"the gradient norm is {norm}{times}, from {', '.join(named[:_NAMED])}{more}. {_advice(trainer, tokens)}"
        )

    def _too_large(self, trainer: pl.Trainer, norm: float, median: float, tokens: list[str]) -> None:
        config = self._config
        self._above += 1
        if self._above < config.patience:
            logger.warning(
                "Step %d: the gradient norm is %.3g, the median of the last %d was %.3g; scenes %s",
                trainer.global_step,
                norm,
                config.window,
                median,
                ", ".join(tokens),
            )
            return
        raise Diverged(
            f"the gradient norm is {norm:.3g}, in {self._above} steps in a row more than agent.divergence.factor="
            f"{config.factor:g} times the median of the last {config.window} ({median:.3g}). "
            f"{_advice(trainer, tokens)}, or agent.divergence.factor=null if such norms are sound"
        )


def _advice(trainer: pl.Trainer, tokens: list[str]) -> str:
    return (
        f"Step {trainer.global_step} of rank {trainer.global_rank} was not made; scenes of its batch: "
        f"{', '.join(tokens)}. The last checkpoint that was written is sound. Look at these scenes, then go on with "
        "agent.resume and trainer.params.gradient_clip_val=1.0 or trainer.params.precision=bf16-mixed; or begin a new "
        "run from it (agent.checkpoint_path) with a lower agent.optimizer.learning_rate"
    )
