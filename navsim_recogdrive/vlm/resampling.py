"""The bicubic filter of published preprocessing: Pillow's, with one order of passes in all versions, on any device.

Published weights are sensitive to the filter: other libraries' bicubic differs from Pillow's by up to 138 of 255 grey
levels. Pillow 12 and older resample along lines first and then along columns; 13 turns that round where it is faster,
and rounds differently then. The arithmetic is integer (weights rounded to 22 fractional bits, each pass to 8-bit
levels), so an accelerator reproduces it to the last bit, in a small part of the tens of milliseconds of a CPU core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_SHARPNESS = -0.5  # the free parameter of Keys' cubic convolution (1981), as Pillow sets it
_REACH = 2.0
_FRACTION_BITS = 22


Pixels = TypeVar("Pixels", NDArray[np.uint8], Tensor)
"""An image on the CPU, which Pillow resizes, or a tensor, which its own device does."""


def resize_bicubic(image: Pixels, width: int, height: int) -> Pixels:
    """Resize an image; an array and a tensor of the same bytes give the same bytes.

    Args:
        image: ``[H, W, 3]`` uint8.
        width: of the result.
        height: of the result.

    Returns:
        ``[height, width, 3]`` uint8; an array is read-only.
    """
    if isinstance(image, Tensor):
        return _resample(_resample(image, 1, width), 0, height)
    picture = Image.fromarray(np.ascontiguousarray(image))
    lines = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    return np.asarray(lines.resize((width, height), Image.Resampling.BICUBIC))


def _resample(image: Tensor, axis: int, size: int) -> Tensor:
    """One pass, along ``axis`` (0 or 1)."""
    if image.shape[axis] == size:
        return image
    sources, weights = _taps_on(image.device, image.shape[axis], size)
    shape = list(image.shape)
    shape[axis] = size
    total = torch.full(shape, 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=image.device)
    for source, weight in zip(sources, weights, strict=True):
        total += image.index_select(axis, source).to(torch.int32) * (weight[:, None] if axis else weight[:, None, None])
    return (total >> _FRACTION_BITS).clamp_(0, 255).to(torch.uint8)


def filter_taps(source: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Which pixels of a line make a pixel of the resized line, and with which weights.

    Shrinking widens the filter by the ratio, so that every pixel counts. The order of the sums is Pillow's: another
    would round differently.

    Args:
        source: pixels of the line.
        size: pixels of the resized line.

    Returns:
        Indices and weights, in units of 2^-22, both ``[K, size]``; unused taps have weight 0 and a valid index.
    """
    ratio = source / size
    widening = max(ratio, 1.0)
    centers = (np.arange(size) + 0.5) * ratio
    first = np.maximum((centers - _REACH * widening + 0.5).astype(np.int64), 0)
    behind = np.minimum((centers + _REACH * widening + 0.5).astype(np.int64), source)
    indices = first + np.arange(int((behind - first).max()))[:, None]
    weights = _cubic((indices - centers + 0.5) * (1.0 / widening))
    weights[indices >= behind] = 0.0
    weights = weights / np.cumsum(weights, axis=0)[-1]  # cumsum adds one by one, sum does not
    scaled = weights * (1 << _FRACTION_BITS)
    rounded = np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5)).astype(np.int32)
    return np.minimum(indices, source - 1), rounded


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(distance)
    near = ((_SHARPNESS + 2.0) * x - (_SHARPNESS + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _SHARPNESS
    return np.where(x < 1.0, near, np.where(x < _REACH, far, 0.0))


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Preparing scenes on ``device`` neither waits for what it computes meanwhile nor holds that up.

    When the context ends, what was computed within may be used on any stream.
    """
    if device.type != "cuda":
        yield
        return
    stream = _preparing_stream(device)
    with torch.cuda.stream(stream):
        yield
    # Waiting here costs this thread what the work takes, and spares every user of the result an event.
    stream.synchronize()


@lru_cache(maxsize=32)
def _preparing_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@lru_cache(maxsize=32)
def _taps_on(device: torch.device, source: int, size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    indices, weights = filter_taps(source, size)
    return torch.from_numpy(indices).to(device).unbind(), torch.from_numpy(weights).to(device).unbind()
