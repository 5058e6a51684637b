"""The scripts of metric caching and reinforcement learning: exact commands, and clear refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from script_runs import command, run, script_environment

METRICS, METRICS_TRAIN = (f"cache_dataset/run_metric_caching{name}.sh" for name in ("", "_train"))
RL_2B, RL_8B = (f"training/run_recogdrive_train_multi_node_rl_{size}.sh" for size in ("2b", "8b"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    reference = tmp_path / "epoch=9 il.ckpt"
    reference.touch()
    return script_environment(REFERENCE_CHECKPOINT=str(reference))


@pytest.mark.navsim
def test_metric_caching(environment: dict[str, str]) -> None:
    from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

    words = command(METRICS, "train_test_split.scene_filter.frame_interval=1", environment=environment)
    path, force = (
        ("metric_cache_path", "force_feature_computation")
        if NAVSIM_MAJOR >= 2
        else ("cache.cache_path", "cache.force_feature_computation")
    )
    assert words[1].endswith("run_metric_caching.py")
    assert words[2:] == [
        "train_test_split=navtest",
        "worker=ray_distributed_no_torch",
        f"{path}='/exp/metric_cache_navtest'",
        f"{force}=false",
        "train_test_split.scene_filter.frame_interval=1",
    ]
    chosen = {**environment, "WORKER": "sequential", "METRIC_CACHE_PATH": "/there"}
    words = command(METRICS_TRAIN, environment=chosen)
    assert words[2:] == [
        "train_test_split=navtrain",
        "worker=sequential",
        f"{path}='/there'",
        f"{force}=false",
    ]


@pytest.mark.navsim
def test_one_node(environment: dict[str, str]) -> None:
    words = command(RL_2B, "agent.rl.bc_weight=1.0", environment={**environment, "CUDA_VISIBLE_DEVICES": "2,3"})
    script = next(index for index, word in enumerate(words) if word.endswith("run_training.py"))
    assert words[:script] == [
        *("python", "-m", "torch.distributed.run", "--nnodes=1", "--node_rank=0", "--nproc_per_node=2"),
        *("--master_addr=127.0.0.1", "--master_port=29500"),
    ]
    assert words[script + 1 :] == [
        "agent=recogdrive_2b_rl",
        "train_test_split=navtrain",
        "experiment_name='training_recogdrive_2b_rl'",
        "cache_path='/exp/recogdrive_2b_hidden_state_navtrain'",
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        f"agent.reference_policy_checkpoint='{environment['REFERENCE_CHECKPOINT']}'",
        "agent.metric_cache_path='/exp/metric_cache_navtrain'",
        "agent.reward.workers=4",
        "trainer.params.max_epochs=10",
        "dataloader.params.batch_size=8",
        "trainer.params.gradient_clip_val=1.0",
        "trainer.params.num_nodes=1",
        "+trainer.params.devices=2",
        "agent.rl.bc_weight=1.0",
    ]


@pytest.fixture
def slurm(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Of node 8 in a job on two; its ``scontrol`` knows the names that a list means."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nseq -f 'node%g' $(echo $3 | tr -dc '0-9-' | tr - ' ')\n")
    scontrol.chmod(0o755)
    return {
        **environment,
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_GPUS_ON_NODE": "8",
        "MASTER_PORT": "12345",
        "CHECKPOINT": environment["REFERENCE_CHECKPOINT"],
    }


@pytest.mark.navsim
def test_slurm_tells_nodes_and_gpus(slurm: dict[str, str]) -> None:
    words = command(RL_8B, environment=slurm)
    assert {
        *("--nnodes=2", "--node_rank=1", "--nproc_per_node=8", "--master_addr=node7", "--master_port=12345"),
        *("agent=recogdrive_8b_rl", "trainer.params.num_nodes=2", "+trainer.params.devices=8"),
        "cache_path='/exp/recogdrive_8b_hidden_state_navtrain'",
        f"agent.checkpoint_path='{slurm['REFERENCE_CHECKPOINT']}'",
    } <= set(words)


@pytest.mark.navsim
@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"SLURM_JOB_NODELIST": "node[5-8]", "SLURM_STEP_NODELIST": "node[7-8]"}, "node7"),
        ({"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "node[8-8]"}, "127.0.0.1"),
        ({"SLURM_STEP_NODELIST": "node[8-8]"}, "node7"),
        ({"SLURM_NNODES": "9999", "SLURM_JOB_NODELIST": "node[1-9999]"}, "node1"),
    ],
    ids=["a step on some of the nodes", "a step on one of the nodes", "a step for each node", "thousands of nodes"],
)
def test_node_0_is_that_of_the_step(slurm: dict[str, str], settings: dict[str, str], address: str) -> None:
    assert f"--master_addr={address}" in command(RL_8B, environment={**slurm, **settings})


@pytest.mark.navsim
def test_cpu(environment: dict[str, str]) -> None:
    words = command(RL_2B, environment={**environment, "GPUS_PER_NODE": "0"})
    assert {"--nproc_per_node=1", "trainer.params.accelerator=cpu", "+trainer.params.devices=1"} <= set(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"REFERENCE_CHECKPOINT": ""}, "REFERENCE_CHECKPOINT is not set"),
        ({"REFERENCE_CHECKPOINT": "/nowhere.ckpt"}, "REFERENCE_CHECKPOINT=/nowhere.ckpt is not a file"),
        ({"CHECKPOINT": "/nowhere.ckpt"}, "CHECKPOINT=/nowhere.ckpt is not a file"),
        ({"NAVSIM_EXP_ROOT": ""}, "NAVSIM_EXP_ROOT is not set"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2 does not fit NNODES=2"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR is not set"),
        ({"GPUS_PER_NODE": "two"}, "GPUS_PER_NODE must be a whole number, found two"),
    ],
)
def test_settings_that_cannot_work(environment: dict[str, str], settings: dict[str, str], message: str) -> None:
    done = run(RL_2B, "--dry-run", environment={**environment, **settings})
    assert done.returncode == 2
    assert message in done.stderr
