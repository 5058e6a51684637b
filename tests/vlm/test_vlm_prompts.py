from __future__ import annotations

import json
import shutil
from importlib import resources

import numpy as np
import pytest
from vlm_golden import golden

from navsim_recogdrive.vlm import PromptError, PromptProfile
from navsim_recogdrive.vlm.architecture import ImageTokens
from navsim_recogdrive.vlm.prompts import NumberFormat
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

GOLDEN = golden("prompt_token_ids.json")
IMAGE = ImageTokens("<img>", "<IMG_CONTEXT>", "</img>")
COMMANDS = ("turn left", "go straight", "turn right", "unknown")


@pytest.fixture(scope="module")
def published() -> PromptProfile:
    return PromptProfile.load("published")


@pytest.fixture
def profile_file(tmp_path):
    """Writes a copy of the published profile with some fields changed (``None`` removes one)."""
    source = resources.files("navsim_recogdrive.vlm") / "profiles" / "published.json"

    def write(**changes) -> str:
        content = json.loads(source.read_text(encoding="utf-8")) | changes
        path = tmp_path / "profile.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return str(path)

    return write


@pytest.mark.parametrize("name", GOLDEN["samples"])
def test_published_prompts_have_exactly_the_published_token_ids(published, tokenizer, name):
    sample = GOLDEN["samples"][name]
    poses = np.asarray(sample["history"], dtype=np.float32)
    token_ids = published.token_ids(tokenizer, poses, COMMANDS.index(sample["command"]), [9 * 256], IMAGE)
    image = [GOLDEN["special_ids"]["<IMG_CONTEXT>"]] * (9 * 256)
    assert token_ids == GOLDEN["prefix_ids"] + image + GOLDEN["suffix_ids"][name]
    assert len(token_ids) == sample["total_tokens_9_tiles"]


def test_the_prefix_is_the_start_of_every_prompt(published, tokenizer):
    prefix = published.prefix_ids(tokenizer, IMAGE)
    assert prefix == GOLDEN["prefix_ids"]
    assert published.token_ids(tokenizer, np.ones((4, 3)), 3, [16], IMAGE)[: len(prefix)] == prefix


def test_float32_and_float64_poses_give_the_same_prompt(published, tokenizer):
    poses = np.random.default_rng(0).normal(scale=10, size=(50, 4, 3)).astype(np.float32)
    for scene in poses:
        single = published.token_ids(tokenizer, scene, 0, [4], IMAGE)
        assert single == published.token_ids(tokenizer, scene.astype(np.float64), 0, [4], IMAGE)


def test_tokens_are_those_of_the_whole_text_encoded_at_once(published, tokenizer):
    for seed in range(10):
        poses = np.random.default_rng(seed).normal(scale=15, size=(4, 3))
        token_ids = published.token_ids(tokenizer, poses, seed % 4, [6], IMAGE)
        text = tokenizer.decode(token_ids)
        assert published.history_text(poses) in text
        assert tokenizer.encode(text, add_special_tokens=False) == token_ids


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (0.01, "0.0"),
        (-0.0149, "0.0"),
        (0.0151, "+0.02"),
        (-0.02, "-0.02"),
        (3.4, "+3.40"),
        (-10.234, "-10.23"),
        (float(np.float32(-0.12)), "-0.12"),
    ],
)
def test_numbers_are_signed_with_two_decimals_and_small_ones_are_zero(published, value, text):
    assert published.number(value) == text


def test_a_profile_of_text_segments_gives_the_same_ids_as_one_of_ids(published, tokenizer, profile_file):
    names = ("before_image", "question_head", "before_command", "after_command")
    texts = {name: tokenizer.decode(list(getattr(published, name))) for name in names}
    written = PromptProfile.load(profile_file(**texts, text_sha256=None))
    poses = np.random.default_rng(1).normal(scale=9, size=(4, 3))
    assert written.token_ids(tokenizer, poses, 2, [48], IMAGE) == published.token_ids(tokenizer, poses, 2, [48], IMAGE)
    assert written.fingerprint != published.fingerprint


