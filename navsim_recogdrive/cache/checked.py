"""Small features as NAVSIM's feature cache stores them, with a checksum of their own.

NAVSIM stops reading a cache file at the end of its pickle, before gzip has compared its checksum: a bit that flips on
disk would be trained on. :class:`CheckedFeatures` is an ordinary dict in memory; pickled, its tensors and strings carry
a version and a checksum, and come back as a plain dict.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from navsim_recogdrive.cache.stored import DamagedFeature, check_stored

FORMAT_VERSION = 1

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.int64, torch.uint8)}
_TEXT = "text"


class CheckedFeatures(dict[str, Any]):
    """A builder's features by name: plain tensors (float32, int64, uint8; not empty) and strings, which are checked,
    and values that check themselves, such as :class:`~navsim_recogdrive.cache.image_tiles.ImageTiles`.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        plain = {name: value for name, value in self.items() if type(value) in (Tensor, str)}
        others = {name: value for name, value in self.items() if name not in plain}
        entries = [_entry(name, value) for name, value in plain.items()]
        return _restore, (FORMAT_VERSION, _checksum(entries), entries, others)


_Entry = tuple[str, str, tuple[int, ...], bytes]  # name, dtype, shape, content


def _entry(name: str, value: Tensor | str) -> _Entry:
    if isinstance(value, str):
        return name, _TEXT, (), value.encode()
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _DTYPES or not value.numel():
        raise ValueError(f"{name} must be a non-empty tensor of {', '.join(_DTYPES)}, found {dtype} {[*value.shape]}")
    return name, dtype, tuple(value.shape), value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _checksum(entries: list[_Entry]) -> int:
    checksum = 0
    for *description, content in entries:
        checksum = zlib.crc32(content, zlib.crc32(repr(description).encode(), checksum))
    return checksum


# Cache files name this function: neither its name nor its arguments may change.
def _restore(version: int, checksum: int, entries: list[_Entry], others: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the plain dict (called by pickle)."""
    try:
        intact = _checksum(entries) == checksum
    except (TypeError, ValueError):  # what a damaged pickle makes of them need not be entries
        intact = False
    check_stored(DamagedFeature, "features", version, FORMAT_VERSION, intact)
    restored: dict[str, Any] = {}
    for name, dtype, shape, content in entries:
        if dtype == _TEXT:
            restored[name] = content.decode()
        else:
            restored[name] = torch.frombuffer(bytearray(content), dtype=_DTYPES[dtype]).reshape(shape)
    return {**restored, **others}
