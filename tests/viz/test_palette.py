"""Colours that mean different things stay apart for every reader; the legend names all that is drawn."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from drawn_scenes import STRAIGHT, everything, square

from navsim_recogdrive.viz import palette
from navsim_recogdrive.viz.bird_eye import draw_bird_eye
from navsim_recogdrive.viz.legend import Entry, scene_entries, trajectory_entries
from navsim_recogdrive.viz.scene_view import AgentBox, MapArea, Plan, SampleGroup, SceneView

# Machado, Oliveira, Fernandes 2009: what full colour blindness makes of linear RGB.
SIGHTS = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen(colour: palette.Colour, sight: str) -> np.ndarray:
    """CIE L*a*b* of a colour as somebody sees it."""
    coded = np.array(colour) / 255.0
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    light = np.clip(np.array(SIGHTS[sight]) @ linear, 0.0, 1.0).astype(np.float32)
    return cv2.cvtColor(light[None, None], cv2.COLOR_LRGB2LAB)[0, 0]


def apart(a: palette.Colour, b: palette.Colour, sight: str) -> float:
    return float(np.linalg.norm(seen(a, sight) - seen(b, sight)))


@pytest.mark.parametrize("sight", SIGHTS)
def test_samples_are_no_plan_no_human_and_no_map(sight: str) -> None:
    lines = [palette.plan_style(index).colour for index in range(4)] + [palette.HUMAN, palette.HISTORY]
    assert min(apart(palette.SAMPLES, line, sight) for line in [*lines, *palette.LINE.values()]) > 20.0
    grounds = [*palette.AREA_FILL.values(), palette.BACKGROUND]
    assert min(apart(palette.SAMPLES, ground, sight) for ground in grounds) > 15.0, "besides, they have a rim"


def test_samples_have_a_rim() -> None:
    """Yellow on the light ground of a map has next to no contrast."""
    view = SceneView("", areas=(MapArea("lane", square(10.0, 0.0, 30.0)),), samples=SampleGroup(STRAIGHT[None]))
    picture = draw_bird_eye(view, (800, 800), title=False, legend=False).astype(int)
    row = picture[np.flatnonzero((picture == palette.SAMPLES).all(-1).any(1))[20]]
    inside = np.flatnonzero((row == palette.SAMPLES).all(-1))
    beside = row[[inside[0] - 1, inside[-1] + 1]].sum(-1)
    assert beside.max() < sum(palette.AREA_FILL["lane"]) - 60


def entries(view: SceneView) -> dict[str, Entry]:
    return {entry.label: entry for entry in [*trajectory_entries(view), *scene_entries(view)]}


def test_the_legend_names_all_that_is_drawn() -> None:
    view = everything(areas=(*everything().areas, MapArea("stop_line", square(24.0, 0.0, 0.5))))
    listed = entries(view)
    assert list(listed) == [
        *("ours (0.900)", "human", "3 samples, reward", "past", "simulated ego", "vehicle", "pedestrian", "object"),
        *("velocity, 1 s", "route", "stop line", "red light"),
    ]
    assert listed["simulated ego"].colour == palette.plan_style(0).colour
    assert listed["stop line"].colour == palette.AREA_FILL["stop_line"]


def test_the_legend_names_nothing_else() -> None:
    standing = AgentBox("vehicle", np.zeros(3), (4.6, 1.9, 1.6), 0.8, np.array([0.3, 0.3]))
    walking = AgentBox("pedestrian", np.zeros(3), (0.6, 0.6, 1.7), 0.8, np.array([0.0, 1.2]))
    view = SceneView("", agents=(standing,), plans=(Plan("ours", STRAIGHT),))
    assert list(entries(view)) == ["ours", "vehicle"]
    moving = entries(replace(view, agents=(standing, walking)))
    assert moving["velocity, 1 s"].colour == palette.AGENT_FILL["pedestrian"], "the vehicle stands"
    both = (Plan("a", STRAIGHT, None, STRAIGHT), Plan("b", STRAIGHT, None, STRAIGHT))
    assert entries(replace(view, plans=both))["simulated ego"].colour == palette.plan_style(1).colour


@pytest.mark.parametrize("changes", [{"samples": SampleGroup(STRAIGHT[None])}, {}])
def test_every_sign_is_drawn_in_its_colour(changes: dict[str, SampleGroup]) -> None:
    view = everything(areas=(*everything().areas, MapArea("stop_line", square(24.0, 0.0, 0.5))), **changes)
    picture = draw_bird_eye(view, (800, 800))
    legend = picture[int(np.flatnonzero((picture == palette.BACKGROUND).all(-1).any(1)).max()) + 1 :].reshape(-1, 3)
    for name, entry in entries(view).items():
        if entry.kind in ("line", "box", "moving"):
            assert (legend == entry.colour).all(-1).any(), name
        elif entry.kind == "outline":
            assert (np.abs(legend - (np.array(entry.colour) * 0.16 + 255 * 0.84)).max(-1) < 3).any(), name
