"""Looks at image files as cheaply as is sure: does it open, is it whole, how large is it."""

from __future__ import annotations

import zlib
from pathlib import Path

from PIL import Image

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for files that are no image, or no whole one."""


class BadImage(ValueError):
    """An image that training could not read; ``reason`` is ``missing``, ``empty`` or ``broken``."""

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path}: image {reason}{f' ({detail})' if detail else ''}")
        self.path, self.reason = path, reason


def decoded_image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image that was decoded to its end.

    A JPEG is decoded at an eighth of its size: its whole stream is read, so that a torn file is found, at a fraction
    of the time.

    Raises:
        BadImage: if it is missing, empty, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            size = image.size
            image.draft("RGB", (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
            return size
    except FileNotFoundError:
        raise BadImage(path, "missing") from None
    except _UNREADABLE as error:
        empty = path.is_file() and path.stat().st_size == 0
        raise BadImage(path, "empty" if empty else "broken", str(error).replace(str(path), "the file")) from None
