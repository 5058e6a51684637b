"""Makes a world on disk: maps, logs and images, in the layout NAVSIM expects under ``OPENSCENE_DATA_ROOT``.

::

    world.json                         settings, log names, counts
    maps/                              NUPLAN_MAPS_ROOT
    navsim_logs/{trainval,test}/*.pkl
    sensor_blobs/{trainval,test}/<log>/<camera>/<token>.jpg
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from navsim_recogdrive.world.camera import CAMERA_SETS
from navsim_recogdrive.world.nuplan_map import MAP_VERSION, write_maps
from navsim_recogdrive.world.openscene import PARTIAL_FOLDER, log_path, write_log
from navsim_recogdrive.world.presets import WorldSettings, split_of
from navsim_recogdrive.world.road_network import LOCATIONS
from navsim_recogdrive.world.simulate import network_of, simulate_drive

GENERATOR_VERSION = 1
"""Raised when the same settings give another world."""

INDEX_NAME = "world.json"
_BYTES_PER_PIXEL = 0.12
_MAPS_BYTES = 12_000_000


class WorldFolderError(RuntimeError):
    """The output folder cannot take this world."""


def generate(root: Path, settings: WorldSettings, workers: int = 1, progress: bool = True) -> dict[str, Any]:
    """Make the world of ``settings`` in ``root`` and return the contents of its ``world.json``.

    A folder in which the same world was begun is continued: complete logs are kept. Logs are made in ``workers``
    processes; the result does not depend on their number.

    Raises:
        WorldFolderError: if ``root`` holds something else, or the disk is too small.
        ValueError: if ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    _check_folder(root, settings)
    _write_json(root / INDEX_NAME, _index(settings, complete=False))
    with _disk_full_explained(root):
        if not (root / "maps" / f"{MAP_VERSION}.json").exists():
            (root / "maps").mkdir(exist_ok=True)
            write_maps(root / "maps", [network_of(place, settings.seed) for place in range(len(LOCATIONS))])
        for split in ("trainval", "test"):
            (root / "navsim_logs" / split).mkdir(parents=True, exist_ok=True)
            (root / "sensor_blobs" / split).mkdir(parents=True, exist_ok=True)
        missing = [
            (part, name, number)
            for part, name, number in settings.drives()
            if not log_path(root, split_of(part), name).exists()
        ]
        _make_logs(root, settings, missing, min(workers, max(len(missing), 1)), progress)
    shutil.rmtree(root / PARTIAL_FOLDER, ignore_errors=True)
    index = _index(settings, complete=True)
    _write_json(root / INDEX_NAME, index)
    return index


def read_index(root: Path) -> dict[str, Any]:
    """The ``world.json`` of a finished world.

    Raises:
        WorldFolderError: if ``root`` holds no world, or one that was never finished.
    """
    path = root / INDEX_NAME
    if not path.is_file():
        raise WorldFolderError(
            f"{root} holds no world ({INDEX_NAME} is missing); make one with: python -m navsim_recogdrive.world {root}"
        )
    index: dict[str, Any] = json.loads(path.read_text())
    if not index.get("complete", False):
        raise WorldFolderError(f"the world in {root} is unfinished; run its generation again to complete it")
    return index


def make_log(root: Path, settings: WorldSettings, part: str, name: str, number: int) -> str:
    """Simulate, render and write one log; returns its name."""
    # The logs are parallel already; OpenCV's own threads would only get in each other's way.
    cv2.setNumThreads(1)
    drive = simulate_drive(
        settings.seed,
        number,
        number % len(LOCATIONS),
        settings.frames_per_log,
        settings.vehicles,
        settings.pedestrians,
    )
    write_log(
        root,
        split_of(part),
        name,
        number,
        drive,
        settings.seed,
        CAMERA_SETS[settings.cameras],
        settings.image_size,
        settings.jpeg_quality,
    )
    return name


def _make_logs(
    root: Path, settings: WorldSettings, drives: list[tuple[str, str, int]], workers: int, progress: bool
) -> None:
    # Neighbours in this order share a town, so that a worker's caches serve it.
    ordered = sorted(drives, key=lambda drive: (drive[2] % len(LOCATIONS), drive[2]))
    with tqdm(total=len(ordered), desc="logs", unit="log", disable=not progress) as bar:
        if workers == 1:
            for part, name, number in ordered:
                make_log(root, settings, part, name, number)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(make_log, root, settings, *drive) for drive in ordered]
            for future in futures:
                future.add_done_callback(lambda _: bar.update())
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            for future in done:
                future.result()


def _index(settings: WorldSettings, complete: bool) -> dict[str, Any]:
    logs: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part, name, _ in settings.drives():
        logs[part].append(name)
    return {
        "generator_version": GENERATOR_VERSION,
        "settings": _plain(settings),
        "complete": complete,
        "train_logs": logs["train"],
        "val_logs": logs["val"],
        "test_logs": logs["test"],
        "frames_per_log": settings.frames_per_log,
        "scenes": {part: len(names) * settings.scenes_per_log for part, names in logs.items()},
    }


def _plain(settings: WorldSettings) -> dict[str, Any]:
    plain = asdict(settings)
    plain["image_size"] = list(settings.image_size)
    return plain


def _check_folder(root: Path, settings: WorldSettings) -> None:
    if root.exists() and not root.is_dir():
        raise WorldFolderError(f"{root} is a file; name a folder for the world")
    if root.is_dir() and any(root.iterdir()):
        path = root / INDEX_NAME
        if not path.is_file():
            raise WorldFolderError(f"{root} is not empty and holds no world; choose an empty folder")
        found = json.loads(path.read_text())
        expected = {"generator_version": GENERATOR_VERSION, "settings": _plain(settings)}
        for key, value in expected.items():
            if found.get(key) != value:
                raise WorldFolderError(
                    f"{root} holds a world with another {key}: found {found.get(key)}, expected {value}; "
                    "choose another folder or delete this one"
                )
    root.mkdir(parents=True, exist_ok=True)
    width, height = settings.image_size
    images = len(settings.drives()) * settings.frames_per_log * len(CAMERA_SETS[settings.cameras])
    present = sum(1 for _ in (root / "sensor_blobs").glob("*/*/*/*.jpg"))
    needed = _MAPS_BYTES + max(images - present, 0) * int(width * height * _BYTES_PER_PIXEL)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise WorldFolderError(
            f"{root} has {free / 1e9:.1f} GB free, this world needs about {needed / 1e9:.1f} GB; choose another "
            "folder, fewer logs or smaller images"
        )


@contextmanager
def _disk_full_explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise WorldFolderError(
            f"the disk of {root} is full; make room and run the same command again, complete logs are kept"
        ) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
