"""Builds the town of a location from a seed: see :mod:`.road_network` for what it is made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from shapely.geometry import Polygon

from navsim_recogdrive.world.geometry import FloatArray, Polyline, smooth_curve, wrap_angle
from navsim_recogdrive.world.road_network import (
    CROSSWALK_OFFSET_M,
    CROSSWALK_WIDTH_M,
    JUNCTION_RADIUS_M,
    LANE_WIDTH_M,
    LANES_PER_DIRECTION,
    PAVEMENT_OFFSET_M,
    ROAD_HALF_WIDTH_M,
    VERGE_WIDTH_M,
    Connector,
    FootEdge,
    Junction,
    Lane,
    Location,
    Roadblock,
    RoadNetwork,
)

NODE_SPACING_M = 130.0
GRID = (4, 3)
"""Columns and rows of junctions; those at the corners of the town are mere bends."""
SPEED_LIMITS_MPS = (11.2, 13.4, 15.6)
KERB_RELIEF_M = 0.9
"""How far the kerb steps back inside a corner, for the overhangs of turning cars."""


class _Ids:
    def __init__(self, first: int) -> None:
        self._counter: Iterator[int] = iter(range(first, first + 100_000))

    def __call__(self) -> int:
        return next(self._counter)


def build_network(location: Location, seed: int) -> RoadNetwork:
    """The town of ``location`` for ``seed``; the same arguments give the same town, bit for bit."""
    rng = np.random.default_rng([seed, location.epsg])
    network = RoadNetwork(location, seed)
    ids = _Ids(10_000)
    _place_junctions(network, rng)
    incoming: dict[tuple[int, int], tuple[Lane, ...]] = {}
    departing: dict[tuple[int, int], tuple[Lane, ...]] = {}
    columns, rows = GRID
    for row in range(rows):
        for column in range(columns):
            node = row * columns + column
            if column + 1 < columns:
                _add_road(network, ids, rng, (node, 0), (node + 1, 2), incoming, departing)
            if row + 1 < rows:
                _add_road(network, ids, rng, (node, 1), (node + columns, 3), incoming, departing)
    for junction in network.junctions.values():
        _add_connectors(network, ids, junction, incoming, departing)
    _add_foot_ways(network)
    return network


def _place_junctions(network: RoadNetwork, rng: np.random.Generator) -> None:
    columns, rows = GRID
    for row in range(rows):
        for column in range(columns):
            node = row * columns + column
            jitter = rng.uniform(-16.0, 16.0, 2)
            centre = np.array(network.location.origin) + NODE_SPACING_M * np.array([column, row]) + jitter
            turn = float(rng.uniform(-0.22, 0.22))
            present = [
                arm for arm, exists in enumerate((column + 1 < columns, row + 1 < rows, column > 0, row > 0)) if exists
            ]
            arms = {arm: turn + arm * np.pi / 2.0 for arm in present}
            network.junctions[node] = Junction(
                node, centre, arms, len(arms) > 2, float(rng.uniform(0.0, 40.0)), _junction_polygon(centre, arms)
            )


def arm_pose(node: Junction, arm: int, distance: float, lateral: float) -> FloatArray:
    """Pose at ``distance`` out on an arm, ``lateral`` to the left of its axis, facing away from the junction."""
    angle = node.arms[arm]
    direction = np.array([np.cos(angle), np.sin(angle)])
    normal = np.array([-direction[1], direction[0]])
    return np.array([*(node.centre + distance * direction + lateral * normal), angle])


def _turned(pose: FloatArray) -> FloatArray:
    return np.array([pose[0], pose[1], pose[2] + np.pi])


def kerb_corner(node: Junction, arm: int, next_arm: int, lateral: float, distance: float) -> Polyline:
    """The curve round the corner from the left side of ``arm`` to the right side of ``next_arm`` (anticlockwise)."""
    return smooth_curve(_turned(arm_pose(node, arm, distance, lateral)), arm_pose(node, next_arm, distance, -lateral))


def _junction_polygon(centre: FloatArray, arms: dict[int, float]) -> Polygon:
    node = Junction(-1, centre, arms, False, 0.0, Polygon())
    order = sorted(arms)
    ring: list[FloatArray] = []
    for arm, next_arm in zip(order, order[1:] + order[:1], strict=True):
        # 0.3 m into each road, so that no corner of a car falls between two areas.
        ring.append(arm_pose(node, arm, JUNCTION_RADIUS_M + 0.3, -ROAD_HALF_WIDTH_M)[None, :2])
        ring.append(arm_pose(node, arm, JUNCTION_RADIUS_M + 0.3, ROAD_HALF_WIDTH_M)[None, :2])
        kerb = kerb_corner(node, arm, next_arm, ROAD_HALF_WIDTH_M, JUNCTION_RADIUS_M)
        points = kerb.points
        if (arms[next_arm] - arms[arm]) % (2.0 * np.pi) < 2.0:
            relief = KERB_RELIEF_M * np.sin(np.pi * kerb.s / kerb.length) ** 2
            points = points + relief[:, None] * np.stack([np.sin(kerb.heading), -np.cos(kerb.heading)], axis=-1)
        ring.append(points)
    return Polygon(np.concatenate(ring))


def _add_road(
    network: RoadNetwork,
    ids: _Ids,
    rng: np.random.Generator,
    start: tuple[int, int],
    end: tuple[int, int],
    incoming: dict[tuple[int, int], tuple[Lane, ...]],
    departing: dict[tuple[int, int], tuple[Lane, ...]],
) -> None:
    first, last = network.junctions[start[0]], network.junctions[end[0]]
    line = smooth_curve(
        arm_pose(first, start[1], JUNCTION_RADIUS_M, 0.0), _turned(arm_pose(last, end[1], JUNCTION_RADIUS_M, 0.0))
    )
    speed_limit = float(rng.choice(SPEED_LIMITS_MPS))
    network.road_lines.append(line)
    for axis, source, target in ((line, start, end), (line.reversed(), end, start)):
        roadblock = ids()
        lanes = []
        for index in range(LANES_PER_DIRECTION):
            lanes.append(
                Lane(
                    ids(),
                    roadblock,
                    index,
                    axis.offset(-(index + 0.5) * LANE_WIDTH_M),
                    axis.offset(-index * LANE_WIDTH_M).points,
                    axis.offset(-(index + 1) * LANE_WIDTH_M).points,
                    source[0],
                    target[0],
                    target[1],
                    speed_limit,
                )
            )
        network.lanes.update({lane.id: lane for lane in lanes})
        area = Polygon(np.concatenate([axis.points, axis.offset(-ROAD_HALF_WIDTH_M).points[::-1]]))
        network.roadblocks[roadblock] = Roadblock(roadblock, tuple(lane.id for lane in lanes), area, False)
        departing[source] = incoming[target] = tuple(lanes)
        if rng.random() < 0.6:
            kerb = axis.offset(-(ROAD_HALF_WIDTH_M + VERGE_WIDTH_M / 2.0))
            begin = float(rng.uniform(12.0, 20.0))
            inside = (kerb.s > begin) & (kerb.s < begin + float(rng.uniform(22.0, 36.0)))
            network.parking_bays.append(Polyline(kerb.points[inside], kerb.heading[inside]))


def _add_connectors(
    network: RoadNetwork,
    ids: _Ids,
    node: Junction,
    incoming: dict[tuple[int, int], tuple[Lane, ...]],
    departing: dict[tuple[int, int], tuple[Lane, ...]],
) -> None:
    for arm in node.arms:
        for target in node.arms:
            if target == arm:
                continue
            change = float(wrap_angle(node.arms[target] - node.arms[arm] - np.pi))
            turn = "straight" if abs(change) < 0.8 else ("left" if change > 0 else "right")
            if len(node.arms) == 2 or turn == "straight":
                pairs = [(0, 0), (1, 1)]
            else:
                pairs = [(0, 0)] if turn == "left" else [(1, 1)]
            sources, targets = incoming[node.id, arm], departing[node.id, target]
            roadblock = ids()
            members = []
            for i, j in pairs:
                source, sink = sources[i], targets[j]
                line = smooth_curve(source.line.pose(source.line.length), sink.line.pose(0.0))
                members.append(
                    Connector(
                        ids(),
                        roadblock,
                        node.id,
                        source.id,
                        sink.id,
                        arm,
                        target,
                        turn,
                        line,
                        line.offset(LANE_WIDTH_M / 2.0).points,
                        line.offset(-LANE_WIDTH_M / 2.0).points,
                        arm % 2 if node.signalised else None,
                        min(source.speed_limit, sink.speed_limit),
                    )
                )
            network.connectors.update({member.id: member for member in members})
            area = Polygon(np.concatenate([members[0].left, members[-1].right[::-1]]))
            network.roadblocks[roadblock] = Roadblock(
                roadblock,
                tuple(member.id for member in members),
                area if area.is_valid else area.buffer(0.0),
                True,
                node.id,
                sources[0].roadblock,
                targets[0].roadblock,
            )
        if node.signalised:
            stop = [arm_pose(node, arm, JUNCTION_RADIUS_M + d, w)[:2] for d, w in ((0.1, 0.0), (0.6, 0.0))]
            stop += [arm_pose(node, arm, JUNCTION_RADIUS_M + d, ROAD_HALF_WIDTH_M)[:2] for d in (0.6, 0.1)]
            network.stop_lines[node.id, arm] = Polygon(stop)
            near, far = (CROSSWALK_OFFSET_M + side * CROSSWALK_WIDTH_M / 2.0 for side in (-1, 1))
            reach = ROAD_HALF_WIDTH_M + 0.6
            network.crosswalks[node.id, arm] = Polygon(
                [arm_pose(node, arm, d, w)[:2] for d, w in ((near, -reach), (far, -reach), (far, reach), (near, reach))]
            )


def _add_foot_ways(network: RoadNetwork) -> None:
    """Pavements along both sides of every road and round every corner, and the crosswalks between them."""
    corner: dict[tuple[int, int, int], int] = {}
    for node in network.junctions.values():
        for arm in node.arms:
            for side in (1, -1):
                corner[node.id, arm, side] = len(network.foot_nodes)
                network.foot_nodes.append(arm_pose(node, arm, CROSSWALK_OFFSET_M, side * PAVEMENT_OFFSET_M)[:2])
        order = sorted(node.arms)
        for arm, next_arm in zip(order, order[1:] + order[:1], strict=True):
            line = kerb_corner(node, arm, next_arm, PAVEMENT_OFFSET_M, CROSSWALK_OFFSET_M)
            network.foot_edges.append(FootEdge(corner[node.id, arm, 1], corner[node.id, next_arm, -1], line))
            if node.signalised:
                ends = corner[node.id, arm, 1], corner[node.id, arm, -1]
                points = np.linspace(network.foot_nodes[ends[0]], network.foot_nodes[ends[1]], 40)
                network.foot_edges.append(FootEdge(*ends, Polyline.from_points(points), (node.id, arm)))
    for lane in network.lanes.values():
        if lane.index != 0:
            continue
        # The pavement to the right of each direction: from the left side of the arm the lane starts from, seen
        # outwards that is its right side, to the left side of the arm it ends on.
        start_arm = next(
            arm
            for arm in network.junctions[lane.start_node].arms
            if np.hypot(*(arm_pose(network.junctions[lane.start_node], arm, JUNCTION_RADIUS_M, 0.0)[:2] - lane.left[0]))
            < 0.01
        )
        first = corner[lane.start_node, start_arm, -1]
        last = corner[lane.end_node, lane.end_arm, 1]
        along = lane.line.offset(-(PAVEMENT_OFFSET_M - LANE_WIDTH_M / 2.0)).points
        points = np.concatenate([network.foot_nodes[first][None], along, network.foot_nodes[last][None]])
        network.foot_edges.append(FootEdge(first, last, Polyline.from_points(points)))
