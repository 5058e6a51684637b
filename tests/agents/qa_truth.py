"""Drives of the synthetic town of which everything is known: 4 s windows with the truth about path and speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from navsim_recogdrive.world.expert import Expert
from navsim_recogdrive.world.right_of_way import RightOfWay
from navsim_recogdrive.world.road_network import LOCATIONS, TURNS, RoadNetwork
from navsim_recogdrive.world.simulate import STEPS_PER_FRAME, network_of
from navsim_recogdrive.world.traffic import STEP_S, Town
from navsim_recogdrive.world.vehicles import Vehicle

PAST, FUTURE = 3, 8


@dataclass(frozen=True)
class State:
    """A vehicle at one time: pose of its centre, segment, speed, and how far its lane change has come."""

    pose: np.ndarray
    segment: int
    speed: float
    change: float | None
    change_left: bool


@dataclass(frozen=True)
class Window:
    """1.5 s of past and 4 s of future; words are ``None`` where the truth is between two of them."""

    poses: np.ndarray
    path: str | None
    speed: str | None


@dataclass(frozen=True)
class TownDrive:
    """States of all vehicles at 2 Hz."""

    location: str
    network: RoadNetwork
    frames: list[list[State]]

    def windows(self) -> Iterator[Window]:
        """Windows of the expert at every frame, of the others at every sixth."""
        for start in range(len(self.frames) - PAST - FUTURE):
            for vehicle in range(len(self.frames[0])) if start % 6 == 0 else (0,):
                states = [frame[vehicle] for frame in self.frames[start : start + PAST + FUTURE + 1]]
                yield Window(
                    np.array([one.pose for one in states]), self._path(states[PAST:]), _speed(states[PAST - 1 :])
                )

    def _path(self, states: Sequence[State]) -> str | None:
        connectors = self.network.connectors
        turns = {connectors[one.segment].turn for one in states if one.segment in connectors}
        changes = [one.change for one in states if one.change is not None]
        if changes:
            done = (1.0 if states[-1].change is None else changes[-1]) - (
                0.0 if states[0].change is None else changes[0]
            )
            left = next(one.change_left for one in states if one.change is not None)
            return f"lane change {'left' if left else 'right'}" if done > 0.6 and not turns else None
        if turns <= {"straight"}:
            return "straight"
        turned = sum(
            (after.pose[2] - before.pose[2] + np.pi) % (2 * np.pi) - np.pi
            for before, after in pairwise(states)
            if before.segment in connectors and after.segment in connectors
        )
        return f"turn {'left' if turned > 0 else 'right'}" if abs(turned) > 0.6 else None


def _speed(states: Sequence[State]) -> str | None:
    now, end = states[1].speed, states[-1].speed
    if max(one.speed for one in states) < 0.05:
        return "still"
    if now > 1 and end < 0.2:
        return "stop"
    if end > max(now + 2, 1.3 * now):
        return "accelerate"
    if 1 < end < min(now - 2, 0.7 * now):
        return "decelerate"
    return "keep" if now > 1 and abs(end - now) < 0.3 else None


def drives(numbers: Sequence[int], seconds: float, seed: int = 0) -> Iterator[TownDrive]:
    """Simulate towns of the world with ``seed``, a fresh one for each number."""
    for number in numbers:
        location = number % len(LOCATIONS)
        network = network_of(location, seed)
        rng = np.random.default_rng([seed, 991, number])
        town = Town(network, RightOfWay(network), rng)
        lanes = list(network.lanes.values())
        expert = Expert(town, lanes[int(rng.integers(len(lanes)))], 8.0, rng, number % len(TURNS))
        town.vehicles.append(expert.vehicle)
        town.populate(town.pose(expert.vehicle)[:2], 14, 4)
        frames = []
        segment = expert.vehicle.route[0]
        for step in range(round(seconds / STEP_S)):
            if expert.vehicle.route[0] != segment and expert.vehicle.lane_change is None:
                expert.reconsider()
            expert.plan()
            segment = expert.vehicle.route[0]
            if step % STEPS_PER_FRAME == 0:
                frames.append([_state(town, vehicle) for vehicle in town.vehicles])
            town.step()
        yield TownDrive(LOCATIONS[location].name, network, frames)


def _state(town: Town, vehicle: Vehicle) -> State:
    pose = np.array(town.pose(vehicle))
    pose[:2] += vehicle.centre_ahead * np.array([np.cos(pose[2]), np.sin(pose[2])])
    change = vehicle.lane_change
    if change is None:
        return State(pose, vehicle.route[0], vehicle.speed, None, False)
    source, target = (town.network.lanes[number].line.pose_at(0.0) for number in (change.source, change.target))
    left = (target - source)[:2] @ (-np.sin(source[2]), np.cos(source[2])) > 0
    return State(pose, vehicle.route[0], vehicle.speed, change.weight_at(vehicle.s), bool(left))
