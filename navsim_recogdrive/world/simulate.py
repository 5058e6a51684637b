"""One drive: the expert in traffic for some seconds, recorded at 2 Hz."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from shapely import contains_properly
from shapely.geometry import MultiPoint, Point, Polygon

from navsim_recogdrive.world.expert import Expert
from navsim_recogdrive.world.geometry import FloatArray, box_corners, to_local
from navsim_recogdrive.world.pedestrians import PEDESTRIAN_SIZE_M
from navsim_recogdrive.world.right_of_way import RightOfWay
from navsim_recogdrive.world.road_network import LOCATIONS, TURNS, Lane, RoadNetwork
from navsim_recogdrive.world.signals import HALF_CYCLE_S, Signals
from navsim_recogdrive.world.town_plan import build_network
from navsim_recogdrive.world.traffic import STEP_S, Town
from navsim_recogdrive.world.vehicles import EGO_LENGTH_M, EGO_REAR_AXLE_TO_CENTRE_M, EGO_WIDTH_M

FRAME_INTERVAL_S = 0.5
STEPS_PER_FRAME = round(FRAME_INTERVAL_S / STEP_S)
WARM_UP_S = 9.0
ANNOTATION_RADIUS_M = 90.0
ATTEMPTS = 40
HORIZON_FRAMES = 8
DULL_SHARE = 0.35
"""At most this share of a drive may be frames from which constant velocity does about what the expert does."""
DULL_ASIDE_M, DULL_SHORT_M, DULL_BEYOND_M, STOPPING_MPS = 2.5, 3.0, 6.0, 2.0
"""Doing about the same means to end, 4 s later, no farther aside or short than this, nor, where the expert comes to a
stop, beyond."""
STANDING_SHARE = 0.25
ROUTE_ROADBLOCKS = 7
"""Length of a frame's route: three junctions ahead."""


@dataclass(frozen=True)
class Agent:
    """An annotated road user: box centre pose ``[3]`` (global), size, global velocity ``[2]``, NAVSIM's class name."""

    track: str
    kind: str
    pose: FloatArray
    length: float
    width: float
    height: float
    velocity: FloatArray
    colour: tuple[int, int, int]
    braking: bool


@dataclass(frozen=True)
class Frame:
    """The world at one instant.

    ``ego_pose [3]`` is the rear axle's global pose; ``ego_motion [4]`` is (vx, vy, ax, ay) in the ego frame;
    ``lights`` maps (junction, group) to a colour; ``roadblocks`` is the route ahead, the current one first.
    """

    time: float
    ego_pose: FloatArray
    ego_motion: FloatArray
    command: str
    roadblocks: list[int]
    agents: list[Agent]
    lights: dict[tuple[int, int], str]


@dataclass(frozen=True)
class Drive:
    """A recorded drive of one log."""

    location: int
    frames: list[Frame]


class NoDriveFound(RuntimeError):
    """No attempt gave a drive without fault; only an impossible density of traffic causes this."""


@lru_cache(maxsize=4)
def network_of(location: int, seed: int) -> RoadNetwork:
    """The town of a location, built once per process."""
    return build_network(LOCATIONS[location], seed)


@lru_cache(maxsize=4)
def _rules_of(location: int, seed: int) -> RightOfWay:
    return RightOfWay(network_of(location, seed))


def simulate_drive(seed: int, number: int, location: int, frames: int, vehicles: int, pedestrians: int) -> Drive:
    """Drive ``number`` of the world with ``seed``: ``frames`` frames at 2 Hz in the town of ``location``.

    An attempt in which the ego touches anything, leaves the drivable area, stands too long, or does what constant
    velocity does nearly all the time is thrown away and made anew with the next random stream: the result is a pure
    function of the arguments.

    Raises:
        NoDriveFound: after 40 attempts, naming the last reason.
    """
    network, rules = network_of(location, seed), _rules_of(location, seed)
    reason = ""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, 77, number, attempt])
        recorded, reason = _attempt(network, rules, rng, frames, vehicles, pedestrians, number)
        if recorded is not None:
            return Drive(location, recorded)
    raise NoDriveFound(
        f"no faultless drive in {ATTEMPTS} attempts for log {number} (last: {reason}); use fewer vehicles "
        f"(now {vehicles}) or pedestrians (now {pedestrians})"
    )


