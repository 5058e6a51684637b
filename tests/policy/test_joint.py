"""Joint mode without a host: features, training, what is saved, and what evaluation makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_observation import random_observation
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_PLANNER
from torch import nn
from torch.utils.data import default_collate

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy import remembered_vlm
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import PolicyConfig, VLMConfig
from navsim_recogdrive.policy.features import ego_features
from navsim_recogdrive.policy.image_features import scenes_of, tile_features
from navsim_recogdrive.policy.joint import CarriedVLM, OwnBackbone, TrainableVLM, read_trained_vlm
from navsim_recogdrive.policy.objective import ImitationObjective
from navsim_recogdrive.policy.optimization import lightning_optimizers
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.policy.training_configuration import OptimizerConfig
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

LORA = {"rank": 2, "dropout": 0.5}


def _vlm(path: Path, **settings: Any) -> dict[str, Any]:
    return {"path": str(path), "dtype": "float32", "hidden_length": TINY_HIDDEN_LENGTH, **settings}


def _config(path: Path, training: str, **vlm: Any) -> PolicyConfig:
    settings: dict[str, Any] = {
        "vlm": _vlm(path, training=training, **vlm),
        "planner": TINY_PLANNER,
        "cache_hidden_state": False,
        "device": "cpu",
    }
    if training == "lora":
        settings["lora"] = LORA
    return PolicyConfig.from_mapping(settings)


def _features(backbone: SharedBackbone, observations: list[Observation]) -> dict[str, torch.Tensor]:
    scenes = [{**tile_features(backbone.preparation, one), **ego_features(one)} for one in observations]
    batch: dict[str, torch.Tensor] = default_collate(scenes)
    return batch


class _Agent(nn.Module):
    """What the agent does with the parts, without NAVSIM."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.action_head = DiffusionPlanner(config.planner)
        for parameter in self.action_head.parameters():  # adaLN starts at zero, which would hide the condition
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
        self.vlm = TrainableVLM(config)
        self.backbone = OwnBackbone(config.vlm, self.vlm.backbone)
        self.policy = ReCogDrivePolicy(self.action_head, self.backbone, config.sampling)
        self.objective = ImitationObjective(self.policy, config.imitation)
        optimizer = OptimizerConfig(epochs=4, learning_rate=3e-3, warmup_epochs=0)
        self.optimizer = lightning_optimizers(
            self.action_head, optimizer, vlm=self.vlm, vlm_learning_rate=config.vlm.learning_rate
        )["optimizer"]

    def step(self, features: dict[str, torch.Tensor]) -> None:
        """One step of training; with its own noise."""
        self.train()
        scenes = len(features["past_poses"])
        targets = {"trajectory": torch.randn(scenes, 8, 3), "token": [str(index) for index in range(scenes)]}
        self.optimizer.zero_grad()
        self.objective.loss(features, targets, self.objective.predict(features)).backward()
        self.optimizer.step()

    def plans(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """As validation makes them."""
        self.eval()
        with torch.inference_mode():
            plans: torch.Tensor = self.objective.predict(features)["trajectory"]
        return plans.clone()

    def save(self, path: Path) -> Path:
        torch.save({"state_dict": {f"agent.{key}": value for key, value in self.state_dict().items()}}, path)
        return path


def test_features_have_one_shape_and_hold_the_scene(tiny_vlm: Path) -> None:
    backbone = SharedBackbone(VLMConfig(**_vlm(tiny_vlm)), "cpu")
    observations = [random_observation(0), random_observation(1, (200, 112)), random_observation(2, (112, 112))]
    features = _features(backbone, observations)
    capacity = backbone.preparation.tile_capacity
    assert features["image_tiles"].shape == (3, capacity, 112, 112, 3)
    assert features["image_tiles"].dtype == torch.uint8
    assert features["prompt"].shape == (3, TINY_HIDDEN_LENGTH)
    assert len(set(features["num_tiles"].tolist())) > 1, "the comparison needs images of different shapes"
    for scene, prepared in zip(scenes_of(features), backbone.prepare(observations), strict=True):
        assert np.array_equal(np.asarray(scene.tiles), prepared.tiles)
        assert np.array_equal(scene.token_ids, prepared.token_ids)
    together = backbone.hidden_states_of(scenes_of(features))
    torch.testing.assert_close(together, backbone.hidden_states(observations))


def test_features_of_one_resized_image(tmp_path: Path) -> None:
    """Qwen cuts nothing: one tile, wider than high."""
    path = write_tiny_checkpoint(tmp_path / "qwen", layout="qwen2_5_vl", hidden_size=32)
    backbone = SharedBackbone(VLMConfig(**_vlm(path)), "cpu")
    observations = [random_observation(seed) for seed in range(2)]
    features = _features(backbone, observations)
    assert features["image_tiles"].shape[:2] == (2, 1)
    assert features["image_tiles"].shape[2] != features["image_tiles"].shape[3]
    torch.testing.assert_close(backbone.hidden_states_of(scenes_of(features)), backbone.hidden_states(observations))


def test_published_settings_leave_room_for_nine_tiles(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "vlm", hidden_size=32)
    preparation = SharedBackbone(VLMConfig(path=str(path)), "cpu").preparation
    assert preparation.hidden_length == 2800
    assert preparation.tile_capacity == 9


@pytest.mark.parametrize("training", ["lora", "full"])
def test_evaluation_plans_as_validation_did(tiny_vlm: Path, tmp_path: Path, training: str) -> None:
    config = _config(tiny_vlm, training)
    agent = _Agent(config)
    observations = [random_observation(seed) for seed in range(2)]
    features = _features(agent.backbone, observations)
    untrained = agent.plans(features)
    base = SharedBackbone(config.vlm, "cpu").hidden_states(observations)
    hidden = []
    for _ in range(2):
        agent.step(features)
        agent.eval()
        with torch.inference_mode():  # as in validation
            hidden.append(agent.backbone.hidden_states(observations).clone())
    assert not torch.equal(hidden[0], hidden[1]), "hidden states of a VLM in training must not be kept"
    planned = agent.plans(features)
    assert (planned - untrained).abs().max() > 1e-3

    path = agent.save(tmp_path / "last.ckpt")
    policy = ReCogDrivePolicy.from_pretrained(
        tiny_vlm, path, device="cpu", vlm_config=VLMConfig(**_vlm(tiny_vlm)), sampling=config.sampling
    )
    for observation, expected, rows in zip(observations, planned, hidden[1], strict=True):
        torch.testing.assert_close(policy.backbone.hidden_states([observation])[0], rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(policy.plan(observation).poses), expected, rtol=1e-4, atol=1e-4)
    both = policy.backbone.hidden_states_of(scenes_of(features))
    assert torch.equal(both, hidden[1]), "the same batch gives the same bits"
    assert torch.equal(SharedBackbone(config.vlm, "cpu").hidden_states(observations), base), (
        "the shared VLM was changed"
    )


def test_what_is_trained_is_what_is_saved(tiny_vlm: Path, tmp_path: Path) -> None:
    sizes = {}
    for training in ("lora", "full"):
        agent = _Agent(_config(tiny_vlm, training))
        state = agent.state_dict()
        saved = {key for key in state if key.startswith("vlm.")} - {"vlm._extra_state"}
        trained = {f"vlm.{name}" for name, parameter in agent.vlm.named_parameters() if parameter.requires_grad}
        assert saved == trained
        sizes[training] = sum(state[key].nbytes for key in saved)

        other = _Agent(_config(tiny_vlm, training))
        agent.step(_features(agent.backbone, [random_observation(0)]))
        other.load_state_dict(agent.state_dict())  # strictly, as when a run is resumed
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in agent.state_dict().items())
        incomplete = agent.state_dict()
        incomplete.pop(sorted(saved)[0])
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict(incomplete)
    assert sizes["lora"] < sizes["full"] / 10


