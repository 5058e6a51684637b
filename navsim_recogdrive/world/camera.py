"""The eight pinhole cameras of the ego vehicle: where they look and how points project.

The ego frame has its origin on the ground under the rear axle, x forward, y left, z up; the log's lidar frame is this
frame. A camera frame has x right, y down, z forward. The images are ideal: all distortion coefficients are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray

FULL_SIZE = (1920, 1080)
_FOCAL_PX = 1545.0
_PRINCIPAL_POINT = (960.0, 560.0)

CAMERA_MOUNTS: dict[str, tuple[float, float, float, float]] = {
    "CAM_F0": (0.0, 1.70, 0.00, 1.55),
    "CAM_L0": (55.0, 1.60, 0.50, 1.55),
    "CAM_L1": (110.0, 1.10, 0.60, 1.55),
    "CAM_L2": (140.0, 0.20, 0.60, 1.55),
    "CAM_R0": (-55.0, 1.60, -0.50, 1.55),
    "CAM_R1": (-110.0, 1.10, -0.60, 1.55),
    "CAM_R2": (-140.0, 0.20, -0.60, 1.55),
    "CAM_B0": (180.0, -0.40, 0.00, 1.60),
}
"""Yaw in degrees (positive to the left) and position (x, y, z) in the ego frame, close to nuPlan's cars."""

CAMERA_SETS: dict[str, tuple[str, ...]] = {
    "front": ("CAM_F0",),
    "front3": ("CAM_F0", "CAM_L0", "CAM_R0"),
    "all": tuple(CAMERA_MOUNTS),
}
"""What ``--cameras`` renders. The logs carry the calibration of all eight in any case."""


@dataclass(frozen=True)
class Camera:
    """A camera by NAVSIM's name with an image size (width, height) in pixels."""

    name: str
    size: tuple[int, int] = FULL_SIZE

    @cached_property
    def intrinsics(self) -> FloatArray:
        """``[3, 3]`` camera matrix in pixels; pixels are square for every image size."""
        width, height = self.size
        focal = _FOCAL_PX * width / FULL_SIZE[0]
        return np.array(
            [
                [focal, 0.0, _PRINCIPAL_POINT[0] * width / FULL_SIZE[0]],
                [0.0, focal, _PRINCIPAL_POINT[1] * height / FULL_SIZE[1]],
                [0.0, 0.0, 1.0],
            ]
        )

    @cached_property
    def rotation(self) -> FloatArray:
        """``[3, 3]`` rotation from the camera frame to the ego frame (the log's ``sensor2lidar_rotation``)."""
        yaw = np.radians(CAMERA_MOUNTS[self.name][0])
        forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        return np.stack([right, down, forward], axis=1)

    @cached_property
    def translation(self) -> FloatArray:
        """``[3]`` position of the camera in the ego frame (the log's ``sensor2lidar_translation``)."""
        return np.array(CAMERA_MOUNTS[self.name][1:])

    def to_camera(self, points: FloatArray, ego_pose: FloatArray) -> FloatArray:
        """Global points ``[..., 3]`` (z above ground) in the camera frame of an ego at ``ego_pose [3]``."""
        cos, sin = np.cos(ego_pose[2]), np.sin(ego_pose[2])
        ego_to_global = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        shifted = points - np.array([ego_pose[0], ego_pose[1], 0.0])
        return (shifted @ ego_to_global - self.translation) @ self.rotation

    def to_pixels(self, points: FloatArray) -> FloatArray:
        """Pixels ``[..., 2]`` of points in the camera frame; only meaningful for depths above zero."""
        depth = points[..., 2:3]
        focal, principal = self.intrinsics[0, 0], self.intrinsics[:2, 2]
        return points[..., :2] / depth * focal + principal

    def ground_homography(self, ego_pose: FloatArray) -> FloatArray:
        """``[3, 3]`` matrix from global ground points relative to the ego's position (x, y, 1) to pixels."""
        cos, sin = np.cos(ego_pose[2]), np.sin(ego_pose[2])
        global_to_ego = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        ego_to_camera = np.column_stack(
            [self.rotation.T[:, 0], self.rotation.T[:, 1], -self.rotation.T @ self.translation]
        )
        return self.intrinsics @ ego_to_camera @ global_to_ego
