"""Known points of the world land on the right pixels: the world's renderer, which draws by other code, is witness."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from random_observation import random_observation

from navsim_recogdrive.pretraining.projection import project_points
from navsim_recogdrive.pretraining.records import CameraView
from navsim_recogdrive.viz.camera import nuplan_front_camera
from navsim_recogdrive.viz.log_frames import log_view
from navsim_recogdrive.viz.projection import NEAREST_M, clip_polygon, project, project_polygons
from navsim_recogdrive.viz.scene_view import CameraImage, InvalidView
from navsim_recogdrive.world.camera import Camera
from navsim_recogdrive.world.geometry import to_global
from navsim_recogdrive.world.render import render
from navsim_recogdrive.world.scenery import PIXELS_PER_METRE, Building, Ground, Scenery
from navsim_recogdrive.world.simulate import Frame

EGO = np.array([664123.4, 3996210.7, 0.83])
"""Of the ego on the map; the projection knows nothing of it."""

GREY = 60


def frame() -> Frame:
    return Frame(0.0, EGO, np.zeros(4), "straight", [], [], {})


def ground(marks: list[tuple[float, float]] = ()) -> Ground:  # type: ignore[assignment]
    """Grey ground with a white square of 0.3 m round each point of the ego frame."""
    side, half = 1600, 80.0
    corner = EGO[:2] - half
    level = np.full((side, side, 3), GREY, dtype=np.uint8)
    for mark in marks:
        # The middle of the picture element that holds the point, so that the square lies evenly round it.
        x, y = (to_global(np.array(mark), EGO) - corner) * PIXELS_PER_METRE
        level[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    levels = [level]
    for _ in range(2):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return Ground(levels, corner)


def middle_of_element(mark: tuple[float, float]) -> np.ndarray:
    """The point of the ego frame in the middle of the square that stands for ``mark``."""
    corner = EGO[:2] - 80.0
    at = np.floor((to_global(np.array(mark), EGO) - corner) * PIXELS_PER_METRE) + 0.5
    offset = at / PIXELS_PER_METRE + corner - EGO[:2]
    cos, sin = np.cos(EGO[2]), np.sin(EGO[2])
    return np.array([cos * offset[0] + sin * offset[1], -sin * offset[0] + cos * offset[1]])


def seen(camera: Camera, image: np.ndarray) -> CameraImage:
    return CameraImage(image, camera.intrinsics, camera.rotation, camera.translation)


@pytest.mark.parametrize("name", ["CAM_F0", "CAM_L0", "CAM_R0"])
@pytest.mark.parametrize(("distance", "side"), [(8.0, -0.35), (13.0, 0.05), (21.0, 0.4)])
def test_marks_on_the_road_are_where_the_renderer_draws_them(name: str, distance: float, side: float) -> None:
    camera = Camera(name)
    forward, right = camera.rotation[:2, 2], camera.rotation[:2, 0]
    mark = tuple(camera.translation[:2] + distance * (forward + side * right))
    image = render(Scenery(ground([mark]), [], [], []), frame(), camera)
    light = np.maximum(image.sum(-1) - 3.0 * (GREY + 20), 0.0)
    light[: int(camera.intrinsics[1, 2]) + 60] = 0.0  # the sky and the haze
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    found = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    pixels = project(np.array([[*middle_of_element(mark), 0.0]]), seen(camera, image))[0]
    assert np.abs(pixels - found).max() < 0.5


def log_camera(image: np.ndarray, intrinsics: np.ndarray) -> CameraImage:
    """The camera of a view of a log's frame that is calibrated so."""
    camera = Camera("CAM_F0")
    calibration = {
        "cam_intrinsic": intrinsics,
        "sensor2lidar_rotation": camera.rotation,
        "sensor2lidar_translation": camera.translation,
        "distortion": np.zeros(5),
    }
    boxes = {"gt_boxes": np.zeros((0, 7)), "gt_names": [], "gt_velocity_3d": np.zeros((0, 3))}
    frame = {"token": "a", "log_name": "b", "anns": boxes, "cams": {"CAM_F0": calibration}}
    view = log_view(frame, replace(random_observation(0), front_image=image), None)
    assert view.camera is not None
    return view.camera


