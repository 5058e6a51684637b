"""What is known of one scene, as plain data: the one currency between a host's logs and the makers of questions.

A record holds what a policy sees (paths of images, past poses, ego status, command) and what only the log knows (the
expert's future, the annotated road users before and after now). It is a dataclass of numbers and strings that turns
into JSON and back without loss, so that it can travel between processes or lie on disk.

Frames and units: the ego frame of the present, origin on the ground under the rear axle, x forward, y left, z up;
metres, radians, seconds. A camera frame has x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS, HISTORY_POSES, HORIZON_POSES, POSE_INTERVAL_S

TRACK_TIMES_S: tuple[float, ...] = tuple(POSE_INTERVAL_S * step for step in range(1 - HISTORY_POSES, HORIZON_POSES + 1))
"""Times of the poses of an :class:`AgentTrack`: -1.5, -1.0, ..., 4.0 s; 12 of them."""

PRESENT = HISTORY_POSES - 1
"""Row of the present in an :class:`AgentTrack`'s poses."""

CATEGORIES = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")
"""NAVSIM's annotation classes, in both versions."""


class LaneAt(NamedTuple):
    """Where on the map somebody is at one time.

    Attributes:
        lane: id of the lane, or of the lane connector within a junction.
        block: id of the roadblock or roadblock connector; lanes beside each other share it.
        offset: distance from the lane's centre line, metres, positive to the left.
        junction: whether it is a lane connector.
    """

    lane: str
    block: str
    offset: float
    junction: bool


Lanes = tuple[LaneAt | None, ...]
"""One entry for each of :data:`TRACK_TIMES_S`, ``None`` off the lanes; empty where the map was not read."""


class InvalidRecord(ValueError):
    """A record that contradicts itself: a wrong shape, a value that is not finite, a field that is missing."""


@dataclass(frozen=True, eq=False)
class CameraView:
    """One camera's image of the present, and where the camera looks.

    Attributes:
        name: ``front``, ``front_left`` or ``front_right`` (:data:`~navsim_recogdrive.observation.CAMERA_SETS`).
        image: path of the image below the data root, with ``/`` on every system.
        width: of the image, pixels.
        height: of the image, pixels.
        intrinsics: ``[3, 3]`` camera matrix, pixels.
        rotation: ``[3, 3]`` from the camera frame to the ego frame.
        translation: ``[3]`` the camera's position in the ego frame, metres.
        distortion: ``[5]`` OpenCV's k1, k2, p1, p2, k3 of the image; zeros for an ideal one.

    Raises:
        InvalidRecord: for another shape, a value that is not finite, a size below one pixel or an absolute path.
    """

    name: str
    image: str
    width: int
    height: int
    intrinsics: NDArray[np.float64]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    distortion: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("rotation", (3, 3)), ("translation", (3,)), ("distortion", (5,))):
            object.__setattr__(self, name, _array(f"camera {self.name}: {name}", getattr(self, name), shape))
        if self.width < 1 or self.height < 1:
            raise InvalidRecord(f"camera {self.name}: the image has size {self.width} x {self.height}")
        if self.image.startswith("/") or "\\" in self.image:
            raise InvalidRecord(f"camera {self.name}: image {self.image!r} must be a path below the data root, with /")


