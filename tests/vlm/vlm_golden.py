"""Golden data of the vision-language backbone, and the driving scene that its tests use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from navsim_recogdrive.observation import Observation

DATA = Path(__file__).parents[1] / "data" / "vlm"
HIDDEN_LENGTH = 640
"""Enough for 9 tiles of 16 image tokens and the longest usual prompt."""


def golden(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def formula_image(width: int, height: int) -> np.ndarray:
    """The deterministic picture that the golden preprocessing hashes were taken from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [(a * x + b * y + x * y // c) % 256 for a, b, c in ((7, 13, 97), (3, 5, 41), (11, 2, 173))]
    return np.stack(channels, axis=-1).astype(np.uint8)


def scene(
    image: np.ndarray | None, *, command: int = 1, past: tuple[float, float, float] = (-10.23, -6.81, -3.4)
) -> Observation:
    past_poses = np.zeros((4, 3))
    past_poses[:3, 0] = past
    return Observation(image, past_poses, np.array([6.8, 0.0]), np.zeros(2), np.eye(4)[command])
