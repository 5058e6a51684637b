"""ReCogDriveTextAgent: NAVSIM's agent interface round a TextPolicy."""

from __future__ import annotations

from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig

from navsim_recogdrive.agents.cache_use import EvaluationStopped
from navsim_recogdrive.agents.compat import (
    AbstractAgent,
    AgentInput,
    SensorConfig,
    Trajectory,
    TrajectorySampling,
    init_abstract_agent,
    make_trajectory,
)
from navsim_recogdrive.agents.observations import camera_config, observation_from_agent_input
from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.text_policy import TextPolicy, TextPolicyConfig
from navsim_recogdrive.vlm.backbone import VLMOutOfMemory

_NOT_FOR = ("run_training", "run_dataset_caching")


def _not_trained(runner: str) -> InvalidSetting:
    return InvalidSetting(
        f"{runner} trains or caches for training, and the text planner has nothing to train there: use "
        "agent=recogdrive_2b or recogdrive_8b for the diffusion planner; the VLM itself is trained in stage 1"
    )


class ReCogDriveTextAgent(AbstractAgent):
    """The VLM alone: it writes its trajectory as text (the stage-1 model of the published tables).

    For scoring and submission; nothing here is trained. Answers that hold no plan become constant velocity and are
    counted, see :class:`~navsim_recogdrive.policy.text_policy.TextPolicy`.

    Args:
        trajectory_sampling: the planned horizon; must be 8 poses at 0.5 s.
        settings: the parts of :class:`~navsim_recogdrive.policy.text_policy.TextPolicyConfig` as mappings.

    Raises:
        InvalidSetting: for settings that do not fit together, a VLM of another hidden size, or in a runner that trains
            or caches.
        VLMCheckpointError: if there is no supported VLM at ``vlm.path``.
    """

    requires_scene = False

    def __init__(self, trajectory_sampling: TrajectorySampling, **settings: Any) -> None:
        init_abstract_agent(self, trajectory_sampling)
        runner = HydraConfig.get().job.name if HydraConfig.initialized() else None
        if runner in _NOT_FOR:
            raise _not_trained(f"{runner}.py")
        if (trajectory_sampling.num_poses, trajectory_sampling.interval_length) != (HORIZON_POSES, POSE_INTERVAL_S):
            raise InvalidSetting(
                f"the VLM writes {HORIZON_POSES} poses at {POSE_INTERVAL_S} s, agent.trajectory_sampling asks for "
                f"{trajectory_sampling.num_poses} at {trajectory_sampling.interval_length} s"
            )
        self.config = TextPolicyConfig.from_mapping(settings)
        self.config.check_vlm()
        self._policy = TextPolicy(
            SharedBackbone(self.config.vlm, self.config.device, with_head=True), self.config.generation
        )

    def name(self) -> str:
        """Name of the agent in logs and results."""
        return "ReCogDriveTextAgent"

    def initialize(self) -> None:
        """Called by scoring and submission: load the VLM.

        Raises:
            InvalidSetting: without a VLM, or with a ``generation.max_new_tokens`` that would cut answers off.
            VLMCheckpointError: if the VLM is not whole.
        """
        self._policy.load()

    def get_sensor_config(self) -> SensorConfig:
        """Only the present images of the policy's cameras are read from disk."""
        return camera_config(self.config.vlm.cameras)

    def get_feature_builders(self) -> NoReturn:
        """There are none; a caching runner's Ray task, which cannot know its runner, learns it here.

        Raises:
            InvalidSetting: always, saying which agents are trained.
        """
        raise _not_trained("this runner")

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """Plan for one scene; the same scene and VLM give the same trajectory in every process.

        Raises:
            InvalidObservation: if the scene lacks what the policy needs.
            EvaluationStopped: if the GPU's memory is too small.
        """
        observation = observation_from_agent_input(agent_input, self.config.vlm.cameras)
        try:
            plan = self._policy.plan(observation)
        except VLMOutOfMemory as error:
            raise EvaluationStopped(str(error)) from error
        return make_trajectory(plan.poses, self._trajectory_sampling)
