from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_observation import random_observation
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_PLANNER

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy import backbones
from navsim_recogdrive.policy.backbones import SharedBackbone, resolve_device
from navsim_recogdrive.policy.configuration import PolicyConfig, SamplingConfig, VLMConfig
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.settings import InvalidSetting


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    planner = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    for parameter in planner.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path_factory.mktemp("planner") / "last.ckpt"
    torch.save({"state_dict": {f"agent.action_head.{k}": v for k, v in planner.state_dict().items()}}, path)
    return path


@pytest.fixture
def policy(tiny_vlm: Path, checkpoint: Path) -> ReCogDrivePolicy:
    config = VLMConfig(dtype="float32", hidden_length=TINY_HIDDEN_LENGTH)
    return ReCogDrivePolicy.from_pretrained(tiny_vlm, checkpoint, device="cpu", vlm_config=config)


def test_from_pretrained_reads_the_sizes_from_the_checkpoint(policy: ReCogDrivePolicy) -> None:
    assert policy.planner.config == PlannerConfig(**TINY_PLANNER)  # type: ignore[arg-type]
    assert not policy.planner.training


def test_batch_and_single_plans_agree(policy: ReCogDrivePolicy) -> None:
    observations = [random_observation(seed) for seed in range(3)]
    batch = policy.plan_batch(observations, num_samples=4)
    assert [len(scene) for scene in batch] == [4, 4, 4]
    for observation, scene in zip(observations, batch, strict=True):
        assert scene[0].poses.shape == (8, 3)
        assert not np.array_equal(scene[0].poses, scene[1].poses)
        again = policy.plan_batch([observation], num_samples=4)[0]
        np.testing.assert_allclose(again[2].poses, scene[2].poses, atol=1e-4)


def test_the_plan_depends_on_the_image_and_the_command(policy: ReCogDrivePolicy) -> None:
    policy.sampling = SamplingConfig(deterministic=True)
    base = random_observation(1)
    other_image = Observation(
        255 - base.front_image, base.past_poses, base.velocity, base.acceleration, base.driving_command
    )
    assert np.abs(policy.plan(base).poses - policy.plan(other_image).poses).max() > 1e-6


def test_the_vlm_is_loaded_once_per_process(tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_LOADED", {})
    config = VLMConfig(path=str(tiny_vlm), dtype="float32", hidden_length=TINY_HIDDEN_LENGTH)
    first, second = SharedBackbone(config, "cpu"), SharedBackbone(config, "cpu")
    assert backbones._LOADED == {}, "nothing is loaded before it is needed"
    assert first.load() is second.load()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(InvalidSetting, match="auto, cpu, cuda"):
        resolve_device("gpu please")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidSetting, match="sees 0 CUDA"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("auto") == torch.device("cuda", 3)


def test_settings() -> None:
    config = PolicyConfig.from_mapping({"planner": {"method": "flow"}, "optimizer": {"betas": [0.8, 0.9]}})
    assert config.planner.method == "flow"
    assert config.optimizer.betas == (0.8, 0.9)
    with pytest.raises(InvalidSetting, match=r"unknown setting\(s\) vml in 'agent'"):
        PolicyConfig.from_mapping({"vml": {}})
    with pytest.raises(InvalidSetting, match="float16"):
        PolicyConfig.from_mapping({"vlm": {"dtype": "float16"}})


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("imitation", "draws_per_scene", 0),
        ("imitation", "draws_per_scene", 2.5),
        ("sampling", "seed", "abc"),
        ("sampling", "deterministic", "maybe"),
        ("vlm", "hidden_length", -3),
        ("vlm", "max_tiles", 0),
        ("optimizer", "learning_rate", 0),
        ("optimizer", "min_learning_rate", 1.0),
        ("optimizer", "weight_decay", -1),
        ("optimizer", "betas", [0.9]),
        ("optimizer", "warmup_epochs", -3),
    ],
)
def test_values_that_cannot_work_are_named(part: str, name: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=rf"{part}\.{name}"):
        PolicyConfig.from_mapping({part: {name: value}})


def test_vlm_and_checkpoint_of_different_sizes(tiny_vlm: Path, tmp_path: Path) -> None:
    planner = DiffusionPlanner(PlannerConfig(**{**TINY_PLANNER, "hidden_state_size": 64}))  # type: ignore[arg-type]
    torch.save(planner.state_dict(), tmp_path / "planner.pt")
    with pytest.raises(InvalidSetting, match="has hidden size 32, the planner expects 64"):
        ReCogDrivePolicy.from_pretrained(tiny_vlm, tmp_path / "planner.pt", device="cpu")
