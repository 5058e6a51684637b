"""What the model reads and which tokens it is taught, with the real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from qa_data import future_poses, past_poses, talk

from navsim_recogdrive.pretraining.finetuning.conversations import (
    IGNORED,
    SYSTEM_MESSAGE,
    ChatEncoder,
    InvalidRecord,
    Turn,
    read_record,
)
from navsim_recogdrive.vlm.architecture import ImageTokens
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.prompts import PromptProfile
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

START, END, BREAK, SYSTEM, USER, ASSISTANT = 151644, 151645, 198, 8948, 872, 77091
IMG, IMG_END, CONTEXT = 151665, 151666, 151667
IMAGE_TOKENS = ImageTokens("<img>", "<IMG_CONTEXT>", "</img>")


@pytest.fixture(scope="module")
def tokenizer(tiny_vlm: Path):
    return load_qwen2_tokenizer(tiny_vlm)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> ChatEncoder:
    return ChatEncoder(tokenizer, IMAGE_TOKENS)


def test_a_conversation_by_hand(encoder: ChatEncoder, tokenizer) -> None:
    hello, yes, no, more = ([tokenizer.encode(text)] for text in ("Hello", "Yes", "No", "more"))
    assert all(len(one[0]) == 1 for one in (hello, yes, no, more))
    record = read_record(
        {
            "image": "a.png",
            "conversations": [
                {"from": "system", "value": "Hello"},
                {"from": "human", "value": "<image>\nHello"},
                {"from": "gpt", "value": "Yes"},
                {"from": "human", "value": "more"},
                {"from": "gpt", "value": "No"},
            ],
        }
    )
    conversation = encoder.encode(record, [3])
    before = [START, SYSTEM, BREAK, *hello[0], END, BREAK, START, USER, BREAK, IMG, CONTEXT, CONTEXT, CONTEXT, IMG_END]
    before += [BREAK, *hello[0], END, BREAK, START, ASSISTANT, BREAK]
    between = [BREAK, START, USER, BREAK, *more[0], END, BREAK, START, ASSISTANT, BREAK]
    assert conversation.token_ids.tolist() == [*before, *yes[0], END, *between, *no[0], END]
    ignored = [IGNORED] * len(before)
    assert conversation.labels.tolist() == [*ignored, *yes[0], END, *[IGNORED] * len(between), *no[0], END]
    assert encoder.encode_prompt(record, [3]).tolist() == [*before, *yes[0], END, *between]


def test_it_is_the_text_planners_prompt(encoder: ChatEncoder, tokenizer) -> None:
    profile = PromptProfile.load("published")
    said = ConversationWriter.of(profile, tokenizer).write(past_poses(5), 2, future_poses(5))
    turns = (("system", said.system), ("human", said.question), ("gpt", said.answer))
    record = read_record(
        {"image": "a.png", "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
    )
    expected = profile.token_ids(tokenizer, past_poses(5), 2, [7], IMAGE_TOKENS)
    assert encoder.encode_prompt(record, [7]).tolist() == expected
    conversation = encoder.encode(record, [7])
    answer = [*tokenizer.encode(profile.answer_text(tokenizer, future_poses(5))), END]
    assert conversation.token_ids.tolist() == [*expected, *answer]
    assert (conversation.labels[: len(expected)] == IGNORED).all()
    assert conversation.labels[len(expected) :].tolist() == answer


def test_an_answer_is_encoded_as_it_is_generated(encoder: ChatEncoder, tokenizer) -> None:
    together = tokenizer.encode("assistant\n\nYes")
    assert together[1] != BREAK  # two line breaks are one token
    ids = encoder.encode(read_record(talk("Hello", "\nYes")), []).token_ids.tolist()
    start = len(encoder.encode_prompt(read_record(talk("Hello", "\nYes")), []))
    assert ids[start - 1 : start + 1] == [BREAK, BREAK]


def test_system_messages(tokenizer, encoder: ChatEncoder) -> None:
    record = read_record(talk("Hello", "Yes"))
    own = [START, *tokenizer.encode("system\n" + SYSTEM_MESSAGE), END, BREAK]
    assert encoder.encode(record, []).token_ids[: len(own)].tolist() == own
    silent = ChatEncoder(tokenizer, IMAGE_TOKENS, "")
    assert silent.encode(record, []).token_ids[:3].tolist() == [START, USER, BREAK]


def test_images_where_they_stand(encoder: ChatEncoder) -> None:
    record = read_record(talk("Left <image> and right <image>?", "Yes", image=["l.png", "r.png"]))
    ids = encoder.encode(record, [2, 3]).token_ids
    starts = np.flatnonzero(ids == IMG)
    assert [int((ids[start:] == IMG_END).argmax()) - 1 for start in starts] == [2, 3]
    assert encoder.encode(record, [2, 3]).labels[ids == CONTEXT].tolist() == [IGNORED] * 5
    unmarked = read_record(talk("What is this?", "Yes", image="a.png"))
    assert unmarked.turns[0] == Turn("user", "<image>\nWhat is this?")


def test_sizes() -> None:
    text = talk("Hello", "Yes", image="a.png", width=96, height=54)
    assert read_record(text).sizes == ((96, 54),)
    assert read_record(talk("Hello", "Yes", image="a.png")).sizes is None
    two = talk("<image><image>", "Yes", image=["a", "b"], width_list=[1, 2], height_list=[3, 4])
    assert read_record(json.dumps(two)).sizes == ((1, 3), (2, 4))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object, found a list"),
        ("{}", "conversations must be a list of turns"),
        (talk("Hello"), "by turns and end with gpt, found user"),
        ({"conversations": [{"from": "gpt", "value": "Yes"}]}, "found assistant"),
        ({"conversations": [{"from": "robot", "value": "Yes"}]}, r"conversations\[0\] must have a 'from'"),
        ({"conversations": [{"from": "human"}]}, "and a text 'value'"),
        (talk("Hello", " "), "an answer is empty"),
        (talk("<image>", "Yes"), r"0 image\(s\), but 1 <image>"),
        (talk("Hello", "Yes", image=["a", "b"]), r"2 image\(s\), but 0 <image>"),
        (talk("Hello", "<image>", image="a"), "stands in the assistant's text"),
        (talk("Hello", "Yes", image=3), "image must be a path or a list of paths, found 3"),
        (talk("Hello", "Yes", image="a", width=9), "width and height must be a positive whole number for each of 1"),
    ],
)
def test_broken_records(line, message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        read_record(line)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<|im_end|>", "<img>"])
def test_text_that_spells_out_the_template(encoder: ChatEncoder, token: str) -> None:
    with pytest.raises(InvalidRecord, match="the user's text spells out"):
        encoder.encode(read_record(talk(f"Say {token}", "Yes")), [])
