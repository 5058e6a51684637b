"""What a denoising method is: a training objective and a chain of denoising steps, all in float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import strided_timesteps


class LogProbUnsupported(ValueError):
    """A log-probability was asked of steps that have no density."""


class TrainingExample(NamedTuple):
    """What the network is shown and asked for.

    Attributes:
        noisy_actions: ``[..., horizon, 3]`` normalised, noise mixed in.
        timesteps: ``[...]`` int64, as the network takes them.
        target: ``[..., horizon, 3]``, what it should answer.
    """

    noisy_actions: Tensor
    timesteps: Tensor
    target: Tensor


class Transition(NamedTuple):
    """One denoising step: the next state's mean ``[..., horizon, 3]`` and standard deviation (broadcasting).

    ``std`` is ``None`` where the step is a deterministic function of the state.
    """

    mean: Tensor
    std: Tensor | None

    def log_prob(self, after: Tensor) -> Tensor:
        """Log-density of next states ``[..., horizon, 3]``, per coordinate, in nats.

        Raises:
            LogProbUnsupported: if the step is deterministic.
        """
        if self.std is None:
            raise LogProbUnsupported("a deterministic denoising step has no density")
        return -0.5 * ((after - self.mean) / self.std) ** 2 - self.std.log() - 0.5 * math.log(2 * math.pi)


class DenoisingSteps(ABC):
    """A chain of K denoising steps with their coefficients."""

    timesteps: Tensor
    """``[K]`` int64, as the network takes them, first step first."""

    @abstractmethod
    def step(self, k: int | slice, noisy_actions: Tensor, prediction: Tensor) -> Transition:
        """From the state before step ``k`` and the network's answer to the distribution of the state after it.

        Args:
            k: index of a step, or ``slice(None)`` for all steps at once, laid along axis -3 of the tensors.
            noisy_actions: ``[..., horizon, 3]`` or ``[..., K, horizon, 3]`` float32, normalised.
            prediction: the network's answer, same shape, float32.

        Returns:
            The transition, float32, before any floor on its standard deviation.
        """


class DenoisingMethod(ABC):
    """A way to train and to run a denoiser."""

    @abstractmethod
    def draw_levels(self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Draw the noise levels of training examples, one per element of ``shape``."""

    @abstractmethod
    def training_example(self, actions: Tensor, noise: Tensor, levels: Tensor) -> TrainingExample:
        """Mix noise into actions.

        Args:
            actions: ``[..., horizon, 3]`` float32, normalised.
            noise: ``[..., horizon, 3]`` float32.
            levels: ``[...]`` as :meth:`draw_levels` gives them.
        """

    @abstractmethod
    def steps(self, num_steps: int, eta: float, device: torch.device) -> DenoisingSteps:
        """The chain of ``num_steps`` denoising steps.

        ``eta`` is the stochasticity: in 0..1 for DDIM, the noise level of the stochastic form for flow matching; DDPM
        has none to choose.
        """


class NoisePrediction(DenoisingMethod):
    """Training as a DDPM: noise at a timestep drawn from 0..T-1, the network predicts the noise (Ho et al. 2020)."""

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        """Take the schedule's float32 tables ``[T]`` by their names in :func:`~..schedules.cosine_ddpm_tables`."""
        self.tables = tables
        self.alphas_cumprod = tables["ddpm_alphas_cumprod"]

    def draw_levels(self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Timesteps, uniform over 0..T-1, int64."""
        where = device if generator is None else generator.device
        return torch.randint(0, len(self.alphas_cumprod), shape, device=where, generator=generator).to(device)

    def training_example(self, actions: Tensor, noise: Tensor, levels: Tensor) -> TrainingExample:
        """``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise``, target the noise (Ho et al. 2020, eq. 4, 14)."""
        abar = self.alphas_cumprod[levels][..., None, None]
        return TrainingExample(abar.sqrt() * actions + (1 - abar).sqrt() * noise, levels, noise)

    def strided(self, num_steps: int) -> Tensor:
        """The ``[num_steps]`` timesteps of a denoising chain."""
        return strided_timesteps(len(self.alphas_cumprod), num_steps, self.alphas_cumprod.device)


def at_step(table: Tensor, k: int | slice) -> Tensor:
    """Entries of a per-step table ``[K]``, shaped to broadcast: ``[1, 1]`` for one step, ``[K, 1, 1]`` for all."""
    return table[k][..., None, None]
