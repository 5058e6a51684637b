"""Caching through NAVSIM's unmodified runner: in threads, and past images that cannot be read."""

from __future__ import annotations

import gzip
import pickle
import shutil
from pathlib import Path

import pytest
from runners import EVERY_FRAME, Runners
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

THREADS = ("worker=single_machine_thread_pool", "worker.max_workers=3")


@pytest.fixture(scope="module")
def world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_world, tmp_path_factory.mktemp("copy") / "openscene")


@pytest.fixture(scope="module")
def bad_images(world: Path) -> dict[str, str]:
    """Two scenes of different logs whose images NAVSIM's loader stops at: what is wrong, by ``LOG/TOKEN``."""
    found = {}
    for log, damage in zip(
        sorted((world / "navsim_logs" / "trainval").glob("*.pkl")), ("cut off", "missing"), strict=False
    ):
        frame = pickle.loads(log.read_bytes())[5]
        path = world / "sensor_blobs" / "trainval" / frame["cams"]["CAM_F0"]["data_path"]
        if damage == "missing":
            path.unlink()
            reason = "FileNotFoundError: No such file"
        else:
            path.write_bytes(path.read_bytes()[:-1000])
            reason = "OSError: image file is truncated"
        found[f"{log.stem}/{frame['token']}"] = f"{path}: {reason}"
    return found


def content(cache: Path) -> dict[str, bytes]:
    """Of all files, without gzip's time stamps."""
    return {str(path.relative_to(cache)): gzip.decompress(path.read_bytes()) for path in cache.glob("*/*/*.gz")}


def test_threads_write_the_same_cache_past_bad_images(
    world: Path, bad_images: dict[str, str], tiny_vlm: Path, tmp_path: Path
) -> None:
    runners = Runners(world, tiny_vlm, tmp_path)
    caches = []
    for name, worker in (("threads", THREADS), ("sequence", ("worker=sequential",))):
        caches.append(tmp_path / name)
        output = runners.run(
            "run_dataset_caching.py",
            *(*TINY_AGENT, *worker, "train_test_split=trainval", EVERY_FRAME, "force_cache_computation=false"),
            *(f"experiment_name={name}", f"cache_path={caches[-1]}"),
        )
        assert output.count("Loading the VLM from") == 1, "once per process"
        assert output.count("scenes could not be cached") == 1
        listed = output[output.index("2 scenes could not be cached") :]
        for scene, reason in bad_images.items():
            assert f"  {scene}: {reason}" in listed
    threads, sequence = map(content, caches)
    assert len(threads) == 4 * 19, "the other scenes of the same logs"
    assert threads == sequence
