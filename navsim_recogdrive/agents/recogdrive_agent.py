"""ReCogDriveAgent: NAVSIM's agent interface round a ReCogDrivePolicy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from navsim_recogdrive.agents.compat import (
    AbstractAgent,
    AbstractFeatureBuilder,
    AbstractTargetBuilder,
    AgentInput,
    SensorConfig,
    Trajectory,
    TrajectorySampling,
    init_abstract_agent,
    make_trajectory,
)
from navsim_recogdrive.agents.feature_builders import EgoFeatureBuilder, HiddenStateFeatureBuilder, require_writable
from navsim_recogdrive.agents.host import HostRun, check_training, running_training
from navsim_recogdrive.agents.observations import front_camera_config, observation_from_agent_input
from navsim_recogdrive.agents.target_builders import SceneTokenTargetBuilder, TrajectoryTargetBuilder
from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.planner.checkpoints import load_planner_weights
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import SharedBackbone, check_vlm_fits, resolve_device
from navsim_recogdrive.policy.callbacks import training_callbacks
from navsim_recogdrive.policy.configuration import InvalidSetting, PolicyConfig, build_settings
from navsim_recogdrive.policy.objective import ImitationObjective
from navsim_recogdrive.policy.optimization import lightning_optimizers
from navsim_recogdrive.policy.policy import ReCogDrivePolicy


class ReCogDriveAgent(AbstractAgent):
    """Drives with ReCogDrive inside NAVSIM's unmodified runners.

    The VLM is loaded only when hidden states must be computed, once per process, and is never part of this module:
    checkpoints of the runner hold the planner alone, under ``agent.action_head.`` as the published ones do.

    Args:
        trajectory_sampling: the planned horizon; must be 8 poses at 0.5 s.
        checkpoint_path: planner weights; required before :meth:`initialize`, optional starting weights in training.
        host: what the runner is about to do, for early checks, see :class:`~navsim_recogdrive.agents.host.HostRun`.
        settings: the parts of :class:`~navsim_recogdrive.policy.configuration.PolicyConfig` as mappings.

    Raises:
        InvalidSetting: for settings that do not fit together, a VLM or a cache of another hidden size.
        EmptySplit: if a training run was given logs that do not exist.
        PlannerCheckpointError: if the checkpoint is not one of this planner, with the list of what differs.
    """

    requires_scene = False

    def __init__(
        self,
        trajectory_sampling: TrajectorySampling,
        checkpoint_path: str | None = None,
        host: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        init_abstract_agent(self, trajectory_sampling)
        if (trajectory_sampling.num_poses, trajectory_sampling.interval_length) != (HORIZON_POSES, POSE_INTERVAL_S):
            raise InvalidSetting(
                f"ReCogDrive plans {HORIZON_POSES} poses at {POSE_INTERVAL_S} s, agent.trajectory_sampling asks for "
                f"{trajectory_sampling.num_poses} at {trajectory_sampling.interval_length} s"
            )
        self.config = PolicyConfig.from_mapping(settings)
        self._host = build_settings(HostRun, host or {}, "host")
        self._checkpoint_path = checkpoint_path
        if not self._host.use_cache_without_dataset:  # such a run never touches the VLM, which may be elsewhere
            check_vlm_fits(self.config.vlm, self.config.planner.hidden_state_size)
        if running_training():
            check_training(self._host, self.config)

        self.action_head = DiffusionPlanner(self.config.planner)
        if checkpoint_path is not None:
            load_planner_weights(self.action_head, checkpoint_path)
        self._policy = ReCogDrivePolicy(
            self.action_head, SharedBackbone(self.config.vlm, self.config.device), self.config.sampling
        )
        self._objective = ImitationObjective(self._policy, self.config.imitation)

    def name(self) -> str:
        """Name of the agent in logs and results."""
        return "ReCogDriveAgent"

    def initialize(self) -> None:
        """Called by scoring and submission: move to the device and demand trained weights.

        Raises:
            InvalidSetting: without a checkpoint, or without a VLM.
        """
        if self._checkpoint_path is None:
            raise InvalidSetting(
                "no planner weights to evaluate: set agent.checkpoint_path=FILE "
                "(a run of run_training.py writes last.ckpt below its output_dir)"
            )
        if self.config.vlm.path is None:
            raise InvalidSetting(
                "no VLM to compute hidden states with: set agent.vlm.path=FOLDER or the environment variable VLM_PATH"
            )
        self.action_head.to(resolve_device(self.config.device))
        self.eval()

    def get_sensor_config(self) -> SensorConfig:
        """Only the present front camera is read from disk."""
        return front_camera_config()

    def get_feature_builders(self) -> list[AbstractFeatureBuilder]:
        """Hidden state, and ego history and status.

        Raises:
            ReadOnlyCache: if the runner is going to fill a cache that cannot be written.
        """
        if not self._host.use_cache_without_dataset:
            require_writable(self._host.cache_path)
        return [HiddenStateFeatureBuilder(self._policy.backbone), EgoFeatureBuilder()]

    def get_target_builders(self) -> list[AbstractTargetBuilder]:
        """The expert's trajectory and the scene token."""
        return [TrajectoryTargetBuilder(), SceneTokenTargetBuilder()]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Condition of a batch, and outside training mode a ``trajectory`` [B, 8, 3], see ``ImitationObjective``."""
        return self._objective.predict(features)

    def compute_loss(self, features: dict[str, Tensor], targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        """Imitation loss of a batch (scalar); raises ``InvalidFeature`` naming the scenes if it is not finite."""
        return self._objective.loss(features, targets, predictions)

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """Plan for one scene; the same scene, checkpoint and seed give the same trajectory in every process."""
        self.eval()
        plan = self._policy.plan(observation_from_agent_input(agent_input))
        return make_trajectory(plan.poses, self._trajectory_sampling)

    def get_optimizers(self) -> dict[str, Any]:
        """AdamW and its learning-rate schedule, one step per epoch.

        Raises:
            InvalidSetting: if the number of epochs is neither configured nor known from the trainer.
        """
        return lightning_optimizers(self.action_head, self.config.optimizer)

    def get_training_callbacks(self) -> list[pl.Callback]:
        """Checkpoints (last and best), learning rate, validation displacement, and a check of the trainer's recipe."""
        return training_callbacks(self._objective.displacement)
