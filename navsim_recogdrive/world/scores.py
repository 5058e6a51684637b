"""The world's own scores of planned trajectories, from its geometry. They are not PDM scores.

A plan is eight poses in 4 s, taken at its word: no controller or vehicle model stands between plan and score (NAVSIM
simulates one). Poses are interpolated to 10 Hz. Other road users replay the log.

======================  ==============================================================================================
collision_free          0 if the ego's footprint meets a logged box and the ego is at fault, else 1
drivable_area           0 if a corner of the footprint leaves roads, junctions and parking bays, else 1
red_light               0 if the footprint enters the junction against a red light, else 1
progress                way along the expert's path relative to the expert's own, 0..1
comfort                 share of five bounds kept: acceleration, braking, lateral acceleration, jerk, yaw rate
score                   collision_free x drivable_area x red_light x (5 progress + 2 comfort) / 7, the world score
======================  ==============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import ArrayLike
from shapely.geometry import LineString

from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.world.generate import read_index
from navsim_recogdrive.world.geometry import FloatArray, box_corners, to_global
from navsim_recogdrive.world.road_network import LOCATIONS, RoadNetwork
from navsim_recogdrive.world.scenes import WorldScene, global_pose
from navsim_recogdrive.world.simulate import ego_footprint, network_of

STEP_S = 0.1
STEPS = round(HORIZON_POSES * POSE_INTERVAL_S / STEP_S)
MIN_PROGRESS_M = 2.0
"""If the expert gets less far than this, standing still is right and every plan has full progress."""
STANDING_MPS = 0.1
_PER_POSE = round(POSE_INTERVAL_S / STEP_S)

# Bounds of nuPlan's comfort metric (m/s^2, m/s^3, rad/s).
MAX_ACCELERATION, MAX_BRAKING, MAX_LATERAL, MAX_JERK, MAX_YAW_RATE = 2.40, 4.05, 4.89, 8.37, 0.95


@dataclass(frozen=True)
class WorldScores:
    """Scores of N plans of one scene, each field ``[N]`` float64 in 0..1; see the module's table."""

    collision_free: FloatArray
    drivable_area: FloatArray
    red_light: FloatArray
    progress: FloatArray
    comfort: FloatArray

    @property
    def score(self) -> FloatArray:
        """The world score, ``[N]`` in 0..1."""
        allowed = self.collision_free * self.drivable_area * self.red_light
        return allowed * (5.0 * self.progress + 2.0 * self.comfort) / 7.0


class InvalidPlans(ValueError):
    """Plans of another shape, or with values that are not finite."""


def score(scene: WorldScene, poses: ArrayLike) -> WorldScores:
    """Scores of N plans.

    Args:
        scene: the scene they were made for.
        poses: ``[N, 8, 3]`` (x, y, heading) at 0.5 s steps, metres and radians in the present ego frame.

    Raises:
        InvalidPlans: if ``poses`` has another shape or holds values that are not finite.
    """
    plans = np.asarray(poses, dtype=np.float64)
    if plans.ndim != 3 or plans.shape[1:] != (HORIZON_POSES, 3):
        raise InvalidPlans(f"poses must have shape [N, {HORIZON_POSES}, 3], found {list(plans.shape)}")
    if not np.isfinite(plans).all():
        raise InvalidPlans("poses hold values that are not finite")
    states = _dense(plans)
    origin = global_pose(scene.present)
    world = np.concatenate([to_global(states[..., :2], origin), states[..., 2:] + origin[2]], axis=-1)
    network = _network(scene)
    corners = ego_footprint(world)
    footprints = shapely.polygons(corners)
    return WorldScores(
        _collision_free(scene, world, footprints),
        _drivable_area(network, corners),
        _red_light(scene, network, footprints),
        _progress(scene, world),
        _comfort(scene, states),
    )


@lru_cache(maxsize=8)
def _seed(root: Path) -> int:
    return int(read_index(root)["settings"]["seed"])


def _network(scene: WorldScene) -> RoadNetwork:
    place = next(i for i, location in enumerate(LOCATIONS) if location.name == scene.location)
    return network_of(place, _seed(scene.root))


