"""Views of NAVSIM's scenes: the log's boxes and calibration, nuPlan's map, PDM scores and the simulated ego."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from nuplan.common.actor_state.state_representation import Point2D
from nuplan.common.maps.maps_datatypes import SemanticMapLayer
from nuplan.common.maps.nuplan_map.map_factory import get_maps_api
from pyquaternion import Quaternion

from navsim_recogdrive.agents.compat_pdm import Scorer, StateIndex
from navsim_recogdrive.agents.log_scene import LOGS, LogScene, SceneNotFound, find_scene
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
from navsim_recogdrive.agents.pdm_batch import BatchScorer, interpolate, prepare
from navsim_recogdrive.agents.qa_lanes import MAP_VERSION, NoMap
from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES
from navsim_recogdrive.viz.drawable import DrawableScene, Judgement
from navsim_recogdrive.viz.log_frames import log_view
from navsim_recogdrive.viz.scene_view import FloatArray, MapArea, MapLine, SceneView

MAP_RADIUS_M = 90.0
"""How far from the ego a view's map reaches."""

_AREAS = {
    SemanticMapLayer.LANE: "lane",
    SemanticMapLayer.INTERSECTION: "intersection",
    SemanticMapLayer.CARPARK_AREA: "carpark",
    SemanticMapLayer.WALKWAYS: "walkway",
    SemanticMapLayer.CROSSWALK: "crosswalk",
    SemanticMapLayer.STOP_LINE: "stop_line",
}
_ROUTE = (SemanticMapLayer.ROADBLOCK, SemanticMapLayer.ROADBLOCK_CONNECTOR)
_PRESENT = HISTORY_POSES - 1


def drawable(
    scene: LogScene, maps: Path | None, metric_cache: Path | None = None, cameras: tuple[str, ...] = ("front",)
) -> DrawableScene:
    """A scene to be drawn.

    Args:
        scene: of a log.
        maps: folder of nuPlan's maps; ``None`` draws none.
        metric_cache: folder of metric caches to score plans with; ``None``: they are not scored.
        cameras: whose images the observation holds; the front camera's is drawn.

    Raises:
        SceneNotFound: if an image is missing.
        NoMap: if the map cannot be opened.
        UnusableMetricCache: if the folder holds no metric caches.
    """
    observation = scene.observation(cameras)
    return DrawableScene(
        token=scene.token,
        log_name=scene.log_name,
        observation=observation,
        view=scene_view(scene, maps, cameras),
        judge=None if metric_cache is None else judge(metric_cache, scene.token),
    )


def scene_view(scene: LogScene, maps: Path | None, cameras: tuple[str, ...] = ("front",)) -> SceneView:
    """What can be drawn of a scene before anything is planned; arguments and errors as for :func:`drawable`."""
    present = scene.frames[_PRESENT]
    view = log_view(present, scene.observation(cameras), scene.human_poses)
    if maps is None:
        return view
    origin = _pose(present)
    areas, lines = _map(maps, present, origin)
    return replace(view, areas=tuple(areas), lines=tuple(lines))


def scenes_of_log(data_root: Path, log: str, split: str | None) -> dict[str, int]:
    """Tokens of the scenes that a log holds, those with a whole history and future, and their present frames.

    Raises:
        SceneNotFound: if there is no such log.
    """
    first = find_scene(data_root, log=log, split=split)
    with (data_root / LOGS / first.split / f"{first.log_name}.pkl").open("rb") as file:
        frames = pickle.load(file)  # as NAVSIM's own loader does
    if len(frames) < HISTORY_POSES + HORIZON_POSES:
        raise SceneNotFound(f"log {log} has {len(frames)} frames, a scene needs {HISTORY_POSES + HORIZON_POSES}")
    return {str(frames[index]["token"]): index for index in range(_PRESENT, len(frames) - HORIZON_POSES)}


def map_folder() -> Path | None:
    """Folder of nuPlan's maps, or ``None`` where ``NUPLAN_MAPS_ROOT`` names none."""
    root = Path(os.environ.get("NUPLAN_MAPS_ROOT", ""))
    return root if (root / f"{MAP_VERSION}.json").is_file() else None


