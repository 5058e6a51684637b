"""Image tiles as NAVSIM's feature cache stores them: a tensor that knows how to pickle itself small and without loss.

NAVSIM's ``Dataset`` pickles and gzips whatever a feature builder returns, and unpickles it inside the DataLoader
workers. :class:`ImageTiles` is an ordinary ``[T, h, w, 3]`` tensor in memory; pickled, it stores each of its tiles as
lossless WebP, a version and a checksum, and comes back as a plain tensor, filled up with black tiles.

WebP at its fastest setting is smaller than PNG and no slower than anything else. The 9 tiles of a 1920x1080 image,
5.42 MB, on one core, before NAVSIM's pickle and gzip (``benchmarks/image_tiles.py``; a made-up photograph, and one
image of the synthetic world):

==================================  ====================  ====================
stored as                           photograph            synthetic world
==================================  ====================  ====================
bytes, zlib 1                       3.7 MB, 81 / 22 ms    0.71 MB, 21 / 11 ms
differences to the left, zlib 1     3.1 MB, 72 / 33 ms    0.58 MB, 20 / 19 ms
PNG, level 1 (OpenCV)               3.0 MB, 105 / 40 ms   0.57 MB, 46 / 17 ms
PNG, level 6 (Pillow)               2.8 MB, 435 / 44 ms   0.45 MB, 125 / 23 ms
JPEG 2000 (OpenCV)                  3.1 MB, 486 / 423 ms  0.58 MB, 120 / 101 ms
WebP, method 0, quality 0 (Pillow)  2.1 MB, 59 / 31 ms    0.55 MB, 37 / 15 ms
WebP, method 4, quality 50          1.9 MB, 755 / 31 ms   0.30 MB, 461 / 12 ms
==================================  ====================  ====================

(write / read.)
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from navsim_recogdrive.cache.stored import DamagedFeature, check_stored

FORMAT_VERSION = 1


class DamagedImageTiles(DamagedFeature):
    """Cached image tiles that cannot be trusted: unknown version, or a checksum that does not match."""


class ImageTiles(Tensor):
    """``[T, h, w, 3]`` uint8 RGB tiles of one scene, of which the first ``num_tiles`` are images and the rest black.

    Any operation on it (stacking included) gives a plain ``Tensor``; only pickling is special.
    """

    num_tiles: int

    # Results of operations are plain tensors: a collated batch must travel between processes as any other tensor does.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def wrap(tiles: Tensor, capacity: int) -> ImageTiles:
        """Wrap ``tiles`` ([T, h, w, 3], CPU), filled up with black tiles to ``capacity``.

        Raises:
            ValueError: if ``tiles`` is not uint8 RGB, is empty, or has more than ``capacity`` tiles.
        """
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3 or 0 in tiles.shape:
            raise ValueError(
                f"image tiles must be uint8 of shape [T, h, w, 3], found {tiles.dtype} {list(tiles.shape)}"
            )
        if len(tiles) > capacity:
            raise ValueError(f"{len(tiles)} image tiles, at most {capacity} have a place")
        wrapped: ImageTiles = _filled(tiles, capacity).as_subclass(ImageTiles)
        wrapped.num_tiles = len(tiles)
        return wrapped

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        tiles = self.as_subclass(Tensor)
        stored = [_encode(tile) for tile in tiles[: self.num_tiles].numpy()]
        return _restore, (FORMAT_VERSION, tuple(tiles.shape), _checksum(stored, tuple(tiles.shape)), stored)


def _filled(tiles: Tensor, capacity: int) -> Tensor:
    if len(tiles) == capacity:
        return tiles.contiguous()
    filled = torch.zeros((capacity, *tiles.shape[1:]), dtype=torch.uint8)
    filled[: len(tiles)] = tiles
    return filled


def _encode(tile: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    # In lossless WebP quality is effort.
    Image.fromarray(tile).save(stream, "WEBP", lossless=True, quality=0, method=0)
    return stream.getvalue()


def _checksum(stored: Sequence[bytes], shape: tuple[int, ...]) -> int:
    checksum = zlib.crc32(struct.pack("<4q", *shape))
    for tile in stored:
        checksum = zlib.crc32(tile, checksum)
    return checksum


def _restore(version: int, shape: tuple[int, ...], checksum: int, stored: Sequence[bytes]) -> Tensor:
    """Rebuild the plain tensor ``[T, h, w, 3]`` uint8 (called by pickle)."""
    intact = _checksum(stored, shape) == checksum
    check_stored(DamagedImageTiles, "image tiles", version, FORMAT_VERSION, intact)
    tiles = np.zeros(shape, dtype=np.uint8)
    for tile, content in zip(tiles, stored, strict=False):
        tile[:] = np.asarray(Image.open(io.BytesIO(content)))
    return torch.from_numpy(tiles)
