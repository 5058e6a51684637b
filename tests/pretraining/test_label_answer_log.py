"""The file of answers: torn lines, full disks, two writers, resuming."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_recogdrive.pretraining.labelling.answer_log import AnswerLog, AnswerLogError, Usage
from navsim_recogdrive.pretraining.labelling.endpoint import Reply
from navsim_recogdrive.pretraining.labelling.images import ImageScaling
from navsim_recogdrive.pretraining.labelling.request import Request

REQUEST = Request("generation", "token", "lights", "tiny", "system", "user", "a.jpg", ImageScaling(), 10, 0.5)
REPLY = Reply("An answer.", True, 100, 10)


def _filled(path: Path, count: int = 3) -> list[Request]:
    requests = [replace(REQUEST, scene=f"scene {number}") for number in range(count)]
    with AnswerLog(path, writing=True) as log:
        for number, request in enumerate(requests):
            log.add(request, replace(REPLY, text=f"answer {number}"))
    return requests


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_any_text_is_found_again(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("log") / "answers.jsonl"
    requests = [replace(REQUEST, user=str(number)) for number in range(len(texts))]
    with AnswerLog(path, writing=True) as log:
        for request, text in zip(requests, texts, strict=True):
            log.add(request, replace(REPLY, text=text))
        assert [log.find(request) for request in requests] == [replace(REPLY, text=text) for text in texts]
    with AnswerLog(path, writing=False) as log:
        assert [log.find(request) for request in requests] == [replace(REPLY, text=text) for text in texts]


def test_each_answer_is_on_disk_when_it_was_added(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "answers.jsonl"
    with AnswerLog(path, writing=True) as log:
        log.add(REQUEST, REPLY)
        (line,) = path.read_bytes().splitlines()
        assert json.loads(line)["text"] == "An answer."


@pytest.mark.parametrize(
    "change",
    [
        {"step": "judging"},
        {"scene": "other"},
        {"family": "signs"},
        {"model": "big"},
        {"system": "other"},
        {"user": "other"},
        {"image": None},
        {"scaling": ImageScaling(640)},
        {"max_tokens": 11},
        {"temperature": 0.0},
        {"extra": {"seed": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_asked_otherwise_is_another_answer(tmp_path: Path, change: dict) -> None:
    with AnswerLog(tmp_path / "answers.jsonl", writing=True) as log:
        log.add(REQUEST, REPLY)
        assert log.find(replace(REQUEST)) == REPLY
        assert log.find(replace(REQUEST, **change)) is None


def test_a_torn_last_line_is_removed_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    requests = _filled(path)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(keepends=True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        with AnswerLog(path, writing=False) as log:  # reading changes nothing
            assert log.find(requests[2]) is None
        assert path.read_bytes() == whole[:-cut]
        with AnswerLog(path, writing=True) as log:
            assert log.torn > 0
            assert [log.find(request) is not None for request in requests] == [True, True, False]
            log.add(requests[2], replace(REPLY, text="answer 2"))
        assert path.read_bytes() == whole


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    _filled(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswerLog(path, writing=True) as log:
        # Like a disk with 30 bytes left: a part of the line still goes.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, hard))
        try:
            with pytest.raises(AnswerLogError, match=r"cannot write .*File too large.*make room"):
                log.add(REQUEST, REPLY)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert log.find(REQUEST) is None
        log.add(REQUEST, REPLY)
        assert log.find(REQUEST) == REPLY


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerLog(path, writing=True):
        with pytest.raises(AnswerLogError, match="is being written by another process"):
            AnswerLog(path, writing=True)
        AnswerLog(path, writing=False).close()
    AnswerLog(path, writing=True).close()


@pytest.mark.parametrize("line", [b"not json", b"[]", b"{}", b'{"key": "zz", "step": "a", "model": "b"}', b"\x00" * 40])
def test_foreign_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "answers.jsonl"
    _filled(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(AnswerLogError, match=r"answers.jsonl, line 4 is no answer .*remove the line"):
        AnswerLog(path, writing=True)


def test_usage_is_that_of_all_runs(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    _filled(path)
    with AnswerLog(path, writing=True) as log:
        log.add(replace(REQUEST, model="judge", step="judging"), Reply("8", True, None, 3))
        assert log.usage == {"tiny": Usage(3, 300, 30, 0), "judge": Usage(1, 0, 3, 1)}
        assert log.steps == {"generation": 3, "judging": 1}
        assert len(log) == 4