def judge(metric_cache: Path, token: str) -> Callable[[NDArray[np.float32]], Judgement]:
    """Scores trajectories ``[N, 8, 3]`` of a scene by NAVSIM's simulator and scorer, and says where the ego drove.

    Raises:
        UnusableMetricCache: if the folder cannot be used.
        SceneNotFound: if it does not hold the scene.
    """
    folder, scorer = MetricCacheFolder(metric_cache), Scorer()
    if folder.missing_tokens([token]):
        raise SceneNotFound(f"scene {token} has no metric cache in {metric_cache}")
    cache = folder.read(token)
    prepare(cache, scorer)

    def score(trajectories: NDArray[np.float32]) -> Judgement:
        scores = BatchScorer(scorer).score(trajectories, cache).scores
        states = scorer.simulate(interpolate(trajectories, cache, scorer), cache)
        axle = cache.ego_state.rear_axle
        poses = states[..., StateIndex.STATE_SE2]
        return Judgement(scores, _local(poses, np.array([axle.x, axle.y, axle.heading])))

    return score


def _map(root: Path, present: dict[str, Any], origin: FloatArray) -> tuple[list[MapArea], list[MapLine]]:
    location = str(present["map_location"])
    api = _map_api(root, location)
    areas: list[MapArea] = []
    lines: list[MapLine] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the devkit casts columns that have empty cells
        found = api.get_proximal_map_objects(Point2D(*origin[:2].tolist()), MAP_RADIUS_M, list(_AREAS))
        for layer, kind in _AREAS.items():
            for item in found[layer]:
                areas += _areas(kind, item.polygon, origin)
                if layer == SemanticMapLayer.LANE:
                    lines.append(MapLine("centre_line", _centre_line(item, origin)))
        for block in present["roadblock_ids"]:
            items = [item for layer in _ROUTE if (item := api.get_map_object(str(block), layer)) is not None]
            for item in items[:1]:
                areas += _areas("route", item.polygon, origin)
        for connector, is_red in present["traffic_lights"]:
            item = api.get_map_object(str(connector), SemanticMapLayer.LANE_CONNECTOR) if is_red else None
            if item is not None:
                lines.append(MapLine("red_light", _centre_line(item, origin)))
    return areas, lines


@lru_cache(maxsize=4)
def _map_api(root: Path, location: str) -> Any:
    try:
        return get_maps_api(str(root), MAP_VERSION, location)
    except Exception as error:  # the devkit asserts, and lets errors of GeoPandas and the disk through
        raise NoMap(f"the map of {location} in {root} cannot be opened: {error}") from None


def _centre_line(item: Any, origin: FloatArray) -> FloatArray:
    return _local(np.array([(pose.x, pose.y) for pose in item.baseline_path.discrete_path]), origin)


def _areas(kind: str, shape: shapely.Geometry, origin: FloatArray) -> Iterator[MapArea]:
    for polygon in shapely.get_parts(shape):
        rings = [np.asarray(ring.coords)[:-1, :2] for ring in (polygon.exterior, *polygon.interiors)]
        outline, *holes = (_local(ring, origin) for ring in rings)
        yield MapArea(kind, outline, tuple(holes))


def _pose(frame: dict[str, Any]) -> FloatArray:
    """``[3]`` global rear-axle pose of a log frame."""
    heading = Quaternion(*frame["ego2global_rotation"]).yaw_pitch_roll[0]
    return np.array([*frame["ego2global_translation"][:2], heading], dtype=np.float64)


def _local(poses: FloatArray, origin: FloatArray) -> FloatArray:
    """Global points ``[..., 2]`` or poses ``[..., 3]`` in the frame of ``origin [3]``."""
    cos, sin = np.cos(origin[2]), np.sin(origin[2])
    positions = (poses[..., :2] - origin[:2]) @ np.array([[cos, -sin], [sin, cos]])
    if poses.shape[-1] == 2:
        return positions
    headings = (poses[..., 2:] - origin[2] + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate([positions, headings], axis=-1)
