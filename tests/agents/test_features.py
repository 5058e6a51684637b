"""Features and targets built from real NAVSIM objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.navsim


def _features(agent: Any, agent_input: Any) -> dict[str, torch.Tensor]:
    features: dict[str, torch.Tensor] = {}
    for builder in agent.get_feature_builders():
        features.update(builder.compute_features(agent_input))
    return features


def test_training_and_scoring_see_identical_features(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any]
) -> None:
    """The training loader's float64 poses and the scoring loader's float32 ones give the same bits."""
    agent = make_agent()
    loader = scene_loader("test", agent.get_sensor_config())
    assert len(loader.tokens) > 3
    moving = 0
    for token in loader.tokens[:: max(1, len(loader.tokens) // 6)]:
        training = _features(agent, loader.get_scene_from_token(token).get_agent_input())
        scoring = _features(agent, loader.get_agent_input_from_token(token))
        assert set(training) == set(scoring) == {"scene_key", "hidden_state", "past_poses", "ego_status"}
        for name, values in training.items():
            assert values.dtype == scoring[name].dtype
            assert torch.equal(values.as_subclass(torch.Tensor), scoring[name].as_subclass(torch.Tensor)), name
        moving += int(training["past_poses"].abs().max() > 0.1)
    assert moving, "the comparison means nothing where the ego always stands"


def test_shapes_dtypes_and_cache_round_trip(make_agent: Callable[..., Any], scene_loader: Callable[..., Any]) -> None:
    agent = make_agent()
    loader = scene_loader("test", agent.get_sensor_config())
    scene = loader.get_scene_from_token(loader.tokens[0])
    features = _features(agent, scene.get_agent_input())
    assert features["hidden_state"].shape == (640, 32)
    assert features["hidden_state"].dtype == torch.bfloat16
    assert features["past_poses"].shape == (4, 3)
    assert features["past_poses"].dtype == torch.float32
    assert features["past_poses"][-1].tolist() == [0.0, 0.0, 0.0]
    assert features["ego_status"].shape == (8,)
    assert features["ego_status"][:4].sum() == 1.0

    restored = pickle.loads(pickle.dumps(features["hidden_state"]))
    assert type(restored) is torch.Tensor
    assert torch.equal(restored, features["hidden_state"].as_subclass(torch.Tensor))
    size = len(pickle.dumps(features["hidden_state"]))
    assert size < restored.nbytes, "padding rows must not be stored"

    targets: dict[str, Any] = {}
    for builder in agent.get_target_builders():
        targets.update(builder.compute_targets(scene))
    assert targets["token"] == loader.tokens[0]
    expected = scene.get_future_trajectory(8).poses
    np.testing.assert_array_equal(targets["trajectory"].numpy(), expected.astype(np.float32))


def test_builder_names_are_unique(make_agent: Callable[..., Any]) -> None:
    agent = make_agent()
    names = [builder.get_unique_name() for builder in agent.get_feature_builders() + agent.get_target_builders()]
    assert len(set(names)) == len(names) == 4


def test_only_the_present_front_camera_is_read(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any]
) -> None:
    agent = make_agent()
    loader = scene_loader("test", agent.get_sensor_config())
    agent_input = loader.get_agent_input_from_token(loader.tokens[0])
    read = [
        (frame, name)
        for frame, cameras in enumerate(agent_input.cameras)
        for name, camera in vars(cameras).items()
        if camera.image is not None
    ]
    assert read == [(3, "cam_f0")]


def test_missing_image_and_missing_future_are_clear(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any]
) -> None:
    from navsim.common.dataclasses import SensorConfig

    from navsim_recogdrive.observation import InvalidObservation

    agent = make_agent()
    blind = scene_loader("test", SensorConfig.build_no_sensors())
    with pytest.raises(InvalidObservation, match="front camera image"):
        _features(agent, blind.get_agent_input_from_token(blind.tokens[0]))

    scene = blind.get_scene_from_token(blind.tokens[0])
    scene.frames = scene.frames[:9]
    with pytest.raises(ValueError, match="5 future"):
        agent.get_target_builders()[0].compute_targets(scene)


def test_image_missing_on_disk_is_named(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any], navsim_world: Path
) -> None:
    loader = scene_loader("test", make_agent().get_sensor_config())
    image = next((navsim_world / "sensor_blobs" / "test").rglob(f"{loader.tokens[0]}.jpg"))
    hidden = image.with_suffix(".hidden")
    image.rename(hidden)
    try:
        with pytest.raises(FileNotFoundError, match=image.name):
            loader.get_agent_input_from_token(loader.tokens[0])
    finally:
        hidden.rename(image)


def test_unknown_command_is_the_fourth_entry(make_agent: Callable[..., Any], scene_loader: Callable[..., Any]) -> None:
    agent = make_agent()
    loader = scene_loader("test", agent.get_sensor_config())
    agent_input = loader.get_agent_input_from_token(loader.tokens[0])
    agent_input.ego_statuses[-1].driving_command = np.zeros(4, dtype=int)
    none = _features(agent, agent_input)
    agent_input.ego_statuses[-1].driving_command = np.array([0, 0, 0, 1])
    unknown = _features(agent, agent_input)
    assert none["ego_status"][:4].tolist() == [0, 0, 0, 1]
    assert torch.equal(none["hidden_state"] + 0, unknown["hidden_state"] + 0)
