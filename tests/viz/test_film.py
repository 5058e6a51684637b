"""Films: their pictures and times as written, what they show, and the command that joins pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_scenes import LEFT, STRAIGHT, everything
from PIL import Image
from random_observation import random_observation

from navsim_recogdrive.observation import Observation, PlannedTrajectory
from navsim_recogdrive.viz import film, films
from navsim_recogdrive.viz.drawable import DrawableScene, Judgement, planned_view
from navsim_recogdrive.viz.film import FRAMES_PER_S, FilmError, Shot, write_film
from navsim_recogdrive.viz.palette import signal_colours
from navsim_recogdrive.viz.scene_view import SceneView


def shots(*levels: int, seconds: float = 0.2, size: tuple[int, int] = (64, 48)) -> list[Shot]:
    return [Shot(np.full((size[1], size[0], 3), level, dtype=np.uint8), seconds) for level in levels]


class FakePlanner:
    """Plans ``end``; its denoising goes there from another place in two steps."""

    def __init__(self, end: np.ndarray) -> None:
        self.end = end.astype(np.float32)

    def plan_samples(self, observation: Observation, num_samples: int) -> list[PlannedTrajectory]:
        return [PlannedTrajectory(self.end + np.float32(0.1 * sample)) for sample in range(num_samples)]

    def denoise(self, observation: Observation, num_samples: int = 1) -> np.ndarray:
        last = np.stack([plan.poses for plan in self.plan_samples(observation, num_samples)])
        return np.stack([last + 8, last + 4, last], axis=1)


def scene(judge: Callable[[np.ndarray], Judgement] | None = None) -> DrawableScene:
    return DrawableScene("abc", "log", random_observation(0), everything(), judge)


def test_gif_holds_its_pictures_and_times(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    write_film(path, [*shots(0, 120), *shots(250, seconds=1.5)])
    with Image.open(path) as read:
        assert (read.n_frames, read.size, read.info["loop"]) == (3, (64, 48), 0)
        found = []
        for index in range(3):
            read.seek(index)
            found.append((read.info["duration"], int(np.array(read.convert("RGB")).mean())))
    assert found == [(200, 0), (200, 120), (1500, 250)]
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]


def test_gif_keeps_the_colours_that_mean_something(tmp_path: Path) -> None:
    """However few pixels have them: thousands of other colours are in the picture. Pillow's search is not exact."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    colours = signal_colours()
    assert len(colours) < 100
    picture[0, : len(colours)] = colours
    path = tmp_path / "film.gif"
    write_film(path, [Shot(picture, 0.2)])
    with Image.open(path) as read:
        np.testing.assert_allclose(np.array(read.convert("RGB"))[0, : len(colours)], colours, atol=8)


def test_mp4_shows_each_picture_as_long(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(path, [*shots(20, size=(65, 49)), *shots(200, seconds=0.4, size=(65, 49))])
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == FRAMES_PER_S
    levels = []
    while (read := video.read())[0]:
        assert read[1].shape == (48, 64, 3)
        levels.append(read[1].mean())
    assert len(levels) == 5 + 10
    np.testing.assert_allclose(levels, [20.0] * 5 + [200.0] * 10, atol=6.0)


def test_films_that_cannot_be(tmp_path: Path) -> None:
    for name, pictures, message in (
        ("film.avi", shots(0), "ends with .gif or .mp4"),
        ("film.gif", [], "no pictures"),
        ("film.gif", [*shots(0), *shots(0, size=(10, 10))], "one size, found 10x10, 64x48"),
    ):
        with pytest.raises(FilmError, match=message):
            write_film(tmp_path / name, pictures)
    assert not list(tmp_path.iterdir())


def test_a_denoising_film_goes_from_noise_to_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[SceneView] = []
    windows = set()

    def draw(view: SceneView, height: int, *, window: object) -> np.ndarray:
        drawn.append(view)
        windows.add(window)
        return np.zeros((height, height, 3), dtype=np.uint8)

    monkeypatch.setattr(films, "draw_sheet", draw)
    judge = lambda poses: Judgement(np.linspace(0, 1, len(poses)))  # noqa: E731
    made = films.denoising_film(scene(judge), FakePlanner(STRAIGHT), 3, height=100, moves=2)
    assert len(made) == len(drawn) == 2 * (1 + 2) + 2
    x = [float(view.samples.poses[0, 0, 0]) for view in drawn]
    assert x == sorted(x, reverse=True)
    np.testing.assert_allclose(x[::3][:2] + x[-1:], STRAIGHT[0, 0] + np.array([8.0, 4.0, 0.0]), atol=1e-6)
    assert [len(view.plans) for view in drawn] == [0] * 7 + [1], "the plan is there at the end alone"
    assert drawn[-1].plans[0].score == 0.0
    assert all(view.samples.rewards.tolist() == [0.0, 0.5, 1.0] for view in drawn), "scores of the end, all along"
    assert drawn[0].subtitle == "noise"
    assert drawn[-1].subtitle == "after 2 of 2 denoising steps"
    assert len(windows) == 1, "the camera does not move"


def test_a_training_film_shows_every_checkpoint() -> None:
    planners = {"epoch 1": FakePlanner(LEFT), "epoch 5": FakePlanner(STRAIGHT)}
    made = films.training_film([scene(), scene(), scene()], planners, columns=2, side=200, moves=1)
    assert [shot.picture.shape for shot in made] == [made[0].picture.shape] * 3
    assert made[0].picture.shape[1] == 2 * 200 + 8
    assert made[0].picture.shape[0] > 30 + 2 * 200 + 8 + 20, "heading, two rows, a legend"
    assert (made[0].picture != made[1].picture).any()
    assert (made[1].picture != made[2].picture).any()
    assert made[2].seconds > made[0].seconds > made[1].seconds


def test_moves_start_and_end_slowly() -> None:
    shares = films.eased(9)
    assert shares[4] == pytest.approx(0.5)
    steps = np.diff([0.0, *shares, 1.0])
    assert (steps > 0).all()
    assert steps[0] < 0.5 * steps[5]
    assert films.eased(0) == []


def test_a_plan_of_each_planner_and_samples_of_the_last() -> None:
    judge = lambda poses: Judgement(poses[:, 0, 0] / 10.0, poses)  # noqa: E731
    view = planned_view(scene(judge), {"a": FakePlanner(LEFT), "b": FakePlanner(STRAIGHT)}, 4)
    assert [plan.label for plan in view.plans] == ["a", "b"]
    np.testing.assert_allclose(view.plans[1].poses, STRAIGHT, atol=1e-6)
    np.testing.assert_allclose(view.plans[1].footprint, STRAIGHT, atol=1e-6)
    assert view.plans[1].score == pytest.approx(0.25)
    np.testing.assert_allclose(view.samples.rewards, [0.25, 0.26, 0.27, 0.28], rtol=1e-6)
    assert planned_view(scene(), {}).samples is None
    unscored = planned_view(scene(), {"a": FakePlanner(LEFT)}, 2)
    assert (unscored.plans[0].score, unscored.samples.rewards) == (None, None)


def test_the_command_joins_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for level in (10, 200):
        names.append(str(tmp_path / f"{level}.png"))
        Image.fromarray(shots(level)[0].picture).save(names[-1])
    target = tmp_path / "joined.gif"
    assert film.main([str(target), *names, "--seconds", "0.1", "--last", "1"]) == 0
    assert capsys.readouterr().out == f"{target}: 2 pictures\n"
    with Image.open(target) as read:
        assert read.n_frames == 2
    assert film.main([str(target), str(tmp_path / "none.png")]) == 2
    assert "error: " in capsys.readouterr().err
