"""One small world for all tests of the room: four logs of 10 s, 28 scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from navsim_recogdrive.world.generate import generate
from navsim_recogdrive.world.presets import WorldSettings

SETTINGS = WorldSettings(
    seed=3,
    train_logs=1,
    val_logs=1,
    test_logs=2,
    seconds_per_log=10.0,
    vehicles=35,
    pedestrians=30,
    image_size=(480, 270),
)


@pytest.fixture(scope="session")
def world_settings() -> WorldSettings:
    return SETTINGS


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "world"
    generate(root, SETTINGS, workers=2, progress=False)
    return root
