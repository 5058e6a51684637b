from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scene_records import camera, moving, record

from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.pretraining.trajectory_qa import NoSample, trajectory_sample
from navsim_recogdrive.vlm.answers import parse_trajectory
from navsim_recogdrive.vlm.conversation import IMAGE_MARK, ConversationWriter
from navsim_recogdrive.vlm.identity import VLMSettings
from navsim_recogdrive.vlm.preparation import ScenePreparation, load_preparation
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile

PROFILES = {"published": "single", "three_cameras": "multi"}


@pytest.fixture(scope="module", params=sorted(PROFILES))
def preparation(request, tiny_vlm) -> ScenePreparation:
    return load_preparation(
        VLMSettings(str(tiny_vlm), prompt_profile=request.param, cam_type=PROFILES[request.param], hidden_length=2000)
    )


@pytest.fixture
def writer(preparation) -> ConversationWriter:
    return ConversationWriter.of(preparation.profile, preparation.tokenizer)


def _chat(conversation) -> str:
    return (
        f"<|im_start|>system\n{conversation.system}<|im_end|>\n<|im_start|>user\n{conversation.question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_chat_encodes_to_the_tokens_of_the_policy(preparation, writer) -> None:
    rng = np.random.default_rng(0)
    rows = [5] * len(preparation.cameras)
    for number in range(20):
        past = rng.normal(scale=8, size=(4, 3)).astype(np.float32)
        chat = _chat(writer.write(past, number % 4, np.zeros((8, 3))))
        assert chat.count(IMAGE_MARK) == len(rows)
        text = chat.replace(IMAGE_MARK, "<img>" + "<IMG_CONTEXT>" * 5 + "</img>")
        expected = preparation.profile.token_ids(
            preparation.tokenizer, past, number % 4, rows, preparation.architecture.image_tokens
        )
        assert preparation.tokenizer.encode(text, add_special_tokens=False) == expected


def _digits(value: float) -> float:
    return 0.0 if abs(round(value, 2)) <= 0.01 else round(value, 2)


@settings(deadline=None)
@given(
    arrays(np.float64, 8, elements=st.floats(-2.0, 15.0)),
    arrays(np.float64, 8, elements=st.floats(-0.4, 0.4)),
)
def test_answers_are_read_back_to_the_printed_digits(steps, turns) -> None:
    headings = np.cumsum(turns)
    ways = np.column_stack([steps * np.cos(headings), steps * np.sin(headings)])
    poses = np.column_stack([np.cumsum(ways, axis=0), headings]).astype(np.float32)
    profile = PromptProfile.load("three_cameras")
    answer = ConversationWriter.of(profile, None).write(np.zeros((4, 3)), 0, poses).answer
    parsed = parse_trajectory(answer)
    assert parsed.outcome == "exact"
    expected = [[_digits(float(f"{value:.2f}")) for value in pose] for pose in poses.astype(np.float64)]
    np.testing.assert_allclose(parsed.poses, expected, atol=1e-6)


def test_samples_are_internvls(preparation, writer) -> None:
    scene = record(cameras=tuple(camera(name) for name in preparation.cameras), command=0)
    sample = json.loads(json.dumps(trajectory_sample(scene, writer)))
    assert sample["id"] == scene.token
    assert [turn["from"] for turn in sample["conversations"]] == ["system", "human", "gpt"]
    if len(preparation.cameras) == 1:
        assert (sample["image"], sample["width"], sample["height"]) == (scene.image, 1920, 1080)
        assert sample["conversations"][1]["value"].startswith("<image>\n")
    else:
        assert sample["image"] == [f"sensor_blobs/trainval/log/{name}/0.jpg" for name in CAMERA_SETS["multi"]]
        assert sample["width_list"] == [1920] * 3
        assert sample["conversations"][1]["value"].count("<image>") == 3
    assert "TURN LEFT" in sample["conversations"][1]["value"]
    np.testing.assert_allclose(
        parse_trajectory(sample["conversations"][2]["value"]).poses, scene.future_poses, atol=6e-3
    )


def test_scenes_without_a_plausible_future_give_no_sample(writer) -> None:
    with pytest.raises(NoSample, match="no full future"):
        trajectory_sample(record(future_poses=None), writer)
    jump = moving(0, 0, 0, 8.0)
    jump[-1, 0] += 80.0
    with pytest.raises(NoSample, match="no plausible trajectory"):
        trajectory_sample(record(poses=jump), writer)


def test_profiles_that_are_no_single_question_are_refused(tiny_vlm, preparation) -> None:
    text = PromptProfile.load("three_cameras")
    with pytest.raises(PromptError, match="a tokenizer is needed"):
        ConversationWriter.of(PromptProfile.load("published"), None)
    with pytest.raises(PromptError, match="one system message and one turn"):
        ConversationWriter.of(replace(text, before_image="Where to? "), None)
    another = "<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\n"
    two_turns = replace(text, after_command=text.after_command.replace("Answer", another))
    with pytest.raises(PromptError, match="one system message and one turn"):
        ConversationWriter.of(two_turns, None)
    with pytest.raises(PromptError, match="other text in this tokenizer's vocabulary"):
        ConversationWriter.of(replace(PromptProfile.load("published"), text_sha256="0" * 64), preparation.tokenizer)
    with pytest.raises(ValueError, match="driving_command must be an index"):
        ConversationWriter.of(text, None).write(np.zeros((4, 3)), 4, np.zeros((8, 3)))
