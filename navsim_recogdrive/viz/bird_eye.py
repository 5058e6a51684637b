"""Bird's-eye view of a scene: the map, who is there, what the human drove and what was planned; forward is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from navsim_recogdrive.viz.canvas import Canvas, RasterCanvas
from navsim_recogdrive.viz.legend import Entry, Legend, scene_entries, trajectory_entries
from navsim_recogdrive.viz.palette import (
    AGENT_FILL,
    AREA_EDGE,
    AREA_FILL,
    BACKGROUND,
    EGO,
    HISTORY,
    HUMAN,
    HUMAN_DASHES,
    INK,
    LINE,
    MUTED_INK,
    RIM_ALPHA,
    SAMPLES,
    WHITE,
    Colour,
    Dashes,
    darker,
    plan_style,
    reward_colour,
)
from navsim_recogdrive.viz.scene_view import (
    AREAS,
    AgentBox,
    FloatArray,
    Image,
    InvalidView,
    SceneView,
    box_corners,
    ego_corners,
)
from navsim_recogdrive.viz.vector_canvas import VECTOR_SUFFIXES, VectorCanvas

DEFAULT_SIZE = (800, 800)

_SMALLEST_SIDE_PX = 64
_MARGIN_M = 6.0
_BAR_LENGTHS_M = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_FOOTPRINTS = 4
_AREA_ORDER = ("walkway", "carpark", "drivable", "lane", "intersection", "route", "crosswalk", "stop_line")
assert set(_AREA_ORDER) == set(AREAS)


@dataclass(frozen=True)
class Window:
    """The part of the world that a picture shows at least, metres in the ego frame.

    Attributes:
        behind: smallest x.
        ahead: largest x.
        right: smallest y.
        left: largest y.
    """

    behind: float
    ahead: float
    right: float
    left: float

    def __post_init__(self) -> None:
        if not (self.behind < self.ahead and self.right < self.left):
            raise InvalidView(f"a window must have behind < ahead and right < left, found {self}")


SURROUNDINGS = Window(behind=-12.0, ahead=40.0, right=-18.0, left=18.0)
"""What a picture shows at least, unless told otherwise."""


def fitting_window(views: Sequence[SceneView], least: Window = SURROUNDINGS) -> Window:
    """A window that holds ``least`` and all trajectories of some views: pictures of one film share it."""
    points = [np.array([[least.behind, least.right], [least.ahead, least.left]])]
    for view in views:
        lines = [view.past_poses, view.human, *(plan.poses for plan in view.plans)]
        lines += [plan.footprint for plan in view.plans]
        lines += [] if view.samples is None else [view.samples.poses.reshape(-1, view.samples.poses.shape[-1])]
        for line in lines:
            if line is not None:
                points += [line[:, :2] - _MARGIN_M, line[:, :2] + _MARGIN_M]
    low, high = np.concatenate(points).min(0).tolist(), np.concatenate(points).max(0).tolist()
    return Window(low[0], high[0], low[1], high[1])


def draw_bird_eye(
    view: SceneView,
    size: tuple[int, int] = DEFAULT_SIZE,
    *,
    window: Window | None = None,
    title: bool = True,
    legend: bool = True,
    layout_of: SceneView | None = None,
) -> Image:
    """Draw a scene from above.

    Args:
        view: the scene.
        size: width and height of the picture, pixels; at least 64 each.
        window: what it shows at least; ``None``: the ego and all trajectories.
        title: title and subtitle above the drawing.
        legend: what the colours mean, below the drawing.
        layout_of: a view whose legend must fit too, so that the drawings of both lie at the same place.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        InvalidView: for a size below 64 pixels.
    """
    _check_size(size)
    canvas = RasterCanvas.blank(size, WHITE)
    _draw(canvas, view, window, title, legend, layout_of)
    return canvas.picture()


def save_bird_eye(
    view: SceneView,
    path: Path,
    size: tuple[int, int] = DEFAULT_SIZE,
    *,
    window: Window | None = None,
    title: bool = True,
    legend: bool = True,
) -> None:
    """Draw a scene from above into a ``.pdf`` or ``.svg`` file; arguments as for :func:`draw_bird_eye`.

    Raises:
        MatplotlibMissing: where matplotlib is not installed.
        InvalidView: for another kind of file.
    """
    _check_size(size)
    if path.suffix not in VECTOR_SUFFIXES:
        raise InvalidView(f"a vector file ends with {' or '.join(VECTOR_SUFFIXES)}, found {path}")
    canvas = VectorCanvas(size, WHITE)
    _draw(canvas, view, window, title, legend)
    canvas.save(path)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < _SMALLEST_SIDE_PX:
        raise InvalidView(f"a bird's-eye view has at least {_SMALLEST_SIDE_PX} pixels a side, found {size}")


def _draw(
    canvas: Canvas,
    view: SceneView,
    window: Window | None,
    title: bool,
    legend: bool,
    layout_of: SceneView | None = None,
) -> None:
    width, height = canvas.size
    unit = max(min(width, height) / 800.0, 0.55)
    letters = max(unit, 0.8)  # smaller ones cannot be read
    top = _draw_title(canvas, view, letters) if title else 0.0
    bottom = float(height)
    if legend:
        others = 0.0 if layout_of is None else _legend(canvas, _entries(layout_of), letters)[1]
        bottom -= draw_legend(canvas, _entries(view), bottom, letters, others)
    sheet = _Sheet(canvas, (0.0, top, float(width), bottom), window or fitting_window([view]), unit)
    sheet.draw(view)


def draw_legend(
    canvas: Canvas, entries: Sequence[Entry], bottom: float, letters: float, least_height: float = 0.0
) -> float:
    """Draw a legend over the whole width that ends at ``bottom``; returns the height that it takes, pixels."""
    signs, own_height = _legend(canvas, entries, letters)
    height = max(own_height, least_height)
    signs.draw(12.0 * letters, bottom - height + 7.0 * letters)
    return height


def _legend(canvas: Canvas, entries: Sequence[Entry], letters: float) -> tuple[Legend, float]:
    """A legend over the whole width, and the height that it takes."""
    signs = Legend(canvas, entries, canvas.size[0] - 24.0 * letters, 14.0 * letters)
    return signs, signs.height + 14.0 * letters if entries else 0.0


def _entries(view: SceneView) -> list[Entry]:
    return [*trajectory_entries(view), *scene_entries(view)]


def _draw_title(canvas: Canvas, view: SceneView, unit: float) -> float:
    """Height that the title takes."""
    if not view.title and not view.subtitle:
        return 0.0
    at = 12.0 * unit
    for text, size, colour in ((view.title, 16.0 * unit, INK), (view.subtitle, 13.0 * unit, MUTED_INK)):
        shown = _cut_to(canvas, text, size, canvas.size[0] - 12.0 * unit - at)
        if shown:
            canvas.text((at, 18.0 * unit), shown, size, colour)
            at += canvas.text_width(shown, size) + 12.0 * unit
    return 36.0 * unit


def _cut_to(canvas: Canvas, text: str, size: float, room: float) -> str:
    """As much of a text as there is room for."""
    if canvas.text_width(text, size) <= room:
        return text
    while text and canvas.text_width(text + "...", size) > room:
        text = text[:-1]
    return text.rstrip() + "..." if text else ""


class _Sheet:
    """The drawing itself: ``box`` (left, top, right, bottom) of a canvas, showing at least ``window``."""

    def __init__(self, canvas: Canvas, box: tuple[float, float, float, float], window: Window, unit: float) -> None:
        self._canvas, self._box, self._unit = canvas, box, unit
        left, top, right, bottom = box
        self._scale = min(
            (right - left) / (window.left - window.right), (bottom - top) / (window.ahead - window.behind)
        )
        """Pixels per metre."""
        self._centre = np.array([(window.ahead + window.behind) / 2, (window.left + window.right) / 2])
        self._middle = np.array([(left + right) / 2, (top + bottom) / 2])

    def draw(self, view: SceneView) -> None:
        """Everything, from the ground up."""
        self._canvas.clip(self._box)
        left, top, right, bottom = self._box
        self._canvas.polygon([np.array([[left, top], [right, top], [right, bottom], [left, bottom]])], BACKGROUND)
        self._draw_map(view)
        for agent in view.agents:
            self._draw_agent(agent)
        self._draw_past(view)
        if view.samples is not None:
            self._draw_samples(view)
        for index, plan in enumerate(view.plans):
            if plan.footprint is not None:
                self._draw_footprint(view, plan.footprint, plan_style(index).colour)
        self._draw_ego(view)
        for index, plan in enumerate(view.plans):
            self._draw_trajectory(plan.poses, *plan_style(index))
        if view.human is not None:
            self._draw_human(view.human)
        self._canvas.clip(None)
        self._draw_scale_bar()

    def _px(self, points: FloatArray) -> FloatArray:
        """Pixels ``[..., 2]`` of points in the ego frame."""
        offset = (points[..., :2] - self._centre) * self._scale
        return self._middle + np.stack([-offset[..., 1], -offset[..., 0]], axis=-1)

    def _draw_map(self, view: SceneView) -> None:
        unit = self._unit
        for kind in _AREA_ORDER:
            for area in view.areas:
                if area.kind == kind:
                    outlines = [self._px(outline) for outline in (area.outline, *area.holes)]
                    self._canvas.polygon(outlines, AREA_FILL[kind], edge=AREA_EDGE.get(kind), width=1.2 * unit)
        for kind in LINE:
            for line in view.lines:
                if line.kind == kind:
                    faint = kind == "centre_line"
                    self._canvas.line(
                        self._px(line.points),
                        LINE[kind],
                        (1.0 if faint else 1.6) * unit,
                        alpha=1.0 if faint else 0.6,
                        dashes=(6.0 * unit, 6.0 * unit) if faint else None,
                    )

    def _draw_agent(self, agent: AgentBox) -> None:
        unit, fill = self._unit, AGENT_FILL[agent.kind]
        length, width = agent.size[:2]
        # A pedestrian of half a metre would be a speck in a picture of 60 m.
        smallest = 7.0 * unit / self._scale
        length, width = max(length, smallest), max(width, smallest)
        if agent.moves:
            ahead = np.array([agent.pose[:2], agent.pose[:2] + agent.velocity])
            self._canvas.line(self._px(ahead), darker(fill), 1.6 * unit)
        corners = self._px(box_corners(agent.pose, length, width))
        self._canvas.polygon([corners], fill, edge=darker(fill), width=1.2 * unit)
        if agent.kind == "vehicle":
            self._canvas.line(_bonnet(corners), darker(fill), 1.2 * unit)

    def _draw_ego(self, view: SceneView) -> None:
        corners = self._px(ego_corners((0.0, 0.0, 0.0), view.ego))
        self._canvas.polygon([corners], EGO, edge=WHITE, width=1.6 * self._unit)
        self._canvas.line(_bonnet(corners), WHITE, 1.2 * self._unit)

    def _draw_past(self, view: SceneView) -> None:
        if view.past_poses is not None and len(view.past_poses) > 1:
            self._canvas.line(self._px(view.past_poses), HISTORY, 2.4 * self._unit)

    def _draw_samples(self, view: SceneView) -> None:
        samples = view.samples
        assert samples is not None
        rewards = samples.rewards
        order = range(len(samples.poses)) if rewards is None else np.argsort(rewards, kind="stable").tolist()
        for index in order:
            points = self._px(_from_ego(samples.poses[index]))
            colour = SAMPLES if rewards is None else reward_colour(float(rewards[index]), samples.scale)
            self._canvas.line(points, INK, 3.2 * self._unit, alpha=RIM_ALPHA)
            self._canvas.line(points, colour, 2.0 * self._unit)

    def _draw_footprint(self, view: SceneView, poses: FloatArray, colour: Colour) -> None:
        chosen = np.round(np.linspace(0, len(poses) - 1, _FOOTPRINTS + 1)).astype(int)[1:]
        for index in dict.fromkeys(chosen.tolist()):
            corners = self._px(ego_corners(poses[index], view.ego))
            self._canvas.polygon([corners], colour, alpha=0.16)
            self._canvas.polygon([corners], None, alpha=0.8, edge=colour, width=1.2 * self._unit)

    def _draw_trajectory(self, poses: FloatArray, colour: Colour, dashes: Dashes | None) -> None:
        unit = self._unit
        points = self._px(_from_ego(poses))
        scaled = None if dashes is None else (dashes[0] * unit, dashes[1] * unit)
        self._canvas.line(points, WHITE, 6.0 * unit, alpha=0.8)
        self._canvas.line(points, colour, 3.2 * unit, dashes=scaled)
        for step, point in enumerate(points[1:], start=1):
            full_second = step % 2 == 0
            self._canvas.disc(
                point.tolist(), (4.4 if full_second else 2.8) * unit, colour, edge=WHITE, width=1.2 * unit
            )

    def _draw_human(self, poses: FloatArray) -> None:
        """On top of the plans, but thinner: where they coincide, both can be seen."""
        unit = self._unit
        points = self._px(_from_ego(poses))
        self._canvas.line(points, HUMAN, 2.2 * unit, dashes=(HUMAN_DASHES[0] * unit, HUMAN_DASHES[1] * unit))
        for step, point in enumerate(points[1:], start=1):
            self._canvas.disc(point.tolist(), (3.2 if step % 2 == 0 else 2.0) * unit, HUMAN, edge=WHITE, width=unit)

    def _draw_scale_bar(self) -> None:
        unit = self._unit
        _, _, right, bottom = self._box
        metres = min(_BAR_LENGTHS_M, key=lambda length: abs(length * self._scale - 110.0 * unit))
        end = np.array([right - 18.0 * unit, bottom - 16.0 * unit])
        start = end - (metres * self._scale, 0.0)
        tick = np.array([0.0, 5.0 * unit])
        line = np.array([start - tick, start, end, end - tick])
        self._canvas.line(line, WHITE, 5.0 * unit, alpha=0.9)
        self._canvas.line(line, INK, 2.0 * unit)
        letters = 13.0 * max(unit, 0.8)
        above = ((start[0] + end[0]) / 2, end[1] - letters)
        self._canvas.text(above, f"{metres:g} m", letters, INK, anchor="mm")


def _bonnet(corners: FloatArray) -> FloatArray:
    """An arrow's head ``[3, 2]`` within a box of ``corners [4, 2]``, from front left clockwise."""
    front, back = (corners[0] + corners[1]) / 2, (corners[2] + corners[3]) / 2
    backwards = back - front
    return np.array([corners[0] + 0.24 * backwards, front + 0.10 * backwards, corners[1] + 0.24 * backwards])


def _from_ego(poses: FloatArray) -> FloatArray:
    """``[T + 1, 2]`` positions of a trajectory that begins at the ego's rear axle."""
    return np.concatenate([np.zeros((1, 2)), poses[:, :2]])