@pytest.mark.parametrize("size", [(1920, 1080), (960, 540), (854, 480), (3840, 2160)])
@pytest.mark.parametrize("calibrated", ["full size", "own size"])
def test_a_smaller_image_needs_a_smaller_calibration(size: tuple[int, int], calibrated: str) -> None:
    """A log calibrates 1920x1080, and says nothing of copies that are smaller; the world's logs do."""
    camera = Camera("CAM_F0", size)
    given = Camera("CAM_F0") if calibrated == "full size" else camera
    mark = (12.0, -2.0)
    image = render(Scenery(ground([mark]), [], [], []), frame(), camera)
    seen_by_log = log_camera(image, given.intrinsics)
    light = np.maximum(image.sum(-1) - 3.0 * (GREY + 20), 0.0)
    light[: int(camera.intrinsics[1, 2]) + 60 * size[0] // 1920] = 0.0
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    found = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    pixels = project(np.array([[*middle_of_element(mark), 0.0]]), seen_by_log)[0]
    assert np.abs(pixels - found).max() < 0.5 * max(size[0] / 1920, 1.0)


@pytest.mark.parametrize("size", [(1440, 1080), (1920, 1000), (448, 448)])
def test_a_cut_image_is_refused(size: tuple[int, int]) -> None:
    width, height = size
    with pytest.raises(InvalidView, match=rf"image is {width}x{height}.*expected that, or whole images made smaller"):
        log_camera(np.zeros((height, width, 3), dtype=np.uint8), Camera("CAM_F0").intrinsics)
    with pytest.raises(InvalidView, match=r"principal point of its calibration \(700, 400\)"):
        log_camera(np.zeros((540, 960, 3), dtype=np.uint8), np.array([[900.0, 0, 700], [0, 900, 400], [0, 0, 1]]))


@pytest.mark.parametrize("height", [3.0, 7.5])
def test_corners_above_the_road_are_where_the_renderer_draws_them(height: float) -> None:
    camera = Camera("CAM_F0")
    face = np.array([[24.0, 3.0], [24.0, -2.0], [30.0, -2.0], [30.0, 3.0]])
    building = Building(to_global(face, EGO), height, (250, 20, 20), 0)
    image = render(Scenery(ground(), [building], [], []), frame(), camera)
    red = (image[..., 0] > 100) & (image[..., 1] < 60)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    corners = project(np.array([[24.0, 3.0, height], [24.0, -2.0, 0.0]]), seen(camera, image))
    # The first and last red pixels hold the edges; their middles lie up to half a pixel inside.
    np.testing.assert_allclose(corners[0], [columns[0], rows[0]], atol=1.0)
    np.testing.assert_allclose(corners[1], [columns[-1], rows[-1]], atol=1.0)


def test_lens_distortion_is_opencvs() -> None:
    rng = np.random.default_rng(0)
    camera = Camera("CAM_F0")
    distortion = np.array([-0.356123, 0.172545, -0.00213, 0.000464, -0.05231])  # of the size of nuPlan's cameras
    image = np.zeros((1080, 1920, 3), dtype=np.uint8)
    ours = CameraImage(image, camera.intrinsics, camera.rotation, camera.translation, distortion)
    theirs = CameraView(
        "front", "a.jpg", 1920, 1080, camera.intrinsics, camera.rotation, camera.translation, distortion
    )
    local = np.column_stack([rng.uniform(-4, 4, 50), rng.uniform(-1, 2, 50), rng.uniform(6, 60, 50)])
    points = local @ camera.rotation.T + camera.translation
    np.testing.assert_allclose(project(points, ours), project_points(local, theirs), atol=1e-6)


def test_what_the_camera_cannot_see_has_no_pixel() -> None:
    camera = Camera("CAM_F0")
    image = np.zeros((1080, 1920, 3), dtype=np.uint8)
    behind = camera.translation + camera.rotation[:, 2] * np.array([[NEAREST_M - 0.01], [-5.0]])
    assert np.isnan(project(behind, seen(camera, image))).all()
    folded = CameraImage(image, camera.intrinsics, camera.rotation, camera.translation, [-0.4, 0, 0, 0, 0])
    beside = camera.translation + camera.rotation @ np.array([20.0, 0.0, 4.0])
    assert np.isnan(project(beside[None], folded)).all(), "the lens's polynomial would fold it back into the image"


def test_polygons_are_cut_at_the_near_plane() -> None:
    points = np.array([[-1.0, 1.0, -2.0], [1.0, 1.0, -2.0], [1.0, 1.0, 4.0], [-1.0, 1.0, 4.0]])
    clipped = clip_polygon(points)
    assert len(clipped) == 4
    assert clipped[:, 2].min() == pytest.approx(NEAREST_M)
    assert clipped[:, 2].max() == 4.0
    assert clip_polygon(points - [0, 0, 9]).shape == (0, 3)
    camera = nuplan_front_camera(np.zeros((540, 960, 3), dtype=np.uint8))
    road = np.array([[-5.0, -1.0, 0.0], [20.0, -1.0, 0.0], [20.0, 1.0, 0.0], [-5.0, 1.0, 0.0]])
    ahead = road + np.array([10.0, 0.0, 0.0])
    found = project_polygons(np.stack([road - np.array([30, 0, 0]), ahead, road]), camera)
    assert [depth for depth, _ in found] == pytest.approx([30 - 1.7, 20 - 1.7]), "the first is behind the camera"
    np.testing.assert_allclose(found[0][1], project(ahead, camera))
    cut = found[1][1]
    assert len(cut) == 4
    assert np.abs(cut[:, 1]).max() > 540, "it reaches below the picture"


def test_the_assumed_camera_is_the_worlds() -> None:
    """Nobody measured another one: the world's front camera is nuPlan's, rounded."""
    camera = Camera("CAM_F0", (960, 540))
    assumed = nuplan_front_camera(np.zeros((540, 960, 3), dtype=np.uint8))
    np.testing.assert_allclose(assumed.intrinsics, camera.intrinsics)
    np.testing.assert_allclose(assumed.rotation, camera.rotation, atol=1e-12)
    np.testing.assert_allclose(assumed.translation, camera.translation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": np.ones((3, 3))}, "not a rotation matrix"),
        ({"intrinsics": np.eye(2)}, r"camera intrinsics must have shape \[3, 3\], found \[2, 2\]"),
        ({"translation": [0.0, np.nan, 0.0]}, "camera translation holds values that are not finite"),
        ({"image": np.zeros((4, 4))}, "must be uint8 RGB"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(change: dict, message: str) -> None:
    camera = Camera("CAM_F0")
    given = {
        "image": np.zeros((108, 192, 3), dtype=np.uint8),
        "intrinsics": camera.intrinsics,
        "rotation": camera.rotation,
        "translation": camera.translation,
    }
    with pytest.raises(InvalidView, match=message):
        CameraImage(**{**given, **change})
