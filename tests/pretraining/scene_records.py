"""Hand-made records: a road straight ahead of a front camera, with whom one likes on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from navsim_recogdrive.pretraining.records import PRESENT, TRACK_TIMES_S, AgentTrack, CameraView, LaneAt, SceneRecord

TIMES = np.array(TRACK_TIMES_S)


def camera(name: str = "front", **changes: Any) -> CameraView:
    settings: dict[str, Any] = {
        "name": name,
        "image": f"sensor_blobs/trainval/log/{name}/0.jpg",
        "width": 1920,
        "height": 1080,
        "intrinsics": [[1545.0, 0.0, 960.0], [0.0, 1545.0, 560.0], [0.0, 0.0, 1.0]],
        "rotation": [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
        "translation": [1.7, 0.0, 1.55],
        "distortion": np.zeros(5),
    }
    return CameraView(**{**settings, **changes})


def moving(x: float, y: float, heading: float = 0.0, speed: float = 0.0, acceleration: float = 0.0) -> np.ndarray:
    """``[12, 3]`` along a straight line; who brakes stands once it has come to rest."""
    times = TIMES.copy()
    if acceleration < 0:
        times = np.minimum(times, -speed / acceleration)
    way = speed * times + acceleration * times**2 / 2
    return np.stack([x + way * np.cos(heading), y + way * np.sin(heading), np.full(len(TIMES), heading)], axis=1)


def on_arc(radius: float, speed: float) -> np.ndarray:
    """``[12, 3]`` on a circle to the left (radius above 0) or right, at the origin with heading 0 at present."""
    angle = speed * TIMES / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle)), angle], axis=1)


def changing_lanes(shift: float = 3.5, speed: float = 10.0) -> np.ndarray:
    """``[12, 3]`` along x, moved by ``shift`` sideways between 0 and 4 s."""
    u = np.clip(TIMES / 4.0, 0, 1)
    y = shift * (3 * u**2 - 2 * u**3)
    slope = shift * 6 * u * (1 - u) / 4.0 / speed
    return np.stack([speed * TIMES, y, np.arctan(slope)], axis=1)


def lanes_of(poses: np.ndarray, junction: bool = False, width: float = 3.5) -> tuple[LaneAt, ...]:
    """Straight lanes of one roadblock along x, the middle of lane 0 at y = 0."""
    numbers = np.round(poses[:, 1] / width)
    return tuple(
        LaneAt(f"lane {int(number)}", "block", float(y - number * width), junction)
        for number, y in zip(numbers, poses[:, 1], strict=True)
    )


def agent(category: str, poses: np.ndarray, token: str = "", **changes: Any) -> AgentTrack:
    size = {"pedestrian": (0.7, 0.7, 1.7), "bicycle": (1.8, 0.7, 1.7), "vehicle": (4.5, 1.9, 1.6)}
    length, width, height = changes.pop("size", size.get(category, (0.5, 0.5, 1.0)))
    velocity = (poses[PRESENT] - poses[PRESENT - 1])[:2] / 0.5
    return AgentTrack(
        token or f"{category} at {poses[PRESENT, 0]:.1f} {poses[PRESENT, 1]:.1f}",
        category,
        (length, width, height),
        poses,
        changes.pop("centre_z", height / 2),
        np.nan_to_num(velocity),
        **changes,
    )


def record(
    agents: Sequence[AgentTrack] = (), poses: np.ndarray | None = None, command: int = 1, **changes: Any
) -> SceneRecord:
    poses = moving(0.0, 0.0, 0.0, 8.0) if poses is None else poses
    speed = np.hypot(*(poses[PRESENT] - poses[PRESENT - 1])[:2]) / 0.5
    settings: dict[str, Any] = {
        "token": "0123456789abcdef",
        "log_name": "log",
        "map_name": "us-nv-las-vegas-strip",
        "cameras": (camera(),),
        "past_poses": poses[: PRESENT + 1],
        "ego_status": [*np.eye(4)[command], speed, 0.0, 0.0, 0.0],
        "future_poses": poses[PRESENT + 1 :],
        "agents": tuple(agents),
    }
    return SceneRecord(**{**settings, **changes})
