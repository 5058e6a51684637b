"""Friendly input becomes an observation; what cannot be is refused, what looks like other units is warned of."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from navsim_recogdrive.observation import DRIVING_COMMANDS, InvalidObservation
from navsim_recogdrive.policy.observation_input import (
    ImplausibleInput,
    constant_velocity_history,
    history_in_ego_frame,
    make_observation,
    read_image,
)

IMAGE = np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)
# Accelerating through a slight left turn: 6, 7, 8 m/s.
HISTORY = np.array([[-10.5, -0.6, -0.15], [-7.5, -0.3, -0.1], [-4.0, -0.1, -0.05], [0.0, 0.0, 0.0]])


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Any:
    """What a test does not expect to be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ImplausibleInput)
        yield


def test_all_of_it() -> None:
    observation = make_observation(IMAGE, HISTORY, [8.0, 0.1, 1.5, -0.2], "left")
    np.testing.assert_array_equal(observation.front_image, IMAGE)
    np.testing.assert_array_equal(observation.past_poses, HISTORY.astype(np.float32))
    np.testing.assert_allclose(observation.velocity, [8.0, 0.1])
    np.testing.assert_allclose(observation.acceleration, [1.5, -0.2])
    assert DRIVING_COMMANDS[observation.command_index] == "left"
    assert DRIVING_COMMANDS[make_observation(IMAGE, HISTORY).command_index] == "unknown"


def test_motion_of_the_history_stands_in_for_what_is_missing() -> None:
    observation = make_observation(IMAGE, HISTORY)
    np.testing.assert_allclose(observation.velocity, [8.0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(observation.acceleration, [2.0, -0.4], rtol=1e-5)
    velocity_alone = make_observation(IMAGE, HISTORY, [8.4, 0.0])
    np.testing.assert_allclose(velocity_alone.velocity, [8.4, 0.0])
    np.testing.assert_allclose(velocity_alone.acceleration, [2.0, -0.4], rtol=1e-5)


def test_constant_velocity_stands_in_for_a_history() -> None:
    observation = make_observation(IMAGE, speed=4.0)
    np.testing.assert_allclose(observation.past_poses, [[-6, 0, 0], [-4, 0, 0], [-2, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(observation.velocity, [4.0, 0.0])
    np.testing.assert_allclose(observation.acceleration, [0.0, 0.0])
    np.testing.assert_allclose(constant_velocity_history([2.0, -1.0])[0], [-3.0, 1.5, 0.0])
    np.testing.assert_allclose(make_observation(IMAGE, ego_status=[4.0, 0.0]).past_poses, observation.past_poses)
    assert not make_observation(IMAGE, speed=0.0).past_poses.any()


def test_poses_on_a_map_become_poses_of_the_ego_frame() -> None:
    angle, place = 2.5, np.array([664_000.0, 3_999_000.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    on_map = np.column_stack([HISTORY[:, :2] @ turn.T + place, HISTORY[:, 2] + angle])
    np.testing.assert_allclose(history_in_ego_frame(on_map), HISTORY, atol=1e-8)
    with pytest.raises(InvalidObservation, match=r"in the present ego frame.*history_in_ego_frame"):
        make_observation(IMAGE, on_map)
    with pytest.raises(InvalidObservation, match=r"shape \[N, 3\]"):
        history_in_ego_frame(on_map[:, :2])


def test_images_of_every_kind_are_the_same(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "front.png")
    for image in (tmp_path / "front.png", str(tmp_path / "front.png"), Image.fromarray(IMAGE), IMAGE):
        np.testing.assert_array_equal(read_image(image), IMAGE)
    grey = Image.fromarray(IMAGE).convert("L")
    assert read_image(grey).shape == (360, 640, 3)
    transparent = Image.fromarray(IMAGE).convert("RGBA")
    np.testing.assert_array_equal(read_image(transparent), IMAGE)


def test_a_photo_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(IMAGE).copy()).save(tmp_path / "phone.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), IMAGE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.transpose(2, 0, 1), r"uint8 \[3, 360, 640\]: move the channels to the end"),
        (IMAGE / 255.0, r"float64 \[360, 640, 3\].*\* 255"),
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (IMAGE[..., 0], r"uint8 \[360, 640\]"),
    ],
)
def test_arrays_that_are_no_image(image: Any, message: str) -> None:
    with pytest.raises(InvalidObservation, match=message):
        make_observation(image, speed=1.0)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no image at"):
        make_observation(tmp_path / "nowhere.jpg", speed=1.0)
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(InvalidObservation, match="no image that can be read"):
        make_observation(tmp_path / "text.jpg", speed=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing says how the car moves"),
        ({"history": HISTORY[:3]}, r"history must have shape \[4, 3\].*-1.5, -1, -0.5, 0 s, found \[3, 3\]"),
        ({"history": np.zeros((16, 3))}, "of 10 Hz take every fifth"),
        ({"history": HISTORY[:, :2]}, r"found \[4, 2\]"),
        ({"history": HISTORY[::-1]}, "the oldest pose must come first"),
        ({"history": HISTORY + 1.0}, "with .0, 0, 0. last"),
        ({"history": np.where(HISTORY == 0, HISTORY, np.nan)}, "not finite"),
        ({"ego_status": [1.0]}, r"\[2\] \(velocity x, y\) or \[4\]"),
        ({"ego_status": [0, 1, 0, 0, 8.0, 0, 0, 0]}, "the driving command is given on its own"),
        ({"ego_status": [1.0, 0.0], "speed": 1.0}, "not both"),
        ({"ego_status": [np.inf, 0.0]}, "not finite"),
        ({"speed": 1.0, "command": "LEFT"}, "one of left, straight, right, unknown, found 'LEFT'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidObservation, match=message):
        make_observation(IMAGE, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"history": HISTORY, "ego_status": [8.0 * 3.6, 0.0]}, "28.8 m/s.*is this km/h?"),
        ({"history": HISTORY, "ego_status": [40.0, 0.0]}, "poses in metres and 0.5 s apart?"),
        ({"history": HISTORY * [0.2, 0.2, 1.0], "ego_status": [8.0, 0.0, 0, 0]}, "poses in metres and 0.5 s apart?"),
        ({"speed": 50.0}, "50 m/s is 180 km/h"),
        ({"history": HISTORY * [1.0, 1.0, 57.3]}, "headings.*reach 8.6: .*degrees"),
        ({"history": HISTORY, "ego_status": [8.0, 0.0, 20.0, 0.0]}, "acceleration of 20.0"),
        ({"history": HISTORY * [10.0, 10.0, 1.0], "ego_status": [8.0, 0.0, 0.0, 0.0]}, "history goes at up to 80 m/s"),
        ({"speed": 5.0, "image": IMAGE[:, :360]}, "front image is 360 x 360, NAVSIM's are 16:9"),
        ({"speed": 5.0, "image": IMAGE[::2, ::2]}, "only 320 x 180"),
        ({"speed": 5.0, "front_left_image": IMAGE[:, :360]}, "front-left image is 360 x 360"),
    ],
)
def test_what_looks_like_other_units_is_warned_of(arguments: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_observation(**{"image": IMAGE, **arguments})
    assert any(re.search(message, str(one.message)) for one in caught), [str(one.message) for one in caught]
    assert all(issubclass(one.category, ImplausibleInput) for one in caught)
