"""Feature builders: AgentInput -> Observation -> tensors.

Two files per scene: the hidden state, large and expensive, or what the VLM computes it from, and the ego history and
status, so that a change of the second never costs the first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from navsim_recogdrive.agents.compat import AbstractFeatureBuilder, AgentInput
from navsim_recogdrive.agents.failed_scenes import CachedBuilder, FailedScenes
from navsim_recogdrive.agents.observations import observation_from_agent_input
from navsim_recogdrive.cache.checked import CheckedFeatures
from navsim_recogdrive.cache.hidden_state_features import HiddenStateFeatures
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.features import (
    EGO_CACHE,
    HIDDEN_STATE,
    HIDDEN_STATE_CACHE,
    IMAGE_TILES,
    IMAGE_TILES_CACHE,
    PAST_POSES,
    ego_features,
)
from navsim_recogdrive.policy.image_features import tile_features


class HiddenStateFeatureBuilder(CachedBuilder, AbstractFeatureBuilder):
    """The VLM's hidden state of the camera images and the prompt, ``[L, D]``, and the key of what it saw.

    Args:
        backbone: the VLM; loaded when the first feature is computed, not before.
        failed: what to do with scenes that fail.
        mode: how hidden states are stored, one of :data:`~navsim_recogdrive.cache.codec.MODES`.
    """

    file_name = HIDDEN_STATE_CACHE

    def __init__(self, backbone: SharedBackbone, failed: FailedScenes, mode: str = "bf16") -> None:
        super().__init__(failed)
        self._backbone = backbone
        self._mode = mode

    def compute_features(self, agent_input: AgentInput) -> dict[str, Any]:
        """``{"scene_key": [16] uint8, "hidden_state": [L, D]}``, which NAVSIM's cache pickles small.

        The hidden state is bf16, or float32 with mode ``fp32``.

        Raises:
            InvalidObservation: if the scene lacks what the policy needs, where failures are not caught.
            ValueError: likewise if the VLM produced values that are not finite.
            VLMCheckpointError: if there is no supported VLM.
        """
        self._backbone.load()  # what fails here fails for every scene

        def compute() -> dict[str, Tensor]:
            observation = observation_from_agent_input(agent_input, self._backbone.config.cameras)
            return HiddenStateFeatures(self._backbone.cacheable_features(observation, self._mode))

        return self._failed.attempt(HIDDEN_STATE, compute)


class ImageTilesFeatureBuilder(CachedBuilder, AbstractFeatureBuilder):
    """What the VLM computes a hidden state from, image tiles and prompt, for training without cached hidden states.

    Args:
        backbone: the VLM, of which only configuration and tokenizer are read, when the first feature is computed.
        failed: what to do with scenes that fail.
    """

    file_name = IMAGE_TILES_CACHE

    def __init__(self, backbone: SharedBackbone, failed: FailedScenes) -> None:
        super().__init__(failed)
        self._backbone = backbone

    def compute_features(self, agent_input: AgentInput) -> dict[str, Any]:
        """Those of :func:`~navsim_recogdrive.policy.image_features.tile_features`; tiles store themselves as WebP.

        Raises:
            InvalidObservation: if the scene lacks what the policy needs, where failures are not caught.
            PromptTooLong: likewise if the prompt has more tokens than a hidden state has rows.
            VLMCheckpointError: if there is no supported VLM.
        """
        preparation = self._backbone.preparation  # what fails here fails for every scene

        def compute() -> dict[str, Tensor]:
            observation = observation_from_agent_input(agent_input, self._backbone.config.cameras)
            return CheckedFeatures(tile_features(preparation, observation))

        return self._failed.attempt(IMAGE_TILES, compute)


class EgoFeatureBuilder(CachedBuilder, AbstractFeatureBuilder):
    """Ego history ``past_poses`` [4, 3] and ``ego_status`` [8], float32.

    Args:
        failed: what to do with scenes that fail.
    """

    file_name = EGO_CACHE

    def compute_features(self, agent_input: AgentInput) -> dict[str, Any]:
        """``{"past_poses": [4, 3], "ego_status": [8]}``, metres, radians, m/s, m/s^2, ego frame.

        Raises:
            InvalidObservation: if the scene lacks what the policy needs, where failures are not caught.
        """

        def compute() -> dict[str, Tensor]:
            return CheckedFeatures(ego_features(observation_from_agent_input(agent_input, cameras=())))

        return self._failed.attempt(PAST_POSES, compute)
