"""Images: things appear where the log's calibration says they are."""

from __future__ import annotations

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from navsim_recogdrive.world.camera import CAMERA_MOUNTS, CAMERA_SETS, Camera
from navsim_recogdrive.world.geometry import to_global
from navsim_recogdrive.world.openscene import log_frames
from navsim_recogdrive.world.render import render
from navsim_recogdrive.world.scenery import scenery_of
from navsim_recogdrive.world.simulate import Agent, Drive, Frame, network_of

SIZE = (960, 540)
MAGENTA = (255, 0, 255)


def project(calibration: dict, points: np.ndarray) -> np.ndarray:
    """Ego-frame points [N, 3] to pixels, by the rule NAVSIM's own visualisation uses."""
    camera = (points - calibration["sensor2lidar_translation"]) @ calibration["sensor2lidar_rotation"]
    assert (camera[:, 2] > 0.0).all()
    homogeneous = camera @ calibration["cam_intrinsic"].T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def frame_at(pose: np.ndarray, agents: list[Agent] = (), colour: str = "red") -> Frame:
    lights = {(node, group): colour for node in network_of(0, 0).junctions for group in (0, 1)}
    return Frame(0.0, pose, np.zeros(4), "straight", [1], list(agents), lights)


def before_stop_line(distance: float):
    """(pose of an ego ``distance`` metres before a stop line, polygon of the line)."""
    network = network_of(0, 0)
    (node, arm), area = next(iter(network.stop_lines.items()))
    lane = next(v for v in network.lanes.values() if (v.end_node, v.end_arm, v.index) == (node, arm, 1))
    return lane.line.pose(lane.line.length - distance), area


def calibration(name: str = "CAM_F0", frame: Frame | None = None) -> dict:
    frame = frame or frame_at(np.array([*network_of(0, 0).location.origin, 0.0]))
    [entry] = log_frames("log", 0, Drive(0, [frame]), network_of(0, 0), SIZE)
    return entry["cams"][name]


@pytest.mark.parametrize(("name", "yaw"), [("CAM_F0", 0.0), ("CAM_L0", 55.0), ("CAM_R0", -55.0), ("CAM_B0", 180.0)])
def test_a_vehicle_appears_where_the_logged_box_projects(name, yaw):
    pose, _ = before_stop_line(40.0)
    ahead = 14.0 * np.array([np.cos(np.radians(yaw)), np.sin(np.radians(yaw))])
    centre = to_global(ahead, pose)
    agent = Agent("a", "vehicle", np.array([*centre, pose[2]]), 4.5, 1.9, 1.6, np.zeros(2), MAGENTA, False)
    frame = frame_at(pose, [agent])
    image = render(scenery_of(0, 0), frame, Camera(name, SIZE))
    [entry] = log_frames("log", 0, Drive(0, [frame]), network_of(0, 0), SIZE)
    x, y, _, _, _, height, _ = entry["anns"]["gt_boxes"][0].astype(float)
    [(u, v)] = project(entry["cams"][name], np.array([[x, y, 0.45 * height]]))
    r, g, b = image[round(v), round(u)].astype(int)
    assert min(r, b) > 80
    assert g < 40
    # And nowhere above its roof or below the road in front of it.
    magenta = np.argwhere((image[..., 0] > 80) & (image[..., 2] > 80) & (image[..., 1] < 30))
    assert abs(magenta.mean(axis=0) - [v, u]).max() < 25


def test_the_painted_ground_lies_where_the_map_says():
    pose, area = before_stop_line(14.0)
    image = render(scenery_of(0, 0), frame_at(pose), Camera("CAM_F0", SIZE)).astype(int)
    cos, sin = np.cos(pose[2]), np.sin(pose[2])

    def brightness(point: np.ndarray) -> int:
        east, north = point - pose[:2]
        local = np.array([[east * cos + north * sin, -east * sin + north * cos, 0.0]])
        [(u, v)] = project(calibration(), local)
        return int(image[round(v), round(u)].mean())

    middle = np.array([area.centroid.x, area.centroid.y])
    forward = np.array([cos, sin])
    assert brightness(middle) > 170
    assert brightness(middle - 1.0 * forward) < 110
    assert brightness(middle + 1.0 * forward) < 110


