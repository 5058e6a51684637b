"""Worlds on disk: equal for equal settings, restartable, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from navsim_recogdrive.world.__main__ import main
from navsim_recogdrive.world.generate import WorldFolderError, generate, read_index
from navsim_recogdrive.world.nuplan_map import write_maps
from navsim_recogdrive.world.presets import PRESETS, InvalidSettings, WorldSettings
from navsim_recogdrive.world.simulate import network_of

REPOSITORY = Path(__file__).parents[2]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def database(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def command(root: Path, settings: WorldSettings, *more: str) -> list[str]:
    width, height = settings.image_size
    return [
        *(sys.executable, "-m", "navsim_recogdrive.world", str(root), "--preset", "seconds", "--quiet"),
        *("--seed", str(settings.seed), "--test-logs", str(settings.test_logs)),
        *("--train-logs", str(settings.train_logs), "--val-logs", str(settings.val_logs)),
        *("--seconds-per-log", str(settings.seconds_per_log), "--vehicles", str(settings.vehicles)),
        *("--pedestrians", str(settings.pedestrians), "--image-size", f"{width}x{height}", *more),
    ]


def test_a_killed_run_is_continued_and_ends_in_the_very_same_world(world, world_settings, tmp_path):
    root = tmp_path / "again"
    call = command(root, world_settings, "--workers", "1")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.Popen(call, env=environment)
    deadline = time.monotonic() + 120.0
    while not list(root.glob("navsim_logs/*/*.pkl")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in root.glob("navsim_logs/*/*.pkl")}
    assert 0 < len(done) < 4
    for path in done:
        assert len(pickle.loads(path.read_bytes())) == world_settings.frames_per_log
    with pytest.raises(WorldFolderError, match="unfinished"):
        read_index(root)

    subprocess.run(call, env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    first, again = files(world), files(root)
    assert first.keys() == again.keys()
    different = [name for name in first if first[name] != again[name] and not name.endswith(".gpkg")]
    assert different == []
    packages = [name for name in first if name.endswith(".gpkg")]
    assert len(packages) == 4
    assert all(database(world / name) == database(root / name) for name in packages)


def test_another_seed_gives_another_world(world, world_settings, tmp_path):
    other = replace(world_settings, seed=4, val_logs=0, test_logs=0)
    generate(tmp_path / "other", other, progress=False)
    [log] = (tmp_path / "other").glob("navsim_logs/trainval/*.pkl")
    mine = pickle.loads(log.read_bytes())
    theirs = pickle.loads((world / "navsim_logs/trainval/world-0003-train-0000.pkl").read_bytes())
    assert not np.array_equal(mine[0]["ego2global_translation"], theirs[0]["ego2global_translation"])


def test_more_training_logs_leave_the_other_logs_as_they_are():
    few, many = WorldSettings(train_logs=2), WorldSettings(train_logs=9)
    assert set(few.drives()) <= set(many.drives())


def test_layout_and_index(world, world_settings):
    index = read_index(world)
    assert index["train_logs"] == ["world-0003-train-0000"]
    assert index["val_logs"] == ["world-0003-val-0000"]
    assert index["test_logs"] == ["world-0003-test-0000", "world-0003-test-0001"]
    assert index["scenes"] == {"train": 7, "val": 7, "test": 14}
    assert index["settings"]["image_size"] == [480, 270]
    # NAVSIM reads every file of a split's folder: nothing but logs may be there.
    assert {p.suffix for p in (world / "navsim_logs").glob("*/*")} == {".pkl"}
    assert sorted(p.name for p in world.iterdir()) == ["maps", "navsim_logs", "sensor_blobs", "world.json"]
    images = list(world.glob("sensor_blobs/*/*/CAM_F0/*.jpg"))
    assert len(images) == 4 * world_settings.frames_per_log
    assert cv2.imread(str(images[0])).shape == (270, 480, 3)


def test_logs_have_what_navsim_reads(world):
    tokens = set()
    for path in world.glob("navsim_logs/*/*.pkl"):
        frames = pickle.loads(path.read_bytes())
        split = path.parent.name
        assert np.diff([frame["timestamp"] for frame in frames]).tolist() == [500_000] * 19
        for frame in frames:
            tokens.add(frame["token"])
            assert len(frame["token"]) == 16
            assert int(frame["token"], 16) >= 0
            assert frame["log_name"] == path.stem
            assert frame["roadblock_ids"]
            assert all(isinstance(block, str) for block in frame["roadblock_ids"])
            assert frame["driving_command"].sum() == 1
            assert len(frame["driving_command"]) == 4
            assert np.linalg.norm(frame["ego2global_rotation"]) == pytest.approx(1.0)
            assert len(frame["cams"]) == 8
            annotations = frame["anns"]
            count = len(annotations["gt_boxes"])
            assert annotations["gt_boxes"].shape == (count, 7)
            assert annotations["gt_velocity_3d"].shape == (count, 3)
            assert len(annotations["gt_names"]) == len(annotations["track_tokens"]) == count
            assert len(set(annotations["track_tokens"])) == count
            assert set(annotations["gt_names"]) <= {"vehicle", "pedestrian"}
            assert (world / "sensor_blobs" / split / frame["cams"]["CAM_F0"]["data_path"]).is_file()
    assert len(tokens) == 80


def test_only_the_chosen_cameras_are_rendered(tmp_path):
    settings = WorldSettings(
        train_logs=0, val_logs=0, test_logs=1, seconds_per_log=7.0, vehicles=5, pedestrians=5, cameras="front3",
        image_size=(160, 90),
    )  # fmt: skip
    generate(tmp_path / "w", settings, progress=False)
    assert {p.name for p in (tmp_path / "w").glob("sensor_blobs/test/*/*")} == {"CAM_F0", "CAM_L0", "CAM_R0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds_per_log": 6.5}, "seconds_per_log must be in 7.0..600, found 6.5"),
        ({"vehicles": -1}, "vehicles must be in 0..120, found -1"),
        ({"train_logs": 0, "val_logs": 0, "test_logs": 0}, "at least one log"),
        ({"cameras": "rear"}, "cameras must be one of front, front3, all, found 'rear'"),
        ({"image_size": (100, 90)}, "image_size must lie between 160x90 and 7680x4320, found 100x90"),
        ({"jpeg_quality": 101}, "jpeg_quality must be in 1..100, found 101"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(InvalidSettings, match=message):
        WorldSettings(**change)


def test_presets_have_the_promised_sizes():
    sizes = {name: (s.train_logs * s.scenes_per_log, s.test_logs * s.scenes_per_log) for name, s in PRESETS.items()}
    assert sizes == {"seconds": (14, 14), "quickstart": (432, 81), "small": (1296, 324), "large": (9400, 1880)}


def test_help_explains_presets_and_environment(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "432 training, 81 validation, 81 test scenes" in text
    assert "OPENSCENE_DATA_ROOT" in text
    assert "--image-size WxH" in text


def test_a_finished_world_is_left_alone(world, world_settings, capsys):
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*.pkl")}
    assert main(command(world, world_settings)[3:]) == 0
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*.pkl")} == before
    assert "7 training, 7 validation, 14 test scenes" in capsys.readouterr().out


def test_command_line_errors(world, world_settings, tmp_path, capsys, monkeypatch):
    def error(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "found 101" in error(str(tmp_path / "w"), "--jpeg-quality", "101")
    assert "workers must be at least 1, found 0" in error(str(tmp_path / "w"), "--workers", "0")
    other = error(*command(world, replace(world_settings, vehicles=36))[3:])
    assert "another settings" in other
    assert "'vehicles': 35" in other
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    assert "not empty and holds no world" in error(str(tmp_path / "full"))
    (tmp_path / "file").write_text("x")
    assert "is a file" in error(str(tmp_path / "file"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    assert "0.0 GB free, this world needs about" in error(str(tmp_path / "w"))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "w"), "--image-size", "1920"])
    assert "expected WIDTHxHEIGHT like 1920x1080, found '1920'" in capsys.readouterr().err


def test_a_full_disk_is_explained(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("navsim_recogdrive.world.generate.write_maps", full)
    with pytest.raises(WorldFolderError, match="disk of .* is full.*complete logs are kept"):
        generate(tmp_path / "w", WorldSettings(), progress=False)


def test_reading_a_folder_without_a_world(tmp_path):
    with pytest.raises(WorldFolderError, match="holds no world.*python -m navsim_recogdrive.world"):
        read_index(tmp_path)


def test_maps_need_all_locations(tmp_path):
    with pytest.raises(ValueError, match="us-ma-boston"):
        write_maps(tmp_path, [network_of(0, 0)])


def test_map_index_names_the_packages(world):
    index = json.loads((world / "maps" / "nuplan-maps-v1.0.json").read_text())
    assert len(index) == 4
    for location, entry in index.items():
        assert (world / "maps" / location / entry["version"] / "map.gpkg").is_file()
