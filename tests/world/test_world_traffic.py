"""Drivers, pedestrians and the expert."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import MultiPoint, Polygon

from navsim_recogdrive.world.geometry import box_corners
from navsim_recogdrive.world.pedestrians import Crowd, Pedestrian
from navsim_recogdrive.world.right_of_way import RightOfWay
from navsim_recogdrive.world.signals import Signals
from navsim_recogdrive.world.simulate import (
    Drive,
    NoDriveFound,
    ego_footprint,
    network_of,
    simulate_drive,
)
from navsim_recogdrive.world.traffic import STEP_S, Town
from navsim_recogdrive.world.vehicles import DriverStyle, Occupancy, Vehicle, idm_acceleration, stopping_acceleration

STYLE = DriverStyle()


def car(route: list[int], s: float, speed: float) -> Vehicle:
    return Vehicle(1, 4.6, 1.9, 1.5, (200, 0, 0), 3.6, 1.0, STYLE, route, s, speed)


class FixedLights(Signals):
    """All lights of one colour."""

    def __init__(self, colour: str) -> None:
        super().__init__(0.0)
        self._colour = colour

    def colour(self, node, group, time):
        return self._colour


@pytest.fixture(scope="module")
def rules() -> RightOfWay:
    return RightOfWay(network_of(0, 0))


def empty_town(rules: RightOfWay, colour: str) -> Town:
    town = Town(network_of(0, 0), rules, np.random.default_rng(0))
    town.signals = FixedLights(colour)
    return town


def approach(turn: str):
    """A (lane, connector) pair at a junction with lights."""
    network = network_of(0, 0)
    return next(
        (network.lanes[c.from_lane], c)
        for c in network.connectors.values()
        if c.turn == turn and c.signal_group is not None
    )


def test_idm_accelerates_on_a_free_road_and_holds_the_wished_speed():
    assert idm_acceleration(STYLE, 0.0, 10.0, np.inf, 0.0) == pytest.approx(STYLE.acceleration)
    assert idm_acceleration(STYLE, 10.0, 10.0, np.inf, 0.0) == pytest.approx(0.0)
    assert idm_acceleration(STYLE, 10.0, 10.0, 5.0, 10.0) < -4.0


def test_a_stop_is_even_and_ends_before_the_line():
    distance, speed, hardest = 40.0, 9.0, 0.0
    for _ in range(400):
        acceleration = min(
            stopping_acceleration(STYLE, speed, distance), idm_acceleration(STYLE, speed, 9.0, np.inf, 0)
        )
        hardest = min(hardest, acceleration if speed > 1.0 else 0.0)
        new_speed = max(speed + acceleration * STEP_S, 0.0)
        distance -= 0.5 * (speed + new_speed) * STEP_S
        speed = new_speed
    assert speed == 0.0
    assert 0.0 <= distance < 1.5
    assert -2.8 < hardest < -1.0


@pytest.mark.parametrize(("colour", "stops"), [("red", True), ("amber", True), ("green", False)])
def test_a_driver_stops_at_the_line_unless_the_light_is_green(rules, colour, stops):
    lane, connector = approach("straight")
    town = empty_town(rules, colour)
    vehicle = car([lane.id, connector.id], lane.line.length - 45.0, 9.0)
    town.vehicles.append(vehicle)
    for _ in range(150):
        town.step()
    if stops:
        assert vehicle.route[0] == lane.id
        assert vehicle.speed == 0.0
        assert 0.0 < lane.line.length - (vehicle.s + vehicle.nose) < 4.0
    else:
        assert vehicle.route[0] != lane.id


def test_a_driver_too_close_to_stop_goes_on_at_amber(rules):
    lane, connector = approach("straight")
    town = empty_town(rules, "amber")
    vehicle = car([lane.id, connector.id], lane.line.length - 12.0, 10.0)
    town.vehicles.append(vehicle)
    for _ in range(20):
        town.step()
    assert vehicle.route[0] == connector.id


def test_a_follower_stops_behind_a_standing_car(rules):
    lane, connector = approach("straight")
    town = empty_town(rules, "red")
    leader = car([lane.id, connector.id], lane.line.length - 6.0, 0.0)
    follower = car([lane.id, connector.id], lane.line.length - 50.0, 9.0)
    town.vehicles += [leader, follower]
    for _ in range(150):
        town.step()
    gap = (leader.s - leader.tail) - (follower.s + follower.nose)
    assert follower.speed < 0.05
    assert 1.0 < gap < 5.0


def test_a_left_turner_gives_way_to_oncoming_traffic(rules):
    network = network_of(0, 0)
    for connector in network.connectors.values():
        if connector.turn != "left" or connector.signal_group is None:
            continue
        oncoming = next(
            (
                c
                for c in network.connectors.values()
                if c.node == connector.node and c.turn == "straight" and (c.from_arm - connector.from_arm) % 4 == 2
            ),
            None,
        )
        if oncoming is not None:
            break
    assert oncoming is not None
    lane, other = network.lanes[connector.from_lane], network.lanes[oncoming.from_lane]
    me = car([lane.id, connector.id], lane.line.length - 20.0, 5.0)
    them = car([other.id, oncoming.id], other.line.length - 30.0, 9.0)
    occupancy = Occupancy()
    lights = FixedLights("green")
    occupancy.add(lane.id, me.s, me)
    assert rules.may_enter(me, connector, 15.0, 0.0, lights, occupancy)
    occupancy.add(other.id, them.s, them)
    assert not rules.may_enter(me, connector, 15.0, 0.0, lights, occupancy)
    assert rules.may_enter(them, oncoming, 26.0, 0.0, lights, occupancy)


def test_a_turning_driver_waits_for_a_pedestrian_who_crosses(rules):
    network = network_of(0, 0)
    lane, connector = approach("right")
    number, edge = next(
        (i, e) for i, e in enumerate(network.foot_edges) if e.crosswalk == (connector.node, connector.to_arm)
    )
    town = empty_town(rules, "green")
    vehicle = car([lane.id, connector.id], lane.line.length - 8.0, 4.0)
    town.vehicles.append(vehicle)
    walker = Pedestrian(0, number, 0.5 * edge.line.length, True, 0.7, 0.0, (0, 0, 0))
    town.crowd = Crowd(network, town.rng, [walker])
    waited = False
    for _ in range(250):
        town.step()
        waited |= vehicle.route[0] == connector.id and vehicle.speed == 0.0
        if town.crowd.people[0].edge == number:
            body = box_corners(np.array([*town.pose(vehicle)[:2], town.pose(vehicle)[2]]), 2 * vehicle.nose, 1.9)
            person = box_corners(walker.pose(network), 0.6, 0.6)
            assert not Polygon(body).intersects(Polygon(person))
    assert waited
    assert vehicle.route[0] != connector.id


@pytest.fixture(scope="module")
def drive() -> Drive:
    return simulate_drive(seed=0, number=3, location=3, frames=30, vehicles=40, pedestrians=40)


def test_a_drive_is_a_pure_function_of_its_arguments(drive):
    again = simulate_drive(seed=0, number=3, location=3, frames=30, vehicles=40, pedestrians=40)
    other = simulate_drive(seed=0, number=4, location=3, frames=30, vehicles=40, pedestrians=40)
    assert [f.ego_pose.tobytes() for f in drive.frames] == [f.ego_pose.tobytes() for f in again.frames]
    assert [a.pose.tobytes() for a in drive.frames[-1].agents] == [a.pose.tobytes() for a in again.frames[-1].agents]
    assert drive.frames[0].ego_pose.tobytes() != other.frames[0].ego_pose.tobytes()


def test_logged_speed_and_yaw_rate_are_those_of_the_logged_poses(drive):
    poses = np.array([frame.ego_pose for frame in drive.frames])
    motion = np.array([frame.ego_motion for frame in drive.frames])
    speed = np.hypot(*np.diff(poses[:, :2], axis=0).T) / 0.5
    assert speed == pytest.approx(0.5 * (motion[1:, 0] + motion[:-1, 0]), abs=0.25)
    turned = np.diff(np.unwrap(poses[:, 2])) / 0.5
    yaw_rate = motion[:, 3] / np.maximum(motion[:, 0], 0.5)
    assert turned == pytest.approx(0.5 * (yaw_rate[1:] + yaw_rate[:-1]), abs=0.12)
    assert (motion[:, 1] == 0.0).all()


def test_the_expert_drives_comfortably(drive):
    motion = np.array([frame.ego_motion for frame in drive.frames])
    assert motion[:, 2].max() < 2.4
    assert motion[:, 2].min() > -4.05
    assert abs(motion[:, 3]).max() < 3.0


def test_the_expert_is_never_off_the_road_or_in_contact(drive):
    area = network_of(3, 0).drivable_area
    for frame in drive.frames:
        corners = ego_footprint(frame.ego_pose)
        assert area.contains(MultiPoint(corners))
        for agent in frame.agents:
            assert not Polygon(corners).intersects(Polygon(box_corners(agent.pose, agent.length, agent.width)))


def test_the_route_is_the_way_driven(drive):
    network = network_of(3, 0)
    for number, frame in enumerate(drive.frames):
        assert len(frame.roadblocks) == len(set(frame.roadblocks)) >= 3
        here = network.roadblocks[frame.roadblocks[0]]
        assert here.polygon.buffer(0.5).contains(MultiPoint([frame.ego_pose[:2]]))
        soon = [later.roadblocks[0] for later in drive.frames[number : number + 10]]
        assert set(soon) <= set(frame.roadblocks)
        for block, following in zip(frame.roadblocks, frame.roadblocks[1:], strict=False):
            joined = network.roadblocks[following] if network.roadblocks[following].is_connector else None
            if joined is not None:
                assert joined.source == block


def test_an_impossible_density_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr("navsim_recogdrive.world.simulate._attempt", lambda *_: (None, "the ego touched vehicle-1"))
    with pytest.raises(NoDriveFound, match="touched vehicle-1.*fewer vehicles.*now 40"):
        simulate_drive(seed=0, number=0, location=0, frames=20, vehicles=40, pedestrians=0)
