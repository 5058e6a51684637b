"""Trajectories that reach both ends of every PDM sub-score, and NAVSIM's own score of each, one after the other."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMES = np.arange(1, 9) * 0.5


def _arc(speed: float, curvature: float = 0.0, acceleration: float = 0.0) -> NDArray[np.float64]:
    """Poses [8, 3] along a circle, at ``speed`` m/s at first."""
    distance = speed * TIMES + acceleration * TIMES**2 / 2
    if speed > 0:
        distance = np.maximum.accumulate(np.maximum(distance, 0.0))
    heading = curvature * distance
    if curvature == 0:
        return np.stack([distance, 0 * distance, heading], axis=-1)
    return np.stack([np.sin(heading), 1 - np.cos(heading), heading * curvature], axis=-1) / curvature


def proposals(seed: int) -> NDArray[np.float32]:
    """[22, 8, 3]: standing, straight on, gentle and hard turns, backwards, braking, speeding up, and noise."""
    straight = [_arc(speed) for speed in (0, 2, 5, 8, 12, 18)]
    turns = [_arc(speed, side * bend) for speed in (4, 8) for bend in (0.02, 0.06, 0.15) for side in (-1, 1)]
    others = [_arc(-3), _arc(8, acceleration=-4), _arc(3, acceleration=3)]
    noise = _arc(5) + np.random.default_rng(seed).normal(0, (1.0, 0.5, 0.1), size=(8, 3))
    return np.stack([*straight, *turns, *others, noise]).astype(np.float32)


class NavsimScore:
    """NAVSIM's ``pdm_score`` of one trajectory at a time, with NAVSIM's own evaluation settings or others.

    Args:
        **settings: of ``PDMScorerConfig``.
    """

    def __init__(self, **settings: Any) -> None:
        from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig
        from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
        from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

        from navsim_recogdrive.agents.compat_pdm import IS_V2

        self._is_v2 = IS_V2
        if IS_V2:
            settings = {"human_penalty_filter": True, **settings}
        self._sampling = TrajectorySampling(num_poses=40, interval_length=0.1)
        self._simulator = PDMSimulator(self._sampling)
        self._scorer = PDMScorer(self._sampling, PDMScorerConfig(**settings))

    def __call__(self, cache: Any, poses: NDArray[np.float32]) -> dict[str, float]:
        """Score and sub-scores by NAVSIM's names."""
        from navsim.common.dataclasses import Trajectory
        from navsim.evaluate.pdm_score import pdm_score
        from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling

        trajectory = Trajectory(poses, TrajectorySampling(time_horizon=4, interval_length=0.5))
        arguments = (cache, trajectory, self._sampling, self._simulator, self._scorer)
        if not self._is_v2:
            return vars(pdm_score(*arguments))

        from navsim.planning.script.run_pdm_score_one_stage import compute_final_scores
        from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

        row, _ = pdm_score(*arguments, LogReplayTrafficAgents(self._sampling))
        row["two_frame_extended_comfort"] = np.nan  # a scene without its neighbour
        return compute_final_scores(row).iloc[0].to_dict()


def with_obstacles(cache: Any) -> Any:
    """A copy of a scene with a traffic cone 12 m ahead and, in v2.x, a red light 25 m ahead and a car on the ego."""
    import shapely
    from navsim.planning.simulation.planner.pdm_planner.observation.pdm_occupancy_map import PDMOccupancyMap
    from nuplan.common.actor_state.agent import Agent
    from nuplan.common.actor_state.oriented_box import OrientedBox
    from nuplan.common.actor_state.scene_object import SceneObjectMetadata
    from nuplan.common.actor_state.state_representation import StateVector2D
    from nuplan.common.actor_state.static_object import StaticObject
    from nuplan.common.actor_state.tracked_objects import TrackedObjects
    from nuplan.common.actor_state.tracked_objects_types import TrackedObjectType
    from nuplan.common.geometry.transform import translate_longitudinally
    from nuplan.planning.simulation.observation.observation_type import DetectionsTracks

    from navsim_recogdrive.agents.compat_pdm import IS_V2

    cache = copy.deepcopy(cache)
    observation, pose = cache.observation, cache.ego_state.rear_axle

    def ahead(metres: float, size: float) -> OrientedBox:
        return OrientedBox(translate_longitudinally(pose, metres), size, size, 1.0)

    def labelled(name: str) -> SceneObjectMetadata:
        return SceneObjectMetadata(0, name, 0, name)

    cone = StaticObject(TrackedObjectType.TRAFFIC_CONE, ahead(12, 0.5), labelled("cone"))
    if not IS_V2:
        for index, occupied in enumerate(observation._occupancy_maps):
            geometries = [*occupied._geometries, cone.box.geometry]
            observation._occupancy_maps[index] = PDMOccupancyMap([*occupied.tokens, "cone"], geometries)
        observation._unique_objects["cone"] = cone
        return cache

    on_ego = Agent(TrackedObjectType.VEHICLE, ahead(1, 2.0), StateVector2D(0, 0), labelled("on_ego"))
    tracks = [
        DetectionsTracks(TrackedObjects([*track.tracked_objects.tracked_objects, cone, on_ego]))
        for track in observation.detections_tracks
    ]
    light = np.array([ahead(25, 4.0).geometry], dtype=object)
    assert isinstance(light[0], shapely.Polygon)
    observation._occupancy_maps_tl = [([f"{observation.red_light_token}_7"], light) for _ in tracks]
    observation.update_detections_tracks(tracks)
    return cache
