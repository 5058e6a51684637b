"""DDPM (Ho et al. 2020, "Denoising Diffusion Probabilistic Models")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import DenoisingSteps, NoisePrediction, Transition, at_step


class DDPMSteps(DenoisingSteps):
    """Ancestral steps with the one-step posterior of the timestep they are taken at.

    With fewer steps than training timesteps the published sampler still uses the posterior towards ``t - 1``, not
    towards the next visited timestep; it is exact only for ``num_steps = T``. Kept, because log-probabilities and
    published numbers are those of this chain.
    """

    def __init__(self, tables: Mapping[str, Tensor], timesteps: Tensor) -> None:
        self.timesteps = timesteps
        self.per_noisy = tables["ddpm_sqrt_recip_alphas_cumprod"][timesteps]
        self.per_noise = tables["ddpm_sqrt_recipm1_alphas_cumprod"][timesteps]
        self.from_clean = tables["ddpm_mu_coef1"][timesteps]
        self.from_noisy = tables["ddpm_mu_coef2"][timesteps]
        self.std = (0.5 * tables["ddpm_logvar_clipped"][timesteps]).exp()

    def step(self, k: int | slice, noisy_actions: Tensor, prediction: Tensor) -> Transition:
        """Equation 7: the posterior of ``x_{t-1}`` given ``x_t`` and the implied ``x_0``, clamped to +-1."""
        clean = (at_step(self.per_noisy, k) * noisy_actions - at_step(self.per_noise, k) * prediction).clamp(-1, 1)
        mean = at_step(self.from_clean, k) * clean + at_step(self.from_noisy, k) * noisy_actions
        return Transition(mean, at_step(self.std, k))


class DDPM(NoisePrediction):
    """Noise prediction, sampled with the ancestral posterior; ``eta`` does not apply."""

    def steps(self, num_steps: int, eta: float, device: torch.device) -> DDPMSteps:
        """The chain over every (T // num_steps)-th timestep."""
        return DDPMSteps(self.tables, self.strided(num_steps))
