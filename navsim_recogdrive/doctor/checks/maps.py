"""nuPlan's maps of all four cities, which nuplan-devkit opens together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from navsim_recogdrive.doctor.context import Context
from navsim_recogdrive.doctor.findings import Finding, error, listing, ok

_INDEX = "nuplan-maps-v1.0.json"
_CITIES = ("sg-one-north", "us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")
_DOWNLOAD = "download nuplan-maps-v1.0 (NAVSIM's download/download_maps.sh) and set NUPLAN_MAPS_ROOT to its folder"


def check(context: Context) -> Iterator[Finding]:
    """Index, files, and whether the folder can be written: nuplan-devkit makes ``.maplocks`` in it."""
    value = context.request.environment.get("NUPLAN_MAPS_ROOT", "")
    root = Path(value)
    if not value or not root.is_dir():
        return  # said by the check of the environment
    try:
        index = json.loads((root / _INDEX).read_text(encoding="utf-8"))
        versions = {city: index[city]["version"] for city in _CITIES if city in index}
    except FileNotFoundError:
        yield error("data.maps", f"{root} has no {_INDEX}", _DOWNLOAD)
        return
    except (OSError, ValueError, KeyError, TypeError) as problem:
        yield error("data.maps", f"{root / _INDEX} cannot be read ({type(problem).__name__}: {problem})", _DOWNLOAD)
        return
    files = {city: root / city / versions[city] / "map.gpkg" for city in versions}
    missing = [city for city in _CITIES if city not in files or not _is_filled(files[city])]
    if missing:
        yield error(
            "data.maps",
            f"the maps of {listing(missing)} are missing or empty in {root}; all four cities are opened",
            _DOWNLOAD,
        )
    elif not os.access(_existing(root / ".maplocks", root), os.W_OK | os.X_OK):
        yield error(
            "data.maps",
            f"{root} is read-only, and nuplan-devkit makes the folder .maplocks in it",
            f"chmod u+w {root}, or copy the maps",
        )
    else:
        yield ok("data.maps", f"maps of all four cities in {root}")


def _existing(path: Path, otherwise: Path) -> Path:
    return path if path.is_dir() else otherwise


def _is_filled(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0