def test_only_what_is_trained_is_in_training_mode(tiny_vlm: Path) -> None:
    agent = _Agent(_config(tiny_vlm, "lora"))
    agent.train()
    dropouts = [module for name, module in agent.vlm.model.named_modules() if "lora_dropout.default" in name]
    assert dropouts
    assert all(module.training for module in dropouts)
    assert not agent.vlm.model.vision_tower.training
    assert not agent.vlm.model.multi_modal_projector.training
    agent.eval()
    assert not any(module.training for module in agent.vlm.modules())
    full = TrainableVLM(_config(tiny_vlm, "full")).train()
    assert full.model.vision_tower.training


def test_learning_rates(tiny_vlm: Path) -> None:
    agent = _Agent(_config(tiny_vlm, "lora", learning_rate=1e-5))
    assert [group["lr"] for group in agent.optimizer.param_groups] == [3e-3, 1e-5]
    in_groups = [len(group["params"]) for group in agent.optimizer.param_groups]
    assert in_groups == [
        len([p for p in part.parameters() if p.requires_grad]) for part in (agent.action_head, agent.vlm)
    ]
    agent = _Agent(_config(tiny_vlm, "lora"))
    assert [group["lr"] for group in agent.optimizer.param_groups] == [3e-3, 3e-3]
    config = OptimizerConfig(epochs=10, learning_rate=1e-4, warmup_epochs=2, min_learning_rate=1e-6)
    optimizers = lightning_optimizers(agent.action_head, config, vlm=agent.vlm, vlm_learning_rate=2e-5)
    rates = []
    for _ in range(11):
        rates.append([group["lr"] for group in optimizers["optimizer"].param_groups])
        optimizers["optimizer"].step()
        optimizers["lr_scheduler"]["scheduler"].step()
    np.testing.assert_allclose([vlm / planner for planner, vlm in rates], 0.2)
    assert rates[-1] == pytest.approx([1e-6, 2e-7])


