"""ReCogDrivePolicy: Observation -> VLM -> planner -> PlannedTrajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from navsim_recogdrive.observation import Observation, PlannedTrajectory
from navsim_recogdrive.planner.checkpoints import infer_planner_config, load_planner_weights
from navsim_recogdrive.planner.condition import Condition
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.backbones import HiddenStateSource, SharedBackbone, check_vlm_fits, resolve_device
from navsim_recogdrive.policy.configuration import SamplingConfig, VLMConfig
from navsim_recogdrive.policy.features import ego_features
from navsim_recogdrive.policy.joint import check_base_vlm, read_trained_vlm
from navsim_recogdrive.policy.noise import scene_noise
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm


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
    ) -> ReCogDrivePolicy:
        """A policy from a VLM and a planner checkpoint; the planner's sizes and method are read from the file.

        So is what the checkpoint holds of a VLM that was trained with its planner: ``vlm`` is the one it started from.

        Args:
            vlm: folder of the VLM (hub layout).
            checkpoint: Lightning ``.ckpt``, ``.safetensors`` or state dict of a planner.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            vlm_config: how the VLM is run; its ``path`` is replaced by ``vlm``.
            sampling: how trajectories are drawn.

        Raises:
            InvalidSetting: if the VLM's hidden size is not the planner's, or ``checkpoint`` remembers another VLM.
            PlannerCheckpointError: if ``checkpoint`` holds no planner.
            VLMCheckpointError: if ``checkpoint`` was trained from another VLM.
        """
        base = vlm_config or VLMConfig()
        config = VLMConfig(**{**base.__dict__, "path": str(vlm)})
        planner = DiffusionPlanner(infer_planner_config(checkpoint))
        check_vlm_fits(config, planner.config.hidden_state_size)
        trained = read_trained_vlm(checkpoint)
        if trained is not None:
            check_base_vlm(config, trained)
        backbone = SharedBackbone(config, device, trained=trained)
        check_remembered_vlm(checkpoint, backbone.identity())
        load_planner_weights(planner, checkpoint)
        planner.to(resolve_device(device)).eval()
        return cls(planner, backbone, sampling)

    @torch.no_grad()
    def plan_batch(self, observations: Sequence[Observation], num_samples: int = 1) -> list[list[PlannedTrajectory]]:
        """``num_samples`` trajectories for each observation; the first sample of a scene does not depend on the count.

        The VLM sees each scene once, and all samples of a scene share one condition.
        """
        features = [ego_features(observation) for observation in observations]
        past_poses, ego_status = (
            torch.stack([scene[name] for scene in features]) for name in ("past_poses", "ego_status")
        )
        device = next(self.planner.parameters()).device
        hidden_states = self._source.hidden_states(observations).to(device)
        condition = self.planner.condition(hidden_states, past_poses.to(device), ego_status.to(device))
        trajectories = self.sample(condition, past_poses, ego_status, num_samples)
        return [[PlannedTrajectory(poses) for poses in scene] for scene in trajectories.cpu().numpy()]

    def plan(self, observation: Observation) -> PlannedTrajectory:
        """One trajectory for one observation."""
        return self.plan_batch([observation])[0][0]

    def sample(self, condition: Condition, past_poses: Tensor, ego_status: Tensor, num_samples: int = 1) -> Tensor:
        """Trajectories [B, N, 8, 3] (metres, radians) with each scene's own noise, see :mod:`.noise`.

        Args:
            condition: of B scenes.
            past_poses: [B, 4, 3], of the same scenes.
            ego_status: [B, 8].
            num_samples: N.
        """
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
        return self.planner.sample(
            condition,
            num_samples,
            deterministic=self.sampling.deterministic,
            initial_noise=initial_noise.to(device),
            step_noise=step_noise.to(device),
        )
