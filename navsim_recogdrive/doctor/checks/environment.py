"""Environment variables: set, and naming what they should."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, ok

_DRIVING = ("cache", "train", "rl", "evaluate", "submit")

_FOLDERS = {
    "OPENSCENE_DATA_ROOT": ("the folder with navsim_logs/ and sensor_blobs/", (*_DRIVING, "pretraining")),
    "NUPLAN_MAPS_ROOT": ("the folder with nuplan-maps-v1.0.json", ("cache", "evaluate", "submit", "pretraining")),
    "NAVSIM_EXP_ROOT": ("where runs, caches and scores are written", _DRIVING),
}
"""Variable to what it is and the stages that need it."""


def check(context: Context) -> Iterator[Finding]:
    """NAVSIM's three folders."""
    request = context.request
    for name, (meaning, stages) in _FOLDERS.items():
        if not request.wants(*stages):
            continue
        check, value = f"environment.{name}", request.environment.get(name, "")
        if not value:
            yield request.missing(check, f"{name} is not set: {meaning}", f"export {name}=FOLDER", *stages)
        elif value != value.strip(" \t\"'") or value.startswith("~"):
            yield error(
                check, f"{name}={value!r} holds quotes, blanks or a ~ that nothing expands", f"export {name}=/FOLDER"
            )
        elif name == "NAVSIM_EXP_ROOT":
            yield _writable(check, name, Path(value))
        elif not Path(value).is_dir():
            yield error(check, f"{name}={value} is not a folder: {meaning}", f"export {name}=FOLDER")
        else:
            yield ok(check, f"{name}={value}")


def _writable(check: str, name: str, folder: Path) -> Finding:
    there = existing_parent(folder)
    if folder.exists() and not folder.is_dir():
        return error(check, f"{name}={folder} is a file", f"export {name}=FOLDER")
    if not os.access(there, os.W_OK | os.X_OK):
        return error(check, f"{name}={folder} cannot be written: {there} is read-only", f"export {name}=FOLDER")
    return ok(check, f"{name}={folder}" + ("" if folder.is_dir() else " (will be made)"))


def existing_parent(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
