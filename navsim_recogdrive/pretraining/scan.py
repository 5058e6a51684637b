"""Reads the data sets of a mixture through in parallel: what is wrong with them, and what is in them.

Lines are read in chunks that are counted and forgotten, so memory does not grow with the data.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from navsim_recogdrive.pretraining.finetuning.conversations import InvalidRecord, Record, check_texts, read_record
from navsim_recogdrive.pretraining.images import BadImage, decoded_image_size
from navsim_recogdrive.pretraining.registry import UNKNOWN, Entry

CHUNK_LINES = 256

_REMEMBERED_IMAGES = 65536
"""Many questions about one image follow each other: it is looked at once."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set; ``line`` counts from 1 and is 0 for the data set as a whole."""

    line: int
    kind: str
    detail: str


@dataclass
class Contents:
    """What was found in a data set, or a part of it; parts are added up with :meth:`add`.

    Attributes:
        lines: of the file, empty ones too.
        samples: lines that can be trained on.
        problems: number of problems of each kind.
        images: number of images in each sample, counted.
        turns: number of answers in each sample, counted.
        characters: of all turns, per sample, counted by hundreds (rounded down).
        tokens: of the text of all turns, per sample, counted; empty without a tokenizer.
        sizes: (width, height) of images, counted once per mention.
    """

    lines: int = 0
    samples: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    characters: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, other: Contents) -> None:
        """Add another part's numbers to these."""
        self.lines += other.lines
        self.samples += other.samples
        for name in ("problems", "images", "turns", "characters", "tokens", "sizes"):
            getattr(self, name).update(getattr(other, name))


CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Reading:
    """How deep a data set is read.

    Attributes:
        decode_images: decode every image; else their files are not touched.
        tokenizer: folder of a tokenizer to count tokens with; ``None`` counts none.
    """

    decode_images: bool = True
    tokenizer: str | None = None


def scan(
    name: str,
    entry: Entry,
    reading: Reading,
    workers: int,
    on_problem: Callable[[Problem], None] = lambda problem: None,
) -> Contents:
    """Read one data set through.

    Args:
        name: of the data set, for the progress bar.
        entry: with absolute paths, from :func:`~navsim_recogdrive.pretraining.registry.load_mixture`.
        reading: how deep.
        workers: processes.
        on_problem: called with every problem, in the order of the lines.

    Returns:
        What was found, the problems of the whole data set (no such file, another length) among them.
    """
    total = Contents()

    def report(kind: str, detail: str) -> None:
        total.problems[kind] += 1
        on_problem(Problem(0, kind, detail))

    path = Path(entry.annotation)
    if not Path(entry.root).is_dir():
        report("no root folder", entry.root)
    if not path.is_file():
        report("no annotation file", entry.annotation)
        return total
    with tqdm(total=path.stat().st_size, desc=name, unit="B", unit_scale=True, file=sys.stderr, leave=False) as bar:
        for contents, problems, read in _chunks_read(path, entry, reading, workers):
            total.add(contents)
            for problem in problems:
                on_problem(problem)
            bar.update(read)
    if not total.lines:
        report("empty annotation file", entry.annotation)
    if entry.length is not None and entry.length != total.samples:
        report("length differs", f"the mixture says {entry.length}, {total.samples} lines can be trained on")
    return total


def licence_is_known(entry: Entry) -> bool:
    """Whether an entry says what may be done with it."""
    return entry.licence.strip().lower() not in ("", UNKNOWN)


def _chunks_read(
    path: Path, entry: Entry, reading: Reading, workers: int
) -> Iterator[tuple[Contents, list[Problem], int]]:
    """Contents, problems and bytes of each chunk, in order; a few per process wait at a time."""
    with path.open("rb") as file:
        chunks = _chunks(file)
        if workers <= 1:
            for first, lines in chunks:
                yield (*_read_chunk(entry.root, reading, first, lines), sum(map(len, lines)))
            return
        with ProcessPoolExecutor(workers) as pool:
            waiting: list[tuple[Future[tuple[Contents, list[Problem]]], int]] = []
            try:
                while True:
                    for first, lines in islice(chunks, 2 * workers - len(waiting)):
                        future = pool.submit(_read_chunk, entry.root, reading, first, lines)
                        waiting.append((future, sum(map(len, lines))))
                    if not waiting:
                        return
                    future, size = waiting.pop(0)
                    yield (*future.result(), size)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _chunks(file: Any) -> Iterator[tuple[int, list[bytes]]]:
    first = 1
    while lines := list(islice(file, CHUNK_LINES)):
        yield first, lines
        first += len(lines)


