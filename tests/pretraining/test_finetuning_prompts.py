"""Questions of the planner in training data: told from others, cut as the planner does, in the saved profile."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from qa_data import talk
from scene_records import camera, record

from navsim_recogdrive.observation import CAMERA_SETS, Observation
from navsim_recogdrive.pretraining.finetuning.dataset import ConversationDataset, Sample
from navsim_recogdrive.pretraining.finetuning.index import InvalidData
from navsim_recogdrive.pretraining.finetuning.planner_prompts import check_prompts, choose_profile
from navsim_recogdrive.pretraining.finetuning.run import prepare_data
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings
from navsim_recogdrive.pretraining.registry import Entry
from navsim_recogdrive.pretraining.trajectory_qa import trajectory_sample
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.identity import VLMSettings
from navsim_recogdrive.vlm.preparation import ScenePreparation, load_preparation
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile

MAX_TILES = 8


def _preparation(vlm: Path, cam_type: str) -> ScenePreparation:
    return load_preparation(VLMSettings(str(vlm), cam_type=cam_type, hidden_length=2000, max_tiles=MAX_TILES))


def _write(path: Path, samples: list[dict[str, Any]]) -> Entry:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return Entry(str(path.parent), str(path))


def _images(folder: Path, scene: Any, seed: int) -> dict[str, np.ndarray]:
    """The scene's images, written where its record says."""
    rng = np.random.default_rng(seed)
    images = {}
    for view in scene.cameras:
        images[view.name] = rng.integers(0, 255, (view.height, view.width, 3), dtype=np.uint8)
        (folder / view.image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[view.name]).save(folder / view.image)
    return images


@pytest.mark.parametrize("cam_type", ["single", "multi"])
def test_the_planners_questions_are_trained_as_they_are_asked(tiny_vlm: Path, tmp_path: Path, cam_type: str) -> None:
    preparation = _preparation(tiny_vlm, cam_type)
    writer = ConversationWriter.of(preparation.profile, preparation.tokenizer)
    views = tuple(replace(camera(name), width=480, height=270, image=f"{name}.png") for name in CAMERA_SETS[cam_type])
    scene = replace(record(command=2), cameras=views)
    images = _images(tmp_path, scene, 0)
    others = [view.image for view in views] * (3 if cam_type == "single" else 1)
    samples = [trajectory_sample(scene, writer), talk("<image><image><image> Which?", "None.", image=others)]
    entry = _write(tmp_path / "qa.jsonl", samples)
    run = FinetuneSettings(str(tiny_vlm), "", tmp_path / "out", max_tiles=MAX_TILES, workers=0)
    architecture: Any = preparation.architecture
    dataset, _ = prepare_data(run, {"qa": entry}, architecture, preparation.tokenizer, writer)
    sample, shared = dataset[0], dataset[1]
    assert isinstance(sample, Sample)
    assert isinstance(shared, Sample)

    observation = Observation(
        **{f"{name}_image": image for name, image in images.items()},
        past_poses=scene.past_poses,
        velocity=np.zeros(2),
        acceleration=np.zeros(2),
        driving_command=np.eye(4)[2],
    )
    asked = preparation.prepare(observation)
    assert len(asked.tiles) == 9 * len(views)  # each image has the whole limit, and a thumbnail
    np.testing.assert_array_equal(sample.tiles, asked.tiles)
    np.testing.assert_array_equal(sample.token_ids[: len(asked.token_ids)], asked.token_ids)
    assert (sample.labels[: len(asked.token_ids)] == -100).all()
    assert (sample.labels[len(asked.token_ids) :] >= 0).all()
    assert len(sample.token_ids) == dataset.lengths[0]
    assert dataset.planner == 1
    # Two tiles and a thumbnail for each of three images: 8 / 3.
    assert len(shared.tiles) == 9


@pytest.fixture(scope="module", params=["published", "three_cameras"])
def writer(request: pytest.FixtureRequest, tiny_vlm: Path) -> ConversationWriter:
    preparation = _preparation(tiny_vlm, "single")
    return ConversationWriter.of(PromptProfile.load(request.param), preparation.tokenizer)


@settings(max_examples=40, deadline=None)
@given(past=arrays(np.float64, (4, 3), elements=st.floats(-300, 300)), command=st.integers(0, 3))
def test_whatever_is_written_is_recognised(writer: ConversationWriter, past: np.ndarray, command: int) -> None:
    said = writer.write(past, command, np.zeros((8, 3)))
    assert writer.mismatch(said.system, said.question) is None


def test_a_history_may_leave_coordinates_out_and_have_words_for_zero(writer: ConversationWriter) -> None:
    number = replace(writer.profile.number, zero="none")
    short = replace(writer, profile=replace(writer.profile, history_item="{k}: {y}|{x}", number=number))
    said = short.write(np.arange(12).reshape(4, 3), 0, np.zeros((8, 3)))
    assert "none" in said.question
    assert short.mismatch(said.system, said.question) is None
    assert writer.mismatch(said.system, said.question) is not None


