"""A small town: a jittered grid of junctions joined by curved two-way roads, with signals, crosswalks and pavements.

Everything is a pure function of (location, seed). Coordinates are those of the location's UTM zone, as in nuPlan maps.
Driving is on the right; every road has two lanes each way. Lane 0 (inner) may go left or straight on, lane 1 (outer)
right or straight on, which is why a driver changes lanes before a turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from shapely.geometry import Polygon
from shapely.ops import unary_union

from navsim_recogdrive.world.geometry import FloatArray, Polyline

LANE_WIDTH_M = 3.7
LANES_PER_DIRECTION = 2
SHOULDER_M = 0.6
"""Strip between the outer lane's edge line and the kerb."""
ROAD_HALF_WIDTH_M = LANE_WIDTH_M * LANES_PER_DIRECTION + SHOULDER_M
JUNCTION_RADIUS_M = 21.0
"""Distance from a junction's centre to the ends of its lanes (the stop lines)."""
CROSSWALK_OFFSET_M = 17.0
"""Distance from a junction's centre to the middle of a crosswalk."""
CROSSWALK_WIDTH_M = 3.6
VERGE_WIDTH_M = 2.6
"""Strip between kerb and pavement: grass and trees, or a parking bay."""
PAVEMENT_WIDTH_M = 2.6
PAVEMENT_OFFSET_M = ROAD_HALF_WIDTH_M + VERGE_WIDTH_M + PAVEMENT_WIDTH_M / 2.0

TURNS = ("left", "straight", "right")


@dataclass(frozen=True)
class Location:
    """One of the four places NAVSIM knows: its UTM zone and the town's origin in it (metres)."""

    name: str
    epsg: int
    origin: tuple[float, float]


LOCATIONS = (
    Location("us-nv-las-vegas-strip", 32611, (664000.0, 3996000.0)),
    Location("us-ma-boston", 32619, (328000.0, 4690000.0)),
    Location("us-pa-pittsburgh-hazelwood", 32617, (587000.0, 4475000.0)),
    Location("sg-one-north", 32648, (365000.0, 143000.0)),
)


@dataclass(frozen=True, eq=False)
class Lane:
    """A lane of a road; ``index`` 0 is the inner lane. ``left`` and ``right`` are its boundaries ``[N, 2]``."""

    id: int
    roadblock: int
    index: int
    line: Polyline
    left: FloatArray
    right: FloatArray
    start_node: int
    end_node: int
    end_arm: int
    speed_limit: float

    @cached_property
    def polygon(self) -> Polygon:
        """The lane's area."""
        return Polygon(np.concatenate([self.left, self.right[::-1]]))


@dataclass(frozen=True, eq=False)
class Connector:
    """The way of one lane across a junction.

    ``signal_group`` is 0 or 1 (None: no lights); ``exit_crosswalk`` is the crosswalk of the arm it leaves by.
    """

    id: int
    roadblock: int
    node: int
    from_lane: int
    to_lane: int
    from_arm: int
    to_arm: int
    turn: str
    line: Polyline
    left: FloatArray
    right: FloatArray
    signal_group: int | None
    speed_limit: float

    @cached_property
    def polygon(self) -> Polygon:
        """The connector's area."""
        return Polygon(np.concatenate([self.left, self.right[::-1]]))


@dataclass(frozen=True, eq=False)
class Roadblock:
    """The lanes of one direction of a road, or (``is_connector``) the connectors between two roadblocks."""

    id: int
    members: tuple[int, ...]
    polygon: Polygon
    is_connector: bool
    node: int | None = None
    source: int | None = None
    target: int | None = None


@dataclass(frozen=True, eq=False)
class FootEdge:
    """A way for pedestrians between two foot nodes; ``crosswalk`` is (node, arm) where it crosses a road."""

    start: int
    end: int
    line: Polyline
    crosswalk: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Junction:
    """A junction: centre, direction (radians) of each arm by its number 0..3, and whether it has lights."""

    id: int
    centre: FloatArray
    arms: dict[int, float]
    signalised: bool
    phase_offset: float
    polygon: Polygon


@dataclass(eq=False)
class RoadNetwork:
    """The town of one location. Ids are unique over lanes, connectors, roadblocks and every other map object."""

    location: Location
    seed: int
    lanes: dict[int, Lane] = field(default_factory=dict)
    connectors: dict[int, Connector] = field(default_factory=dict)
    roadblocks: dict[int, Roadblock] = field(default_factory=dict)
    junctions: dict[int, Junction] = field(default_factory=dict)
    crosswalks: dict[tuple[int, int], Polygon] = field(default_factory=dict)
    stop_lines: dict[tuple[int, int], Polygon] = field(default_factory=dict)
    foot_nodes: list[FloatArray] = field(default_factory=list)
    foot_edges: list[FootEdge] = field(default_factory=list)
    road_lines: list[Polyline] = field(default_factory=list)
    parking_bays: list[Polyline] = field(default_factory=list)
    """Centre line of each bay, in the direction of the lane beside it."""

    def segment(self, segment_id: int) -> Lane | Connector:
        """A lane or a connector by id."""
        found = self.lanes.get(segment_id)
        return found if found is not None else self.connectors[segment_id]

    @cached_property
    def outgoing(self) -> dict[int, list[Connector]]:
        """Connectors that leave each lane."""
        table: dict[int, list[Connector]] = {lane: [] for lane in self.lanes}
        for connector in self.connectors.values():
            table[connector.from_lane].append(connector)
        return table

    def neighbour(self, lane: Lane) -> Lane:
        """The other lane of the same roadblock."""
        other = next(i for i in self.roadblocks[lane.roadblock].members if i != lane.id)
        return self.lanes[other]

    @cached_property
    def parking_polygons(self) -> list[Polygon]:
        """Areas of the parking bays: they touch the road, so that a car may drive in."""
        half = VERGE_WIDTH_M / 2.0
        return [
            Polygon(np.concatenate([line.offset(half + 0.2).points, line.offset(-half).points[::-1]]))
            for line in self.parking_bays
        ]

    @cached_property
    def drivable_area(self) -> Polygon:
        """Union of roads, junctions and parking bays (what NAVSIM's drivable-area compliance looks at)."""
        roads = [block.polygon for block in self.roadblocks.values() if not block.is_connector]
        return unary_union(roads + [node.polygon for node in self.junctions.values()] + self.parking_polygons)

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the drivable area."""
        return self.drivable_area.bounds
