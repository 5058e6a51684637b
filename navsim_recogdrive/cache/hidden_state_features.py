"""The features in a hidden state's cache file, as NAVSIM's feature cache stores them: with a checksum over all.

The payload of a hidden state has a checksum of its own. What stands before it says whose it is: the scene's key, the
mark of what computed it, and the names of both. A bit that flips there would find the state for another scene.
:class:`HiddenStateFeatures` is an ordinary dict in memory; pickled, it is a head and the payload, and comes back as a
plain dict of plain tensors.

A head is :data:`HEAD_MAGIC`, ``_FIELDS`` (little endian), the origin, the key where there is one, the two names in
UTF-8, and the CRC-32 of all that. It can be read without unpickling.
"""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from navsim_recogdrive.cache.codec import decode
from navsim_recogdrive.cache.hidden_state import ORIGIN_BYTES, HiddenState
from navsim_recogdrive.cache.scene_key import KEY_BYTES
from navsim_recogdrive.cache.stored import DamagedHiddenState, named

FORMAT_VERSION = 2
"""Version 1 were files whose key, origin and names have no checksum; they are read as they are."""

HEAD_MAGIC = b"RcFeat"
"""Stands before a head, so that it is found in the first kilobyte of a cache file."""

_FIELDS = struct.Struct("<HBBB")  # version, bytes of the key, of its name, of the hidden state's name
_CHECKSUM = struct.Struct("<I")
_CANNOT = "the cache file is damaged; delete it and cache again"


class HiddenStateFeatures(dict[str, Tensor]):
    """One :class:`~navsim_recogdrive.cache.hidden_state.HiddenState`, and before it the scene's key where there is one.

    Both by name. The key is ``[16]`` uint8.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        *others, (state_name, state) = self.items() or [("nothing", None)]
        if not isinstance(state, HiddenState) or len(others) > 1:
            raise ValueError(f"a scene's key and a HiddenState are stored, found {', '.join(self) or state_name}")
        key_name, key = others[0] if others else ("", None)
        return _restore, (_head(key_name, key, state_name, state.origin), state.payload)


def read_head(content: bytes, start: int = 0) -> tuple[bytes, bytes | None, int]:
    """The head that begins at ``start``: mark of the origin, key of the scene if there is one, and where it ends.

    Raises:
        DamagedHiddenState: if its checksum is wrong, or its version is another.
    """
    origin, key, _, end = _parse(content, start)
    return origin, key, end


def _head(key_name: str, key: Tensor | None, state_name: str, origin: bytes) -> bytes:
    names = key_name.encode(), state_name.encode()
    stored = b"" if key is None else key.numpy().tobytes()
    if len(stored) not in (0, KEY_BYTES):
        raise ValueError(f"a scene key has {KEY_BYTES} bytes, found {len(stored)}")
    fields = _FIELDS.pack(FORMAT_VERSION, len(stored), *map(len, names))
    content = b"".join([HEAD_MAGIC, fields, origin, stored, *names])
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _parse(content: bytes, start: int) -> tuple[bytes, bytes | None, tuple[str, str], int]:
    fields = start + len(HEAD_MAGIC)
    after = fields + _FIELDS.size
    if content[start:fields] != HEAD_MAGIC or len(content) < after:
        raise DamagedHiddenState(f"no head of a hidden state; {_CANNOT}")
    version, key_bytes, *name_bytes = _FIELDS.unpack_from(content, fields)
    ends = [after]
    for size in (ORIGIN_BYTES, key_bytes, *name_bytes, _CHECKSUM.size):
        ends.append(ends[-1] + size)
    origin, key, *names, checksum = (content[a:b] for a, b in pairwise(ends))
    if checksum != _CHECKSUM.pack(zlib.crc32(content[start : ends[-2]])):
        raise DamagedHiddenState(f"hidden state whose key, origin or names have a wrong checksum: {_CANNOT}")
    if version != FORMAT_VERSION:
        raise DamagedHiddenState(
            f"features of a hidden state in cache format {version}, this package reads format {FORMAT_VERSION} and "
            "older ones: upgrade navsim-recogdrive, or cache the split again"
        )
    return origin, key or None, (names[0].decode(), names[1].decode()), ends[-1]


# Cache files name this function: neither its name nor its arguments may change.
def _restore(head: bytes, payload: bytes) -> dict[str, Tensor]:
    """Rebuild the plain dict: key ``[16]`` uint8 if there is one, hidden state ``[L, D]`` (called by pickle)."""
    try:
        _, key, (key_name, state_name), end = _parse(head, 0)
        if end != len(head):
            raise DamagedHiddenState(f"a head of {end} bytes where {len(head)} are stored; {_CANNOT}")
        features = {} if key is None else {key_name: torch.frombuffer(bytearray(key), dtype=torch.uint8)}
        return {**features, state_name: decode(payload)}
    except DamagedHiddenState as error:
        raise DamagedHiddenState(named(str(error))) from error
