"""The tensors a planner is conditioned on, by name, and how they come from an observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from navsim_recogdrive.cache.scan import Layout
from navsim_recogdrive.cache.scene_key import scene_key
from navsim_recogdrive.observation import DRIVING_COMMANDS, InvalidObservation, Observation

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.prompts import PromptProfile

SCENE_KEY = "scene_key"
"""[16] uint8: what the VLM sees of a scene, as a key to find its hidden state by; the planner does not look at it."""

HIDDEN_STATE = "hidden_state"
"""[L, D] bf16 (batched: [B, L, D]): the VLM's hidden states, padded in front."""

IMAGE_TILES = "image_tiles"
"""[T, h, w, 3] uint8 RGB (batched: [B, T, h, w, 3]): what the VLM sees, in place of a hidden state in joint mode; the
tiles behind the first :data:`NUM_TILES` are black and no part of the scene."""

NUM_TILES = "num_tiles"
"""[] int64: tiles of this scene."""

PROMPT = "prompt"
"""[L] int64: token ids of the whole prompt, padded in front."""

PROMPT_LENGTH = "prompt_length"
"""[] int64: tokens of the prompt without padding."""

PREPARATION = "preparation"
"""[32] uint8: fingerprint of what decides tiles and prompts, so that a cache is not read with other settings."""

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

IMAGE_TILES_CACHE = "recogdrive_image_tiles"
"""Name of the cache file that holds :data:`IMAGE_TILES`, the prompt and their lengths."""

EGO_CACHE = "recogdrive_ego"
"""Name of the cache file that holds :data:`PAST_POSES` and :data:`EGO_STATUS`."""

TRAJECTORY_CACHE = "recogdrive_trajectory"
"""Name of the cache file that holds the expert's :data:`TRAJECTORY`."""

TOKEN_CACHE = "recogdrive_token"
"""Name of the cache file that holds the scene :data:`TOKEN`."""

HIDDEN_STATE_LAYOUT = Layout(
    (HIDDEN_STATE_CACHE, EGO_CACHE, TRAJECTORY_CACHE, TOKEN_CACHE), HIDDEN_STATE_CACHE, TRAJECTORY_CACHE
)
"""The files of a scene in a cache of hidden states, in the order in which they are written."""

IMAGE_TILES_LAYOUT = Layout(
    (IMAGE_TILES_CACHE, EGO_CACHE, TRAJECTORY_CACHE, TOKEN_CACHE), training_only=TRAJECTORY_CACHE
)
"""Likewise in a cache of image tiles (joint mode)."""


def scene_key_of(observation: Observation, cameras: Sequence[str], profile: PromptProfile) -> bytes:
    """The key of a scene: a digest of the images and of what the prompt says of history and command; 16 bytes.

    An observation holds its poses as float32, so the key is the same in training and scoring.

    Args:
        observation: of the scene.
        cameras: what the VLM sees, from left to right.
        profile: how the prompt is written.

    Raises:
        InvalidObservation: if the observation lacks an image.
    """
    images = []
    for camera in cameras:
        image = observation.image(camera)
        if image is None:
            raise InvalidObservation(f"{camera}_image is None: a scene is recognised by what the VLM sees")
        images.append(image)
    said = [
        profile.fingerprint,
        profile.history_text(observation.past_poses),
        DRIVING_COMMANDS[observation.command_index],
    ]
    return scene_key(images, "\n".join(said))


def ego_features(observation: Observation) -> dict[str, Tensor]:
    """Ego history and status of one observation as unbatched tensors."""
    return {
        PAST_POSES: torch.from_numpy(observation.past_poses.copy()),
        EGO_STATUS: torch.from_numpy(observation.ego_status),
    }
