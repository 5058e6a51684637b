"""Look at what a feature cache holds without reading it all."""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from navsim_recogdrive.cache.codec import HEADER_BYTES, PayloadInfo, describe
from navsim_recogdrive.cache.failed import FAILED_MAGIC
from navsim_recogdrive.cache.hidden_state import ORIGIN_BYTES, ORIGIN_MAGIC
from navsim_recogdrive.cache.hidden_state_features import HEAD_MAGIC, read_head
from navsim_recogdrive.cache.identity import FOLDER
from navsim_recogdrive.cache.scene_key import KEY_BYTES, KEY_MAGIC
from navsim_recogdrive.cache.stored import DamagedFeature

# All that stands before a payload takes less than 500 bytes, and gzip does not make it longer.
_HEAD_BYTES = 4096
_PAYLOAD_MAGIC = b"RcHS"
# What a pickle may hold behind the payload: the ends of its tuples and dict.
_TAIL_BYTES = 256
# A flipped bit in what stands before a payload can make the unpickler look for any name.
_UNREADABLE = (
    *(OSError, EOFError, zlib.error, pickle.UnpicklingError, KeyError, ValueError, AttributeError, ImportError),
    *(IndexError, TypeError),
)


@dataclass(frozen=True)
class HiddenStateHead:
    """What the first bytes of a hidden state's cache file say.

    Attributes:
        info: of the payload.
        origin: mark of what computed it, 8 bytes; zeros where nobody said.
        key: the scene's key, 16 bytes, ``None`` where there is none.
        content_bytes: size of the file before gzip that these say, and at most 256 more.
    """

    info: PayloadInfo
    origin: bytes
    key: bytes | None
    content_bytes: int


def cached_scene_folders(cache_path: Path, log_names: Iterable[str] | None, file_name: str) -> Iterator[Path]:
    """Folders ``cache_path/LOG/TOKEN`` that hold ``file_name``, in the order of ``log_names`` (``None``: all logs)."""
    for log in cached_logs(cache_path, log_names):
        with suppress(FileNotFoundError):  # another process may take a log away
            yield from (folder for folder in sorted(log.iterdir()) if (folder / file_name).is_file())


def cached_logs(cache_path: Path, log_names: Iterable[str] | None) -> list[Path]:
    """Folders of logs in a cache, in the order of ``log_names`` (``None``: all, sorted)."""
    names = sorted(os.listdir(cache_path)) if log_names is None else log_names
    return [cache_path / name for name in names if name != FOLDER and (cache_path / name).is_dir()]


def peek_hidden_state(path: Path) -> HiddenStateHead:
    """Head of the cache file ``path`` of a hidden state; reads 4 KB and decodes nothing.

    The checksum over origin and key is compared; files from before they had one are read without.

    Raises:
        DamagedFeature: if the file does not begin as one, naming it.
    """
    try:
        with path.open("rb") as file:
            head = zlib.decompressobj(wbits=31).decompress(file.read(_HEAD_BYTES), _HEAD_BYTES)
    except (OSError, zlib.error) as error:
        raise DamagedFeature(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if FAILED_MAGIC in head:
        raise DamagedFeature(f"{path} holds no hidden state: it could not be computed")
    begin = head.find(HEAD_MAGIC)
    try:
        if begin >= 0:
            origin, key, names_end = read_head(head, begin)
            start = head.find(_PAYLOAD_MAGIC, names_end)
        else:
            start = head.find(_PAYLOAD_MAGIC)
            stored, key = _after(head[:start], ORIGIN_MAGIC, ORIGIN_BYTES), _after(head[:start], KEY_MAGIC, KEY_BYTES)
            if start < 0 or stored is None:
                raise DamagedFeature(f"it does not begin as a hidden state of navsim-recogdrive ({len(head)} bytes)")
            origin = stored
        info = describe(head[start : start + HEADER_BYTES] if start >= 0 else b"")
    except DamagedFeature as error:
        raise DamagedFeature(f"{path}: {error}") from error
    return HiddenStateHead(info, origin, key, start + info.payload_bytes)


def check_size(path: Path, head: HiddenStateHead) -> None:
    """Compare the size that a hidden state's file should have with the one that the end of the file says.

    This finds a file that was cut off anywhere, in a few microseconds; it finds no flipped bits.

    Raises:
        DamagedFeature: if they differ.
    """
    found = stated_size(path)
    if not 0 <= found - head.content_bytes % 2**32 <= _TAIL_BYTES:
        raise DamagedFeature(f"{path} is cut off: it should hold {head.content_bytes} bytes, its end says {found}")


def stated_size(path: Path) -> int:
    """What the last 4 bytes of a gzip file say: its uncompressed size modulo 2**32; anything if it was cut off.

    Raises:
        OSError: if the file has less than 4 bytes, or cannot be read.
    """
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def read_content(path: Path) -> bytes:
    """The pickle in the cache file ``path``, with gzip's checksum verified.

    Raises:
        DamagedFeature: if the file is not whole, naming it.
    """
    try:
        # In one call, which does not hold the interpreter's lock: threads decompress beside each other.
        stream = zlib.decompressobj(wbits=31)
        content = stream.decompress(path.read_bytes())
    except (OSError, zlib.error) as error:
        raise DamagedFeature(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if not stream.eof or stream.unused_data:
        raise DamagedFeature(f"{path} is {'followed by foreign bytes' if stream.eof else 'cut off'}")
    return content


def peek_feature(path: Path, name: str) -> Tensor:
    """The tensor ``name`` of the cache file ``path``.

    Raises:
        DamagedFeature: if the file cannot be read, naming it and what to do.
    """
    return read_features(path, name)[name]


def read_features(path: Path, *names: str) -> dict[str, Tensor]:
    """All features in the cache file ``path``, ``names`` among them; damage of any kind is found.

    Raises:
        DamagedFeature: if the file cannot be read, naming it and what to do.
    """
    try:
        features: dict[str, Tensor] = pickle.loads(read_content(path))
        for name in names:
            features[name]
        return features
    except _UNREADABLE as error:
        raise DamagedFeature(
            f"the cache file {path} cannot be read ({type(error).__name__}: {error}); a killed run leaves such files. "
            "Run python -m navsim_recogdrive.cache repair, then the caching again with force_cache_computation=false"
        ) from error


def _after(content: bytes, magic: bytes, length: int) -> bytes | None:
    start = content.find(magic)
    if start < 0 or start + len(magic) + length > len(content):
        return None
    return content[start + len(magic) : start + len(magic) + length]
