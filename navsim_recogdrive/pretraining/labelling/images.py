"""Images as the server gets them: data URLs, scaled down."""

from __future__ import annotations

import asyncio
import base64
import io
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from navsim_recogdrive.pretraining.images import BadImage


@dataclass(frozen=True)
class ImageScaling:
    """How images are sent.

    Attributes:
        longest_side: in pixels; larger images are scaled down to it, smaller ones sent as they are. 0: never scaled.
        quality: of the JPEG that a scaled image becomes.

    Raises:
        ValueError: for a negative side or a quality outside 1..95.
    """

    longest_side: int = 1280
    quality: int = 90

    def __post_init__(self) -> None:
        if self.longest_side < 0:
            raise ValueError(f"the longest side of an image must be 0 or more pixels, found {self.longest_side}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"the JPEG quality must be within 1..95, found {self.quality}")


class DataUrls:
    """Images as data URLs, each made once for the questions about it that follow each other.

    Args:
        root: what paths of images are relative to.
        most: images that are kept.
    """

    def __init__(self, root: Path, most: int = 64) -> None:
        self._root = root
        self._most = most
        self._tasks: OrderedDict[tuple[str, ImageScaling], asyncio.Task[str]] = OrderedDict()

    async def get(self, image: str, scaling: ImageScaling) -> str:
        """As :func:`data_url`, made in a thread.

        Raises:
            BadImage: if the image is missing, cut off or none.
        """
        key = (image, scaling)
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(asyncio.to_thread(data_url, self._root / image, scaling))
            if len(self._tasks) > self._most:
                self._tasks.popitem(last=False)
        return await asyncio.shield(self._tasks[key])  # others may wait for it too


def data_url(path: Path, scaling: ImageScaling) -> str:
    """The image as a base64 data URL of a JPEG.

    Raises:
        BadImage: if it is missing, cut off or no image.
    """
    content = b""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()  # a file that is cut off is found here, not by the server
            side = scaling.longest_side or max(image.size)
            if image.format != "JPEG" or max(image.size) > side:
                small = image.convert("RGB")
                small.thumbnail((side, side), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                small.save(buffer, "JPEG", quality=scaling.quality)
                content = buffer.getvalue()
    except FileNotFoundError:
        raise BadImage(path, "missing") from None
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise BadImage(path, "broken" if content else "empty", str(error)) from None
    return _jpeg_url(content)


def grey_square() -> str:
    """A small image to try a server with, as a data URL."""
    buffer = io.BytesIO()
    Image.new("RGB", (112, 112), (128, 128, 128)).save(buffer, "JPEG")
    return _jpeg_url(buffer.getvalue())


def _jpeg_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
