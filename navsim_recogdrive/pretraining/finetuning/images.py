"""Images of question-answer data: their sizes without decoding them, their tiles, and InternVL's augmentation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.tiling import tile_image

JPEG_QUALITIES = range(75, 101)
"""``data_augment``: each image is compressed as a JPEG of a random one of these qualities, as InternVL does."""


class UnreadableImage(ValueError):
    """An image that is absent, damaged or no image; names it."""


@dataclass(frozen=True)
class TileBudget:
    """How many tiles the images of one sample are cut into.

    Attributes:
        architecture: of the model.
        max_tiles: most tiles of one image, its thumbnail not counted. Where images share it, they do so evenly, at
            least one tile each, as InternVL has it.
    """

    architecture: InternVLArchitecture
    max_tiles: int

    def rows(self, sizes: Sequence[tuple[int, int]], shared_by: int) -> list[int]:
        """Rows in the language model of each image, from its (width, height) in pixels.

        Args:
            sizes: of all images of a sample.
            shared_by: images that share ``max_tiles``; 1: each has it for itself.
        """
        found = []
        for width, height in sizes:
            tiles, *shape = self.architecture.tile_shape(width, height, self._of_image(shared_by))
            found.append(tiles * self.architecture.rows_per_tile(*shape))
        return found

    def cut(self, image: NDArray[np.uint8], shared_by: int) -> NDArray[np.uint8]:
        """``[H, W, 3]`` uint8 RGB into tiles ``[T, tile, tile, 3]``; ``shared_by`` as for :meth:`rows`."""
        return tile_image(image, self.architecture.tile_size, self._of_image(shared_by), self.architecture.thumbnail)

    def _of_image(self, shared_by: int) -> int:
        return max(1, self.max_tiles // max(1, shared_by))


def header_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header.

    Raises:
        UnreadableImage: if it is absent or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
    except FileNotFoundError:
        raise UnreadableImage(f"{path} does not exist") from None
    except Exception as error:  # Pillow's plugins raise what they like for damaged files
        raise UnreadableImage(f"{path} is no readable image ({type(error).__name__}: {error})") from None


def read_image(path: Path, jpeg_quality: int | None = None) -> NDArray[np.uint8]:
    """Decode an image to ``[H, W, 3]`` uint8 RGB, compressed once more if a JPEG quality is given.

    Raises:
        UnreadableImage: if it is absent, damaged or no image.
    """
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if jpeg_quality is not None:
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=jpeg_quality)
            picture = Image.open(stream).convert("RGB")
        return np.asarray(picture)
    except FileNotFoundError:
        raise UnreadableImage(f"{path} does not exist") from None
    except Exception as error:
        raise UnreadableImage(f"{path} cannot be decoded ({type(error).__name__}: {error})") from None