def _read_chunk(root: str, reading: Reading, first: int, lines: list[bytes]) -> tuple[Contents, list[Problem]]:
    contents, problems = Contents(lines=len(lines)), []
    count_tokens = None if reading.tokenizer is None else _token_counter(reading.tokenizer)
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        faults: list[tuple[str, str]] = []
        try:
            record = read_record(line)
            check_texts(record)
            if reading.decode_images:
                faults = list(_image_faults(Path(root), record))
        except (InvalidRecord, UnicodeDecodeError) as error:
            faults = [("broken line", str(error))]
        if faults:
            problems += [Problem(number, kind, detail) for kind, detail in faults]
            contents.problems.update(kind for kind, _ in faults)
        else:
            _count(contents, record, count_tokens)
    return contents, problems


def _image_faults(root: Path, record: Record) -> Iterator[tuple[str, str]]:
    for index, image in enumerate(record.images):
        found = _looked_at(str(root / image))
        if isinstance(found, str):
            yield f"image {found.partition(':')[0]}", found.partition(":")[2] or image
        elif record.sizes is not None and record.sizes[index] != found:
            said = record.sizes[index]
            yield "image size differs", f"{image} has {found[0]} x {found[1]}, the line says {said[0]} x {said[1]}"


@lru_cache(maxsize=_REMEMBERED_IMAGES)
def _looked_at(path: str) -> tuple[int, int] | str:
    """Width and height, or ``reason:path and details``."""
    try:
        return decoded_image_size(Path(path))
    except BadImage as error:
        return f"{error.reason}:{error}"


def _count(contents: Contents, record: Record, count_tokens: CountTokens | None) -> None:
    contents.samples += 1
    contents.images[len(record.images)] += 1
    contents.turns[sum(turn.role == "assistant" for turn in record.turns)] += 1
    contents.characters[sum(len(turn.text) for turn in record.turns) // 100] += 1
    if count_tokens is not None:
        contents.tokens[sum(count_tokens(turn.text) for turn in record.turns)] += 1
    contents.sizes.update(record.sizes or ())


@lru_cache(maxsize=1)
def _token_counter(folder: str) -> CountTokens:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer  # brings transformers

    tokenizer = load_qwen2_tokenizer(Path(folder))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def percentile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that at least ``share`` (0..1) of what was counted does not exceed; 0 for nothing counted."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return 0


def statistics(contents: Contents) -> dict[str, Any]:
    """Numbers for people and JSON: sums, and medians, 95 % quantiles and maxima per sample."""

    def spread(counts: Mapping[int, int], unit: int = 1) -> dict[str, int]:
        return {
            "median": percentile(counts, 0.5) * unit,
            "p95": percentile(counts, 0.95) * unit,
            "largest": max(counts, default=0) * unit,
        }

    def total(counts: Mapping[int, int]) -> int:
        return sum(value * count for value, count in counts.items())

    return {
        "samples": contents.samples,
        "images": total(contents.images),
        "images_per_sample": {str(number): count for number, count in sorted(contents.images.items())},
        "answers": total(contents.turns),
        "answers_per_sample": spread(contents.turns),
        "characters_per_sample": spread(contents.characters, 100),
        "text_tokens": total(contents.tokens) if contents.tokens else None,
        "text_tokens_per_sample": spread(contents.tokens) if contents.tokens else None,
        "image_sizes": {f"{width}x{height}": count for (width, height), count in contents.sizes.most_common(10)},
        "image_sizes_others": sum(contents.sizes.values()) - sum(count for _, count in contents.sizes.most_common(10)),
    }


def problem_line(name: str, problem: Problem) -> str:
    """A problem as a line of JSON."""
    return json.dumps({"data_set": name, "line": problem.line, "kind": problem.kind, "detail": problem.detail})
