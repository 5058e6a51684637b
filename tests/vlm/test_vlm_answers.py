from __future__ import annotations

import math
import time

import numpy as np
import pytest
from copying_vlm import ANSWER_POSES, answer_text
from hypothesis import example, given, settings
from hypothesis import strategies as st

from navsim_recogdrive.vlm.answers import parse_trajectory
from navsim_recogdrive.vlm.prompts import PromptProfile

fast = settings(deadline=None, max_examples=60)
POSES = "(+2.76, +0.08, +0.06), (+5.60, +0.31, +0.11), (+8.51, +0.71, +0.17), (+11.45, +1.31, +0.23), " + (
    "(+14.41, +2.11, +0.29), (+17.38, +3.10, +0.34), (+20.35, +4.25, +0.38), (+23.34, +5.55, +0.42)"
)
EXPECTED = np.array([float(number.strip("() ")) for number in POSES.split(",")]).reshape(8, 3)


def assert_poses(text: str, expected: np.ndarray = EXPECTED, outcome: str = "repaired", reason: str = "") -> None:
    parsed = parse_trajectory(text)
    assert parsed.poses is not None, parsed.reason
    assert parsed.outcome == outcome, parsed
    assert parsed.poses.shape == (8, 3)
    assert parsed.poses.dtype == np.float32
    np.testing.assert_allclose(parsed.poses, expected, atol=1e-4)
    assert reason in parsed.reason


@pytest.mark.parametrize(
    "text",
    [
        f"[PT, {POSES}]",
        f"Here is the planning trajectory [PT, {POSES}].",
        f"PT = [{POSES}]",
        f"At (6.8, 0.0) m/s over 4 seconds, 8 poses at 2 Hz: [{POSES}], where 12 is 3, 4 and 5.",
    ],
)
def test_whole_answers_are_exact(text):
    assert_poses(text, outcome="exact")


@pytest.mark.parametrize(
    "text",
    [
        f"**PT, {POSES}",
        f"**PT, {POSES}**",
        f"[PT, {POSES}",
        f"PT, {POSES}]",
        f"Use [PT, ...] to encapsulate the trajectory.\n[PT, {POSES}",
        "[PT, " + POSES.replace("(", "") + "]",
        "[PT, " + POSES.replace(")", "") + "]",
        "[PT, " + POSES.replace("(", "").replace(")", "") + "]",
        POSES.replace("(", "").replace(")", "").replace("+", ""),
        "PT = [" + POSES.replace("(", "[").replace(")", "]") + "]",
        "PT: " + POSES.replace(", (", "; ("),
        "\n".join("{}. ({:.2f}, {:.2f}, {:.2f})".format(k + 1, *pose) for k, pose in enumerate(EXPECTED)),
        "\n".join("{}. {:.2f}, {:.2f}, {:.2f}".format(k + 1, *pose) for k, pose in enumerate(EXPECTED)),
        "\n".join("{:.2f} {:.2f} {:.2f}".format(*pose) for pose in EXPECTED),
        ", ".join(
            "t+{:.1f}s: (x: {:.2f}, y: {:.2f}, heading: {:.2f})".format(0.5 * k + 0.5, *pose)
            for k, pose in enumerate(EXPECTED)
        ),
        "\n".join("{:.1f} s: {:.2f} m, {:.2f}m, {:.2f} rad".format(k / 2, *pose) for k, pose in enumerate(EXPECTED)),
        "[" + ", ".join('{{"x": {}, "y": {}, "heading": {}}}'.format(*pose) for pose in EXPECTED) + "]",
        POSES.replace("+", "\N{MINUS SIGN}").replace("\N{MINUS SIGN}", "+"),
        f"From t-3 on the car drove well. PT, {POSES}",
        f"The car drives at 6.8 m/s, 12 m behind 2 cars (3.0, 1.0, 0.1), so: {POSES}. It stays 1.5, 2.0, 2.5 m away.",
    ],
)
def test_other_notations_are_read(text):
    assert_poses(text)


def test_minus_signs_of_typographers():
    text = "[PT, " + POSES.replace("+", "-").replace("(-", "(+").replace("-", "\N{MINUS SIGN}") + "]"
    assert_poses(text, EXPECTED * [1, -1, -1])


MINUS_SIGNS = (
    "-",
    "- ",
    " - ",
    "-\n",
    "$-$",
    "\u2010",
    "\u2011",
    "\u2012",
    "\u2013",
    "\u2014",
    "\u2212 ",
    "\ufe63",
    "\uff0d",
)
RIGHT = EXPECTED * [1, -1, -1]


