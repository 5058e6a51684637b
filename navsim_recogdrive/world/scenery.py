"""What stands and lies in a town for the camera to see: painted ground, buildings, trees, signal heads.

Colours are RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import prepare
from shapely.geometry import Polygon

from navsim_recogdrive.world.geometry import FloatArray, Polyline, box_corners
from navsim_recogdrive.world.road_network import (
    CROSSWALK_OFFSET_M,
    CROSSWALK_WIDTH_M,
    JUNCTION_RADIUS_M,
    LANE_WIDTH_M,
    PAVEMENT_OFFSET_M,
    PAVEMENT_WIDTH_M,
    ROAD_HALF_WIDTH_M,
    SHOULDER_M,
    VERGE_WIDTH_M,
    RoadNetwork,
)
from navsim_recogdrive.world.simulate import network_of
from navsim_recogdrive.world.town_plan import arm_pose

PIXELS_PER_METRE = 10.0
_BORDER_M = 45.0

_GRASS, _PAVING, _ASPHALT, _BAY = (98, 118, 76), (168, 166, 160), (74, 76, 80), (88, 88, 90)
_WHITE, _YELLOW = (226, 226, 222), (222, 178, 58)
_FACADES = (
    (176, 148, 124), (150, 98, 78), (198, 188, 170), (128, 134, 144), (164, 160, 150), (112, 92, 84), (188, 170, 132),
)  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """The painted ground seen from above.

    ``levels`` are images ``[H, W, 3]`` uint8 RGB at :data:`PIXELS_PER_METRE` and halved again and again; pixel (0, 0)
    of the first is the global point ``corner``, rows go north.
    """

    levels: list[NDArray[np.uint8]]
    corner: FloatArray


@dataclass(frozen=True)
class Building:
    """A box ``[4, 2]`` of ground corners with a height and a colour."""

    corners: FloatArray
    height: float
    colour: tuple[int, int, int]
    floors: int


@dataclass(frozen=True)
class Tree:
    """A tree at ``position [2]``."""

    position: FloatArray
    height: float
    crown: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class SignalHead:
    """A signal head: ``position [3]``; it faces ``facing`` (radians); ``foot [2]`` is where its pole stands."""

    position: FloatArray
    facing: float
    foot: FloatArray
    node: int
    group: int


@dataclass(frozen=True)
class Scenery:
    """Everything in a town that does not move."""

    ground: Ground
    buildings: list[Building]
    trees: list[Tree]
    heads: list[SignalHead]


@lru_cache(maxsize=2)
def scenery_of(location: int, seed: int) -> Scenery:
    """The scenery of a location, made once per process (about 60 MB each)."""
    network = network_of(location, seed)
    rng = np.random.default_rng([seed, 991, location])
    return Scenery(_paint_ground(network, rng), _build(network, rng), _plant(network, rng), _signal_heads(network))


class _Canvas:
    def __init__(self, network: RoadNetwork, rng: np.random.Generator) -> None:
        x_min, y_min, x_max, y_max = network.bounds
        self.corner = np.array([x_min - _BORDER_M, y_min - _BORDER_M])
        size = np.array([x_max - x_min, y_max - y_min]) + 2.0 * _BORDER_M
        width, height = (int(v) for v in np.ceil(size * PIXELS_PER_METRE))
        self.image = np.full((height, width, 3), _GRASS, np.uint8)
        self._rng = rng

    def fill(self, points: FloatArray, colour: tuple[int, int, int]) -> None:
        pixels = (np.asarray(points) - self.corner) * PIXELS_PER_METRE * 16.0
        cv2.fillPoly(self.image, [np.round(pixels).astype(np.int32)], colour, cv2.LINE_AA, 4)

    def area(self, polygon: Polygon, colour: tuple[int, int, int]) -> None:
        self.fill(np.asarray(polygon.exterior.coords), colour)

    def band(self, line: Polyline, lateral: float, width: float, colour: tuple[int, int, int]) -> None:
        left, right = line.offset(lateral + width / 2.0), line.offset(lateral - width / 2.0)
        self.fill(np.concatenate([left.points, right.points[::-1]]), colour)

    def dashes(self, line: Polyline, lateral: float, colour: tuple[int, int, int]) -> None:
        for start in np.arange(1.0, line.length - 3.0, 7.5):
            inside = (line.s >= start) & (line.s <= start + 3.0)
            self.band(Polyline(line.points[inside], line.heading[inside]), lateral, 0.16, colour)

    def grain(self) -> None:
        tile = self._rng.normal(0.0, 4.0, (512, 512, 1))
        tile += cv2.resize(self._rng.normal(0.0, 3.0, (32, 32)), (512, 512))[..., None]
        height, width = self.image.shape[:2]
        for row in range(0, height, 512):
            for column in range(0, width, 512):
                part = self.image[row : row + 512, column : column + 512]
                noisy = part + tile[: part.shape[0], : part.shape[1]]
                part[:] = np.clip(noisy, 0, 255).astype(np.uint8)


def _paint_ground(network: RoadNetwork, rng: np.random.Generator) -> Ground:
    canvas = _Canvas(network, rng)
    for edge in network.foot_edges:
        if edge.crosswalk is None:
            canvas.band(edge.line, 0.0, PAVEMENT_WIDTH_M, _PAVING)
    for line in network.road_lines:
        canvas.band(line, 0.0, 2.0 * ROAD_HALF_WIDTH_M + 0.5, _PAVING)  # the kerb
    for node in network.junctions.values():
        canvas.area(node.polygon.buffer(0.25), _PAVING)
    for line in network.road_lines:
        canvas.band(line, 0.0, 2.0 * ROAD_HALF_WIDTH_M, _ASPHALT)
    for polygon in network.parking_polygons:
        canvas.area(polygon, _BAY)
    for node in network.junctions.values():
        canvas.area(node.polygon, _ASPHALT)
    canvas.grain()
    for bay in network.parking_bays:
        for s in np.arange(0.2, bay.length, 6.6):
            x, y, heading = bay.pose(float(s))
            canvas.fill(box_corners(np.array([x, y, heading]), 0.12, VERGE_WIDTH_M), _WHITE)
    for line in network.road_lines:
        for side in (0.14, -0.14):
            canvas.band(line, side, 0.13, _YELLOW)
        for side in (1, -1):
            canvas.dashes(line, side * LANE_WIDTH_M, _WHITE)
            canvas.band(line, side * (ROAD_HALF_WIDTH_M - SHOULDER_M + 0.05), 0.12, _WHITE)
    for connector in network.connectors.values():
        if connector.signal_group is not None:
            continue
        # A street corner without lights keeps its markings.
        if network.lanes[connector.from_lane].index == 0:
            canvas.band(connector.line, LANE_WIDTH_M / 2.0 - 0.14, 0.13, _YELLOW)
        else:
            canvas.dashes(connector.line, LANE_WIDTH_M / 2.0, _WHITE)
            canvas.band(connector.line, -LANE_WIDTH_M / 2.0 - 0.05, 0.12, _WHITE)
    for stop in network.stop_lines.values():
        canvas.area(stop, _WHITE)
    for node_id, arm in network.crosswalks:
        node = network.junctions[node_id]
        near, far = (CROSSWALK_OFFSET_M + side * CROSSWALK_WIDTH_M / 2.0 for side in (-1, 1))
        for lateral in np.arange(-ROAD_HALF_WIDTH_M + 0.3, ROAD_HALF_WIDTH_M - 0.2, 1.0):
            stripe = [(near, lateral), (far, lateral), (far, lateral + 0.5), (near, lateral + 0.5)]
            canvas.fill(np.array([arm_pose(node, arm, d, w)[:2] for d, w in stripe]), _WHITE)
    levels = [canvas.image]
    for _ in range(2):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return Ground(levels, canvas.corner)


def _build(network: RoadNetwork, rng: np.random.Generator) -> list[Building]:
    roads = network.drivable_area
    prepare(roads)
    taken: list[Polygon] = []
    buildings = []
    for line in network.road_lines:
        for side in (1.0, -1.0):
            s = 4.0
            while s < line.length - 6.0:
                length, depth = float(rng.uniform(11.0, 21.0)), float(rng.uniform(9.0, 16.0))
                setback = PAVEMENT_OFFSET_M + PAVEMENT_WIDTH_M / 2.0 + float(rng.uniform(1.5, 6.0))
                x, y, heading = line.pose(s + length / 2.0)
                away = side * (setback + depth / 2.0)
                pose = np.array([x - away * np.sin(heading), y + away * np.cos(heading), heading])
                corners = box_corners(pose, length, depth)
                area = Polygon(corners)
                if roads.distance(area) > 7.0 and not any(area.intersects(other) for other in taken):
                    taken.append(area)
                    floors = int(rng.integers(2, 7))
                    colour = _FACADES[int(rng.integers(len(_FACADES)))]
                    buildings.append(Building(corners, 3.1 * floors + 1.0, colour, floors))
                s += length + float(rng.uniform(2.0, 9.0))
    return buildings


def _plant(network: RoadNetwork, rng: np.random.Generator) -> list[Tree]:
    bays = [polygon.buffer(1.0) for polygon in network.parking_polygons]
    trees = []
    for line in network.road_lines:
        for side in (1.0, -1.0):
            beside = line.offset(side * (ROAD_HALF_WIDTH_M + 0.62 * VERGE_WIDTH_M))
            for s in np.arange(6.0, line.length - 8.0, 11.0):
                position = beside.pose(float(s + rng.uniform(-2.0, 2.0)))[:2]
                footprint = Polygon(box_corners(np.array([*position, 0.0]), 1.0, 1.0))
                if rng.random() < 0.55 and not any(bay.intersects(footprint) for bay in bays):
                    green = int(rng.integers(86, 122))
                    trees.append(
                        Tree(position, float(rng.uniform(5.0, 7.5)), float(rng.uniform(1.3, 1.9)), (58, green, 44))
                    )
    return trees


def _signal_heads(network: RoadNetwork) -> list[SignalHead]:
    """Two heads for each approach: beside the stop line, and on a mast arm beyond the junction."""
    heads = []
    for node in network.junctions.values():
        if not node.signalised:
            continue
        for arm, angle in node.arms.items():
            beyond, beside = -(JUNCTION_RADIUS_M - 3.0), JUNCTION_RADIUS_M - 0.5
            for distance, lateral, height in (
                (beyond, LANE_WIDTH_M, 5.7),
                (beside, ROAD_HALF_WIDTH_M + 0.8, 3.3),
            ):
                position = np.array([*arm_pose(node, arm, distance, lateral)[:2], height])
                foot = arm_pose(node, arm, distance, ROAD_HALF_WIDTH_M + 0.9)[:2]
                heads.append(SignalHead(position, angle, foot, node.id, arm % 2))
    return heads
