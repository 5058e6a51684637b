"""Scenes that cannot be cached: the others are, and the end of the run says which and why."""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filled_cache import SCENES, Cache
from PIL import Image

pytestmark = pytest.mark.navsim


@pytest.fixture
def poisoned(cache: Cache) -> Iterator[str]:
    """One scene whose ego velocity is not a number; its token."""
    token = cache.loader.tokens[2]
    frame = cache.loader.scene_frames_dicts[token][3]
    state = np.array(frame["ego_dynamic_state"], dtype=float)
    frame["ego_dynamic_state"] = state * np.nan
    yield token
    frame["ego_dynamic_state"] = state


def test_a_failing_scene_does_not_stop_the_rest(cache: Cache, poisoned: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(cache.fill()) == SCENES
    summary = caplog.records[-1].getMessage()
    assert "1 scenes could not be cached" in summary
    assert f"/{poisoned}: InvalidObservation: velocity holds values that are not finite" in summary
    report = cache.check()
    assert (report.scenes, report.findings) == (SCENES - 1, [])
    assert not list(cache.root.glob(f"*/{poisoned}/*")), "nothing of the scene is left"
    assert cache.train() == SCENES - 1
    assert cache.fill() == [poisoned], "the next run tries it again"


def test_a_failed_scene_is_never_trained_on(cache: Cache, poisoned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the end, a run leaves what stands in a failed scene's place."""
    from navsim_recogdrive.agents.cache_use import DamagedCache
    from navsim_recogdrive.cache.failed import FailedFeatureRead

    def keep() -> None:
        from navsim_recogdrive.agents import failed_scenes

        failed_scenes._remove_failed = lambda path: None

    assert cache.fill_in_child(keep) == 0
    cache.age()
    assert len(list(cache.root.glob(f"*/{poisoned}/*"))) == 4
    with pytest.raises(DamagedCache, match=f"{poisoned}: .*velocity holds values that are not finite"):
        cache.train()
    with pytest.raises(FailedFeatureRead, match="repair"):
        cache.batch(cache.agent(cache.host(use_cache_without_dataset=True)))
    cache.loader.scene_frames_dicts[poisoned][3]["ego_dynamic_state"] = np.zeros(4)
    assert cache.fill() == [poisoned]
    assert cache.train() == SCENES


def test_a_run_that_has_only_failed_scenes_left_tries_them_all(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents import failed_scenes
    from navsim_recogdrive.policy.backbones import SharedBackbone

    assert len(cache.fill()) == SCENES
    cache.age()
    for path in cache.files()[1:]:
        path.unlink()
    monkeypatch.setattr(failed_scenes, "HOPELESS", 2)
    monkeypatch.setattr(SharedBackbone, "features_of", lambda *_: (_ for _ in ()).throw(ValueError("a bad image")))
    assert len(cache.fill()) == SCENES - 1
    assert cache.check().scenes == 1


def test_where_all_scenes_fail_it_is_not_the_scenes(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from navsim_recogdrive.agents import failed_scenes
    from navsim_recogdrive.policy.backbones import SharedBackbone

    def broken(self: Any, *arguments: Any) -> None:
        raise ValueError("hidden states that are not finite")

    monkeypatch.setattr(SharedBackbone, "features_of", broken)
    monkeypatch.setattr(failed_scenes, "HOPELESS", 3)
    with pytest.raises(ValueError, match="not finite"), caplog.at_level(logging.ERROR):
        cache.fill()
    gc.collect()
    assert len(list(cache.root.glob("world*/*"))) == 3
    assert "3 scenes could not be cached" in caplog.text, "the last one is listed too"
    assert not list(cache.root.glob("world*/*/*.gz"))
    monkeypatch.setattr(SharedBackbone, "features_of", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        cache.fill()


class Split:
    """Images of one's own to damage, and the settings by which the runners say where a split is."""

    def __init__(self, cache: Cache, world: Path, blobs: Path) -> None:
        from navsim_recogdrive.agents.compat import SceneFilter

        self.blobs = shutil.copytree(world / "sensor_blobs" / "test", blobs)
        self._loader = cache.loader
        for name in ("_original_sensor_path", "_sensor_blobs_path"):
            if hasattr(cache.loader, name):
                setattr(cache.loader, name, self.blobs)
        cache.split = {
            "scene_filter": SceneFilter(frame_interval=1, num_future_frames=10, tokens=list(cache.loader.tokens)),
            "navsim_log_path": str(world / "navsim_logs" / "test"),
            "original_sensor_path": str(self.blobs),
        }

    def image(self, token: str) -> Path:
        return self.blobs / self._loader.scene_frames_dicts[token][3]["cams"]["CAM_F0"]["data_path"]


@pytest.fixture
def split(cache: Cache, navsim_world: Path, tmp_path: Path) -> Split:
    return Split(cache, navsim_world, tmp_path / "blobs")


def test_a_scene_with_a_bad_image_is_left_out(cache: Cache, split: Split, caplog: pytest.LogCaptureFixture) -> None:
    """NAVSIM's loader would stop at it, in this run and in the next."""
    first, second, *others = cache.loader.tokens
    whole = split.image(first).read_bytes()
    split.image(first).write_bytes(whole[:-1000])
    split.image(second).unlink()
    for time in (1, 2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert sorted(cache.fill()) == (sorted(others) if time == 1 else [])
        summary = caplog.records[-1].getMessage()
        assert "2 scenes could not be cached; the next run with force_cache_computation=false tries them" in summary
        assert f"/{first}: {split.image(first)}: OSError: image file is truncated" in summary
        assert f"/{second}: {split.image(second)}: FileNotFoundError: No such file" in summary
        assert "these scenes are left out" in caplog.records[0].getMessage()
        report = cache.check()
        assert (report.scenes, report.findings, report.incomplete) == (SCENES - 2, [], [])
        assert cache.train() == SCENES - 2
        cache.age()
    split.image(first).write_bytes(whole)
    assert cache.fill() == [first]


def test_a_killed_run_leaves_no_trace_of_a_bad_image(cache: Cache, split: Split) -> None:
    from navsim_recogdrive.agents.cache_use import DamagedCache

    token = cache.loader.tokens[0]
    image = split.image(token)
    whole = image.read_bytes()
    image.write_bytes(b"")

    def die_at_the_end() -> None:
        from navsim_recogdrive.agents import failed_scenes

        failed_scenes._remove_failed = lambda path: os.kill(os.getpid(), signal.SIGKILL)

    assert cache.fill_in_child(die_at_the_end) == -signal.SIGKILL
    cache.age()
    with pytest.raises(DamagedCache, match=rf"{token}: .*UnidentifiedImageError"):
        cache.train()
    image.write_bytes(whole)
    assert cache.fill() == [token]
    assert cache.train() == SCENES


def test_where_no_scene_can_be_left_out_caching_does_not_begin(cache: Cache, split: Split) -> None:
    from navsim_recogdrive.agents.scene_images import UnreadableImages

    token = cache.loader.tokens[1]
    split.image(token).unlink()
    with pytest.raises(UnreadableImages, match=rf"stop at 1 of {SCENES} scenes.*\n.*/{token}: .*\n.*=false"):
        cache.fill(force=True)
    for path in split.blobs.rglob("*.jpg"):
        path.write_bytes(b"")
    for _ in ("empty files", "no folder"):
        with pytest.raises(
            UnreadableImages, match=rf"none of the {SCENES} scenes .*\n(.*\n)*Check OPENSCENE_DATA_ROOT"
        ):
            cache.fill()
        shutil.rmtree(split.blobs, ignore_errors=True)
    assert not cache.files()


def test_a_process_whose_images_are_all_bad_leaves_them_out(
    cache: Cache, split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    """The split has others, which are another process's."""
    for token in cache.loader.tokens:
        split.image(token).unlink()
    with caplog.at_level(logging.ERROR):
        assert cache.fill() == []
    assert f"{SCENES} scenes could not be cached" in caplog.text
    assert all(f"/{token}: {split.image(token)}: FileNotFoundError" in caplog.text for token in cache.loader.tokens)
    assert not cache.files()


def _stops_navsim(image: Path) -> bool:
    try:
        np.array(Image.open(image))  # as its loader does
    except Exception:  # whatever the bytes make Pillow raise
        return True
    return False


def test_every_flipped_bit_that_stops_navsim_is_found(tmp_path: Path) -> None:
    """Most of them lie in a JPEG's header tables."""
    from navsim_recogdrive.agents.scene_images import image_problem

    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    for progressive in (False, True):
        path = tmp_path / "a.jpg"
        Image.fromarray(pixels).save(path, quality=85, progressive=progressive)
        content = path.read_bytes()
        chance = random.Random(0)
        stopped = 0
        for position in [*range(700), *chance.sample(range(700, len(content)), 300)]:
            flipped = bytearray(content)
            flipped[position] ^= 1 << chance.randrange(8)
            path.write_bytes(flipped)
            stops = _stops_navsim(path)
            stopped += stops
            assert (image_problem(path) is not None) == stops, position
        assert stopped > 50


def test_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    from navsim_recogdrive.agents.scene_images import image_problem

    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8))
    for name in ("a.jpg", "a.png", "a.bmp"):
        path = tmp_path / name
        pixels.save(path)
        assert image_problem(path) is None
        content = path.read_bytes()
        path.write_bytes(content[:-500])
        assert str(path) in str(image_problem(path))
        path.write_bytes(content + bytes(100))
        assert image_problem(path) is None, "what follows the end does no harm"
    path.write_bytes(b"no image")
    assert "UnidentifiedImageError" in str(image_problem(path))
    assert "FileNotFoundError" in str(image_problem(tmp_path / "absent.jpg"))


def test_threads_say_together_what_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """NAVSIM's thread pool makes an agent per task; the files that keep scenes out must stay while one is at work."""
    from navsim_recogdrive.agents.failed_scenes import FailedScenes, Failure

    looked: list[int] = []

    def find() -> list[Failure]:
        looked.append(1)
        return [Failure("log", "left_out", "a bad image")]

    tasks = [FailedScenes(tmp_path, ("a", "b")) for _ in range(2)]
    for index, task in enumerate(tasks):
        task.leave_out(find)
        task.attempt("a", lambda: {"a": 1 / 0})
        task.close("log", f"failed_{index}")
    del task
    assert len(looked) == 1
    caplog.clear()
    names = [tmp_path / "log" / "left_out" / f"{name}.gz" for name in ("a", "b")]
    with caplog.at_level(logging.ERROR):
        tasks.pop()
        gc.collect()
        assert all(name.is_file() for name in names)
        assert not caplog.records
        tasks.pop()
        gc.collect()
    (record,) = caplog.records
    assert "3 scenes could not be cached" in record.getMessage()
    for said in ("left_out: a bad image", "failed_0: ZeroDivisionError", "failed_1: ZeroDivisionError"):
        assert f"  log/{said}" in record.getMessage()
    assert not any(name.exists() for name in names)


def test_a_split_without_a_full_future_is_cached_for_evaluation(
    full_cache: Cache, split: Split, caplog: pytest.LogCaptureFixture
) -> None:
    from navsim_recogdrive.agents.compat import SceneFilter
    from navsim_recogdrive.agents.host import EmptySplit

    loader = full_cache.loader
    for token, frames in loader.scene_frames_dicts.items():
        loader.scene_frames_dicts[token] = frames[: 4 + 7]
    short = SceneFilter(frame_interval=1, num_future_frames=7, tokens=loader.tokens)
    evaluation = Cache(full_cache.root.with_name("evaluation"), full_cache._make_agent, loader)
    evaluation.split = {**full_cache.split, "scene_filter": short}
    loader._scene_filter = short
    assert sorted(evaluation.fill()) == sorted(loader.tokens)
    assert evaluation.fill() == [], "complete without trajectories"
    assert not evaluation.files("recogdrive_trajectory")
    with pytest.raises(EmptySplit, match=f"no scene .* 0 lack files, {SCENES} were cached for evaluation"):
        evaluation.train()

    mixed = shutil.copytree(next(evaluation.root.glob("world*")), full_cache.root / "short")
    scenes = len(list(mixed.iterdir()))
    with caplog.at_level(logging.WARNING):
        assert full_cache.train() == SCENES
    assert f"{scenes} scenes of the cache {full_cache.root} were cached for evaluation" in caplog.text
    evaluation.files()[0].write_bytes(b"damaged")
    evaluation.age()
    assert len(evaluation.check().misleading) == 1
    assert len(evaluation.fill()) == 1


def test_synthetic_scenes_are_cached_for_evaluation(
    cache: Cache, split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Second-stage scenes of NAVSIM v2.x: no future, images in a folder of their own."""
    from dataclasses import replace

    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR
    from navsim_recogdrive.policy.cached_backbone import CachedBackbone
    from navsim_recogdrive.policy.configuration import VLMConfig

    if NAVSIM_MAJOR < 2:
        pytest.skip("NAVSIM v1.x has no synthetic scenes")
    from navsim.common.dataloader import SceneLoader

    scenes = tmp_path / "synthetic"
    scenes.mkdir()
    tokens = []
    for number, token in enumerate(cache.loader.tokens[:3]):
        scene = cache.loader.get_scene_from_token(token)
        tokens.append(f"{token}{number}")
        scene.frames = scene.frames[:4]
        scene.scene_metadata = replace(
            scene.scene_metadata,
            initial_token=tokens[-1],
            scene_token=tokens[-1],
            num_future_frames=0,
            corresponding_original_scene=cache.loader.scene_frames_dicts[token][-1]["token"],
        )
        scene.save_to_disk(scenes)
    images = shutil.copytree(split.blobs, tmp_path / "synthetic_images")
    bad = images / split.image(cache.loader.tokens[2]).relative_to(split.blobs)
    bad.write_bytes(bad.read_bytes()[:-100])

    chosen = replace(cache.split["scene_filter"], include_synthetic_scenes=True)
    cache.split |= {
        "scene_filter": chosen,
        "synthetic_scenes_path": str(scenes),
        "synthetic_sensor_path": str(images),
    }
    cache.loader = SceneLoader(
        Path(cache.split["navsim_log_path"]),
        split.blobs,
        chosen,
        synthetic_sensor_path=images,
        synthetic_scenes_path=scenes,
        sensor_config=cache.loader._sensor_config,
    )
    assert len(cache.loader.tokens) == SCENES + 3
    with caplog.at_level(logging.ERROR):
        assert len(cache.fill()) == SCENES + 2
    assert f"/{tokens[2]}: {bad}: OSError: image file is truncated" in caplog.text
    assert cache.fill() == []
    report = cache.check()
    assert (report.scenes, len(report.evaluation_only), report.findings) == (0, SCENES + 2, [])

    from navsim_recogdrive.agents.observations import observation_from_agent_input

    config = VLMConfig(path=None, hidden_length=640, dtype="float32")
    source = CachedBackbone(cache.root, config, cache.agent()._policy.backbone)
    for token in [*tokens[:2], cache.loader.tokens[0]]:
        observation = observation_from_agent_input(cache.loader.get_agent_input_from_token(token))
        assert source.hidden_states([observation]).shape == (1, 640, 32)
    assert source.counts.misses == 0
