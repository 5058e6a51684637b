"""Observations of noise, different for every seed."""

from __future__ import annotations

import numpy as np

from navsim_recogdrive.observation import Observation


def random_observation(seed: int, size: tuple[int, int] = (112, 200), moving: bool = True) -> Observation:
    """One with a front image of ``size`` (height, width); poses are zero unless ``moving``."""
    random = np.random.default_rng(seed)
    return Observation(
        front_image=random.integers(0, 255, (*size, 3), dtype=np.uint8),
        past_poses=random.normal(size=(4, 3)) * moving,
        velocity=random.normal(size=2),
        acceleration=random.normal(size=2),
        driving_command=np.eye(4)[seed % 4],
    )
