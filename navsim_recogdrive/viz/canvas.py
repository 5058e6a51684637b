"""What pictures are drawn on: one set of strokes for pixels (:class:`RasterCanvas`) and for vector files.

Coordinates are pixels of the finished picture, floats, with the origin in the upper left corner and y down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from navsim_recogdrive.viz.palette import Colour, Dashes
from navsim_recogdrive.viz.scene_view import FloatArray, Image

_SHIFT = 4
"""OpenCV draws at sixteenths of a pixel."""

_FAR_PX = 16000.0


class Canvas(Protocol):
    """A surface to draw on."""

    size: tuple[int, int]

    def polygon(
        self,
        outlines: Sequence[FloatArray],
        fill: Colour | None,
        *,
        alpha: float = 1.0,
        edge: Colour | None = None,
        width: float = 1.0,
    ) -> None:
        """An area within the first outline and outside of the others, each ``[N, 2]``."""
        ...

    def line(
        self, points: FloatArray, colour: Colour, width: float, *, alpha: float = 1.0, dashes: Dashes | None = None
    ) -> None:
        """A line through ``points [N, 2]`` with round ends."""
        ...

    def disc(
        self, centre: Sequence[float], radius: float, fill: Colour, *, edge: Colour | None = None, width: float = 1.0
    ) -> None:
        """A disc, and a line round it."""
        ...

    def text(self, at: Sequence[float], text: str, size: float, colour: Colour, *, anchor: str = "lm") -> None:
        """Text of ``size`` pixels; ``anchor`` is Pillow's: l, m or r, then t, m or b."""
        ...

    def text_width(self, text: str, size: float) -> float:
        """Width of a text in pixels."""
        ...

    def clip(self, box: tuple[float, float, float, float] | None) -> None:
        """Draw only within (left, top, right, bottom) from now on; ``None``: everywhere."""
        ...


