"""ReCogDriveAgent: NAVSIM's agent interface round a ReCogDrivePolicy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from navsim_recogdrive.agents.cache_use import (
    EvaluationStopped,
    check_for_training,
    failed_scenes,
    layout_of,
    open_for_writing,
    vlm_of_run,
)
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
from navsim_recogdrive.agents.feature_builders import (
    EgoFeatureBuilder,
    HiddenStateFeatureBuilder,
    ImageTilesFeatureBuilder,
)
from navsim_recogdrive.agents.host import HostRun, check_training, run_folder, running_training
from navsim_recogdrive.agents.observations import camera_config, observation_from_agent_input
from navsim_recogdrive.agents.target_builders import SceneTokenTargetBuilder, TrajectoryTargetBuilder
from navsim_recogdrive.cache.identity import CacheIdentity
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.planner.checkpoints import load_planner_weights
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import SharedBackbone, check_vlm_fits, resolve_device
from navsim_recogdrive.policy.cached_backbone import SceneNotCached, open_evaluation_cache
from navsim_recogdrive.policy.callbacks import training_callbacks
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.features import TRAJECTORY_CACHE
from navsim_recogdrive.policy.joint import CarriedVLM, OwnBackbone, TrainableVLM, check_base_vlm, read_trained_vlm
from navsim_recogdrive.policy.memory_advice import MemoryAdvice, advice_on_vlm
from navsim_recogdrive.policy.objective import ImitationObjective, Objective
from navsim_recogdrive.policy.optimization import lightning_optimizers
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm
from navsim_recogdrive.policy.resume import Resumed, find_checkpoint, read_resumed
from navsim_recogdrive.policy.run_settings import run_settings
from navsim_recogdrive.policy.settings import InvalidSetting, build_settings
from navsim_recogdrive.policy.tracking import WandbTracking
from navsim_recogdrive.viz.training_pictures import training_pictures
from navsim_recogdrive.vlm.backbone import VLMOutOfMemory

_log = logging.getLogger(__name__)


class ReCogDriveAgent(AbstractAgent):
    """Drives with ReCogDrive inside NAVSIM's unmodified runners.

    A frozen VLM is loaded only when hidden states must be computed, once per process, and is no part of this module:
    checkpoints of the runner hold the planner alone, under ``agent.action_head.`` as the published ones do. In joint
    mode (``cache_hidden_state=false``) with ``vlm.training`` other than ``frozen`` they also hold what was trained of
    the VLM, under ``agent.vlm.``, and evaluation takes it from there.

    Args:
        trajectory_sampling: the planned horizon; must be 8 poses at 0.5 s.
        checkpoint_path: weights of the planner and what was trained of the VLM; required before :meth:`initialize`,
            optional starting weights in training.
        host: what the runner is about to do, for early checks, see :class:`~navsim_recogdrive.agents.host.HostRun`.
        objective_settings: groups of settings of another objective than imitation, for a resumed run to be compared.
        settings: the parts of :class:`~navsim_recogdrive.policy.configuration.PolicyConfig` as mappings.

    Raises:
        InvalidSetting: for settings that do not fit together, a VLM or a cache of another hidden size.
        CacheIdentityError: if the cache to train from was made by another VLM than the configured one.
        DamagedCache: if a part of the cache to train from is damaged.
        EmptySplit: if a training run was given logs that do not exist.
        PlannerCheckpointError: if the checkpoint is not one of this planner, with the list of what differs.
        VLMCheckpointError: if the checkpoint's VLM was trained from another than the configured one.
        ResumeError: if the run to resume cannot be found, or is one with other settings.
        PeftMissing: if LoRA adapters are to be trained and peft is not installed.
    """

    requires_scene = False

    def __init__(
        self,
        trajectory_sampling: TrajectorySampling,
        checkpoint_path: str | None = None,
        host: Mapping[str, Any] | None = None,
        objective_settings: Mapping[str, Any] | None = None,
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
        self._run_settings = run_settings(self.config, objective_settings)
        self._resumed = self._find_resumed()
        # Planning from cached hidden states alone never touches the VLM, which may be elsewhere.
        only_cached = self.config.hidden_state_cache is not None and self.config.hidden_state_cache_miss == "error"
        needs_vlm = not only_cached and not (self._host.use_cache_without_dataset and self.config.cache_hidden_state)
        self.config.check_checkpoint(checkpoint_path)
        which = self.config.checkpoint_weights
        trained = None if checkpoint_path is None else read_trained_vlm(checkpoint_path, which)
        if needs_vlm:
            check_vlm_fits(self.config.vlm, self.config.planner.hidden_state_size)
            if trained is not None:
                check_base_vlm(self.config.vlm, trained)
        backbone = SharedBackbone(self.config.vlm, self.config.device, trained=trained)
        if running_training():
            if self.config.hidden_state_cache is not None:
                raise InvalidSetting(
                    "agent.hidden_state_cache is for scoring and submission; training reads its cache from cache_path"
                )
            check_training(self._host, self.config)
            check_for_training(self._host, self.config, backbone)
            if self._resumed is not None and (vlm := vlm_of_run(self._host, self.config, backbone)) is not None:
                cached = bool(self._host.use_cache_without_dataset) and self.config.cache_hidden_state
                check_remembered_vlm(self._resumed.path, vlm, cached=cached)

        self.action_head = DiffusionPlanner(self.config.planner)
        if checkpoint_path is not None:
            load_planner_weights(self.action_head, checkpoint_path, which)
        self.vlm: TrainableVLM | CarriedVLM | None = None
        if running_training() and self.config.vlm.training != "frozen":
            self.vlm = TrainableVLM(self.config, trained)
            backbone = OwnBackbone(self.config.vlm, self.vlm.backbone)
        elif trained is not None:
            self.vlm = CarriedVLM(trained)
        self._backbone = backbone
        self._policy = ReCogDrivePolicy(self.action_head, backbone, self.config.sampling)
        self._objective: Objective = ImitationObjective(self._policy, self.config.imitation)
        self._failed = failed_scenes(self._host, self.config)

    def name(self) -> str:
        """Name of the agent in logs and results."""
        return "ReCogDriveAgent"

    def initialize(self) -> None:
        """Called by scoring and submission: move to the device and demand trained weights.

        Raises:
            InvalidSetting: without a checkpoint, without a VLM or a cache of one, or with another VLM or prompt than
                the checkpoint's planner was trained with.
            CacheIdentityError: if the cache to plan from was made by another VLM.
            VLMCheckpointError: if the VLM cannot be loaded.
        """
        if self._checkpoint_path is None:
            raise InvalidSetting(
                "no planner weights to evaluate: set agent.checkpoint_path=FILE "
                "(a run of run_training.py writes last.ckpt below its output_dir)"
            )
        if self.config.hidden_state_cache is not None:
            source = open_evaluation_cache(self.config, self._backbone, self._checkpoint_path)
            self._policy = ReCogDrivePolicy(self.action_head, self._backbone, self.config.sampling, source)
        elif self.config.vlm.path is None:
            raise InvalidSetting(
                "no VLM to compute hidden states with: set agent.vlm.path=FOLDER or the environment variable VLM_PATH, "
                "or agent.hidden_state_cache=FOLDER where they are cached"
            )
        else:
            check_remembered_vlm(self._checkpoint_path, self._backbone.identity())
            # Now: what fails in compute_trajectory the runners report scene by scene, and go on.
            self._backbone.load()
        self.action_head.to(resolve_device(self.config.device))
        self.eval()

    def get_sensor_config(self) -> SensorConfig:
        """Only the present images of the policy's cameras are read from disk."""
        return camera_config(self.config.vlm.cameras)

    def get_feature_builders(self) -> list[AbstractFeatureBuilder]:
        """Hidden state, or in joint mode image tiles and prompt, and ego history and status.

        A cache that the runner is going to fill is got ready here, before the runner looks at it.

        Raises:
            ReadOnlyCache: if it cannot be written.
            CacheIdentityError: if it is a cache of another VLM, prompt or mode.
        """
        backbone = self._backbone
        failed = self._failed
        open_for_writing(self._host, self.config, backbone, failed)
        if self.config.cache_hidden_state:
            return [HiddenStateFeatureBuilder(backbone, failed, self.config.cache_mode), EgoFeatureBuilder(failed)]
        return [ImageTilesFeatureBuilder(backbone, failed), EgoFeatureBuilder(failed)]

    def get_target_builders(self) -> list[AbstractTargetBuilder]:
        """The expert's trajectory, where the split is not one for evaluation alone, and the scene token."""
        has_future = TRAJECTORY_CACHE in layout_of(self._host, self.config).files
        trajectory = [TrajectoryTargetBuilder(self._failed)] if has_future else []
        return [*trajectory, SceneTokenTargetBuilder(self._failed)]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Condition of a batch, and outside training mode a ``trajectory`` [B, 8, 3], see ``ImitationObjective``."""
        return self._objective.predict(features)

    def compute_loss(self, features: dict[str, Tensor], targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        """Imitation loss of a batch (scalar); raises ``InvalidFeature`` naming the scenes if it is not finite."""
        return self._objective.loss(features, targets, predictions)

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """Plan for one scene; the same scene, checkpoint and seed give the same trajectory in every process.

        Raises:
            EvaluationStopped: if the cache to plan from does not hold the scene or is damaged, or the GPU's memory is
                too small.
        """
        self.eval()
        observation = observation_from_agent_input(agent_input, self.config.vlm.cameras)
        try:
            plan = self._policy.plan(observation)
        except (SceneNotCached, DamagedFeature, VLMOutOfMemory, torch.cuda.OutOfMemoryError) as error:
            raise EvaluationStopped(str(error)) from error
        return make_trajectory(plan.poses, self._trajectory_sampling)

    def get_optimizers(self) -> dict[str, Any]:
        """AdamW and its learning-rate schedule, one step per epoch.

        Raises:
            InvalidSetting: if the number of epochs is neither configured nor known from the trainer.
        """
        return lightning_optimizers(
            self.action_head,
            self.config.optimizer,
            vlm=self.vlm,
            vlm_learning_rate=self.config.vlm.learning_rate,
        )

    def get_training_callbacks(self) -> list[pl.Callback]:
        """Average of the weights, checkpoints (last and best), learning rate, validation displacement, early checks."""
        vlm = vlm_of_run(self._host, self.config, self._backbone)
        return [*self._common_callbacks(vlm), MemoryAdvice(advice_on_vlm(self.config.vlm))]

    def _common_callbacks(self, vlm: CacheIdentity | None, best_score: str | None = None) -> list[pl.Callback]:
        config = self.config
        return [
            *training_callbacks(
                self._objective.displacement,
                vlm,
                best_score=best_score,
                ema=config.ema,
                checkpoint=config.checkpoint,
                divergence=config.divergence,
                settings=self._run_settings,
                resumed=self._resumed,
            ),
            *training_pictures(config.pictures, self._objective.displacement, self._objective),
            *([] if config.wandb.project is None else [WandbTracking(config.wandb)]),
        ]

    def _find_resumed(self) -> Resumed | None:
        resume = self.config.resume
        if resume is None:
            return None
        if not running_training():
            raise InvalidSetting(
                f"agent.resume={resume} is for run_training.py; scoring and submission take the weights of "
                "agent.checkpoint_path=FILE"
            )
        folder = run_folder(self._host)
        path = find_checkpoint(resume, folder)
        if path is None:
            if rank_zero_only.rank == 0:
                _log.info("agent.resume=auto: no run to go on with at %s: a new one begins", folder)
            return None
        return read_resumed(path, self._run_settings)
