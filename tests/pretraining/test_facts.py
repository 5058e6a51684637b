from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scene_records import agent, camera, moving, on_arc, record

from navsim_recogdrive.pretraining.ego_path import EGO_FRONT_M, EgoPath
from navsim_recogdrive.pretraining.facts import SceneFacts, box_gap, sector
from navsim_recogdrive.pretraining.projection import image_box, project_points

BARREL = np.array([-0.356123, 0.172545, -0.00213, 0.000464, -0.05231])
"""Coefficients of nuPlan's cameras."""


def _box(poses: np.ndarray, category: str = "vehicle", **view):
    return image_box(agent(category, poses), camera(**view))


@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(-10, 10), st.floats(10, 60)), min_size=1, max_size=20),
    st.booleans(),
)
def test_points_project_as_opencv_projects_them(points, distorted) -> None:
    view = camera(distortion=BARREL if distorted else np.zeros(5))
    expected, _ = cv2.projectPoints(np.array(points), np.zeros(3), np.zeros(3), view.intrinsics, view.distortion)
    np.testing.assert_allclose(project_points(points, view), expected[:, 0], atol=1e-6)


def test_a_box_ahead_is_where_its_corners_are() -> None:
    # Rear face at x = 20 - 2.25, 16.05 m before the camera; 1.9 m wide, 1.6 m high, on the ground 1.55 m below it.
    box = _box(moving(20.0, 0.0))
    depth = 20.0 - 2.25 - 1.7
    assert box.xyxy == (
        round(960 - 1545 * 0.95 / depth),
        round(560 + 1545 * (1.55 - 1.6) / depth),
        round(960 + 1545 * 0.95 / depth),
        round(560 + 1545 * 1.55 / depth),
    )
    assert (box.depth_m, box.inside) == (pytest.approx(depth), 1.0)


def test_boxes_are_clipped_and_those_behind_are_gone() -> None:
    assert _box(moving(-10.0, 0.0)) is None
    assert _box(moving(12.0, 40.0)) is None, "beside the image"
    partly = _box(moving(6.0, 3.2))
    assert partly.left == 0
    assert 0 < partly.inside < 1
    beside = _box(moving(2.0, 1.6))  # begins behind the camera and reaches before it
    assert beside is None or beside.right <= 1920
    long = image_box(agent("vehicle", moving(3.0, 2.0), size=(12.0, 2.5, 3.0)), camera())
    assert (long.left, long.top, long.bottom) == (0.0, 0.0, 1080.0)
    assert long.right < 960
    assert long.depth_m == pytest.approx(0.3)


@given(st.floats(-30, 60), st.floats(-30, 30), st.floats(-np.pi, np.pi), st.booleans())
def test_boxes_hold_every_corner_that_is_seen(x, y, heading, distorted) -> None:
    view = camera(distortion=BARREL if distorted else np.zeros(5))
    one = agent("vehicle", moving(x, y, heading))
    height = one.size[2]
    corners = np.array([(a, b, c) for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)]) * one.size
    turn = np.array([[np.cos(heading), -np.sin(heading), 0], [np.sin(heading), np.cos(heading), 0], [0, 0, 1]])
    seen = (corners @ turn.T + (x, y, height / 2) - view.translation) @ view.rotation
    assume((seen[:, 2] > 0.5).all())
    assume((np.hypot(*seen[:, :2].T) / seen[:, 2] < 0.8).all())
    pixels = project_points(seen, view)
    inside = ((pixels >= 0) & (pixels <= (1920, 1080))).all(1)
    box = image_box(one, view)
    assert (box is not None) or not inside.any()
    for px, py in pixels[inside]:
        assert box.left - 1e-6 <= px <= box.right + 1e-6
        assert box.top - 1e-6 <= py <= box.bottom + 1e-6


def test_far_off_the_axis_distortion_does_not_fold_back() -> None:
    assert _box(moving(4.0, 30.0), distortion=BARREL) is None


def test_vulnerable_road_users_have_boxes_and_hidden_ones_are_left_out() -> None:
    agents = [
        agent("pedestrian", moving(15.0, 4.0), "free"),
        agent("bicycle", moving(25.0, -6.0), "cyclist"),
        agent("pedestrian", moving(30.0, 0.0), "behind the truck"),
        agent("vehicle", moving(12.0, 0.0), "truck", size=(8.0, 2.5, 3.5)),
        agent("pedestrian", moving(-5.0, 2.0), "behind us"),
        agent("pedestrian", moving(400.0, 2.0), "far away"),
    ]
    facts = SceneFacts.of(record(agents))
    assert [one.track.track_token for one in facts.vulnerable_road_users] == ["free", "cyclist"]
    hidden = {one.track.track_token: one.hidden for one in facts.agents}
    assert hidden["behind the truck"] == 1.0
    assert hidden["free"] == 0.0


