"""Trajectories in the camera's image: on the road, as wide as the ego, behind what stands before them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drawn_scenes import LEFT, STRAIGHT, everything

from navsim_recogdrive.viz import palette
from navsim_recogdrive.viz.camera import draw_camera, nuplan_front_camera
from navsim_recogdrive.viz.scene_view import AgentBox, CameraImage, InvalidView, Plan, SampleGroup, SceneView

GREY = np.full((1080, 1920, 3), 90, dtype=np.uint8)
FOCAL, ROW, COLUMN, EYE, AHEAD = 1545.0, 560.0, 960.0, 1.55, 1.70


def view(**parts: object) -> SceneView:
    return SceneView("", camera=nuplan_front_camera(GREY), **parts)  # type: ignore[arg-type]


def changed(drawn: np.ndarray) -> np.ndarray:
    return (drawn != 90).any(-1)


@pytest.mark.parametrize("distance", [7.0, 11.0, 16.0])
def test_a_ribbon_is_as_wide_as_the_ego_at_every_distance(distance: float) -> None:
    drawn = changed(draw_camera(view(plans=(Plan("ours", STRAIGHT),)), legend=False))
    depth = distance - AHEAD
    row = round(ROW + FOCAL * EYE / depth)
    columns = np.flatnonzero(drawn[row])
    half = (2.297 / 2 + 0.11 / 2) * FOCAL / depth  # the line along the edge is 0.11 m wide
    np.testing.assert_allclose([columns[0], columns[-1]], [COLUMN - half, COLUMN + half], atol=1.6)


def test_a_ribbon_ends_where_the_plan_ends() -> None:
    drawn = changed(draw_camera(view(plans=(Plan("ours", STRAIGHT),)), legend=False))
    end = ROW + FOCAL * EYE / (20.0 - AHEAD)
    assert np.flatnonzero(drawn.any(1))[0] == pytest.approx(end, abs=1.6)
    assert drawn[-1].any(), "and begins below the picture"


def test_left_is_left() -> None:
    drawn = changed(draw_camera(view(human=LEFT), legend=False))
    row = round(ROW + FOCAL * EYE / (LEFT[-1, 0] - 1.0 - AHEAD))
    assert np.flatnonzero(drawn[row]).max() < COLUMN


def test_what_stands_before_a_ribbon_hides_it() -> None:
    plan = (Plan("ours", STRAIGHT),)
    box = AgentBox("vehicle", np.array([12.0, 0.0, 0.0]), (4.0, 4.0, 2.0), 1.0)
    drawn = changed(draw_camera(view(plans=plan, agents=(box,)), legend=False))
    free = changed(draw_camera(view(plans=plan), legend=False))
    foot = round(ROW + FOCAL * EYE / (10.0 - AHEAD))  # of the box's near face
    assert not drawn[: foot - 1].any()
    np.testing.assert_array_equal(drawn[foot + 2 :], free[foot + 2 :])


def test_what_stands_behind_a_ribbon_does_not() -> None:
    plan = (Plan("ours", STRAIGHT),)
    far = AgentBox("vehicle", np.array([30.0, 0.0, 0.0]), (4.0, 4.0, 2.0), 1.0)
    np.testing.assert_array_equal(
        draw_camera(view(plans=plan, agents=(far,)), legend=False), draw_camera(view(plans=plan), legend=False)
    )


def test_a_lower_road_is_drawn_lower() -> None:
    camera = nuplan_front_camera(GREY)
    lower = CameraImage(GREY, camera.intrinsics, camera.rotation, camera.translation, ground_z=-0.3)
    tops = [
        np.flatnonzero(
            changed(draw_camera(SceneView("", plans=(Plan("ours", STRAIGHT),), camera=one), legend=False)).any(1)
        )[0]
        for one in (camera, lower)
    ]
    assert tops[1] - tops[0] == pytest.approx(FOCAL * 0.3 / (20.0 - AHEAD), abs=1.6)


@pytest.mark.parametrize("poses", [np.zeros((8, 3)), STRAIGHT * [-1, 1, 1], STRAIGHT * [0.01, 1, 1]])
def test_an_ego_that_stands_or_goes_back_draws_nothing_before_the_car(poses: np.ndarray) -> None:
    samples = SampleGroup(poses[None], np.ones(1))
    drawn = draw_camera(view(plans=(Plan("ours", poses),), human=poses, samples=samples), legend=False)
    assert not changed(drawn).any()


def test_noise_can_be_drawn() -> None:
    noise = np.random.default_rng(0).normal(size=(16, 8, 3)) * 30.0
    drawn = draw_camera(view(samples=SampleGroup(noise), plans=(Plan("ours", noise[0]),)))
    assert changed(drawn).any()


@pytest.mark.parametrize("reward", [None, 0.0, 0.5, 1.0])
def test_a_sample_has_its_own_colour_on_the_ribbon_too(reward: float | None) -> None:
    """The ribbon is translucent: over a sample it would tint what the sample's colour says."""
    beside = STRAIGHT + np.array([0.0, 0.65, 0.0])  # between the ribbon's middle line and its left edge
    samples = SampleGroup(beside[None], None if reward is None else np.array([reward]))
    plain = draw_camera(view(samples=samples), legend=False)
    ribbon = draw_camera(view(samples=samples, plans=(Plan("ours", STRAIGHT),)), legend=False)
    depth = 9.0 - AHEAD
    at = round(ROW + FOCAL * EYE / depth), round(COLUMN - FOCAL * 0.65 / depth)
    wanted = palette.SAMPLES if reward is None else palette.reward_colour(reward, (0.0, 1.0))
    assert np.abs(plain[at].astype(int) - wanted).max() < 45, "at this place there is the sample"
    assert np.abs(ribbon[at].astype(int) - plain[at]).max() < 12


def test_the_image_that_was_given_is_left_alone() -> None:
    scene = everything()
    before = scene.camera.image.copy()
    drawn = draw_camera(scene)
    np.testing.assert_array_equal(scene.camera.image, before)
    assert drawn.shape == before.shape
    assert drawn.dtype == np.uint8


def test_the_legend_is_in_the_upper_left_corner() -> None:
    scene = everything()
    difference = (draw_camera(scene) != draw_camera(scene, legend=False)).any(-1)
    rows, columns = np.nonzero(difference)
    assert rows.max() < 120
    assert columns.min() < 30
    bare = replace(scene, plans=(), samples=None, human=None)
    np.testing.assert_array_equal(draw_camera(bare), scene.camera.image)


def test_without_a_camera() -> None:
    with pytest.raises(InvalidView, match="scene 'a' has no camera image"):
        draw_camera(SceneView("a"))