@pytest.mark.parametrize("minus", MINUS_SIGNS)
@pytest.mark.parametrize("pose", ["({}, {}, {})", "{}, {}, {}", "({} {} {})", "({}{}{})", "(x={}, y={}, h={})"])
def test_no_way_to_write_a_minus_mirrors_a_plan(minus, pose):
    numbers = ["".join([minus if number < 0 else "", f"{abs(number):.2f}"]) for number in RIGHT.ravel()]
    text = "; ".join(pose.format(*numbers[index : index + 3]) for index in range(0, 24, 3))
    parsed = parse_trajectory(f"PT = [{text}]")
    if parsed.poses is not None:
        np.testing.assert_allclose(parsed.poses, RIGHT, atol=1e-4)
    if pose != "({} {} {})" and pose != "({}{}{})":
        assert parsed.poses is not None, "a sign after a bracket, a comma or an equals sign is no dash"


@pytest.mark.parametrize("heading", ["{:.2f}°", "{:.2f} deg", "{:.2f}deg", "{:.2f} degrees"])
def test_headings_in_degrees_are_not_read(heading):
    text = ", ".join("({:.2f}, {:.2f}, ".format(*pose[:2]) + heading.format(pose[2]) + ")" for pose in EXPECTED)
    parsed = parse_trajectory(f"PT = [{text}]")
    assert parsed.outcome == "unparsed"
    assert "degrees, where radians are expected" in parsed.reason


def test_too_many_poses():
    assert_poses(f"[PT, {POSES}, (+26.30, +7.00, +0.45), (+29.30, +8.50, +0.45)]", reason="10 poses, the first 8 taken")


@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_too_few_poses_are_continued(count):
    text = "[PT, " + ", ".join("({:.2f}, {:.2f}, {:.2f})".format(*pose) for pose in EXPECTED[:count]) + "]"
    continued = EXPECTED.copy()
    for k in range(count, 8):
        continued[k, :2] = 2 * continued[k - 1, :2] - continued[k - 2, :2]
        continued[k, 2] = continued[k - 1, 2]
    assert_poses(text, continued, reason=f"{count} poses, continued")


@pytest.mark.parametrize("end", range(len("[PT, ") + 5 * 23, len(f"[PT, {POSES}]")))
def test_wherever_an_answer_is_cut_off_whole_poses_are_kept(end):
    parsed = parse_trajectory(f"[PT, {POSES}]"[:end])
    assert parsed.outcome == "repaired"
    whole = max(4, f"[PT, {POSES}]"[:end].count(")"))
    np.testing.assert_allclose(parsed.poses[:whole], EXPECTED[:whole], atol=1e-5)
    np.testing.assert_allclose(parsed.poses, EXPECTED, atol=1.5)  # continued; never a half number as a pose


