"""Films: their pictures and times as written, what they show, and the command that joins pictures."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import cv2
import numpy as np
import pytest
from drawn_scenes import LEFT, STRAIGHT, everything
from PIL import Image
from random_observation import random_observation

from navsim_recogdrive.observation import Observation, PlannedTrajectory
from navsim_recogdrive.viz import film, films, palette
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
    write_film(path, [*shots(20, size=(65, 49)), *shots(200, seconds=0.8, size=(65, 49))])
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == FRAMES_PER_S
    levels = []
    while (read := video.read())[0]:
        assert read[1].shape == (48, 64, 3)
        levels.append(read[1].mean())
    assert len(levels) == 2 + 10
    np.testing.assert_allclose(levels, [20.0] * 2 + [200.0] * 10, atol=6.0)


def written_as(path: Path) -> str:
    """OpenCV's code of the codec that a film is in."""
    return int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode().lower()


@pytest.mark.parametrize(
    ("lacking", "name", "codes"),
    [
        ((), None, {"avc1", "h264", "vp90", "vp09", "mp4v", "fmp4"}),
        (("avc1",), "VP9", {"vp90", "vp09"}),
        (("avc1", "vp09"), "MPEG-4 part 2", {"mp4v", "fmp4"}),
    ],
)
def test_mp4_has_the_best_codec_that_opencv_writes(
    lacking: tuple[str, ...],
    name: str | None,
    codes: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    encode = film._encode
    monkeypatch.setattr(film, "_encode", lambda path, of, code: code not in lacking and encode(path, of, code))
    codec = write_film(tmp_path / "film.mp4", shots(20, 200))
    assert written_as(tmp_path / "film.mp4") in codes
    assert name in (None, codec.name)
    assert (codec.plays == "") == (codec.name == "H.264"), "what does not play everywhere says so"
    assert capfd.readouterr().err == "", "OpenCV's words on encoders that it lacks"


def test_without_any_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "_encode", lambda *_: False)
    with pytest.raises(FilmError, match=r"cannot write .*: ask for a \.gif"):
        write_film(tmp_path / "film.mp4", shots(20))
    assert not list(tmp_path.iterdir())


VIDEO_PAGE = """
<video src="film.mp4" muted preload="auto"></video><pre id="seen">nothing</pre>
<script>
  const video = document.querySelector("video"), seen = document.getElementById("seen");
  video.onerror = () => { seen.textContent = "error " + video.error.code; };
  video.onloadeddata = () => { seen.textContent = [video.videoWidth, video.videoHeight, video.duration].join(" "); };
</script>
"""


def test_a_browser_plays_mp4(tmp_path: Path) -> None:
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)
    if browser is None:
        pytest.skip("no browser is installed")
    codec = write_film(tmp_path / "film.mp4", shots(20, 120, 200, seconds=0.4))
    if codec.name == "MPEG-4 part 2":
        pytest.skip("this OpenCV writes nothing that browsers play")
    (tmp_path / "page.html").write_text(VIDEO_PAGE)
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--timeout=5000", "--dump-dom"]
    try:
        done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{browser} gave nothing in 60 s on this machine")
    if "<video" not in done.stdout:
        pytest.skip(f"{browser} cannot run here: {done.stderr.strip()[-300:]}")
    assert '<pre id="seen">64 48 1.2</pre>' in done.stdout


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

    def draw(view: SceneView, height: int, *, window: object, layout_of: SceneView) -> np.ndarray:
        drawn.append(view)
        windows.add((window, layout_of))
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


def test_the_map_of_a_denoising_film_stands_still() -> None:
    """The last picture's legend has the plan and the human too: a row more, at this size."""
    judge = lambda poses: Judgement(np.linspace(0, 1, len(poses)), np.repeat(poses, 5, axis=1))  # noqa: E731
    made = films.denoising_film(scene(judge), FakePlanner(STRAIGHT), 3, height=420, moves=0)
    places, legends = [], []
    for shot in (made[0], made[-1]):
        above = shot.picture[:, -420:]
        rows, columns = np.nonzero((above == palette.AREA_FILL["walkway"]).all(-1))
        places.append((rows.min(), rows.max(), columns.min(), columns.max()))
        legends.append(int((above != 255).any((1, 2))[::-1].argmax()))
    assert places[0] == places[1]
    assert legends[0] > legends[1] + 10, "the first legend has room for a row that it does not need"


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
    assert capsys.readouterr().out == f"{target}: 2 pictures, GIF\n"
    with Image.open(target) as read:
        assert read.n_frames == 2
    assert film.main([str(target), str(tmp_path / "none.png")]) == 2
    assert "error: " in capsys.readouterr().err
