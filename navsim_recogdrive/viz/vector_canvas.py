"""Pictures as vector files (PDF, SVG) for publications, drawn by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navsim_recogdrive.viz.canvas import dashed
from navsim_recogdrive.viz.palette import Colour, Dashes
from navsim_recogdrive.viz.scene_view import FloatArray

VECTOR_SUFFIXES = (".pdf", ".svg")

_POINTS_PER_PIXEL = 0.5
"""A picture of 800 pixels is 400 points or 5.6 inches wide: the width of a text column and its letters' size fit."""


class MatplotlibMissing(ImportError):
    """A vector file was asked for and matplotlib is not installed."""


class VectorCanvas:
    """A page of (width, height) pixels on which every stroke stays a stroke; see :class:`~.canvas.Canvas`.

    Raises:
        MatplotlibMissing: where matplotlib is not installed.
    """

    def __init__(self, size: tuple[int, int], background: Colour) -> None:
        try:
            import matplotlib
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MatplotlibMissing(
                "PDF and SVG files are drawn by matplotlib: pip install -e '.[pictures]' in the checkout of "
                "navsim-recogdrive, or ask for PNG"
            ) from error
        self.size = size
        # Text stays text, and journals take the fonts.
        self._settings = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "navsim-recogdrive"}
        self._context = matplotlib.rc_context
        inches = [side * _POINTS_PER_PIXEL / 72.0 for side in size]
        self._figure = Figure(figsize=(inches[0], inches[1]), facecolor=_unit(background))
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_xlim(0, size[0])
        self._axes.set_ylim(size[1], 0)
        self._axes.axis("off")
        self._clip_patch: Any = None
        self._order = 0

    def clip(self, box: tuple[float, float, float, float] | None) -> None:
        """Draw only within a box from now on."""
        from matplotlib.patches import Rectangle

        if box is None:
            self._clip_patch = None
            return
        left, top, right, bottom = box
        self._clip_patch = Rectangle((left, top), right - left, bottom - top, transform=self._axes.transData)

    def polygon(
        self,
        outlines: Sequence[FloatArray],
        fill: Colour | None,
        *,
        alpha: float = 1.0,
        edge: Colour | None = None,
        width: float = 1.0,
    ) -> None:
        """See :class:`~.canvas.Canvas`."""
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Outline

        vertices, codes = [], []
        for position, outline in enumerate(outlines):
            closed = _wound(np.concatenate([outline, outline[:1]]), clockwise=position > 0)
            vertices.append(closed)
            codes += [Outline.MOVETO, *[Outline.LINETO] * (len(closed) - 2), Outline.CLOSEPOLY]
        patch = PathPatch(
            Outline(np.concatenate(vertices), codes),
            facecolor="none" if fill is None else _unit(fill),
            edgecolor="none" if edge is None else _unit(edge),
            linewidth=0.0 if edge is None else width * _POINTS_PER_PIXEL,
            alpha=alpha,
            joinstyle="round",
        )
        self._add(self._axes.add_patch(patch))

    def line(
        self, points: FloatArray, colour: Colour, width: float, *, alpha: float = 1.0, dashes: Dashes | None = None
    ) -> None:
        """See :class:`~.canvas.Canvas`."""
        from matplotlib.collections import LineCollection

        pieces = dashed(points, dashes) if dashes else [points]
        lines = LineCollection(
            pieces, colors=[_unit(colour)], linewidths=width * _POINTS_PER_PIXEL, alpha=alpha, capstyle="round"
        )
        lines.set_joinstyle("round")
        self._add(self._axes.add_collection(lines, autolim=False))

    def disc(
        self, centre: Sequence[float], radius: float, fill: Colour, *, edge: Colour | None = None, width: float = 1.0
    ) -> None:
        """See :class:`~.canvas.Canvas`."""
        from matplotlib.patches import Circle

        if edge is not None:
            outer = Circle((centre[0], centre[1]), radius + width, facecolor=_unit(edge), linewidth=0.0)
            self._add(self._axes.add_patch(outer))
        self._add(self._axes.add_patch(Circle((centre[0], centre[1]), radius, facecolor=_unit(fill), linewidth=0.0)))

    def text(self, at: Sequence[float], text: str, size: float, colour: Colour, *, anchor: str = "lm") -> None:
        """See :class:`~.canvas.Canvas`."""
        written = self._axes.text(
            at[0],
            at[1],
            text,
            fontsize=size * _POINTS_PER_PIXEL * 0.9,
            color=_unit(colour),
            ha={"l": "left", "m": "center", "r": "right"}[anchor[0]],
            va={"t": "top", "m": "center_baseline", "b": "bottom"}[anchor[1]],
            parse_math=False,
        )
        self._add(written, clipped=False)

    def text_width(self, text: str, size: float) -> float:
        """See :class:`~.canvas.Canvas`."""
        from matplotlib.textpath import TextPath

        return float(TextPath((0, 0), text + ".", size=size * 0.9).get_extents().width)

    def save(self, path: Path) -> None:
        """Write the page to a ``.pdf`` or ``.svg`` file; the same page gives the same bytes."""
        dated = "CreationDate" if path.suffix == ".pdf" else "Date"
        with self._context(self._settings):
            self._figure.savefig(path, facecolor=self._figure.get_facecolor(), metadata={dated: None})

    def _add(self, artist: Any, clipped: bool = True) -> None:
        self._order += 1
        artist.set_zorder(self._order)
        if clipped and self._clip_patch is not None:
            artist.set_clip_path(self._clip_patch)


def _wound(closed: FloatArray, clockwise: bool) -> FloatArray:
    """The outline in one sense of rotation: holes are those that turn the other way."""
    x, y = closed.T
    turns_right = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) > 0.0
    return closed if turns_right == clockwise else closed[::-1]


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (channel / 255.0 for channel in colour)
    return red, green, blue
