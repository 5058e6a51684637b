"""The town: geometry, connectivity and rules that traffic and NAVSIM rely on."""

from __future__ import annotations

import numpy as np
import pytest
from shapely.geometry import MultiPoint, Point
from shapely.ops import unary_union

from navsim_recogdrive.world.geometry import wrap_angle
from navsim_recogdrive.world.road_network import LOCATIONS, TURNS, RoadNetwork
from navsim_recogdrive.world.signals import AMBER_S, GREEN_S, HALF_CYCLE_S, Signals
from navsim_recogdrive.world.simulate import ego_footprint
from navsim_recogdrive.world.town_plan import build_network


@pytest.fixture(scope="module", params=[(0, 0), (1, 5), (2, 9), (3, 3)], ids=lambda p: f"{LOCATIONS[p[0]].name}-{p[1]}")
def network(request: pytest.FixtureRequest) -> RoadNetwork:
    place, seed = request.param
    return build_network(LOCATIONS[place], seed)


def test_all_areas_are_valid_and_ids_unique(network):
    members = [*network.lanes.values(), *network.connectors.values(), *network.roadblocks.values()]
    assert all(member.polygon.is_valid and member.polygon.area > 10.0 for member in members)
    assert all(node.polygon.is_valid for node in network.junctions.values())
    ids = [member.id for member in members]
    assert len(ids) == len(set(ids))
    assert network.drivable_area.geom_type == "Polygon"  # one connected town


def test_every_lane_leads_on_and_can_be_reached(network):
    reached = {connector.to_lane for connector in network.connectors.values()}
    assert reached == set(network.lanes)
    assert all(network.outgoing[lane] for lane in network.lanes)
    assert {connector.turn for connector in network.connectors.values()} == set(TURNS)


def test_connectors_join_their_lanes_with_position_direction_and_curvature(network):
    for connector in network.connectors.values():
        before, after = network.lanes[connector.from_lane].line, network.lanes[connector.to_lane].line
        line = connector.line
        assert line.points[0] == pytest.approx(before.points[-1], abs=1e-6)
        assert line.points[-1] == pytest.approx(after.points[0], abs=1e-6)
        assert float(wrap_angle(line.heading[0] - before.heading[-1])) == pytest.approx(0.0, abs=1e-6)
        assert float(wrap_angle(line.heading[-1] - after.heading[0])) == pytest.approx(0.0, abs=1e-6)
        assert abs(line.curvature).max() < 1.0 / 11.0


def test_turns_are_what_they_are_called(network):
    for connector in network.connectors.values():
        change = float(wrap_angle(connector.line.heading[-1] - connector.line.heading[0]))
        expected = {"left": change > 0.8, "right": change < -0.8, "straight": abs(change) < 0.8}
        assert expected[connector.turn]


def test_a_car_on_any_centre_line_keeps_inside_the_drivable_area(network):
    for segment in [*network.lanes.values(), *network.connectors.values()]:
        s = np.linspace(0.0, segment.line.length, 40)
        corners = ego_footprint(segment.line.pose(s)).reshape(-1, 2)
        assert network.drivable_area.buffer(-0.5).contains(MultiPoint(corners)), segment.id


def test_lanes_of_a_roadblock_lie_side_by_side_sample_by_sample(network):
    for block in network.roadblocks.values():
        if not block.is_connector:
            inner, outer = (network.lanes[number] for number in block.members)
            assert np.hypot(*(inner.line.points - outer.line.points).T) == pytest.approx(3.7)
            assert inner.right == pytest.approx(outer.left)


def test_pavements_keep_off_the_road_and_crosswalks_cross_it(network):
    road = unary_union([block.polygon for block in network.roadblocks.values() if not block.is_connector])
    for edge in network.foot_edges:
        assert Point(network.foot_nodes[edge.start]).distance(Point(edge.line.points[0])) < 1e-6
        assert Point(network.foot_nodes[edge.end]).distance(Point(edge.line.points[-1])) < 1e-6
        crosses = network.drivable_area.buffer(-1.0).intersects(MultiPoint(edge.line.points))
        assert crosses == (edge.crosswalk is not None)
        if edge.crosswalk is None:
            assert road.distance(MultiPoint(edge.line.points)) > 2.0


def test_stop_lines_lie_across_the_incoming_lanes(network):
    for (node, arm), area in network.stop_lines.items():
        lanes = [lane for lane in network.lanes.values() if (lane.end_node, lane.end_arm) == (node, arm)]
        assert len(lanes) == 2
        for lane in lanes:
            assert area.distance(Point(lane.line.points[-1])) < 1.0
            assert area.intersects(lane.polygon)


def test_the_same_seed_gives_the_same_town_and_another_seed_another():
    first, again = build_network(LOCATIONS[0], 4), build_network(LOCATIONS[0], 4)
    other = build_network(LOCATIONS[0], 5)
    lane = next(iter(first.lanes))
    assert first.lanes[lane].line.points.tobytes() == again.lanes[lane].line.points.tobytes()
    assert first.lanes[lane].line.points.tobytes() != other.lanes[lane].line.points.tobytes()


def test_lights_go_green_amber_red_and_never_both_ways_at_once(network):
    signals = Signals(shift=3.7)
    node = next(node for node in network.junctions.values() if node.signalised)
    times = np.arange(0.0, 2.0 * HALF_CYCLE_S, 0.1)
    colours = np.array([[signals.colour(node, group, time) for group in (0, 1)] for time in times])
    assert ((colours == "red").sum(axis=1) >= 1).all()
    for group in (0, 1):
        assert (colours[:, group] == "green").sum() == pytest.approx(GREEN_S * 10, abs=1)
        assert (colours[:, group] == "amber").sum() == pytest.approx(AMBER_S * 10, abs=1)
        after = [b for a, b in zip(colours[:, group], np.roll(colours[:, group], -1), strict=True) if a != b]
        assert sorted(after) == ["amber", "green", "red"]


def test_pedestrians_walk_only_while_the_road_they_cross_has_red(network):
    signals = Signals(shift=0.0)
    node = next(node for node in network.junctions.values() if node.signalised)
    walked = 0
    for time in np.arange(0.0, 2.0 * HALF_CYCLE_S, 0.1):
        for arm in node.arms:
            if signals.walk(node, arm, float(time)):
                walked += 1
                assert signals.colour(node, arm % 2, float(time)) == "red"
    assert walked > 0
