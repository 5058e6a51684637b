"""The reference policy: the frozen planner that reinforcement learning starts from and is held to."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from navsim_recogdrive.planner.checkpoints import load_planner_weights
from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.settings import InvalidSetting


class ReferencePolicy:
    """A frozen copy of a planner, in evaluation mode for good.

    It is no module: an agent that holds one neither saves it in its checkpoints, nor switches it to training, nor hands
    its parameters to an optimizer or to DDP. It follows the features to their device when it is used.

    Args:
        planner: is copied, and left as it is.
    """

    def __init__(self, planner: DiffusionPlanner) -> None:
        self._planner = copy.deepcopy(planner).eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(cls, path: str | Path | None, config: PlannerConfig) -> ReferencePolicy:
        """The planner of a checkpoint; copies of another reference policy (``old_policy.*``) in it are set aside.

        Raises:
            InvalidSetting: if ``path`` is ``None``.
            FileNotFoundError: if there is no such file.
            PlannerCheckpointError: if the file holds no planner, or another one than ``config`` says.
        """
        if path is None:
            raise InvalidSetting(
                "reinforcement learning needs a reference policy: set agent.reference_policy_checkpoint=FILE to the "
                "planner of imitation learning, or agent.rl.bc_weight=0 agent.rl.kl_weight=0 to do without"
            )
        planner = DiffusionPlanner(config)
        load_planner_weights(planner, path)
        return cls(planner)

    @property
    def config(self) -> PlannerConfig:
        """Sizes and method of the planner."""
        return self._planner.config

    def on(self, device: torch.device) -> DiffusionPlanner:
        """The planner, on ``device``."""
        return self._planner.to(device)