@dataclass(frozen=True, eq=False)
class AgentTrack:
    """One annotated road user or object that is there at present.

    Attributes:
        track_token: the annotation's, equal in all frames of a log.
        category: one of :data:`CATEGORIES`.
        size: length, width, height in metres.
        poses: ``[12, 3]`` (x, y, heading) of the box's centre at :data:`TRACK_TIMES_S`, all in the ego frame of the
            present; rows are nan where it is not annotated. The row of the present (:data:`PRESENT`) is always there.
        centre_z: height of the box's centre above the origin of the ego frame at present, metres.
        velocity: ``[2]`` annotated velocity now, over ground, along the axes of the ego frame, metres per second.
        lanes: of a vehicle's or bicycle's centre at the times of ``poses``.

    Raises:
        InvalidRecord: for another shape, an unknown category, or a present that is not finite.
    """

    track_token: str
    category: str
    size: tuple[float, float, float]
    poses: NDArray[np.float64]
    centre_z: float
    velocity: NDArray[np.float64]
    lanes: Lanes = ()

    def __post_init__(self) -> None:
        what = f"track {self.track_token}"
        object.__setattr__(self, "lanes", _lanes(what, self.lanes))
        if self.category not in CATEGORIES:
            raise InvalidRecord(f"{what}: category must be one of {CATEGORIES}, found {self.category!r}")
        size = _array(f"{what}: size", self.size, (3,))
        object.__setattr__(self, "size", tuple(size.tolist()))
        object.__setattr__(self, "velocity", _array(f"{what}: velocity", self.velocity, (2,)))
        poses = _array(f"{what}: poses", self.poses, (len(TRACK_TIMES_S), 3), finite=False)
        object.__setattr__(self, "poses", poses)
        missing = np.isnan(poses)
        if missing[PRESENT].any() or np.isinf(poses).any() or (missing.any(1) != missing.all(1)).any():
            raise InvalidRecord(f"{what}: a pose must be finite or all nan, and that of the present finite")
        if not np.isfinite(self.centre_z):
            raise InvalidRecord(f"{what}: centre_z must be finite, found {self.centre_z}")

    @property
    def present(self) -> NDArray[np.float64]:
        """``[3]`` pose now."""
        return self.poses[PRESENT]

    @property
    def future(self) -> NDArray[np.float64]:
        """``[8, 3]`` poses at 0.5, ..., 4.0 s; nan where not annotated."""
        return self.poses[PRESENT + 1 :]


