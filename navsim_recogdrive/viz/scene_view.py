"""What can be drawn of a scene, as plain arrays: the one currency between those who know scenes and those who draw.

Frames and units: everything is in the ego frame of the present (origin on the ground under the rear axle, x forward,
y left, z up), metres, radians, seconds. A camera frame has x right, y down, z forward. Images are RGB uint8 [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

AREAS = ("drivable", "lane", "intersection", "carpark", "walkway", "crosswalk", "route", "stop_line")
"""Kinds of map areas, in the order in which they are drawn."""

LINES = ("centre_line", "red_light")
"""Kinds of map lines: the middles of lanes, and those of lane connectors whose light is red."""

AGENT_KINDS = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")
"""NAVSIM's annotation classes."""


_MOVES_MPS = 0.5


class InvalidView(ValueError):
    """Something that cannot be drawn: a wrong shape, a value that is not finite, an unknown kind."""


@dataclass(frozen=True, eq=False)
class MapArea:
    """A polygon of the map.

    Attributes:
        kind: one of :data:`AREAS`.
        outline: ``[N, 2]``, N >= 3; it need not be closed.
        holes: each ``[N, 2]``.
    """

    kind: str
    outline: FloatArray
    holes: tuple[FloatArray, ...] = ()

    def __post_init__(self) -> None:
        _check_kind("a map area", self.kind, AREAS)
        object.__setattr__(self, "outline", finite_array("outline of a map area", self.outline, (None, 2)))
        holes = tuple(finite_array("hole of a map area", hole, (None, 2)) for hole in self.holes)
        object.__setattr__(self, "holes", holes)


@dataclass(frozen=True, eq=False)
class MapLine:
    """A line of the map.

    Attributes:
        kind: one of :data:`LINES`.
        points: ``[N, 2]``, in the direction of travel.
    """

    kind: str
    points: FloatArray

    def __post_init__(self) -> None:
        _check_kind("a map line", self.kind, LINES)
        object.__setattr__(self, "points", finite_array("points of a map line", self.points, (None, 2)))


@dataclass(frozen=True, eq=False)
class AgentBox:
    """An annotated road user or object at present.

    Attributes:
        kind: one of :data:`AGENT_KINDS`.
        pose: ``[3]`` (x, y, heading) of the box's centre.
        size: length, width, height in metres.
        centre_z: height of the box's centre above the origin, metres.
        velocity: ``[2]`` over ground, along the axes of the ego frame, metres per second.
    """

    kind: str
    pose: FloatArray
    size: tuple[float, float, float]
    centre_z: float = 0.0
    velocity: FloatArray = field(default_factory=lambda: np.zeros(2))

    def __post_init__(self) -> None:
        _check_kind("an agent", self.kind, AGENT_KINDS)
        object.__setattr__(self, "pose", finite_array("pose of an agent", self.pose, (3,)))
        object.__setattr__(self, "velocity", finite_array("velocity of an agent", self.velocity, (2,)))

    @property
    def moves(self) -> bool:
        """Whether it is faster than 0.5 m/s: annotations of what stands are not quite still."""
        return float(np.hypot(*self.velocity)) > _MOVES_MPS


@dataclass(frozen=True, eq=False)
class Plan:
    """A trajectory to be drawn under a name.

    Attributes:
        label: in the legend. A plan's colour follows from its place among the plans of a view.
        poses: ``[T, 3]`` or ``[T, 2]``, the present left out; 0.5 s apart for planned trajectories.
        score: shown in the legend (a PDM score), or ``None``.
        footprint: ``[T, 3]`` rear-axle poses that the simulated ego really drove along the plan, ``None`` if not known.
    """

    label: str
    poses: FloatArray
    score: float | None = None
    footprint: FloatArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "poses", _trajectory(f"plan {self.label!r}", self.poses))
        if self.footprint is not None:
            what = f"footprint of plan {self.label!r}"
            object.__setattr__(self, "footprint", finite_array(what, self.footprint, (None, 3)))


@dataclass(frozen=True, eq=False)
class SampleGroup:
    """Trajectories that were sampled for one scene, as in a group of reinforcement learning.

    Attributes:
        poses: ``[G, T, 3]`` or ``[G, T, 2]``.
        rewards: ``[G]``, which colour them; ``None``: they are all drawn alike.
        label: in the legend.
        reward_range: rewards of the two ends of the colour scale; ``None``: 0 and 1, wider where rewards lie outside.
    """

    poses: FloatArray
    rewards: FloatArray | None = None
    label: str = "samples"
    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        poses = np.asarray(self.poses, dtype=np.float64)
        if poses.ndim != 3 or poses.shape[-1] not in (2, 3) or not np.isfinite(poses).all():
            raise InvalidView(f"samples must be finite with shape [G, T, 3], found {list(poses.shape)}")
        object.__setattr__(self, "poses", poses)
        if self.rewards is not None:
            object.__setattr__(self, "rewards", finite_array("rewards of samples", self.rewards, (len(poses),)))

    @property
    def scale(self) -> tuple[float, float]:
        """Rewards at the two ends of the colour scale."""
        if self.reward_range is not None:
            return self.reward_range
        if self.rewards is None or not len(self.rewards):
            return 0.0, 1.0
        return min(0.0, float(self.rewards.min())), max(1.0, float(self.rewards.max()))


