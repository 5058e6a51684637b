"""The bird's-eye view: everything where it belongs, in its colour, at any size, as pixels and as strokes."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from drawn_scenes import LEFT, STRAIGHT, everything, square

from navsim_recogdrive.viz import palette
from navsim_recogdrive.viz.bird_eye import Window, draw_bird_eye, fitting_window, save_bird_eye
from navsim_recogdrive.viz.canvas import dashed
from navsim_recogdrive.viz.scene_view import (
    AgentBox,
    EgoSize,
    InvalidView,
    MapArea,
    Plan,
    SampleGroup,
    SceneView,
    box_corners,
    ego_corners,
)
from navsim_recogdrive.viz.vector_canvas import MatplotlibMissing

WINDOW = Window(behind=-10.0, ahead=30.0, right=-20.0, left=20.0)
SIZE = (400, 400)
"""With this window: ten pixels per metre, the origin 300 pixels from the top in the middle."""


def draw(view: SceneView) -> np.ndarray:
    return draw_bird_eye(view, SIZE, window=WINDOW, title=False, legend=False)


def pixel(picture: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """Colour at a point of the ego frame."""
    return tuple(picture[round(300 - 10 * x - 0.5), round(200 - 10 * y - 0.5)].tolist())


def test_forward_is_up_and_left_is_left() -> None:
    view = SceneView("", agents=(AgentBox("pedestrian", np.array([20.0, 10.0, 0.0]), (2.0, 4.0, 1.0)),))
    picture = draw(view)
    filled = (picture == palette.AGENT_FILL["pedestrian"]).all(-1)
    rows, columns = np.nonzero(filled)
    # 2 m long, 4 m wide, less its outline.
    assert np.abs([rows.mean() + 0.5 - 100, columns.mean() + 0.5 - 100]).max() < 0.6
    assert 15 <= np.ptp(rows) + 1 <= 20
    assert 35 <= np.ptp(columns) + 1 <= 40


def test_each_thing_has_its_colour() -> None:
    picture = draw(everything(plans=(), samples=None, human=None))
    assert pixel(picture, 8.0, -6.0) == palette.AREA_FILL["lane"]
    assert pixel(picture, 7.0, 3.0) == palette.AREA_FILL["route"]
    assert pixel(picture, 17.0, -12.0) == palette.AREA_FILL["walkway"]
    assert pixel(picture, 20.0, -12.0) == palette.BACKGROUND, "a hole"
    assert pixel(picture, 12.0, 8.3) == palette.AGENT_FILL["vehicle"]
    assert pixel(picture, 3.0, 0.0) == palette.EGO, "the ego reaches 4 m before its rear axle"
    assert pixel(picture, -3.0, 0.0) == palette.HISTORY
    assert pixel(picture, 14.5, -8.0) == palette.AREA_FILL["lane"], "nothing beside the pedestrian"


def test_a_plan_is_drawn_through_its_poses() -> None:
    view = SceneView("", plans=(Plan("first", LEFT), Plan("second", STRAIGHT)))
    picture = draw(view)
    for poses, index in ((LEFT, 0), (STRAIGHT, 1)):
        for x, y, _ in poses[3:]:
            assert pixel(picture, x, y) == palette.plan_style(index).colour


def test_the_better_sample_lies_on_top_whatever_the_order() -> None:
    for rewards in ([0.0, 1.0], [1.0, 0.0]):
        samples = SampleGroup(np.stack([STRAIGHT, STRAIGHT]), np.array(rewards))
        drawn = np.array(pixel(draw(SceneView("", samples=samples)), 12.0, 0.0))
        ends = [np.abs(drawn - palette.reward_colour(reward, (0.0, 1.0))).sum() for reward in (0.0, 1.0)]
        assert ends[1] < 0.2 * ends[0]


def test_rewards_are_coloured_on_one_scale() -> None:
    colours = [palette.reward_colour(reward, (0.0, 1.0)) for reward in np.linspace(0, 1, 11)]
    brightness = np.array(colours) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all(), "can be read without colours"
    assert palette.reward_colour(7.0, (0.0, 1.0)) == colours[-1]
    assert palette.reward_colour(0.3, (0.5, 0.5)) == colours[0]
    assert SampleGroup(STRAIGHT[None], np.array([-2.0])).scale == (-2.0, 1.0)
    assert SampleGroup(STRAIGHT[None], np.array([0.5]), reward_range=(0.4, 0.6)).scale == (0.4, 0.6)


def test_plans_differ_in_more_than_colour() -> None:
    styles = [palette.plan_style(index) for index in range(8)]
    assert len(set(styles)) == 8
    assert len({style.colour for style in styles[:4]}) == 4
    assert all(style.dashes is None for style in styles[:4])
    assert all(style.dashes is not None for style in styles[4:])
    assert palette.HUMAN not in {style.colour for style in styles}


def test_the_simulated_ego_is_drawn_at_four_times() -> None:
    plain = draw(SceneView("", plans=(Plan("ours", STRAIGHT),)))
    footprint = np.linspace([0.0, 0.0, 0.0], [20.0, 0.0, 0.0], 41)
    picture = draw(SceneView("", plans=(Plan("ours", STRAIGHT, None, footprint),)))
    # Its right edge, off the trajectory, where the ego is longer than the gaps between the four: 5 m.
    changed = [(picture != plain)[round(300 - 10 * x), 209:214].any() for x in np.arange(4.5, 23.5, 0.5)]
    assert all(changed)
    assert (picture != plain)[:57].sum() == 0, "nothing beyond"


def test_title_and_legend_take_room_from_the_drawing_not_from_the_picture() -> None:
    view = everything()
    for size in ((800, 800), (500, 300), (240, 640)):
        with_legend = draw_bird_eye(view, size)
        assert with_legend.shape == (size[1], size[0], 3)
        assert with_legend.dtype == np.uint8
        assert (with_legend[0] == 255).all()
        assert (with_legend[-1] == 255).all()
    assert (draw(view)[0] != 255).any()


def test_a_small_picture_has_room_for_all_of_the_legend() -> None:
    view = replace(everything(), plans=tuple(Plan(f"a rather long name {i}", STRAIGHT) for i in range(6)))
    narrow, wide = draw_bird_eye(view, (240, 640)), draw_bird_eye(view, (900, 640))
    height = [int((picture != 255).any((1, 2))[::-1].argmin()) for picture in (narrow, wide)]
    assert height[0] <= 640
    for picture in (narrow, wide):
        legend = picture[-20:].reshape(-1, 3)
        assert (legend.min(axis=1) < 200).any(), "the last row of the legend is on the picture"


def test_the_window_holds_all_trajectories() -> None:
    far = STRAIGHT * [4.0, 1.0, 1.0] + [0.0, 30.0, 0.0]
    window = fitting_window([SceneView(""), SceneView("", human=far)])
    assert window.ahead > 80.0
    assert window.left > 30.0
    assert window.behind < -10.0
    picture = draw_bird_eye(SceneView("", human=far), (300, 500), title=False, legend=False)
    assert (picture == palette.HUMAN).all(-1).any()
    with pytest.raises(InvalidView, match="behind < ahead"):
        Window(3.0, 3.0, -1.0, 1.0)


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_vector_files_hold_strokes_and_letters(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scene{suffix}"
    save_bird_eye(everything(title="0123456789abcdef"), path, (600, 600))
    content = path.read_bytes()
    if suffix == ".svg":
        root = ElementTree.fromstring(content)
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "0123456789abcdef" in texts
        assert "ours (0.900)" in texts
        assert not list(root.iter("{http://www.w3.org/2000/svg}image")), "no pixels"
        assert b"#0072b2" in content, "the plan"
    else:
        assert content.startswith(b"%PDF")
        assert b"/Subtype /Image" not in content
    again = tmp_path / f"again{suffix}"
    save_bird_eye(everything(title="0123456789abcdef"), again, (600, 600))
    assert again.read_bytes() == content


def test_vector_files_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MatplotlibMissing, match=r"pip install -e '\.\[pictures\]'"):
        save_bird_eye(everything(), tmp_path / "scene.pdf")
    draw(everything())


def test_sizes_and_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidView, match="at least 64 pixels"):
        draw_bird_eye(everything(), (800, 10))
    with pytest.raises(InvalidView, match="ends with .pdf or .svg"):
        save_bird_eye(everything(), tmp_path / "scene.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MapArea("sea", square(0, 0, 1)), "kind of a map area must be one of drivable, lane"),
        (lambda: MapArea("lane", np.zeros((0, 2))), r"must have shape \[N, 2\], found \[0, 2\]"),
        (lambda: AgentBox("tram", np.zeros(3), (1, 1, 1)), "kind of an agent must be one of vehicle, pedestrian"),
        (lambda: AgentBox("vehicle", np.full(3, np.nan), (1, 1, 1)), "not finite"),
        (lambda: Plan("ours", np.zeros((8, 4))), r"plan 'ours' must have shape \[N, 3\], found \[8, 4\]"),
        (lambda: Plan("ours", STRAIGHT, footprint=np.zeros((5, 2))), "footprint of plan 'ours'"),
        (lambda: SampleGroup(STRAIGHT), r"\[G, T, 3\], found \[8, 3\]"),
        (lambda: SampleGroup(STRAIGHT[None], np.zeros(2)), r"rewards of samples must have shape \[1\], found \[2\]"),
        (lambda: SceneView("", human=np.full((8, 3), np.inf)), "human holds values that are not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused_early(make: Any, message: str) -> None:
    with pytest.raises(InvalidView, match=message):
        make()


def test_boxes_are_measured_from_their_centre_and_the_ego_from_its_rear_axle() -> None:
    np.testing.assert_allclose(
        box_corners((1.0, 2.0, np.pi / 2), 4.0, 2.0), [[0, 4], [2, 4], [2, 0], [0, 0]], atol=1e-12
    )
    ego = EgoSize()
    corners = ego_corners((0.0, 0.0, 0.0), ego)
    assert corners[:, 0].max() == pytest.approx(ego.length / 2 + ego.rear_axle_to_center)
    assert corners[:, 1].max() == pytest.approx(ego.width / 2)


def test_dashes_follow_the_line() -> None:
    line = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]])
    pieces = dashed(line, (4.0, 2.0))
    lengths = [np.hypot(*np.diff(piece, axis=0).T).sum() for piece in pieces]
    np.testing.assert_allclose(lengths, [4.0, 4.0, 4.0, 2.0])
    np.testing.assert_allclose(pieces[2], [[10.0, 2.0], [10.0, 6.0]])
    assert len(dashed(np.zeros((2, 2)), (1.0, 1.0))) == 1
