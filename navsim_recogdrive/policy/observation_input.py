"""An :class:`Observation` from what a user has at hand: an image file, a few poses, a speed, a command by name.

Poses are (x, y, heading) in metres and radians, in the frame of the car at present: origin at the rear axle, x forward,
y left. Nothing is converted silently: what cannot be is refused, what looks like other units is warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from navsim_recogdrive.observation import (
    DRIVING_COMMANDS,
    HISTORY_POSES,
    POSE_INTERVAL_S,
    InvalidObservation,
    Observation,
)

ImageInput: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
"""An image file, a Pillow image, or ``[H, W, 3]`` uint8 RGB."""

IMAGE_ASPECT = 16 / 9
"""Width over height of NAVSIM's camera images, 1920 x 1080."""

_ASPECT_TOLERANCE = 0.1
_SMALL_WIDTH = 640
_KMH_PER_MPS = 3.6
_TOP_SPEED_MPS = 45.0
_TOP_ACCELERATION_MPS2 = 12.0
_LARGEST_TURN = np.pi / 2  # in the 1.5 s of a history
_AT_ORIGIN = 0.05


class ImplausibleInput(UserWarning):
    """Numbers that no car drives, most likely in other units than expected."""


def make_observation(
    image: ImageInput,
    history: ArrayLike | None = None,
    ego_status: ArrayLike | None = None,
    command: str = "unknown",
    *,
    speed: float | None = None,
    front_left_image: ImageInput | None = None,
    front_right_image: ImageInput | None = None,
) -> Observation:
    """An observation of one scene; warns (:class:`ImplausibleInput`) of what looks like other units.

    One of ``history``, ``ego_status`` and ``speed`` is needed. Without a history the car is taken to have driven at
    constant velocity; without a velocity or an acceleration, they are those of the history's last poses.

    Args:
        image: of the front camera; a file, a Pillow image, or ``[H, W, 3]`` uint8 RGB.
        history: ``[4, 3]`` poses (x, y, heading) at -1.5, -1.0, -0.5 and 0 s, oldest first, metres and radians, in the
            present ego frame, so that the last row is (0, 0, 0); see :func:`history_in_ego_frame` for others.
        ego_status: ``[2]`` velocity (x, y) in m/s, or ``[4]`` with the acceleration (x, y) in m/s^2; ego frame.
        command: one of :data:`~navsim_recogdrive.observation.DRIVING_COMMANDS`.
        speed: straight ahead in m/s, in place of ``ego_status``.
        front_left_image: for policies of three cameras.
        front_right_image: likewise.

    Raises:
        InvalidObservation: for a wrong shape, frame or order, a value that is not finite, an unknown command, or an
            image that is none.
        FileNotFoundError: if there is no such image file.
    """
    if command not in DRIVING_COMMANDS:
        raise InvalidObservation(f"command must be one of {', '.join(DRIVING_COMMANDS)}, found {command!r}")
    velocity, acceleration = _motion(ego_status, speed)
    if history is not None:
        past_poses = _checked_history(history)
    elif velocity is not None:
        past_poses = constant_velocity_history(velocity)
    else:
        raise InvalidObservation(
            "nothing says how the car moves: give its history (4 poses), ego_status (velocity) or speed"
        )
    steps = np.diff(past_poses[:, :2], axis=0) / POSE_INTERVAL_S
    observation = Observation(
        front_image=read_image(image),
        past_poses=past_poses.astype(np.float32),
        velocity=steps[-1] if velocity is None else velocity,
        acceleration=(steps[-1] - steps[-2]) / POSE_INTERVAL_S if acceleration is None else acceleration,
        driving_command=np.eye(len(DRIVING_COMMANDS))[DRIVING_COMMANDS.index(command)],
        front_left_image=None if front_left_image is None else read_image(front_left_image),
        front_right_image=None if front_right_image is None else read_image(front_right_image),
    )
    for warning in implausibilities(observation):
        warnings.warn(warning, ImplausibleInput, stacklevel=2)
    return observation


def constant_velocity_history(velocity: ArrayLike) -> NDArray[np.float64]:
    """The ``[4, 3]`` poses of a car that has driven at ``velocity`` (x, y; m/s, ego frame) without turning."""
    times = POSE_INTERVAL_S * np.arange(1 - HISTORY_POSES, 1)
    poses = np.zeros((HISTORY_POSES, 3))
    poses[:, :2] = times[:, None] * np.asarray(velocity, dtype=np.float64)
    return poses


