"""The imitation objective: the planner learns to denoise human trajectories (arXiv 2506.08052, imitation stage)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from navsim_recogdrive.planner import Condition, DiffusionPlanner, normalize_trajectory


def imitation_loss(
    planner: DiffusionPlanner,
    condition: Condition,
    trajectories: Tensor,
    *,
    draws_per_scene: int = 1,
    noise: Tensor | None = None,
    levels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the planner's prediction: of the noise (ddim, ddpm) or the velocity (flow).

    Several (noise, level) pairs can be drawn per scene on its one condition. As a scene's cost is nearly all in the
    condition, more draws cost little and lower the variance of the gradient; the expected loss is the same.

    Args:
        planner: the planner being trained.
        condition: of B scenes, made by this planner with gradients enabled.
        trajectories: ``[B, horizon, 3]`` the human's (x, y, heading), metres and radians, ego frame.
        draws_per_scene: D pairs per scene, 1 as published.
        noise: ``[B, D, horizon, 3]``, drawn if not given.
        levels: ``[B, D]``, drawn after the noise if not given: int64 timesteps (ddim, ddpm) or float32 times in [0, 1)
            (flow).
        generator: draws noise and levels, on its own device.

    Returns:
        Scalar float32 loss, the mean over scenes, draws, poses and coordinates.

    Raises:
        ValueError: for tensors of another shape, or ``draws_per_scene`` below 1.
    """
    if draws_per_scene < 1:
        raise ValueError(f"draws_per_scene must be at least 1, found {draws_per_scene}")
    draws = (condition.batch_size, draws_per_scene)
    pose = (planner.config.horizon, 3)
    device = condition.context.device
    for name, given, shape in (
        ("trajectories", trajectories, (draws[0], *pose)),
        ("noise", noise, (*draws, *pose)),
        ("levels", levels, draws),
    ):
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, found {list(given.shape)}")
    if noise is None:
        where = device if generator is None else generator.device
        noise = torch.randn((*draws, *pose), device=where, generator=generator)
    method = planner.method
    if levels is None:
        levels = method.draw_levels(draws, device, generator)
    actions = normalize_trajectory(trajectories).to(device).unsqueeze(1)
    example = method.training_example(actions, noise.to(device, torch.float32), levels.to(device))
    return F.mse_loss(planner.predict(condition, example.noisy_actions, example.timesteps).float(), example.target)
