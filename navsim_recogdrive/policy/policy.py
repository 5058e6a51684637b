"""ReCogDrivePolicy: Observation -> VLM -> planner -> PlannedTrajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from navsim_recogdrive.observation import Observation, PlannedTrajectory
from navsim_recogdrive.planner.checkpoints import infer_planner_config, load_planner_weights
from navsim_recogdrive.planner.condition import Condition
from navsim_recogdrive.planner.configuration import SamplerSettings
from navsim_recogdrive.planner.normalization import denormalize_trajectory
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import HiddenStateSource, SharedBackbone, check_vlm_fits, resolve_device
from navsim_recogdrive.policy.configuration import SamplingConfig, VLMConfig
from navsim_recogdrive.policy.features import ego_features
from navsim_recogdrive.policy.joint import check_base_vlm, read_trained_vlm
from navsim_recogdrive.policy.noise import scene_noise
from navsim_recogdrive.policy.observation_input import ImageInput, make_observation
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm, remembered_vlm_config


class ReCogDrivePolicy:
    """Plans trajectories from observations.

    Args:
        planner: the diffusion planner, on the device where it shall run.
        backbone: the VLM that delivers hidden states.
        sampling: how trajectories are drawn.
        source: where hidden states are planned from; the VLM if not given.
    """

    def __init__(
        self,
        planner: DiffusionPlanner,
        backbone: SharedBackbone,
        sampling: SamplingConfig | None = None,
        source: HiddenStateSource | None = None,
    ) -> None:
        self.planner = planner
        self.backbone = backbone
        self.sampling = sampling or SamplingConfig()
        self._source = source or backbone

    @classmethod
    def from_pretrained(
        cls,
        vlm: str | Path,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        vlm_config: VLMConfig | None = None,
        sampling: SamplingConfig | None = None,
        weights: str = "averaged",
    ) -> ReCogDrivePolicy:
        """A policy from a VLM and a planner checkpoint; the planner's sizes and method are read from the file.

        So is what the checkpoint holds of a VLM that was trained with its planner: ``vlm`` is the one it started from.

        Args:
            vlm: folder of the VLM (hub layout).
            checkpoint: Lightning ``.ckpt``, ``.safetensors`` or state dict of a planner.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            vlm_config: how the VLM is run; its ``path`` is replaced by ``vlm``. If not given: as ``checkpoint`` says
                its planner was trained, and as published where it says nothing.
            sampling: how trajectories are drawn.
            weights: ``averaged``, or ``raw`` for those beside an average (``agent.ema.decay``).

        Raises:
            InvalidSetting: if the VLM's hidden size is not the planner's, or ``checkpoint`` remembers another VLM.
            PlannerCheckpointError: if ``checkpoint`` holds no planner, or not the asked for weights.
            VLMCheckpointError: if ``checkpoint`` was trained from another VLM.
        """
        base = vlm_config or remembered_vlm_config(checkpoint) or VLMConfig()
        config = VLMConfig(**{**base.__dict__, "path": str(vlm)})
        planner = DiffusionPlanner(infer_planner_config(checkpoint))
        check_vlm_fits(config, planner.config.hidden_state_size)
        trained = read_trained_vlm(checkpoint, weights)
        if trained is not None:
            check_base_vlm(config, trained)
        backbone = SharedBackbone(config, device, trained=trained)
        check_remembered_vlm(checkpoint, backbone.identity())
        load_planner_weights(planner, checkpoint, weights)
        planner.to(resolve_device(device)).eval()
        return cls(planner, backbone, sampling)

    @torch.no_grad()
    def plan_batch(self, observations: Sequence[Observation], num_samples: int = 1) -> list[list[PlannedTrajectory]]:
        """``num_samples`` trajectories for each observation; the first sample of a scene does not depend on the count.

        The VLM sees each scene once, and all samples of a scene share one condition.
        """
        condition, past_poses, ego_status = self._condition(observations)
        trajectories = self.sample(condition, past_poses, ego_status, num_samples)
        return [[PlannedTrajectory(poses) for poses in scene] for scene in trajectories.cpu().numpy()]

    @overload
    def plan(self, image: Observation) -> PlannedTrajectory: ...

    @overload
    def plan(
        self,
        image: ImageInput,
        history: ArrayLike | None = None,
        ego_status: ArrayLike | None = None,
        command: str = "unknown",
        *,
        speed: float | None = None,
        front_left_image: ImageInput | None = None,
        front_right_image: ImageInput | None = None,
    ) -> PlannedTrajectory: ...

    def plan(
        self,
        image: Observation | ImageInput,
        history: ArrayLike | None = None,
        ego_status: ArrayLike | None = None,
        command: str = "unknown",
        *,
        speed: float | None = None,
        front_left_image: ImageInput | None = None,
        front_right_image: ImageInput | None = None,
    ) -> PlannedTrajectory:
        """One trajectory for one scene, given as an observation, or by what :func:`make_observation` makes one of.

        Args:
            image: an :class:`Observation`, and nothing else; or the front image: file, Pillow image or uint8 RGB.
            history: ``[4, 3]`` (x, y, heading), oldest first, metres and radians, present ego frame.
            ego_status: ``[2]`` velocity in m/s or ``[4]`` with acceleration in m/s^2, ego frame.
            command: ``left``, ``straight``, ``right`` or ``unknown``.
            speed: straight ahead in m/s, in place of ``ego_status``.
            front_left_image: for policies of three cameras.
            front_right_image: likewise.

        Raises:
            InvalidObservation: for input that cannot be, see :func:`make_observation`.
        """
        if isinstance(image, Observation):
            further = (history, ego_status, speed, front_left_image, front_right_image)
            if command != "unknown" or any(part is not None for part in further):
                raise TypeError("an Observation holds all of a scene: give plan() nothing beside it")
            return self.plan_samples(image, 1)[0]
        observation = make_observation(
            image,
            history,
            ego_status,
            command,
            speed=speed,
            front_left_image=front_left_image,
            front_right_image=front_right_image,
        )
        return self.plan_samples(observation, 1)[0]

    def plan_samples(self, observation: Observation, num_samples: int) -> list[PlannedTrajectory]:
        """``num_samples`` trajectories for one observation; the first is that of :meth:`plan`, up to rounding."""
        return self.plan_batch([observation], num_samples)[0]

    @torch.no_grad()
    def denoise(self, observation: Observation, num_samples: int = 1) -> NDArray[np.float32]:
        """How samples of one scene come out of noise, state by state.

        Args:
            observation: the scene.
            num_samples: N.

        Returns:
            ``[N, K + 1, 8, 3]`` metres and radians, present ego frame: the initial noise, and the state after each of K
            denoising steps; the last is what :meth:`plan_batch` plans.
        """
        condition, past_poses, ego_status = self._condition([observation])
        initial_noise, step_noise = self._noise(past_poses, ego_status, num_samples)
        chain = self.planner.sample_chain(
            condition,
            num_samples,
            deterministic=self.sampling.deterministic,
            settings=SamplerSettings.inference(self.planner.config.method),
            initial_noise=initial_noise,
            step_noise=step_noise,
        )
        states: NDArray[np.float32] = denormalize_trajectory(chain.states[0]).cpu().numpy()
        return states

    def sample(self, condition: Condition, past_poses: Tensor, ego_status: Tensor, num_samples: int = 1) -> Tensor:
        """Trajectories [B, N, 8, 3] (metres, radians) with each scene's own noise, see :mod:`.noise`.

        Args:
            condition: of B scenes.
            past_poses: [B, 4, 3], of the same scenes.
            ego_status: [B, 8].
            num_samples: N.
        """
        initial_noise, step_noise = self._noise(past_poses, ego_status, num_samples)
        return self.planner.sample(
            condition,
            num_samples,
            deterministic=self.sampling.deterministic,
            initial_noise=initial_noise,
            step_noise=step_noise,
        )

    def _condition(self, observations: Sequence[Observation]) -> tuple[Condition, Tensor, Tensor]:
        """The condition of B scenes, on the planner's device; past poses [B, 4, 3] and ego status [B, 8] on the CPU."""
        features = [ego_features(observation) for observation in observations]
        past_poses, ego_status = (
            torch.stack([scene[name] for scene in features]) for name in ("past_poses", "ego_status")
        )
        device = next(self.planner.parameters()).device
        hidden_states = self._source.hidden_states(observations).to(device)
        condition = self.planner.condition(hidden_states, past_poses.to(device), ego_status.to(device))
        return condition, past_poses, ego_status

    def _noise(self, past_poses: Tensor, ego_status: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """The scenes' own noise for N samples, initial and per step, on the planner's device."""
        config = self.planner.config
        initial_noise, step_noise = scene_noise(
            past_poses,
            ego_status,
            num_samples=num_samples,
            num_steps=config.num_inference_steps,
            horizon=config.horizon,
            seed=self.sampling.seed,
        )
        device = next(self.planner.parameters()).device
        return initial_noise.to(device), step_noise.to(device)
