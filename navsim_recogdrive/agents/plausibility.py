"""What a car does not do: bounds that tell a broken plan from a bad one.

Comfort is the scorer's; these bounds are those of physics, with room for the rounding of poses 0.5 s apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import POSE_INTERVAL_S

# In metres and radians: what is beyond it is no plan of 4 s, and differences of it may overflow.
FARTHEST = 1e4


@dataclass(frozen=True)
class Oddity:
    """One way to be implausible.

    Attributes:
        code: short name.
        bound: the largest magnitude that passes, in ``unit``.
        unit: of the bound.
        text: what a trajectory beyond it does.
    """

    code: str
    bound: float
    unit: str
    text: str


SPEED = Oddity("speed", 40.0, "m/s", "drive faster than")
ACCELERATION = Oddity("acceleration", 12.0, "m/s^2", "accelerate or brake by more than")
YAW_RATE = Oddity("yaw_rate", 1.5, "rad/s", "turn faster than")
SIDEWAYS = Oddity("sideways", 2.0, "m/s", "slide across their heading faster than")
REVERSING = Oddity("reversing", 0.5, "m/s", "drive backwards faster than")
ODDITIES = (SPEED, ACCELERATION, YAW_RATE, SIDEWAYS, REVERSING)


def largest_magnitudes(poses: NDArray[np.floating]) -> dict[Oddity, NDArray[np.float64]]:
    """How far each trajectory goes in each way, from differences of its poses; the ego starts at the origin.

    Args:
        poses: [N, T, 3] x and y in metres, heading in radians, ego frame, 0.5 s apart, none beyond ``FARTHEST``.

    Returns:
        Largest magnitude [N] of each oddity, in its unit.
    """
    track = np.concatenate([np.zeros((len(poses), 1, 3)), np.asarray(poses, dtype=np.float64)], axis=1)
    moved = np.diff(track[..., :2], axis=1) / POSE_INTERVAL_S
    turned = np.angle(np.exp(1j * np.diff(track[..., 2], axis=1)))
    # Along an arc a car moves in the direction half way between its headings.
    heading = track[:, :-1, 2] + turned / 2
    forward = moved[..., 0] * np.cos(heading) + moved[..., 1] * np.sin(heading)
    across = moved[..., 1] * np.cos(heading) - moved[..., 0] * np.sin(heading)
    return {
        SPEED: np.linalg.norm(moved, axis=-1).max(axis=1),
        ACCELERATION: np.abs(np.diff(forward, axis=1) / POSE_INTERVAL_S).max(axis=1),
        YAW_RATE: np.abs(turned / POSE_INTERVAL_S).max(axis=1),
        SIDEWAYS: np.abs(across).max(axis=1),
        REVERSING: np.maximum(-forward, 0.0).max(axis=1),
    }
