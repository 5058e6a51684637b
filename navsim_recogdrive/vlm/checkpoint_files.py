"""The files of a checkpoint directory: safetensors headers, a content digest, and errors that say what is wrong.

Nothing here imports torch: whether a directory is complete, and which checkpoint it is, is known in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"BF16": 2, "F16": 2, "F32": 4}  # bytes
_LONGEST_HEADER = 100_000_000  # the safetensors format's own limit
_SAMPLES, _SAMPLE_BYTES = 4, 1024


class VLMCheckpointError(ValueError):
    """A checkpoint directory that cannot be loaded: absent, incomplete, damaged, or of another architecture."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``file``, its ``dtype`` as safetensors spells it, ``shape``, and its byte range."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        VLMCheckpointError: if the file is absent, unreadable, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VLMCheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise VLMCheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # malformed, not UTF-8, numbers too long, nested too deeply
        raise VLMCheckpointError(f"{path} is not valid JSON ({error}): download the checkpoint again") from None
    if not isinstance(content, dict):
        raise VLMCheckpointError(f"{path} must hold a JSON object, found a {type(content).__name__}")
    return content


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Read the headers of all weight files, single or sharded, and check that every file is complete.

    Returns:
        Stored name to location, in the order of the files and of the data in them.

    Raises:
        VLMCheckpointError: for absent, truncated or contradictory files.
    """
    if (directory / INDEX_FILE).is_file():
        weight_map = _weight_map(directory / INDEX_FILE)
        files = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        weight_map = None
        files = [directory / SINGLE_FILE]
    if absent := [file.name for file in files if not file.is_file()]:
        raise VLMCheckpointError(
            f"{directory} lacks the weight files {absent}; looked for {SINGLE_FILE}, or the shards that {INDEX_FILE} "
            "names. Download the checkpoint again; weights in other formats must be converted to safetensors"
        )
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _file_tensors(file).items():
            if weight_map is not None and weight_map.get(name) != file.name:
                raise VLMCheckpointError(
                    f"{file.name} holds {name}, which {INDEX_FILE} places in {weight_map.get(name)}: shards and index "
                    "are of different checkpoints, download both again"
                )
            tensors[name] = tensor
    if weight_map is not None and (lost := sorted(weight_map.keys() - tensors.keys())):
        what = f"tensors that {directory / INDEX_FILE} names and no shard holds"
        raise VLMCheckpointError(f"{INDEX_FILE} names tensors that no shard holds: {listed(what, lost)}")
    return tensors


def content_digest(tensors: dict[str, StoredTensor]) -> str:
    """SHA-256 (hex) of the names, dtypes, shapes and sampled bytes of all tensors.

    Four blocks of 1 KiB, spread evenly from each tensor's first byte to its last, are read: about 2 MB for an 8B
    model, so this costs milliseconds, and any training step shows up in it. It is equal for the same tensors on
    another path or machine, and does not depend on how they are divided into shards.
    """
    digest = hashlib.sha256()
    handles: dict[Path, int] = {}
    try:
        for name, tensor in sorted(tensors.items()):
            if tensor.file not in handles:
                handles[tensor.file] = os.open(tensor.file, os.O_RDONLY)
            digest.update(f"{name}|{tensor.dtype}|{tensor.shape}|".encode())
            size = tensor.end - tensor.start
            last = max(size - _SAMPLE_BYTES, 0)
            for offset in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
                length = min(_SAMPLE_BYTES, size - offset)
                digest.update(os.pread(handles[tensor.file], length, tensor.start + offset))
    finally:
        for handle in handles.values():
            os.close(handle)
    return digest.hexdigest()


def shortened(names: list[str], limit: int = 8) -> str:
    """List names for an error message, the first few in full."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def listed(what: str, names: list[str]) -> str:
    """As :func:`shortened`; where that leaves names out, the log has them all."""
    if (short := shortened(names)) != ", ".join(names):
        logger.error("all %d %s: %s", len(names), what, ", ".join(names))
    return short


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to shard, as an index says."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise VLMCheckpointError(f"{index} has no weight_map: download the checkpoint again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise VLMCheckpointError(
                f"{index}: weight_map.{name} must be the name of a .safetensors file beside the index, found {file!r}: "
                "download the checkpoint again"
            )
    return weight_map


def _file_tensors(file: Path) -> dict[str, StoredTensor]:
    """Parse one safetensors header: 8 bytes of little-endian length, then JSON, then the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise VLMCheckpointError(f"{file} is a git-lfs pointer, not the weights: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise VLMCheckpointError(f"{file} is not a whole safetensors file ({size} bytes): download it again")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise VLMCheckpointError(f"{file} has a damaged safetensors header: download it again") from None
    data = 8 + length
    if not isinstance(header, dict):
        raise _damaged(file, "it must be an object", header)
    entries = [_entry(file, name, entry, data) for name, entry in header.items() if name != "__metadata__"]
    tensors = dict(sorted(entries, key=lambda entry: (entry[1].start, entry[1].end, entry[0])))
    expected = data
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise VLMCheckpointError(
                f"{file.name}: {name} is stored as {tensor.dtype}; expected one of {list(_DTYPES)} (quantised "
                "checkpoints are not supported)"
            )
        begin, expected = expected, expected + math.prod(tensor.shape) * _DTYPES[tensor.dtype]
        if (tensor.start, tensor.end) != (begin, expected):
            raise VLMCheckpointError(f"{file} has a damaged safetensors header ({name}): download it again")
    if size != expected:
        raise VLMCheckpointError(
            f"{file} is truncated or damaged: its header announces {expected} bytes, found {size}; download it again"
        )
    return tensors


def _entry(file: Path, name: str, entry: Any, data: int) -> tuple[str, StoredTensor]:
    """One tensor of a header, whose data begins at byte ``data``."""
    if not isinstance(entry, dict):
        raise _damaged(file, f"{name} must be an object", entry)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _damaged(file, f"{name}.dtype must be a string", dtype)
    if not _are_counts(shape):
        raise _damaged(file, f"{name}.shape must be a list of whole numbers of at least 0", shape)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _damaged(file, f"{name}.data_offsets must be two whole numbers of at least 0", offsets)
    return name, StoredTensor(file, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _damaged(file: Path, expected: str, found: object) -> VLMCheckpointError:
    return VLMCheckpointError(
        f"{file} has a damaged safetensors header: {expected}, found {found!r:.80}; download it again"
    )
