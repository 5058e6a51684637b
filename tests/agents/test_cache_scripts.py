"""Caching at scale: log shards, and the script that runs one process per shard."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sizes import TINY_AGENT

pytestmark = pytest.mark.navsim

SCRIPTS = Path(__file__).parents[2] / "scripts" / "cache_dataset"
EVERY_FRAME = "train_test_split.scene_filter.frame_interval=1"


@settings(deadline=None)  # the first example imports NAVSIM
@given(st.dictionaries(st.text("abc", min_size=1), st.integers(0, 500)), st.integers(1, 9))
def test_balance(scenes_of: dict[str, int], shards: int) -> None:
    from navsim_recogdrive.agents.log_shards import balance

    parts = balance(scenes_of, shards)
    assert len(parts) == shards
    assert sorted(log for part in parts for log in part.logs) == sorted(
        log for log, count in scenes_of.items() if count
    )
    for part in parts:
        assert part.scenes == sum(scenes_of[log] for log in part.logs)
    # Greedily divided, no part is larger than another by more than its smallest log.
    largest, smallest = max(parts, key=lambda part: part.scenes), min(parts, key=lambda part: part.scenes)
    if largest.logs:
        assert largest.scenes - smallest.scenes <= min(scenes_of[log] for log in largest.logs)
    assert balance(dict(reversed(scenes_of.items())), shards) == parts


def test_no_shards() -> None:
    from navsim_recogdrive.agents.log_shards import CannotShard, balance

    with pytest.raises(CannotShard, match="at least 1, found 0"):
        balance({"a": 1}, 0)


def test_scenes_are_counted_as_the_runner_counts_them(navsim_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.log_shards import CannotShard, scenes_per_log

    monkeypatch.setenv("NAVSIM_EXP_ROOT", "unused")
    split = ["train_test_split=trainval", EVERY_FRAME]
    counted = scenes_per_log(split, workers=1)
    assert len(counted) == 3
    assert sum(counted.values()) == 21, "14 training and 7 validation scenes"
    assert scenes_per_log(split, workers=2) == counted
    log = sorted(counted)[0]
    assert scenes_per_log([*split, f"train_test_split.scene_filter.log_names=['{log}']"], 1) == {log: counted[log]}
    assert sum(scenes_per_log(split[:1], workers=1).values()) < 21, "scenes that do not overlap are fewer"
    with pytest.raises(CannotShard, match="max_scenes=2"):
        scenes_per_log([*split, "train_test_split.scene_filter.max_scenes=2"], 1)
    with pytest.raises(CannotShard, match="the scene filter admits no scene of the 3 logs in .*: check OPENSCENE_DATA"):
        scenes_per_log([*split, "train_test_split.scene_filter.tokens=[none]"], 1)
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(navsim_world / "nothing"))
    with pytest.raises(FileNotFoundError, match="OPENSCENE_DATA_ROOT"):
        scenes_per_log(split, 1)


def test_logs_that_are_not_there(
    navsim_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None: an end, for hidden states and for metrics; some: a warning."""
    from navsim_recogdrive.agents.log_shards import main

    folder = navsim_world / "navsim_logs" / "trainval"
    log = min(path.stem for path in folder.glob("*.pkl"))
    monkeypatch.setenv("NAVSIM_EXP_ROOT", "unused")
    for task in (["--shards", "2", "--workers", "1"], ["--check-metric-caching"]):
        for names, status, said in (
            (["other", "another"], 2, f"error: none of the 2 logs of trainval is in {folder}: check OPENSCENE_DATA"),
            (["other", log], 0, f"warning: 1 of the 2 logs of trainval are not in {folder}"),
        ):
            overrides = [f"train_test_split.scene_filter.log_names=[{','.join(names)}]"]
            monkeypatch.setattr("sys.argv", ["log_shards", *task, "train_test_split=trainval", *overrides])
            assert main() == status
            printed = capsys.readouterr()
            assert said in printed.err
            assert len(printed.out.splitlines()) == (2 if status == 0 and "--shards" in task else 0)


@pytest.mark.parametrize("name", ["run_caching_recogdrive_hidden_state.sh", "run_metric_caching.sh"])
def test_caching_without_a_log_of_the_split_fails(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    environment |= {"SPLIT": "navtest", "WORKER": "sequential"}
    (tmp_path / "data" / "navsim_logs" / "test").mkdir(parents=True)
    environment["OPENSCENE_DATA_ROOT"] = str(tmp_path / "data")
    done = subprocess.run(_script(name=name), env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: none of the 136 logs of navtest is in" in done.stderr
    assert "Done" not in done.stdout
    assert not (tmp_path / "exp").exists(), "nothing has been started"


@pytest.fixture
def environment(tiny_world: Path, tiny_vlm: Path, tmp_path: Path) -> dict[str, str]:
    repository = SCRIPTS.parents[1]
    return {
        **os.environ,
        "OPENSCENE_DATA_ROOT": str(tiny_world),
        "NUPLAN_MAPS_ROOT": str(tiny_world / "maps"),
        "NAVSIM_EXP_ROOT": str(tmp_path / "exp"),
        "PYTHONPATH": os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), str(repository)) if path),
        "VLM_PATH": str(tiny_vlm),
        "SPLIT": "trainval",
        "GPUS_PER_NODE": "0",
    }


def _script(*arguments: str, name: str = "run_caching_recogdrive_hidden_state.sh") -> list[str]:
    return ["bash", str(SCRIPTS / name), *arguments]


