"""Where points of the ego frame appear in a camera's image.

A camera's calibration is that of NAVSIM's logs (``sensor2lidar_rotation`` and ``_translation``; the lidar frame is the
ego frame), the lens that of OpenCV: pinhole, radial k1, k2, k3 and tangential p1, p2.
"""

from __future__ import annotations

import cv2
import numpy as np

from navsim_recogdrive.viz.scene_view import CameraImage, FloatArray

NEAREST_M = 0.5
"""What is nearer to the camera's plane than this, or behind it, is cut off."""

_AXIS = np.zeros(3)


def to_camera_frame(points: FloatArray, camera: CameraImage) -> FloatArray:
    """Points of the ego frame ``[..., 3]`` in the camera frame (x right, y down, z forward), metres."""
    return (points - camera.translation) @ camera.rotation


def to_pixels(points: FloatArray, camera: CameraImage) -> FloatArray:
    """Pixels ``[N, 2]`` of points ``[N, 3]`` in the camera frame, all of them before it.

    Integer coordinates are the middles of pixels, as OpenCV counts.
    """
    if not len(points):
        return np.empty((0, 2))
    pixels, _ = cv2.projectPoints(
        np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 1, 3),
        _AXIS,
        _AXIS,
        camera.intrinsics,
        camera.distortion,
    )
    return np.asarray(pixels, dtype=np.float64).reshape(-1, 2)


def project(points: FloatArray, camera: CameraImage) -> FloatArray:
    """Pixels ``[N, 2]`` of points ``[N, 3]`` in the ego frame; rows of nan for those that the camera cannot see."""
    local = to_camera_frame(np.asarray(points, dtype=np.float64), camera)
    seen = visible(local, camera)
    pixels = np.full((len(local), 2), np.nan)
    pixels[seen] = to_pixels(local[seen], camera)
    return pixels


def visible(points: FloatArray, camera: CameraImage) -> np.ndarray:
    """Which points ``[N, 3]`` of the camera frame lie before it and where its lens model holds: ``[N]`` bool."""
    depth = np.maximum(points[:, 2], NEAREST_M)
    radius = np.hypot(points[:, 0], points[:, 1]) / depth
    return (points[:, 2] >= NEAREST_M) & (radius <= trusted_radius(camera))


def clip_polygon(points: FloatArray) -> FloatArray:
    """The part of a polygon ``[N, 3]`` of the camera frame that lies before the near plane, ``[M, 3]``."""
    depth = points[:, 2] - NEAREST_M
    inside = depth >= 0
    if inside.all():
        return points
    kept = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if inside[i]:
            kept.append(points[i])
        if inside[i] != inside[j]:
            kept.append(points[i] + (points[j] - points[i]) * (depth[i] / (depth[i] - depth[j])))
    return np.array(kept).reshape(-1, 3)


def project_polygons(polygons: FloatArray, camera: CameraImage) -> list[tuple[float, FloatArray]]:
    """The visible parts of Q polygons of C corners each.

    Args:
        polygons: ``[Q, C, 3]`` in the ego frame.
        camera: that sees them.

    Returns:
        Largest depth (metres) and pixels ``[M, 2]`` of each that can be seen, in their order. Those that reach through
        the near plane are cut there; those that reach out of what the lens model covers are left out.
    """
    local = to_camera_frame(polygons, camera)
    depth = local[..., 2].max(1)
    whole = (local[..., 2] >= NEAREST_M).all(1)
    corners = local.shape[1]
    sure = whole & visible(local.reshape(-1, 3), camera).reshape(-1, corners).all(1)
    pixels = to_pixels(local[sure].reshape(-1, 3), camera).reshape(-1, corners, 2)
    found = dict(zip(np.flatnonzero(sure).tolist(), pixels, strict=True))
    for index in np.flatnonzero(~whole & (depth >= NEAREST_M)).tolist():
        clipped = clip_polygon(local[index])
        if len(clipped) >= 3 and visible(clipped, camera).all():
            found[index] = to_pixels(clipped, camera)
    return [(float(depth[index]), found[index]) for index in sorted(found)]


def trusted_radius(camera: CameraImage) -> float:
    """Largest distance from the axis, at depth 1, up to which the lens moves points outwards as they go outwards.

    Farther out the polynomial of the distortion means nothing: it would fold points back into the image.
    """
    k1, k2, _, _, k3 = camera.distortion
    if k1 == k2 == k3 == 0.0:
        return float("inf")
    radii = np.linspace(0.0, 4.0, 401)
    falling = np.flatnonzero(1 + 3 * k1 * radii**2 + 5 * k2 * radii**4 + 7 * k3 * radii**6 <= 0)
    return float(radii[falling[0]]) if len(falling) else 4.0