@dataclass(frozen=True, eq=False)
class CameraImage:
    """An image and where its camera looks, as NAVSIM's logs give it.

    Attributes:
        image: ``[H, W, 3]`` uint8 RGB.
        intrinsics: ``[3, 3]`` camera matrix, pixels of ``image``.
        rotation: ``[3, 3]`` from the camera frame to the ego frame (``sensor2lidar_rotation``).
        translation: ``[3]`` the camera's position in the ego frame, metres (``sensor2lidar_translation``).
        distortion: ``[5]`` OpenCV's k1, k2, p1, p2, k3; zeros for an ideal image.
        ground_z: height of the road in the ego frame, metres.
    """

    image: Image
    intrinsics: FloatArray
    rotation: FloatArray
    translation: FloatArray
    distortion: FloatArray = field(default_factory=lambda: np.zeros(5))
    ground_z: float = 0.0

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3 or 0 in self.image.shape:
            raise InvalidView(
                "a camera image must be uint8 RGB of shape [H, W, 3], found "
                f"{self.image.dtype} {list(self.image.shape)}"
            )
        for name, shape in (("intrinsics", (3, 3)), ("rotation", (3, 3)), ("translation", (3,)), ("distortion", (5,))):
            object.__setattr__(self, name, finite_array(f"camera {name}", getattr(self, name), shape))
        if not np.allclose(self.rotation @ self.rotation.T, np.eye(3), atol=1e-3):
            raise InvalidView(f"camera rotation is not a rotation matrix: {self.rotation.tolist()}")


@dataclass(frozen=True)
class EgoSize:
    """The ego vehicle, metres; the defaults are those of nuPlan's Chrysler Pacifica, which NAVSIM scores with."""

    length: float = 5.176
    width: float = 2.297
    rear_axle_to_center: float = 1.461


@dataclass(frozen=True, eq=False)
class SceneView:
    """One scene and what was planned for it; everything is optional but the title.

    Attributes:
        title: heading of the picture, such as the scene's token.
        subtitle: second, smaller line.
        areas: of the map, in any order.
        lines: of the map.
        agents: annotated at present.
        past_poses: ``[H, 3]`` of the ego, oldest first, or ``None``.
        human: ``[T, 3]`` what the human drove, or ``None``.
        plans: planned trajectories, the most important last (it is drawn on top).
        samples: a group of sampled trajectories, or ``None``.
        camera: the front camera, or ``None``.
        ego: size of the ego vehicle.
    """

    title: str
    subtitle: str = ""
    areas: tuple[MapArea, ...] = ()
    lines: tuple[MapLine, ...] = ()
    agents: tuple[AgentBox, ...] = ()
    past_poses: FloatArray | None = None
    human: FloatArray | None = None
    plans: tuple[Plan, ...] = ()
    samples: SampleGroup | None = None
    camera: CameraImage | None = None
    ego: EgoSize = EgoSize()

    def __post_init__(self) -> None:
        for name in ("areas", "lines", "agents", "plans"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("past_poses", "human"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _trajectory(name, getattr(self, name)))


def box_corners(pose: Sequence[float] | FloatArray, length: float, width: float, centre: float = 0.0) -> FloatArray:
    """``[4, 2]`` corners of a box, from front left clockwise.

    Args:
        pose: (x, y, heading) of a point on the box's long axis.
        length: of the box.
        width: of the box.
        centre: how far the box's centre lies before that point.
    """
    x, y, heading = (float(value) for value in pose[:3])
    cos, sin = np.cos(heading), np.sin(heading)
    front, back, side = centre + length / 2, centre - length / 2, width / 2
    local = np.array([[front, side], [front, -side], [back, -side], [back, side]])
    return local @ np.array([[cos, sin], [-sin, cos]]) + (x, y)


def ego_corners(pose: Sequence[float] | FloatArray, ego: EgoSize) -> FloatArray:
    """``[4, 2]`` corners of the ego vehicle whose rear axle is at ``pose`` (x, y, heading)."""
    return box_corners(pose, ego.length, ego.width, ego.rear_axle_to_center)


def finite_array(what: str, value: Any, shape: tuple[int | None, ...]) -> FloatArray:
    """``value`` as float64 of ``shape`` (``None``: any length from 1).

    Raises:
        InvalidView: for another shape or a value that is not finite.
    """
    array = np.asarray(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        found > 0 if wanted is None else found == wanted for found, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise InvalidView(f"{what} must have shape [{wanted}], found {list(array.shape)}")
    if not np.isfinite(array).all():
        raise InvalidView(f"{what} holds values that are not finite")
    return array


def _trajectory(what: str, value: Any) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    return finite_array(what, array, (None, 2 if array.ndim == 2 and array.shape[-1] == 2 else 3))


def _check_kind(what: str, kind: str, known: Sequence[str]) -> None:
    if kind not in known:
        raise InvalidView(f"kind of {what} must be one of {', '.join(known)}, found {kind!r}")
