"""NAVSIM's PDM score of many trajectories of one scene at once, equal to its ``pdm_score`` of each alone.

NAVSIM's simulator and scorer take a batch of trajectories, and what they find out about one does not depend on the
others, except progress: that is normalised over the batch. ``pdm_score`` always scores the pair (PDM-Closed's
trajectory, the planner's), so progress and score are computed again here for every such pair.

What is the same for all trajectories of a scene is done once: the traffic, PDM-Closed's metrics, the human's metrics
of the human filter, and which polygons of the map hold which points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.interpolate import interp1d

from navsim_recogdrive.agents.compat_pdm import (
    MULTIPLIED,
    WEIGHTED,
    BBCoordsIndex,
    MetricCache,
    PDMDrivableMap,
    RawMetrics,
    Scorer,
    StateIndex,
    TrajectorySampling,
    absolute_trajectory,
    is_filtered_by_human,
    replay_traffic,
    trajectory_states,
)

SUB_SCORES: tuple[str, ...] = (*MULTIPLIED, *WEIGHTED)
"""Names of the sub-scores, those of NAVSIM's result columns."""

PLANNED = TrajectorySampling(time_horizon=4, interval_length=0.5)
"""Times of a planned trajectory's 8 poses."""

_NEVER_LIFTED = "history_comfort"  # NAVSIM scores the human without a history, where this is always 1


class UnscorableTrajectory(ValueError):
    """Trajectories that the scorer cannot take."""


@dataclass(frozen=True)
class BatchScores:
    """Scores of G trajectories of one scene.

    Attributes:
        scores: [G] float64.
        sub_scores: each [G] float64, by the names :data:`SUB_SCORES`.
        reference: what they were compared with, for further trajectories of the scene.
    """

    scores: NDArray[np.float64]
    sub_scores: dict[str, NDArray[np.float64]]
    reference: Reference


@dataclass(frozen=True)
class Reference:
    """What a scene's trajectories are compared with, a few numbers.

    Attributes:
        pdm: metrics of PDM-Closed's trajectory, N = 1.
        lifted_multiplied: [M] bool, which multiplied metrics the human filter sets to 1.
        lifted_weighted: [W] bool, which averaged metrics it sets to 1.
    """

    pdm: RawMetrics
    lifted_multiplied: NDArray[np.bool_]
    lifted_weighted: NDArray[np.bool_]


class RememberingDrivableMap(PDMDrivableMap):
    """NAVSIM's drivable map with the same answers sooner: far polygons are not asked, and no point is asked twice.

    The scorer first asks which polygons hold the points of all trajectories. v2.x then asks again, twice for every ego
    centre and each time alone, whether it lies in a layer: that is known by then.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._remember(np.empty((0, 2)), np.empty((len(self), 0), dtype=np.bool_))

    def _remember(self, centers: NDArray[np.float64], inside: NDArray[np.bool_]) -> None:
        """Ego centres [n, 2], and which polygons hold them: [polygons, n]."""
        self._centers = centers
        self._centers_inside = inside
        self._in_layer: dict[Any, dict[tuple[float, float], bool]] = {}

    def points_in_polygons(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which polygons hold the ``points`` of ego boxes [N, T, 5, 2]: [polygons, N, T, 5]."""
        flat = points.reshape(-1, 2)
        inside = np.zeros((len(self), len(flat)), dtype=np.bool_)
        near = self.query(shapely.box(*flat.min(axis=0), *flat.max(axis=0)))
        for index in near:
            inside[index] = shapely.contains_xy(self._geometries[index], flat[:, 0], flat[:, 1])
        inside = inside.reshape(len(self), *points.shape[:-1])
        center = BBCoordsIndex.CENTER
        self._remember(points[..., center, :].reshape(-1, 2), inside[..., center].reshape(len(self), -1))
        return inside

    def is_in_layer(self, point: Any, layer: Any) -> bool:
        """As NAVSIM's, by memory where ``point`` is an ego centre of the last :meth:`points_in_polygons`."""
        known = self._in_layer.get(layer)
        if known is None:
            inside = self._centers_inside[self.get_indices_of_map_type([layer])].any(axis=0)
            known = dict(zip(zip(*self._centers.T.tolist(), strict=True), inside.tolist(), strict=True))
            self._in_layer[layer] = known
        answer = known.get((point.x, point.y))
        return bool(super().is_in_layer(point, layer)) if answer is None else answer


