"""Several runs at once leave out scenes with bad images: each keeps NAVSIM from them, and none takes from another."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filled_cache import FILES, SCENES, Cache, wait
from test_cache_failures import Split

from navsim_recogdrive.cache.__main__ import main
from navsim_recogdrive.cache.runs import claimed_scenes

pytestmark = pytest.mark.navsim


@pytest.fixture
def bad(cache: Cache, navsim_world: Path, tmp_path: Path) -> str:
    """A scene whose image is cut off; its token."""
    split = Split(cache, navsim_world, tmp_path / "blobs")
    token = cache.loader.tokens[0]
    image = split.image(token)
    image.write_bytes(image.read_bytes()[:-1000])
    return token


class Runs:
    """Runs in processes of their own, which stop before NAVSIM looks at what is cached until they may go on."""

    def __init__(self, cache: Cache, folder: Path) -> None:
        self._cache = cache
        self._folder = folder
        self._children: dict[str, int] = {}

    def start(self, name: str) -> None:
        """Returns once the run has left its scenes out."""

        def before() -> None:
            from navsim.planning.training.dataset import Dataset

            logging.basicConfig(filename=self._folder / f"{name}.log", level=logging.WARNING, force=True)
            load = Dataset._load_valid_caches

            def late(*arguments: object) -> object:
                (self._folder / f"{name}.there").touch()
                until((self._folder / f"{name}.go").exists)
                return load(*arguments)

            Dataset._load_valid_caches = staticmethod(late)

        self._children[name] = self._cache.start_child(before)
        until((self._folder / f"{name}.there").exists)

    def finish(self, name: str) -> str:
        """Let a run go on to its end; what it said."""
        (self._folder / f"{name}.go").touch()
        assert wait(self._children.pop(name)) == 0
        return (self._folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        os.kill(self._children[name], signal.SIGKILL)
        assert wait(self._children.pop(name)) == -signal.SIGKILL

    def stop(self) -> None:
        for name in list(self._children):
            self.kill(name)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def runs(cache: Cache, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(cache, tmp_path)
    yield made
    made.stop()


def placeholders(cache: Cache, token: str) -> int:
    return len(list(cache.root.glob(f"*/{token}/*.gz")))


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_two_runs_leave_out_the_same_scene(cache: Cache, bad: str, runs: Runs, order: tuple[str, str]) -> None:
    """Whichever ends first, the other one's NAVSIM still passes over the scene, and both list it."""
    runs.start("first")
    runs.start("second")
    assert placeholders(cache, bad) == len(FILES)
    for name, left in zip(order, (len(FILES), 0), strict=True):
        said = runs.finish(name)
        assert "1 scenes could not be cached" in said
        assert f"/{bad}: " in said.partition("could not be cached")[2]
        assert "image file is truncated" in said
        assert placeholders(cache, bad) == left
    report = cache.check()
    assert (report.scenes, report.findings, report.incomplete) == (SCENES - 1, [], [])
    assert not list((cache.root / "_recogdrive" / "runs").iterdir())


def test_repair_leaves_a_run_in_progress_alone(
    cache: Cache, bad: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.start("run")
    assert main(["repair", str(cache.root), "--settle", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("a run in progress leaves the scene out") == placeholders(cache, bad) == len(FILES)
    assert main(["inspect", str(cache.root)]) == 0
    assert "left out: " in capsys.readouterr().out
    assert "1 scenes could not be cached" in runs.finish("run")
    assert cache.check().scenes == SCENES - 1


def test_the_run_after_a_killed_one_cleans_up_at_once(cache: Cache, bad: str, runs: Runs) -> None:
    runs.start("killed")
    assert len(claimed_scenes(cache.root)) == 1
    runs.kill("killed")
    assert placeholders(cache, bad) == len(FILES)
    assert claimed_scenes(cache.root) == set()
    runs.start("next")
    assert "1 scenes could not be cached" in runs.finish("next")
    assert placeholders(cache, bad) == 0
    assert cache.check().scenes == SCENES - 1


def test_what_another_run_failed_at_is_listed_and_stays_its_own(
    cache: Cache, bad: str, runs: Runs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image was replaced meanwhile: this run has nothing against the scene."""
    from navsim_recogdrive.agents import scene_images

    runs.start("other")
    monkeypatch.setattr(scene_images, "image_problem", lambda path: None)
    with caplog.at_level(logging.ERROR):
        assert len(cache.fill()) == SCENES - 1
    assert f"/{bad}: left out by another run in progress: " in caplog.text
    assert "image file is truncated" in caplog.text
    assert placeholders(cache, bad) == len(FILES)
    runs.finish("other")
    assert placeholders(cache, bad) == 0


def test_a_run_in_progress_holds_up_training_and_evaluation_scenes_do_not(cache: Cache, bad: str, runs: Runs) -> None:
    from navsim_recogdrive.agents.cache_use import DamagedCache

    runs.start("run")
    with pytest.raises(DamagedCache, match=rf"{bad}: .*image file is truncated(.|\n)*Wait for the run"):
        cache.train()
    (trajectory,) = cache.root.glob(f"*/{bad}/recogdrive_trajectory.gz")
    failed = trajectory.read_bytes()
    runs.kill("run")
    assert len(cache.fill()) == SCENES - 1
    assert placeholders(cache, bad) == 0
    for name in set(FILES) - {"recogdrive_trajectory"}:  # as a killed run of an evaluation split leaves them
        trajectory.with_name(f"{name}.gz").write_bytes(failed)
    assert len(cache.check().misleading) == 3
    assert cache.train() == SCENES - 1