@dataclass(frozen=True, eq=False)
class SceneRecord:
    """One scene of a log.

    Attributes:
        token: NAVSIM's token of the scene, that of its present frame.
        log_name: the log it is cut from.
        map_name: the location, such as ``us-nv-las-vegas-strip``.
        cameras: what the VLM sees, from left to right; one of them is the front camera.
        past_poses: ``[4, 3]`` float32 (x, y, heading), oldest first, the last is the present: an Observation's.
        ego_status: ``[8]`` float32 driving command one-hot (4), velocity (2), acceleration (2): an Observation's.
        future_poses: ``[8, 3]`` float32, what the expert drove at 0.5, ..., 4.0 s; ``None`` where the log ends before.
        agents: all that is annotated at present, in the order of the annotations.
        lights: of the traffic lights of the present frame, how many lane connectors are red and how many are not.
        lanes: of the ego's rear axle at :data:`TRACK_TIMES_S`.

    Raises:
        InvalidRecord: for another shape, a value that is not finite, or no front camera.
    """

    token: str
    log_name: str
    map_name: str
    cameras: tuple[CameraView, ...]
    past_poses: NDArray[np.float32]
    ego_status: NDArray[np.float32]
    future_poses: NDArray[np.float32] | None
    agents: tuple[AgentTrack, ...]
    lights: tuple[int, int] = (0, 0)
    lanes: Lanes = ()

    def __post_init__(self) -> None:
        what = f"scene {self.token}"
        object.__setattr__(self, "lanes", _lanes(what, self.lanes))
        for name, shape in (("past_poses", (HISTORY_POSES, 3)), ("ego_status", (len(DRIVING_COMMANDS) + 4,))):
            object.__setattr__(self, name, _array(f"{what}: {name}", getattr(self, name), shape, np.float32))
        if self.future_poses is not None:
            future = _array(f"{what}: future_poses", self.future_poses, (HORIZON_POSES, 3), np.float32)
            object.__setattr__(self, "future_poses", future)
        if [camera.name for camera in self.cameras].count("front") != 1:
            raise InvalidRecord(f"{what}: one camera must be the front one, found {[c.name for c in self.cameras]}")

    @property
    def front(self) -> CameraView:
        """The front camera."""
        return next(camera for camera in self.cameras if camera.name == "front")

    @property
    def image(self) -> str:
        """Path of the front camera's image below the data root."""
        return self.front.image

    @property
    def width(self) -> int:
        """Width of the front camera's image, pixels."""
        return self.front.width

    @property
    def height(self) -> int:
        """Height of the front camera's image, pixels."""
        return self.front.height

    @property
    def command_index(self) -> int:
        """Index into :data:`~navsim_recogdrive.observation.DRIVING_COMMANDS`."""
        return int(self.ego_status[: len(DRIVING_COMMANDS)].argmax())

    @property
    def command(self) -> str:
        """The driving command: left, straight, right or unknown."""
        return DRIVING_COMMANDS[self.command_index]

    @property
    def velocity(self) -> NDArray[np.float32]:
        """``[2]`` of the ego, metres per second, ego frame."""
        return self.ego_status[4:6]

    @property
    def acceleration(self) -> NDArray[np.float32]:
        """``[2]`` of the ego, metres per second squared, ego frame."""
        return self.ego_status[6:8]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (nan rows are null); :meth:`from_dict` gives the same numbers back."""
        return {
            "token": self.token,
            "log_name": self.log_name,
            "map_name": self.map_name,
            "cameras": [
                {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(one).items()}
                for one in self.cameras
            ],
            "past_poses": self.past_poses.tolist(),
            "ego_status": self.ego_status.tolist(),
            "future_poses": None if self.future_poses is None else self.future_poses.tolist(),
            "agents": [
                {
                    "track_token": agent.track_token,
                    "category": agent.category,
                    "size": list(agent.size),
                    "poses": [None if np.isnan(pose).any() else pose.tolist() for pose in agent.poses],
                    "centre_z": agent.centre_z,
                    "velocity": agent.velocity.tolist(),
                    "lanes": list(agent.lanes),
                }
                for agent in self.agents
            ],
            "lights": list(self.lights),
            "lanes": list(self.lanes),
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> SceneRecord:
        """A record from what :meth:`to_dict` gave.

        Raises:
            InvalidRecord: for missing or unknown fields, or values that no record may have.
        """
        try:
            fields = dict(content)
            fields["cameras"] = tuple(CameraView(**camera) for camera in fields["cameras"])
            absent = [np.nan] * 3
            fields["agents"] = tuple(
                AgentTrack(**{**agent, "poses": [absent if pose is None else pose for pose in agent["poses"]]})
                for agent in fields["agents"]
            )
            fields["lights"] = tuple(fields.get("lights", (0, 0)))
            return SceneRecord(**fields)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, InvalidRecord):
                raise
            raise InvalidRecord(f"this is no scene record: {type(error).__name__} {error}") from None


def _lanes(what: str, value: Any) -> Lanes:
    lanes = tuple(
        None if one is None else LaneAt(str(one[0]), str(one[1]), float(one[2]), bool(one[3])) for one in value
    )
    if len(lanes) not in (0, len(TRACK_TIMES_S)):
        raise InvalidRecord(f"{what}: lanes must have {len(TRACK_TIMES_S)} entries, or none, found {len(lanes)}")
    return lanes


def _array(name: str, value: object, shape: tuple[int, ...], dtype: type = np.float64, finite: bool = True) -> Any:
    try:
        array: NDArray[Any] = np.asarray(value, dtype=dtype)
    except (TypeError, ValueError):
        raise InvalidRecord(f"{name} must be numbers of shape {list(shape)}, found {value!r}") from None
    if array.shape != shape:
        raise InvalidRecord(f"{name} must have shape {list(shape)}, found {list(array.shape)}")
    if finite and not np.isfinite(array).all():
        raise InvalidRecord(f"{name} holds values that are not finite: {array.tolist()}")
    return array
