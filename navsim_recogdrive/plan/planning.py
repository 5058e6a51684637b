"""With what is planned: the diffusion planner, or the VLM that writes its trajectory as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.configuration import SamplingConfig, VLMConfig
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.remembered_vlm import remembered_vlm_config
from navsim_recogdrive.policy.text_policy import TextPolicy


@dataclass(frozen=True)
class PlanningSettings:
    """Which models plan, and how.

    Attributes:
        vlm: folder or hub id of the VLM.
        checkpoint: of the planner; ``None``: the VLM writes its trajectory as text.
        weights: ``averaged`` or ``raw``, of a checkpoint that holds both.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        sampling: how trajectories are drawn.
        vlm_options: fields of :class:`VLMConfig` that differ from what the checkpoint remembers, or else from the
            published ones.
    """

    vlm: str
    checkpoint: Path | None
    weights: str
    device: str
    sampling: SamplingConfig
    vlm_options: Mapping[str, Any]

    @property
    def vlm_config(self) -> VLMConfig:
        """How the VLM is run, without its path.

        Raises:
            FileNotFoundError, PlannerCheckpointError: if the checkpoint cannot be read.
            InvalidSetting: for options that cannot be.
        """
        remembered = None if self.checkpoint is None else remembered_vlm_config(self.checkpoint)
        return replace(remembered or VLMConfig(), **self.vlm_options)

    def plan(self, observation: Observation, samples: int) -> NDArray[np.float32]:
        """``[samples, 8, 3]`` trajectories: metres and radians, present ego frame, 0.5 s apart.

        Raises:
            ValueError: if the models do not fit together or cannot be loaded.
        """
        if self.checkpoint is None:
            text = TextPolicy.from_pretrained(self.vlm, device=self.device, vlm_config=self.vlm_config)
            text.load()
            return text.plan(observation).poses[None]
        policy = ReCogDrivePolicy.from_pretrained(
            self.vlm,
            self.checkpoint,
            device=self.device,
            vlm_config=self.vlm_config,
            sampling=self.sampling,
            weights=self.weights,
        )
        return np.stack([plan.poses for plan in policy.plan_samples(observation, samples)])
