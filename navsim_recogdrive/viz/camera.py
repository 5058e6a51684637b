"""Trajectories in the front camera's image, lying on the road: ribbons as wide as the ego, with perspective.

What stands before a ribbon hides it, as far as the scene's boxes tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from navsim_recogdrive.viz.canvas import RasterCanvas
from navsim_recogdrive.viz.legend import Legend, trajectory_entries
from navsim_recogdrive.viz.palette import HUMAN, INK, RIM_ALPHA, SAMPLES, WHITE, Colour, plan_style, reward_colour
from navsim_recogdrive.viz.projection import NEAREST_M, project_polygons, to_camera_frame, to_pixels, visible
from navsim_recogdrive.viz.scene_view import (
    AgentBox,
    CameraImage,
    FloatArray,
    Image,
    InvalidView,
    SceneView,
    box_corners,
)

_NUPLAN_FOCAL, NUPLAN_CENTRE, NUPLAN_WIDTH = 1545.0, (960.0, 560.0), 1920
_NUPLAN_POSITION = (1.70, 0.0, 1.55)

_STEP_M = 0.5
_SHORTEST_M = 0.3
_LINE_M = 0.11
_HUMAN_DASH_M = (1.2, 0.8)
_SHIFT = 4
_FAR_PX = 16000.0


def nuplan_front_camera(image: Image) -> CameraImage:
    """An image with the calibration of nuPlan's front cameras, rounded: for images that come without one.

    The optical axis is level and straight ahead, 1.55 m above the road, 1.7 m before the rear axle; the focal length
    is 1545 pixels in an image 1920 pixels wide, and the horizon lies slightly below the middle.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
    """
    scale = image.shape[1] / NUPLAN_WIDTH
    focal, (x, y) = _NUPLAN_FOCAL * scale, (NUPLAN_CENTRE[0] * scale, NUPLAN_CENTRE[1] * scale)
    return CameraImage(
        image,
        intrinsics=np.array([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]]),
        rotation=np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
        translation=np.array(_NUPLAN_POSITION),
    )


def draw_camera(view: SceneView, *, legend: bool = True) -> Image:
    """Draw a scene's trajectories into its front camera's image.

    The last of the plans is a translucent ribbon as wide as the ego with a line along its middle and bars across it,
    every 0.5 s for planned trajectories; other plans, the human's trajectory (dashed) and samples are lines.

    Args:
        view: the scene, with a camera.
        legend: what the colours mean, in the upper left corner.

    Returns:
        ``[H, W, 3]`` uint8 RGB of the image's size.

    Raises:
        InvalidView: if the view has no camera.
    """
    if view.camera is None:
        raise InvalidView(f"scene {view.title!r} has no camera image to draw into")
    painter = _Painter(view.camera, view.agents)
    *others, main = view.plans or (None,)
    if main is not None:
        # Below the samples: it would tint the colours of their rewards.
        painter.fill(main.poses, plan_style(len(others)).colour, view.ego.width)
    if view.samples is not None:
        samples = view.samples
        order = range(len(samples.poses)) if samples.rewards is None else np.argsort(samples.rewards, kind="stable")
        for index in order:
            reward = None if samples.rewards is None else float(samples.rewards[index])
            colour = SAMPLES if reward is None else reward_colour(reward, samples.scale)
            painter.line(samples.poses[index], colour, alpha=0.75 if reward is None else 0.9, rim=(INK, RIM_ALPHA))
    if view.human is not None:
        painter.line(view.human, HUMAN, alpha=0.95, dashes=_HUMAN_DASH_M)
    for index, plan in enumerate(others):
        painter.line(plan.poses, plan_style(index).colour, alpha=0.9)
    if main is not None:
        painter.outline(main.poses, plan_style(len(others)).colour, view.ego.width)
    return _with_legend(painter.image, view) if legend else painter.image


def _with_legend(image: Image, view: SceneView) -> Image:
    entries = trajectory_entries(view)
    if not entries:
        return image
    canvas = RasterCanvas(image, supersampling=1)
    width = image.shape[1]
    size = max(width / 72.0, 9.0)
    signs = Legend(canvas, entries, width - 4.0 * size, size)
    left, top = 0.8 * size, 0.8 * size
    right, bottom = left + signs.width + 1.6 * size, top + signs.height + 0.6 * size
    box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    canvas.polygon([box], WHITE, alpha=0.82)
    signs.draw(left + 0.8 * size, top + 0.3 * size)
    return canvas.picture()


@dataclass(frozen=True)
class _Path:
    """A trajectory on the road from the ego on, in short steps.

    Attributes:
        points: ``[M, 2]``.
        sideways: ``[M, 2]`` unit vectors to the left.
        along: ``[M]`` metres from the start.
        poses_at: ``[T]`` where on it the planned poses lie, metres from the start.
    """

    points: FloatArray
    sideways: FloatArray
    along: FloatArray
    poses_at: FloatArray

    def edge(self, offset: float) -> FloatArray:
        """``[M, 2]`` the path moved to the left."""
        return self.points + offset * self.sideways

    def at(self, metres: float, offset: float) -> FloatArray:
        """``[2]`` a point so far from the start and to the left."""
        edge = self.edge(offset)
        return np.array([np.interp(metres, self.along, edge[:, axis]) for axis in (0, 1)])


def _path(poses: FloatArray) -> _Path | None:
    """``None`` for an ego that stands."""
    corners = np.concatenate([np.zeros((1, 2)), poses[:, :2]])
    poses_at = np.cumsum(np.hypot(*np.diff(corners, axis=0).T))
    # A step of centimetres has no direction worth drawing.
    kept = [corners[0]]
    for corner in corners[1:]:
        if np.hypot(*(corner - kept[-1])) > _SHORTEST_M:
            kept.append(corner)
    if len(kept) < 2:
        return None
    points = _smooth(np.array(kept))
    steps = np.diff(points, axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*steps.T))])
    heading = np.concatenate([steps[:1], steps[:-1] + steps[1:], steps[-1:]])
    heading /= np.maximum(np.hypot(*heading.T), 1e-9)[:, None]
    sideways = np.stack([-heading[:, 1], heading[:, 0]], axis=1)
    # The curve is a little longer than its chords.
    poses_at *= along[-1] / max(float(poses_at[-1]), 1e-9)
    return _Path(points, sideways, along, np.minimum(poses_at, along[-1]))


def _smooth(knots: FloatArray) -> FloatArray:
    """``[M, 2]`` a curve through ``knots [N, 2]``, in steps of half a metre: cubics, tangents of neighbours."""
    lengths = np.hypot(*np.diff(knots, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    tangents = np.gradient(knots, at, axis=0)
    pieces = [knots[:1]]
    for i, length in enumerate(lengths.tolist()):
        count = max(int(np.ceil(length / _STEP_M)), 1)
        t = (np.arange(1, count + 1) / count)[:, None]
        start, stop = tangents[i] * length, tangents[i + 1] * length
        pieces.append(
            (2 * t**3 - 3 * t**2 + 1) * knots[i]
            + (t**3 - 2 * t**2 + t) * start
            + (3 * t**2 - 2 * t**3) * knots[i + 1]
            + (t**3 - t**2) * stop
        )
    return np.concatenate(pieces)


class _Painter:
    """Lays strips of road into an image; boxes that stand before a strip hide it."""

    def __init__(self, camera: CameraImage, agents: Sequence[AgentBox]) -> None:
        self.image = camera.image.copy()
        self._camera = camera
        self._screens = sorted(_screens(agents, camera), key=lambda screen: -screen.depth)

    def fill(self, poses: FloatArray, colour: Colour, width: float) -> None:
        """The road that the ego will cover."""
        path = _path(poses)
        if path is not None:
            self._lay([self._strip(path, -width / 2, width / 2)], colour, 0.36)

    def outline(self, poses: FloatArray, colour: Colour, width: float) -> None:
        """The edges of the road that the ego will cover, its middle, and a bar across it at every pose."""
        path = _path(poses)
        if path is None:
            return
        half = width / 2
        edges = [self._strip(path, side - _LINE_M / 2, side + _LINE_M / 2) for side in (-half, half)]
        self._lay(edges, colour, 0.95)
        self._lay([self._strip(path, -_LINE_M / 2, _LINE_M / 2)], colour, 0.95)
        for step, metres in enumerate(path.poses_at, start=1):
            full_second = step % 2 == 0
            bar = self._bar(path, float(metres), half, 0.28 if full_second else 0.16)
            self._lay([bar], WHITE, 0.85 if full_second else 0.4)

    def line(
        self,
        poses: FloatArray,
        colour: Colour,
        alpha: float,
        dashes: tuple[float, float] | None = None,
        rim: tuple[Colour, float] = (WHITE, 0.25),
    ) -> None:
        """A trajectory as a line on the road, 0.2 m wide, with a rim of a colour and opacity."""
        path = _path(poses)
        if path is not None:
            half = _LINE_M
            self._lay([self._strip(path, -1.35 * half, 1.35 * half, dashes)], rim[0], rim[1] * alpha)
            self._lay([self._strip(path, -half, half, dashes)], colour, alpha)

    def _strip(self, path: _Path, right: float, left: float, dashes: tuple[float, float] | None = None) -> FloatArray:
        """The quadrilaterals ``[Q, 4, 3]`` of a strip between two lateral offsets."""
        near, far = path.edge(right), path.edge(left)
        shown = np.ones(len(path.points) - 1, dtype=bool)
        if dashes is not None:
            shown = (path.along[:-1] + 0.5 * _STEP_M) % sum(dashes) < dashes[0]
        quads = np.stack([near[:-1], near[1:], far[1:], far[:-1]], axis=1)
        return self._on_road(quads[shown])

    def _bar(self, path: _Path, metres: float, half: float, thickness: float) -> FloatArray:
        """``[1, 4, 3]`` a bar across the ribbon that ends at a pose."""
        start = max(metres - thickness, 0.0)
        corners = [path.at(start, -half), path.at(metres, -half), path.at(metres, half), path.at(start, half)]
        return self._on_road(np.array([corners]))

    def _on_road(self, points: FloatArray) -> FloatArray:
        """Points ``[..., 2]`` as points ``[..., 3]``."""
        return np.concatenate([points, np.full((*points.shape[:-1], 1), self._camera.ground_z)], axis=-1)

    def _lay(self, strips: Sequence[FloatArray], colour: Colour, alpha: float) -> None:
        """Blend strips of road into the image, far to near; what stands nearer than a piece is cut out of it."""
        height, width = self.image.shape[:2]
        quads = np.concatenate(strips)
        pieces = [
            (depth, pixels)
            for depth, pixels in project_polygons(quads, self._camera)
            if (pixels.max(0) >= 0).all() and (pixels.min(0) <= (width, height)).all()
        ]
        if not pieces:
            return
        corners = np.concatenate([pixels for _, pixels in pieces])
        left, top = np.clip(np.floor(corners.min(0)) - 2, 0, (width, height)).astype(int).tolist()
        right, bottom = np.clip(np.ceil(corners.max(0)) + 3, 0, (width, height)).astype(int).tolist()
        if right <= left or bottom <= top:
            return
        mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
        corner = np.array([left, top])
        screens = list(self._screens)
        for depth, pixels in sorted(pieces, key=lambda piece: -piece[0]):
            while screens and screens[0].depth > depth:
                cv2.fillConvexPoly(mask, screens.pop(0).outline - corner, 0)
            cv2.fillPoly(mask, [_fixed(pixels - corner)], 255, cv2.LINE_AA, _SHIFT)
        for screen in screens:
            cv2.fillConvexPoly(mask, screen.outline - corner, 0)
        part = self.image[top:bottom, left:right]
        share = (mask.astype(np.float32) * (alpha / 255.0))[..., None]
        blended = part * (1.0 - share) + np.array(colour, dtype=np.float32) * share
        part[:] = np.round(blended).astype(np.uint8)


@dataclass(frozen=True)
class _Screen:
    """The outline of a box in the image (``[N, 2]`` int32), and the distance of its nearest corner."""

    depth: float
    outline: np.ndarray


def _screens(agents: Sequence[AgentBox], camera: CameraImage) -> list[_Screen]:
    screens = []
    for agent in agents:
        base = box_corners(agent.pose, agent.size[0], agent.size[1])
        low, high = agent.centre_z - agent.size[2] / 2, agent.centre_z + agent.size[2] / 2
        corners = np.concatenate([np.column_stack([base, np.full(4, z)]) for z in (low, high)])
        local = to_camera_frame(corners, camera)
        if (local[:, 2] < NEAREST_M).any() or not visible(local, camera).all():
            continue
        outline = cv2.convexHull(np.round(np.clip(to_pixels(local, camera), -_FAR_PX, _FAR_PX)).astype(np.int32))
        screens.append(_Screen(float(local[:, 2].min()), outline[:, 0]))
    return screens


def _fixed(pixels: FloatArray) -> np.ndarray:
    """Pixels in OpenCV's sixteenths."""
    return np.round(np.clip(pixels, -_FAR_PX, _FAR_PX) * (1 << _SHIFT)).astype(np.int32)
