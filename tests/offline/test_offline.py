"""Offline mode end to end at tiny size: cache, train, score, with the overrides that NAVSIM's runners take too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny_sizes import TINY_AGENT

from navsim_recogdrive.offline.feature_cache import CachedScenes, cache_scenes
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.world.scenes import load_scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module")
def run(folder: Path, tiny_world: Path, tiny_vlm: Path):
    def run(*overrides: str, expect_failure: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "navsim_recogdrive.offline", *TINY_AGENT, f"output_dir={folder}", *overrides],
            env={**os.environ, "OPENSCENE_DATA_ROOT": str(tiny_world), "VLM_PATH": str(tiny_vlm)},
            capture_output=True,
            text=True,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == expect_failure, output[-4000:]
        return output

    return run


def test_cache_train_score(run, folder: Path, tiny_world: Path) -> None:
    assert "run stage=cache" in run("stage=train", expect_failure=True)
    run("stage=cache")
    files = sorted((folder / "training_cache").glob("*/*/*.gz"))
    scenes = load_scenes(tiny_world, "trainval")
    assert len(files) == 4 * len(scenes)
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    assert "Cached 1 scenes now" in run("stage=cache")
    changed = {path for path in files if path.stat().st_mtime_ns != before[path]}
    assert changed <= set(files[:4]), "only one scene is new"

    run("stage=train", "trainer.params.max_epochs=2", "trainer.params.accelerator=cpu")
    (last,) = folder.rglob("last.ckpt")
    keys = torch.load(last, weights_only=True)["state_dict"]
    assert all(key.startswith("agent.action_head.") for key in keys)

    assert "needs agent.checkpoint_path" in run("stage=score", expect_failure=True)
    output = run("stage=score", f"agent.checkpoint_path='{last}'")
    assert "not PDM scores" in output
    tables = {
        name: pd.read_csv(folder / f"world_scores_{name}.csv") for name in ("human", "constant_velocity", "recogdrive")
    }
    for table in tables.values():
        assert len(table) == len(load_scenes(tiny_world, "test"))
        assert table["score"].between(0, 1).all()
    assert tables["human"]["score"].mean() > tables["constant_velocity"]["score"].mean()


def test_interrupted_write_leaves_nothing(
    tiny_world: Path, tiny_vlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = load_scenes(tiny_world, "test")[:1]
    backbone = SharedBackbone(VLMConfig(path=str(tiny_vlm), dtype="float32", hidden_length=640), "cpu")

    def full_disk(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cache_scenes(scenes, backbone, tmp_path)
    assert not list(tmp_path.glob("*/*/*"))
    monkeypatch.undo()
    assert cache_scenes(scenes, backbone, tmp_path) == 1
    assert cache_scenes(scenes, backbone, tmp_path) == 0
    features, targets = CachedScenes(scenes, tmp_path)[0]
    assert features["hidden_state"].shape == (640, 32)
    assert targets["token"] == scenes[0].token


def test_empty_split(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no scene"):
        CachedScenes([], tmp_path)
