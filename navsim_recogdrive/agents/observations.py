"""NAVSIM's ``AgentInput`` as an :class:`~navsim_recogdrive.observation.Observation`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from navsim_recogdrive.agents.compat import AgentInput, SensorConfig
from navsim_recogdrive.observation import HISTORY_POSES, InvalidObservation, Observation

_NAMES = {"front_left": "cam_l0", "front": "cam_f0", "front_right": "cam_r0"}
"""NAVSIM's names of the cameras in :data:`~navsim_recogdrive.observation.CAMERA_SETS`."""


def camera_config(cameras: Sequence[str]) -> SensorConfig:
    """The sensors this policy reads from disk: its cameras in the present frame, nothing else."""
    present = [HISTORY_POSES - 1]
    read = {_NAMES[camera]: present for camera in cameras}
    return SensorConfig(
        cam_f0=read.get("cam_f0", False),
        cam_l0=read.get("cam_l0", False),
        cam_l1=False,
        cam_l2=False,
        cam_r0=read.get("cam_r0", False),
        cam_r1=False,
        cam_r2=False,
        cam_b0=False,
        lidar_pc=False,
    )


def observation_from_agent_input(agent_input: AgentInput, cameras: Sequence[str] = ("front",)) -> Observation:
    """The observation of the last frame of ``agent_input``.

    Ego poses arrive as float64 while training and as float32 while scoring; an Observation holds float32 in both.

    Args:
        agent_input: what the runner hands to an agent.
        cameras: whose images the observation holds; none for a policy that needs no image.

    Raises:
        InvalidObservation: if the history has not four frames, poses are global, or an image is missing.
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
    images = {camera: getattr(agent_input.cameras[-1], _NAMES[camera]).image for camera in cameras}
    for camera, image in images.items():
        if image is None:
            raise InvalidObservation(
                f"the {camera.replace('_', '-')} camera image ({_NAMES[camera].upper()} of the present frame) is "
                "missing from the AgentInput; build it with agent.get_sensor_config()"
            )
    return Observation(
        front_image=images.get("front"),
        front_left_image=images.get("front_left"),
        front_right_image=images.get("front_right"),
        past_poses=np.stack([np.asarray(status.ego_pose, dtype=np.float32) for status in statuses]),
        velocity=np.asarray(present.ego_velocity, dtype=np.float32),
        acceleration=np.asarray(present.ego_acceleration, dtype=np.float32),
        driving_command=np.asarray(present.driving_command, dtype=np.float32),
    )
