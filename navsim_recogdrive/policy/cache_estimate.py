"""What caching a split will cost, from a few timed samples."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from navsim_recogdrive.cache.identity import FOLDER
from navsim_recogdrive.observation import DRIVING_COMMANDS, HISTORY_POSES, POSE_INTERVAL_S, Observation
from navsim_recogdrive.policy.backbones import SharedBackbone, resolve_device

SCENES = {"navtrain": 103_288, "navtest": 12_146}
"""Scenes of NAVSIM's published splits."""

CAMERA_FOLDERS = {"front": "CAM_F0", "front_left": "CAM_L0", "front_right": "CAM_R0"}
"""Folders of a log's images in OpenScene's layout."""

_SPEED = 8.0  # metres per second, of the made-up past
_SMALL_FILES_BYTES = 3 * 4096  # ego, trajectory and token each take one block of a disk


class NoImages(FileNotFoundError):
    """A folder without images in OpenScene's layout."""


@dataclass(frozen=True)
class CacheEstimate:
    """Medians of the timed samples, per scene.

    Attributes:
        samples: scenes timed, after one that was not.
        read_s: reading and decoding the images.
        prepare_s: tiles and prompt.
        vlm_s: the VLM.
        write_s: compressing and writing to a file.
        scene_bytes: of all files of a scene.
        hidden_state: rows and columns.
    """

    samples: int
    read_s: float
    prepare_s: float
    vlm_s: float
    write_s: float
    scene_bytes: float
    hidden_state: tuple[int, int]

    @property
    def scene_s(self) -> float:
        """Seconds per scene of one process, in which one step follows the other."""
        return self.read_s + self.prepare_s + self.vlm_s + self.write_s

    def hours(self, scenes: int, processes: int) -> float:
        """Hours to cache ``scenes`` with ``processes``, each with a GPU of its own."""
        return scenes * self.scene_s / processes / 3600

    def disk_bytes(self, scenes: int) -> float:
        """Bytes of a cache of ``scenes``."""
        return scenes * self.scene_bytes


def estimate_cache(
    backbone: SharedBackbone, sensor_blobs: Path, folder: Path, samples: int, mode: str, device: str = "auto"
) -> CacheEstimate:
    """Time ``samples`` scenes from reading an image to a written file.

    Args:
        backbone: the VLM.
        sensor_blobs: a split's images, ``LOG/CAM_F0/*.jpg``.
        folder: a cache, or any other folder on its disk; holds one file for a while, below ``_recogdrive``.
        samples: scenes to time, from as many logs as there are.
        mode: how hidden states are stored, one of :data:`~navsim_recogdrive.cache.codec.MODES`.
        device: where ``backbone`` computes.

    Raises:
        NoImages: if there is no image in ``sensor_blobs``.
    """
    backbone.load()
    cuda = resolve_device(device).type == "cuda"
    times: list[list[float]] = []
    sizes, shape = [], (0, 0)
    found = list(sample_images(sensor_blobs, backbone.config.cameras, samples + 1))
    # Not in the cache's root, where NAVSIM would fail on it if this process were killed.
    path = folder / FOLDER / f"estimate.{uuid.uuid4().hex}.partial"
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for index, images in enumerate(tqdm(found, desc="Timing", unit="scene")):
            marks = [time.perf_counter()]
            observation = _observation(images, index)
            marks.append(time.perf_counter())
            inputs = backbone.prepare([observation])
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            rows = backbone.hidden_states_of(inputs)
            if cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            features = backbone.features_of(observation, inputs[0], rows[0], mode)
            with gzip.open(path, "wb", compresslevel=1) as file:
                pickle.dump(features, file)
            marks.append(time.perf_counter())
            times.append(list(np.diff(marks)))
            sizes.append(path.stat().st_size)
            shape = (rows.shape[1], rows.shape[2])
    finally:
        path.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # another process writes there too
                path.parent.rmdir()
    timed = times[1:] or times  # the first one warms up
    read, prepare, vlm, write = (statistics.median(column) for column in zip(*timed, strict=True))
    scene_bytes = statistics.mean(sizes) + _SMALL_FILES_BYTES
    return CacheEstimate(len(timed), read, prepare, vlm, write, scene_bytes, shape)


def sample_images(sensor_blobs: Path, cameras: tuple[str, ...], count: int) -> Iterator[dict[str, Path]]:
    """Images of ``count`` scenes, by camera, spread over the logs; a split's folder is not walked through.

    Raises:
        NoImages: if there is none.
    """
    logs = sorted(path for path in sensor_blobs.iterdir() if path.is_dir()) if sensor_blobs.is_dir() else []
    step = max(1, len(logs) // count)
    given = 0
    # Round after round through the chosen logs, another image each time.
    for turn in range(count):
        for log in logs[::step]:
            images = {camera: sorted((log / CAMERA_FOLDERS[camera]).glob("*.[jp][pn]g")) for camera in cameras}
            if any(len(paths) <= turn for paths in images.values()):
                continue
            yield {camera: paths[turn] for camera, paths in images.items()}
            given += 1
            if given == count:
                return
    if not given:
        raise NoImages(
            f"no images in {sensor_blobs}: expected LOG/{CAMERA_FOLDERS[cameras[0]]}/*.jpg, as in OpenScene's "
            "sensor_blobs/trainval"
        )


def _observation(images: dict[str, Path], index: int) -> Observation:
    """Straight ahead at one speed: the prompt has about the length of a real one."""
    past = np.zeros((HISTORY_POSES, 3), dtype=np.float32)
    past[:, 0] = np.arange(1 - HISTORY_POSES, 1) * _SPEED * POSE_INTERVAL_S
    pixels = {f"{camera}_image": np.array(Image.open(path).convert("RGB")) for camera, path in images.items()}
    return Observation(
        **{"front_image": None, **pixels},
        past_poses=past,
        velocity=np.array([_SPEED, 0.0], dtype=np.float32),
        acceleration=np.zeros(2, dtype=np.float32),
        driving_command=np.eye(len(DRIVING_COMMANDS), dtype=np.float32)[index % len(DRIVING_COMMANDS)],
    )