class RasterCanvas:
    """A picture of pixels, drawn larger than it is and then made smaller, so that edges are smooth.

    Args:
        background: ``[H, W, 3]`` uint8 RGB to draw on; it is not changed.
        supersampling: how many times larger it is drawn. Text is set at the final size.
    """

    def __init__(self, background: Image, supersampling: int = 2) -> None:
        height, width = background.shape[:2]
        self.size = (width, height)
        self._factor = supersampling
        grown = (width * supersampling, height * supersampling)
        self._pixels = background.copy() if supersampling == 1 else cv2.resize(background, grown)
        self._texts: list[tuple[tuple[float, float], str, float, Colour, str]] = []
        self._clip: tuple[int, int, int, int] = (0, 0, *grown)

    @classmethod
    def blank(cls, size: tuple[int, int], colour: Colour, supersampling: int = 2) -> RasterCanvas:
        """A canvas of (width, height) pixels in one colour."""
        return cls(np.full((size[1], size[0], 3), colour, dtype=np.uint8), supersampling)

    def clip(self, box: tuple[float, float, float, float] | None) -> None:
        """Draw only within a box; text is never clipped."""
        width, height = (side * self._factor for side in self.size)
        if box is None:
            self._clip = (0, 0, width, height)
        else:
            left, top, right, bottom = (round(value * self._factor) for value in box)
            self._clip = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))

    def polygon(
        self,
        outlines: Sequence[FloatArray],
        fill: Colour | None,
        *,
        alpha: float = 1.0,
        edge: Colour | None = None,
        width: float = 1.0,
    ) -> None:
        """See :class:`Canvas`."""
        if fill is not None:
            for target, offset in self._layer(np.concatenate(outlines), 1.0, alpha):
                points = [self._fixed(outline, offset) for outline in outlines]
                cv2.fillPoly(target, points, fill, cv2.LINE_AA, _SHIFT)
        if edge is not None:
            for outline in outlines:
                self.line(np.concatenate([outline, outline[:1]]), edge, width, alpha=alpha)

    def line(
        self, points: FloatArray, colour: Colour, width: float, *, alpha: float = 1.0, dashes: Dashes | None = None
    ) -> None:
        """See :class:`Canvas`."""
        thickness = max(round(width * self._factor), 1)
        for target, offset in self._layer(points, width, alpha):
            pieces = [self._fixed(piece, offset) for piece in (dashed(points, dashes) if dashes else [points])]
            cv2.polylines(target, pieces, False, colour, thickness, cv2.LINE_AA, _SHIFT)

    def disc(
        self, centre: Sequence[float], radius: float, fill: Colour, *, edge: Colour | None = None, width: float = 1.0
    ) -> None:
        """See :class:`Canvas`."""
        for grown, colour in ((width if edge is not None else 0.0, edge), (0.0, fill)):
            if colour is None:
                continue
            for target, offset in self._layer(np.array([centre], dtype=np.float64), radius + grown, 1.0):
                x, y = self._fixed(np.array([centre], dtype=np.float64), offset)[0].tolist()
                scaled = round((radius + grown) * self._factor * (1 << _SHIFT))
                cv2.circle(target, (x, y), scaled, colour, -1, cv2.LINE_AA, _SHIFT)

    def text(self, at: Sequence[float], text: str, size: float, colour: Colour, *, anchor: str = "lm") -> None:
        """See :class:`Canvas`; it lies above everything else."""
        self._texts.append(((float(at[0]), float(at[1])), text, size, colour, anchor))

    def text_width(self, text: str, size: float) -> float:
        """See :class:`Canvas`."""
        return float(_font(round(size)).getlength(text))

    def picture(self) -> Image:
        """``[H, W, 3]`` uint8 RGB: what was drawn so far."""
        pixels = self._pixels
        if self._factor > 1:
            pixels = cv2.resize(pixels, self.size, interpolation=cv2.INTER_AREA)
        if not self._texts:
            return pixels.copy() if pixels is self._pixels else pixels
        page = PillowImage.fromarray(pixels)
        pen = ImageDraw.Draw(page)
        for at, text, size, colour, anchor in self._texts:
            pillow_anchor = anchor[0] + {"t": "a", "m": "m", "b": "d"}[anchor[1]]
            pen.text(at, text, fill=colour, font=_font(round(size)), anchor=pillow_anchor)
        return np.array(page)

    def _fixed(self, points: FloatArray, offset: tuple[int, int]) -> np.ndarray:
        """Points on the large picture in OpenCV's sixteenths; pixel centres are at halves on the small one."""
        scaled = np.clip(points * self._factor - 0.5 - np.array(offset), -_FAR_PX, _FAR_PX)
        return np.round(scaled * (1 << _SHIFT)).astype(np.int32)

    def _layer(self, points: FloatArray, reach: float, alpha: float) -> Iterator[tuple[Image, tuple[int, int]]]:
        """The part of the picture that is drawn on, and its corner; what was drawn is blended in afterwards."""
        low = np.floor((points.min(0) - reach - 2.0) * self._factor)
        high = np.ceil((points.max(0) + reach + 2.0) * self._factor)
        left, top = (int(max(a, b)) for a, b in zip(low, self._clip[:2], strict=True))
        right, bottom = (int(min(a, b)) for a, b in zip(high, self._clip[2:], strict=True))
        if right <= left or bottom <= top or alpha <= 0.0:
            return
        part = self._pixels[top:bottom, left:right]
        # OpenCV draws on contiguous memory; the copy is also what keeps strokes within the clip.
        drawn = part.copy()
        yield drawn, (left, top)
        part[:] = drawn if alpha >= 1.0 else cv2.addWeighted(drawn, alpha, part, 1.0 - alpha, 0.0)


def dashed(points: FloatArray, dashes: Dashes) -> list[FloatArray]:
    """The dashes ``[N, 2]`` of a line through ``points [N, 2]``."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] <= 0.0:
        return [points]
    pieces = []
    on, off = dashes
    for start in np.arange(0.0, along[-1], on + off):
        stop = min(start + on, along[-1])
        inner = points[(along > start) & (along < stop)]
        ends = [[np.interp(at, along, points[:, axis]) for axis in (0, 1)] for at in (start, stop)]
        pieces.append(np.concatenate([[ends[0]], inner, [ends[1]]]))
    return pieces


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