def _attempt(
    network: RoadNetwork,
    rules: RightOfWay,
    rng: np.random.Generator,
    frames: int,
    vehicles: int,
    pedestrians: int,
    first_turn: int,
) -> tuple[list[Frame] | None, str]:
    town = Town(network, rules, rng)
    lane = _start_lane(network, rng, TURNS[first_turn % len(TURNS)])
    expert = Expert(town, lane, float(rng.uniform(4.0, 26.0)), rng, first_turn)
    town.vehicles.append(expert.vehicle)
    clear_lane = None
    connector = network.outgoing[lane.id][0]
    situation = rng.random()
    if situation < 0.45:
        town.add_leader(expert.vehicle)
    elif situation < 0.8 and connector.signal_group is not None:
        # First in line at the first lights, some seconds before they turn green.
        arrival = (lane.line.length - expert.vehicle.s) / 7.0
        phase = float(rng.uniform(-9.0, -3.0) % (2.0 * HALF_CYCLE_S))
        junction = network.junctions[connector.node]
        town.signals = Signals.with_phase(junction, connector.signal_group, arrival, phase)
        clear_lane = lane.id
    town.populate(town.pose(expert.vehicle)[:2], vehicles, pedestrians, clear_lane)
    silent_from = float(rng.uniform(0.0, 8.0 * frames * FRAME_INTERVAL_S))
    warm_up = round(WARM_UP_S / STEP_S)
    recorded: list[Frame] = []
    segment = expert.vehicle.route[0]
    for step in range(warm_up + (frames - 1) * STEPS_PER_FRAME + 1):
        if expert.vehicle.route[0] != segment and expert.vehicle.lane_change is None:
            expert.reconsider()
        expert.plan()
        segment = expert.vehicle.route[0]
        if step >= warm_up:
            fault = _fault(town, expert, _agents(town, 10.0))
            if fault:
                return None, fault
            if (step - warm_up) % STEPS_PER_FRAME == 0:
                agents = _agents(town, ANNOTATION_RADIUS_M)
                recorded.append(_frame(town, expert, agents, len(recorded), silent_from))
        town.step()
    if _dull_share(recorded) > DULL_SHARE:
        return None, "constant velocity was right nearly all the time"
    if np.mean([frame.ego_motion[0] < 0.3 for frame in recorded]) > STANDING_SHARE:
        return None, "the ego stood too long"
    return _settle_routes(recorded), ""


def _dull_share(frames: list[Frame]) -> float:
    poses = np.array([frame.ego_pose for frame in frames])
    speeds = np.array([frame.ego_motion[0] for frame in frames])
    ends = np.array([to_local(then[:2], now) for now, then in zip(poses, poses[HORIZON_FRAMES:], strict=False)])
    beyond = HORIZON_FRAMES * FRAME_INTERVAL_S * speeds[:-HORIZON_FRAMES] - ends[:, 0]
    stopping = speeds[HORIZON_FRAMES:] < STOPPING_MPS
    off = (np.abs(ends[:, 1]) > DULL_ASIDE_M) | (beyond < -DULL_SHORT_M) | (stopping & (beyond > DULL_BEYOND_M))
    return float(1.0 - off.mean())


def _start_lane(network: RoadNetwork, rng: np.random.Generator, turn: str) -> Lane:
    """Mostly a lane that leads to a junction with lights where ``turn`` is possible."""
    lanes = list(network.lanes.values())
    leading = [
        lane for lane in lanes if any(c.turn == turn and c.signal_group is not None for c in network.outgoing[lane.id])
    ]
    chosen = leading if rng.random() < 0.85 else lanes
    return chosen[int(rng.integers(len(chosen)))]


