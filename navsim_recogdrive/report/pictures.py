"""Pictures and trajectories of scenes for the report, from folders of files named by token.

``TOKEN.png`` (or .jpg, .jpeg, .webp) and ``TOKEN.WORD.png``, any number of them, are shown in the order of their names.
``TOKEN.json`` may say more, every entry optional::

    {"caption": "...", "log_name": "...", "command": "left", "speed": 4.2,
     "trajectories": {"human": [[x, y], ...], "plan": [[x, y], ...]}}

Trajectories are in the ego frame of the scene, metres, x forward and y left, without the present; further columns
(headings) are read over.
"""

from __future__ import annotations

import base64
import glob
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from navsim_recogdrive.observation import DRIVING_COMMANDS
from navsim_recogdrive.report.scene_facts import SceneFacts

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_MAX_WIDTH = 1280
_MAX_BYTES = 384 << 10
_JPEG_QUALITY = 85

Points = tuple[tuple[float, float], ...]


class UnreadablePicture(ValueError):
    """A picture, or what is said beside it, that cannot be used."""


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures.

    Attributes:
        path: of the folder.
        run: name of the run whose plans they show; empty if they are for every run.
    """

    path: Path
    run: str = ""


@dataclass(frozen=True)
class ScenePictures:
    """What the folders hold of one scene, for one run.

    Attributes:
        files: of pictures.
        captions: from the JSON files.
        trajectories: points by name.
        facts: likewise.
    """

    files: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()
    trajectories: dict[str, Points] = field(default_factory=dict)
    facts: SceneFacts = field(default_factory=SceneFacts)


def parse_folders(arguments: Sequence[str], runs: Sequence[str]) -> list[PictureFolder]:
    """Folders from a command line, each ``FOLDER`` or ``RUN=FOLDER``.

    Raises:
        UnreadablePicture: if a folder does not exist, or no run is called so.
    """
    folders = []
    for argument in arguments:
        run, separator, rest = argument.partition("=")
        folder = PictureFolder(Path(rest), run) if separator and not Path(argument).is_dir() else None
        folder = folder or PictureFolder(Path(argument))
        if folder.run and folder.run not in runs:
            raise UnreadablePicture(f"pictures of {folder.run!r}: no run is called so; the runs are {', '.join(runs)}")
        if not folder.path.is_dir():
            raise UnreadablePicture(f"{folder.path} is no folder of pictures (TOKEN.png, TOKEN.json)")
        folders.append(folder)
    return folders


def pictures_of(token: str, run: str, folders: Sequence[PictureFolder]) -> ScenePictures:
    """What the folders hold of a scene, for a run; empty if nothing.

    Raises:
        UnreadablePicture: naming the file.
    """
    if Path(token).name != token:  # no name of a file: it would lead out of the folder
        return ScenePictures()
    files: list[Path] = []
    captions: list[str] = []
    trajectories: dict[str, Points] = {}
    facts = SceneFacts()
    for folder in folders:
        if folder.run not in ("", run):
            continue
        found = list(folder.path.glob(f"{glob.escape(token)}.*"))
        pictures = [path for path in found if path.suffix.lower() in _TYPES]
        files += sorted(pictures, key=lambda path: (len(path.suffixes), path.name))
        for notes in (path for path in found if path.name == f"{token}.json"):
            content = _read_notes(notes)
            captions += [str(content["caption"])] if content.get("caption") else []
            trajectories |= {str(name): _points(notes, name, rows) for name, rows in content["trajectories"].items()}
            facts = _read_facts(notes, content, facts)
    return ScenePictures(tuple(files), tuple(captions), trajectories, facts)


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadablePicture(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.setdefault("trajectories", {}), dict):
        raise UnreadablePicture(f"{path} must hold an object, its trajectories by name")
    return content


def _points(path: Path, name: str, rows: Any) -> Points:
    try:
        points = tuple((float(row[0]), float(row[1])) for row in rows)
    except (TypeError, ValueError, IndexError, KeyError):
        points = ((math.nan, math.nan),)
    if not points or not all(math.isfinite(value) for point in points for value in point):
        raise UnreadablePicture(f"{path}: trajectory {name!r} must be a list of finite [x, y], found {str(rows)[:60]}")
    return points


def _read_facts(path: Path, content: dict[str, Any], before: SceneFacts) -> SceneFacts:
    command, speed = content.get("command") or before.command, content.get("speed", before.speed)
    if command and command not in DRIVING_COMMANDS:
        raise UnreadablePicture(f"{path}: command is {command!r}, expected {', '.join(DRIVING_COMMANDS)}")
    if isinstance(speed, bool) or not isinstance(speed, (int, float)):
        raise UnreadablePicture(f"{path}: speed is {speed!r}, expected a number in m/s")
    return SceneFacts(str(content.get("log_name") or before.log_name), command, float(speed))


def data_uri(path: Path) -> str:
    """A picture as a ``data:`` address; large ones are made smaller (1280 pixels wide, JPEG).

    Raises:
        UnreadablePicture: if the file holds no picture.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            kind = Image.MIME.get(picture.format or "", "")
            if kind not in _TYPES.values() or len(content) > _MAX_BYTES or picture.width > _MAX_WIDTH:
                content, kind = _smaller(picture), "image/jpeg"
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(f"{path} is no picture: {error}") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _smaller(picture: Image.Image) -> bytes:
    plain = picture.convert("RGBA")
    whole = Image.new("RGB", plain.size, "white")
    whole.paste(plain, mask=plain.getchannel("A"))
    if whole.width > _MAX_WIDTH:
        size = (_MAX_WIDTH, max(1, round(whole.height * _MAX_WIDTH / whole.width)))
        whole = whole.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    whole.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()
