from __future__ import annotations

import numpy as np
import pytest

from navsim_recogdrive.world.geometry import Polyline, box_corners, smooth_curve, to_global, to_local
from navsim_recogdrive.world.utm import utm_to_lonlat


def test_a_point_ahead_and_to_the_left_of_a_pose_facing_north():
    pose = np.array([10.0, 20.0, np.pi / 2.0])
    assert to_local(np.array([8.0, 25.0]), pose) == pytest.approx([5.0, 2.0])
    assert to_global(np.array([5.0, 2.0]), pose) == pytest.approx([8.0, 25.0])


def test_box_corners_are_clockwise_from_the_front_left():
    corners = box_corners(np.array([0.0, 0.0, np.pi / 2.0]), 4.0, 2.0)
    assert corners == pytest.approx(np.array([[-1.0, 2.0], [1.0, 2.0], [1.0, -2.0], [-1.0, -2.0]]))


def test_box_corners_of_many_boxes_of_different_sizes():
    poses = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
    corners = box_corners(poses, np.array([4.0, 2.0]), np.array([2.0, 1.0]))
    assert corners.shape == (2, 4, 2)
    assert corners[1, 0] == pytest.approx([6.0, 1.5])


@pytest.mark.parametrize("end", [(40.0, 0.0, 0.0), (15.0, 15.0, np.pi / 2.0), (60.0, -20.0, 0.2)])
def test_smooth_curve_meets_both_poses_with_zero_curvature(end):
    curve = smooth_curve(np.zeros(3), np.array(end))
    assert curve.points[0] == pytest.approx([0.0, 0.0])
    assert curve.points[-1] == pytest.approx(end[:2])
    assert curve.heading[0] == pytest.approx(0.0, abs=1e-9)
    assert curve.heading[-1] == pytest.approx(end[2], abs=1e-9)
    assert abs(curve.curvature[[0, -1]]).max() < 0.01
    # The stored headings are the directions of the chords, and samples lie evenly.
    steps = np.diff(curve.points, axis=0)
    chords = np.arctan2(steps[:, 1], steps[:, 0])
    assert abs(chords - 0.5 * (curve.heading[1:] + curve.heading[:-1])).max() < 1e-3
    assert np.hypot(*steps.T).max() < 0.45


def test_a_quarter_turn_is_close_to_the_gentlest_possible():
    curve = smooth_curve(np.zeros(3), np.array([15.0, 15.0, np.pi / 2.0]))
    assert 1.0 / abs(curve.curvature).max() > 0.7 * 15.0


def test_scalar_and_vector_poses_of_a_curve_agree():
    curve = smooth_curve(np.zeros(3), np.array([15.0, 15.0, np.pi / 2.0]))
    for s in (-1.0, 0.0, 3.21, curve.length, curve.length + 4.0):
        assert curve.pose_at(s) == pytest.approx(curve.pose(s), abs=1e-12)


def test_an_offset_curve_keeps_its_distance():
    curve = smooth_curve(np.zeros(3), np.array([60.0, -20.0, 0.2]))
    assert np.hypot(*(curve.offset(-3.7).points - curve.points).T) == pytest.approx(3.7)
    assert to_local(curve.offset(2.0).points[30], np.array([*curve.points[30], curve.heading[30]])) == pytest.approx(
        [0.0, 2.0]
    )


def test_from_points_finds_the_tangents():
    angle = np.linspace(0.0, 1.0, 60)
    circle = Polyline.from_points(np.stack([20.0 * np.cos(angle), 20.0 * np.sin(angle)], axis=-1))
    assert circle.heading == pytest.approx(angle + np.pi / 2.0, abs=1e-4)
    assert circle.curvature[1:-1] == pytest.approx(1.0 / 20.0, rel=1e-2)


@pytest.mark.parametrize(
    ("epsg", "point", "lonlat"),
    # Independent values, from PROJ 9.
    [
        (32611, (664000.0, 3996000.0), (-115.17826978407174, 36.09480443223267)),
        (32648, (365000.0, 143000.0), (103.78657316848518, 1.2934716667687574)),
        (32619, (328000.0, 4690000.0), (-71.08806865767876, 42.343253684436114)),
    ],
)
def test_utm_inverse_agrees_with_proj(epsg, point, lonlat):
    # 1e-11 degrees are a micrometre.
    assert utm_to_lonlat(np.array(point), epsg) == pytest.approx(lonlat, abs=1e-11)


def test_utm_refuses_what_is_no_northern_zone():
    with pytest.raises(ValueError, match="32601..32660.*4326"):
        utm_to_lonlat(np.zeros(2), 4326)
