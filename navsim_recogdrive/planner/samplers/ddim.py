"""DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models")."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import DenoisingSteps, NoisePrediction, Transition, at_step


class DDIMSteps(DenoisingSteps):
    """Strided DDIM steps from noise to an action."""

    def __init__(self, alphas_cumprod: Tensor, timesteps: Tensor, eta: float) -> None:
        self.timesteps = timesteps
        abar = alphas_cumprod[timesteps]
        abar_previous = torch.cat([abar[1:], torch.ones_like(abar[:1])])
        # Equation 16; the tiny floor keeps a std of zero out of a logarithm.
        self.sigma = (eta * ((1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)).sqrt()).clamp(min=1e-10)
        self.sqrt_abar, self.sqrt_one_minus_abar = abar.sqrt(), (1 - abar).sqrt()
        self.sqrt_abar_previous = abar_previous.sqrt()
        self.direction = (1 - abar_previous - self.sigma**2).clamp(min=0).sqrt()

    def step(self, k: int | slice, noisy_actions: Tensor, prediction: Tensor) -> Transition:
        """Equation 12, ``x_0`` clamped to +-1 and the noise recomputed from the clamped ``x_0``.

        ``mean = sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) noise``, ``std = sigma``, with ``abar'`` that of the next,
        less noisy state.
        """
        root, rest = at_step(self.sqrt_abar, k), at_step(self.sqrt_one_minus_abar, k)
        clean = ((noisy_actions - rest * prediction) / root).clamp(-1, 1)
        noise = (noisy_actions - root * clean) / rest
        mean = at_step(self.sqrt_abar_previous, k) * clean + at_step(self.direction, k) * noise
        return Transition(mean, at_step(self.sigma, k))


class DDIM(NoisePrediction):
    """Noise prediction, sampled in a few strided steps; ``eta`` = 1 is stochastic, ``eta`` = 0 deterministic."""

    def steps(self, num_steps: int, eta: float, device: torch.device) -> DDIMSteps:
        """The chain over every (T // num_steps)-th timestep."""
        return DDIMSteps(self.alphas_cumprod, self.strided(num_steps), eta)
