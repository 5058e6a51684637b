"""A hidden state as NAVSIM's feature cache stores it: a tensor that knows how to pickle itself small.

NAVSIM's ``Dataset`` pickles and gzips whatever a feature builder returns, and unpickles it inside the DataLoader
workers. :class:`HiddenState` is an ordinary ``[L, D]`` tensor in memory; pickled, it is the payload of
:mod:`~navsim_recogdrive.cache.codec`, and comes back as a plain padded tensor. In front of the payload stands a mark of
what computed it, so that caches of different VLMs that were copied into one folder can be told apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from navsim_recogdrive.cache.codec import decode, encode
from navsim_recogdrive.cache.stored import DamagedHiddenState, named

ORIGIN_MAGIC = b"RcOr"
"""Stands before the :data:`ORIGIN_BYTES` of the mark, so that it is found without unpickling."""

ORIGIN_BYTES = 8

UNKNOWN_ORIGIN = bytes(ORIGIN_BYTES)
"""The mark of hidden states of which nobody said what computed them."""


class HiddenState(Tensor):
    """``[L, D]`` hidden states of one scene, bf16 or, for mode ``fp32``, float32.

    Any operation on it (stacking included) gives a plain ``Tensor``; only pickling is special. What mode ``int8`` loses
    is lost in the payload alone, not in memory.
    """

    payload: bytes
    origin: bytes

    # Results of operations are plain tensors: a collated batch must travel between processes as any other tensor does.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(rows: Tensor, padding_rows: int, mode: str = "bf16", origin: bytes = UNKNOWN_ORIGIN) -> HiddenState:
        """Wrap ``rows`` ([L, D] bf16 or float32, CPU), whose first ``padding_rows`` rows are equal.

        They are compressed here and not when they are pickled: what cannot be stored then fails before NAVSIM has
        opened the file.

        Args:
            rows: the hidden states.
            padding_rows: how many of them are padding.
            mode: one of :data:`~navsim_recogdrive.cache.codec.MODES`.
            origin: 8 bytes that tell what computed them, see
                :attr:`~navsim_recogdrive.cache.identity.CacheIdentity.origin`.

        Raises:
            ValueError: as :func:`~navsim_recogdrive.cache.codec.encode`; values that are not finite among it.
        """
        if len(origin) != ORIGIN_BYTES:
            raise ValueError(f"origin must have {ORIGIN_BYTES} bytes, found {len(origin)}")
        payload = encode(rows, padding_rows=padding_rows, mode=mode)
        dtype = torch.float32 if mode == "fp32" else torch.bfloat16
        wrapped: HiddenState = rows.detach().to(dtype).contiguous().as_subclass(HiddenState)
        wrapped.payload = payload
        wrapped.origin = origin
        return wrapped

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return stored_hidden_state(self.payload, self.origin)


def stored_hidden_state(payload: bytes, origin: bytes) -> tuple[Any, ...]:
    """What ``__reduce__`` gives for a payload: it unpickles to the plain padded tensor."""
    return _restore, (ORIGIN_MAGIC + origin, payload)


# Cache files name this function: neither its name nor its arguments may change.
def _restore(origin: bytes, payload: bytes) -> Tensor:
    """Rebuild the plain padded tensor ``[L, D]`` (called by pickle)."""
    try:
        return decode(payload)
    except DamagedHiddenState as error:
        raise DamagedHiddenState(named(str(error))) from error
