"""The fine-tuning scripts: exact commands, and clear refusals."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "pretraining"
SCRIPT_2B, SCRIPT_8B = (
    FOLDER / f"internvl3_{size}_dynamic_res_2nd_finetune_recogdrive_pretrain.sh" for size in ("2b", "8b")
)
DECIDING = ("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "GPUS_PER_NODE", "CUDA_VISIBLE_DEVICES", "MODEL", "ACCELERATE_")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    mixture = tmp_path / "my mixture.json"
    mixture.touch()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(DECIDING)}
    return {**inherited, "MIXTURE": str(mixture), "OUTPUT": "/exp/vlm"}


def run(script: Path, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *arguments], env=environment, capture_output=True, text=True)


def command(script: Path, *arguments: str, environment: dict[str, str]) -> list[str]:
    done = run(script, "--dry-run", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", [SCRIPT_2B, SCRIPT_8B])
def test_help(script: Path) -> None:
    done = run(script, "--help", environment={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert f"bash scripts/pretraining/{script.name}" in done.stdout
    assert "set -euo pipefail" not in done.stdout


def test_one_node(environment: dict[str, str]) -> None:
    words = command(SCRIPT_2B, "--layout", "hub", environment={**environment, "CUDA_VISIBLE_DEVICES": "0,1"})
    assert words == [
        *("python", "-m", "torch.distributed.run", "--nnodes=1", "--node_rank=0", "--nproc_per_node=2"),
        *("--master_addr=127.0.0.1", "--master_port=29500", "-m", "navsim_recogdrive.pretraining.finetuning"),
        *("--model", "OpenGVLab/InternVL3-2B", "--mixture", environment["MIXTURE"], "--output", "/exp/vlm"),
        *("--resume", "--layout", "hub"),
    ]


def test_the_8b_model_is_divided_among_gpus(environment: dict[str, str]) -> None:
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node7", "GPUS_PER_NODE": "8"}
    words = command(SCRIPT_8B, environment={**environment, **nodes})
    assert words[:9] == [
        *("python", "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / "fsdp.yaml")),
        *("--num_machines=2", "--machine_rank=1", "--num_processes=16", "--main_process_ip=node7"),
    ]
    assert words[words.index("--model") + 1] == "OpenGVLab/InternVL3-8B"
    whole = command(SCRIPT_8B, environment={**environment, **nodes, "ACCELERATE_CONFIG": ""})
    assert "torch.distributed.run" in whole


def test_cpu(environment: dict[str, str]) -> None:
    words = command(SCRIPT_2B, environment={**environment, "GPUS_PER_NODE": "0", "MODEL": "/vlm"})
    assert {"--nproc_per_node=1", "--cpu", "/vlm"} <= set(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"OUTPUT": ""}, "OUTPUT is not set"),
        ({"MIXTURE": ""}, "MIXTURE is not set"),
        ({"MIXTURE": "/nowhere.json"}, "MIXTURE=/nowhere.json is not a file"),
        ({"ACCELERATE_CONFIG": "/nowhere.yaml"}, "ACCELERATE_CONFIG=/nowhere.yaml is not a file"),
        (
            {"ACCELERATE_CONFIG": str(FOLDER / "fsdp.yaml"), "GPUS_PER_NODE": "0"},
            "GPUS_PER_NODE=0 asks for one process",
        ),
    ],
)
def test_settings_that_cannot_work(environment: dict[str, str], settings: dict[str, str], message: str) -> None:
    done = run(SCRIPT_2B, "--dry-run", environment={**environment, **settings})
    assert done.returncode == 2
    assert message in done.stderr


def test_the_fsdp_configuration_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / "fsdp.yaml"))
    assert str(config.distributed_type).endswith("FSDP")
    # Without whole state dicts the Trainer would write checkpoints without a model.
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
