"""Who may enter a junction, and what a driver must stop for inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray
from navsim_recogdrive.world.pedestrians import Crowd
from navsim_recogdrive.world.road_network import (
    CROSSWALK_WIDTH_M,
    Connector,
    RoadNetwork,
)
from navsim_recogdrive.world.signals import Signals
from navsim_recogdrive.world.vehicles import Occupancy, Vehicle

CLEARANCE_M = 2.7
"""Two centre lines closer than this cannot be used side by side."""
GAP_TIME_S = 6.5
"""A left turner lets everybody pass who reaches the junction within this time."""
COMFORTABLE_STOP = 2.7
"""At amber a driver goes on only if stopping needs more than this (m/s^2)."""


@dataclass(frozen=True)
class Conflict:
    """Connector ``other`` crosses mine: from ``mine_in`` on my line, over ``other_in``..``other_out`` on its."""

    other: int
    mine_in: float
    mine_out: float
    other_in: float
    other_out: float
    yields: bool
    """I turn left across it, so I give way to who approaches."""


@dataclass(frozen=True)
class FootCrossing:
    """A crosswalk on a connector: arc lengths where it begins and ends, and where along the crosswalk we cross."""

    node: int
    arm: int
    begins: float
    ends: float
    along: float


class RightOfWay:
    """The rules of the road of one town. Everything geometric is worked out once."""

    def __init__(self, network: RoadNetwork) -> None:
        self._network = network
        self._incoming_connectors: dict[int, list[int]] = {}
        self._conflicts: dict[int, list[Conflict]] = {number: [] for number in network.connectors}
        self._crossings: dict[int, list[FootCrossing]] = {}
        by_node: dict[int, list[Connector]] = {}
        for connector in network.connectors.values():
            by_node.setdefault(connector.node, []).append(connector)
            self._incoming_connectors.setdefault(connector.to_lane, []).append(connector.id)
            self._crossings[connector.id] = self._foot_crossings(connector)
        for connectors in by_node.values():
            for mine in connectors:
                for other in connectors:
                    if mine.id != other.id and mine.from_lane != other.from_lane:
                        self._add_conflict(mine, other)
        self._crossed_by: dict[tuple[int, int], list[tuple[int, FootCrossing]]] = {}
        for number, crossings in self._crossings.items():
            for crossing in crossings:
                self._crossed_by.setdefault((crossing.node, crossing.arm), []).append((number, crossing))

    def _add_conflict(self, mine: Connector, other: Connector) -> None:
        distance = np.linalg.norm(mine.line.points[:, None] - other.line.points[None], axis=-1)
        close = distance < CLEARANCE_M
        if not close.any():
            return
        mine_s, other_s = mine.line.s[close.any(axis=1)], other.line.s[close.any(axis=0)]
        yields = mine.turn == "left" and other.turn != "left" and mine.signal_group == other.signal_group
        self._conflicts[mine.id].append(
            Conflict(other.id, float(mine_s[0]), float(mine_s[-1]), float(other_s[0]), float(other_s[-1]), yields)
        )

    def _foot_crossings(self, connector: Connector) -> list[FootCrossing]:
        found = []
        for arm in (connector.from_arm, connector.to_arm):
            edge = next((e for e in self._network.foot_edges if e.crosswalk == (connector.node, arm)), None)
            if edge is None:
                continue
            distance: FloatArray = np.linalg.norm(connector.line.points[:, None] - edge.line.points[None], axis=-1)
            at, along = np.unravel_index(int(distance.argmin()), distance.shape)
            middle = float(connector.line.s[at])
            half = CROSSWALK_WIDTH_M / 2.0
            found.append(FootCrossing(connector.node, arm, middle - half, middle + half, float(edge.line.s[along])))
        return found

    def incoming(self, lane: int) -> list[int]:
        """Connectors that lead into a lane."""
        return self._incoming_connectors.get(lane, [])

    def may_enter(
        self,
        driver: Vehicle,
        connector: Connector,
        to_line: float,
        time: float,
        signals: Signals,
        occupancy: Occupancy,
    ) -> bool:
        """Whether ``driver``, ``to_line`` metres before the stop line, may go on into ``connector``."""
        colour = signals.connector_colour(connector, self._network.junctions[connector.node], time)
        needed = driver.speed**2 / (2.0 * max(to_line, 0.05))
        if colour == "red":
            # Let in at amber and too late to stop: the clearance time is there for this.
            return driver.cleared == connector.id and needed > COMFORTABLE_STOP
        if colour == "amber" and needed < COMFORTABLE_STOP:
            return False
        if driver.cleared == connector.id and needed > COMFORTABLE_STOP:
            return True
        return self._room_behind(driver, connector, occupancy) and not self._must_yield(
            driver, connector, time, signals, occupancy
        )

    def _room_behind(self, driver: Vehicle, connector: Connector, occupancy: Occupancy) -> bool:
        room = np.inf
        for other in occupancy.on(connector.to_lane):
            if other.vehicle is not driver and other.vehicle.speed < 3.0:
                room = min(room, other.tail)
        for number in self.incoming(connector.to_lane):
            for other in occupancy.on(number):
                if other.vehicle is not driver and other.s > 0.0:
                    room -= other.vehicle.length + 3.0
        return room > driver.length + 2.0

    def _must_yield(
        self, driver: Vehicle, connector: Connector, time: float, signals: Signals, occupancy: Occupancy
    ) -> bool:
        for conflict in self._conflicts[connector.id]:
            other = self._network.connectors[conflict.other]
            for occupant in occupancy.on(other.id):
                if occupant.vehicle is not driver and occupant.nose > 0.0 and occupant.tail < conflict.other_out:
                    return True
            if not conflict.yields:
                continue
            if signals.connector_colour(other, self._network.junctions[other.node], time) == "red":
                continue
            lane_length = self._network.lanes[other.from_lane].line.length
            for occupant in occupancy.on(other.from_lane):
                route = occupant.vehicle.route
                if occupant.vehicle is driver or len(route) < 2 or route[1] != other.id:
                    continue
                distance = lane_length - occupant.nose
                if distance < max(9.0, GAP_TIME_S * max(occupant.vehicle.speed, 2.5)):
                    return True
        return False

    def obstacle_inside(self, driver: Vehicle, connector: Connector, s: float, occupancy: Occupancy) -> float:
        """Gap (m) to the first conflict zone ahead that somebody else is in; ``s``: the driver's rear axle."""
        nearest = np.inf
        for conflict in self._conflicts[connector.id]:
            gap = conflict.mine_in - (s + driver.nose)
            if gap < -0.5:
                continue
            for occupant in occupancy.on(conflict.other):
                in_zone = occupant.nose > conflict.other_in - 1.0 and occupant.tail < conflict.other_out
                if occupant.vehicle is not driver and in_zone:
                    nearest = min(nearest, gap)
        return nearest

    def obstacle_on_foot(self, driver: Vehicle, connector: Connector, s: float, crowd: Crowd) -> float:
        """Gap (m) to the first crosswalk ahead with somebody in the way or about to be."""
        nearest = np.inf
        for crossing in self._crossings[connector.id]:
            gap = crossing.begins - 0.8 - (s + driver.nose)
            if gap < -1.5:
                continue
            for position, pace in crowd.crossing(crossing.node, crossing.arm):
                ahead = (crossing.along - position) * np.sign(pace)
                if -2.0 < ahead < 2.2 + 2.6 * abs(pace):
                    nearest = min(nearest, gap)
        return nearest

    def road_clear(self, node: int, arm: int, occupancy: Occupancy) -> bool:
        """Whether a pedestrian may step on a crosswalk: nobody on it who drives, nobody too fast to stop."""
        for number, crossing in self._crossed_by.get((node, arm), []):
            for occupant in occupancy.on(number):
                stopping = max(4.0, occupant.vehicle.speed**2 / 4.0 + 3.0)
                moving = occupant.vehicle.speed > 0.3
                if occupant.tail < crossing.ends and occupant.nose > crossing.begins - (stopping if moving else 0.0):
                    return False
        return True
