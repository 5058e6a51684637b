"""Noise that belongs to a scene, not to a process: the same scene gets the same draws whatever worker plans it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from navsim_recogdrive.planner.configuration import POSE_SIZE


def scene_seed(past_poses: Tensor, ego_status: Tensor, seed: int) -> int:
    """A 63-bit seed from one scene's ``past_poses`` [4, 3] and ``ego_status`` [8] (float32) and the user's ``seed``.

    NAVSIM hands the agent neither token nor log name in scoring, but the ego history and status reach it as the same
    float32 numbers in training, scoring and submission, on every NAVSIM version. Scenes that agree in all of them (in
    simulation, an ego that stands still) share their noise; each is still a fair draw.
    """
    numbers = torch.cat([past_poses.flatten(), ego_status.flatten()]).to(device="cpu", dtype=torch.float32)
    digest = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    digest.update((numbers.numpy() + np.float32(0.0)).tobytes())  # + 0 turns -0.0 into 0.0
    return int.from_bytes(digest.digest(), "little") >> 1


def scene_generators(past_poses: Tensor, ego_status: Tensor, seed: int) -> list[torch.Generator]:
    """One CPU generator per scene of a batch: ``past_poses`` [B, 4, 3], ``ego_status`` [B, 8]."""
    past_poses, ego_status = past_poses.detach().cpu(), ego_status.detach().cpu()
    return [
        torch.Generator().manual_seed(scene_seed(poses, status, seed))
        for poses, status in zip(past_poses, ego_status, strict=True)
    ]


def scene_noise(
    past_poses: Tensor,
    ego_status: Tensor,
    *,
    num_samples: int,
    num_steps: int,
    horizon: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Standard normal draws for a batch of scenes, each from its own seed, on the CPU.

    Order of the draws per sample: the initial noise, then one draw per denoising step, the last step included
    (the order of the published sampler). Samples are drawn one after the other, so that the first ones are the same
    however many follow.

    Args:
        past_poses: [B, 4, 3] float32.
        ego_status: [B, 8] float32.
        num_samples: trajectories per scene, N.
        num_steps: denoising steps, K.
        horizon: poses per trajectory.
        seed: the user's seed.

    Returns:
        Initial noise [B, N, horizon, 3] and step noise [K, B, N, horizon, 3], float32.
    """
    draws = [
        torch.stack(
            [torch.randn(num_steps + 1, horizon, POSE_SIZE, generator=generator) for _ in range(num_samples)], dim=1
        )
        for generator in scene_generators(past_poses, ego_status, seed)
    ]
    stacked = torch.stack(draws, dim=1)
    return stacked[0], stacked[1:]
