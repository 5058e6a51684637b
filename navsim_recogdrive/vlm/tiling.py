"""From one camera image to the square tiles that the vision tower reads.

The image is stretched onto the grid of square tiles whose aspect ratio is closest to its own, cut row by row, and
followed by a thumbnail of the whole (InternVL's dynamic resolution).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from navsim_recogdrive.vlm.resampling import Pixels, resize_bicubic
from navsim_recogdrive.vlm.tile_grid import tile_grid

Levels = tuple[float, float, float]
"""One number for each of red, green and blue, on a scale from 0 to 1."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def tile_image(image: Pixels, tile_size: int = 448, max_tiles: int = 12, thumbnail: bool = True) -> Pixels:
    """Cut an image into tiles; an array and a tensor of the same bytes give the same bytes.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        tile_size: side of a tile in pixels.
        max_tiles: most tiles in the grid, without the thumbnail.
        thumbnail: append the whole image, squeezed to one tile, where the grid has more than one tile.

    Returns:
        ``[T, tile_size, tile_size, 3]`` uint8: the grid row by row from the top left, then the thumbnail.
        T is 9 for 1920x1080.

    Raises:
        ValueError: for anything but a non-empty uint8 RGB image.
    """
    if image.dtype not in (np.uint8, torch.uint8) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be uint8 RGB of shape [H, W, 3], found {image.dtype} {list(image.shape)}")
    height, width = image.shape[:2]
    columns, rows = tile_grid(width, height, tile_size, max_tiles)
    stretched = resize_bicubic(image, columns * tile_size, rows * tile_size)
    tiles = stretched.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2)
    tiles = tiles.reshape(rows * columns, tile_size, tile_size, 3)
    pieces = [tiles]
    if thumbnail and len(tiles) > 1:
        pieces.append(resize_bicubic(image, tile_size, tile_size)[None])
    if isinstance(image, Tensor):
        return torch.cat(pieces)
    return np.concatenate(pieces)


def normalize_tiles(tiles: Tensor, mean: Levels = IMAGENET_MEAN, std: Levels = IMAGENET_STD) -> Tensor:
    """Scale tiles to what the vision tower was trained on: ``(value / 255 - mean) / std``.

    Works on the tensor's own device, so that only bytes travel to an accelerator. The 3 x 256 possible results are
    computed once on the CPU and looked up: bit-exact on every device, where a division by a constant is not.

    Args:
        tiles: ``[T, H, W, 3]`` uint8.
        mean: of the training images.
        std: of the training images.

    Returns:
        ``[T, 3, H, W]`` float32, contiguous.

    Raises:
        ValueError: for another dtype or shape.
    """
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
        raise ValueError(f"tiles must be uint8 of shape [T, H, W, 3], found {tiles.dtype} {list(tiles.shape)}")
    table = _normalized_levels(tiles.device, mean, std)
    count, height, width = tiles.shape[:3]
    planes = tiles.new_empty((count, 3, height, width), dtype=torch.float32)
    for channel in range(3):
        levels = tiles[..., channel].to(torch.int32)
        planes[:, channel] = table[channel].index_select(0, levels.flatten()).view_as(levels)
    return planes


@cache
def _normalized_levels(device: torch.device, mean: Levels, std: Levels) -> Tensor:
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    centred = levels - np.asarray(mean, dtype=np.float32)[:, None]
    return torch.from_numpy(centred / np.asarray(std, dtype=np.float32)[:, None]).to(device)
