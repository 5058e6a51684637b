"""Exponential moving average (EMA) of what is trained: validated, saved beside the raw weights, and resumed.

torch's :class:`~torch.optim.swa_utils.AveragedModel` keeps the average of the trained parameters alone. Lightning's
``WeightAveraging`` copies the whole module instead, with its frozen VLM and its buffers, and needs Lightning 2.6. The
checkpoints are laid out as its are: ``state_dict`` holds the average, so that every reader of a checkpoint gets the
weights that were validated, ``current_model_state`` the raw weights and ``averaging_state`` the number of updates.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from navsim_recogdrive.planner.checkpoints import RAW_WEIGHTS
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import EMAConfig

logger = logging.getLogger(__name__)

_STATE, _UPDATES = "averaging_state", "n_averaged"


def decay_at(update: int, decay: float, warmup: bool) -> float:
    """The share of the old average that update number ``update`` keeps.

    ``min(decay, (1 + update) / (10 + update))`` with warm-up, the rule of TensorFlow's ``ExponentialMovingAverage``: a
    short run's average then does not stay at the weights that it began with.

    Args:
        update: counted from 0; that one copies the weights, whatever the decay.
        decay: of the settings.
        warmup: of the settings.
    """
    return min(decay, (1 + update) / (10 + update)) if warmup else decay


class WeightAverage(pl.Callback):
    """Averages the trained parameters after every optimizer step and lends the average to validation.

    ``average <- d average + (1 - d) weights`` with ``d`` of :func:`decay_at`; the first update copies the weights.
    Every rank averages the same weights, which DDP keeps equal, so the average needs no communication. Parameters that
    are not trained (a frozen VLM) and buffers (noise schedules) are neither averaged nor copied. What is trained
    stands in memory once more, on its device.

    The raw weights are trained on to the end and are what is in the module after the run. This callback must stand
    before every other that saves checkpoints or looks at the validated weights.

    Args:
        config: with a ``decay``.

    Raises:
        InvalidSetting: at the start of training, for a strategy that shards the weights, or trained weights that are
            not float32.
    """

    def __init__(self, config: EMAConfig) -> None:
        if config.decay is None:
            raise ValueError("an average needs ema.decay, found None")
        self._decay: float = config.decay
        self._warmup = config.warmup
        self._weights = nn.ParameterList()
        self._average: AveragedModel | None = None
        self._averages: list[nn.Parameter] = []  # of the weights, in their order
        self._position: dict[str, int] = {}  # in these two, of a parameter by each of its names
        self._lent = False  # the average is in the module, the raw weights stand in its place
        self._latest_step = 0
        self._restored: tuple[dict[str, Tensor], int] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse strategies under which a rank does not hold all weights."""
        strategy = trainer.strategy
        whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
        if stage == "fit" and not whole:
            raise InvalidSetting(
                f"agent.ema.decay={self._decay} needs whole weights on every rank, found {type(strategy).__name__}: "
                "set trainer.params.strategy=ddp, or leave agent.ema.decay out"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the average, or go on with a checkpoint's; the weights are on their device and equal on all ranks."""
        trained = _trained(pl_module)
        for name, parameter in trained.items():
            if parameter.dtype != torch.float32:
                raise InvalidSetting(
                    f"agent.ema.decay={self._decay} needs trained weights in float32, found {name} in "
                    f"{parameter.dtype}, in which small steps vanish: set trainer.params.precision=bf16-mixed"
                )
        unique = list(dict.fromkeys(trained.values()))
        at = {parameter: index for index, parameter in enumerate(unique)}
        self._position = {name: at[parameter] for name, parameter in trained.items()}
        self._weights = nn.ParameterList(unique)
        self._average = AveragedModel(self._weights, multi_avg_fn=self._blend)
        self._averages = list(self._average.parameters())
        if self._restored is not None:
            values, updates = self._restored
            with torch.no_grad():
                for name, value in values.items():
                    self._averages[self._position[name]].copy_(value)
            self._average.n_averaged.fill_(updates)
            self._restored = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if the optimizer has stepped, which it does not after every batch that accumulates."""
        if self._average is not None and trainer.global_step > self._latest_step:
            self._average.update_parameters(self._weights)
            self._latest_step = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        if self._average is not None and not self._lent:
            self._exchange()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train the raw weights on."""
        self._take_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Validation may have been interrupted."""
        self._take_back()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer step of the last update, and the settings."""
        return {"latest_update_step": self._latest_step, "decay": self._decay, "warmup": self._warmup}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; settings may change between runs, which the log says."""
        self._latest_step = state_dict["latest_update_step"]
        before = {name: state_dict[name] for name in ("decay", "warmup")}
        if before != {"decay": self._decay, "warmup": self._warmup}:
            logger.warning(
                "The run that is resumed averaged with agent.ema.decay=%s agent.ema.warmup=%s, this one goes on with "
                "decay=%s warmup=%s",
                *before.values(),
                self._decay,
                self._warmup,
            )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average in ``state_dict``; what is not trained is the same tensor in both, and in the file once."""
        if self._average is None:
            return
        live = checkpoint["state_dict"]
        other = copy.copy(live)
        for name, index in self._position.items():
            if name in live:
                other[name] = self._averages[index].detach()
        checkpoint["state_dict"], checkpoint[RAW_WEIGHTS] = (live, other) if self._lent else (other, live)
        checkpoint[_STATE] = {_UPDATES: self._average.n_averaged}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resuming, take the average out of ``state_dict`` and train on with the raw weights."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if RAW_WEIGHTS not in checkpoint:
            logger.warning(
                "The run that is resumed kept no average of its weights: agent.ema.decay=%s starts one now", self._decay
            )
            return
        averaged = {name: checkpoint["state_dict"][name] for name in _trained(pl_module)}
        self._restored = averaged, int(checkpoint[_STATE][_UPDATES])
        # Lightning has loaded ``state_dict`` by now.
        raw = {"state_dict": checkpoint[RAW_WEIGHTS]}
        trainer.strategy.load_model_state_dict(raw, strict=pl_module.strict_loading)

    def _blend(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        assert self._average is not None
        # The module's own counter: the argument is a copy on the GPU, which reading would wait for.
        decay = decay_at(int(self._average.n_averaged), self._decay, self._warmup)
        get_ema_multi_avg_fn(decay)(averages, weights, updates)

    def _take_back(self) -> None:
        if self._lent:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the module's weights and the average, one after the other: no second copy of all of them."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._lent = not self._lent


class NoWeightAverage(pl.Callback):
    """Keeps a run without an average from going on with the average of another as if it were its weights."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume.

        Raises:
            InvalidSetting: if the checkpoint is of a run with an average.
        """
        if trainer.state.fn == TrainerFn.FITTING and RAW_WEIGHTS in checkpoint:
            settings = checkpoint.get("callbacks", {}).get(WeightAverage.__qualname__, {})
            raise InvalidSetting(
                "the run to resume averages its weights, this one is configured without: set agent.ema.decay="
                f"{settings.get('decay', 'NUMBER')} as there, or start a new run from its average "
                "(agent.checkpoint_path=FILE)"
            )


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name; one with several names comes several times."""
    named = module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if parameter.requires_grad}
