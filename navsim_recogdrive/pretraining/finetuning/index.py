"""Reads a mixture of data sets through once before training: where each sample lies, how long it is, what is wrong.

Every line is parsed, tokenised and its images looked for, so that a broken line or a missing image shows in minutes and
not on the second day. The result is kept in a file: other processes of the run, and the run when it is resumed, read it
from there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from navsim_recogdrive.pretraining.finetuning.conversations import ChatEncoder, InvalidRecord, read_record
from navsim_recogdrive.pretraining.finetuning.images import TileBudget, UnreadableImage, header_size
from navsim_recogdrive.pretraining.registry import Entry

CHUNK_BYTES = 8_000_000
"""Of an annotation file, read by one task; smaller files are read without further processes."""

# To be raised with any change that gives other lengths, or finds other faults, for the same data.
_VERSION = 1


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        name: of the data set.
        root: folder that image paths are relative to.
        annotation: JSONL file with one record per line.
        repeat_time: how often it is gone through per epoch; a fraction is a random subset.
        data_augment: compress its images as JPEGs of random quality.
        length: number of records that the mixture announces, ``None`` if it does not.
    """

    name: str
    root: Path
    annotation: Path
    repeat_time: float = 1.0
    data_augment: bool = False
    length: int | None = None

    @classmethod
    def of(cls, name: str, entry: Entry) -> Source:
        """An entry of a mixture, its paths absolute."""
        return cls(name, Path(entry.root), Path(entry.annotation), entry.repeat_time, entry.data_augment, entry.length)


@dataclass(frozen=True)
class Fault:
    """A line that cannot be trained on, counted from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class SourceIndex:
    """The usable records of one data set, in the file's order.

    Attributes:
        offsets: ``[N]`` int64, byte where each begins.
        lines: ``[N]`` int64, its line, counted from 1.
        tokens: ``[N]`` int64, tokens of the whole conversation, images included.
        faults: the others.
    """

    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    tokens: NDArray[np.int64]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Reader:
    """What turns records into lengths.

    Attributes:
        encoder: writes conversations as tokens.
        budget: how images are cut.
        identity: everything that decides the lengths, as text.
    """

    encoder: ChatEncoder
    budget: TileBudget
    identity: str


def index_source(source: Source, reader: Reader, folder: Path, *, workers: int = 1, writes: bool = True) -> SourceIndex:
    """Index one data set, or read its index where there is one of the same file.

    Args:
        source: the data set.
        reader: what turns records into lengths.
        folder: where indexes are kept.
        workers: processes that read a large file.
        writes: this process makes a missing index; others wait for it.

    Raises:
        FileNotFoundError: if there is no annotation file.
        ValueError: if it holds no line.
    """
    if not source.annotation.is_file():
        raise FileNotFoundError(f"{source.name}: there is no annotation file {source.annotation}")
    path = folder / f"{_key(source, reader)}.npz"
    if writes and not path.is_file():
        index = _read_through(source, reader, workers)
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, index)
    while not path.is_file():
        time.sleep(0.2)
    index = _read(path)
    if not len(index.offsets) and not index.faults:
        raise ValueError(f"{source.name}: {source.annotation} is empty")
    return index


def _key(source: Source, reader: Reader) -> str:
    stat = source.annotation.stat()
    parts = (_VERSION, source.annotation.resolve(), source.root.resolve(), stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256("\n".join(map(str, (*parts, reader.identity))).encode()).hexdigest()[:24]


def _write(path: Path, index: SourceIndex) -> None:
    faults = json.dumps([[fault.line, fault.reason] for fault in index.faults]).encode()
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    with partial_path.open("wb") as stream:
        np.savez(
            stream,
            offsets=index.offsets,
            lines=index.lines,
            tokens=index.tokens,
            faults=np.frombuffer(faults, dtype=np.uint8),
        )
    partial_path.replace(path)


def _read(path: Path) -> SourceIndex:
    with np.load(path) as content:
        faults = json.loads(content["faults"].tobytes())
        return SourceIndex(
            content["offsets"], content["lines"], content["tokens"], tuple(Fault(*fault) for fault in faults)
        )


def _read_through(source: Source, reader: Reader, workers: int) -> SourceIndex:
    size = source.annotation.stat().st_size
    chunks = [(start, min(size, start + CHUNK_BYTES)) for start in range(0, size, CHUNK_BYTES)]
    read = partial(_read_chunk, source, reader)
    bar = partial(tqdm, total=len(chunks), desc=f"reading {source.name}", unit="chunk", disable=len(chunks) < 2)
    if len(chunks) < 2 or workers < 2:
        parts = list(bar(map(read, chunks)))
    else:
        # Not forked: the caller has threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
            parts = list(bar(pool.map(read, chunks)))
    lines_before = np.cumsum([0, *(part.lines_read for part in parts)])
    faults = [
        Fault(fault.line + int(before), fault.reason)
        for part, before in zip(parts, lines_before, strict=False)
        for fault in part.faults
    ]
    rows = [part.rows + np.array([[0], [before], [0]]) for part, before in zip(parts, lines_before, strict=False)]
    offsets, lines, tokens = np.concatenate([np.empty((3, 0), dtype=np.int64), *rows], axis=1)
    return SourceIndex(offsets, lines, tokens, tuple(faults))


@dataclass(frozen=True)
class _Part:
    """Rows (offset, line, tokens) ``[3, N]`` of a chunk; lines counted from its start."""

    rows: NDArray[np.int64]
    faults: list[Fault]
    lines_read: int


def _read_chunk(source: Source, reader: Reader, span: tuple[int, int]) -> _Part:
    rows, faults, number = [], [], 0
    for number, (offset, line) in enumerate(_lines(source.annotation, *span), start=1):
        if not line.strip():
            continue
        try:
            rows.append((offset, number, _length(line, source, reader)))
        except (InvalidRecord, UnreadableImage) as error:
            faults.append(Fault(number, str(error)))
    return _Part(np.array(rows, dtype=np.int64).reshape(-1, 3).T, faults, number)


def _lines(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in ``start..end``."""
    with path.open("rb") as stream:
        if start > 0:
            stream.seek(start - 1)
            stream.readline()
        while (offset := stream.tell()) < end:
            yield offset, stream.readline()


def _length(line: bytes, source: Source, reader: Reader) -> int:
    record = read_record(line)
    paths = [source.root / image for image in record.images]
    if record.sizes is None:
        sizes: Sequence[tuple[int, int]] = [header_size(path) for path in paths]
    else:
        sizes = record.sizes
        if absent := [path for path in paths if not path.is_file()]:
            raise UnreadableImage(f"{absent[0]} does not exist")
    return len(reader.encoder.encode(record, reader.budget.rows(sizes)).token_ids)


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of a fast tokenizer's vocabulary and rules."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
