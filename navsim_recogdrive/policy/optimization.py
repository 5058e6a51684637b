"""The published optimiser and learning-rate curve of both training stages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import OptimizerConfig


def learning_rate(epoch: int, *, peak: float, floor: float, epochs: int, warmup_epochs: int) -> float:
    """The learning rate used throughout an epoch: a linear warm-up, then half a cosine from ``peak`` to ``floor``.

    ``peak * (epoch + 1) / warmup_epochs`` while ``epoch < warmup_epochs``, then
    ``floor + (peak - floor) (1 + cos(pi (epoch - warmup_epochs) / (epochs - warmup_epochs))) / 2``. The floor is
    reached in epoch ``epochs``, the one after the last; beyond it the cosine rises again, as published. A run that is
    not longer than its warm-up never leaves it.

    Args:
        epoch: counted from 0.
        peak: highest learning rate.
        floor: lowest learning rate of the cosine.
        epochs: epochs of the whole run.
        warmup_epochs: epochs of the warm-up, possibly 0.
    """
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    if epochs <= warmup_epochs:
        return peak
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    *,
    vlm_parameters: Iterable[nn.Parameter] = (),
    vlm_learning_rate: float | None = None,
) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable parameters and its schedule, stepped once per epoch.

    Args:
        parameters: frozen ones (such as DDIM's eta) are left out.
        config: rates, warm-up, decay and the number of epochs.
        vlm_parameters: of a VLM that is trained too: a parameter group of its own.
        vlm_learning_rate: its highest learning rate, on a curve of the same shape; ``None``: the planner's.

    Returns:
        The optimiser and a scheduler whose ``step()`` belongs at the end of every epoch.

    Raises:
        InvalidSetting: if the number of epochs is unknown.
        ValueError: without trainable parameters.
    """
    if config.epochs is None or config.epochs < 1:
        raise InvalidSetting(
            f"the learning-rate schedule needs the number of epochs, found {config.epochs}: set "
            "trainer.params.max_epochs=N (or agent.optimizer.epochs=N)"
        )
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: every one has requires_grad=False")
    groups: list[dict[str, Any]] = [{"params": trainable}]
    if of_vlm := [parameter for parameter in vlm_parameters if parameter.requires_grad]:
        rate = config.learning_rate if vlm_learning_rate is None else vlm_learning_rate
        groups = [{"params": trainable, "name": "planner"}, {"params": of_vlm, "name": "vlm", "lr": rate}]
    optimizer = AdamW(groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    curve = partial(
        learning_rate,
        peak=config.learning_rate,
        floor=config.min_learning_rate,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
    )
    return optimizer, LambdaLR(optimizer, lambda epoch: curve(epoch) / config.learning_rate)


def lightning_optimizers(
    module: nn.Module,
    config: OptimizerConfig,
    *,
    vlm: nn.Module | None = None,
    vlm_learning_rate: float | None = None,
) -> dict[str, Any]:
    """What Lightning's ``configure_optimizers`` returns: the optimiser, and its schedule stepped once per epoch.

    Args:
        module: the planner.
        config: see :func:`build_optimizer`.
        vlm: trained beside it, if anything of it is trainable.
        vlm_learning_rate: its highest learning rate; ``None``: the planner's.
    """
    optimizer, scheduler = build_optimizer(
        module.parameters(),
        config,
        vlm_parameters=() if vlm is None else vlm.parameters(),
        vlm_learning_rate=vlm_learning_rate,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
