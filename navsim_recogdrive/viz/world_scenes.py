"""Views of the synthetic world's scenes, without NAVSIM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely

from navsim_recogdrive.viz.drawable import DrawableScene, Judgement
from navsim_recogdrive.viz.log_frames import log_view
from navsim_recogdrive.viz.scene_view import FloatArray, MapArea, MapLine, SceneView
from navsim_recogdrive.world.generate import read_index
from navsim_recogdrive.world.geometry import to_local
from navsim_recogdrive.world.nuplan_map import map_layers
from navsim_recogdrive.world.road_network import LOCATIONS, RoadNetwork
from navsim_recogdrive.world.scenes import WorldScene, global_pose
from navsim_recogdrive.world.scores import score
from navsim_recogdrive.world.simulate import network_of

MAP_RADIUS_M = 90.0
"""How far from the ego a view's map reaches."""

_LAYERS = {
    "generic_drivable_areas": "drivable",
    "lanes_polygons": "lane",
    "intersections": "intersection",
    "carpark_areas": "carpark",
    "walkways": "walkway",
    "crosswalks": "crosswalk",
    "stop_polygons": "stop_line",
}


def drawable(scene: WorldScene) -> DrawableScene:
    """A scene to be drawn; plans are judged by the world's scores.

    Raises:
        SceneError: if the image is missing or cannot be decoded.
    """
    return DrawableScene(
        token=scene.token,
        log_name=scene.log_name,
        observation=scene.observation(),
        view=world_view(scene),
        judge=lambda poses: Judgement(score(scene, poses).score),
    )


def world_view(scene: WorldScene, with_image: bool = True) -> SceneView:
    """What can be drawn of a scene before anything is planned: map, boxes, route, lights, human, front camera.

    Raises:
        SceneError: if the image is missing or cannot be decoded.
    """
    origin = global_pose(scene.present)
    view = log_view(scene.present, scene.observation(with_image), scene.future_poses())
    return replace(view, areas=tuple(_areas(scene, origin)), lines=tuple(_lines(scene, origin)))


def _areas(scene: WorldScene, origin: FloatArray) -> Iterator[MapArea]:
    network = _network(scene)
    for kind, shape in _shapes(LOCATIONS.index(network.location), network.seed):
        yield from local_areas(kind, shape, origin)
    for block in scene.present["roadblock_ids"]:
        yield from local_areas("route", network.roadblocks[int(block)].polygon, origin)


def local_areas(kind: str, shape: shapely.Geometry, origin: FloatArray) -> Iterator[MapArea]:
    """The polygons of a global shape within sight of ``origin`` (x, y, heading), in its frame."""
    if shape.distance(shapely.Point(origin[:2])) > MAP_RADIUS_M:
        return
    for polygon in shapely.get_parts(shape):
        rings = [np.asarray(ring.coords)[:-1, :2] for ring in (polygon.exterior, *polygon.interiors)]
        outline, *holes = (to_local(ring, origin) for ring in rings)
        yield MapArea(kind, outline, tuple(holes))


def _lines(scene: WorldScene, origin: FloatArray) -> Iterator[MapLine]:
    red = {connector for connector, is_red in scene.present["traffic_lights"] if is_red}
    network = _network(scene)
    for kind, segments in (
        ("centre_line", network.lanes.values()),
        ("red_light", [network.connectors[connector] for connector in red]),
    ):
        for segment in segments:
            points = to_local(segment.line.points, origin)
            if np.hypot(*points.T).min() < MAP_RADIUS_M:
                yield MapLine(kind, points)


@lru_cache(maxsize=4)
def _shapes(location: int, seed: int) -> tuple[tuple[str, shapely.Geometry], ...]:
    return tuple(
        (_LAYERS[layer], shape)
        for layer, rows in map_layers(network_of(location, seed))
        if layer in _LAYERS
        for _, shape, _ in rows
    )


@lru_cache(maxsize=8)
def _seed(root: Path) -> int:
    return int(read_index(root)["settings"]["seed"])


def _network(scene: WorldScene) -> RoadNetwork:
    place = next(i for i, location in enumerate(LOCATIONS) if location.name == scene.location)
    return network_of(place, _seed(scene.root))
