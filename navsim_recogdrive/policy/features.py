"""The tensors a planner is conditioned on, by name, and how they come from an observation."""

from __future__ import annotations

import torch
from torch import Tensor

from navsim_recogdrive.observation import Observation

HIDDEN_STATE = "hidden_state"
"""[L, D] bf16 (batched: [B, L, D]): the VLM's hidden states, padded in front."""

PAST_POSES = "past_poses"
"""[4, 3] float32: x, y (metres), heading (radians), oldest first, current ego frame."""

EGO_STATUS = "ego_status"
"""[8] float32: driving command one-hot, velocity (m/s), acceleration (m/s^2)."""

TRAJECTORY = "trajectory"
"""[8, 3] float32: the expert's or the planned future, metres and radians, ego frame, 0.5 s steps."""

TOKEN = "token"
"""str: the scene token, only ever in targets (batched: list of str)."""

HIDDEN_STATE_CACHE = "recogdrive_hidden_state"
"""Name of the cache file (without ``.gz``) that holds :data:`HIDDEN_STATE`."""

EGO_CACHE = "recogdrive_ego"
"""Name of the cache file that holds :data:`PAST_POSES` and :data:`EGO_STATUS`."""

TRAJECTORY_CACHE = "recogdrive_trajectory"
"""Name of the cache file that holds the expert's :data:`TRAJECTORY`."""

TOKEN_CACHE = "recogdrive_token"
"""Name of the cache file that holds the scene :data:`TOKEN`."""


def ego_features(observation: Observation) -> dict[str, Tensor]:
    """Ego history and status of one observation as unbatched tensors."""
    return {
        PAST_POSES: torch.from_numpy(observation.past_poses.copy()),
        EGO_STATUS: torch.from_numpy(observation.ego_status),
    }
