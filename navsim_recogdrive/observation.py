"""What a policy sees and what it answers: the one currency between a host (NAVSIM, the synthetic world) and the policy.

Both are plain dataclasses of numpy arrays. Frames and units: the ego frame has its origin at the rear axle of the
current time, x forward and y left; positions in metres, headings in radians, time in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HISTORY_POSES = 4
"""Past poses in an observation: at -1.5, -1.0, -0.5 and 0 s."""

HORIZON_POSES = 8
"""Poses in a planned trajectory: at 0.5, 1.0, ..., 4.0 s."""

POSE_INTERVAL_S = 0.5
"""Seconds between two poses (2 Hz), in the past and in the plan."""

CAMERA_SETS = {"single": ("front",), "multi": ("front_left", "front", "front_right")}
"""The cameras that the VLM sees, from left to right, for each ``cam_type``; ``single`` is the published one."""

DRIVING_COMMANDS = ("left", "straight", "right", "unknown")
"""Meaning of the entries of NAVSIM's four-way one-hot driving command."""


class InvalidObservation(ValueError):
    """An observation that no policy can plan from: wrong shape, missing image, or values that are not finite."""


@dataclass(frozen=True)
class Observation:
    """One scene as the policy sees it.

    Every number is stored as float32, whatever the host hands over: NAVSIM gives the ego poses as float64 while
    training and as float32 while scoring, and both must become the same features and the same prompt.

    Attributes:
        front_image: ``[H, W, 3]`` uint8 RGB, the current front camera, or ``None`` where features come from a cache.
        past_poses: ``[4, 3]`` float32 (x, y, heading), oldest first, in the current ego frame; the last row is the
            present.
        velocity: ``[2]`` float32, metres per second, ego frame.
        acceleration: ``[2]`` float32, metres per second squared, ego frame.
        driving_command: ``[4]`` float32 one-hot, see :data:`DRIVING_COMMANDS`.
        front_left_image: as ``front_image``, for policies with ``cam_type=multi``.
        front_right_image: likewise.

    Raises:
        InvalidObservation: for any field with another shape or dtype, or with a value that is not finite.
    """

    front_image: NDArray[np.uint8] | None
    past_poses: NDArray[np.float32]
    velocity: NDArray[np.float32]
    acceleration: NDArray[np.float32]
    driving_command: NDArray[np.float32]
    front_left_image: NDArray[np.uint8] | None = None
    front_right_image: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        for name, shape in (
            ("past_poses", (HISTORY_POSES, 3)),
            ("velocity", (2,)),
            ("acceleration", (2,)),
            ("driving_command", (len(DRIVING_COMMANDS),)),
        ):
            object.__setattr__(self, name, _finite_float32(name, getattr(self, name), shape))
        command = self.driving_command
        if not (np.isin(command, (0.0, 1.0)).all() and command.sum() <= 1.0):
            raise InvalidObservation(
                f"driving_command must be one-hot over {DRIVING_COMMANDS} (all zero means unknown), found "
                f"{command.tolist()}"
            )
        if command.sum() == 0.0:
            object.__setattr__(self, "driving_command", np.array([0, 0, 0, 1], dtype=np.float32))
        for camera in CAMERA_SETS["multi"]:
            image = self.image(camera)
            if image is not None and (
                image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape
            ):
                raise InvalidObservation(
                    f"{camera}_image must be uint8 RGB of shape [H, W, 3], found {image.dtype} {list(image.shape)}"
                )

    def image(self, camera: str) -> NDArray[np.uint8] | None:
        """The image of one camera of :data:`CAMERA_SETS`, ``[H, W, 3]`` uint8 RGB."""
        image: NDArray[np.uint8] | None = getattr(self, f"{camera}_image")
        return image

    @property
    def command_index(self) -> int:
        """Index into :data:`DRIVING_COMMANDS`."""
        return int(self.driving_command.argmax())

    @property
    def ego_status(self) -> NDArray[np.float32]:
        """``[8]`` float32: driving command one-hot (4), velocity (2), acceleration (2), as the planner takes it."""
        return np.concatenate([self.driving_command, self.velocity, self.acceleration])


@dataclass(frozen=True)
class PlannedTrajectory:
    """A plan: ``poses`` is ``[8, 3]`` float32 (x, y, heading) at 0.5 s steps, metres and radians, current ego frame.

    Raises:
        InvalidObservation: if ``poses`` has another shape or a value that is not finite.
    """

    poses: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "poses", _finite_float32("poses", self.poses, (HORIZON_POSES, 3)))


def _finite_float32(name: str, value: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = np.asarray(value, dtype=np.float32)
    if array.shape != shape:
        raise InvalidObservation(f"{name} must have shape {list(shape)}, found {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InvalidObservation(f"{name} holds values that are not finite: {array.tolist()}")
    return array
