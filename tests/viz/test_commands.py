"""The command line on the synthetic world: what it writes, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_scenes import everything
from PIL import Image
from random_observation import random_observation

from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.viz.__main__ import main
from navsim_recogdrive.viz.commands import spread
from navsim_recogdrive.viz.log_frames import ground_height
from navsim_recogdrive.viz.scene_view import AgentBox
from navsim_recogdrive.viz.sheet import draw_sheet, fitted
from navsim_recogdrive.viz.world_scenes import drawable, world_view
from navsim_recogdrive.world.scenes import WorldScene, load_scenes


@pytest.fixture(scope="module")
def scenes(tiny_world: Path) -> list[WorldScene]:
    return load_scenes(tiny_world, "test")


@pytest.fixture
def draw(tiny_world: Path, tiny_vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; returns what it printed."""

    def run(kind: str, *arguments: str, fails: bool = False) -> str:
        options = [kind, str(tmp_path / "out"), "--world", str(tiny_world), "--vlm", str(tiny_vlm), "--device", "cpu"]
        status = main([*options, "--height", "240", *arguments])
        printed = capsys.readouterr()
        assert status == (2 if fails else 0), printed.err
        return printed.err if fails else printed.out

    return run


def test_pictures_without_a_planner(draw: Callable[..., str], tmp_path: Path, scenes: list[WorldScene]) -> None:
    token = scenes[-1].token
    printed = draw("pictures", "--token", token, "--views", "sheet", "bird_eye", "camera", "--vector", "svg")
    names = [f"{token}{end}" for end in (".png", ".bird_eye.png", ".camera.png", ".bird_eye.svg", ".json")]
    assert printed.split() == [str(tmp_path / "out" / name) for name in names]
    with Image.open(tmp_path / "out" / names[1]) as picture:
        assert picture.size == (240, 240)
    notes = json.loads((tmp_path / "out" / names[-1]).read_text())
    assert notes["log_name"] == scenes[-1].log_name
    assert list(notes["trajectories"]) == ["human"]
    np.testing.assert_allclose(notes["trajectories"]["human"], scenes[-1].future_poses(), atol=1e-3)


def test_plans_of_several_planners_and_samples(
    draw: Callable[..., str], tmp_path: Path, planner_checkpoint: Path, tiny_vlm: Path, scenes: list[WorldScene]
) -> None:
    draw(
        *("pictures", "--scenes", "1", "--samples", "3", "--seed", "5"),
        *("--checkpoint", f"a={planner_checkpoint}", "--checkpoint", f"b={planner_checkpoint}"),
    )
    notes = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert list(notes["trajectories"]) == ["a", "b", "human"]
    policy = ReCogDrivePolicy.from_pretrained(tiny_vlm, planner_checkpoint, device="cpu")
    policy.sampling = replace(policy.sampling, seed=5)
    expected = policy.plan(scenes[0].observation()).poses
    np.testing.assert_allclose(notes["trajectories"]["a"], expected, atol=2e-3)
    with Image.open(next((tmp_path / "out").glob("*.png"))) as picture:
        assert picture.size == (round(240 * 16 / 9) + 240, 240)


def test_films(draw: Callable[..., str], tmp_path: Path, planner_checkpoint: Path, scenes: list[WorldScene]) -> None:
    token = scenes[0].token
    printed = draw("denoising", "--token", token, "--samples", "2", "--checkpoint", str(planner_checkpoint))
    assert printed.split() == [str(tmp_path / "out" / f"{token}.denoising.gif")]
    with Image.open(printed.strip()) as film:
        assert film.n_frames == 5 * (1 + 5) + 2
    two = [f"--checkpoint=step {step}={planner_checkpoint}" for step in (1, 2)]
    printed = draw("training", "--scenes", "2", "--film", "mp4", *two)
    assert printed.split() == [str(tmp_path / "out" / "training.mp4")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["denoising"], "a film of denoising needs --checkpoint FILE"),
        (["pictures", "--samples", "3"], "--samples needs --checkpoint"),
        (["pictures", "--checkpoint", "none.ckpt"], "no checkpoint none.ckpt: expected --checkpoint FILE or NAME=FILE"),
        (["denoising", "--checkpoint", "FILE", "--checkpoint", "b=FILE"], "shows one planner"),
        (["denoising", "--checkpoint", "FILE", "--samples", "0"], "at least one of --samples"),
        (["training", "--checkpoint", "FILE"], "needs at least two of --checkpoint"),
        (["pictures", "--checkpoint", "a=FILE", "--checkpoint", "a=FILE"], "two checkpoints are called 'a'"),
        (["pictures", "--checkpoint", "FILE", "--vlm", ""], "which VLM?"),
        (["pictures", "--token", "abc"], "has no scene 'abc'"),
        (["pictures", "--log", "abc"], "has no log 'abc'"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, draw: Callable[..., str], planner_checkpoint: Path, tmp_path: Path
) -> None:
    given = [word.replace("FILE", str(planner_checkpoint)) for word in arguments]
    assert message in draw(*given, fails=True)
    assert not (tmp_path / "out").exists()


