"""A hidden state as NAVSIM's feature cache stores it: a tensor that knows how to pickle itself small.

NAVSIM's ``Dataset`` pickles and gzips whatever a feature builder returns, and unpickles it inside the DataLoader
workers. :class:`HiddenState` is an ordinary ``[L, D]`` tensor in memory; pickled, it stores its content rows as bf16,
its padding row once, a version and a checksum, and comes back as a plain padded bf16 tensor.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import torch
from torch import Tensor

FORMAT_VERSION = 1


class DamagedHiddenState(ValueError):
    """A cached hidden state that cannot be trusted: unknown version, wrong size, or a checksum that does not match."""


class HiddenState(Tensor):
    """``[L, D]`` bf16 hidden states of one scene; the first ``padding_rows`` rows are all the same vector.

    Any operation on it (stacking included) gives a plain ``Tensor``; only pickling is special.
    """

    padding_rows: int

    # Results of operations are plain tensors: a collated batch must travel between processes as any other tensor does.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(rows: Tensor, padding_rows: int) -> HiddenState:
        """Wrap ``rows`` ([L, D], CPU), whose first ``padding_rows`` rows are equal.

        Raises:
            ValueError: if ``rows`` is not a matrix, holds values that are not finite, or its padding rows differ.
        """
        if rows.ndim != 2 or not 0 <= padding_rows <= rows.shape[0]:
            raise ValueError(
                f"a hidden state is a matrix [rows, features] with at most as many padding rows, found shape "
                f"{list(rows.shape)} and {padding_rows} padding rows"
            )
        rows = rows.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows)).any(dim=1).sum())
            raise ValueError(
                f"the VLM produced hidden states that are not finite ({bad} of {len(rows)} rows); not cached. "
                "Check the VLM weights and agent.vlm.dtype (float16 overflows in InternVL; use bfloat16)."
            )
        if padding_rows and not torch.equal(rows[:padding_rows], rows[:1].expand(padding_rows, -1)):
            raise ValueError(f"the first {padding_rows} rows of the hidden state are not one constant padding vector")
        wrapped: HiddenState = rows.as_subclass(HiddenState)
        wrapped.padding_rows = padding_rows
        return wrapped

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        rows = self.as_subclass(Tensor)
        stored = torch.cat([rows[: min(self.padding_rows, 1)], rows[self.padding_rows :]])
        payload = stored.view(torch.uint8).numpy().tobytes()
        length, features = rows.shape
        checksum = _checksum(payload, length, features, self.padding_rows)
        return _restore, (FORMAT_VERSION, length, features, self.padding_rows, checksum, payload)


def _checksum(payload: bytes, length: int, features: int, padding_rows: int) -> int:
    return zlib.crc32(struct.pack("<qqq", length, features, padding_rows), zlib.crc32(payload))


def _restore(version: int, length: int, features: int, padding_rows: int, checksum: int, payload: bytes) -> Tensor:
    """Rebuild the plain padded tensor ``[length, features]`` bf16 (called by pickle)."""
    if version != FORMAT_VERSION:
        raise DamagedHiddenState(
            f"hidden state of cache format {version}, this package reads format {FORMAT_VERSION}: "
            "it was written by another version of navsim-recogdrive; cache the split again"
        )
    if _checksum(payload, length, features, padding_rows) != checksum:
        raise DamagedHiddenState(
            "hidden state with a wrong checksum: the cache file is damaged; delete it and cache again"
        )
    stored = torch.frombuffer(bytearray(payload), dtype=torch.bfloat16).view(-1, features)
    if padding_rows == 0:
        return stored
    rows = torch.empty(length, features, dtype=torch.bfloat16)
    rows[:padding_rows] = stored[0]
    rows[padding_rows:] = stored[1:]
    return rows
