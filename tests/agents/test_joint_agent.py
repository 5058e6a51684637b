"""The agent in joint mode, inside Lightning as NAVSIM's runner has it, and its early errors."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

pytestmark = pytest.mark.navsim

LORA = {"cache_hidden_state": False, "vlm": {"training": "lora"}, "lora": {"rank": 2}}


@pytest.fixture
def in_training(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    from navsim_recogdrive.agents import recogdrive_agent

    monkeypatch.setattr(recogdrive_agent, "running_training", lambda: True)
    return monkeypatch


def _dataset(agent: Any, scene_loader: Callable[..., Any], cache: Path | None, scenes: int = 4) -> Any:
    from navsim.planning.training.dataset import Dataset

    loader = scene_loader("trainval", agent.get_sensor_config())
    loader.scene_frames_dicts = dict(list(loader.scene_frames_dicts.items())[:scenes])
    cache_path = None if cache is None else str(cache)
    return Dataset(loader, agent.get_feature_builders(), agent.get_target_builders(), cache_path, False)


class _Record(pl.Callback):
    """The trajectories that validation planned, by scene token, and which modules were trained in training mode."""

    def __init__(self) -> None:
        self.plans: dict[str, torch.Tensor] = {}
        self.training: list[set[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.training.append({name for name, module in pl_module.named_modules() if module.training})

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        features, targets = batch
        with torch.inference_mode():
            plans = pl_module.agent.forward(features)["trajectory"]
        self.plans.update(zip(targets["token"], plans.clone(), strict=True))


def _fit(agent: Any, dataset: Any, folder: Path, **arguments: Any) -> tuple[_Record, Path]:
    from navsim.planning.training.agent_lightning_module import AgentLightningModule

    record = _Record()
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    loaders = [DataLoader(dataset, batch_size=2, shuffle=shuffle) for shuffle in (True, False)]
    trainer.fit(AgentLightningModule(agent=agent), *loaders, **arguments)
    trainer.save_checkpoint(folder / "last.ckpt")
    return record, folder / "last.ckpt"


@pytest.mark.parametrize("training", ["frozen", "lora", "full"])
def test_evaluation_plans_as_validation_did(
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    in_training: pytest.MonkeyPatch,
    tmp_path: Path,
    training: str,
) -> None:
    settings = {**LORA, "vlm": {"training": training}, "lora": LORA["lora"] if training == "lora" else {}}
    torch.manual_seed(0)
    agent = make_agent(**settings, optimizer={"epochs": 2, "warmup_epochs": 0, "learning_rate": 1e-3})
    dataset = _dataset(agent, scene_loader, tmp_path / "cache")
    record, checkpoint = _fit(agent, dataset, tmp_path)
    assert len(record.plans) == 4
    for training_mode in record.training:  # before and after the first validation
        assert any(name.endswith("language_model.layers.0") for name in training_mode) == (training != "frozen")
        assert any("vision_tower" in name for name in training_mode) == (training == "full")
    if training == "lora":  # the run can be resumed, strictly
        _fit(make_agent(**settings, optimizer={"epochs": 2}), dataset, tmp_path / "again", ckpt_path=checkpoint)

    in_training.undo()
    evaluated = make_agent(checkpoint_path=str(checkpoint))  # as scoring: nothing says joint mode
    evaluated.initialize()
    base = make_agent(checkpoint_path=str(checkpoint))
    base._policy.backbone._trained = None
    loader = scene_loader("trainval", evaluated.get_sensor_config())
    differences = []
    for token, expected in record.plans.items():
        agent_input = loader.get_agent_input_from_token(token)
        poses = evaluated.compute_trajectory(agent_input).poses
        np.testing.assert_allclose(poses, expected.numpy(), rtol=1e-3, atol=1e-4)
        differences.append(np.abs(base.compute_trajectory(agent_input).poses - poses).max())
    assert (max(differences) > 1e-4) == (training != "frozen"), "the trained VLM must matter"

    # Hidden states cached with this checkpoint are the trained VLM's, and training on them keeps the VLM.
    (builder, _) = evaluated.get_feature_builders()
    cached = builder.compute_features(agent_input)["hidden_state"] + 0
    plain = make_agent().get_feature_builders()[0].compute_features(agent_input)["hidden_state"] + 0
    assert torch.equal(cached, plain) == (training == "frozen")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    carried = {f"agent.{key}" for key in evaluated.state_dict()}
    assert carried == set(saved)


def test_features_in_joint_mode_load_no_weights(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.vlm import loading

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are not needed to cut images")

    monkeypatch.setattr(loading, "load_family", refuse)
    agent = make_agent(**LORA)  # not in training: caching and scoring instantiate it, too
    loader = scene_loader("test", agent.get_sensor_config())
    token = loader.tokens[0]
    builder = agent.get_feature_builders()[0]
    training = builder.compute_features(loader.get_scene_from_token(token).get_agent_input())
    scoring = builder.compute_features(loader.get_agent_input_from_token(token))
    assert all(torch.equal(training[name] + 0, scoring[name] + 0) for name in training)
    assert not [name for name, _ in agent.named_parameters() if name.startswith("vlm.")]


def test_caches_that_do_not_fit_are_refused(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], in_training: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from navsim_recogdrive.agents.host import EmptySplit
    from navsim_recogdrive.cache.stored import DamagedFeature
    from navsim_recogdrive.policy.settings import InvalidSetting

    def host(cache: Path) -> dict[str, Any]:
        log = next(path.name for path in cache.iterdir())
        logs = {"train_logs": [log], "val_logs": [log]}
        return {"cache_path": str(cache), "use_cache_without_dataset": True, **logs}

    joint, published = tmp_path / "joint", tmp_path / "published"
    _dataset(make_agent(cache_hidden_state=False), scene_loader, joint, scenes=1)
    _dataset(make_agent(), scene_loader, published, scenes=1)
    make_agent(cache_hidden_state=False, host=host(joint))
    make_agent(host=host(published))
    with pytest.raises(
        EmptySplit, match=r"holds image tiles .* needs hidden states .*set agent.cache_hidden_state=false"
    ):
        make_agent(host=host(joint))
    with pytest.raises(
        EmptySplit, match=r"holds hidden states .* needs image tiles .*set agent.cache_hidden_state=true"
    ):
        make_agent(cache_hidden_state=False, host=host(published))
    with pytest.raises(InvalidSetting, match="made with other settings"):
        make_agent(cache_hidden_state=False, host=host(joint), vlm={"max_tiles": 2})
    with pytest.raises(InvalidSetting, match="VLM_PATH"):
        make_agent(cache_hidden_state=False, host=host(joint), vlm={"path": None})
    (path,) = joint.rglob("recogdrive_image_tiles.gz")
    with gzip.open(path, "rb") as file:
        stored = bytearray(file.read())
    stored[len(stored) // 2] ^= 1
    with gzip.open(path, "wb") as file:
        file.write(stored)
    with pytest.raises(DamagedFeature, match=r"recogdrive_image_tiles.gz cannot be read .*force_cache_computation"):
        make_agent(cache_hidden_state=False, host=host(joint))


def test_checkpoint_of_another_base_is_refused_early(
    make_agent: Callable[..., Any], in_training: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError

    agent = make_agent(**LORA)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"agent.{key}": value for key, value in agent.state_dict().items()}}, path)
    in_training.undo()
    make_agent(checkpoint_path=str(path))
    make_agent(checkpoint_path=str(path), vlm={"path": None}, host={"use_cache_without_dataset": True})
    with pytest.raises(VLMCheckpointError, match="fingerprint"):
        make_agent(checkpoint_path=str(path), vlm={"max_tiles": 3})


def test_tiles_of_a_batch_are_pickled_small(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], tmp_path: Path
) -> None:
    _dataset(make_agent(cache_hidden_state=False), scene_loader, tmp_path, scenes=1)
    (path,) = tmp_path.rglob("recogdrive_image_tiles.gz")
    with gzip.open(path, "rb") as file:
        features = pickle.load(file)
    assert path.stat().st_size < features["image_tiles"].nbytes / 3
