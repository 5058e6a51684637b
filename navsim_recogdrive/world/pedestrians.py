"""Pedestrians: they stroll along the pavements and cross at crosswalks when the light lets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray
from navsim_recogdrive.world.road_network import FootEdge, RoadNetwork
from navsim_recogdrive.world.signals import Signals

PEDESTRIAN_SIZE_M = (0.6, 0.6, 1.75)


@dataclass(eq=False)
class Pedestrian:
    """A walker on a foot edge at arc length ``s``; ``forward`` is false when the edge is walked from end to start."""

    track: int
    edge: int
    s: float
    forward: bool
    pace: float
    lateral: float
    colour: tuple[int, int, int]
    waiting_for: int | None = None
    """The crosswalk edge whose light the pedestrian waits for."""

    def pose(self, network: RoadNetwork) -> FloatArray:
        """Pose ``[3]`` of the body."""
        line = network.foot_edges[self.edge].line
        x, y, heading = line.pose_at(self.s)
        side = self.lateral if self.forward else -self.lateral
        return np.array([x - side * np.sin(heading), y + side * np.cos(heading), heading + (not self.forward) * np.pi])


class Crowd:
    """All pedestrians of a town.

    ``may_step`` (node, arm) says whether the road is clear enough to step on a crosswalk.
    """

    def __init__(self, network: RoadNetwork, rng: np.random.Generator, people: list[Pedestrian]) -> None:
        self._network = network
        self._rng = rng
        self.people = people
        self._on_crosswalk: dict[tuple[int, int], list[tuple[float, float]]] = {}
        self._edges_at: dict[int, list[int]] = {}
        for number, edge in enumerate(network.foot_edges):
            self._edges_at.setdefault(edge.start, []).append(number)
            self._edges_at.setdefault(edge.end, []).append(number)

    def crossing(self, node: int, arm: int) -> list[tuple[float, float]]:
        """(arc length, signed pace) of everybody on a crosswalk."""
        return self._on_crosswalk.get((node, arm), [])

    def step(self, time: float, dt: float, signals: Signals, may_step: Callable[[int, int], bool]) -> None:
        """Move everybody by ``dt`` seconds."""
        for person in self.people:
            if person.waiting_for is not None:
                target = self._network.foot_edges[person.waiting_for]
                assert target.crosswalk is not None
                node, arm = target.crosswalk
                if signals.walk(self._network.junctions[node], arm, time) and may_step(node, arm):
                    self._enter(person, person.waiting_for, self._end_node(person))
                continue
            edge = self._network.foot_edges[person.edge]
            person.s += person.pace * dt if person.forward else -person.pace * dt
            if 0.0 < person.s < edge.line.length:
                continue
            here = self._end_node(person)
            choices = [number for number in self._edges_at[here] if number != person.edge]
            weights = np.array([3.0 if self._network.foot_edges[n].crosswalk else 1.0 for n in choices])
            chosen = int(self._rng.choice(choices, p=weights / weights.sum()))
            if self._network.foot_edges[chosen].crosswalk is None:
                self._enter(person, chosen, here)
            else:
                person.s = float(np.clip(person.s, 0.0, edge.line.length))
                person.waiting_for = chosen
        self._on_crosswalk = {}
        for person in self.people:
            crosswalk = self._network.foot_edges[person.edge].crosswalk
            if crosswalk is not None:
                pace = person.pace if person.forward else -person.pace
                self._on_crosswalk.setdefault(crosswalk, []).append((person.s, pace))

    def _end_node(self, person: Pedestrian) -> int:
        edge = self._network.foot_edges[person.edge]
        return edge.end if person.forward else edge.start

    def _enter(self, person: Pedestrian, number: int, here: int) -> None:
        edge = self._network.foot_edges[number]
        person.edge, person.waiting_for = number, None
        person.forward = edge.start == here
        person.s = 0.0 if person.forward else edge.line.length


_CLOTHES = ((180, 40, 40), (40, 70, 160), (230, 200, 60), (40, 120, 70), (240, 240, 240), (200, 90, 160), (50, 50, 60))


def spawn_crowd(network: RoadNetwork, rng: np.random.Generator, count: int, near: FloatArray) -> list[Pedestrian]:
    """``count`` pedestrians, more of them close to the point ``near [2]``."""
    if count == 0:
        return []

    def distance(edge: FootEdge) -> float:
        return float(np.hypot(*(edge.line.pose(edge.line.length / 2.0)[:2] - near)))

    paved = [number for number, edge in enumerate(network.foot_edges) if edge.crosswalk is None]
    weights = np.exp([-distance(network.foot_edges[number]) / 70.0 for number in paved])
    chosen = rng.choice(paved, size=count, p=weights / weights.sum())
    return [
        Pedestrian(
            track,
            int(number),
            float(rng.uniform(0.0, network.foot_edges[int(number)].line.length)),
            bool(rng.random() < 0.5),
            float(rng.uniform(1.3, 1.9)),
            float(rng.uniform(-0.9, 0.9)),
            _CLOTHES[int(rng.integers(len(_CLOTHES)))],
        )
        for track, number in enumerate(chosen)
    ]
