"""Finds, before caching starts, the scenes whose images NAVSIM's scene loader would stop at.

The loader opens a scene's images before any builder is called, and an error there ends the run without naming a scene.
So each image is decoded before: a JPEG at an eighth of its size, which reads all of it in a quarter of the time (5 ms
of a core where a 1920x1080 image takes 22 ms) and stops at the damage at which NAVSIM's loader does.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from navsim_recogdrive.agents.compat import SensorConfig, load_split
from navsim_recogdrive.agents.failed_scenes import Failure
from navsim_recogdrive.agents.host import HostRun

logger = logging.getLogger(__name__)

_WORKERS = 16  # threads: the time goes into reading and decoding files, which release the interpreter's lock
_LISTED = 10
_LOGS_TRIED = 200
_IMAGES = (".jpg", ".jpeg", ".png")

CACHED = ""
"""What is said of a scene that is cached."""


class UnreadableImages(OSError):
    """Images of a split cannot be read, and caching cannot leave their scenes out."""


@dataclass(frozen=True)
class _Scene:
    """What NAVSIM opens of one scene: its image files by camera, ``None`` where the scene's data name no file."""

    log: str
    token: str
    images: tuple[tuple[str, Path | None], ...]

    def problem(self) -> str | None:
        """What is wrong with the first image that cannot be read; ``None`` if all can."""
        for camera, path in self.images:
            reason = f"the scene's data name no image of {camera}" if path is None else image_problem(path)
            if reason is not None:
                return reason
        return None


def image_problem(path: Path) -> str | None:
    """Why the image file ``path`` cannot be read, naming it; ``None`` if it can."""
    try:
        with Image.open(path) as image:
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # damaged headers raise whatever their bytes make Pillow raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        return f"{path}: {type(error).__name__}: {reason}"
    return None


def scenes_left_out(
    host: HostRun, sensors: SensorConfig, state: Callable[[str, str], str | None], force: bool
) -> list[Failure]:
    """Look at the images of all scenes of a split that are going to be cached.

    Args:
        host: says where logs and images are, and which scenes the split has.
        sensors: which cameras of which frames are read.
        state: of a log and a token, :data:`CACHED` if the scene is cached and is left alone, ``None`` if it is not,
            or why another run leaves it out.
        force: scenes are computed whatever their state, so none can be left out.

    Returns:
        The scenes that NAVSIM would stop at, with their reasons, and those that another run leaves out.

    Raises:
        UnreadableImages: if there is one that NAVSIM would stop at with ``force``, or if no image of the split can be
            read.
    """

    def look(scene: _Scene) -> tuple[str | None, str | None]:
        found = None if force else state(scene.log, scene.token)
        return found, None if found == CACHED else scene.problem()

    looked_at, left_alone, bad, elsewhere = 0, 0, [], []
    with ThreadPoolExecutor(_WORKERS) as pool:
        for scenes in _scenes_by_log(host, sensors):
            for scene, (found, problem) in zip(scenes, pool.map(look, scenes), strict=True):
                left_alone += found == CACHED
                looked_at += found != CACHED
                if problem is not None:
                    bad.append(Failure(scene.log, scene.token, problem))
                elif found:
                    elsewhere.append(Failure(scene.log, scene.token, found, ours=False))
    if force and bad:
        raise UnreadableImages(
            f"NAVSIM would stop at {len(bad)} of {looked_at} scenes, whose images cannot be read:\n{_listing(bad)}\n"
            "Repair them, or set force_cache_computation=false: these scenes are then left out"
        )
    if bad and len(bad) == looked_at and not left_alone and not _holds_image(host):
        raise UnreadableImages(
            f"the images of none of the {looked_at} scenes to cache can be read, nor any other of the split:\n"
            f"{_listing(bad)}\nCheck OPENSCENE_DATA_ROOT, its sensor_blobs folder and train_test_split"
        )
    if bad:
        logger.warning(
            "The images of %d of %d scenes to cache cannot be read; these scenes are left out:\n%s",
            *(len(bad), looked_at, _listing(bad[:_LISTED])),
        )
        if len(bad) > _LISTED:
            logger.warning("and %d more; the end of the run lists all", len(bad) - _LISTED)
    return bad + elsewhere


def _holds_image(host: HostRun) -> bool:
    """Whether the split's folders of images hold one that can be read; those of other processes' logs count."""
    for root in (_blobs(host), host.synthetic_sensor_path):
        if root is None or not Path(root).is_dir():
            continue
        for log in islice(sorted(Path(root).iterdir()), _LOGS_TRIED):
            files = (Path(folder) / name for folder, _, names in os.walk(log) for name in sorted(names))
            first = next((path for path in files if path.suffix.lower() in _IMAGES), None)
            if first is not None and image_problem(first) is None:
                return True
    return False


def _blobs(host: HostRun) -> Path:
    return Path(str(host.original_sensor_path or host.sensor_blobs_path))


def _listing(failures: Sequence[Failure]) -> str:
    return "\n".join(f"  {one.scene}: {one.reason}" for one in failures)


def _scenes_by_log(host: HostRun, sensors: SensorConfig) -> Iterator[list[_Scene]]:
    """The scenes of a split, one log after the other in memory, unless the choice from one depends on the others."""
    if host.scene_filter is None or host.navsim_log_path is None:
        return
    logs = Path(host.navsim_log_path)
    names = sorted(path.stem for path in logs.glob("*.pkl"))
    if host.scene_filter.log_names is not None:
        names = sorted(set(names) & set(host.scene_filter.log_names))
    together = host.scene_filter.max_scenes is not None or getattr(host.scene_filter, "include_synthetic_scenes", False)
    parts = [names] if together else [[name] for name in names]
    for part in tqdm(parts, desc="Looking at images", unit="log"):
        yield list(_scenes(host, logs, part, sensors))


def _scenes(host: HostRun, logs: Path, names: Sequence[str], sensors: SensorConfig) -> Iterator[_Scene]:
    scene_filter = host.scene_filter
    synthetic = None if host.synthetic_scenes_path is None else Path(host.synthetic_scenes_path)
    with redirect_stderr(io.StringIO()):  # NAVSIM's progress bar, one per call
        loader = load_split(logs, scene_filter, names, synthetic)
    present = scene_filter.num_history_frames - 1
    blobs = _blobs(host)
    for token, frames in loader.scene_frames_dicts.items():
        cameras = [frame["cams"] for frame in frames]
        yield _Scene(frames[present]["log_name"], token, tuple(_images(cameras, sensors, blobs)))
    for token, (path, log) in getattr(loader, "synthetic_scenes", {}).items():
        with Path(path).open("rb") as file:
            content = pickle.load(file)  # as NAVSIM's own loader does
        cameras = [frame["camera_dict"] for frame in content["frames"]]
        yield _Scene(log, token, tuple(_images(cameras, sensors, Path(str(host.synthetic_sensor_path)))))


def _images(cameras: Sequence[dict[str, Any]], sensors: SensorConfig, blobs: Path) -> Iterator[tuple[str, Path | None]]:
    for index, frame in enumerate(cameras):
        read = sensors.get_sensors_at_iteration(index)
        for camera, description in frame.items():
            if camera.lower() in read:
                path = description.get("data_path")
                yield camera.upper(), None if path is None else blobs / path
