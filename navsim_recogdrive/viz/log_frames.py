"""What a log's frames say of a scene, without its map: boxes, front camera, the ego's past.

The frames are OpenScene's dictionaries, as NAVSIM's logs and the synthetic world's hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS, Observation
from navsim_recogdrive.viz.camera import NUPLAN_CENTRE, NUPLAN_WIDTH
from navsim_recogdrive.viz.scene_view import (
    AGENT_KINDS,
    AgentBox,
    CameraImage,
    FloatArray,
    Image,
    InvalidView,
    SceneView,
)

FRONT_CAMERA = "CAM_F0"

_GROUND_FROM_M = 25.0
_GROUND_FROM_BOXES = 3
_DISTORTION = 5
_FULL_WIDTH, _FULL_HEIGHT = NUPLAN_WIDTH, 1080
_CENTRE = (NUPLAN_CENTRE[0] / _FULL_WIDTH, NUPLAN_CENTRE[1] / _FULL_HEIGHT)
"""The principal point of nuPlan's front cameras as shares of a picture's width and height."""

_SAME = 0.01
_CENTRE_WITHIN = 0.05


def log_view(frame: Mapping[str, Any], observation: Observation, human: NDArray[Any] | None) -> SceneView:
    """A view of a scene without map and plans.

    Args:
        frame: the present one.
        observation: of the scene; with the front image, the view has a camera.
        human: ``[8, 3]`` what the human drove, or ``None``.

    Raises:
        InvalidView: for annotations or a calibration that cannot be drawn.
    """
    agents = tuple(_agents(frame["anns"]))
    command = DRIVING_COMMANDS[observation.command_index]
    speed = float(np.hypot(*observation.velocity))
    return SceneView(
        title=str(frame["token"]),
        subtitle=f"{command}, {speed:.1f} m/s   {frame['log_name']}",
        agents=agents,
        past_poses=observation.past_poses.astype(np.float64),
        human=None if human is None else human.astype(np.float64),
        camera=_camera(frame["cams"][FRONT_CAMERA], observation, agents),
    )


def _agents(annotations: Mapping[str, Any]) -> Iterator[AgentBox]:
    boxes = np.asarray(annotations["gt_boxes"], dtype=np.float64).reshape(-1, 7)
    if not len(boxes):
        return
    velocities = np.nan_to_num(np.asarray(annotations["gt_velocity_3d"], dtype=np.float64).reshape(len(boxes), -1))
    for box, name, velocity in zip(boxes, annotations["gt_names"], velocities, strict=True):
        x, y, z, length, width, height, heading = box.tolist()
        kind = str(name) if str(name) in AGENT_KINDS else "generic_object"
        yield AgentBox(kind, np.array([x, y, heading]), (length, width, height), z, velocity[:2])


def _camera(camera: Mapping[str, Any], observation: Observation, agents: Sequence[AgentBox]) -> CameraImage | None:
    if observation.front_image is None:
        return None
    given = np.asarray(camera.get("distortion", ()), dtype=np.float64).ravel()[:_DISTORTION]
    distortion = np.zeros(_DISTORTION)
    distortion[: len(given)] = given
    return CameraImage(
        observation.front_image,
        image_intrinsics(np.asarray(camera["cam_intrinsic"], dtype=np.float64), observation.front_image),
        np.asarray(camera["sensor2lidar_rotation"]),
        np.asarray(camera["sensor2lidar_translation"]),
        distortion,
        ground_height(agents),
    )


def image_intrinsics(calibrated: FloatArray, image: Image) -> FloatArray:
    """The camera matrix ``[3, 3]`` in pixels of ``image``, of one that may be of the full size.

    NAVSIM's logs calibrate images of 1920x1080. A copy of the data may hold them smaller; its logs do not say so, only
    the principal point shows that their calibration is that of another size.

    Args:
        calibrated: the log's, ``[3, 3]``.
        image: ``[H, W, 3]``.

    Raises:
        InvalidView: for a part of an image, or another shape, which the log does not calibrate.
    """
    height, width = image.shape[:2]
    if (width, height) == (_FULL_WIDTH, _FULL_HEIGHT):
        return calibrated
    x, y = float(calibrated[0, 2]), float(calibrated[1, 2])
    # The synthetic world calibrates the size that it draws.
    if abs(x / width - _CENTRE[0]) < _SAME and abs(y / height - _CENTRE[1]) < _SAME:
        return calibrated
    whole = abs(width * _FULL_HEIGHT / (height * _FULL_WIDTH) - 1.0) < _SAME
    if not whole or abs(x / _FULL_WIDTH - _CENTRE[0]) > _CENTRE_WITHIN:
        raise InvalidView(
            f"the front camera's image is {width}x{height}, the principal point of its calibration ({x:g}, {y:g}); "
            f"logs calibrate {_FULL_WIDTH}x{_FULL_HEIGHT}: expected that, or whole images made smaller, such as 960x540"
        )
    scaled = calibrated.copy()
    scaled[0] *= width / _FULL_WIDTH
    scaled[1] *= height / _FULL_HEIGHT
    return scaled


def ground_height(agents: Sequence[AgentBox]) -> float:
    """Height of the road in the ego frame, metres: where the vehicles nearby stand.

    The frame's origin is meant to be on the ground, but roads slope and annotations are lifted: the median of at least
    three vehicles within 25 m says more. Without them it is 0.
    """
    bottoms = [
        agent.centre_z - agent.size[2] / 2
        for agent in agents
        if agent.kind == "vehicle" and np.hypot(*agent.pose[:2]) < _GROUND_FROM_M
    ]
    return float(np.median(bottoms)) if len(bottoms) >= _GROUND_FROM_BOXES else 0.0
