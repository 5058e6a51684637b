"""Vehicles on lanes, and the intelligent driver model (IDM; Treiber, Hennecke and Helbing, 2000) that moves them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from navsim_recogdrive.world.geometry import FloatArray, Polyline

EGO_LENGTH_M = 5.176
EGO_WIDTH_M = 2.297
EGO_HEIGHT_M = 1.777
EGO_REAR_AXLE_TO_CENTRE_M = 1.461
"""nuPlan's Chrysler Pacifica, the car NAVSIM's simulator and scorer assume."""

HARDEST_BRAKING = 6.0


@dataclass(frozen=True)
class DriverStyle:
    """IDM parameters: share of the speed limit, time headway (s), standstill gap (m), accelerations (m/s^2)."""

    speed_factor: float = 1.0
    headway: float = 1.4
    standstill_gap: float = 2.5
    acceleration: float = 1.6
    braking: float = 2.0
    lateral_acceleration: float = 1.9
    jerk: float | None = None
    """Bound on the change of acceleration in m/s^3; None: no bound."""


@dataclass(frozen=True, eq=False)
class LaneChange:
    """A way from one lane to its neighbour: ``weight`` is 0 on ``source``, 1 on ``target``, sample by sample."""

    source: int
    target: int
    line: Polyline
    weight: FloatArray
    source_s: FloatArray
    target_s: FloatArray

    def weight_at(self, s: float) -> float:
        """How far the change has come, 0..1, at arc length ``s`` of its line."""
        return float(np.interp(s, self.line.s, self.weight))


@dataclass(eq=False)
class Vehicle:
    """A vehicle whose rear axle follows the centre lines of ``route`` (segment ids, the current one first).

    ``s`` is the rear axle's arc length on the current segment; ``nose`` and ``tail`` are the distances from the rear
    axle to the bumpers.
    """

    track: int
    length: float
    width: float
    height: float
    colour: tuple[int, int, int]
    nose: float
    tail: float
    style: DriverStyle
    route: list[int]
    s: float
    speed: float
    acceleration: float = 0.0
    previous: int | None = None
    cleared: int | None = None
    """Connector this driver has been let into; kept while stopping is no longer comfortable."""
    lane_change: LaneChange | None = None

    @property
    def centre_ahead(self) -> float:
        """Distance from the rear axle to the box's centre."""
        return (self.nose - self.tail) / 2.0


@dataclass
class Parked:
    """A parked car: pose ``[3]`` of its centre."""

    track: int
    pose: FloatArray
    length: float
    width: float
    height: float
    colour: tuple[int, int, int]


@dataclass
class Occupant:
    """Where a vehicle is on one segment: rear axle, tail and nose as arc lengths (may lie off the segment's ends)."""

    s: float
    tail: float
    nose: float
    vehicle: Vehicle


@dataclass
class Occupancy:
    """Which vehicles are on which segment."""

    by_segment: dict[int, list[Occupant]] = field(default_factory=dict)

    def on(self, segment: int) -> list[Occupant]:
        """Occupants of a segment."""
        return self.by_segment.get(segment, [])

    def add(self, segment: int, s: float, vehicle: Vehicle) -> None:
        """Enter a vehicle whose rear axle is at arc length ``s`` of ``segment``."""
        self.by_segment.setdefault(segment, []).append(Occupant(s, s - vehicle.tail, s + vehicle.nose, vehicle))


def idm_acceleration(style: DriverStyle, speed: float, wish: float, gap: float, closing: float) -> float:
    """IDM: acceleration (m/s^2) of a driver at ``speed`` who wishes for ``wish`` (m/s).

    The obstacle ahead is ``gap`` metres away (inf: none) and comes ``closing`` m/s nearer.
    """
    free = 1.0 - (speed / max(wish, 0.1)) ** 4
    if gap == np.inf:
        interaction = 0.0
    else:
        desired = style.standstill_gap + max(
            0.0, speed * style.headway + speed * closing / (2.0 * (style.acceleration * style.braking) ** 0.5)
        )
        interaction = (desired / max(gap, 0.1)) ** 2
    return min(max(style.acceleration * (free - interaction), -HARDEST_BRAKING), style.acceleration)


def stopping_acceleration(style: DriverStyle, speed: float, distance: float) -> float:
    """Acceleration (m/s^2) towards a stop ``distance`` metres ahead: roll on, then brake evenly and ease off.

    The IDM brakes for a standing obstacle from far away and creeps up to it; people at a light do not. A driver who
    needs less than the onset deceleration may still accelerate; beyond it the braking grows with the square.
    """
    needed = speed**2 / (2.0 * max(distance, 0.1))
    onset = 0.8 + 0.6 * min(speed / 8.0, 1.0)
    if distance < 0.3:
        return -2.5 if speed > 0.3 else -1.0
    return max(style.acceleration * (1.0 - (needed / onset) ** 2), -HARDEST_BRAKING)


_PAINT = (
    (58, 60, 66), (232, 232, 236), (196, 200, 206), (150, 30, 34), (38, 70, 140), (24, 24, 28), (120, 124, 110),
    (206, 176, 60), (60, 110, 70), (170, 90, 40),
)  # fmt: skip


def random_body(rng: np.random.Generator) -> tuple[float, float, float, tuple[int, int, int]]:
    """(length, width, height, paint RGB) of a random car, van or truck."""
    kind = rng.random()
    paint = _PAINT[int(rng.integers(len(_PAINT)))]
    if kind < 0.8:
        return float(rng.uniform(4.2, 5.0)), float(rng.uniform(1.8, 2.0)), float(rng.uniform(1.45, 1.75)), paint
    if kind < 0.93:
        return float(rng.uniform(5.2, 5.9)), 2.05, float(rng.uniform(2.0, 2.4)), paint
    return float(rng.uniform(7.0, 8.2)), 2.35, float(rng.uniform(2.9, 3.3)), paint


def random_vehicle(rng: np.random.Generator, track: int, route: list[int], s: float) -> Vehicle:
    """A vehicle with a random body and temper."""
    length, width, height, paint = random_body(rng)
    style = DriverStyle(
        speed_factor=float(rng.uniform(0.75, 1.05)),
        headway=float(rng.uniform(1.2, 1.8)),
        standstill_gap=float(rng.uniform(2.0, 3.2)),
        acceleration=float(rng.uniform(1.2, 1.9)),
        braking=2.0,
        lateral_acceleration=float(rng.uniform(1.6, 2.4)),
    )
    return Vehicle(track, length, width, height, paint, 0.78 * length, 0.22 * length, style, route, s, 4.0)
