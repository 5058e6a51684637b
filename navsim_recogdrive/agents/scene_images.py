"""Finds, before caching starts, the scenes whose images NAVSIM's scene loader would stop at.

The loader opens a scene's images before any builder is called, and an error there ends the run without naming a scene.
Here each image is looked at as far as that is cheap: its header, and the mark at its end that a file cut off lacks.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from navsim_recogdrive.agents.compat import SensorConfig, load_split
from navsim_recogdrive.agents.failed_scenes import Failure
from navsim_recogdrive.agents.host import HostRun

logger = logging.getLogger(__name__)

_WORKERS = 16  # threads: the time goes into opening files
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_LISTED = 10


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
    """Why the image file ``path`` cannot be read, naming it; ``None`` if it can.

    An image without the mark at its end is decoded: it is only refused if that fails.
    """
    try:
        with Image.open(path) as image:
            end = _ENDS.get(image.format or "")
            if end is None or not _ends_with(path, end):
                image.load()
    except Exception as error:  # damaged headers raise whatever their bytes make Pillow raise
        return f"{path}: {type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    return None


def unreadable_scenes(
    host: HostRun, sensors: SensorConfig, cached: Callable[[str, str], bool], force: bool
) -> list[Failure]:
    """Look at the images of all scenes of a split that are going to be cached.

    Args:
        host: says where logs and images are, and which scenes the split has.
        sensors: which cameras of which frames are read.
        cached: of a log and a token, whether the scene is cached already and is left alone.
        force: scenes are computed even if they are cached, so none can be left out.

    Returns:
        The scenes that NAVSIM would stop at, with their reasons.

    Raises:
        UnreadableImages: if there is one with ``force``, or if all images are unreadable.
    """
    looked_at, left_alone, failures = 0, 0, []
    with ThreadPoolExecutor(_WORKERS) as pool:
        for scenes in _scenes_by_log(host, sensors):
            chosen = [scene for scene in scenes if force or not cached(scene.log, scene.token)]
            looked_at += len(chosen)
            left_alone += len(scenes) - len(chosen)
            for scene, problem in zip(chosen, pool.map(_Scene.problem, chosen), strict=True):
                if problem is not None:
                    failures.append(Failure(scene.log, scene.token, problem))
    if not failures:
        return []
    listing = "\n".join(f"  {one.log}/{one.token}: {one.reason}" for one in failures[:_LISTED])
    more = f"\n  and {len(failures) - _LISTED} more" if len(failures) > _LISTED else ""
    if force:
        raise UnreadableImages(
            f"NAVSIM would stop at {len(failures)} of {looked_at} scenes, whose images cannot be read:\n{listing}{more}"
            "\nRepair them, or set force_cache_computation=false: these scenes are then left out"
        )
    if len(failures) == looked_at > 1 and not left_alone:
        raise UnreadableImages(
            f"the images of none of the {looked_at} scenes to cache can be read:\n{listing}{more}\n"
            "Check OPENSCENE_DATA_ROOT, its sensor_blobs folder and train_test_split"
        )
    logger.warning(
        "The images of %d of %d scenes to cache cannot be read; these scenes are left out:\n%s%s",
        *(len(failures), looked_at, listing, more),
    )
    return failures


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
    blobs = Path(str(host.original_sensor_path or host.sensor_blobs_path))
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


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(end)))
        return file.read() == end
