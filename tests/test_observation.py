from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from navsim_recogdrive.observation import InvalidObservation, Observation, PlannedTrajectory


def _observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "front_image": np.zeros((4, 6, 3), dtype=np.uint8),
        "past_poses": np.zeros((4, 3)),
        "velocity": [3.0, 0.1],
        "acceleration": [0.5, 0.0],
        "driving_command": [0, 1, 0, 0],
    }
    return Observation(**{**fields, **changes})


def test_everything_is_float32() -> None:
    poses = np.random.default_rng(0).normal(size=(4, 3))
    double, single = _observation(past_poses=poses), _observation(past_poses=poses.astype(np.float32))
    assert double.past_poses.dtype == np.float32
    np.testing.assert_array_equal(double.past_poses, single.past_poses)
    np.testing.assert_array_equal(double.ego_status, np.float32([0, 1, 0, 0, 3.0, 0.1, 0.5, 0.0]))


@pytest.mark.parametrize(("command", "index"), [([1, 0, 0, 0], 0), ([0, 0, 1, 0], 2), ([0, 0, 0, 1], 3), ([0] * 4, 3)])
def test_command(command: list[int], index: int) -> None:
    observation = _observation(driving_command=command)
    assert observation.command_index == index
    assert observation.driving_command.sum() == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("past_poses", np.zeros((3, 3)), r"past_poses must have shape \[4, 3\], found \[3, 3\]"),
        ("velocity", [np.nan, 0], "velocity holds values that are not finite"),
        ("driving_command", [1, 1, 0, 0], "must be one-hot"),
        ("driving_command", [0.5, 0.5, 0, 0], "must be one-hot"),
        ("driving_command", [1, 0, 0], r"shape \[4\]"),
        ("front_image", np.zeros((4, 6), dtype=np.uint8), r"\[H, W, 3\]"),
        ("front_image", np.zeros((4, 6, 3)), "uint8"),
    ],
)
def test_bad_input(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidObservation, match=message):
        _observation(**{field: value})


def test_planned_trajectory() -> None:
    assert PlannedTrajectory(np.zeros((8, 3))).poses.dtype == np.float32
    with pytest.raises(InvalidObservation, match=r"\[8, 3\]"):
        PlannedTrajectory(np.zeros((7, 3)))
