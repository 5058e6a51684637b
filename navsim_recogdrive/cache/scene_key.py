"""A key by which a scene is recognised: what the VLM sees of it, its pixels and its prompt.

NAVSIM's scoring and submission runners tell an agent neither a scene's token nor its log. What they do hand over is the
same in every runner, so a hidden state can be found by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 16

KEY_MAGIC = b"RCKEY1"
"""Stands before the key in a pickle, so that an index can be made from the first kilobyte of a cache file."""


def scene_key(images: Sequence[NDArray[np.uint8]], text: str) -> bytes:
    """BLAKE2b, 16 bytes, of ``images`` (each ``[H, W, 3]`` uint8) and ``text``.

    Raises:
        ValueError: for an image of another dtype or shape.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3:
            raise ValueError(f"images must be uint8 of shape [H, W, 3], found {image.dtype} {list(image.shape)}")
        digest.update(f"{'x'.join(map(str, image.shape))};".encode())
        digest.update(np.ascontiguousarray(image).data)
    digest.update(text.encode())
    return digest.digest()


class SceneKey(Tensor):
    """``[16]`` uint8: a scene's key as a feature; comes out of the cache as a plain tensor.

    Pickled it is :data:`KEY_MAGIC` and 16 bytes. The planner does not look at it.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(key: bytes) -> SceneKey:
        """Wrap the result of :func:`scene_key`.

        Raises:
            ValueError: for another number of bytes.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a scene key has {KEY_BYTES} bytes, found {len(key)}")
        wrapped: SceneKey = torch.frombuffer(bytearray(key), dtype=torch.uint8).as_subclass(SceneKey)
        return wrapped

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restore, (KEY_MAGIC + self.as_subclass(Tensor).numpy().tobytes(),)


# Cache files name this function: neither its name nor its arguments may change.
def _restore(stored: bytes) -> Tensor:
    """Rebuild the plain tensor ``[16]`` uint8 (called by pickle)."""
    return torch.frombuffer(bytearray(stored[len(KEY_MAGIC) :]), dtype=torch.uint8)