def test_what_differs_is_named(writer: ConversationWriter) -> None:
    said = writer.write(np.full((4, 3), -1.5), 0, np.zeros((8, 3)))
    number = writer.profile.number(-1.5)
    command = writer.profile.commands[0]
    for system, question, message in (
        (None, said.question, "the system message must be .* there is none"),
        (said.system + " Hurry.", said.question, "the system message must be .* Hurry"),
        (said.system, said.question + "<image>", r"must have [13] <image>, found [24]$"),
        (said.system, said.question + " Now!", "must end .* Now!"),
        (said.system, "Well, " + said.question, "must begin .*, found 'Well"),
        (said.system, said.question.replace(number, "-1.5001", 1), "history or the command .*1.5001"),
        (said.system, said.question.replace(number, "fast", 1), "history or the command .*fast"),
        (said.system, said.question.replace(command, "FLY", 1), "history or the command .*FLY"),
    ):
        found = writer.mismatch(system, question)
        assert found is not None, message
        assert re.search(message, found, re.S), found


def _profile(folder: Path, name: str, **changes: Any) -> str:
    path = folder / f"{name}.prompt_profile.json"
    path.write_text(replace(PromptProfile.load("three_cameras"), **changes).to_json(), encoding="utf-8")
    return str(path)


def test_the_profile_is_the_datas(tmp_path: Path) -> None:
    commands = ("A", "B", "C", "D")
    own, same = _profile(tmp_path, "own", commands=commands), _profile(tmp_path, "same", commands=commands)
    asked = Entry("", "", prompt_profile=own, cameras=CAMERA_SETS["multi"])
    entries = {"plain": Entry("", ""), "one": asked, "two": replace(asked, prompt_profile=same)}
    assert choose_profile("auto", entries, tmp_path).commands == commands
    assert choose_profile("published", entries, tmp_path) == PromptProfile.load("published")
    other = {**entries, "three": replace(asked, prompt_profile="three_cameras")}
    with pytest.raises(InvalidData, match=r"one and three are asked in different words .*--prompt-profile"):
        choose_profile("auto", other, tmp_path)
    with pytest.raises(PromptError, match="about a single image"):
        choose_profile("auto", {"one": replace(asked, prompt_profile="published")}, tmp_path)
    with pytest.raises(PromptError, match="no prompt profile"):
        choose_profile("auto", {"one": replace(asked, prompt_profile="/nowhere.json")}, tmp_path)


def test_without_a_profile_in_the_data_it_is_the_bases(tmp_path: Path) -> None:
    entries = {"plain": Entry("", "")}
    assert choose_profile("auto", entries, tmp_path) == PromptProfile.load("published")
    (tmp_path / "prompt_profile.json").write_text(PromptProfile.load("three_cameras").to_json(), encoding="utf-8")
    assert choose_profile("auto", entries, tmp_path) == PromptProfile.load("three_cameras")


def test_questions_in_other_words_than_the_profiles_are_refused(writer: ConversationWriter, tmp_path: Path) -> None:
    name = "published" if writer.profile.camera_labels is None else "three_cameras"
    cameras = CAMERA_SETS["single" if name == "published" else "multi"]
    sample = trajectory_sample(replace(record(), cameras=tuple(camera(one) for one in cameras)), writer)
    good = _write(tmp_path / "good.jsonl", [sample])
    check_prompts({"good": good, "gone": Entry("", str(tmp_path / "gone.jsonl"))}, writer)
    sample["conversations"][1]["value"] += " Hurry."
    other = _write(tmp_path / "other.jsonl", [sample])
    with pytest.raises(InvalidData, match=r"(?s)other: .*other.jsonl line 1 asks .* Hurry.*--prompt-profile"):
        check_prompts({"good": good, "other": other}, writer)
    plain = _write(tmp_path / "plain.jsonl", [talk("Where to?", sample["conversations"][2]["value"])])
    check_prompts({"plain": plain}, writer)  # nothing says that this is the planner's question
    with pytest.raises(InvalidData, match=r"the system message must be .*there is none.*--prompt-profile NAME\)"):
        check_prompts({"plain": replace(plain, prompt_profile="NAME")}, writer)
    chat = talk("Look.", "Yes.", "Where to?", sample["conversations"][2]["value"])
    chat["conversations"].insert(0, {"from": "system", "value": "Chat."})
    check_prompts({"chat": _write(tmp_path / "chat.jsonl", [chat])}, writer)


def test_a_data_set_that_cannot_fit_is_refused(tiny_vlm: Path, tmp_path: Path) -> None:
    preparation = _preparation(tiny_vlm, "single")
    writer = ConversationWriter.of(preparation.profile, preparation.tokenizer)
    entries = {
        "long": _write(tmp_path / "long.jsonl", [talk("Hello " * 200, "Yes")]),
        "short": _write(tmp_path / "short.jsonl", [talk("Hello", "Yes")]),
    }
    run = FinetuneSettings(str(tiny_vlm), "", tmp_path / "out", max_tokens=100, workers=0)
    architecture: Any = preparation.architecture
    with pytest.raises(InvalidData, match=r"long: all 1 records are longer than max_tokens=100, the shortest has \d+"):
        prepare_data(run, entries, architecture, preparation.tokenizer, writer)
    dataset, _ = prepare_data(replace(run, max_tokens=1000), entries, architecture, preparation.tokenizer, writer)
    assert isinstance(dataset, ConversationDataset)
    assert len(dataset) == 2
