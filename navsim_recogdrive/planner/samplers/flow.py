"""Flow matching along straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023).

Sampled by an ordinary differential equation, or by a stochastic one with the same marginals where log-probabilities are
needed (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import DenoisingMethod, DenoisingSteps, TrainingExample, Transition, at_step

NETWORK_TIMESTEPS = 1000
"""The network sees ``floor(1000 t)``."""

TIME_SCALE = 0.999
BETA_EXPONENT = 1.5


class FlowSteps(DenoisingSteps):
    """Euler steps from noise (t = 0) to an action (t = 1).

    With ``noise_level`` a = 0 they follow the ordinary differential equation. Otherwise they are Euler-Maruyama steps
    of the stochastic one with the same marginals, ``dx = (v + sigma^2 / 2 * score) dt + sigma dW`` with
    ``sigma = a sqrt((1 - t) / t)`` (Flow-GRPO's, with time running the other way). Sigma has a pole at t = 0, so the
    first step divides by 1 / K in place of t.
    """

    def __init__(self, num_steps: int, noise_level: float, device: torch.device) -> None:
        steps = torch.arange(num_steps, device=device)
        self.timesteps = steps * NETWORK_TIMESTEPS // num_steps
        self.interval = 1.0 / num_steps
        self.stochastic = noise_level > 0
        self.time = steps.float() / num_steps
        variance = noise_level**2 * (1 - self.time) / self.time.clamp(min=self.interval)
        self.correction = self.interval * variance / (2 * (1 - self.time))
        self.std = (variance * self.interval).sqrt()

    def step(self, k: int | slice, noisy_actions: Tensor, prediction: Tensor) -> Transition:
        """``x <- x + v / K`` and, if stochastic, ``sigma^2 / 2K * score``, with std ``sigma / sqrt(K)``.

        The score of the state at time t is ``-noise / (1 - t)``, with the noise that the velocity implies,
        ``x - t v``.
        """
        mean = noisy_actions + self.interval * prediction
        if not self.stochastic:
            return Transition(mean, None)
        noise = noisy_actions - at_step(self.time, k) * prediction
        return Transition(mean - at_step(self.correction, k) * noise, at_step(self.std, k))


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
        """K Euler steps at t = 0, 1/K, ...; ``eta`` is the noise level of the stochastic form, 0 the ordinary one."""
        return FlowSteps(num_steps, eta, device)
