"""Where an annotated box appears in a camera's image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsim_recogdrive.pretraining.records import AgentTrack, CameraView

NEAREST_M = 0.3
"""What is nearer to the camera's plane than this, or behind it, is cut off."""

_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1.0]
_EDGE_POINTS = np.linspace(0.0, 1.0, 9)


@dataclass(frozen=True)
class ImageBox:
    """An upright box in an image, clipped to it.

    Attributes:
        left: of the pixel coordinates, 0 at the left edge.
        top: 0 at the upper edge.
        right: at most the image's width.
        bottom: at most its height.
        depth_m: distance of the nearest visible point of the object along the camera's axis.
        inside: share of the unclipped box that lies in the image, 0..1.
    """

    left: float
    top: float
    right: float
    bottom: float
    depth_m: float
    inside: float

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in whole pixels."""
        return round(self.left), round(self.top), round(self.right), round(self.bottom)

    @property
    def width(self) -> float:
        """In pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """In pixels."""
        return self.bottom - self.top


def project_points(points: ArrayLike, camera: CameraView) -> NDArray[np.float64]:
    """Pixels ``[N, 2]`` of points ``[N, 3]`` in the camera's frame, all before it, by OpenCV's distortion model."""
    points = np.asarray(points, dtype=np.float64)
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    k1, k2, p1, p2, k3 = camera.distortion
    r2 = x**2 + y**2
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    distorted = np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
            np.ones_like(x),
        ],
        axis=1,
    )
    return (distorted @ camera.intrinsics.T)[:, :2]


def image_box(agent: AgentTrack, camera: CameraView) -> ImageBox | None:
    """The upright box round an annotated one as it stands at present; ``None`` where no part of it is in the image.

    Nothing is known of what stands before it.
    """
    points = _visible_edges(agent, camera)
    if not len(points):
        return None
    pixels = project_points(points, camera)
    low, high = pixels.min(0), pixels.max(0)
    limit = np.array([camera.width, camera.height], dtype=np.float64)
    clipped_low, clipped_high = np.clip(low, 0.0, limit), np.clip(high, 0.0, limit)
    if (clipped_high - clipped_low).min() <= 0:
        return None
    whole = max(float(np.prod(high - low)), 1e-9)
    left, top, right, bottom = (float(value) for value in (*clipped_low, *clipped_high))
    inside = min(1.0, (right - left) * (bottom - top) / whole)
    return ImageBox(left, top, right, bottom, float(points[:, 2].min()), inside)


def _visible_edges(agent: AgentTrack, camera: CameraView) -> NDArray[np.float64]:
    """Points ``[N, 3]`` along the edges of the box in the camera's frame, without those it cannot see."""
    x, y, heading = agent.present
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    corners = (_CORNERS * agent.size) @ turn.T + (x, y, agent.centre_z)
    seen = (corners - camera.translation) @ camera.rotation
    lines = []
    for first, second in _EDGES:
        a, b = seen[first], seen[second]
        if max(a[2], b[2]) < NEAREST_M:
            continue
        if min(a[2], b[2]) < NEAREST_M:
            cut = a + (b - a) * (NEAREST_M - a[2]) / (b[2] - a[2])
            a, b = (cut, b) if a[2] < NEAREST_M else (a, cut)
        lines.append(a + (b - a) * _EDGE_POINTS[:, None])
    if not lines:
        return np.empty((0, 3))
    points = np.concatenate(lines)
    # Far outside the image the distortion's polynomial means nothing, and folds points back into it.
    radius = np.hypot(points[:, 0], points[:, 1]) / points[:, 2]
    return points[radius < _trusted_radius(camera)]


def _trusted_radius(camera: CameraView) -> float:
    """Largest distance from the axis, at depth 1, up to which distortion moves points outwards as they go outwards."""
    k1, k2, _, _, k3 = camera.distortion
    if k1 == k2 == k3 == 0.0:
        return float("inf")
    radii = np.linspace(0.0, 4.0, 401)
    falling = np.flatnonzero(1 + 3 * k1 * radii**2 + 5 * k2 * radii**4 + 7 * k3 * radii**6 <= 0)
    return float(radii[falling[0]]) if len(falling) else 4.0