def test_other_base_or_training_is_refused(tiny_vlm: Path, tmp_path: Path) -> None:
    path = _Agent(_config(tiny_vlm, "lora")).save(tmp_path / "last.ckpt")
    trained = read_trained_vlm(path)
    assert trained is not None
    other = write_tiny_checkpoint(tmp_path / "other", hidden_size=32, tile_size=112, seed=1)
    with pytest.raises(VLMCheckpointError, match=f"fingerprint {trained.base}, the one configured has [0-9a-f]{{64}}"):
        ReCogDrivePolicy.from_pretrained(other, path, device="cpu", vlm_config=VLMConfig(**_vlm(other)))
    with pytest.raises(VLMCheckpointError, match="fingerprint"):
        TrainableVLM(_config(other, "lora"), trained)
    with pytest.raises(InvalidSetting, match=r"vlm.training=lora \(agent.lora.rank=2.*this run asks for full"):
        TrainableVLM(_config(tiny_vlm, "full"), trained)
    mine = TrainableVLM(_config(tiny_vlm, "lora"), trained)
    assert all(torch.equal(value, mine.trained().weights[name]) for name, value in trained.weights.items())

    state = torch.load(path, weights_only=True)["state_dict"]
    del state["agent.vlm._extra_state"]
    torch.save({"state_dict": state}, path)
    with pytest.raises(VLMCheckpointError, match="without their description"):
        read_trained_vlm(path)


