"""Asks a VLM the questions of a trajectory data set and measures its answers against the written ones.

    python -m navsim_recogdrive.pretraining.evaluation --vlm VLM --annotation navsim_traj.jsonl --root DATA --output DIR

Answers go to ``DIR/answers.jsonl`` as they are given, so a run that is stopped goes on where it was; the numbers are
in ``DIR/summary.json``. The PDM score of the same model comes from NAVSIM's runner with ``agent=recogdrive_vlm_2b``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.pretraining.evaluation_metrics import NotATrajectory, Question, judge, summarize
from navsim_recogdrive.pretraining.finetuning.conversations import ChatEncoder, InvalidRecord, Record, read_record
from navsim_recogdrive.pretraining.finetuning.images import UnreadableImage, read_image
from navsim_recogdrive.vlm.architecture import ATTENTION_KERNELS
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.identity import MAX_TILES, VLMSettings

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ANSWERS_FILE, SUMMARY_FILE = "answers.jsonl", "summary.json"

_ANSWER_FIELDS: dict[str, type] = {"about": dict, "line": int, "answer": str, "finished": bool}

_SHOWN = 10


class InvalidEvaluation(ValueError):
    """Data or settings that cannot be evaluated; says what and the fix."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is asked of whom.

    Attributes:
        vlm: folder or hub id.
        annotation: trajectory questions, one record of InternVL's format per line.
        root: folder that image paths are relative to.
        output: folder for answers and summary.
        cam_type: cameras of the questions, ``single`` or ``multi``.
        prompt_profile: that the questions were written in, see :class:`~navsim_recogdrive.vlm.identity.VLMSettings`.
        max_tiles: most tiles of an image, as ``agent.vlm.max_tiles``.
        batch_size: questions that are answered at once.
        max_new_tokens: most tokens of an answer.
        limit: answer the first so many questions only; ``None`` for all.
        dtype: ``bfloat16`` or ``float32``.
        attention: one of :data:`~navsim_recogdrive.vlm.architecture.ATTENTION_KERNELS`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    vlm: str
    annotation: Path
    root: Path
    output: Path
    cam_type: str = "single"
    prompt_profile: str = "auto"
    max_tiles: int = MAX_TILES
    batch_size: int = 8
    max_new_tokens: int = 256
    limit: int | None = None
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    device: str = "auto"


def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Ask what has not been answered yet, and sum up all answers.

    Returns:
        The summary, see :func:`~navsim_recogdrive.pretraining.evaluation_metrics.summarize`, and ``unreadable``: the
        number of questions that could not be asked.

    Raises:
        InvalidEvaluation: for lines that are no trajectory questions, or in other words than the prompt profile's;
            images of which none is in ``root`` or none can be read; a device or attention kernel that is not there, or
            a kernel that does not know the dtype; answers in ``output`` that are damaged or another evaluation's.
        ValueError: for an unusable VLM or prompt profile.
    """
    device = _device(settings)
    questions = read_questions(settings.annotation)[: settings.limit]
    _check_questions(settings, questions)
    about = _about(settings)
    answers = _Answers(settings.output / ANSWERS_FILE, about)
    waiting = [question for question in questions if question.line not in answers.given]
    if not answers.given:
        _check_root(settings, waiting)
    unreadable = _ask(settings, device, waiting, answers) if waiting else 0
    given = answers.given
    if not any(question.line in given for question in questions):
        raise InvalidEvaluation(
            f"no image of {len(questions)} question(s) below {settings.root} can be read, see the warnings above: "
            "check --root and the files"
        )
    judged = [judge(question, *given[question.line]) for question in questions if question.line in given]
    summary = {**summarize(judged), "unreadable": unreadable}
    _write_json(settings.output / SUMMARY_FILE, {"about": about, **summary})
    return summary


def read_questions(annotation: Path) -> list[Question]:
    """The questions of a data set; all must ask for a trajectory.

    Raises:
        InvalidEvaluation: listing lines that are broken or have no trajectory for an answer.
    """
    if not annotation.is_file():
        raise InvalidEvaluation(f"there is no annotation file {annotation}")
    questions, faults = [], []
    with annotation.open("rb") as stream:
        for line, text in enumerate(stream, start=1):
            try:
                if text.strip():
                    questions.append(Question.of(line, read_record(text)))
            except (InvalidRecord, NotATrajectory) as error:
                faults.append(f"line {line}: {error}")
    if faults:
        rest = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise InvalidEvaluation(
            f"{annotation} must hold trajectory questions only:\n  " + "\n  ".join(faults[:_SHOWN]) + rest
        )
    if not questions:
        raise InvalidEvaluation(f"{annotation} is empty")
    return questions


def _device(settings: EvaluationSettings) -> torch.device:
    """Where to compute; checks the attention kernel too."""
    from navsim_recogdrive.policy.backbones import resolve_device
    from navsim_recogdrive.vlm.attention import kernel_name

    if settings.attention == "flash_attention_2" and settings.dtype == "float32":
        raise InvalidEvaluation(
            "--attention flash_attention_2 has no kernel for --dtype float32: set --dtype bfloat16, or --attention sdpa"
        )
    try:
        kernel_name(settings.attention)
        return resolve_device(settings.device, "--device")
    except ValueError as error:
        raise InvalidEvaluation(str(error)) from None


def _check_questions(settings: EvaluationSettings, questions: Sequence[Question]) -> None:
    """Make sure that all are asked in the profile's words, before weights are loaded."""
    from navsim_recogdrive.vlm.preparation import load_preparation

    preparation = load_preparation(_vlm_settings(settings))
    writer = ConversationWriter.of(preparation.profile, preparation.tokenizer)
    for question in questions:
        if difference := question.record.mismatch(writer):
            raise InvalidEvaluation(
                f"{settings.annotation} line {question.line} does not fit the VLM's prompts: {difference}. Set "
                "--prompt-profile and --cam-type to those that the questions were written with"
            )


