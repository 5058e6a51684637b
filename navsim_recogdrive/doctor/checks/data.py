"""OpenScene's logs and images: how many, and which logs lack their images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, listing, ok, warning
from navsim_recogdrive.doctor.request import CHALLENGE_SPLIT

_STAGES = ("cache", "evaluate", "submit", "pretraining")
"""Training from a cache reads neither logs nor images."""

_CAMERAS = {"single": ("CAM_F0",), "multi": ("CAM_L0", "CAM_F0", "CAM_R0")}
"""Folders of a log's images by ``agent.cam_type``."""

_WITHOUT_LOGS = "private_test_hard"
"""Data whose images lie in its folders of cameras, without a folder for each log."""

_DATA_OF_SPLIT = {
    "navtrain": "trainval",
    **dict.fromkeys(("navtest", "navhard_two_stage", "warmup_two_stage"), "test"),
    CHALLENGE_SPLIT: _WITHOUT_LOGS,
}
"""Where NAVSIM's configs cannot be read; other splits are named as their data."""


def check(context: Context) -> Iterator[Finding]:
    """Logs and images of the split, or without one, of all data that is there."""
    root = Path(context.request.environment.get("OPENSCENE_DATA_ROOT", ""))
    if not context.request.environment.get("OPENSCENE_DATA_ROOT") or not root.is_dir():
        return  # said by the check of the environment
    logs = root / "navsim_logs"
    if not logs.is_dir():
        yield context.request.missing(
            "data.logs",
            f"{root} has no navsim_logs/",
            "set OPENSCENE_DATA_ROOT to the folder that holds navsim_logs/ and sensor_blobs/",
            *_STAGES,
        )
        return
    split = context.split
    if split is None:
        folders = sorted(path.name for path in logs.iterdir() if path.is_dir())
        if not folders:
            yield warning("data.logs", f"{logs} is empty", "download the logs with NAVSIM's download/ scripts")
        for folder in folders:
            yield from _split(context, root, folder, folder, None)
        return
    data, names = _read_split(context, split)
    yield from _split(context, root, split, data, names)


def _split(context: Context, root: Path, split: str, data: str, wanted: list[str] | None) -> Iterator[Finding]:
    """One split.

    Args:
        context: of this run.
        root: OpenScene's.
        split: NAVSIM's name.
        data: its folder below ``navsim_logs`` and ``sensor_blobs``.
        wanted: its logs; ``None`` for all that are there.
    """
    request = context.request
    logs, images = root / "navsim_logs" / data, root / "sensor_blobs" / data
    there = {entry.name.removesuffix(".pkl"): entry for entry in entries_of(logs) if entry.name.endswith(".pkl")}
    names = sorted(there) if wanted is None else wanted
    absent = [name for name in names if name not in there]
    download = f"download the rest of {split} with NAVSIM's download/ scripts, or name another split with --split"
    if not there or len(absent) == len(names):
        found = f"{logs} holds no logs" if not there else f"{logs} holds none of the {len(names)} logs of {split}"
        yield request.missing(
            "data.logs", f"{found} ({listing(sorted(there)) or 'it is empty or missing'})", download, *_STAGES
        )
        return
    if absent:
        yield request.missing(
            "data.logs",
            f"{len(absent)} of {len(names)} logs of {split} are missing in {logs}: {listing(absent)}",
            download,
            *_STAGES,
        )
    present = [name for name in names if name in there]
    empty = [name for name in present if there[name].stat().st_size == 0]
    if empty:
        yield error("data.logs", f"{len(empty)} log files in {logs} are empty: {listing(empty)}", "download them again")
    if not absent and not empty:
        yield ok("data.logs", f"{split}: {len(present)} logs in {logs}")
    cameras = _CAMERAS.get(context.agent.get("cam_type", "single"), _CAMERAS["single"])
    folder_of = {name: images if data == _WITHOUT_LOGS else images / name for name in present}
    bare = [name for name in present if not all(has_files(folder_of[name] / camera) for camera in cameras)]
    if bare:
        yield request.missing(
            "data.images",
            f"{len(bare)} of {len(present)} logs of {split} have no images of {' and '.join(cameras)} in {images}: "
            f"{listing(bare)}",
            f"download the rest of sensor_blobs/{data}; a download that was cut off is not continued by itself",
            *_STAGES,
        )
    else:
        yield ok("data.images", f"{split}: all {len(present)} logs have images of {', '.join(cameras)} in {images}")


def _read_split(context: Context, split: str) -> tuple[str, list[str] | None]:
    """Data folder and log names of a split, from NAVSIM's configs.

    Read line by line: a YAML parser takes 10 s for the tokens that stand behind the names.
    """
    config = None if context.navsim is None else context.navsim.config / "common" / "train_test_split"
    data, scene_filter = _DATA_OF_SPLIT.get(split, split), split
    if config is None or not (config / f"{split}.yaml").is_file():
        return data, None
    with (config / f"{split}.yaml").open(encoding="utf-8") as file:
        for line in file:
            key, _, value = line.strip().removeprefix("- ").partition(":")
            if key == "data_split":
                data = value.split("#")[0].strip()
            elif key == "scene_filter" and value.strip():
                scene_filter = value.split("#")[0].strip()
    return data, listed(config / "scene_filter" / f"{scene_filter}.yaml", "log_names")


def listed(file: Path, key: str) -> list[str] | None:
    """A list of a scene filter, such as ``log_names``; ``None`` where it has none, and so admits all.

    Read line by line, for the same reason.
    """
    names: list[str] = []
    inside = False
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            text = line.strip()
            if inside and text.startswith("- "):
                names.append(text[2:].strip().strip("'\""))
            elif inside and text and not text.startswith("#"):
                break
            elif text.partition(":")[0].strip("'\"") == key:
                inside = True
    return names or None


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def has_files(folder: Path) -> bool:
    """Whether there is something in a folder."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
