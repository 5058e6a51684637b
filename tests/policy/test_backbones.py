"""The VLM that a process shares: threads, settings, devices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from random_observation import random_observation
from tiny_sizes import TINY_HIDDEN_LENGTH

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import PolicyConfig, VLMConfig
from navsim_recogdrive.policy.features import HIDDEN_STATE
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.vlm.backbone import Backbone


def test_threads_get_the_hidden_states_of_their_own_scenes(tiny_vlm: Path) -> None:
    observations = [random_observation(seed) for seed in range(8)]
    config = VLMConfig(path=str(tiny_vlm), dtype="float32")

    def state(observation: Observation) -> torch.Tensor:
        return SharedBackbone(config, "cpu").cacheable_features(observation)[HIDDEN_STATE]

    expected = [state(one) for one in observations]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(state, observations))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.as_subclass(torch.Tensor), other.as_subclass(torch.Tensor))


def test_images_are_prepared_while_the_model_is_busy(tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thread's tiles are ready before the first thread's hidden state is."""
    backbone = SharedBackbone(VLMConfig(path=str(tiny_vlm), dtype="float32"), "cpu")
    backbone.load()
    prepared = threading.Event()
    computing = threading.Event()
    compute = Backbone.hidden_states

    def slow(self: Backbone, inputs: list) -> torch.Tensor:
        computing.set()
        assert prepared.wait(timeout=30), "preparation waited for the model"
        return compute(self, inputs)

    monkeypatch.setattr(Backbone, "hidden_states", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(backbone.hidden_states, [random_observation(0)])
        assert computing.wait(timeout=30)
        backbone.prepare([random_observation(1)])
        prepared.set()
        assert first.result(timeout=30).shape == (1, TINY_HIDDEN_LENGTH, 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vlm_type": "llava"}, r"vlm_type must be auto or one of \('internvl', 'qwen2_5_vl', 'qwen3_vl'\), found 'll"),
        ({"cam_type": "all"}, r"cam_type must be one of \('single', 'multi'\), found 'all'"),
        ({"vlm": {"attention": "flash"}}, "vlm.attention must be one of .* found 'flash'"),
        ({"vlm": {"hidden_length": 0}}, "vlm.hidden_length must be a whole number of at least 1, found 0"),
        ({"vlm": {"dtype": "float16"}}, "vlm.dtype must be bfloat16 or float32, found 'float16'"),
        (
            {"vlm": {"attention": "flash_attention_2", "dtype": "float32"}},
            "vlm.attention=flash_attention_2 has no kernel for vlm.dtype=float32: set vlm.dtype=bfloat16, or vlm.att",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        PolicyConfig.from_mapping(settings)


def test_the_kind_and_the_cameras_of_the_vlm_stand_beside_its_group() -> None:
    config = PolicyConfig.from_mapping({"vlm": {"path": "somewhere"}, "vlm_type": "internvl", "cam_type": "multi"})
    assert config.vlm.settings().vlm_type == "internvl"
    assert config.vlm.cameras == config.vlm.settings().cameras == ("front_left", "front", "front_right")


def test_another_kind_than_asked_for_is_refused(tiny_vlm: Path) -> None:
    config = VLMConfig(path=str(tiny_vlm), vlm_type="qwen3_vl")
    with pytest.raises(
        ValueError, match=r"this is a internvl checkpoint \(model_type 'internvl_chat'\), vlm_type=qwen3"
    ):
        SharedBackbone(config, "cpu").load()


def test_a_vlm_first_needed_in_inference_mode_outlives_it(tiny_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("navsim_recogdrive.policy.backbones._LOADED", {})
    backbone = SharedBackbone(VLMConfig(path=str(tiny_vlm), dtype="float32"), "cpu")
    with torch.inference_mode():
        expected = backbone.hidden_states([random_observation(0)]).clone()
    assert not any(parameter.is_inference() for parameter in backbone.load().model.parameters())
    assert torch.equal(backbone.hidden_states([random_observation(0)]), expected)