def test_who_is_in_the_way() -> None:
    agents = [
        agent("vehicle", moving(30.0, 0.2, 0.0, 8.0), "leader"),
        agent("vehicle", moving(60.0, 0.0, 0.0, 8.0), "second"),
        agent("vehicle", moving(20.0, 3.5), "parked beside"),
        agent("pedestrian", moving(25.0, -6.0, np.pi / 2, 2.0), "crossing"),
        agent("vehicle", moving(-10.0, 0.0, 0.0, 8.0), "follower"),
    ]
    facts = {one.track.track_token: one for one in SceneFacts.of(record(agents)).agents}
    assert facts["leader"].conflict.time_s == 0.0
    assert facts["leader"].conflict.gap_m == pytest.approx(30 - 2.25 - EGO_FRONT_M, abs=0.3)
    assert facts["parked beside"].conflict is None
    assert facts["follower"].conflict is None
    # 6 m aside at 2 m/s: within 1.45 + 0.35 m of the middle after 2.1 s, when the ego is 16.8 m on.
    assert facts["crossing"].conflict.time_s == 2.5
    assert facts["crossing"].conflict.gap_m == pytest.approx(max(0.0, 25 - 0.35 - 20 - EGO_FRONT_M), abs=0.3)
    whole = SceneFacts.of(record(agents))
    assert whole.nearest_in_path.track.track_token == "leader"
    assert whole.most_influential.track.track_token == "leader"
    assert SceneFacts.of(record(agents[2:])).nearest_in_path is None
    assert SceneFacts.of(record(agents[2:])).most_influential.track.track_token == "crossing"


def test_the_way_follows_a_turn_and_goes_on_for_who_stands() -> None:
    turning = record([agent("vehicle", moving(9.0, 9.5), "round the corner")], poses=on_arc(10.0, 5.0))
    assert SceneFacts.of(turning).nearest_in_path is not None
    standing = record([agent("vehicle", moving(12.0, 0.0), "before us")], poses=moving(0, 0))
    facts = SceneFacts.of(standing)
    assert facts.nearest_in_path.conflict.gap_m == pytest.approx(12 - 2.25 - EGO_FRONT_M, abs=0.3)
    assert facts.ego.speed == "still"
    unknown = record([agent("vehicle", moving(30.0, 0.0))], future_poses=None)
    assert SceneFacts.of(unknown).ego is None
    assert SceneFacts.of(unknown).nearest_in_path is not None, "straight on at the present speed"
    assert EgoPath.of(standing).points[-1, 0] == pytest.approx(20.0, abs=0.3)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-np.pi, np.pi))
@settings(deadline=None)
def test_gaps_between_boxes(x, y, heading) -> None:
    from shapely import Polygon, affinity

    first = Polygon([(-2, -1), (2, -1), (2, 1), (-2, 1)])
    second = affinity.translate(affinity.rotate(first, heading, (0, 0), use_radians=True), x, y)
    found = box_gap(np.zeros(3), (4.0, 2.0), np.array([x, y, heading]), (4.0, 2.0))
    assert found == pytest.approx(first.distance(second), abs=0.13)
    assert found == pytest.approx(box_gap(np.array([x, y, heading]), (4.0, 2.0), np.zeros(3), (4.0, 2.0)), abs=1e-9)


def test_directions_counts_and_density() -> None:
    assert [sector(np.radians(angle)) for angle in (0, 22, 23, 90, 180, -180, -90, -44)] == [
        "ahead", "ahead", "ahead left", "left", "behind", "behind", "right", "ahead right",
    ]  # fmt: skip
    cars = [agent("vehicle", moving(10.0 + 3 * number, 8.0), f"car {number}") for number in range(9)]
    cones = [agent("traffic_cone", moving(10.0 + number, -4.0), f"cone {number}") for number in range(30)]
    facts = SceneFacts.of(record([*cars, *cones, agent("vehicle", moving(200.0, 0.0), "far")]))
    assert facts.counts == {"traffic_cone": 30, "vehicle": 9}
    assert facts.density == "moderate", "cones are no traffic"
    assert SceneFacts.of(record()).density == "empty"
    assert SceneFacts.of(record(cars[:8])).density == "light"
    assert SceneFacts.of(record(cars * 3)).density == "dense"
    nearest = facts.agents[0]
    assert (nearest.where, nearest.category) == ("ahead right", "traffic_cone")
    assert nearest.behaviour is None


def test_facts_are_json() -> None:
    facts = SceneFacts.of(record([agent("pedestrian", moving(15.0, 4.0, 0.0, 1.0)), agent("barrier", moving(9, 9))]))
    content = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert content["ego"]["path"] == "straight"
    (walker,) = [one for one in content["agents"] if one["category"] == "pedestrian"]
    (barrier,) = [one for one in content["agents"] if one["category"] == "barrier"]
    assert (walker["behaviour"]["speed"], walker["behaviour"]["horizon_s"]) == ("keep", 4.0)
    assert (walker["ahead_m"], walker["left_m"], walker["speed_mps"]) == (15.0, 4.0, 1.0)
    assert len(walker["box"]) == 4
    assert (barrier["behaviour"], barrier["in_path_from_s"]) == (None, None)
    assert len(facts.to_dict(most_agents=1)["agents"]) == 1
