"""The agent's contracts with the runners, and its early errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from navsim_recogdrive.vlm import VLMOutOfMemory

pytestmark = pytest.mark.navsim


def _save_checkpoint(agent: Any, path: Path) -> Path:
    """As Lightning does: the state dict of ``AgentLightningModule``."""
    torch.save({"state_dict": {f"agent.{key}": value for key, value in agent.state_dict().items()}}, path)
    return path


@pytest.fixture
def checkpoint(make_agent: Callable[..., Any], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    agent = make_agent()
    for parameter in agent.parameters():  # adaLN starts at zero, which would hide the condition
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return _save_checkpoint(agent, tmp_path / "last.ckpt")


def test_checkpoint_holds_the_planner_alone(make_agent: Callable[..., Any], scene_loader: Callable[..., Any]) -> None:
    agent = make_agent()
    loader = scene_loader("test", agent.get_sensor_config())
    agent.get_feature_builders()[0].compute_features(
        loader.get_agent_input_from_token(loader.tokens[0])
    )  # loads the VLM
    assert all(key.startswith("action_head.") for key in agent.state_dict())


@pytest.mark.parametrize("error", [VLMOutOfMemory("let fewer workers"), torch.cuda.OutOfMemoryError("tried 2 GiB")])
def test_a_gpu_without_memory_stops_scoring(
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """A runner catches each ``Exception`` of a scene, and v1.1 would leave the scene out of the mean."""
    from navsim_recogdrive.agents.cache_use import EvaluationStopped

    def exhausted(*_: Any) -> Any:
        raise error

    agent = make_agent(checkpoint_path=str(checkpoint))
    agent.initialize()
    monkeypatch.setattr(agent._policy, "plan", exhausted)
    loader = scene_loader("test", agent.get_sensor_config())
    with pytest.raises(EvaluationStopped, match=str(error)):
        agent.compute_trajectory(loader.get_agent_input_from_token(loader.tokens[0]))
    assert not issubclass(EvaluationStopped, Exception)


def test_same_scene_same_trajectory_in_any_order(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], checkpoint: Path
) -> None:
    def plan(agent: Any, tokens: list[str]) -> dict[str, np.ndarray]:
        agent.initialize()
        return {token: agent.compute_trajectory(loader.get_agent_input_from_token(token)).poses for token in tokens}

    first = make_agent(checkpoint_path=str(checkpoint))
    loader = scene_loader("test", first.get_sensor_config())
    tokens = loader.tokens[::5][:4]
    forwards = plan(first, tokens)
    torch.manual_seed(123)
    backwards = plan(make_agent(checkpoint_path=str(checkpoint)), tokens[::-1])
    for token in tokens:
        assert forwards[token].shape == (8, 3)
        assert forwards[token].dtype == np.float32
        np.testing.assert_array_equal(forwards[token], backwards[token])
    assert not np.array_equal(forwards[tokens[0]], forwards[tokens[1]])

    other_seed = plan(make_agent(checkpoint_path=str(checkpoint), sampling={"seed": 1}), tokens[:1])
    assert not np.array_equal(forwards[tokens[0]], other_seed[tokens[0]])
    deterministic = make_agent(checkpoint_path=str(checkpoint), sampling={"deterministic": True})
    assert not np.array_equal(forwards[tokens[0]], plan(deterministic, tokens[:1])[tokens[0]])


def test_either_kind_of_weights_can_be_scored(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], checkpoint: Path
) -> None:
    from navsim_recogdrive.planner.checkpoints import PlannerCheckpointError
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(PlannerCheckpointError, match=r"no raw weights.*leave out agent\.checkpoint_weights=raw"):
        make_agent(checkpoint_path=str(checkpoint), checkpoint_weights="raw")
    with pytest.raises(InvalidSetting, match=r"cannot act without agent\.checkpoint_path"):
        make_agent(checkpoint_weights="raw")

    averaged = torch.load(checkpoint, weights_only=True)["state_dict"]
    changed = {key: value + 0.1 if key.endswith("linear.weight") else value for key, value in averaged.items()}
    torch.save({"state_dict": averaged, "current_model_state": changed}, checkpoint)
    plans = {}
    for which, expected in (("averaged", averaged), ("raw", changed)):
        agent = make_agent(checkpoint_path=str(checkpoint), checkpoint_weights=which)
        for key, value in agent.state_dict().items():
            assert torch.equal(value, expected[f"agent.{key}"]), key
        agent.initialize()
        loader = scene_loader("test", agent.get_sensor_config())
        plans[which] = agent.compute_trajectory(loader.get_agent_input_from_token(loader.tokens[0])).poses
    assert not np.array_equal(plans["averaged"], plans["raw"])


def test_forward_and_loss_like_the_runner(make_agent: Callable[..., Any], scene_loader: Callable[..., Any]) -> None:
    agent = make_agent(imitation={"draws_per_scene": 3}, optimizer={"epochs": 4})
    loader = scene_loader("test", agent.get_sensor_config())
    batch = []
    for token in loader.tokens[:2]:
        scene = loader.get_scene_from_token(token)
        features: dict[str, Any] = {}
        targets: dict[str, Any] = {}
        for builder in agent.get_feature_builders():
            features.update(builder.compute_features(scene.get_agent_input()))
        for builder in agent.get_target_builders():
            targets.update(builder.compute_targets(scene))
        batch.append((features, targets))
    features, targets = torch.utils.data.default_collate(batch)

    agent.train()
    predictions = agent.forward(features)
    assert "trajectory" not in predictions
    loss = agent.compute_loss(features, targets, predictions)
    assert loss.ndim == 0
    loss.backward()
    silent = [name for name, p in agent.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, "DDP without find_unused_parameters needs a gradient for every parameter"

    agent.eval()
    with torch.no_grad():
        predictions = agent.forward(features)
        assert predictions["trajectory"].shape == (2, 8, 3)
        first = agent.compute_loss(features, targets, predictions)
        assert torch.equal(first, agent.compute_loss(features, targets, predictions)), "validation noise is fixed"

    features["hidden_state"][1, 5, 3] = torch.nan
    from navsim_recogdrive.policy.objective import InvalidFeature

    with pytest.raises(InvalidFeature, match=f"hidden_state of scene {loader.tokens[1]}"):
        agent.compute_loss(features, targets, agent.forward(features))

    optimizers = agent.get_optimizers()
    assert isinstance(optimizers["optimizer"], torch.optim.AdamW)
    assert optimizers["lr_scheduler"]["interval"] == "epoch"


def test_settings_that_do_not_fit(make_agent: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.planner.checkpoints import PlannerCheckpointError
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match=r"hidden size 32.*expects 1536"):
        make_agent(planner={"hidden_state_size": 1536})
    with pytest.raises(PlannerCheckpointError, match="feature_encoder.weight"):
        make_agent(planner={"hidden_state_size": 64}, vlm={"path": None}, checkpoint_path=str(checkpoint))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        make_agent(vlm={"path": str(tmp_path / "nowhere")})
    with pytest.raises(InvalidSetting, match="layers.*num_layers"):
        make_agent(planner={"layers": 3})
    with pytest.raises(InvalidSetting, match=r"agent.checkpoint_path"):
        make_agent().initialize()
    with pytest.raises(InvalidSetting, match=r"agent.vlm.path"):
        make_agent(vlm={"path": None}, checkpoint_path=str(checkpoint)).initialize()
    with pytest.raises(InvalidSetting, match="max_epochs"):
        make_agent().get_optimizers()

    from navsim_recogdrive.agents.compat import TrajectorySampling

    with pytest.raises(InvalidSetting, match="8 poses at 0.5 s"):
        make_agent(trajectory_sampling=TrajectorySampling(time_horizon=3, interval_length=0.5))


def test_without_vlm_hidden_states_cannot_be_computed(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any]
) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    agent = make_agent(vlm={"path": None})
    loader = scene_loader("test", agent.get_sensor_config())
    with pytest.raises(InvalidSetting, match="VLM_PATH"):
        agent.get_feature_builders()[0].compute_features(loader.get_agent_input_from_token(loader.tokens[0]))


def test_read_only_cache_stops_a_run_that_would_write(
    make_agent: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.agents import cache_use

    cache = tmp_path / "cache"
    cache.mkdir()
    host = {"cache_path": str(cache / "new")}
    # The tests may run as root, for whom every folder of a writable file system is writable.
    monkeypatch.setattr(cache_use.os, "access", lambda path, mode: Path(path) != cache)
    with pytest.raises(cache_use.ReadOnlyCache, match="use_cache_without_dataset=true"):
        make_agent(host=host).get_feature_builders()
    make_agent(host={**host, "use_cache_without_dataset": True}).get_feature_builders()


def test_checks_before_training(
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    navsim_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from navsim.planning.training.dataset import Dataset

    from navsim_recogdrive.agents import recogdrive_agent
    from navsim_recogdrive.agents.host import EmptySplit
    from navsim_recogdrive.policy.settings import InvalidSetting

    monkeypatch.setattr(recogdrive_agent, "running_training", lambda: True)
    logs = [path.stem for path in (navsim_world / "navsim_logs" / "trainval").iterdir()]
    host = {"navsim_log_path": str(navsim_world / "navsim_logs" / "trainval"), "train_logs": logs, "val_logs": logs[:1]}
    make_agent(host=host)
    with pytest.raises(EmptySplit, match="val_logs selects no scene"):
        make_agent(host={**host, "val_logs": ["no-such-log"]})
    with pytest.raises(EmptySplit, match="train_logs selects no scene"):
        make_agent(host={**host, "filter_log_names": ["another"]})

    cache = tmp_path / "cache"
    agent = make_agent()
    loader = scene_loader("trainval", agent.get_sensor_config())
    loader.scene_frames_dicts = dict(list(loader.scene_frames_dicts.items())[:1])
    Dataset(loader, agent.get_feature_builders(), agent.get_target_builders(), str(cache), False)
    cached_log = next(cache.iterdir()).name
    from_cache = {
        "cache_path": str(cache),
        "use_cache_without_dataset": True,
        "train_logs": [cached_log],
        "val_logs": [cached_log],
    }
    make_agent(host=from_cache)
    with pytest.raises(InvalidSetting, match=r"hidden states of size 32 .*expects 3584"):
        make_agent(host=from_cache, planner={"hidden_state_size": 3584}, vlm={"path": None})
    make_agent(host=from_cache, vlm={"path": "/nowhere"})  # such a run never touches the VLM
    (cache / "an-empty-log").mkdir()
    with pytest.raises(EmptySplit, match="no complete scene of val_logs"):
        make_agent(host={**from_cache, "val_logs": ["an-empty-log"]})
    with pytest.raises(EmptySplit, match="log folders of the feature cache"):
        make_agent(host={**from_cache, "train_logs": ["no-such-log"]})


def test_a_vlm_that_cannot_be_loaded_stops_before_the_first_scene(
    make_agent: Callable[..., Any], checkpoint: Path, tiny_vlm: Path, tmp_path: Path
) -> None:
    """The runners catch what fails in a scene, and go on to the next."""
    broken = tmp_path / "vlm"
    shutil.copytree(tiny_vlm, broken)
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if name.endswith("norm1.weight"))
    del weights[lost]
    save_file(weights, broken / "model.safetensors")
    agent = make_agent(vlm={"path": str(broken)}, checkpoint_path=str(checkpoint))
    with pytest.raises(ValueError, match="missing weights .*layernorm_before.weight"):
        agent.initialize()