def _check_root(settings: EvaluationSettings, questions: Sequence[Question]) -> None:
    images = (settings.root / image for question in questions for image in question.record.images)
    if not any(path.is_file() for path in images):
        raise InvalidEvaluation(
            f"no image of {len(questions)} question(s) is below {settings.root}, the first would be "
            f"{settings.root / questions[0].record.images[0]}: set --root to the folder that image paths count from"
        )


def _about(settings: EvaluationSettings) -> dict[str, Any]:
    """What decides the answers; two evaluations with the same may share a file."""
    from navsim_recogdrive.vlm.identity import read_vlm_identity

    stat = settings.annotation.stat()
    return {
        "vlm": read_vlm_identity(_vlm_settings(settings)).fingerprint,
        "annotation": settings.annotation.name,
        "bytes": stat.st_size,
        "max_new_tokens": settings.max_new_tokens,
        "dtype": settings.dtype,
    }


def _vlm_settings(settings: EvaluationSettings) -> VLMSettings:
    from navsim_recogdrive.vlm.architecture import read_architecture
    from navsim_recogdrive.vlm.hub import checkpoint_directory

    # Nothing is padded to it here, so a prompt may be as long as the model allows.
    longest = read_architecture(checkpoint_directory(settings.vlm)).max_positions
    return VLMSettings(
        settings.vlm,
        cam_type=settings.cam_type,
        prompt_profile=settings.prompt_profile,
        hidden_length=longest,
        max_tiles=settings.max_tiles,
    )


class _Answers:
    """Answers in a file: a line about the evaluation, then one for each answer.

    Attributes:
        given: (text, finished) by line of the question.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self.given: dict[int, tuple[str, bool]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or not (lines := self._whole_lines()):
            path.write_text(json.dumps({"about": about}) + "\n", encoding="utf-8")
            return
        found = self._read(1, lines[0], "about")
        if changed := sorted(name for name in about if found.get(name) != about[name]):
            raise InvalidEvaluation(
                f"{path} holds answers of another evaluation (other {', '.join(changed)}): name another output folder"
            )
        for number, line in enumerate(lines[1:], start=2):
            asked, answer, finished = (self._read(number, line, name) for name in ("line", "answer", "finished"))
            self.given[asked] = (answer, finished)

    def _read(self, number: int, line: bytes, name: str) -> Any:
        """A field of a line."""
        try:
            content = json.loads(line)[name]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            content = error
        if not isinstance(content, _ANSWER_FIELDS[name]):
            raise InvalidEvaluation(
                f"{self._path} line {number} is damaged ({line[:60]!r}): delete the line (line 1: the whole file) to "
                "have its question asked again, or name another output folder"
            )
        return content

    def _whole_lines(self) -> list[bytes]:
        """The file's lines; one that was being written when the run stopped is cut off."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        return whole.splitlines()

    def add(self, questions: Sequence[Question], answers: Sequence[Any]) -> None:
        """Keep the answers to some questions."""
        with self._path.open("a", encoding="utf-8") as stream:
            for question, answer in zip(questions, answers, strict=True):
                entry = {
                    "line": question.line,
                    "id": question.record.name,
                    "answer": answer.text,
                    "finished": answer.finished,
                }
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
                self.given[question.line] = (answer.text, answer.finished)


