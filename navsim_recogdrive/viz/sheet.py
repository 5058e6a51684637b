"""Several drawings on one picture: camera and bird's-eye view of a scene, or the same view of several scenes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from navsim_recogdrive.viz.bird_eye import Window, draw_bird_eye, draw_legend
from navsim_recogdrive.viz.camera import draw_camera
from navsim_recogdrive.viz.canvas import RasterCanvas
from navsim_recogdrive.viz.legend import scene_entries, trajectory_entries
from navsim_recogdrive.viz.palette import INK, WHITE
from navsim_recogdrive.viz.scene_view import Image, SceneView

DEFAULT_HEIGHT = 720

_GAP = 8
_WIDEST = 16 / 9


def draw_sheet(
    view: SceneView,
    height: int = DEFAULT_HEIGHT,
    *,
    window: Window | None = None,
    layout_of: SceneView | None = None,
) -> Image:
    """The front camera and, right of it, the bird's-eye view with title and legend.

    Args:
        view: the scene; without a camera the bird's-eye view stands alone.
        height: of the picture, pixels.
        window: what the bird's-eye view shows at least.
        layout_of: a view whose legend must fit too: pictures of one film share it.

    Returns:
        ``[height, W, 3]`` uint8 RGB.
    """
    above = draw_bird_eye(view, (height, height), window=window, layout_of=layout_of)
    if view.camera is None:
        return above
    front = draw_camera(view, legend=False)
    width = round(height * min(front.shape[1] / front.shape[0], _WIDEST))
    return np.concatenate([fitted(front, (width, height)), above], axis=1)


def draw_grid(
    views: Sequence[SceneView],
    columns: int,
    side: int = 480,
    *,
    heading: str = "",
    windows: Sequence[Window] | None = None,
) -> Image:
    """Bird's-eye views of several scenes beside each other, in rows of ``columns``, with one legend below.

    Args:
        views: at least one.
        columns: of the grid.
        side: of a view, pixels.
        heading: above the grid.
        windows: what each shows at least.

    Returns:
        ``[H, W, 3]`` uint8 RGB.
    """
    columns = min(columns, len(views))
    rows = -(-len(views) // columns)
    top = max(round(side * 0.08), 30) if heading else 0
    letters = max(side / 800.0, 0.8)
    entries = list(dict.fromkeys(entry for view in views for entry in trajectory_entries(view)))
    entries += dict.fromkeys(entry for view in views for entry in scene_entries(view))
    width, body = columns * side + (columns - 1) * _GAP, rows * side + (rows - 1) * _GAP
    # Once to measure it: how many rows the legend needs is known when it is set.
    needed = draw_legend(RasterCanvas.blank((width, 1), WHITE, 1), entries, 0.0, letters)
    page = np.full((top + body + round(needed), width, 3), WHITE, dtype=np.uint8)
    for index, view in enumerate(views):
        row, column = divmod(index, columns)
        y, x = top + row * (side + _GAP), column * (side + _GAP)
        window = None if windows is None else windows[index]
        page[y : y + side, x : x + side] = draw_bird_eye(view, (side, side), window=window, legend=False)
    canvas = RasterCanvas(page, supersampling=1)
    canvas.text((12.0 * letters, top * 0.5), heading, top * 0.55, INK)
    draw_legend(canvas, entries, float(len(page)), letters)
    return canvas.picture()


def fitted(image: Image, size: tuple[int, int]) -> Image:
    """An image scaled to fill ``size`` (width, height); what is too much is cut off on both sides alike."""
    width, height = size
    scale = max(width / image.shape[1], height / image.shape[0])
    scaled = (max(round(image.shape[1] * scale), width), max(round(image.shape[0] * scale), height))
    method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
    large = cv2.resize(image, scaled, interpolation=method)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.ascontiguousarray(large[top : top + height, left : left + width])
