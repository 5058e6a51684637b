"""The script of the pipeline: help, refusals, and the whole way from logs to samples."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from label_scenes import sensible
from label_server import ChatServer

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "scripts" / "generate_dataset" / "generate_internvl_dataset_pipeline.sh"
ALL_SCENES = ["train_test_split.scene_filter.log_names=null", "train_test_split.scene_filter.tokens=null"]


def _bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "OPENSCENE_"))}
    known["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), known.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**known, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def _environment(world: Path, folder: Path, server: str) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": server,
        "OPENAI_MODEL": "tiny",
        "OPENAI_API_KEY": "sk-a-very-secret-key",
        "OPENSCENE_DATA_ROOT": str(world),
        "NUPLAN_MAPS_ROOT": str(world / "maps"),
        "NAVSIM_EXP_ROOT": str(folder),
        "SPLIT": "navtest",
        "WORKERS": "1",
    }


def test_help() -> None:
    done = _bash("--help")
    assert done.returncode == 0
    assert "bash scripts/generate_dataset/generate_internvl_dataset_pipeline.sh" in done.stdout
    assert "set -euo pipefail" not in done.stdout


def test_refusals() -> None:
    assert "OPENAI_BASE_URL is not set" in _bash().stderr
    assert "unknown option --fast" in _bash("--fast").stderr
    done = _bash("--", "--key", "sk-1")
    assert done.returncode == 2
    assert "set OPENAI_API_KEY or JUDGE_API_KEY in place of --key" in done.stderr
    assert "sk-1" not in done.stderr


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ((), "http://me:hunter22@127.0.0.1:9/v1"),
        ((), "https://host/v1?api-key=hunter22"),
        (("--base-url", "http://me:hunter22@127.0.0.1:9/v1"), "http://127.0.0.1:9/v1"),
        (("--judge-base-url=me:hunter22@127.0.0.1:9/v1",), "http://127.0.0.1:9/v1"),
    ],
)
def test_secrets_in_an_address_are_refused_before_anything_is_printed(
    tmp_path: Path, options: tuple[str, ...], address: str
) -> None:
    done = _bash("--dry-run", "--", *options, **_environment(tmp_path, tmp_path, address))
    assert done.returncode == 2
    assert "holds a user name, a password or a query" in done.stderr
    assert "hunter22" not in done.stdout + done.stderr


@pytest.mark.navsim
def test_dry_run_prints_the_commands_without_the_key(tmp_path: Path) -> None:
    environment = _environment(tmp_path, tmp_path, "http://127.0.0.1:9/v1")
    done = _bash("--dry-run", "worker=x", "--", "--limit-scenes", "3", **environment)
    assert done.returncode == 0, done.stderr
    check, scenes, labels = [line for line in done.stdout.splitlines() if line.startswith("python ")]
    assert check.split()[1:4] == ["-m", "navsim_recogdrive.pretraining.labelling", "check"]
    assert "--kind records" in scenes
    assert "worker=x" in scenes
    assert labels.endswith(f"--output {tmp_path}/vlm_data/navsim_recogdrive_navtest.jsonl --limit-scenes 3 ")
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.navsim
def test_no_server_is_said_before_scenes_are_read(tiny_world: Path, tmp_path: Path) -> None:
    done = _bash(*ALL_SCENES, **_environment(tiny_world, tmp_path, "http://127.0.0.1:9/v1"))
    assert done.returncode == 1
    assert "Trying tiny at 127.0.0.1:9\n" in done.stdout.replace("\x1b[0m", "")
    assert "the server at 127.0.0.1:9 does not answer" in done.stderr
    assert not (tmp_path / "vlm_data").exists()


@pytest.mark.navsim
def test_from_logs_to_samples(tiny_world: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with ChatServer(sensible) as server:
        environment = _environment(tiny_world, tmp_path, server.url)
        done = _bash(*ALL_SCENES, "--", "--limit-scenes", "2", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = [
        json.loads(line)
        for line in (tmp_path / "vlm_data" / "navsim_recogdrive_navtest.jsonl").read_text().splitlines()
    ]
    assert len(samples) >= 2 * 7
    for sample in samples:
        assert (tiny_world / sample["image"]).is_file()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if b"sk-a-very-secret-key" in path.read_bytes()]