def _ask(settings: EvaluationSettings, device: torch.device, questions: Sequence[Question], answers: _Answers) -> int:
    """Answer questions, batch by batch; returns how many could not be asked."""
    import torch

    from navsim_recogdrive.vlm.generation import generate, longest_answer
    from navsim_recogdrive.vlm.loading import load_backbone
    from navsim_recogdrive.vlm.preparation import VLMInputs, cut_image

    backbone = load_backbone(
        _vlm_settings(settings),
        dtype=getattr(torch, settings.dtype),
        device=device,
        attention=settings.attention,
        with_head=True,
    )
    if settings.max_new_tokens < (needed := longest_answer(backbone)):
        raise InvalidEvaluation(
            f"max_new_tokens={settings.max_new_tokens} would cut answers off: eight poses take up to {needed} tokens"
        )
    architecture = backbone.preparation.architecture
    encoder = ChatEncoder(backbone.tokenizer, architecture.image_tokens)

    def prepare(question: Question) -> VLMInputs | str:
        try:
            record: Record = question.record
            tiles = [
                cut_image(architecture, read_image(settings.root / image), settings.max_tiles)
                for image in record.images
            ]
            rows = [len(one) * architecture.rows_per_tile(*one.shape[1:3]) for one in tiles]
            inputs = VLMInputs(np.concatenate(tiles), encoder.encode_prompt(record, rows))
        except (UnreadableImage, InvalidRecord) as error:
            return str(error)
        try:
            backbone.check(inputs)
        except ValueError as error:
            raise InvalidEvaluation(f"{settings.annotation} line {question.line} cannot be asked: {error}") from None
        return inputs

    unreadable = 0
    with (
        ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool,
        tqdm(total=len(questions), desc="answering", unit="question") as bar,
    ):
        for batch, prepared in _prepared(questions, prepare, pool, settings.batch_size):
            usable = []
            for question, inputs in zip(batch, prepared, strict=True):
                if isinstance(inputs, str):
                    unreadable += 1
                    logger.warning("line %d (%s): %s", question.line, question.record.name, inputs)
                else:
                    usable.append((question, inputs))
            if usable:
                asked, scenes = zip(*usable, strict=True)
                answers.add(asked, generate(backbone, scenes, settings.max_new_tokens))
            bar.update(len(batch))
    return unreadable


def _prepared(
    questions: Sequence[Question], prepare: Any, pool: ThreadPoolExecutor, batch_size: int
) -> Iterator[tuple[list[Question], list[Any]]]:
    """Batches with their inputs; the next one is prepared while the model answers this one."""
    stream = iter(questions)
    ahead: list[tuple[list[Question], list[Any]]] = []
    while True:
        while len(ahead) < 2 and (batch := list(islice(stream, batch_size))):
            ahead.append((batch, [pool.submit(prepare, question) for question in batch]))
        if not ahead:
            return
        batch, futures = ahead.pop(0)
        yield batch, [future.result() for future in futures]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    """Command line of :func:`evaluate`."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.pretraining.evaluation",
        description="Ask a VLM for the trajectories of a data set and measure its answers (L2, parse rate).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--vlm", required=True, help="folder or hub id of the VLM")
    parser.add_argument("--annotation", type=Path, required=True, help="trajectory questions (JSONL)")
    parser.add_argument("--root", type=Path, required=True, help="folder that image paths are relative to")
    parser.add_argument("--output", type=Path, required=True, help="folder for answers.jsonl and summary.json")
    parser.add_argument("--cam-type", choices=sorted(CAMERA_SETS), default="single", help="cameras of the questions")
    parser.add_argument("--prompt-profile", default="auto", help="that the questions were written in")
    parser.add_argument("--max-tiles", type=int, default=MAX_TILES, help="most tiles of an image, as in fine-tuning")
    parser.add_argument("--batch-size", type=int, default=8, help="questions answered at once")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--limit", type=int, help="answer only the first so many questions")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the model")
    parser.add_argument("--attention", choices=ATTENTION_KERNELS, default="sdpa", help="attention kernel")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    for name in ("max_tiles", "batch_size", "max_new_tokens", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {getattr(options, name)}")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    from navsim_recogdrive.vlm.prompts import PromptError

    try:
        summary = evaluate(EvaluationSettings(**vars(options)))
    except (InvalidEvaluation, VLMCheckpointError, PromptError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
