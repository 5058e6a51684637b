"""The moving town: vehicles, pedestrians and lights, stepped at 10 Hz."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray, Polyline
from navsim_recogdrive.world.pedestrians import Crowd, spawn_crowd
from navsim_recogdrive.world.right_of_way import RightOfWay
from navsim_recogdrive.world.road_network import Connector, Lane, RoadNetwork
from navsim_recogdrive.world.signals import Signals
from navsim_recogdrive.world.vehicles import (
    HARDEST_BRAKING,
    Occupancy,
    Parked,
    Vehicle,
    idm_acceleration,
    random_body,
    random_vehicle,
    stopping_acceleration,
)

STEP_S = 0.1
LOOKAHEAD_M = 75.0
STOP_MARGIN_M = 1.2
"""A stopped nose stays this far before the stop line."""
MIN_CURVE_SPEED = 3.0
CURVE_BRAKING = 1.7
"""Deceleration (m/s^2) with which drivers slow down before a curve."""


class Town:
    """State of everything that moves in a town.

    ``vehicles`` may hold the ego vehicle too: it obeys the same rules (see :mod:`.expert`).
    """

    def __init__(self, network: RoadNetwork, rules: RightOfWay, rng: np.random.Generator) -> None:
        self.network = network
        self.rules = rules
        self.rng = rng
        self.time = 0.0
        self.signals = Signals(float(rng.uniform(0.0, 35.0)))
        self.vehicles: list[Vehicle] = []
        self.parked: list[Parked] = []
        self.crowd = Crowd(network, rng, [])
        self._speed_profiles: dict[tuple[int, float, float], list[float]] = {}

    def add_leader(self, follower: Vehicle) -> None:
        """Put a slower vehicle ahead of ``follower`` on its lane."""
        s = follower.s + follower.nose + float(self.rng.uniform(12.0, 24.0))
        leader = random_vehicle(self.rng, len(self.vehicles), [follower.route[0]], s)
        leader.style = replace(leader.style, speed_factor=float(self.rng.uniform(0.5, 0.85)))
        self.vehicles.append(leader)

    def populate(self, near: FloatArray, vehicles: int, pedestrians: int, clear_lane: int | None = None) -> None:
        """Fill the town with traffic, denser round the point ``near [2]``; nobody starts on ``clear_lane``."""
        lanes = list(self.network.lanes.values())
        middle = np.array([lane.line.pose(lane.line.length / 2.0)[:2] for lane in lanes])
        weights = np.exp(-np.hypot(*(middle - near).T) / 110.0)
        taken: list[tuple[int, float]] = [(v.route[0], v.s) for v in self.vehicles]
        for _ in range(20 * vehicles):
            if len(taken) >= vehicles + 1:
                break
            lane = lanes[int(self.rng.choice(len(lanes), p=weights / weights.sum()))]
            s = float(self.rng.uniform(3.0, lane.line.length - 10.0))
            if lane.id != clear_lane and all(lane.id != other or abs(s - at) > 13.0 for other, at in taken):
                taken.append((lane.id, s))
                self.vehicles.append(random_vehicle(self.rng, len(self.vehicles), [lane.id], s))
        self.crowd = Crowd(self.network, self.rng, spawn_crowd(self.network, self.rng, pedestrians, near))
        for bay in self.network.parking_bays:
            s = 3.5
            while s < bay.length - 3.0:
                if self.rng.random() < 0.6:
                    length, width, height, paint = random_body(self.rng)
                    if length < 5.2:
                        pose = bay.pose(s)
                        self.parked.append(Parked(len(self.parked), pose, length, width, height, paint))
                s += 6.6

    def occupancy(self) -> Occupancy:
        """Where all vehicles are now."""
        occupancy = Occupancy()
        for vehicle in self.vehicles:
            here = vehicle.route[0]
            change = vehicle.lane_change
            if change is not None:
                weight = change.weight_at(vehicle.s)
                if weight < 0.95:
                    occupancy.add(change.source, float(np.interp(vehicle.s, change.line.s, change.source_s)), vehicle)
                occupancy.add(change.target, float(np.interp(vehicle.s, change.line.s, change.target_s)), vehicle)
            else:
                occupancy.add(here, vehicle.s, vehicle)
            length = self.line(vehicle).length
            if vehicle.previous is not None and vehicle.s < vehicle.tail:
                occupancy.add(vehicle.previous, vehicle.s + self.network.segment(vehicle.previous).line.length, vehicle)
            if len(vehicle.route) > 1 and vehicle.s + vehicle.nose > length:
                occupancy.add(vehicle.route[1], vehicle.s - length, vehicle)
        return occupancy

    def line(self, vehicle: Vehicle) -> Polyline:
        """The line a vehicle's rear axle is on."""
        if vehicle.lane_change is not None:
            return vehicle.lane_change.line
        return self.network.segment(vehicle.route[0]).line

    def pose(self, vehicle: Vehicle) -> FloatArray:
        """Pose ``[3]`` of the rear axle."""
        return self.line(vehicle).pose_at(vehicle.s)

    def step(self) -> None:
        """Advance by :data:`STEP_S`."""
        occupancy = self.occupancy()
        for vehicle in self.vehicles:
            self.extend_route(vehicle)
        wishes = [self.acceleration(vehicle, occupancy) for vehicle in self.vehicles]
        for vehicle, wish in zip(self.vehicles, wishes, strict=True):
            self._move(vehicle, wish)
        self.crowd.step(self.time, STEP_S, self.signals, lambda node, arm: self.rules.road_clear(node, arm, occupancy))
        self.time += STEP_S

    def extend_route(self, vehicle: Vehicle, segments: int = 4) -> None:
        """Let a vehicle that does not plan for itself choose its turns at random."""
        while len(vehicle.route) < segments:
            last = self.network.segment(vehicle.route[-1])
            if isinstance(last, Connector):
                vehicle.route.append(last.to_lane)
            else:
                choices = self.network.outgoing[last.id]
                vehicle.route.append(choices[int(self.rng.integers(len(choices)))].id)

    def acceleration(self, driver: Vehicle, occupancy: Occupancy) -> float:
        """What ``driver`` wants to do now (m/s^2): the IDM for the most pressing obstacle."""
        style = driver.style
        wish = self._wished_speed(driver)
        gap, speed = self._leader(driver, occupancy)
        accelerations = [idm_acceleration(style, driver.speed, wish, gap, driver.speed - speed)]
        accelerations += [stopping_acceleration(style, driver.speed, stop) for stop in self._stops(driver, occupancy)]
        return min(accelerations)

    def _stops(self, driver: Vehicle, occupancy: Occupancy) -> list[float]:
        """Gaps (m) from the nose to everything ``driver`` has to stop for on the segments ahead."""
        stops: list[float] = []
        offset = -driver.s
        for depth, number in enumerate(driver.route[:3]):
            segment = self.network.segment(number)
            length = self.line(driver).length if depth == 0 else segment.line.length
            if isinstance(segment, Connector):
                to_line = offset - driver.nose - STOP_MARGIN_M
                if depth > 0 and to_line > -STOP_MARGIN_M:
                    if to_line > 55.0:
                        break
                    if not self.rules.may_enter(driver, segment, to_line, self.time, self.signals, occupancy):
                        stops.append(to_line)
                        break
                    driver.cleared = segment.id
                stops.append(self.rules.obstacle_on_foot(driver, segment, -offset, self.crowd))
                stops.append(self.rules.obstacle_inside(driver, segment, -offset, occupancy))
            offset += length
        return [stop for stop in stops if stop < LOOKAHEAD_M]

    def _leader(self, driver: Vehicle, occupancy: Occupancy) -> tuple[float, float]:
        """(gap in metres, speed) of the nearest vehicle ahead on the route; (inf, 0) if none is near."""
        best = (np.inf, 0.0)
        offset = -driver.s
        for depth, number in enumerate(driver.route):
            segment = self.network.segment(number)
            candidates = [(other, 0.0) for other in occupancy.on(number)]
            if depth == 0 and driver.lane_change is not None:
                change = driver.lane_change
                if change.weight_at(driver.s) < 0.8:
                    shift = driver.s - float(np.interp(driver.s, change.line.s, change.source_s))
                    candidates += [(other, shift) for other in occupancy.on(change.source)]
            if depth > 0 and isinstance(segment, Connector):
                # Somebody who has just turned off still has their tail in the way.
                for sibling in self.network.outgoing[segment.from_lane]:
                    if sibling.id != segment.id:
                        candidates += [(other, 0.0) for other in occupancy.on(sibling.id) if other.tail < 5.0]
            for other, shift in candidates:
                if other.vehicle is driver or (depth == 0 and other.s + shift <= driver.s):
                    continue
                gap = offset + other.tail + shift - driver.nose
                if gap < best[0]:
                    best = (gap, other.vehicle.speed)
            offset += self.line(driver).length if depth == 0 else segment.line.length
            if offset - driver.nose > LOOKAHEAD_M or best[0] < np.inf:
                break
        return best

    def _wished_speed(self, driver: Vehicle) -> float:
        """Speed the limits and the curves ahead allow (m/s)."""
        style = driver.style
        allowed = np.inf
        offset = -driver.s
        for depth, number in enumerate(driver.route[:3]):
            profile = self._speed_profile(number, style.speed_factor, style.lateral_acceleration)
            segment = self.network.segment(number)
            if depth == 0:
                here = profile[segment.line.index_at(driver.s)[0]]
            else:
                here = (profile[0] ** 2 + 2.0 * CURVE_BRAKING * max(offset, 0.0)) ** 0.5
            allowed = min(allowed, here)
            offset += segment.line.length
            if offset > LOOKAHEAD_M:
                break
        return allowed

    def _speed_profile(self, number: int, factor: float, lateral: float) -> list[float]:
        """Highest speed at every sample of a segment from which its curves can still be taken gently."""
        key = (number, factor, lateral)
        profile = self._speed_profiles.get(key)
        if profile is None:
            segment: Lane | Connector = self.network.segment(number)
            curve = np.sqrt(lateral / np.maximum(np.abs(segment.line.curvature), 1e-6))
            profile = np.minimum(np.maximum(curve, MIN_CURVE_SPEED), segment.speed_limit * factor).tolist()
            steps = np.diff(segment.line.s).tolist()
            for i in range(len(steps) - 1, -1, -1):
                profile[i] = min(profile[i], (profile[i + 1] ** 2 + 2.0 * CURVE_BRAKING * steps[i]) ** 0.5)
            self._speed_profiles[key] = profile
        return profile

    def _move(self, vehicle: Vehicle, wish: float) -> None:
        jerk = vehicle.style.jerk
        if jerk is not None:
            # Emergencies may be abrupt; everything else is smooth.
            bound = jerk if wish > -3.2 else 4.0 * jerk
            present = vehicle.acceleration
            wish = min(max(wish, present - bound * STEP_S), present + jerk * STEP_S)
        wish = max(wish, -HARDEST_BRAKING)
        speed = vehicle.speed + wish * STEP_S
        if speed < 0.04 and wish <= 0.1:
            speed = 0.0
        speed = max(speed, 0.0)
        vehicle.acceleration = (speed - vehicle.speed) / STEP_S
        vehicle.s += 0.5 * (vehicle.speed + speed) * STEP_S
        vehicle.speed = speed
        length = self.line(vehicle).length
        if vehicle.s >= length and len(vehicle.route) > 1:
            vehicle.s -= length
            vehicle.previous = vehicle.route.pop(0)
            vehicle.lane_change = None
            vehicle.cleared = None
