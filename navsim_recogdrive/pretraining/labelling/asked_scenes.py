"""Scenes with the questions about them: read, and worked out in parallel, in the order of the file.

What is true of a scene takes tens of milliseconds to find out, also where all answers are there already.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from navsim_recogdrive.pretraining.labelling.endpoint import LabellingError
from navsim_recogdrive.pretraining.labelling.labeller import Labeller
from navsim_recogdrive.pretraining.labelling.templates import FilledFamily
from navsim_recogdrive.pretraining.records import InvalidRecord, SceneRecord

CHUNK_SCENES = 16
"""Scenes that a process works out at a time; files with no more need no process."""


class SceneFileError(LabellingError):
    """The file of scenes cannot be read, or a line of it is no scene."""


class AskedScene(NamedTuple):
    """A scene and its questions, in the order of the families; ``None`` for one that does not apply to it."""

    scene: SceneRecord
    questions: tuple[FilledFamily | None, ...]


class _Chunk(NamedTuple):
    """Lines of a file; ``first`` is the number of the first one, from 1."""

    path: Path
    first: int
    lines: list[bytes]


def asked_scenes(
    path: Path, labeller: Labeller, limit: int | None = None, workers: int = 1
) -> Generator[AskedScene, None, None]:
    """The scenes of a JSONL file of records with their questions.

    Args:
        path: as ``navsim_recogdrive.agents.qa_dataset --kind records`` writes it.
        labeller: whose questions.
        limit: only the first so many scenes.
        workers: processes; a few chunks for each are worked out ahead.

    Raises:
        SceneFileError: if there is no such file, or a line is no record; the error gives its number.
    """
    chunks = _chunks(path, limit)
    begun = list(islice(chunks, 2))
    chunks = chain(begun, chunks)
    if workers <= 1 or len(begun) < 2:
        for chunk in chunks:
            yield from _work_out(labeller, chunk)
        return
    # Not forked: the caller has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _leave_interrupts_to_the_parent) as pool:
        waiting: deque[Future[Sequence[AskedScene]]] = deque()
        try:
            while True:
                ahead = islice(chunks, 2 * workers - len(waiting))
                waiting.extend(pool.submit(_work_out_there, labeller, chunk) for chunk in ahead)
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _chunks(path: Path, limit: int | None) -> Iterator[_Chunk]:
    try:
        with path.open("rb") as file:
            lines, first = islice(file, limit), 1
            while chunk := list(islice(lines, CHUNK_SCENES)):
                yield _Chunk(path, first, chunk)
                first += len(chunk)
    except OSError as error:
        raise SceneFileError(f"cannot read the scenes in {path}: {error.strerror}") from None


def _work_out_there(labeller: Labeller, chunk: _Chunk) -> list[AskedScene]:
    return list(_work_out(labeller, chunk))


def _work_out(labeller: Labeller, chunk: _Chunk) -> Iterator[AskedScene]:
    for number, line in enumerate(chunk.lines, chunk.first):
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise InvalidRecord("it must be a JSON object")
            scene = SceneRecord.from_dict(content)
        except ValueError as error:  # InvalidRecord is one
            raise SceneFileError(f"{chunk.path}, line {number} is no scene record: {error}") from None
        yield AskedScene(scene, tuple(labeller.questions(scene)))


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
