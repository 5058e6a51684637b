"""The generator of stage 1's data on the world of seconds: order, processes, restarts, and what is left out."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.navsim

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "generate_dataset" / "generate_internvl_dataset.sh"
EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"
TEXT = ["--prompt-profile", "three_cameras", "--cam-type", "multi"]


@pytest.fixture(scope="module")
def config(tiny_world: Path) -> Any:
    from navsim_recogdrive.agents.qa_scenes import read_config

    names = sorted(path.stem for path in (tiny_world / "navsim_logs" / "trainval").glob("*.pkl"))
    train = ",".join(name for name in names if "train" in name)
    return read_config(["train_test_split=trainval", EVERY_FRAME, f"train_logs=[{train}]", "val_logs=[]"])


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world that a test may damage."""
    copy = tmp_path / "openscene"
    shutil.copytree(tiny_world, copy)
    for name, value in (
        ("OPENSCENE_DATA_ROOT", copy),
        ("NUPLAN_MAPS_ROOT", copy / "maps"),
        ("NAVSIM_EXP_ROOT", "unused"),
    ):
        monkeypatch.setenv(name, str(value))
    return copy


@pytest.fixture
def generate(world: Path, config: Any, tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line, with NAVSIM's configuration read once for all tests."""
    from navsim_recogdrive.agents import qa_dataset
    from navsim_recogdrive.agents.qa_scenes import choose_logs

    monkeypatch.setattr(qa_dataset, "open_split", lambda overrides, part, root: choose_logs(config, part, root))

    def run(output: Path, *arguments: str) -> int:
        vlm = () if "--prompt-profile" in arguments else ("--vlm", str(tiny_vlm))
        return qa_dataset.main(["--output", str(output), *vlm, *arguments])

    return run


def _samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_one_sample_per_training_scene_whatever_the_processes(generate, world: Path, tmp_path: Path, capsys) -> None:
    from navsim_recogdrive.pretraining.datasets import main as datasets
    from navsim_recogdrive.vlm.answers import parse_trajectory
    from navsim_recogdrive.world.scenes import load_scenes

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert generate(one, "--workers", "1") == 0
    assert "14 scenes of 2 logs (0 of them without one)" in capsys.readouterr().out
    assert generate(two, "--workers", "2") == 0
    assert one.read_bytes() == two.read_bytes()
    scenes = load_scenes(world, "train")
    samples = _samples(one)
    assert [sample["id"] for sample in samples] == [scene.token for scene in scenes]
    for scene, sample in zip(scenes, samples, strict=True):
        assert world / sample["image"] == scene.image_path
        parsed = parse_trajectory(sample["conversations"][2]["value"])
        assert parsed.outcome == "exact"
        np.testing.assert_allclose(parsed.poses, scene.future_poses(), atol=0.0151)
    summary = json.loads((tmp_path / "one.jsonl.summary.json").read_text())
    assert sum(summary["commands"].values()) == summary["scenes"] == 14
    assert datasets(["check", str(tmp_path / "one.mixture.json"), "--workers", "1"]) == 0
    assert "one: 14 samples, 0 problems; licence: CC BY-NC-SA 4.0 (OpenScene)" in capsys.readouterr().out
    entry = json.loads((tmp_path / "one.mixture.json").read_text())["one"]
    assert (entry["prompt_profile"], entry["cameras"]) == ("published", ["front"])


def test_a_finished_file_is_left_alone_and_other_settings_are_refused(generate, tmp_path: Path, capsys) -> None:
    output = tmp_path / "data.jsonl"
    assert generate(output, "--workers", "1") == 0
    stamp = output.stat().st_mtime_ns
    assert generate(output, "--workers", "1") == 0
    assert output.stat().st_mtime_ns == stamp
    assert generate(output, "--workers", "1", "--logs", "all") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_three_cameras(generate, world: Path, tmp_path: Path, capsys) -> None:
    from navsim_recogdrive.pretraining.datasets import main as datasets

    output = tmp_path / "data.jsonl"
    assert generate(output, *TEXT, "--workers", "1") == 2
    assert "no scene gives a sample" in (error := capsys.readouterr().err), "the world has the front camera alone"
    assert "14 image missing" in error
    assert not list(tmp_path.glob("data*"))
    for log in (world / "sensor_blobs" / "trainval").iterdir():
        for camera in ("CAM_L0", "CAM_R0"):
            shutil.copytree(log / "CAM_F0", log / camera)
    assert generate(output, *TEXT, "--workers", "1") == 0
    for sample in _samples(output):
        assert [Path(image).parts[-2] for image in sample["image"]] == ["CAM_L0", "CAM_F0", "CAM_R0"]
    assert datasets(["check", str(tmp_path / "data.mixture.json"), "--workers", "1"]) == 0
    entry = json.loads((tmp_path / "data.mixture.json").read_text())["data"]
    assert (entry["prompt_profile"], entry["cameras"]) == ("three_cameras", ["front_left", "front", "front_right"])


def test_a_profile_of_one_s_own_lies_beside_the_data(generate, tmp_path: Path) -> None:
    from byte_vlm import write_short_profile

    from navsim_recogdrive.pretraining.registry import load_mixture
    from navsim_recogdrive.vlm.prompts import PromptProfile

    own = write_short_profile(tmp_path / "own.json")
    arguments = (tmp_path / "data.jsonl", "--prompt-profile", str(tmp_path / "own.json"), "--workers", "1")
    assert generate(*arguments) == 0
    (tmp_path / "own.json").unlink()
    entry = load_mixture(tmp_path / "data.mixture.json")["data"]
    assert entry.prompt_profile == str(tmp_path / "data.prompt_profile.json")
    assert PromptProfile.load(entry.prompt_profile) == own


def test_images_behind_a_link_and_roots_however_they_are_spelt(
    generate, world: Path, tmp_path: Path, monkeypatch
) -> None:
    from navsim_recogdrive.pretraining.datasets import main as datasets
    from navsim_recogdrive.pretraining.registry import load_mixture

    (world / "sensor_blobs").rename(tmp_path / "far")
    (world / "sensor_blobs").symlink_to(tmp_path / "far")
    (tmp_path / "alias").symlink_to(world)
    monkeypatch.chdir(tmp_path)
    spelt = (("openscene", ()), ("openscene", ("--data-root", str(world))), ("alias", ("--data-root", "openscene")),
             (str(world), ("--data-root", "alias/../openscene")))  # fmt: skip
    for number, (root, arguments) in enumerate(spelt):
        monkeypatch.setenv("OPENSCENE_DATA_ROOT", root)
        output = tmp_path / f"out{number}" / "data.jsonl"
        assert generate(output, *arguments, "--workers", "1") == 0
        mixture = output.with_suffix(".mixture.json")
        assert load_mixture(mixture)["data"].root == str(tmp_path / root)
        assert datasets(["check", str(mixture), "--workers", "1"]) == 0
        assert len(_samples(output)) == 14
    assert generate(tmp_path / "records.jsonl", "--kind", "records", "--workers", "1") == 0


def test_a_second_run_on_the_same_file_is_refused(generate, tmp_path: Path, capsys) -> None:
    output = tmp_path / "data.jsonl"
    hold = (
        "import sys; from pathlib import Path; from navsim_recogdrive.pretraining.locking import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(output)]
    holder = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert holder.stdout.readline() == "held\n"
    assert generate(output, "--workers", "1") == 1
    assert f"{output} is being written by another process: wait for it" in capsys.readouterr().err
    holder.communicate("")
    assert generate(output, "--workers", "1") == 0


def test_what_cannot_be_used_is_left_out_and_counted(generate, world: Path, tmp_path: Path, capsys) -> None:
    images = sorted((world / "sensor_blobs" / "trainval").glob("*train-0000/CAM_F0/*.jpg"))
    logs = sorted((world / "navsim_logs" / "trainval").glob("*train*.pkl"))
    frames = pickle.loads(logs[0].read_bytes())
    used = [world / "sensor_blobs" / "trainval" / frame["cams"]["CAM_F0"]["data_path"] for frame in frames[3:10]]
    assert set(used) <= set(images)
    used[0].unlink()
    used[1].write_bytes(used[1].read_bytes()[:2000])
    used[2].write_bytes(b"")
    frames[6]["ego_dynamic_state"][0] = float("nan")
    del frames[7]["anns"]
    frames[-1]["ego2global_translation"] = frames[-1]["ego2global_translation"] + 500.0
    logs[0].write_bytes(pickle.dumps(frames))
    output = tmp_path / "data.jsonl"
    assert generate(output, "--workers", "1") == 0
    shown = capsys.readouterr().out
    for reason in ("1 image missing", "1 image broken", "1 image empty", "1 invalid", "incomplete log"):
        assert reason in shown, reason
    assert str(used[0]) in shown
    left = {sample["id"] for sample in _samples(output)}
    assert {frame["token"] for frame in frames[3:7]}.isdisjoint(left)
    summary = json.loads((tmp_path / "data.jsonl.summary.json").read_text())
    assert summary["scenes"] + sum(summary["skipped"].values()) == 14
    assert summary["scenes"] == len(left) >= 7


def test_without_a_full_future(generate, config: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    from navsim_recogdrive.agents import qa_dataset
    from navsim_recogdrive.agents.qa_scenes import choose_logs

    config = config.copy()
    config.train_test_split.scene_filter.num_future_frames = 5
    monkeypatch.setattr(qa_dataset, "open_split", lambda overrides, part, root: choose_logs(config, part, root))
    assert generate(tmp_path / "data.jsonl", "--workers", "1") == 2
    assert "no full future" in capsys.readouterr().err
    records = tmp_path / "records.jsonl"
    assert generate(records, "--workers", "1", "--kind", "records") == 0
    assert all(record["future_poses"] is None for record in _samples(records))


def test_a_damaged_log_stops_nothing_but_itself(generate, world: Path, tmp_path: Path, capsys) -> None:
    bad = sorted((world / "navsim_logs" / "trainval").glob("*train*.pkl"))[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "data.jsonl"
    assert generate(output, "--workers", "2") == 1
    error = capsys.readouterr().err
    assert "1 of 2 logs could not be read; the others are kept" in error
    assert bad.stem in error
    parts = tmp_path / "data.jsonl.parts"
    (kept,) = parts.glob("*train*.jsonl")
    kept.write_text(kept.read_text().replace('"id"', '"kept": true, "id"'))
    bad.write_bytes(whole)
    assert not output.exists()
    assert generate(output, "--workers", "1") == 0
    assert sum("kept" in sample for sample in _samples(output)) == 7, "not written again"
    assert len(_samples(output)) == 14
    assert not parts.exists()


def test_a_full_disk_keeps_what_is_complete(generate, tmp_path: Path, monkeypatch, capsys) -> None:
    from navsim_recogdrive.pretraining import part_files

    written = []
    real = os.fsync

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(part_files.os, "fsync", full)
    output = tmp_path / "data.jsonl"
    assert generate(output, "--workers", "1") == 1
    assert "No space left on device; what is complete is kept" in capsys.readouterr().err
    monkeypatch.setattr(part_files.os, "fsync", real)
    assert len(list((tmp_path / "data.jsonl.parts").glob("*train*.json"))) == 1
    assert generate(output, "--workers", "1") == 0
    assert len(_samples(output)) == 14


def test_records_travel_through_the_file(generate, world: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.pretraining.facts import SceneFacts
    from navsim_recogdrive.pretraining.records import SceneRecord

    output = tmp_path / "records.jsonl"
    assert generate(output, "--kind", "records", "--workers", "1") == 0
    records = [SceneRecord.from_dict(content) for content in _samples(output)]
    assert len(records) == 14
    for record in records[::4]:
        facts = SceneFacts.of(record)
        assert facts.ego is not None
        assert len(facts.agents) == len(record.agents) > 0
        assert json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert not (tmp_path / "records.mixture.json").exists()


def test_wrong_options(generate, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "data.jsonl"
    monkeypatch.delenv("VLM_PATH", raising=False)
    assert generate(output, "--prompt-profile", "published") == 2
    assert "a tokenizer is needed" in capsys.readouterr().err
    assert generate(output, "--prompt-profile", "three_cameras") == 2
    assert "the policy sees ['front']" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate(output, "--fast")
    assert "unknown option --fast" in capsys.readouterr().err
    monkeypatch.delenv("NUPLAN_MAPS_ROOT")
    assert generate(output, "--kind", "records") == 2
    assert "NUPLAN_MAPS_ROOT" in capsys.readouterr().err
    assert not list(tmp_path.glob("data*"))


@pytest.fixture
def environment(world: Path, tiny_vlm: Path, tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH"), str(REPOSITORY)) if part)
    experiments = str(tmp_path / "exp")
    return {**os.environ, "PYTHONPATH": path, "VLM_PATH": str(tiny_vlm), "NAVSIM_EXP_ROOT": experiments, "WORKERS": "2"}


def test_the_script_stops_and_goes_on(environment: dict[str, str], world: Path, tmp_path: Path) -> None:
    names = sorted(path.stem for path in (world / "navsim_logs" / "trainval").glob("*train*.pkl"))
    command = ["bash", str(SCRIPT), EVERY_FRAME, f"train_logs=[{','.join(names)}]"]
    environment["SPLIT"] = "trainval"
    output = tmp_path / "exp" / "vlm_data" / "navsim_traj_trainval.jsonl"
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while first.poll() is None and not output.with_name(output.name + ".parts").exists():
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "14 scenes of 2 logs" in done.stdout
    assert str(output) in done.stdout
    assert len(_samples(output)) == 14
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "navsim_traj_trainval.jsonl", "navsim_traj_trainval.jsonl.summary.json", "navsim_traj_trainval.mixture.json",
    ]  # fmt: skip


def test_the_script_says_what_it_needs(environment: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments], env={**environment, **changes}, capture_output=True, text=True
        )

    assert "--dry-run" in run("--help").stdout
    dry = run("--dry-run", "a=b", KIND="records", LOGS="val")
    assert dry.returncode == 0, dry.stderr
    assert "--kind records --logs val --cam-type single" in dry.stdout
    assert dry.stdout.rstrip().endswith("train_test_split=navtrain a=b")
    assert "--prompt-profile published" not in dry.stdout
    for changes, message in (
        ({"VLM_PATH": ""}, "VLM_PATH is not set"),
        ({"OPENSCENE_DATA_ROOT": ""}, "OPENSCENE_DATA_ROOT is not set"),
        ({"KIND": "video"}, "KIND must be trajectory or records, found video"),
        ({"WORKERS": "many"}, "WORKERS must be a whole number"),
    ):
        refused = run(**changes)
        assert refused.returncode == 2
        assert message in refused.stderr
    assert not (tmp_path / "exp").exists()
