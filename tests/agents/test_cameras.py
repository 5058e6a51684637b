"""One camera or three: what is read from disk, and what reaches the VLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from navsim_recogdrive.observation import InvalidObservation

pytestmark = pytest.mark.navsim


def test_only_the_policys_cameras_are_read(make_agent: Callable[..., Any]) -> None:
    read = {
        cam_type: {name for name, value in vars(make_agent(cam_type=cam_type).get_sensor_config()).items() if value}
        for cam_type in ("single", "multi")
    }
    assert read == {"single": {"cam_f0"}, "multi": {"cam_l0", "cam_f0", "cam_r0"}}


def test_three_cameras_reach_the_vlm_from_left_to_right(
    make_agent: Callable[..., Any], scene_loader: Callable[..., Any]
) -> None:
    agent = make_agent(cam_type="multi", vlm={"hidden_length": None})
    loader = scene_loader("test", make_agent().get_sensor_config())  # the world of seconds has the front camera only
    agent_input = loader.get_agent_input_from_token(loader.tokens[0])
    cameras = agent_input.cameras[-1]
    with pytest.raises(InvalidObservation, match=r"the front-left camera image \(CAM_L0 of the present frame\)"):
        agent.get_feature_builders()[0].compute_features(agent_input)

    front = cameras.cam_f0.image
    cameras.cam_l0.image, cameras.cam_r0.image = np.zeros_like(front), np.full_like(front, 255)
    hidden = agent.get_feature_builders()[0].compute_features(agent_input)["hidden_state"]
    assert hidden.shape == (496 + 3 * 9 * 16, 32)
    cameras.cam_l0.image, cameras.cam_r0.image = cameras.cam_r0.image, cameras.cam_l0.image
    swapped = agent.get_feature_builders()[0].compute_features(agent_input)["hidden_state"]
    assert not torch.equal(hidden.as_subclass(torch.Tensor), swapped.as_subclass(torch.Tensor))