def test_missing_headings_follow_the_motion():
    angles = np.linspace(0.05, 0.4, 8)
    ends = np.cumsum(3 * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    text = "[PT, " + ", ".join("({:.4f}, {:.4f})".format(*pose) for pose in ends) + "]"
    assert_poses(text, np.column_stack([ends, angles]), reason="missing headings")
    one = POSES.replace("(+17.38, +3.10, +0.34)", "(+17.38, +3.10)")
    direction = math.atan2(3.10 - 2.11, 17.38 - 14.41)
    assert_poses(f"[PT, {one}]", np.where(EXPECTED == 0.34, direction, EXPECTED), reason="missing headings")


def test_a_car_that_stands_keeps_its_missing_heading():
    assert_poses("[PT, " + ", ".join(["(0.01, 0.05)"] * 8) + "]", np.tile([0.01, 0.05, 0.0], (8, 1)))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_repeated_history_is_left_out(labelled):
    past = ["(-10.23, 0.0, 0.0)", "(-6.81, 0.0, 0.0)", "(-3.40, 0.0, 0.0)", "(0.0, 0.0, 0.0)"]
    if labelled:
        past = [f"t-{3 - k}: {pose}" for k, pose in enumerate(past)]
    assert_poses(", ".join(past) + ", " + POSES, reason="history left out")
    assert_poses(f"History: {' '.join(past)}\n   Plan: [PT, {POSES}]", outcome="exact")


HISTORY = "(-4.50, -0.10, 0.00), (-3.00, -0.06, 0.00), (-1.50, -0.02, 0.00), (0.00, 0.00, 0.00)"
AHEAD = "(+1.50, +0.00, +0.00), (+3.00, +0.00, +0.00), (+4.50, +0.00, +0.00), (+6.00, +0.00, +0.00)"


@pytest.mark.parametrize("text", [f"[PT, {HISTORY}, {AHEAD}]", f"[{HISTORY}, {AHEAD}]", f"PT {HISTORY}; {AHEAD}"])
def test_a_history_among_eight_poses_is_left_out(text):
    expected = np.column_stack([1.5 * np.arange(1, 9), np.zeros((8, 2))])
    assert_poses(text, expected, reason="history left out, 4 poses, continued")


def test_an_exact_plan_behind_an_exact_history_is_taken():
    assert_poses(f"[{HISTORY}, {AHEAD}] so [{POSES}]", outcome="exact")
    assert_poses(f"[PT, {HISTORY}, {AHEAD}], [PT, {POSES}]", outcome="exact")


def test_a_car_that_stands_is_no_history():
    poses = np.zeros((8, 3))
    poses[0, 0] = -0.02
    text = ", ".join("({:.2f}, {:.2f}, {:.2f})".format(*pose) for pose in poses)
    assert_poses(f"[PT, {text}]", poses, outcome="exact")


@pytest.mark.parametrize(
    "text",
    [
        "Objects at {draft}. There is no plan. PT: none",
        "Objects at {draft}. The plan is [PT, (+2.76, +0.08, +0.06), (+5.60",
        "[{draft}, (18.0, 3.0, 0.1), (20.0, 3.0, 0.1), (22.0, 3.0, 0.1), (24.0, 3.0, 0.1)] PT",
    ],
)
def test_what_stands_before_pt_is_no_plan(text):
    draft = "(10.2, 3.4, 0.1), (12.0, 3.0, 0.1), (14.0, 3.0, 0.1), (16.0, 3.0, 0.1)"
    parsed = parse_trajectory(text.format(draft=draft))
    assert parsed.outcome == "unparsed"
    assert "poses found, at least 4 needed" in parsed.reason


def test_a_few_metres_backwards_are_driven_more_are_not():
    backwards = ", ".join(f"({-2.5 * k:.2f}, 0.00, 0.00)" for k in range(1, 9))
    assert_poses(f"[PT, {backwards}]", np.outer(np.arange(1, 9), [-2.5, 0, 0]), outcome="exact")
    turned = ", ".join(f"({-6.0 * k:.2f}, 0.00, 3.14)" for k in range(1, 9))  # headed that way
    expected = np.column_stack([-6.0 * np.arange(1, 9), np.zeros(8), np.full(8, 3.14)])
    assert_poses(f"[PT, {turned}]", expected, outcome="exact")
    for last, step in (("(-12.00, +0.00, +0.00)", "22.5"), ("(+5.40, +0.00, +0.00)", "5.1")):
        text = "[PT, " + ", ".join(f"({1.5 * k:+.2f}, +0.00, +0.00)" for k in range(1, 8)) + ", " + last
        for whole in (text + "]", text):
            parsed = parse_trajectory(whole)
            assert parsed.outcome == "unparsed"
            assert parsed.reason == f"a step of {step} m backwards in half a second is implausible"


@pytest.mark.parametrize("pose", ["({}; {}; {})", "({}, {}, {})", "({} {} {})", "({},{},{})", "{}; {}; {}"])
def test_decimal_commas_are_not_read(pose):
    poses = [pose.format(f"1,{20 + k}", "0,15", "0,10") for k in range(8)]
    parsed = parse_trajectory(f"PT: {', '.join(poses)}")
    assert parsed.outcome == "unparsed"
    assert "decimal commas" in parsed.reason


@pytest.mark.parametrize("separator", [",", ", "])
def test_whole_numbers_are_no_decimal_commas(separator):
    poses = [separator.join(map(str, (2 * k, k, 0))) for k in range(1, 9)]
    for text in (f"[PT, {', '.join(f'({pose})' for pose in poses)}", f"PT {separator.join(poses)}"):
        assert_poses(text, np.outer(np.arange(1, 9), [2, 1, 0]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"History: {HISTORY}. Future: I cannot say.", "0 poses found, at least 4 needed, history left out"),
        (f"[PT, {HISTORY}, (+1.50, +0.00, +0.00), (+3.00, +0.00, +0.00), (+4.50, +0.00, +0.00)]", "3 poses found"),
        ("", "0 poses found, at least 4 needed"),
        ("I cannot help with that.", "0 poses found"),
        ("[PT, (+2.76, +0.08, +0.06), (+5.60, +0.31, +0.11), (+8.51, +0.71, +0.17)]", "3 poses found"),
        ("[PT, " + ", ".join(["(0.5, 1.0, 0.0, 0.1)"] * 8) + "]", "4 numbers together"),
        (f"[PT, {POSES}]".replace("+2.76", "nan"), "not finite"),
        (f"[PT, {POSES}]".replace("+2.76", "1e999"), "not finite"),
        (f"[PT, {POSES}]".replace("+23.34", "+250.01"), "a coordinate of 250 m is implausible"),
        (f"[PT, {POSES}]".replace("+0.42", "+6.29"), "a heading of 6.29 rad is implausible"),
        (f"[PT, {POSES}]".replace("+0.31", "+31"), "a step of 30.42 m sideways in half a second is implausible"),
        (f"[PT, {POSES}]".replace("+23.34", "+83.34"), "a step of 63 m in half a second is implausible"),
        ("[PT, (0, 0, 1e999), " + "(1, 0), " * 7, "not finite"),
        ("[PT, (1e308, 0), (-1e308, 0), (1e308, 0), (-1e308, 0)", "a coordinate of 1e+308 m is implausible"),
        ("[PT, " + ", ".join(f"({45 * k}, 0, 0)" for k in range(1, 6)), "a coordinate of 360 m is implausible"),
        ("t-3: (-10.2, 0, 0) t-2: (-6.8, 0, 0) t-1: (-3.4, 0, 0) t-0: (0, 0, 0)", "0 poses found"),
    ],
)
def test_no_plan(text, reason):
    parsed = parse_trajectory(text)
    assert parsed.outcome == "unparsed"
    assert parsed.poses is None
    assert reason in parsed.reason


