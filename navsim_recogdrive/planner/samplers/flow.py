"""Flow matching along straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import DenoisingMethod, DenoisingSteps, TrainingExample, Transition

NETWORK_TIMESTEPS = 1000
"""The network sees ``floor(1000 t)``."""

TIME_SCALE = 0.999
BETA_EXPONENT = 1.5


class FlowSteps(DenoisingSteps):
    """Euler steps of the ordinary differential equation from noise (t = 0) to an action (t = 1)."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self.timesteps = torch.arange(num_steps, device=device) * NETWORK_TIMESTEPS // num_steps
        self.interval = 1.0 / num_steps

    def step(self, k: int | slice, noisy_actions: Tensor, prediction: Tensor) -> Transition:
        """``x <- x + v / K``; there is no noise."""
        return Transition(noisy_actions + self.interval * prediction, None)


class FlowMatching(DenoisingMethod):
    """Velocity prediction on the straight path between noise and action."""

    def draw_levels(self, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Times ``t = (0.999 - b) / 0.999`` with ``b ~ Beta(1.5, 1)``: float32 in [0, 1), most of them near the noise.

        ``b`` is drawn by its inverse distribution function, ``u^(1 / 1.5)``, so that a generator can be given. The one
        ``b`` in 700 above 0.999 counts as t = 0: the formula would give a negative time.
        """
        where = device if generator is None else generator.device
        b = torch.rand(shape, device=where, generator=generator).to(device) ** (1.0 / BETA_EXPONENT)
        return ((TIME_SCALE - b) / TIME_SCALE).clamp(min=0.0)

    def training_example(self, actions: Tensor, noise: Tensor, levels: Tensor) -> TrainingExample:
        """``x_t = (1 - t) noise + t x_0``, target the velocity ``x_0 - noise``."""
        time = levels[..., None, None]
        timesteps = (levels * NETWORK_TIMESTEPS).long()
        return TrainingExample((1 - time) * noise + time * actions, timesteps, actions - noise)

    def steps(self, num_steps: int, eta: float, device: torch.device) -> FlowSteps:
        """K Euler steps at t = 0, 1/K, ...; ``eta`` does not apply."""
        return FlowSteps(num_steps, device)
