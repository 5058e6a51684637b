"""Plane geometry of the world: curves with continuous curvature, poses, boxes.

Lengths in metres, angles in radians, x to the east and y to the north where a frame is called global. A pose is
(x, y, heading).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

SAMPLE_SPACING_M = 0.4
"""Distance of two samples on a curve: the chord then leaves a 12 m arc by less than 2 mm."""


def wrap_angle(angle: FloatArray | float) -> FloatArray:
    """Angle(s) in [-pi, pi]."""
    return np.arctan2(np.sin(angle), np.cos(angle))


def to_local(points: FloatArray, pose: FloatArray) -> FloatArray:
    """Points ``[..., 2]`` of the global frame seen from ``pose`` (x forward, y left)."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return (np.asarray(points) - pose[:2]) @ np.array([[cos, -sin], [sin, cos]])


def to_global(points: FloatArray, pose: FloatArray) -> FloatArray:
    """Inverse of :func:`to_local`."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    return np.asarray(points) @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]


def box_corners(poses: FloatArray, length: FloatArray | float, width: FloatArray | float) -> FloatArray:
    """Corners ``[..., 4, 2]`` of boxes centred on ``poses [..., 3]``.

    In the order front left, front right, rear right, rear left: clockwise seen from above.
    """
    half = np.stack(np.broadcast_arrays(np.asarray(length) / 2.0, np.asarray(width) / 2.0), axis=-1)
    signs = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    local = half[..., None, :] * signs
    cos, sin = np.cos(poses[..., 2])[..., None], np.sin(poses[..., 2])[..., None]
    x = local[..., 0] * cos - local[..., 1] * sin + poses[..., None, 0]
    y = local[..., 0] * sin + local[..., 1] * cos + poses[..., None, 1]
    return np.stack([x, y], axis=-1)


@dataclass(frozen=True, eq=False)
class Polyline:
    """A sampled smooth curve.

    Attributes:
        points: ``[N, 2]``.
        heading: ``[N]``, the tangent's direction, unwrapped (no jumps of 2 pi).
    """

    points: FloatArray
    heading: FloatArray

    @classmethod
    def from_points(cls, points: FloatArray) -> Polyline:
        """A curve through densely sampled ``points [N, 2]``, N >= 3; tangents by central differences."""
        tangent = np.gradient(points, axis=0, edge_order=2)
        return cls(points, np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0])))

    @cached_property
    def s(self) -> FloatArray:
        """``[N]`` arc length of each sample."""
        steps = np.hypot(*np.diff(self.points, axis=0).T)
        return np.concatenate([[0.0], np.cumsum(steps)])

    @cached_property
    def curvature(self) -> FloatArray:
        """``[N]`` signed curvature in 1/m, positive to the left."""
        return np.gradient(self.heading, self.s)

    @property
    def length(self) -> float:
        """Arc length in metres."""
        return float(self.s[-1])

    def pose(self, s: FloatArray | float) -> FloatArray:
        """``[..., 3]`` poses at arc lengths ``s``, clamped to the ends."""
        return np.stack(
            [
                np.interp(s, self.s, self.points[:, 0]),
                np.interp(s, self.s, self.points[:, 1]),
                np.interp(s, self.s, self.heading),
            ],
            axis=-1,
        )

    @cached_property
    def _samples(self) -> tuple[list[float], list[float], list[float], list[float]]:
        return self.s.tolist(), self.points[:, 0].tolist(), self.points[:, 1].tolist(), self.heading.tolist()

    def index_at(self, s: float) -> tuple[int, float]:
        """(i, share): arc length ``s``, clamped to the ends, lies ``share`` of the way from sample i to i + 1."""
        stations = self._samples[0]
        i = min(max(bisect_right(stations, s) - 1, 0), len(stations) - 2)
        share = (s - stations[i]) / (stations[i + 1] - stations[i])
        return i, min(max(share, 0.0), 1.0)

    def pose_at(self, s: float) -> FloatArray:
        """``[3]`` pose at one arc length: :meth:`pose` without numpy's overhead, for the inner loop."""
        _, x, y, heading = self._samples
        i, share = self.index_at(s)
        rest = 1.0 - share
        return np.array(
            [
                rest * x[i] + share * x[i + 1],
                rest * y[i] + share * y[i + 1],
                rest * heading[i] + share * heading[i + 1],
            ]
        )

    def curvature_at(self, s: float) -> float:
        """Curvature at arc length ``s``."""
        return float(np.interp(s, self.s, self.curvature))

    def offset(self, distance: float) -> Polyline:
        """The parallel curve ``distance`` to the left (negative: right), sample by sample."""
        normal = np.stack([-np.sin(self.heading), np.cos(self.heading)], axis=-1)
        return Polyline(self.points + distance * normal, self.heading)

    def reversed(self) -> Polyline:
        """The same curve driven the other way."""
        return Polyline(self.points[::-1], self.heading[::-1] + np.pi)


def smooth_curve(start: FloatArray, end: FloatArray) -> Polyline:
    """The gentlest quintic Bezier curve between two poses ``[3]``.

    Its control points lie pairwise on the end tangents, so the curvature is zero at both ends: curves joined end to
    end have continuous curvature, and a car that follows them turns its wheel smoothly. The length of the end
    tangents is the one of a small grid with the smallest peak curvature.
    """
    tangents = np.array([[np.cos(pose[2]), np.sin(pose[2])] for pose in (start, end)])
    chord = float(np.hypot(*(end[:2] - start[:2])))
    t = np.linspace(0.0, 1.0, max(24, int(chord * 1.5 / SAMPLE_SPACING_M)))
    candidates = []
    for fraction in np.linspace(0.10, 0.42, 17):
        leg = fraction * chord
        control = np.array(
            [
                start[:2],
                start[:2] + leg * tangents[0],
                start[:2] + 2.0 * leg * tangents[0],
                end[:2] - 2.0 * leg * tangents[1],
                end[:2] - leg * tangents[1],
                end[:2],
            ]
        )
        curve = _quintic(control, t)
        candidates.append((float(np.abs(curve.curvature).max()), control))
    control = min(candidates, key=lambda item: item[0])[1]
    dense = _quintic(control, np.linspace(0.0, 1.0, 4 * len(t)))
    samples = max(int(np.ceil(dense.length / SAMPLE_SPACING_M)), 2) + 1
    evenly = np.interp(np.linspace(0.0, dense.length, samples), dense.s, np.linspace(0.0, 1.0, 4 * len(t)))
    return _quintic(control, evenly)


def _quintic(control: FloatArray, t: FloatArray) -> Polyline:
    binomial = np.array([1, 5, 10, 10, 5, 1])
    powers = np.arange(6)
    basis = binomial * t[:, None] ** powers * (1.0 - t[:, None]) ** (5 - powers)
    powers4 = np.arange(5)
    slope = np.array([1, 4, 6, 4, 1]) * t[:, None] ** powers4 * (1.0 - t[:, None]) ** (4 - powers4)
    tangent = slope @ np.diff(control, axis=0)
    return Polyline(basis @ control, np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0])))


def smoothstep(x: FloatArray) -> FloatArray:
    """The quintic step from 0 to 1 with zero slope and curvature at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (x * (6.0 * x - 15.0) + 10.0)
