"""Asking a VLM a data set's trajectory questions: numbers, resuming, refusals."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from copying_vlm import answer_text, write_copying_vlm
from PIL import Image
from qa_data import front_image, talk
from tiny_sizes import TINY_TILE

from navsim_recogdrive.pretraining import evaluation
from navsim_recogdrive.pretraining.evaluation import (
    EvaluationSettings,
    InvalidEvaluation,
    evaluate,
    main,
    read_questions,
)
from navsim_recogdrive.pretraining.evaluation_metrics import Question, judge, summarize
from navsim_recogdrive.pretraining.finetuning.conversations import read_record
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.prompts import PromptProfile

POSES = np.array([[0.5 * k + 0.02 * k**2, 0.03 * k**2, 0.05 * k] for k in range(1, 9)]).round(2)
"""What the VLM answers to everything."""


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_copying_vlm(tmp_path_factory.mktemp("vlm") / "copier", answer_text(POSES), TINY_TILE)


@pytest.fixture
def asked(copier: tuple[Path, Path], tmp_path: Path) -> EvaluationSettings:
    """Five questions; the truth is 1 m and 0.1 rad off the VLM's answer for the first, 2 m for the second, ..."""
    vlm, profile = copier
    # The copying VLM's profile has no system message, which training data needs.
    text = json.loads(profile.read_text())
    system = "<|im_start|>system\nPlan.<|im_end|>\n"
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({**text, "before_image": system + text["before_image"]}))
    said = ConversationWriter.of(PromptProfile.load(profile), None)
    lines = []
    for index in range(5):
        truth = POSES + np.array([0.0, 1.0 + index, 0.1])
        conversation = said.write(np.zeros((4, 3)), index % 4, truth)
        Image.fromarray(front_image(index)).save(tmp_path / f"{index}.png")
        turns = (("system", conversation.system), ("human", conversation.question), ("gpt", conversation.answer))
        record = {"id": f"scene {index}", "image": f"{index}.png"}
        lines.append({**record, "conversations": [{"from": speaker, "value": value} for speaker, value in turns]})
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return EvaluationSettings(
        str(vlm),
        tmp_path / "qa.jsonl",
        tmp_path,
        tmp_path / "out",
        prompt_profile=str(profile),
        max_tiles=2,
        batch_size=2,
        dtype="float32",
        device="cpu",
    )