def history_in_ego_frame(poses: ArrayLike) -> NDArray[np.float64]:
    """Poses ``[N, 3]`` (x, y, heading) of any one frame, such as a map's, in the frame of the last of them.

    Raises:
        InvalidObservation: for another shape.
    """
    given = np.asarray(poses, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 3 or not len(given):
        raise InvalidObservation(f"poses must have shape [N, 3] (x, y, heading), found {list(given.shape)}")
    cos, sin = np.cos(given[-1, 2]), np.sin(given[-1, 2])
    local = given - given[-1]
    local[:, :2] = local[:, :2] @ np.array([[cos, -sin], [sin, cos]])
    local[:, 2] = np.arctan2(np.sin(local[:, 2]), np.cos(local[:, 2]))
    return local


def read_image(image: ImageInput) -> NDArray[np.uint8]:
    """``[H, W, 3]`` uint8 RGB of a file, a Pillow image or an array; turned upright where its EXIF data says so.

    Raises:
        InvalidObservation: for a file that is no image, or an array of another shape or dtype.
        FileNotFoundError: if there is no such file.
    """
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no image at {path}")
        try:
            with Image.open(path) as opened:
                return read_image(opened)
        except OSError as error:
            raise InvalidObservation(f"{path} is no image that can be read: {error}") from error
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    hint = ""
    if array.ndim == 3 and array.shape[0] == 3:
        hint = ": move the channels to the end, image.transpose(1, 2, 0)"
    elif array.ndim == 3 and array.shape[2] == 4:
        hint = ": leave out the alpha channel, image[..., :3]"
    elif array.dtype.kind == "f":
        hint = ": for values in 0..1, (image * 255).round().astype('uint8')"
    raise InvalidObservation(
        f"an image must be a file, a Pillow image or uint8 RGB of shape [H, W, 3], found {array.dtype} "
        f"{list(array.shape)}{hint}"
    )


def implausibilities(observation: Observation) -> list[str]:
    """What is odd about an observation's numbers and image, one sentence each; empty if all looks right."""
    found = []
    for camera in ("front_left", "front", "front_right"):
        image = observation.image(camera)
        if image is not None:
            found += _odd_image(camera, image)
    poses = observation.past_poses.astype(np.float64)
    velocity = observation.velocity.astype(np.float64)
    if np.abs(poses[:, 2]).max() > _LARGEST_TURN:
        found.append(
            f"headings in the history reach {np.abs(poses[:, 2]).max():.3g}: they are in radians, and 1.5 s of driving "
            "turn a car by less than 1.57; are these degrees?"
        )
    driven = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1) / POSE_INTERVAL_S
    if driven.max() > _TOP_SPEED_MPS:
        found.append(
            f"the history goes at up to {driven.max():.0f} m/s: its poses must be in metres and {POSE_INTERVAL_S} s "
            "apart"
        )
    found += _odd_speed(float(np.linalg.norm(velocity)), float(driven[-1]))
    acceleration = float(np.linalg.norm(observation.acceleration))
    if acceleration > _TOP_ACCELERATION_MPS2:
        found.append(f"an acceleration of {acceleration:.1f} m/s^2 is more than a car's: is it in m/s^2?")
    return found


def _odd_image(camera: str, image: NDArray[np.uint8]) -> list[str]:
    height, width = image.shape[:2]
    if abs(width / height / IMAGE_ASPECT - 1) > _ASPECT_TOLERANCE:
        return [
            f"the {camera.replace('_', '-')} image is {width} x {height}, NAVSIM's are 16:9 (1920 x 1080): the VLM "
            "sees another shape than in training; crop it"
        ]
    if width < _SMALL_WIDTH:
        return [f"the {camera.replace('_', '-')} image is only {width} x {height}, NAVSIM's are 1920 x 1080"]
    return []


def _odd_speed(speed: float, driven: float) -> list[str]:
    """Compares the status's speed with that of the history's last 0.5 s; both in m/s."""
    if abs(speed - driven) > max(3.0, 0.4 * max(speed, driven)):
        in_kmh = driven > 0 and abs(speed / driven / _KMH_PER_MPS - 1) < 0.15
        hint = (
            "the velocity is expected in m/s; is this km/h?" if in_kmh else "are its poses in metres and 0.5 s apart?"
        )
        return [f"the velocity says {speed:.1f} m/s, the last poses of the history {driven:.1f} m/s: {hint}"]
    if speed > _TOP_SPEED_MPS:
        return [f"a speed of {speed:.0f} m/s is {speed * _KMH_PER_MPS:.0f} km/h: is it in m/s?"]
    return []


def _motion(ego_status: ArrayLike | None, speed: float | None) -> tuple[Any, Any]:
    """Velocity and acceleration ``[2]`` as far as they were given, else ``None``."""
    if ego_status is None:
        return (None, None) if speed is None else (np.array([float(speed), 0.0]), None)
    if speed is not None:
        raise InvalidObservation("give ego_status or speed, not both")
    status = np.asarray(ego_status, dtype=np.float64)
    if not np.isfinite(status).all():
        raise InvalidObservation(f"ego_status holds values that are not finite: {status.tolist()}")
    if status.shape not in ((2,), (4,)):
        raise InvalidObservation(
            f"ego_status must be [2] (velocity x, y) or [4] (with acceleration x, y), found {list(status.shape)}"
            + ("; the driving command is given on its own" if status.shape == (8,) else "")
        )
    return status[:2], (status[2:] if len(status) == 4 else None)


def _checked_history(history: ArrayLike) -> NDArray[np.float64]:
    poses = np.asarray(history, dtype=np.float64)
    if poses.shape != (HISTORY_POSES, 3):
        hint = ""
        if poses.ndim == 2 and poses.shape[1] == 3 and len(poses) > HISTORY_POSES:
            hint = f"; poses must be {POSE_INTERVAL_S} s apart, of 10 Hz take every fifth"
        raise InvalidObservation(
            f"history must have shape [{HISTORY_POSES}, 3]: (x, y, heading) at {_times()} s, found "
            f"{list(poses.shape)}{hint}"
        )
    if not np.isfinite(poses).all():
        raise InvalidObservation(f"history holds values that are not finite: {poses.tolist()}")
    if np.abs(poses[-1]).max() > _AT_ORIGIN:
        if np.abs(poses[0]).max() <= _AT_ORIGIN:
            raise InvalidObservation("history begins with the present pose (0, 0, 0): the oldest pose must come first")
        raise InvalidObservation(
            f"history must be in the present ego frame, with (0, 0, 0) last, found {poses[-1].tolist()}: for poses on "
            "a map use navsim_recogdrive.policy.observation_input.history_in_ego_frame(poses)"
        )
    return poses


def _times() -> str:
    times: Sequence[float] = [POSE_INTERVAL_S * (step + 1 - HISTORY_POSES) for step in range(HISTORY_POSES)]
    return ", ".join(f"{time:g}" for time in times)
