"""Reads a mixture of data sets through once before training: where each sample lies, how long it is, what is wrong.

Every line is parsed, tokenised and its images looked for, so that a broken line or a missing image shows in minutes and
not on the second day. The result is kept in a file: other processes of the run, and the run when it is resumed, read it
from there, and look only at missing images again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from navsim_recogdrive.pretraining.finetuning.conversations import ChatEncoder, InvalidRecord, Record, read_record
from navsim_recogdrive.pretraining.finetuning.images import TileBudget, UnreadableImage, header_size
from navsim_recogdrive.pretraining.registry import Entry
from navsim_recogdrive.vlm.conversation import ConversationWriter

CHUNK_BYTES = 8_000_000
"""Of an annotation file, read by one task; smaller files are read without further processes."""

# To be raised with any change that gives other lengths, or finds other faults, for the same data.
_VERSION = 2


class InvalidData(ValueError):
    """Data that cannot be trained on; lists lines and reasons."""


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
    """A line that cannot be trained on.

    Attributes:
        line: counted from 1.
        reason: why.
        offset: byte where it begins, if an image is at fault, which may be mended without a trace in the file; else
            ``None``.
    """

    line: int
    reason: str
    offset: int | None = None


@dataclass(frozen=True)
class SourceIndex:
    """The usable records of one data set, in the file's order.

    Attributes:
        offsets: ``[N]`` int64, byte where each begins.
        lines: ``[N]`` int64, its line, counted from 1.
        tokens: ``[N]`` int64, tokens of the whole conversation, images included.
        planner: ``[N]`` int64, 1 for a question of the planner, else 0.
        digest: SHA-256 (hex) of the annotation file.
        faults: the others, in the file's order.
    """

    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    tokens: NDArray[np.int64]
    planner: NDArray[np.int64]
    digest: str
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Reader:
    """What turns records into lengths.

    Attributes:
        encoder: writes conversations as tokens.
        budget: how images are cut.
        planner: writes the questions that the planner asks; their images are cut as the planner cuts them.
        identity: everything that decides the lengths, as text.
    """

    encoder: ChatEncoder
    budget: TileBudget
    planner: ConversationWriter
    identity: str

    def shared_by(self, record: Record) -> int:
        """How many images share the tile limit: all of a sample, but each has its own in a question of the planner."""
        return 1 if record.mismatch(self.planner) is None else len(record.images)


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
        InvalidData: if it holds no line.
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
    found = _read(path)
    if not len(found.offsets) and not found.faults:
        raise InvalidData(f"{source.name}: {source.annotation} is empty: leave it out of the mixture, or make it anew")
    index = _looked_at_again(found, source, reader)
    if writes and index is not found:
        _write(path, index)
    return index


def _looked_at_again(index: SourceIndex, source: Source, reader: Reader) -> SourceIndex:
    """The index with lines whose images have come meanwhile; every process finds them for itself."""
    rows, faults = [], []
    for fault in index.faults:
        if fault.offset is None:
            faults.append(fault)
            continue
        with source.annotation.open("rb") as stream:
            stream.seek(fault.offset)
            line = stream.readline()
        try:
            rows.append((fault.offset, fault.line, *_measured(line, source, reader)))
        except UnreadableImage as error:
            faults.append(replace(fault, reason=str(error)))
        except InvalidRecord as error:
            faults.append(Fault(fault.line, str(error)))
    if not rows:
        return index
    table = np.stack([index.offsets, index.lines, index.tokens, index.planner])
    table = np.concatenate([table, np.array(rows, dtype=np.int64).T], axis=1)
    return _index(table[:, np.argsort(table[0])], index.digest, faults)


def _key(source: Source, reader: Reader) -> str:
    stat = source.annotation.stat()
    parts = (_VERSION, source.annotation.resolve(), source.root.resolve(), stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256("\n".join(map(str, (*parts, reader.identity))).encode()).hexdigest()[:24]


def _write(path: Path, index: SourceIndex) -> None:
    faults = json.dumps([[fault.line, fault.reason, fault.offset] for fault in index.faults]).encode()
    partial_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial_path.open("wb") as stream:
            np.savez(
                stream,
                offsets=index.offsets,
                lines=index.lines,
                tokens=index.tokens,
                planner=index.planner,
                digest=index.digest,
                faults=np.frombuffer(faults, dtype=np.uint8),
            )
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def _read(path: Path) -> SourceIndex:
    with np.load(path) as content:
        faults = json.loads(content["faults"].tobytes())
        table = [content[name] for name in ("offsets", "lines", "tokens", "planner")]
        return _index(table, str(content["digest"]), [Fault(*fault) for fault in faults])


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
        replace(fault, line=fault.line + int(before))
        for part, before in zip(parts, lines_before, strict=False)
        for fault in part.faults
    ]
    rows = [part.rows + np.array([[0], [before], [0], [0]]) for part, before in zip(parts, lines_before, strict=False)]
    table = np.concatenate([np.empty((4, 0), dtype=np.int64), *rows], axis=1)
    return _index(table, _digest(source.annotation), faults)


def _index(table: Iterable[NDArray[np.int64]], digest: str, faults: Iterable[Fault]) -> SourceIndex:
    """An index from its columns: offsets, lines, tokens, planner."""
    offsets, lines, tokens, planner = table
    return SourceIndex(offsets, lines, tokens, planner, digest, tuple(faults))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    """Rows (offset, line, tokens, planner) ``[4, N]`` of a chunk; lines counted from its start."""

    rows: NDArray[np.int64]
    faults: list[Fault]
    lines_read: int


def _read_chunk(source: Source, reader: Reader, span: tuple[int, int]) -> _Part:
    rows, faults, number = [], [], 0
    for number, (offset, line) in enumerate(_lines(source.annotation, *span), start=1):
        if not line.strip():
            continue
        try:
            rows.append((offset, number, *_measured(line, source, reader)))
        except InvalidRecord as error:
            faults.append(Fault(number, str(error)))
        except UnreadableImage as error:
            faults.append(Fault(number, str(error), offset))
    return _Part(np.array(rows, dtype=np.int64).reshape(-1, 4).T, faults, number)


def _lines(path: Path, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in ``start..end``."""
    with path.open("rb") as stream:
        if start > 0:
            stream.seek(start - 1)
            stream.readline()
        while (offset := stream.tell()) < end:
            yield offset, stream.readline()


def _measured(line: bytes, source: Source, reader: Reader) -> tuple[int, bool]:
    """Tokens of a record, and whether it is a question of the planner."""
    record = read_record(line)
    paths = [source.root / image for image in record.images]
    if record.sizes is None:
        sizes: Sequence[tuple[int, int]] = [header_size(path) for path in paths]
    else:
        sizes = record.sizes
        if absent := [path for path in paths if not path.is_file()]:
            raise UnreadableImage(f"{absent[0]} does not exist")
    rows = reader.budget.rows(sizes, reader.shared_by(record))
    return len(reader.encoder.encode(record, rows).token_ids), record.mismatch(reader.planner) is None


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of a fast tokenizer's vocabulary and rules."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