def _settle_routes(frames: list[Frame]) -> list[Frame]:
    """Replace every frame's planned route by the way then driven, followed by the plan at the end of the drive.

    A lane change may alter the plan, and a log tells where the ego really went.
    """
    settled = []
    for number, frame in enumerate(frames):
        ahead = [later.roadblocks[0] for later in frames[number:]] + frames[-1].roadblocks
        without_repeats = [block for i, block in enumerate(ahead) if i == 0 or block != ahead[i - 1]]
        loop = next((i for i, b in enumerate(without_repeats) if b in without_repeats[:i]), len(without_repeats))
        settled.append(replace(frame, roadblocks=without_repeats[: min(loop, ROUTE_ROADBLOCKS)]))
    return settled


def _agents(town: Town, radius: float) -> list[Agent]:
    """Everybody within ``radius`` metres of the ego."""
    ego = town.vehicles[0]
    centre = town.pose(ego)[:2]
    agents = []
    for vehicle in town.vehicles[1:]:
        pose = town.pose(vehicle)
        if math.hypot(pose[0] - centre[0], pose[1] - centre[1]) > radius + vehicle.nose:
            continue
        direction = np.array([np.cos(pose[2]), np.sin(pose[2])])
        pose[:2] += vehicle.centre_ahead * direction
        agents.append(
            Agent(
                f"vehicle-{vehicle.track}",
                "vehicle",
                pose,
                vehicle.length,
                vehicle.width,
                vehicle.height,
                vehicle.speed * direction,
                vehicle.colour,
                vehicle.acceleration < -0.4 or vehicle.speed < 0.05,
            )
        )
    for person in town.crowd.people:
        pose = person.pose(town.network)
        if math.hypot(pose[0] - centre[0], pose[1] - centre[1]) > radius:
            continue
        pace = 0.0 if person.waiting_for is not None else person.pace
        agents.append(
            Agent(
                f"pedestrian-{person.track}",
                "pedestrian",
                pose,
                *PEDESTRIAN_SIZE_M,
                pace * np.array([np.cos(pose[2]), np.sin(pose[2])]),
                person.colour,
                False,
            )
        )
    for car in town.parked:
        agents.append(
            Agent(
                f"parked-{car.track}",
                "vehicle",
                car.pose,
                car.length,
                car.width,
                car.height,
                np.zeros(2),
                car.colour,
                False,
            )
        )
    return [agent for agent in agents if math.hypot(*(agent.pose[:2] - centre)) < radius]


def ego_footprint(pose: FloatArray) -> FloatArray:
    """Corners ``[..., 4, 2]`` of the ego vehicle whose rear axle is at ``pose [..., 3]``."""
    centre = np.array(pose, dtype=np.float64)
    centre[..., 0] += EGO_REAR_AXLE_TO_CENTRE_M * np.cos(pose[..., 2])
    centre[..., 1] += EGO_REAR_AXLE_TO_CENTRE_M * np.sin(pose[..., 2])
    return box_corners(centre, EGO_LENGTH_M, EGO_WIDTH_M)


def _fault(town: Town, expert: Expert, agents: list[Agent]) -> str:
    pose = town.pose(expert.vehicle)
    corners = ego_footprint(pose)
    if not contains_properly(town.network.drivable_area, MultiPoint(corners)):
        return "the ego left the drivable area"
    # A margin round the ego: near misses are no good examples either.
    body = Polygon(corners).buffer(0.25)
    for agent in agents:
        if body.intersects(Polygon(box_corners(agent.pose, agent.length, agent.width))):
            return f"the ego touched {agent.track}"
    return ""


def _frame(town: Town, expert: Expert, agents: list[Agent], number: int, silent_from: float) -> Frame:
    vehicle = expert.vehicle
    pose = town.pose(vehicle)
    curvature = town.line(vehicle).curvature_at(vehicle.s)
    motion = np.array([vehicle.speed, 0.0, vehicle.acceleration, vehicle.speed**2 * curvature])
    centre = Point(pose[:2])
    lights = {
        (node.id, group): town.signals.colour(node, group, town.time)
        for node in town.network.junctions.values()
        if node.signalised and centre.distance(Point(node.centre)) < 150.0
        for group in (0, 1)
    }
    time = number * FRAME_INTERVAL_S
    # Now and then the navigation has nothing to say for a few seconds.
    silent = silent_from <= time < silent_from + 3.0
    return Frame(time, pose, motion, "unknown" if silent else expert.command(), expert.roadblocks(), agents, lights)
