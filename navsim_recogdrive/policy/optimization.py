"""The published optimiser and learning-rate curve of both training stages."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

ADAMW_BETAS = (0.9, 0.95)


def learning_rate(epoch: int, *, peak: float, floor: float, epochs: int, warmup_epochs: int) -> float:
    """The learning rate used throughout an epoch: a linear warm-up, then half a cosine from ``peak`` to ``floor``.

    ``peak * (epoch + 1) / warmup_epochs`` while ``epoch < warmup_epochs``, then
    ``floor + (peak - floor) (1 + cos(pi (epoch - warmup_epochs) / (epochs - warmup_epochs))) / 2``. The floor is
    reached in epoch ``epochs``, the one after the last; beyond it the cosine rises again, as published.

    Args:
        epoch: counted from 0.
        peak: highest learning rate.
        floor: lowest learning rate of the cosine.
        epochs: epochs of the whole run.
        warmup_epochs: epochs of the warm-up, possibly 0.
    """
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate_peak: float = 1e-4,
    learning_rate_floor: float = 1e-6,
    epochs: int = 200,
    warmup_epochs: int = 3,
    weight_decay: float = 1e-4,
) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable parameters and its schedule, stepped once per epoch.

    The defaults are the published imitation stage (200 epochs, 3 of warm-up, floor 1e-6); the reinforcement stage uses
    10 epochs, no warm-up, floor 0.

    Args:
        parameters: frozen ones (such as DDIM's eta) are left out.
        learning_rate_peak: highest learning rate.
        learning_rate_floor: lowest learning rate.
        epochs: epochs of the whole run.
        warmup_epochs: epochs of linear warm-up, fewer than ``epochs``.
        weight_decay: AdamW's, on all parameters.

    Returns:
        The optimiser and a scheduler whose ``step()`` belongs at the end of every epoch.

    Raises:
        ValueError: for a run without epochs after its warm-up, or without trainable parameters.
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"warmup_epochs must lie in 0..{epochs - 1} for {epochs} epochs, found {warmup_epochs}")
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: every one has requires_grad=False")
    optimizer = AdamW(trainable, lr=learning_rate_peak, betas=ADAMW_BETAS, weight_decay=weight_decay)

    def factor(epoch: int) -> float:
        return (
            learning_rate(
                epoch, peak=learning_rate_peak, floor=learning_rate_floor, epochs=epochs, warmup_epochs=warmup_epochs
            )
            / learning_rate_peak
        )

    return optimizer, LambdaLR(optimizer, factor)
