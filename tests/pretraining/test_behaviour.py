"""What somebody does, told from tracks whose answer is known by construction.

``tests/agents/test_qa_truth.py`` compares with simulated traffic.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene_records import TIMES, changing_lanes, lanes_of, moving, on_arc

from navsim_recogdrive.pretraining.behaviour import behaviour_of
from navsim_recogdrive.pretraining.records import PRESENT


def _moved(poses: np.ndarray, x: float, y: float, turn: float) -> np.ndarray:
    cos, sin = np.cos(turn), np.sin(turn)
    headings = (poses[:, 2] + turn + np.pi) % (2 * np.pi) - np.pi
    return np.column_stack([poses[:, :2] @ np.array([[cos, sin], [-sin, cos]]) + (x, y), headings])


CASES = {
    "keeps its speed": (moving(0, 0, 0, 8.0), "keep", "straight"),
    "walks": (moving(0, 0, 0, 1.3), "keep", "straight"),
    "starts": (moving(0, 0, 0, 0.0, 1.5), "accelerate", "straight"),
    "speeds up": (moving(0, 0, 0, 6.0, 1.0), "accelerate", "straight"),
    "speeds up a little": (moving(0, 0, 0, 10.0, 0.2), "keep", "straight"),
    "slows down": (moving(0, 0, 0, 12.0, -1.5), "decelerate", "straight"),
    "comes to a stop": (moving(0, 0, 0, 6.0, -2.0), "stop", "straight"),
    "turns left": (on_arc(10.0, 4.0), "keep", "turn left"),
    "turns right": (on_arc(-12.0, 5.0), "keep", "turn right"),
    "follows a bend": (on_arc(120.0, 15.0), "keep", "straight"),
    "has begun a turn": (on_arc(20.0, 1.5), "keep", "straight"),
    "backs up": (moving(0, 0, 0, -1.5), "keep", "reverse"),
    "stands": (moving(0, 0), "still", None),
    "rolls to the line": (moving(0, 0, 0, 1.2, -1.5), "stop", None),
}


@pytest.mark.parametrize("case", CASES)
@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(-np.pi, np.pi))
def test_words_whatever_the_frame(case, x, y, turn) -> None:
    poses, speed, path = CASES[case]
    found = behaviour_of(_moved(poses, x, y, turn))
    assert (found.speed, found.path) == (speed, path)


@pytest.mark.parametrize("case", [case for case in CASES if case != "backs up"])
def test_pedestrians_by_their_motion(case) -> None:
    poses, speed, path = CASES[case]
    poses = poses.copy()
    poses[:, 2] = np.random.default_rng(0).uniform(-np.pi, np.pi, len(poses))
    found = behaviour_of(poses, heading_from_motion=True)
    assert (found.speed, found.path) == (speed, path)


@given(st.sampled_from(sorted(CASES)), st.integers(0, 2**32 - 1))
def test_trembling_boxes(case, seed) -> None:
    """Annotations err by some centimetres and degrees."""
    poses, speed, path = CASES[case]
    rng = np.random.default_rng(seed)
    noisy = poses + np.clip(rng.normal(size=poses.shape), -2, 2) * (0.03, 0.03, 0.01)
    found = behaviour_of(noisy)
    assert (found.speed, found.path) == (speed, path)


def test_numbers() -> None:
    found = behaviour_of(on_arc(10.0, 4.0))
    assert found.turned_rad == pytest.approx(1.6)
    assert found.travelled_m == pytest.approx(16.0, rel=0.01)
    assert found.aside_m == pytest.approx(10 * (1 - np.cos(1.6)))
    assert (found.start_mps, found.end_mps) == (pytest.approx(4.0, rel=0.01), pytest.approx(4.0, rel=0.01))
    assert found.to_dict()["turned_rad"] == 1.6
    braking = behaviour_of(moving(0, 0, 0, 6.0, -2.0))
    assert braking.start_mps == pytest.approx(6.0, abs=0.01)
    assert braking.end_mps == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("side", [1, -1])
def test_lane_changes_by_the_map(side) -> None:
    poses = changing_lanes(3.5 * side)
    assert behaviour_of(poses, lanes_of(poses)).path == ("lane change left" if side > 0 else "lane change right")
    assert behaviour_of(poses).path == "straight", "without a map bends and lane changes look alike"


def test_along_the_line_is_no_lane_change() -> None:
    poses = moving(0, 0, 0, 10.0)
    poses[:, 1] = 1.75 + 0.3 * np.sin(TIMES * 2)  # over the line between two lanes, to and fro
    assert len({lane.lane for lane in lanes_of(poses)}) == 2
    assert behaviour_of(poses, lanes_of(poses)).path == "straight"


def test_a_curved_road_is_no_turn_and_a_junction_is() -> None:
    poses = on_arc(15.0, 5.0)
    along = lanes_of(moving(0, 0, 0, 5.0))
    assert behaviour_of(poses, along).path == "straight"
    assert behaviour_of(poses, lanes_of(moving(0, 0, 0, 5.0), junction=True)).path == "turn left"
    assert behaviour_of(poses, (*along[:PRESENT], *[None] * 9)).path == "turn left", "off the lanes"


def test_gaps_are_bridged_and_short_tracks_say_nothing() -> None:
    poses = on_arc(10.0, 4.0)
    gappy = poses.copy()
    gappy[[0, 1, 5, 6, 9]] = np.nan
    assert behaviour_of(gappy).path == "turn left"
    short = poses.copy()
    short[PRESENT + 5 :] = np.nan
    assert behaviour_of(short).horizon_s == 2.0
    short[PRESENT + 4] = np.nan
    assert behaviour_of(short) is None
    poses[PRESENT] = np.nan
    assert behaviour_of(poses) is None
    with pytest.raises(ValueError, match=r"\[12, 3\], found \[8, 3\]"):
        behaviour_of(np.zeros((8, 3)))


def test_swapped_front_and_rear_is_no_turn() -> None:
    poses = moving(0, 0, 0, 8.0)
    poses[[5, 7, 8], 2] += np.pi
    assert behaviour_of(poses).path == "straight"
    poses = on_arc(10.0, 4.0)
    poses[[6, 9], 2] -= np.pi
    found = behaviour_of(poses)
    assert (found.path, found.turned_rad) == ("turn left", pytest.approx(1.6))