def test_the_light_ahead_shows_its_colour():
    pose, _ = before_stop_line(25.0)
    counts = {}
    for colour in ("red", "amber", "green"):
        image = render(scenery_of(0, 0), frame_at(pose, colour=colour), Camera("CAM_F0", SIZE)).astype(int)[:275]
        r, g, b = image[..., 0], image[..., 1], image[..., 2]
        counts[colour] = (
            int(((r > 200) & (g < 80) & (b < 80)).sum()),
            int(((r > 200) & (g > 150) & (b < 60)).sum()),
            int(((r < 90) & (g > 200) & (b < 170)).sum()),
        )
    for place, colour in enumerate(("red", "amber", "green")):
        assert counts[colour][place] > 20, counts
        assert sum(counts[colour]) == counts[colour][place], counts


def test_brake_lights_and_pedestrians_can_be_told():
    pose, _ = before_stop_line(40.0)
    ahead = np.array([*to_global(np.array([12.0, 0.0]), pose), pose[2]])
    car = Agent("a", "vehicle", ahead, 4.5, 1.9, 1.6, np.zeros(2), (40, 40, 40), False)
    plain = render(scenery_of(0, 0), frame_at(pose, [car], "green"), Camera("CAM_F0", SIZE)).astype(int)
    braking = render(scenery_of(0, 0), frame_at(pose, [replace(car, braking=True)], "green"), Camera("CAM_F0", SIZE))

    def bright_red(image: np.ndarray) -> int:
        return int(((image[..., 0] > 230) & (image[..., 1] < 70) & (image[..., 2] < 60)).sum())

    assert bright_red(plain) == 0
    assert bright_red(braking.astype(int)) > 50
    person = Agent("p", "pedestrian", ahead, 0.6, 0.6, 1.75, np.zeros(2), MAGENTA, False)
    image = render(scenery_of(0, 0), frame_at(pose, [person]), Camera("CAM_F0", SIZE)).astype(int)
    assert 400 < ((image[..., 0] > 200) & (image[..., 1] < 40) & (image[..., 2] > 200)).sum() < 6000


def test_what_is_nearer_hides_what_is_farther():
    pose, _ = before_stop_line(40.0)

    def agent(distance: float, paint: tuple[int, int, int]) -> Agent:
        centre = np.array([*to_global(np.array([distance, 0.0]), pose), pose[2]])
        return Agent("a", "vehicle", centre, 4.5, 1.9, 1.6, np.zeros(2), paint, False)

    far, near = agent(24.0, MAGENTA), agent(12.0, (0, 255, 255))
    for agents in ([far, near], [near, far]):
        image = render(scenery_of(0, 0), frame_at(pose, agents), Camera("CAM_F0", SIZE)).astype(int)
        body = (image[..., 0] > 100) & (image[..., 1] < 40) & (image[..., 2] > 100)
        assert body.sum() < 60


def test_all_eight_cameras_render_and_look_different_ways():
    pose, _ = before_stop_line(30.0)
    images = [render(scenery_of(0, 0), frame_at(pose), Camera(name, (320, 180))) for name in CAMERA_MOUNTS]
    assert all(image.shape == (180, 320, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 8
    assert CAMERA_SETS["front"] == ("CAM_F0",)


def test_calibration_is_a_rotation_and_scales_with_the_image():
    for name in CAMERA_MOUNTS:
        rotation = calibration(name)["sensor2lidar_rotation"]
        assert rotation @ rotation.T == pytest.approx(np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1.0)
    full, half = Camera("CAM_F0").intrinsics, Camera("CAM_F0", SIZE).intrinsics
    assert full[0, 0] == 1545.0
    assert half[:2] == pytest.approx(0.5 * full[:2])


def test_images_on_disk_are_those_rendered(world):
    [path, *_] = sorted(world.glob("navsim_logs/test/*.pkl"))
    frame = pickle.loads(path.read_bytes())[5]
    image = cv2.imread(str(world / "sensor_blobs" / "test" / frame["cams"]["CAM_F0"]["data_path"]))
    assert image.shape == (270, 480, 3)
    # Blue sky above (OpenCV reads BGR), grey road below.
    assert image[2, :, 0].mean() > image[2, :, 2].mean() + 20
    assert image[-20:, 180:300].std(axis=2).mean() < 25
