"""What the steps are told: facts in words, and hypothetical drives."""

from __future__ import annotations

import numpy as np
import pytest
from label_scenes import HEIGHT, WIDTH, agent, busy_scene, scene

from navsim_recogdrive.pretraining.facts import SceneFacts
from navsim_recogdrive.pretraining.labelling.counterfactual import ACTIONS, choose_action, drive, outcome
from navsim_recogdrive.pretraining.labelling.wording import asked_agent, box_of, boxes_in, placeholders
from navsim_recogdrive.pretraining.records import SceneRecord

BY_NAME = {action.name: action for action in ACTIONS}


def _words(record: SceneRecord) -> dict[str, str | None]:
    return placeholders(SceneFacts.of(record))


def test_boxes_are_thousandths_of_the_image() -> None:
    facts = SceneFacts.of(busy_scene("one"))
    walker = next(one for one in facts.agents if one.category == "pedestrian")
    left, top, right, bottom = box_of(walker, facts)
    assert (left, right) == (round(walker.box.left / WIDTH * 1000), round(walker.box.right / WIDTH * 1000))
    assert (top, bottom) == (round(walker.box.top / HEIGHT * 1000), round(walker.box.bottom / HEIGHT * 1000))
    assert left > 500  # to the right of the ego
    text = placeholders(facts)["vulnerable_road_users"]
    assert text == (
        f"- <ref>pedestrian</ref><box>[[{left}, {top}, {right}, {bottom}]]</box>: 11 m away, ahead, moving at 1.0 m/s"
    )
    assert boxes_in(text) == [(left, top, right, bottom)]


def test_words_of_a_busy_scene() -> None:
    words = _words(busy_scene("one"))
    assert words["command"] == "go straight"
    assert words["speed"] == "8.0 m/s"
    assert words["decision"] == (
        "The ego vehicle keeps its speed (from 8.0 to 8.0 m/s) and follows its lane or goes straight on within the "
        "next 4 s."
    )
    assert words["density"] == (
        "light: within 50 m, on all sides, 1 x vehicle, 1 x pedestrian; 2 of them move, 2 are in the image"
    )
    assert "1 with a red light, 2 with a light that is not red" in words["lights"]
    assert words["works"].startswith("- <ref>traffic cone</ref>")
    assert "in the way now, 13 m before the bumper" in words["in_the_way"]


def test_words_of_an_empty_scene() -> None:
    words = _words(scene("one", future=False))
    assert [name for name, value in words.items() if value is None] == [
        "agent",
        "agent_future",
        "decision",
        "action",
        "outcome",
    ]
    assert words["vulnerable_road_users"] == "No pedestrian and no cyclist is annotated in view."
    assert words["density"] == "empty: no road user within 50 m"
    assert "No traffic light is recorded" in words["lights"]


def test_long_lists_are_cut_and_say_so() -> None:
    cones = [agent(f"cone {number}", 12.0, number - 7.0, 0.0, "traffic_cone") for number in range(15)]
    visible = sum(one.visible for one in SceneFacts.of(scene("one", cones)).agents)
    lines = _words(scene("one", cones))["works"].splitlines()
    assert visible > 12
    assert len(lines) == 13
    assert lines[-1] == f"- and {visible - 12} more, farther away"


def test_the_asked_agent_is_the_one_that_matters() -> None:
    facts = SceneFacts.of(busy_scene("one"))
    assert asked_agent(facts).track.track_token == "leader"
    assert placeholders(facts)["agent_future"].startswith("keeps its speed (from 8.0 to 8.0 m/s)")
    behind = scene("two", [agent("behind", -10.0, 0.0, 8.0)])
    assert asked_agent(SceneFacts.of(behind)) is None  # nobody that the image does not show


@pytest.mark.parametrize("name", [action.name for action in ACTIONS])
def test_hypothetical_drives_start_now_and_keep_to_their_acceleration(name: str) -> None:
    action = BY_NAME[name]
    poses = drive(SceneFacts.of(scene("one", speed=8.0)), action)
    assert poses.shape == (8, 3)
    until = min(4.0, 8.0 / 6.0) if name == "brake" else 4.0
    assert poses[-1, 0] == pytest.approx(8.0 * until + action.acceleration_mps2 * until**2 / 2, abs=0.3)
    assert poses[-1, 1] == pytest.approx(action.aside_m, abs=0.01)
    steps = np.diff(np.concatenate([[[0.0, 0.0, 0.0]], poses]), axis=0)
    assert (steps[:, 0] >= 0.0).all()
    assert poses[-1, 2] == pytest.approx(0.0, abs=0.01)  # along the road again


def test_hypothetical_drives_follow_the_bend_of_the_way() -> None:
    record = scene("one", speed=8.0)
    angle = 8.0 * 0.5 * np.arange(1, 9) / 20.0  # a left turn of 20 m radius
    future = np.stack([20 * np.sin(angle), 20 * (1 - np.cos(angle)), angle], axis=1).astype(np.float32)
    object.__setattr__(record, "future_poses", future)
    np.testing.assert_allclose(drive(SceneFacts.of(record), BY_NAME["keep"]), future, atol=0.4)


def test_outcomes_against_a_standing_leader() -> None:
    standing = SceneFacts.of(scene("one", [agent("wall", 25.0, 0.0)], speed=8.0, acceleration=-2.0))
    keeping = outcome(standing, BY_NAME["keep"])
    # Bumper at 4.05 m, rear of the leader at 22.75 m: 18.7 m at 8 m/s.
    assert (keeping.words, keeping.time_s, keeping.agent.track.track_token) == ("collision", 2.5, "wall")
    faster = outcome(standing, BY_NAME["accelerate"])
    assert (faster.words, faster.time_s) == ("collision", 2.0)
    braking = outcome(standing, BY_NAME["brake"])
    assert braking.words == "clear"
    assert braking.gap_m == pytest.approx(18.7 - 8.0**2 / 12.0, abs=0.1)


def test_an_outcome_names_who_is_close() -> None:
    facts = SceneFacts.of(scene("one", [agent("beside", 1.461, 6.0, 8.0)], speed=8.0))
    left = outcome(facts, BY_NAME["left"])
    assert (left.words, left.agent.track.track_token) == ("close", "beside")
    # 6 m to its centre, less the 3.5 m moved and half the widths: 0.4 m; less while the ego's front points to it.
    assert 0.1 < left.gap_m < 6.0 - 3.5 - (2.297 + 1.9) / 2
    assert outcome(facts, BY_NAME["right"]).words == "clear"
    assert outcome(SceneFacts.of(scene("alone")), BY_NAME["left"]).agent is None


@pytest.mark.parametrize(
    ("acceleration", "speed", "never"),
    [(0.0, 8.0, {"keep", "drive off"}), (1.0, 8.0, {"accelerate", "drive off"}), (-2.0, 8.0, {"brake", "drive off"})],
)
def test_the_asked_action_is_not_the_expert_s(acceleration: float, speed: float, never: set[str]) -> None:
    chosen = set()
    for number in range(60):
        record = scene(f"scene {number}", speed=speed, acceleration=acceleration)
        action = choose_action(SceneFacts.of(record))
        assert action == choose_action(SceneFacts.of(record))
        chosen.add(action.name)
    assert chosen == set(BY_NAME) - never


def test_an_ego_that_stands_can_only_drive_off() -> None:
    assert choose_action(SceneFacts.of(scene("one", speed=0.0))).name == "drive off"
    assert choose_action(SceneFacts.of(scene("one", speed=0.5, acceleration=2.0))) is None  # the expert does
    assert choose_action(SceneFacts.of(scene("one", future=False))) is None