def test_numbers_and_files(asked: EvaluationSettings) -> None:
    summary = evaluate(asked)
    counts = [summary[name] for name in ("answers", "exact", "repaired", "fallback", "cut_off", "unreadable")]
    assert counts == [5, 5, 0, 0, 0, 0]
    assert summary["parse_rate"] == 1.0
    for name in ("l2_1s", "l2_2s", "l2_3s", "l2_4s", "ade", "fde"):
        assert summary[name] == pytest.approx(3.0, abs=1e-5)  # the mean of 1, 2, 3, 4, 5 m
    assert summary["heading_error"] == pytest.approx(0.1, abs=1e-6)
    assert json.loads((asked.output / "summary.json").read_text())["ade"] == summary["ade"]
    lines = [json.loads(line) for line in (asked.output / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines[1:]] == [f"scene {index}" for index in range(5)]
    assert lines[1]["answer"].strip() == answer_text(POSES)


def test_a_stopped_evaluation_goes_on(asked: EvaluationSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluate(asked)
    path = asked.output / "answers.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:3]) + kept[3][:20])  # stopped while it wrote the third answer
    numbers = []
    prepared = evaluation._prepared

    def counted(questions: Any, *others: Any) -> Any:
        numbers.append([question.line for question in questions])
        return prepared(questions, *others)

    monkeypatch.setattr(evaluation, "_prepared", counted)
    assert evaluate(asked) == expected
    assert numbers == [[3, 4, 5]]
    assert path.read_bytes().splitlines(keepends=True) == kept
    assert evaluate(asked) == expected
    assert len(numbers) == 1  # all is answered: the VLM is not even loaded


def test_answers_of_another_evaluation_are_not_mixed_in(asked: EvaluationSettings) -> None:
    evaluate(asked)
    other = EvaluationSettings(**{**vars(asked), "max_new_tokens": 300})
    with pytest.raises(InvalidEvaluation, match=r"another evaluation \(other max_new_tokens\): name another output"):
        evaluate(other)


def test_unreadable_images_are_counted(asked: EvaluationSettings, caplog: pytest.LogCaptureFixture) -> None:
    (asked.root / "1.png").unlink()
    summary = evaluate(asked)
    assert (summary["answers"], summary["unreadable"]) == (4, 1)
    assert "line 2 (scene 1)" in caplog.text


@pytest.mark.parametrize("changed", ["before_image", "after_command"])  # before and behind the image
def test_questions_in_another_profile_are_refused(asked: EvaluationSettings, changed: str) -> None:
    content = json.loads(Path(asked.prompt_profile).read_text())
    content[changed] = content[changed].replace("<|im_end|>", " Hurry.<|im_end|>", 1)
    other = asked.annotation.with_name("other.json")
    other.write_text(json.dumps(content))
    with pytest.raises(InvalidEvaluation, match=r"(?s)line 1 does not fit the VLM's prompts.*--prompt-profile"):
        evaluate(replace(asked, prompt_profile=str(other)))
    assert not asked.output.exists()


def test_a_wrong_root_is_refused_before_the_vlm_is_loaded(
    asked: EvaluationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_ask", None)
        with pytest.raises(InvalidEvaluation, match=r"no image of 5 question\(s\) is below .*0\.png: set --root"):
            evaluate(replace(asked, root=asked.root / "nowhere"))
    for path in asked.root.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InvalidEvaluation, match=r"no image of 5 question\(s\) below .* can be read"):
        evaluate(asked)


@pytest.mark.parametrize(
    ("number", "damage"), [(1, b"{}"), (2, b'{"line": 1}'), (3, b"{broken"), (3, b'{"line": 2, "answer": 1}')]
)
def test_damaged_answers_are_refused(asked: EvaluationSettings, number: int, damage: bytes) -> None:
    evaluate(asked)
    path = asked.output / "answers.jsonl"
    lines = path.read_bytes().splitlines()
    lines[number - 1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InvalidEvaluation, match=f"answers.jsonl line {number} is damaged .*: delete the line"):
        evaluate(asked)


def test_devices_and_kernels_that_are_not_there(asked: EvaluationSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidEvaluation, match=r"^--device=cuda but this process sees 0 CUDA device"):
        evaluate(replace(asked, device="cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidEvaluation, match="needs the package flash-attn"):
        evaluate(replace(asked, attention="flash_attention_2", dtype="bfloat16"))
    with pytest.raises(
        InvalidEvaluation, match="flash_attention_2 has no kernel for --dtype float32: set --dtype bfloat16"
    ):
        evaluate(replace(asked, attention="flash_attention_2", dtype="float32"))


def test_answers_must_fit(asked: EvaluationSettings) -> None:
    with pytest.raises(InvalidEvaluation, match="max_new_tokens=9 would cut answers off"):
        evaluate(EvaluationSettings(**{**vars(asked), "max_new_tokens": 9}))


def test_only_trajectory_questions(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join([json.dumps(talk("Where to?", "Left.")), "{broken"]))
    with pytest.raises(InvalidEvaluation, match=r"(?s)line 1: the answer is no trajectory.*line 2: not valid JSON"):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(InvalidEvaluation, match="is empty"):
        read_questions(path)
    with pytest.raises(InvalidEvaluation, match="there is no annotation file"):
        read_questions(tmp_path / "none.jsonl")


def test_distances_by_hand() -> None:
    question = Question.of(1, read_record(talk("Where to?", answer_text(POSES))))
    moved = POSES + np.array([[3.0, 4.0, 0.0]] * 4 + [[0.0, 2.0, 0.0]] * 4)
    far = judge(question, answer_text(moved), True)
    assert far.distances is not None
    np.testing.assert_allclose(far.distances, [5.0] * 4 + [2.0] * 4, atol=1e-5)
    lost = judge(question, "I do not know.", False)
    assert lost.distances is None
    summary = summarize([far, lost])
    assert (summary["exact"], summary["fallback"], summary["cut_off"], summary["parse_rate"]) == (1, 1, 1, 0.5)
    names = ("l2_1s", "l2_2s", "l2_3s", "l2_4s", "ade", "fde")
    assert [summary[name] for name in names] == pytest.approx([5, 5, 2, 2, 3.5, 2], abs=1e-5)
    assert summarize([lost])["ade"] is None


def test_headings_are_compared_round_the_circle() -> None:
    ahead = POSES.copy()
    ahead[:, 2] = 3.10
    question = Question.of(1, read_record(talk("Where to?", answer_text(ahead))))
    ahead[:, 2] = -3.10
    judged = judge(question, answer_text(ahead), True)
    assert judged.heading_errors is not None
    np.testing.assert_allclose(judged.heading_errors, 2 * np.pi - 6.2, atol=1e-5)


def test_command_line(asked: EvaluationSettings, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        *("--vlm", asked.vlm, "--annotation", str(asked.annotation), "--root", str(asked.root)),
        *("--output", str(asked.output), "--prompt-profile", str(asked.prompt_profile), "--max-tiles", "2"),
        *("--dtype", "float32", "--device", "cpu"),
    ]
    main([*arguments, "--limit", "2"])
    assert json.loads(capsys.readouterr().out)["ade"] == pytest.approx(1.5, abs=1e-5)
    for wrong, message in ((["--limit", "0"], "--limit must be at least 1"), (["--vlm", "none"], "no VLM checkpoint")):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
