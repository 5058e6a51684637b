"""Draws what a camera of the ego vehicle sees: the warped ground, then everything upright from far to near.

Images are RGB uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.world.camera import Camera
from navsim_recogdrive.world.geometry import FloatArray, box_corners
from navsim_recogdrive.world.scenery import PIXELS_PER_METRE, Building, Scenery, SignalHead, Tree
from navsim_recogdrive.world.simulate import Agent, Frame

Colour = tuple[int, int, int]
Image = NDArray[np.uint8]

_NEAR_M = 0.4
_VIEW_M = 150.0
_LEVEL_LIMITS_M = (26.0, 55.0)
"""Depths beyond which the next coarser ground level is used, against flicker."""
_SKY_TOP, _SKY_LOW, _HAZE = (96, 142, 204), (206, 220, 232), (186, 194, 196)
_LAMPS: dict[str, Colour] = {"red": (255, 44, 36), "amber": (255, 190, 30), "green": (40, 240, 120)}
_LAMP_ORDER = ("red", "amber", "green")
_SUN = np.array([0.45, 0.35, 0.82])


@dataclass
class _Task:
    """Something to draw: its distance decides the order."""

    distance: float
    draw: Callable[[], None]


class _View:
    """Drawing helpers of one image."""

    def __init__(self, image: Image, camera: Camera, ego_pose: FloatArray) -> None:
        self.image = image
        self.camera = camera
        self.pose = ego_pose
        self.eye = np.array([ego_pose[0], ego_pose[1], 0.0]) + self._to_global(camera.translation)

    def _to_global(self, vector: FloatArray) -> FloatArray:
        cos, sin = np.cos(self.pose[2]), np.sin(self.pose[2])
        return np.array([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1], vector[2]])

    def in_sight(self, points: FloatArray) -> bool:
        """Whether any of ``points [N, 3]`` may be in the picture."""
        local = self.camera.to_camera(points, self.pose)
        width = self.camera.size[0]
        slope = 0.5 * width / self.camera.intrinsics[0, 0] * 1.05
        x, depth = local[:, 0], local[:, 2]
        return bool((depth > _NEAR_M).any() and (x > -slope * depth - 3.0).any() and (x < slope * depth + 3.0).any())

    def polygon(self, points: FloatArray, colour: Colour) -> None:
        """Fill a planar polygon ``[N, 3]`` of global points."""
        local = _clip_near(self.camera.to_camera(points, self.pose))
        if len(local) < 3:
            return
        pixels = np.clip(self.camera.to_pixels(local), -20000.0, 20000.0)
        cv2.fillPoly(self.image, [np.round(pixels * 16.0).astype(np.int32)], colour, cv2.LINE_AA, 4)

    def disc(self, centre: FloatArray, radius: float, colour: Colour) -> None:
        """A disc that faces the camera; ``radius`` in metres."""
        local = self.camera.to_camera(centre, self.pose)
        if local[2] < _NEAR_M:
            return
        x, y = self.camera.to_pixels(local)
        size = radius * self.camera.intrinsics[0, 0] / local[2]
        if -size < x < self.camera.size[0] + size and -size < y < self.camera.size[1] + size:
            cv2.circle(
                self.image,
                (round(float(x) * 16), round(float(y) * 16)),
                max(round(float(size) * 16), 12),
                colour,
                -1,
                cv2.LINE_AA,
                4,
            )

    def box(self, base: FloatArray, low: float, high: float, side: Colour, top: Colour | None = None) -> None:
        """An upright box over the ground corners ``[4, 2]``; only the faces turned to the camera are drawn."""
        for face in visible_faces(base, self.eye):
            a, b = base[face], base[(face + 1) % 4]
            points = np.array([[*a, low], [*b, low], [*b, high], [*a, high]])
            self.polygon(points, shaded(side, a, b))
        if top is not None and self.eye[2] > high:
            self.polygon(np.column_stack([base, np.full(4, high)]), top)

    def on_face(
        self, base: FloatArray, face: int, across: tuple[float, float], up: tuple[float, float], colour: Colour
    ) -> None:
        """A patch on a face of a box: ``across`` in 0..1 along the face, ``up`` in metres."""
        a, b = base[face], base[(face + 1) % 4]
        left, right = a + across[0] * (b - a), a + across[1] * (b - a)
        self.polygon(np.array([[*left, up[0]], [*right, up[0]], [*right, up[1]], [*left, up[1]]]), colour)


def visible_faces(base: FloatArray, eye: FloatArray) -> list[int]:
    """Faces (edge i to i + 1) of a clockwise ground rectangle ``[4, 2]`` that look towards ``eye``."""
    faces = []
    for i in range(4):
        a, b = base[i], base[(i + 1) % 4]
        outward = np.array([-(b - a)[1], (b - a)[0]])
        if outward @ (eye[:2] - a) > 0.0:
            faces.append(i)
    return faces


def shaded(colour: Colour, a: FloatArray, b: FloatArray) -> Colour:
    """``colour`` in the light that falls on the wall from ``a`` to ``b``."""
    edge = b - a
    outward = np.array([-edge[1], edge[0]]) / max(float(np.hypot(*edge)), 1e-6)
    return _scaled(colour, 0.72 + 0.28 * float(outward @ _SUN[:2]) / 0.57)


def _scaled(colour: Colour, factor: float) -> Colour:
    r, g, b = (int(min(max(channel * factor, 0.0), 255.0)) for channel in colour)
    return r, g, b


def _clip_near(points: FloatArray) -> FloatArray:
    """Clip a polygon in the camera frame at the near plane (Sutherland and Hodgman, one plane)."""
    inside = points[:, 2] >= _NEAR_M
    if inside.all():
        return points
    if not inside.any():
        return points[:0]
    kept = []
    for i in range(len(points)):
        a, b = points[i], points[(i + 1) % len(points)]
        if inside[i]:
            kept.append(a)
        if inside[i] != inside[(i + 1) % len(points)]:
            kept.append(a + (b - a) * ((_NEAR_M - a[2]) / (b[2] - a[2])))
    return np.array(kept)


def render(scenery: Scenery, frame: Frame, camera: Camera) -> Image:
    """The image of ``camera`` at ``frame``."""
    width, height = camera.size
    image = np.empty((height, width, 3), np.uint8)
    _draw_sky_and_ground(image, scenery, camera, frame.ego_pose)
    view = _View(image, camera, frame.ego_pose)
    tasks = [*_building_tasks(view, scenery.buildings), *_tree_tasks(view, scenery.trees)]
    tasks += _head_tasks(view, scenery.heads, frame.lights)
    tasks += _agent_tasks(view, frame.agents, frame.time)
    for task in sorted(tasks, key=lambda task: -task.distance):
        task.draw()
    return image


def _draw_sky_and_ground(image: Image, scenery: Scenery, camera: Camera, pose: FloatArray) -> None:
    height, width = image.shape[:2]
    horizon = int(np.ceil(camera.intrinsics[1, 2])) + 1
    ramp = np.linspace(0.0, 1.0, horizon)[:, None] ** 1.4
    sky = (1.0 - ramp) * np.array(_SKY_TOP) + ramp * np.array(_SKY_LOW)
    image[:horizon] = np.round(sky).astype(np.uint8)[:, None]
    to_pixels = camera.ground_homography(pose)
    focal, eye_height = camera.intrinsics[0, 0], camera.translation[2]
    rows = [horizon, *(int(camera.intrinsics[1, 2] + focal * eye_height / limit) for limit in _LEVEL_LIMITS_M[::-1])]
    for level, (top, bottom) in enumerate(zip(reversed(rows), [height, *reversed(rows[1:])], strict=True)):
        if bottom <= top:
            continue
        texture = scenery.ground.levels[level]
        metres = 2.0**level / PIXELS_PER_METRE
        corner = scenery.ground.corner - pose[:2]
        # Pixel centres of a halved image lie half a pixel off those of the full one.
        texture_to_ground = np.array(
            [[metres, 0.0, corner[0] + 0.5 * metres], [0.0, metres, corner[1] + 0.5 * metres], [0.0, 0.0, 1.0]]
        )
        lift = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, -float(top)], [0.0, 0.0, 1.0]])
        image[top:bottom] = cv2.warpPerspective(
            texture,
            lift @ to_pixels @ texture_to_ground,
            (width, bottom - top),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(98, 118, 76),
        )
    _add_haze(image, horizon, focal * eye_height, camera.intrinsics[1, 2])


def _add_haze(image: Image, horizon: int, scale: float, centre_row: float) -> None:
    rows = np.arange(horizon, min(horizon + 60, image.shape[0]))
    depth = scale / np.maximum(rows - centre_row, 0.5)
    share = (1.0 - np.exp(-depth / 260.0))[:, None, None]
    part = image[rows[0] : rows[-1] + 1]
    part[:] = np.round((1.0 - share) * part + share * np.array(_HAZE)).astype(np.uint8)


def _building_tasks(view: _View, buildings: Sequence[Building]) -> list[_Task]:
    tasks = []
    for building in buildings:
        distance = _distance_to(view, building.corners)
        corners = np.column_stack([building.corners, np.full(4, 2.0)])
        if distance < _VIEW_M and view.in_sight(corners):
            tasks.append(_Task(distance, partial(_draw_building, view, building, distance)))
    return tasks


def _distance_to(view: _View, corners: FloatArray) -> float:
    """Distance of the nearest of the corners and edge middles: what is nearer hides what is farther."""
    middles = 0.5 * (corners + np.roll(corners, -1, axis=0))
    return float(np.hypot(*(np.concatenate([corners, middles]) - view.eye[:2]).T).min())


def _draw_building(view: _View, building: Building, distance: float) -> None:
    fade = 1.0 - np.exp(-distance / 220.0)
    colour = _blend(building.colour, _HAZE, fade)
    view.box(building.corners, 0.0, building.height, colour)
    glass = _blend((70, 82, 96), _HAZE, fade)
    for face in visible_faces(building.corners, view.eye):
        for floor in range(building.floors):
            low = 1.1 + 3.1 * floor
            if distance > 70.0:
                view.on_face(building.corners, face, (0.05, 0.95), (low, low + 1.5), glass)
                continue
            for column in range(5):
                start = 0.05 + 0.19 * column
                view.on_face(building.corners, face, (start, start + 0.13), (low, low + 1.5), glass)


def _blend(colour: Colour, other: Colour, share: float) -> Colour:
    r, g, b = (round((1.0 - share) * p + share * q) for p, q in zip(colour, other, strict=True))
    return r, g, b


def _tree_tasks(view: _View, trees: Sequence[Tree]) -> list[_Task]:
    tasks = []
    for tree in trees:
        distance = float(np.hypot(*(tree.position - view.eye[:2])))
        if distance < 110.0 and view.in_sight(np.array([[*tree.position, 2.0]])):
            tasks.append(_Task(distance, partial(_draw_tree, view, tree)))
    return tasks


def _draw_tree(view: _View, tree: Tree) -> None:
    _post(view, tree.position, 0.0, tree.height - tree.crown, 0.16, (92, 72, 54))
    top = np.array([*tree.position, tree.height - 0.6 * tree.crown])
    view.disc(top, tree.crown, _scaled(tree.colour, 0.8))
    view.disc(top + np.array([0.0, 0.0, 0.35 * tree.crown]), 0.75 * tree.crown, tree.colour)
    view.disc(top + np.array([0.2, 0.2, 0.6 * tree.crown]), 0.45 * tree.crown, _scaled(tree.colour, 1.15))


def _post(view: _View, foot: FloatArray, low: float, high: float, radius: float, colour: Colour) -> None:
    """A vertical post that always shows its full width to the camera."""
    sight = foot - view.eye[:2]
    across = radius * np.array([-sight[1], sight[0]]) / max(float(np.hypot(*sight)), 1e-6)
    a, b = foot - across, foot + across
    view.polygon(np.array([[*a, low], [*b, low], [*b, high], [*a, high]]), colour)


def _head_tasks(view: _View, heads: Sequence[SignalHead], lights: dict[tuple[int, int], str]) -> list[_Task]:
    tasks = []
    for head in heads:
        colour = lights.get((head.node, head.group))
        distance = float(np.hypot(*(head.position[:2] - view.eye[:2])))
        if colour is not None and distance < 120.0 and view.in_sight(head.position[None]):
            tasks.append(_Task(distance, partial(_draw_head, view, head, colour)))
    return tasks


def _draw_head(view: _View, head: SignalHead, lit: str) -> None:
    """A signal head with its pole; the lamps are larger than real ones, so that they survive a 448-pixel tile."""
    steel = (64, 66, 70)
    _post(view, head.foot, 0.0, head.position[2] + 0.9, 0.11, steel)
    a = np.array([*head.foot, head.position[2] + 0.75])
    b = np.array([*head.position[:2], head.position[2] + 0.75])
    up = np.array([0.0, 0.0, 0.16])
    view.polygon(np.array([a, b, b + up, a + up]), steel)
    facing = np.array([np.cos(head.facing), np.sin(head.facing)])
    across = 0.42 * np.array([-facing[1], facing[0]])
    left, right = head.position[:2] - across, head.position[:2] + across
    low, high = head.position[2] - 1.05, head.position[2] + 1.05
    view.polygon(np.array([[*left, low], [*right, low], [*right, high], [*left, high]]), (22, 24, 26))
    if facing @ (view.eye[:2] - head.position[:2]) <= 0.0:
        return
    for place, colour in enumerate(_LAMP_ORDER):
        centre = head.position + np.array([*(0.05 * facing), 0.66 - 0.66 * place])
        if colour == lit:
            view.disc(centre, 0.33, _scaled(_LAMPS[colour], 0.75))
            view.disc(centre, 0.27, _LAMPS[colour])
        else:
            view.disc(centre, 0.25, _scaled(_LAMPS[colour], 0.2))


def _agent_tasks(view: _View, agents: Sequence[Agent], time: float) -> list[_Task]:
    tasks = []
    for agent in agents:
        corners = box_corners(agent.pose, agent.length, agent.width)
        if not view.in_sight(np.column_stack([corners, np.full(4, 1.0)])):
            continue
        if agent.kind == "pedestrian":
            tasks.append(_Task(_distance_to(view, corners), partial(_draw_pedestrian, view, agent, time)))
        else:
            tasks.append(_Task(_distance_to(view, corners), partial(_draw_vehicle, view, agent)))
    return tasks


def _draw_vehicle(view: _View, agent: Agent) -> None:
    body = box_corners(agent.pose, agent.length, agent.width)
    shadow = box_corners(agent.pose, agent.length + 0.3, agent.width + 0.3)
    view.polygon(np.column_stack([shadow, np.full(4, 0.01)]), (40, 41, 44))
    truck = agent.height > 2.8
    waist = (0.9 if truck else 0.58) * agent.height
    paint = agent.colour
    view.box(body, 0.28, waist, paint, _scaled(paint, 1.1))
    forward = np.array([np.cos(agent.pose[2]), np.sin(agent.pose[2])])
    faces = visible_faces(body, view.eye)
    for face in faces:
        if face in (1, 3):  # the long sides: wheels
            for start in (0.1, 0.7):
                view.on_face(body, face, (start, start + 0.17), (0.0, 0.62), (20, 20, 22))
    cabin_pose = agent.pose.copy()
    if truck:
        for face in faces:
            if face == 0:
                view.on_face(body, face, (0.08, 0.92), (1.5, 2.4), (44, 54, 66))
    else:
        cabin_pose[:2] -= 0.06 * agent.length * forward
        cabin = box_corners(cabin_pose, 0.62 * agent.length, 0.86 * agent.width)
        view.box(cabin, waist, 0.95 * agent.height, (46, 56, 68))
        roof = box_corners(cabin_pose, 0.5 * agent.length, 0.8 * agent.width)
        view.box(roof, 0.93 * agent.height, agent.height, paint, _scaled(paint, 1.15))
    lamp = 0.42 * agent.height
    for face in faces:
        if face == 2:
            colour = (255, 40, 30) if agent.braking else (140, 22, 22)
            for span in ((0.04, 0.24), (0.76, 0.96)):
                view.on_face(body, face, span, (lamp, lamp + 0.22), colour)
            view.on_face(body, face, (0.38, 0.62), (0.42, 0.56), (228, 226, 210))
        elif face == 0:
            for span in ((0.05, 0.24), (0.76, 0.95)):
                view.on_face(body, face, span, (lamp, lamp + 0.2), (250, 246, 220))


def _draw_pedestrian(view: _View, agent: Agent, time: float) -> None:
    x, y, heading = agent.pose
    forward = np.array([np.cos(heading), np.sin(heading)])
    moving = bool(np.hypot(*agent.velocity) > 0.1)
    swing = 0.26 * np.sin(2.0 * np.pi * 0.9 * time + 7.0 * x) if moving else 0.06
    for side in (1.0, -1.0):
        _post(view, np.array([x, y]) + side * swing * forward, 0.0, 0.86, 0.1, (44, 46, 58))
    _post(view, np.array([x, y]), 0.8, 1.45, 0.25, agent.colour)
    view.disc(np.array([x, y, 1.58]), 0.14, (214, 168, 138))
    view.disc(np.array([x, y, 1.65]), 0.12, (60, 44, 34))
