"""Feature builders: AgentInput -> Observation -> tensors.

Two files per scene: the hidden state, large and expensive, and the ego history and status, so that a change of the
second never costs the first.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from navsim_recogdrive.agents.compat import AbstractFeatureBuilder, AgentInput
from navsim_recogdrive.agents.observations import observation_from_agent_input
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.features import EGO_CACHE, HIDDEN_STATE, HIDDEN_STATE_CACHE, ego_features


class ReadOnlyCache(PermissionError):
    """Features must be computed but their cache folder cannot be written."""


class HiddenStateFeatureBuilder(AbstractFeatureBuilder):
    """The VLM's hidden state of the front camera image and the prompt, ``[L, D]`` bf16.

    Args:
        backbone: the VLM; loaded when the first feature is computed, not before.
    """

    def __init__(self, backbone: SharedBackbone) -> None:
        super().__init__()
        self._backbone = backbone

    def get_unique_name(self) -> str:
        """Name of the cache file, without its ending."""
        return HIDDEN_STATE_CACHE

    def compute_features(self, agent_input: AgentInput) -> dict[str, Tensor]:
        """``{"hidden_state": [L, D] bf16}``; pickled by NAVSIM's cache it stores itself without the padding rows.

        Raises:
            InvalidObservation: if the scene lacks what the policy needs.
        """
        return {HIDDEN_STATE: self._backbone.cacheable_hidden_state(observation_from_agent_input(agent_input))}


class EgoFeatureBuilder(AbstractFeatureBuilder):
    """Ego history ``past_poses`` [4, 3] and ``ego_status`` [8], float32."""

    def get_unique_name(self) -> str:
        """Name of the cache file, without its ending."""
        return EGO_CACHE

    def compute_features(self, agent_input: AgentInput) -> dict[str, Tensor]:
        """``{"past_poses": [4, 3], "ego_status": [8]}``, metres, radians, m/s, m/s^2, ego frame."""
        return ego_features(observation_from_agent_input(agent_input))


def require_writable(cache_path: str | None) -> None:
    """Stop before an expensive computation whose result could not be stored.

    Raises:
        ReadOnlyCache: if ``cache_path``, or its nearest existing parent, is not writable.
    """
    if cache_path is None:
        return
    folder = Path(cache_path)
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise ReadOnlyCache(
            f"the cache folder {cache_path} is read-only, and this run would write to it. To train from it as it is, "
            "add use_cache_without_dataset=true force_cache_computation=false; to fill it, choose another cache_path."
        )
