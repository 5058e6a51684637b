"""The ego vehicle's driver: plans its turns, changes lanes for them, and drives smoothly by the town's rules."""

from __future__ import annotations

import numpy as np

from navsim_recogdrive.world.geometry import Polyline, smoothstep, wrap_angle
from navsim_recogdrive.world.road_network import TURNS, Connector, Lane
from navsim_recogdrive.world.traffic import Town
from navsim_recogdrive.world.vehicles import (
    EGO_HEIGHT_M,
    EGO_LENGTH_M,
    EGO_REAR_AXLE_TO_CENTRE_M,
    EGO_WIDTH_M,
    DriverStyle,
    LaneChange,
    Occupancy,
    Vehicle,
)

COMMAND_DISTANCE_M = 25.0
COMMAND_TURN_RAD = 0.45
LANE_CHANGE_S = 3.8
LANE_CHANGE_M = (22.0, 44.0)


class Expert:
    """Drives one vehicle of a town. Create it before the first step, call :meth:`plan` before every step.

    Its turns are wished for in the cyclic order of ``TURNS`` from number ``first_turn`` on, so that a world has about
    as many of each; where a turn does not exist, one that does is drawn at random.
    """

    def __init__(self, town: Town, lane: Lane, s: float, rng: np.random.Generator, first_turn: int) -> None:
        self._town = town
        self._rng = rng
        style = DriverStyle(
            speed_factor=float(rng.uniform(0.88, 1.0)),
            headway=float(rng.uniform(1.1, 1.5)),
            standstill_gap=3.0,
            acceleration=float(rng.uniform(1.6, 2.0)),
            braking=2.2,
            lateral_acceleration=float(rng.uniform(1.5, 2.0)),
            jerk=2.8,
        )
        self.vehicle = Vehicle(
            track=-1,
            length=EGO_LENGTH_M,
            width=EGO_WIDTH_M,
            height=EGO_HEIGHT_M,
            colour=(90, 90, 90),
            nose=EGO_REAR_AXLE_TO_CENTRE_M + EGO_LENGTH_M / 2.0,
            tail=EGO_LENGTH_M / 2.0 - EGO_REAR_AXLE_TO_CENTRE_M,
            style=style,
            route=[lane.id],
            s=s,
            speed=float(rng.uniform(3.0, 8.0)),
        )
        self._wanted_turn: str | None = None
        self._wish = first_turn

    def plan(self) -> None:
        """Extend the route, and start a lane change where the next turn needs one and the road is free."""
        vehicle = self.vehicle
        self._extend_route()
        here = self._town.network.segment(vehicle.route[0])
        if not isinstance(here, Lane) or vehicle.lane_change is not None or self._wanted_turn is None:
            return
        length = float(np.clip(LANE_CHANGE_S * vehicle.speed, *LANE_CHANGE_M))
        if vehicle.s + length > here.line.length - 12.0:
            self._wanted_turn = None
        elif vehicle.s > 3.0 and vehicle.speed > 3.0:
            other = self._town.network.neighbour(here)
            if self._free(other, self._town.occupancy()):
                vehicle.lane_change = _lane_change(here, other, vehicle.s, length)
                vehicle.route = [other.id]
                vehicle.s = float(np.interp(vehicle.s, here.line.s, vehicle.lane_change.line.s))
                self._extend_route(turn=self._wanted_turn)
                self._wanted_turn = None

    def _extend_route(self, turn: str | None = None) -> None:
        """Plan at least three junctions ahead.

        A turn that only the neighbouring lane allows is kept as a wish: until the lane change has begun, the route
        goes on from the present lane, so there always is one.
        """
        network = self._town.network
        route = self.vehicle.route
        while len(route) < 7:
            last = network.segment(route[-1])
            if isinstance(last, Connector):
                route.append(last.to_lane)
                continue
            options = network.outgoing[last.id]
            if turn is not None:
                options = [option for option in options if option.turn == turn] or options
            elif len(route) == 1:
                elsewhere = [option.turn for option in network.outgoing[network.neighbour(last).id]]
                wish = TURNS[self._wish % len(TURNS)]
                possible = sorted({option.turn for option in options} | set(elsewhere))
                if wish in possible:
                    self._wish += 1
                else:
                    wish = str(self._rng.choice(possible))
                if all(option.turn != wish for option in options):
                    self._wanted_turn = wish
                else:
                    options = [option for option in options if option.turn == wish]
            route.append(options[int(self._rng.integers(len(options)))].id)
            turn = None

    def reconsider(self) -> None:
        """On entering a lane: choose the next turn anew among those of both lanes."""
        self._wanted_turn = None
        if isinstance(self._town.network.segment(self.vehicle.route[0]), Lane):
            self.vehicle.route = self.vehicle.route[:1]

    def _free(self, lane: Lane, occupancy: Occupancy) -> bool:
        me = self.vehicle
        front, back = me.s + me.nose, me.s - me.tail
        for other in occupancy.on(lane.id):
            if other.vehicle is me:
                continue
            if other.s > me.s and other.tail - front < max(7.0, 1.0 * me.speed):
                return False
            if other.s <= me.s and back - other.nose < max(9.0, 1.6 * other.vehicle.speed):
                return False
        for number in self._town.rules.incoming(lane.id):
            length = self._town.network.connectors[number].line.length
            for other in occupancy.on(number):
                if back + length - other.nose < max(9.0, 1.6 * other.vehicle.speed):
                    return False
        return True

    def command(self) -> str:
        """Driving command: how the route bends over the next :data:`COMMAND_DISTANCE_M` metres.

        A left or right is a change of heading that only junctions and street corners make, not a curved road.
        """
        vehicle = self.vehicle
        heading = float(self._town.pose(vehicle)[2])
        remaining = vehicle.s + COMMAND_DISTANCE_M
        for depth, number in enumerate(vehicle.route):
            line = self._town.line(vehicle) if depth == 0 else self._town.network.segment(number).line
            if remaining <= line.length:
                change = float(wrap_angle(float(line.pose(remaining)[2]) - heading))
                if abs(change) < COMMAND_TURN_RAD:
                    return "straight"
                return "left" if change > 0 else "right"
            remaining -= line.length
        return "unknown"

    def roadblocks(self) -> list[int]:
        """Roadblock ids of the route, the current one first, each once."""
        ids = [self._town.network.segment(number).roadblock for number in self.vehicle.route]
        return list(dict.fromkeys(ids))


def _lane_change(source: Lane, target: Lane, s: float, length: float) -> LaneChange:
    """A smooth way from ``source`` at arc length ``s`` to ``target`` over ``length`` metres.

    Both lanes are offsets of one road axis, so their samples lie side by side.
    """
    weight = smoothstep((source.line.s - s) / length)
    points = (1.0 - weight)[:, None] * source.line.points + weight[:, None] * target.line.points
    line = Polyline.from_points(points)
    # from_points cannot see beyond the ends; the lanes know their directions there.
    heading = line.heading + 2.0 * np.pi * np.round((source.line.heading[0] - line.heading[0]) / (2.0 * np.pi))
    heading[0], heading[-1] = source.line.heading[0], target.line.heading[-1]
    return LaneChange(source.id, target.id, Polyline(points, heading), weight, source.line.s, target.line.s)
