"""Writes a drive as an OpenScene log: a pickle of 2 Hz frames that NAVSIM's SceneLoader reads, and its images."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from navsim_recogdrive.observation import DRIVING_COMMANDS
from navsim_recogdrive.world.camera import CAMERA_MOUNTS, Camera
from navsim_recogdrive.world.geometry import to_local, wrap_angle
from navsim_recogdrive.world.render import render
from navsim_recogdrive.world.road_network import LOCATIONS, RoadNetwork
from navsim_recogdrive.world.scenery import scenery_of
from navsim_recogdrive.world.simulate import FRAME_INTERVAL_S, Drive, Frame, network_of

PICKLE_PROTOCOL = 4
_EPOCH_US = 1_767_225_600_000_000
PARTIAL_FOLDER = ".partial"
"""Unfinished logs live here, because NAVSIM reads every file it finds in a split's folder."""


def token(*parts: object) -> str:
    """A 16-digit hexadecimal token (NAVSIM takes 17 digits for a synthetic second-stage scene)."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def log_path(root: Path, split: str, log_name: str) -> Path:
    """Where a log's pickle lies."""
    return root / "navsim_logs" / split / f"{log_name}.pkl"


def log_frames(
    log_name: str, number: int, drive: Drive, network: RoadNetwork, image_size: tuple[int, int]
) -> list[dict[str, Any]]:
    """The frames of a log as NAVSIM expects them; boxes and velocities are in the ego's rear-axle frame."""
    calibrations = {name: _calibration(Camera(name, image_size)) for name in CAMERA_MOUNTS}
    frames = []
    for index, frame in enumerate(drive.frames):
        frame_token = token(log_name, "frame", index)
        x, y, heading = (float(value) for value in frame.ego_pose)
        frames.append(
            {
                "token": frame_token,
                "frame_idx": index,
                "timestamp": _EPOCH_US + number * 1_000_000_000 + round(index * FRAME_INTERVAL_S * 1e6),
                "log_name": log_name,
                "log_token": token(log_name, "log"),
                "scene_name": log_name,
                "scene_token": token(log_name, "scene"),
                "map_location": LOCATIONS[drive.location].name,
                "roadblock_ids": [str(block) for block in frame.roadblocks],
                "traffic_lights": _traffic_lights(frame, network),
                "ego2global_translation": np.array([x, y, 0.0]),
                "ego2global_rotation": np.array([np.cos(heading / 2.0), 0.0, 0.0, np.sin(heading / 2.0)]),
                "ego_dynamic_state": [float(value) for value in frame.ego_motion],
                "driving_command": np.array([int(name == frame.command) for name in DRIVING_COMMANDS]),
                "lidar_path": f"{log_name}/MergedPointCloud/{frame_token}.pcd",
                "cams": {
                    name: {"data_path": f"{log_name}/{name}/{frame_token}.jpg", **calibration}
                    for name, calibration in calibrations.items()
                },
                "anns": _annotations(log_name, frame),
            }
        )
    return frames


def _calibration(camera: Camera) -> dict[str, Any]:
    return {
        "sensor2lidar_rotation": camera.rotation,
        "sensor2lidar_translation": camera.translation,
        "cam_intrinsic": camera.intrinsics,
        "distortion": np.zeros(5),
    }


def _traffic_lights(frame: Frame, network: RoadNetwork) -> list[tuple[int, bool]]:
    return [
        (connector.id, frame.lights[connector.node, connector.signal_group] == "red")
        for connector in network.connectors.values()
        if connector.signal_group is not None and (connector.node, connector.signal_group) in frame.lights
    ]


def _annotations(log_name: str, frame: Frame) -> dict[str, Any]:
    agents = frame.agents
    boxes = np.zeros((len(agents), 7), dtype=np.float32)
    velocities = np.zeros((len(agents), 3), dtype=np.float32)
    still = np.array([0.0, 0.0, frame.ego_pose[2]])
    for i, agent in enumerate(agents):
        boxes[i, :2] = to_local(agent.pose[:2], frame.ego_pose)
        boxes[i, 2] = agent.height / 2.0
        boxes[i, 3:6] = agent.length, agent.width, agent.height
        boxes[i, 6] = wrap_angle(agent.pose[2] - frame.ego_pose[2])
        velocities[i, :2] = to_local(agent.velocity, still)
    return {
        "gt_boxes": boxes,
        "gt_names": np.array([agent.kind for agent in agents], dtype="<U16"),
        "gt_velocity_3d": velocities,
        "instance_tokens": [token(log_name, agent.track, frame.time) for agent in agents],
        "track_tokens": [token(log_name, agent.track) for agent in agents],
    }


def write_log(
    root: Path,
    split: str,
    log_name: str,
    number: int,
    drive: Drive,
    seed: int,
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    jpeg_quality: int,
) -> None:
    """Render and write one log. The pickle is put in place last: a log whose pickle exists is complete."""
    partial = root / PARTIAL_FOLDER / log_name
    images = root / "sensor_blobs" / split / log_name
    for leftover in (partial, images):
        shutil.rmtree(leftover, ignore_errors=True)
    network = network_of(drive.location, seed)
    frames = log_frames(log_name, number, drive, network, image_size)
    scenery = scenery_of(drive.location, seed)
    for name in cameras:
        camera = Camera(name, image_size)
        (partial / name).mkdir(parents=True)
        for frame, entry in zip(drive.frames, frames, strict=True):
            image = render(scenery, frame, camera)
            target = partial / name / Path(entry["cams"][name]["data_path"]).name
            _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
            target.write_bytes(encoded.tobytes())
    pickled = partial / "log.pkl"
    pickled.write_bytes(pickle.dumps(frames, protocol=PICKLE_PROTOCOL))
    final = log_path(root, split, log_name)
    final.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True)
    for name in cameras:
        os.replace(partial / name, images / name)
    os.replace(pickled, final)
    shutil.rmtree(partial)