def _dense(plans: FloatArray) -> FloatArray:
    """``[N, 41, 3]`` plans at 10 Hz from the present (0, 0, 0) on, linear between poses, headings unwrapped."""
    knots = np.concatenate([np.zeros_like(plans[:, :1]), plans], axis=1)
    knots[..., 2] = np.unwrap(knots[..., 2], axis=1)
    step = np.arange(STEPS + 1)
    low = np.minimum(step // _PER_POSE, HORIZON_POSES - 1)
    share = (step / _PER_POSE - low)[None, :, None]
    return (1.0 - share) * knots[:, low] + share * knots[:, low + 1]


def _collision_free(scene: WorldScene, world: FloatArray, footprints: np.ndarray) -> FloatArray:
    """No collision at fault with a logged box.

    The ego is not at fault if it stands, if it touches the other already at the start, or if the other comes from
    behind: its centre lies behind the ego's rear axle and it moves. The logged boxes are those of the 2 Hz frames,
    moved with their velocities in between.
    """
    free = np.ones(len(world))
    start = global_pose(scene.present)
    touching: set[str] = set()
    speed = np.zeros(world.shape[:2])
    speed[:, 1:] = np.hypot(*np.moveaxis(np.diff(world[..., :2], axis=1), -1, 0)) / STEP_S
    for step in range(STEPS + 1):
        boxes, velocities, tracks = _boxes_at(scene, step)
        if len(boxes) == 0:
            continue
        areas = shapely.polygons(box_corners(boxes[:, :3], boxes[:, 3], boxes[:, 4]))
        if step == 0:
            here = shapely.polygons(ego_footprint(start))
            touching = {track for track, area in zip(tracks, areas, strict=True) if area.intersects(here)}
        plan, other = shapely.STRtree(areas).query(footprints[:, step], predicate="intersects")
        for i, j in zip(plan, other, strict=True):
            if tracks[j] in touching or speed[i, step] < STANDING_MPS:
                continue
            x, y, heading = world[i, step]
            ahead = (boxes[j, 0] - x) * np.cos(heading) + (boxes[j, 1] - y) * np.sin(heading)
            if ahead < 0.0 and np.hypot(*velocities[j]) > STANDING_MPS:
                continue
            free[i] = 0.0
    return free


def _boxes_at(scene: WorldScene, step: int) -> tuple[FloatArray, FloatArray, list[str]]:
    """Global boxes ``[M, 5]`` (x, y, heading, length, width), velocities ``[M, 2]`` and tracks at 10 Hz ``step``."""
    number = HISTORY_POSES - 1 + step // _PER_POSE
    frame = scene.frames[number]
    annotations = frame["anns"]
    boxes = np.asarray(annotations["gt_boxes"], dtype=np.float64)
    pose = global_pose(frame)
    turned = np.array([0.0, 0.0, pose[2]])
    velocities = to_global(np.asarray(annotations["gt_velocity_3d"], dtype=np.float64)[:, :2], turned)
    centres = to_global(boxes[:, :2], pose) + (step % _PER_POSE) * STEP_S * velocities
    states = np.column_stack([centres, boxes[:, 6] + pose[2], boxes[:, 3:5]])
    return states, velocities, list(annotations["track_tokens"])


def _drivable_area(network: RoadNetwork, corners: FloatArray) -> FloatArray:
    area = network.drivable_area
    shapely.prepare(area)
    return shapely.contains_xy(area, corners[..., 0], corners[..., 1]).all(axis=(1, 2)).astype(np.float64)


def _red_light(scene: WorldScene, network: RoadNetwork, footprints: np.ndarray) -> FloatArray:
    """No entry into the way across a junction that the route takes while its light is red.

    A footprint that was there when the light changed (or at the start) may go on.
    """
    obeyed = np.ones(len(footprints))
    blocks = [network.roadblocks[int(number)] for number in scene.present["roadblock_ids"]]
    for block in blocks:
        if not block.is_connector:
            continue
        red = np.array([_is_red(scene, block.members[0], step) for step in range(STEPS + 1)])
        if not red.any():
            continue
        shapely.prepare(block.polygon)
        inside = shapely.intersects(block.polygon, footprints)
        entered = inside[:, 1:] & ~inside[:, :-1] & red[None, 1:]
        obeyed[entered.any(axis=1)] = 0.0
    return obeyed


def _is_red(scene: WorldScene, connector: int, step: int) -> bool:
    lights = scene.frames[HISTORY_POSES - 1 + step // _PER_POSE]["traffic_lights"]
    return any(number == connector and red for number, red in lights)


def _progress(scene: WorldScene, world: FloatArray) -> FloatArray:
    path = scene.global_poses(HISTORY_POSES - 1, len(scene.frames))
    moving = np.concatenate([[True], np.hypot(*np.diff(path[:, :2], axis=0).T) > 1e-3])
    points = path[moving, :2]
    # Beyond the log the path goes straight on, so that a faster plan is not cut off.
    heading = path[-1, 2]
    points = np.concatenate([points, points[-1:] + 30.0 * np.array([[np.cos(heading), np.sin(heading)]])])
    line = LineString(points)
    expert_end = scene.global_poses(HISTORY_POSES - 1 + HORIZON_POSES, HISTORY_POSES + HORIZON_POSES)[0]
    expert = shapely.line_locate_point(line, shapely.Point(expert_end[:2]))
    if expert < MIN_PROGRESS_M:
        return np.ones(len(world))
    planned = shapely.line_locate_point(line, shapely.points(world[:, -1, :2]))
    return np.clip(planned / expert, 0.0, 1.0)


def _comfort(scene: WorldScene, states: FloatArray) -> FloatArray:
    """Share of the five bounds kept, from differences of the 2 Hz poses and the present speed."""
    knots = states[:, ::_PER_POSE]
    step = np.diff(knots, axis=1)
    heading = knots[:, :-1, 2] + 0.5 * step[..., 2]
    forward = step[..., 0] * np.cos(heading) + step[..., 1] * np.sin(heading)
    speed = forward / POSE_INTERVAL_S
    yaw_rate = step[..., 2] / POSE_INTERVAL_S
    # Speeds are those of interval middles: the first lies a quarter second after the present.
    present = np.full((len(states), 1), float(scene.present["ego_dynamic_state"][0]))
    first = (speed[:, :1] - present) / (0.5 * POSE_INTERVAL_S)
    acceleration = np.concatenate([first, np.diff(speed, axis=1) / POSE_INTERVAL_S], axis=1)
    jerk = np.diff(acceleration[:, 1:], axis=1) / POSE_INTERVAL_S
    kept = [
        (acceleration <= MAX_ACCELERATION).all(axis=1),
        (acceleration >= -MAX_BRAKING).all(axis=1),
        (np.abs(speed * yaw_rate) <= MAX_LATERAL).all(axis=1),
        (np.abs(jerk) <= MAX_JERK).all(axis=1),
        (np.abs(yaw_rate) <= MAX_YAW_RATE).all(axis=1),
    ]
    return np.mean(kept, axis=0)
