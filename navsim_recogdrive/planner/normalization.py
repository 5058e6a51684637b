"""Trajectories in metres and radians to the range the diffusion works in, and back.

``normalised = 2 (value + offset) / span - 1`` per coordinate, with the published offsets and spans: x and y in metres,
heading in radians, ego frame. A trajectory outside the ranges is not clamped on the way in.
"""

from __future__ import annotations

import torch
from torch import Tensor

OFFSET = (1.57, 19.68, 1.67)
SPAN = (66.74, 42.0, 3.53)


def normalize_trajectory(trajectory: Tensor) -> Tensor:
    """Metres and radians to normalised actions.

    Args:
        trajectory: ``[..., 3]`` (x, y, heading), ego frame, any float dtype.

    Returns:
        ``[..., 3]`` float32, about -1..1.
    """
    coordinates = _coordinates(trajectory)
    return torch.stack(
        [2.0 * (v + offset) / span - 1.0 for v, offset, span in zip(coordinates, OFFSET, SPAN, strict=True)], dim=-1
    )


def denormalize_trajectory(normalized: Tensor) -> Tensor:
    """Inverse of :func:`normalize_trajectory`: ``[..., 3]`` normalised to ``[..., 3]`` float32 metres and radians."""
    coordinates = _coordinates(normalized)
    return torch.stack(
        [(v + 1.0) / 2.0 * span - offset for v, offset, span in zip(coordinates, OFFSET, SPAN, strict=True)], dim=-1
    )


def _coordinates(trajectory: Tensor) -> tuple[Tensor, ...]:
    if trajectory.shape[-1:] != (3,):
        raise ValueError(f"a trajectory must have shape [..., 3] (x, y, heading), found {list(trajectory.shape)}")
    # float32 always: in bfloat16 a position 60 m ahead is only good to a quarter of a metre. Coordinate by coordinate
    # with Python numbers, because a tensor of constants would be copied to the GPU, and waited for, at every call.
    return trajectory.float().unbind(-1)