def test_the_fingerprint_ignores_what_does_not_change_the_prompt(published, profile_file):
    copy = profile_file(about="a copy", answer_head="My plan: ", answer_tail=".")
    assert PromptProfile.load(copy).fingerprint == published.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"history_join": ", "},
        {"commands": ["LEFT", "STRAIGHT", "RIGHT", "UNKNOWN"]},
        {"number": {"format": "%+.3f", "decimals": 2, "zero": "0.0", "zero_limit": 0.01}},
        {"history_steps": [4, 3, 2, 1]},
        {"camera_labels": {"front": "Front: "}},
    ],
)
def test_the_fingerprint_changes_with_whatever_changes_the_prompt(published, profile_file, change):
    assert PromptProfile.load(profile_file(**change)).fingerprint != published.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history_join": None}, r"missing fields \['history_join'\]"),
        ({"zero_rule": "x"}, r"unknown fields \['zero_rule'\]"),
        ({"before_image": [1.5]}, "before_image must be a string or a list of token ids"),
        ({"commands": ["LEFT"]}, "one text for each of"),
        ({"history_steps": [3, 2]}, "history_steps must have 4 entries"),
        ({"history_item": "{k} {z}"}, "is malformed: 'z'"),
        ({"number": {"format": "%d%d", "decimals": 2, "zero": "0", "zero_limit": 0}}, "is malformed"),
        ({"number": {"format": "%+.2f"}}, "number, history_steps, commands or camera_labels is malformed"),
        ({"text_sha256": None}, "needs text_sha256"),
    ],
)
def test_a_malformed_profile_is_refused_by_name(profile_file, change, message):
    path = profile_file(**change)
    with pytest.raises(PromptError, match=message) as error:
        PromptProfile.load(path)
    assert path in str(error.value)


def test_an_unknown_profile_names_the_built_in_ones(tmp_path):
    with pytest.raises(PromptError, match=r"no prompt profile 'publishd'.*\['published', 'three_cameras'\]"):
        PromptProfile.load("publishd")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PromptError, match="one JSON object"):
        PromptProfile.load(tmp_path / "list.json")


def test_poses_and_commands_of_another_shape_are_refused(published, tokenizer):
    with pytest.raises(ValueError, match=r"past_poses must have shape \[4, 3\], found \[3, 3\]"):
        published.token_ids(tokenizer, np.zeros((3, 3)), 0, [1], IMAGE)
    with pytest.raises(ValueError, match="driving_command must be an index"):
        published.token_ids(tokenizer, np.zeros((4, 3)), 4, [1], IMAGE)


def test_a_tokenizer_with_another_vocabulary_is_refused(published, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    first, second = (
        next(word for word, index in vocabulary.items() if index == i) for i in published.before_image[3:5]
    )
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(PromptError, match="stand for other text in this tokenizer's vocabulary"):
        published.check_tokenizer(load_qwen2_tokenizer(folder), IMAGE)


def test_a_tokenizer_without_the_image_tokens_is_refused(published, checkpoint, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(checkpoint / name, tmp_path / name)
    with pytest.raises(PromptError, match="the tokenizer has no token <img>"):
        published.check_tokenizer(load_qwen2_tokenizer(tmp_path), IMAGE)


def test_number_format_follows_its_rules():
    metres = NumberFormat(format="%.1f", decimals=1, zero="0", zero_limit=0.0)
    assert [metres(value) for value in (0.04, -0.04, 0.06)] == ["0", "0", "0.1"]


def test_the_answer_is_written_as_the_published_vlm_writes_it(published, tokenizer):
    poses = np.stack([np.arange(1, 9) * 1.5, np.linspace(0, -2, 8), np.linspace(0, 0.1, 8)], axis=1)
    text = published.answer_text(tokenizer, poses)
    assert text.startswith(tokenizer.decode(list(published.answer_head)) + "(+1.50, 0.0, 0.0), (+3.00, -0.29, 0.0), ")
    assert text.endswith("(+12.00, -2.00, +0.10)" + tokenizer.decode(list(published.answer_tail)))
    with pytest.raises(ValueError, match=r"poses must have shape \[8, 3\], found \[4, 3\]"):
        published.answer_text(tokenizer, poses[:4])


def test_three_cameras_have_their_labels_and_images_in_order(tokenizer):
    profile = PromptProfile.load("three_cameras")
    poses = np.random.default_rng(2).normal(scale=9, size=(4, 3))
    token_ids = profile.token_ids(tokenizer, poses, 0, [2, 3, 4], IMAGE)
    prefix = profile.prefix_ids(tokenizer, IMAGE)
    assert token_ids[: len(prefix)] == prefix
    text = tokenizer.decode(token_ids)
    places = [
        text.index(f"{label} camera: <img>{'<IMG_CONTEXT>' * rows}</img>")
        for label, rows in (("Front-left", 2), ("Front", 3), ("Front-right", 4))
    ]
    assert places == sorted(places)
    assert profile.history_text(poses) in text
    assert "[TURN LEFT]" in text
    assert tokenizer.encode(text, add_special_tokens=False) == token_ids
    with pytest.raises(PromptError, match=r"about 3 image\(s\), found 1"):
        profile.token_ids(tokenizer, poses, 0, [2], IMAGE)


def test_a_profile_is_refused_for_cameras_it_is_not_about(published):
    three = ("front_left", "front", "front_right")
    with pytest.raises(PromptError, match="about a single image, the policy sees .* three_cameras"):
        published.check_cameras(three)
    with pytest.raises(
        PromptError, match=r"about \['front_left', 'front', 'front_right'\], the policy sees \['front'\]"
    ):
        PromptProfile.load("three_cameras").check_cameras(("front",))
    PromptProfile.load("three_cameras").check_cameras(three)
    published.check_cameras(("front",))
