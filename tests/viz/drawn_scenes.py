"""Made-up views in which everything that can be drawn stands at a known place."""

from __future__ import annotations

from typing import Any

import numpy as np

from navsim_recogdrive.viz.camera import nuplan_front_camera
from navsim_recogdrive.viz.scene_view import AgentBox, MapArea, MapLine, Plan, SampleGroup, SceneView

STRAIGHT = np.column_stack([np.arange(1, 9) * 2.5, np.zeros(8), np.zeros(8)])
"""20 m straight ahead in 4 s."""

LEFT = STRAIGHT + np.linspace(0.0, 1.0, 8)[:, None] ** 2 * np.array([0.0, 6.0, 0.5])


def square(x: float, y: float, half: float) -> np.ndarray:
    return np.array([[x - half, y - half], [x + half, y - half], [x + half, y + half], [x - half, y + half]])


def everything(**changes: Any) -> SceneView:
    """A view that has one of each."""
    parts: dict[str, Any] = {
        "title": "scene",
        "subtitle": "log",
        "areas": (
            MapArea("lane", square(10.0, 0.0, 9.0)),
            MapArea("walkway", square(20.0, -12.0, 4.0), (square(20.0, -12.0, 2.0),)),
            MapArea("route", square(10.0, 0.0, 4.0)),
        ),
        "lines": (
            MapLine("centre_line", np.array([[-10.0, 5.0], [40.0, 5.0]])),
            MapLine("red_light", np.array([[25.0, -9.0], [25.0, 9.0]])),
        ),
        "agents": (
            AgentBox("vehicle", np.array([12.0, 8.0, 0.3]), (4.6, 1.9, 1.6), 0.8, np.array([5.0, 0.0])),
            AgentBox("pedestrian", np.array([15.0, -8.0, 0.0]), (0.6, 0.6, 1.7), 0.85),
            AgentBox("barrier", np.array([22.0, 8.0, 0.0]), (1.0, 0.4, 1.0), 0.5),
        ),
        "past_poses": np.array([[-6.0, 0.0, 0.0], [-4.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        "human": LEFT,
        "plans": (Plan("ours", STRAIGHT, 0.9, np.linspace([0, 0, 0], STRAIGHT[-1], 41)),),
        "samples": SampleGroup(np.stack([STRAIGHT, LEFT, -LEFT]), np.array([0.0, 0.5, 1.0])),
        "camera": nuplan_front_camera(np.full((540, 960, 3), 90, dtype=np.uint8)),
    }
    return SceneView(**{**parts, **changes})
