"""Who stands in the ego's way, now and while it drives: boxes against the strip that the ego's body sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import POSE_INTERVAL_S
from navsim_recogdrive.pretraining.records import PRESENT, AgentTrack, SceneRecord

EGO_LENGTH_M, EGO_WIDTH_M, EGO_CENTRE_M = 5.176, 2.297, 1.461
"""nuPlan's car, which NAVSIM assumes: its size, and how far its centre lies before the rear axle."""

EGO_FRONT_M = EGO_CENTRE_M + EGO_LENGTH_M / 2
"""From the rear axle to the front bumper."""

MARGIN_M = 0.3
"""Room that is left on either side of the ego's body."""

SHORTEST_M = 20.0
"""A shorter way, of an ego that stops or stands, is continued straight on: what it stops for is in its way too."""

_STEP_M = 0.25


@dataclass(frozen=True)
class PathConflict:
    """Somebody in the ego's way.

    Attributes:
        time_s: when first; 0 is now.
        gap_m: way from the ego's front bumper, where it is then, to the nearest part of the box; 0 where they meet.
    """

    time_s: float
    gap_m: float


@dataclass(frozen=True, eq=False)
class EgoPath:
    """The way of the ego's rear axle, from the origin on.

    Attributes:
        points: ``[N, 3]`` (x, y, heading) a quarter of a metre apart.
        at_times: ``[9]`` length of the way at 0, 0.5, ..., 4.0 s, metres.
    """

    points: NDArray[np.float64]
    at_times: NDArray[np.float64]

    @staticmethod
    def of(record: SceneRecord) -> EgoPath:
        """The expert's way; straight on at the present speed where the record has no future."""
        if record.future_poses is not None:
            poses = np.concatenate([np.zeros((1, 3)), record.future_poses.astype(np.float64)])
        else:
            poses = np.zeros((9, 3))
            poses[:, 0] = POSE_INTERVAL_S * np.arange(9) * float(np.hypot(*record.velocity))
        lengths = np.hypot(*np.diff(poses[:, :2], axis=0).T)
        at_times = np.concatenate([[0.0], np.cumsum(lengths)])
        keep = np.concatenate([[True], lengths > 1e-3])  # where it stands there is no way
        arc, poses = at_times[keep], poses[keep]
        if arc[-1] < SHORTEST_M:
            rest = SHORTEST_M - arc[-1]
            heading = poses[-1, 2]
            end = poses[-1] + (rest * np.cos(heading), rest * np.sin(heading), 0.0)
            arc, poses = np.append(arc, SHORTEST_M), np.concatenate([poses, end[None]])
        at = np.arange(0.0, arc[-1], _STEP_M)
        headings = np.unwrap(poses[:, 2])
        points = np.stack([np.interp(at, arc, values) for values in (poses[:, 0], poses[:, 1], headings)], axis=1)
        return EgoPath(points, at_times)

    @cached_property
    def _axes(self) -> NDArray[np.float64]:
        return np.stack([np.cos(self.points[:, 2]), np.sin(self.points[:, 2])], axis=1)

    def reach(self, agent: AgentTrack, pose: NDArray[np.float64], beyond: float) -> float | None:
        """Length of the way at which a box first stands in it; ``None`` if it does not.

        Args:
            agent: whose box it is.
            pose: ``[3]`` of the box, ego frame of the present.
            beyond: only the way after this length counts.
        """
        x, y, heading = pose
        length, width, _ = agent.size
        if np.hypot(*(self.points[:, :2] - (x, y)).T).min() > EGO_WIDTH_M + np.hypot(length, width):
            return None
        along = np.linspace(-length / 2, length / 2, max(2, round(length / 0.5)))
        across = np.linspace(-width / 2, width / 2, max(2, round(width / 0.5)))
        a, b = (grid.ravel() for grid in np.meshgrid(along, across))
        cos, sin = np.cos(heading), np.sin(heading)
        body = np.stack([x + a * cos - b * sin, y + a * sin + b * cos], axis=1)
        offset = body[:, None] - self.points[None, :, :2]
        ahead = offset[..., 0] * self._axes[:, 0] + offset[..., 1] * self._axes[:, 1]
        aside = np.abs(offset[..., 1] * self._axes[:, 0] - offset[..., 0] * self._axes[:, 1])
        touched = (np.abs(ahead) <= _STEP_M) & (aside <= EGO_WIDTH_M / 2 + MARGIN_M)
        touched[:, _STEP_M * np.arange(len(self.points)) < beyond] = False
        columns = np.flatnonzero(touched.any(0))
        return float(_STEP_M * columns[0]) if len(columns) else None

    def conflict(self, agent: AgentTrack) -> PathConflict | None:
        """When an object is first in the part of the way that the ego still has before it; ``None`` if never."""
        for step, travelled in enumerate(self.at_times.tolist()):
            pose = agent.poses[PRESENT + step]
            if np.isnan(pose).any():
                continue
            reach = self.reach(agent, pose, travelled)
            if reach is not None:
                return PathConflict(POSE_INTERVAL_S * step, max(0.0, reach - travelled - EGO_FRONT_M))
        return None