def test_another_dtype_than_in_training_is_warned_of(
    tiny_vlm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(tiny_vlm, "full", dtype="bfloat16")
    agent = _Agent(config)
    path = agent.save(tmp_path / "joint.ckpt")
    content = torch.load(path, weights_only=True)
    identity = SharedBackbone(config.vlm, "cpu").identity()
    torch.save({**content, "navsim_recogdrive": {"vlm": identity.to_dict()}}, path)
    warned = {}
    for dtype in ("bfloat16", "float32"):
        remembered_vlm._warn_of_dtype.cache_clear()
        vlm = VLMConfig(**{**_vlm(tiny_vlm), "dtype": dtype})
        for _ in range(2):
            ReCogDrivePolicy.from_pretrained(tiny_vlm, path, device="cpu", vlm_config=vlm)
        warned[dtype] = [record.message for record in caplog.records if "hidden states computed in" in record.message]
    assert warned["bfloat16"] == []
    assert len(warned["float32"]) == 1, "once per process"
    assert "computed in bfloat16, here they are computed in float32" in warned["float32"][0]
    assert "Set agent.vlm.dtype=bfloat16" in warned["float32"][0]


@pytest.mark.parametrize("training", ["lora", "full"])
def test_a_vlm_that_is_not_finite_is_not_resumed(training: str, tiny_vlm: Path) -> None:
    """A resumed run's weights come by ``load_state_dict``, into the VLM in training or the carried one."""
    part = TrainableVLM(_config(tiny_vlm, training))
    state = {key: value.clone() for key, value in part.state_dict().items()}
    name = sorted(key for key in state if key.startswith("model."))[-1]
    carried = CarriedVLM(part.trained())
    state[name].view(-1)[-1] = float("nan")
    refused = rf"trained VLM holds values that are not finite: {name.removeprefix('model.')}; its training has diverged"
    for module in (part, carried):
        with pytest.raises(VLMCheckpointError, match=refused):
            nn.ModuleDict({"vlm": module}).load_state_dict({f"vlm.{key}": value for key, value in state.items()})
        assert all(value.isfinite().all() for value in module.state_dict().values()), "nothing is changed then"


def test_a_trained_vlm_is_carried_through_a_run_of_the_planner_alone(tiny_vlm: Path, tmp_path: Path) -> None:
    agent = _Agent(_config(tiny_vlm, "lora"))
    agent.step(_features(agent.backbone, [random_observation(0)]))
    path = agent.save(tmp_path / "joint.ckpt")
    trained = read_trained_vlm(path)
    assert trained is not None
    second = nn.Module()
    second.action_head = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    second.vlm = CarriedVLM(trained)
    assert not list(second.vlm.parameters())
    expected = {key: value for key, value in agent.state_dict().items() if key.startswith("vlm.")}
    carried = {key: value for key, value in second.state_dict().items() if key.startswith("vlm.")}
    assert carried.keys() == expected.keys()
    assert all(torch.equal(value, carried[key]) for key, value in expected.items())
    second.load_state_dict(second.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*vlm._extra_state"):
        second.load_state_dict({key: value for key, value in second.state_dict().items() if "vlm." not in key})


def test_a_checkpoint_of_the_planner_alone_holds_no_vlm(tmp_path: Path) -> None:
    planner = DiffusionPlanner(PlannerConfig(**TINY_PLANNER))  # type: ignore[arg-type]
    torch.save({f"agent.action_head.{key}": value for key, value in planner.state_dict().items()}, tmp_path / "a.pt")
    assert read_trained_vlm(tmp_path / "a.pt") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vlm": {"training": "lora"}}, "vlm.training=lora needs agent.cache_hidden_state=false"),
        ({"vlm": {"training": "some"}}, "vlm.training must be one of"),
        ({"vlm": {"gradient_checkpointing": True}}, "vlm.gradient_checkpointing=true cannot act"),
        ({"vlm": {"learning_rate": 1e-5}}, "vlm.learning_rate=1e-05 cannot act"),
        ({"vlm": {"training": "full", "learning_rate": 0}}, "vlm.learning_rate must be positive"),
        ({"lora": {"rank": 4}}, "agent.lora.rank cannot act with agent.vlm.training=frozen"),
        (
            {"lora": {"rank": 4, "alpha": 4}, "vlm": {"training": "full"}, "cache_hidden_state": False},
            "agent.lora.rank, agent.lora.alpha cannot act with agent.vlm.training=full",
        ),
        ({"lora": {"ranks": 4}}, "unknown setting.*ranks.*'lora'"),
        ({"cache_hidden_state": "no"}, "cache_hidden_state must be true or false"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        PolicyConfig.from_mapping(settings)
