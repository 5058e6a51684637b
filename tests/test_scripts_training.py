"""The scripts of imitation learning: exact commands, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import overrides, run, script_environment

IL_2B, IL_8B, EMA_2B, EMA_8B, RL_2B = (
    f"training/run_recogdrive_train_multi_node_{name}.sh" for name in ("2b", "8b", "ema_2b", "ema_8b", "rl_2b")
)


@pytest.mark.navsim
def test_the_published_recipe() -> None:
    environment = script_environment(CUDA_VISIBLE_DEVICES="0,1")
    runner, given = overrides(IL_2B, "agent.imitation.draws_per_scene=8", environment=environment)
    assert runner == "run_training.py"
    assert given == [
        "agent=recogdrive_2b",
        "train_test_split=navtrain",
        "experiment_name='training_recogdrive_2b'",
        "cache_path='/exp/recogdrive_2b_hidden_state_navtrain'",
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        "trainer.params.max_epochs=200",
        "dataloader.params.batch_size=16",
        "trainer.params.gradient_clip_val=1.0",
        "trainer.params.num_nodes=1",
        "+trainer.params.devices=2",
        "agent.imitation.draws_per_scene=8",
    ]


@pytest.mark.navsim
@pytest.mark.parametrize(
    ("script", "settings", "expected"),
    [
        (IL_8B, {}, {"agent=recogdrive_8b", "cache_path='/exp/recogdrive_8b_hidden_state_navtrain'"}),
        (EMA_2B, {}, {"agent.ema.decay=0.999", "experiment_name='training_recogdrive_2b_ema'"}),
        (EMA_8B, {"EMA_DECAY": "0.9"}, {"agent=recogdrive_8b", "agent.ema.decay=0.9"}),
        (
            IL_2B,
            {"SPLIT": "trainval", "EXPERIMENT": "mine", "EPOCHS": "3", "BATCH_SIZE": "4"},
            {
                *("train_test_split=trainval", "experiment_name='mine'", "trainer.params.max_epochs=3"),
                *("dataloader.params.batch_size=4", "cache_path='/exp/recogdrive_2b_hidden_state_trainval'"),
            },
        ),
        (IL_2B, {"CACHE_PATH": "/a b", "RESUME": "1"}, {"cache_path='/a b'", "agent.resume=auto"}),
        (IL_2B, {"RESUME": "auto"}, {"agent.resume=auto"}),
        (IL_2B, {"RESUME": str(Path(__file__).parent)}, {f"agent.resume='{Path(__file__).parent}'"}),
        (IL_2B, {"GPUS_PER_NODE": "0"}, {"trainer.params.accelerator=cpu", "dataloader.params.pin_memory=false"}),
        (IL_2B, {"CHECKPOINT": __file__}, {f"agent.checkpoint_path='{__file__}'"}),
        (RL_2B, {"REFERENCE_CHECKPOINT": __file__, "RESUME": "1", "EMA_DECAY": ".99"}, {"agent.ema.decay=.99"}),
    ],
)
def test_variables_become_overrides(script: str, settings: dict[str, str], expected: set[str]) -> None:
    _, given = overrides(script, environment=script_environment(**settings))
    assert set(given) >= expected


@pytest.mark.navsim
def test_what_is_not_asked_for_is_not_given() -> None:
    for settings in ({}, {"RESUME": "0"}, {"EMA_DECAY": ""}):
        _, given = overrides(IL_2B, environment=script_environment(**settings))
        assert not [one for one in given if one.startswith(("agent.ema", "agent.resume", "agent.checkpoint_path"))]


@pytest.mark.navsim
def test_joint_mode_reads_image_tiles_or_no_cache() -> None:
    joint = ("agent.cache_hidden_state=false", "agent.vlm.training=lora")
    _, given = overrides(IL_2B, *joint, environment=script_environment())
    assert "cache_path='/exp/recogdrive_2b_image_tiles_navtrain'" in given
    assert given[-2:] == list(joint)
    _, given = overrides(IL_2B, *joint, environment=script_environment(CACHE_PATH="none"))
    assert {"cache_path=null", "force_cache_computation=false"} <= set(given)
    assert "use_cache_without_dataset=true" not in given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CHECKPOINT": "/nowhere.ckpt"}, "CHECKPOINT=/nowhere.ckpt is not a file"),
        ({"EMA_DECAY": "1.5"}, "EMA_DECAY must be between 0 and 1, found 1.5"),
        ({"EMA_DECAY": "0"}, "EMA_DECAY must be between 0 and 1, found 0"),
        ({"RESUME": "/nowhere"}, "RESUME must be 1 or auto, or a run's folder or checkpoint, found /nowhere"),
        ({"EPOCHS": "0"}, "EPOCHS must be at least 1"),
        ({"BATCH_SIZE": "-4"}, "BATCH_SIZE must be a whole number, found -4"),
        ({"EPOCHS": "1234567890"}, "EPOCHS must be a whole number of at most 9 digits, found 1234567890"),
        ({"GPUS_PER_NODE": "9999999999999999999"}, "GPUS_PER_NODE must be a whole number of at most 9 digits"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT must be at least 1"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be at most 65535, found 65536"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR is not set"),
        ({"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]"}, "MASTER_ADDR is not set"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, str], message: str) -> None:
    done = run(IL_2B, "--dry-run", environment=script_environment(**settings))
    assert done.returncode == 2
    assert message in done.stderr


def test_a_cache_that_is_not_there_is_said_before_anything_starts() -> None:
    done = run(IL_2B, environment=script_environment())
    assert done.returncode == 2
    assert "CACHE_PATH=/exp/recogdrive_2b_hidden_state_navtrain is not a folder: fill it with" in done.stderr