def test_the_worlds_map_boxes_and_lights_are_in_the_view(scenes: list[WorldScene]) -> None:
    for scene in scenes[::4]:
        view = world_view(scene)
        kinds = {area.kind for area in view.areas}
        assert {"lane", "intersection", "walkway", "route"} <= kinds
        assert len(view.agents) == len(scene.present["anns"]["gt_names"])
        red = sum(is_red for _, is_red in scene.present["traffic_lights"])
        assert sum(line.kind == "red_light" for line in view.lines) <= red
        # The ego stands on its route, and the human drives on the road.
        from shapely import Point, union_all
        from shapely.geometry import Polygon

        route = union_all([Polygon(area.outline) for area in view.areas if area.kind == "route"])
        assert route.distance(Point(1.0, 0.0)) < 0.5
        road = union_all([Polygon(a.outline) for a in view.areas if a.kind in ("lane", "intersection")])
        assert all(road.distance(Point(x, y)) < 0.5 for x, y, _ in view.human)


def test_plans_of_the_world_are_judged_by_its_scores(scenes: list[WorldScene]) -> None:
    scene = drawable(scenes[0])
    human = scenes[0].future_poses()
    off_road = human + np.array([0.0, 40.0, 0.0], dtype=np.float32)
    scores = scene.judge(np.stack([human, off_road])).scores
    assert scores[0] > 0.5
    assert scores[1] == 0.0


def test_denoising_ends_at_the_plans(tiny_vlm: Path, planner_checkpoint: Path) -> None:
    for seed, deterministic in ((0, False), (1, True)):
        policy = ReCogDrivePolicy.from_pretrained(tiny_vlm, planner_checkpoint, device="cpu")
        policy.sampling = replace(policy.sampling, deterministic=deterministic)
        observation = random_observation(seed)
        states = policy.denoise(observation, 3)
        assert states.shape == (3, policy.planner.config.num_inference_steps + 1, 8, 3)
        plans = np.stack([plan.poses for plan in policy.plan_samples(observation, 3)])
        np.testing.assert_allclose(states[:, -1], plans, atol=1e-4)
        assert np.abs(states[:, 0] - states[:, -1]).max() > 1.0


def test_the_road_is_where_vehicles_stand() -> None:
    def cars(*bottoms: float, distance: float = 10.0) -> list[AgentBox]:
        return [AgentBox("vehicle", [distance, 0, 0], (4.5, 1.9, 1.6), bottom + 0.8) for bottom in bottoms]

    assert ground_height(cars(-0.3, -0.35, -0.31, 2.0, -0.32)) == pytest.approx(-0.31)
    assert ground_height(cars(-0.3, -0.3)) == 0.0
    assert ground_height(cars(-0.3, -0.3, -0.3, distance=60.0)) == 0.0


def test_scenes_are_spread_evenly() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(5, 1) == [0]
    assert spread(0, 3) == []


def test_a_sheet_of_any_image() -> None:
    view = everything()
    assert draw_sheet(view, 300).shape == (300, round(300 * 16 / 9) + 300, 3)
    assert draw_sheet(replace(view, camera=None), 300).shape == (300, 300, 3)
    image = np.zeros((30, 100, 3), dtype=np.uint8)
    image[:, 40:60] = 255
    assert (fitted(image, (20, 30)) == 255).all(), "cut on both sides alike"