def test_a_passage_behind_pt_comes_before_a_longer_one():
    draft = ", ".join(["(1.0, 0.0, 0.0)"] * 8)
    assert_poses(f"Draft: {draft}. Final answer PT {POSES}")


def driven(steps: list[tuple[float, float, float]]) -> np.ndarray:
    """Poses ``[8, 3]`` from steps along and across each pose's own heading."""
    along, across, headings = np.array(steps).T
    x = along * np.cos(headings) - across * np.sin(headings)
    y = along * np.sin(headings) + across * np.cos(headings)
    return np.column_stack([np.cumsum(x), np.cumsum(y), headings])


def is_plan(poses: np.ndarray) -> bool:
    """Not a history, which comes from behind and ends at the origin; up to 0.01 is written as zero."""
    return poses[0, 0] >= 0 or np.abs(poses[3]).max() > 0.011


trajectories = (
    st.lists(st.tuples(st.floats(-4.9, 20), st.floats(-7.9, 7.9), st.floats(-3, 3)), min_size=8, max_size=8)
    .map(driven)
    .filter(is_plan)
)


@pytest.mark.parametrize("name", ["published", "three_cameras"])
@fast
@given(poses=trajectories)
def test_what_profiles_write_is_read_to_the_written_precision(tokenizer, name, poses):
    parsed = parse_trajectory(PromptProfile.load(name).answer_text(tokenizer, poses))
    assert parsed.outcome == "exact"
    np.testing.assert_allclose(parsed.poses, poses, atol=0.0151)  # up to 0.01 is written as zero, 0.015 rounds to it


@fast
@given(st.text() | st.text(alphabet="0123456789+-.,;:()[]{} \nePTxyhtnaifs\N{MINUS SIGN}\N{ARABIC-INDIC DIGIT ONE}"))
def test_no_text_raises(text):
    parsed = parse_trajectory(text)
    assert (parsed.poses is None) == (parsed.outcome == "unparsed")
    assert bool(parsed.reason) == (parsed.outcome != "exact")
    if parsed.poses is not None:
        assert parsed.poses.shape == (8, 3)
        assert np.isfinite(parsed.poses).all()


@fast
@given(kept=st.lists(st.booleans(), min_size=18, max_size=18))
@example(kept=[place in (5, 9, 13) for place in range(18)])  # every second pose has one
@example(kept=[place in (1, 4, 5, 8, 9, 12, 13, 16) for place in range(18)])
def test_any_brackets_may_be_dropped(kept):
    keep = iter(kept)
    text = "".join(c for c in answer_text() if c not in "()[]" or next(keep))
    assert_poses(text, ANSWER_POSES, outcome="exact" if all(kept) else "repaired")


WORDS = "the car at 8 slows 3.5 m/s (6.8, 0.0) , 12 : [ 1 ] 2, 4 and ( so ."
prose = st.lists(st.sampled_from([*WORDS.split(), "\n"]))


@fast
@given(before=prose, after=prose, brackets=st.booleans())
def test_noise_around_the_answer_is_ignored(before, after, brackets):
    answer = answer_text() if brackets else answer_text().replace("[", "").replace("]", "")
    text = f"{' '.join(before)} {answer} {' '.join(after)}"
    assert_poses(text, ANSWER_POSES, outcome="exact" if brackets else "repaired")


@pytest.mark.parametrize(
    "piece",
    ["[", "(", "9", "-", ".", "t-1", "1.", " ", "\n", " \n", "1e", "((1", "PT ", "nan", "0.5s", "[PT, (1, 1, 1), "],
)
def test_time_is_linear_in_the_length(piece):
    text = (piece * (100_000 // len(piece) + 1))[:100_000] + "x"
    start = time.process_time()
    parse_trajectory(text)
    # Measured: 0.01 to 0.4 s. With one quadratic repetition in the patterns: above 10 s.
    assert time.process_time() - start < 4