@pytest.mark.parametrize(
    ("threads", "workers"),
    [
        ("", ["worker=single_machine_thread_pool", "worker.max_workers=4"]),
        ("1", ["worker=sequential"]),
    ],
)
def test_a_node_takes_its_shards_and_its_gpus(
    environment: dict[str, str], tmp_path: Path, threads: str, workers: list[str]
) -> None:
    """The first of two nodes, told by Slurm, with two GPUs of its own."""
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "CUDA_VISIBLE_DEVICES": "3,5", "GPUS_PER_NODE": "2"}
    done = subprocess.run(
        _script("--dry-run", *TINY_AGENT[1:], EVERY_FRAME, "agent.cache_mode=int8"),
        env={**environment, **slurm, "NNODES": "", "NODE_RANK": "", "THREADS_PER_PROCESS": threads},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "dividing trainval among 4 processes" in done.stdout
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("env ")]
    assert [command[1] for command in commands] == ["CUDA_VISIBLE_DEVICES=3", "CUDA_VISIBLE_DEVICES=5"]
    logs: list[str] = []
    for command in commands:
        assert {"force_cache_computation=false", "agent.cache_mode=int8"} <= set(command)
        assert [part for part in command if part.startswith("worker")] == workers
        (names,) = [part for part in command if part.startswith("train_test_split.scene_filter.log_names=")]
        logs += re.findall(r"'([^']+)'", names)
    assert len(logs) == len(set(logs)) == 2, "the third log is the other node's"
    assert not (tmp_path / "exp").exists(), "a dry run writes nothing"


def test_a_killed_process_is_reported_and_the_next_run_completes(environment: dict[str, str], tmp_path: Path) -> None:
    cache = tmp_path / "exp" / "recogdrive_2b_hidden_state_trainval"
    command = _script(*TINY_AGENT[1:], EVERY_FRAME)
    environment["PROCESSES_PER_GPU"] = "2"
    with (tmp_path / "output").open("w+") as output:
        run = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        victim = None
        while run.poll() is None and victim is None:
            if len(list(cache.glob("*/*/recogdrive_hidden_state.gz"))) >= 1:
                log = next(cache.glob("*/*/recogdrive_hidden_state.gz")).parts[-3]
                for child in psutil.Process(run.pid).children(recursive=True):
                    if any(log in part for part in child.cmdline()):
                        victim = child
                        victim.send_signal(signal.SIGKILL)
                        break
            time.sleep(0.01)
        assert run.wait() == 1
        output.seek(0)
        printed = output.read()
    assert victim is not None, printed
    assert re.search(r"Shard \d failed; the end of .*shard_\d\.log", printed)
    assert "1 of 2 processes failed; run this script again to continue" in printed

    before = {path: path.stat().st_mtime_ns for path in cache.glob("*/*/recogdrive_token.gz")}
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    after = {path: path.stat().st_mtime_ns for path in cache.glob("*/*/recogdrive_token.gz")}
    assert len(after) == 21 > len(before) > 0
    assert before.items() <= after.items(), "what was complete is left alone"

    from navsim_recogdrive.cache.__main__ import main

    assert main(["inspect", str(cache), "--full"]) == 0


def test_all_scenes_with_bad_images_are_listed(environment: dict[str, str], tiny_world: Path, tmp_path: Path) -> None:
    """More than the warning names, of a process that has no other scenes; and where none may be left out."""
    world = shutil.copytree(tiny_world, tmp_path / "world")
    logs = world / "navsim_logs" / "trainval"
    bad = {}
    for path in sorted(logs.glob("*.pkl"))[:2]:
        for frame in pickle.loads(path.read_bytes()):
            image = world / "sensor_blobs" / "trainval" / frame["cams"]["CAM_F0"]["data_path"]
            image.unlink()
            bad[f"{path.stem}/{frame['token']}"] = image
    environment |= {"OPENSCENE_DATA_ROOT": str(world), "THREADS_PER_PROCESS": "1"}
    only_bad = "train_test_split.scene_filter.log_names=[" + ",".join(sorted({one.split("/")[0] for one in bad})) + "]"
    listed = {}
    for force, status in (("false", 0), ("true", 1)):
        done = subprocess.run(
            _script(*TINY_AGENT[1:], EVERY_FRAME, only_bad, f"force_cache_computation={force}"),
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        listed[force] = sorted(re.findall(r"^  (\S+/\w+): (.*): FileNotFoundError", done.stdout, re.MULTILINE))
    assert len(listed["false"]) == 14, "seven scenes of each log"
    assert all(str(bad[scene]) == image for scene, image in listed["false"])
    assert listed["true"] == listed["false"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"NODE_RANK": "2", "NNODES": "2"}, "NODE_RANK=2 does not fit NNODES=2"),
        ({"GPUS_PER_NODE": "two"}, "GPUS_PER_NODE must be a whole number, found two"),
        ({"GPUS_PER_NODE": "3", "CUDA_VISIBLE_DEVICES": "0,1"}, "this node shows 2 GPUs"),
        ({"PROCESSES_PER_GPU": "0"}, "PROCESSES_PER_GPU must be at least 1"),
        ({"THREADS_PER_PROCESS": "0"}, "THREADS_PER_PROCESS must be at least 1"),
        ({"NAVSIM_EXP_ROOT": ""}, "NAVSIM_EXP_ROOT is not set"),
    ],
)
def test_settings_that_cannot_work(environment: dict[str, str], changed: dict[str, str], message: str) -> None:
    done = subprocess.run(_script(), env={**environment, **changed}, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("name", [path.name for path in SCRIPTS.glob("run_caching_recogdrive*.sh")])
def test_help_and_unknown_options(name: str) -> None:
    done = subprocess.run(_script("--help", name=name), capture_output=True, text=True)
    assert done.returncode == 0
    assert f"bash scripts/cache_dataset/{name}" in done.stdout
    assert "set -euo pipefail" not in done.stdout
    done = subprocess.run(_script("--fast", name=name), capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown option --fast" in done.stderr