def prepare(cache: MetricCache, scorer: Scorer) -> None:
    """Make a metric cache just read from disk ready for :class:`BatchScorer`, in place."""
    replay_traffic(cache, scorer)
    _, arguments = cache.drivable_area_map.__reduce__()
    cache.drivable_area_map = RememberingDrivableMap(*arguments)
    shapely.prepare(cache.drivable_area_map._geometries)


class BatchScorer:
    """Scores the trajectories of a scene in one call of NAVSIM's simulator and one of its scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score(
        self, trajectories: NDArray[np.float32], cache: MetricCache, reference: Reference | None = None
    ) -> BatchScores:
        """Score G trajectories of a scene.

        Args:
            trajectories: [G, 8, 3], poses (x, y, heading) in metres and radians in the ego frame, 0.5 s apart.
            cache: the scene, which went through :func:`prepare`.
            reference: of the same scene, from an earlier call; without it, what the trajectories are compared with is
                scored along with them.

        Raises:
            UnscorableTrajectory: a pose is not finite.
        """
        bad = np.flatnonzero(~np.isfinite(trajectories).all(axis=(1, 2)))
        if len(bad):
            raise UnscorableTrajectory(f"of {len(trajectories)} trajectories, {bad.tolist()} are not finite")
        scorer = self._scorer
        proposals = interpolate(trajectories, cache, scorer)
        compared = 0
        if reference is None:
            ahead = self._compared_with(cache)
            compared = len(ahead)
            proposals = np.concatenate([ahead, proposals])
        raw = scorer.raw_metrics(scorer.simulate(proposals, cache), cache)
        if reference is None:
            reference = self._reference(raw[:compared])
            raw = raw[compared:]

        multiplied, weighted = raw.multiplied.copy(), raw.weighted.copy()
        for index in range(len(trajectories)):
            pair = RawMetrics.concatenate([reference.pdm, raw[index : index + 1]])
            weighted[WEIGHTED["ego_progress"], index] = scorer.normalized_progress(pair)[1]
        multiplied[reference.lifted_multiplied] = 1.0
        weighted[reference.lifted_weighted] = 1.0

        weights = scorer.weights
        scores = multiplied.prod(axis=0) * ((weighted * weights[:, None]).sum(axis=0) / weights.sum())
        rows = {name: multiplied[row] for name, row in MULTIPLIED.items()}
        rows |= {name: weighted[row] for name, row in WEIGHTED.items()}
        return BatchScores(scores, rows, reference)

    def _compared_with(self, cache: MetricCache) -> NDArray[np.float64]:
        """States [1 or 2, 41, 11] of PDM-Closed's trajectory and, for the human filter, of the human's."""
        scorer = self._scorer
        states = [trajectory_states(cache.trajectory, scorer, cache)]
        if is_filtered_by_human(cache, scorer):
            human = cache.human_trajectory
            absolute = absolute_trajectory(human.poses, human.trajectory_sampling, cache)
            states.append(trajectory_states(absolute, scorer, cache))
        return np.stack(states)

    def _reference(self, raw: RawMetrics) -> Reference:
        """From the metrics of :meth:`_compared_with`."""
        multiplied = np.zeros(len(raw.multiplied), dtype=np.bool_)
        weighted = np.zeros(len(raw.weighted), dtype=np.bool_)
        human = raw[1:]
        if len(human.progress):
            multiplied = human.multiplied[:, 0] == 0
            found = human.weighted[:, 0].copy()
            found[WEIGHTED["ego_progress"]] = self._scorer.normalized_progress(human)[0]
            for name, row in WEIGHTED.items():
                weighted[row] = found[row] == 0 and name != _NEVER_LIFTED
        return Reference(raw[[0]], multiplied, weighted)


def interpolate(trajectories: NDArray[np.float32], cache: MetricCache, scorer: Scorer) -> NDArray[np.float64]:
    """Global rear-axle poses every 0.1 s, the bits of NAVSIM's ``get_trajectory_as_array(transform_trajectory(..))``.

    NAVSIM makes an ``EgoState`` of every pose, before interpolation and after; here all are computed at once, with the
    same operations in the same order.

    Args:
        trajectories: [G, 8, 3] float32, ego frame, 0.5 s apart.
        cache: the scene, whose ego state is the first pose.
        scorer: whose time steps are wanted.

    Returns:
        [G, 41, 11] float64, NAVSIM's state array. Only its poses are filled: NAVSIM's simulator reads nothing else of
        a proposal.
    """
    ego = cache.ego_state
    start = ego.time_point
    count = len(trajectories)
    to_center = float(ego.car_footprint.vehicle_parameters.rear_axle_to_center)

    planned = np.array(trajectories, dtype=np.float64).reshape(-1, 3)
    transforms = _transform(ego.rear_axle.x, ego.rear_axle.y, np.array([ego.rear_axle.heading]))
    transforms = transforms[0] @ _transform(planned[:, 0], planned[:, 1], planned[:, 2])
    heading = np.arctan2(transforms[:, 1, 0].copy(), transforms[:, 0, 0].copy())
    x, y = _center_and_back(transforms[:, 0, 2], transforms[:, 1, 2], heading, to_center)
    poses = np.empty((count, PLANNED.num_poses + 1, 3))
    poses[:, 0] = ego.rear_axle.serialize()
    poses[:, 1:] = np.stack([x, y, heading], axis=-1).reshape(count, -1, 3)

    interval = PLANNED.interval_length
    knots_s = np.arange(0.0, PLANNED.time_horizon, interval) + interval + start.time_s
    knots_us = [start.time_us, *(int(time * 1e6) for time in knots_s.tolist())]
    sampling = scorer.sampling
    steps_s = np.arange(0.0, sampling.time_horizon + sampling.interval_length, sampling.interval_length) + start.time_s
    steps_us = np.clip([int(time * 1e6) for time in steps_s], knots_us[0], knots_us[-1])

    linear = poses[..., :2].transpose(1, 0, 2).reshape(len(knots_us), -1)
    angles = np.unwrap(poses[..., 2].T, axis=0)
    xy = interp1d(knots_us, linear, axis=0)(steps_us).reshape(len(steps_us), count, 2)
    heading = interp1d(knots_us, angles, axis=0)(steps_us).T
    heading = np.ascontiguousarray((heading + np.pi) % (2 * np.pi) - np.pi)
    states = np.zeros((count, len(steps_us), StateIndex.size()))
    x, y = _center_and_back(xy[..., 0].T, xy[..., 1].T, heading, to_center)
    states[..., StateIndex.STATE_SE2] = np.stack([x, y, heading], axis=-1)
    return states


def _transform(x: Any, y: Any, heading: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrices [n, 3, 3] of poses."""
    matrix = np.zeros((len(heading), 3, 3))
    heading = np.ascontiguousarray(heading)
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(heading)
    matrix[:, 1, 0] = np.sin(heading)
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = x, y, 1.0
    return matrix


def _center_and_back(
    x: NDArray[np.float64], y: NDArray[np.float64], heading: NDArray[np.float64], to_center: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A rear axle's position after nuPlan's ``EgoState`` stored it as the position of the car's centre."""
    cos, sin = np.cos(heading), np.sin(heading)
    return x + to_center * cos + -to_center * cos, y + to_center * sin + -to_center * sin
