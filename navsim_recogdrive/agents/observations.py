"""NAVSIM's ``AgentInput`` as an :class:`~navsim_recogdrive.observation.Observation`."""

from __future__ import annotations

import numpy as np

from navsim_recogdrive.agents.compat import AgentInput, SensorConfig
from navsim_recogdrive.observation import HISTORY_POSES, InvalidObservation, Observation


def front_camera_config() -> SensorConfig:
    """The sensors this policy reads from disk: the front camera of the present frame, nothing else."""
    present = [HISTORY_POSES - 1]
    return SensorConfig(
        cam_f0=present,
        cam_l0=False,
        cam_l1=False,
        cam_l2=False,
        cam_r0=False,
        cam_r1=False,
        cam_r2=False,
        cam_b0=False,
        lidar_pc=False,
    )


def observation_from_agent_input(agent_input: AgentInput) -> Observation:
    """The observation of the last frame of ``agent_input``.

    Ego poses arrive as float64 while training and as float32 while scoring; an Observation holds float32 in both.

    Raises:
        InvalidObservation: if the history has not four frames, poses are global, or the front image is missing.
    """
    statuses = agent_input.ego_statuses
    if len(statuses) != HISTORY_POSES:
        raise InvalidObservation(
            f"ReCogDrive needs {HISTORY_POSES} history frames, found {len(statuses)}; "
            f"set train_test_split.scene_filter.num_history_frames={HISTORY_POSES}"
        )
    present = statuses[-1]
    if present.in_global_frame:
        raise InvalidObservation("ego poses are in the global frame; an AgentInput holds them in the current ego frame")
    image = agent_input.cameras[-1].cam_f0.image
    if image is None:
        raise InvalidObservation(
            "the front camera image (CAM_F0 of the present frame) is missing from the AgentInput; "
            "build it with agent.get_sensor_config()"
        )
    return Observation(
        front_image=image,
        past_poses=np.stack([np.asarray(status.ego_pose, dtype=np.float32) for status in statuses]),
        velocity=np.asarray(present.ego_velocity, dtype=np.float32),
        acceleration=np.asarray(present.ego_acceleration, dtype=np.float32),
        driving_command=np.asarray(present.driving_command, dtype=np.float32),
    )
