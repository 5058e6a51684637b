"""Finds the hidden state of a scene by the scene's key, in a cache whose folders are named by log and token.

The index is made once, from the first bytes of every file, and kept in ``ROOT/_recogdrive``; later uses read only what
has come since. A cache that cannot be written is indexed in memory.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from navsim_recogdrive.cache.identity import FOLDER
from navsim_recogdrive.cache.peek import cached_scene_folders, peek_hidden_state
from navsim_recogdrive.cache.stored import DamagedFeature

logger = logging.getLogger(__name__)

_FILE = "scene_index.json"
_FORMAT = 1


class SceneIndex:
    """Scene keys of one cache.

    Args:
        root: of the cache.
        file_name: of a scene's hidden state, with its ending.
        folders: hexadecimal key to ``LOG/TOKEN``.
        unusable: scenes whose file has no key or is damaged.
    """

    def __init__(self, root: Path, file_name: str, folders: dict[str, str], unusable: int) -> None:
        self._root = root
        self._file_name = file_name
        self._folders = folders
        self.unusable = unusable

    def __len__(self) -> int:
        """Number of scenes that can be found."""
        return len(self._folders)

    def find(self, key: bytes) -> Path | None:
        """The cache file of the scene with ``key``, ``None`` if the cache does not hold it."""
        folder = self._folders.get(key.hex())
        return None if folder is None else self._root / folder / self._file_name


@lru_cache(maxsize=8)
def open_scene_index(root: Path, file_name: str, workers: int = 16) -> SceneIndex:
    """Read, complete or make the index of a cache; once per process.

    Args:
        root: of the cache.
        file_name: of a scene's hidden state, with its ending.
        workers: threads that read files.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no hidden-state cache at {root}: not a folder")
    known = _read(root, file_name)
    present = [f"{path.parent.name}/{path.name}" for path in cached_scene_folders(root, None, file_name)]
    new = [folder for folder in present if folder not in known]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda folder: _key(root / folder / file_name), new)
        keys = dict(zip(new, tqdm(found, "Indexing the cache", len(new), unit="scene", disable=not new), strict=True))
    readable = {folder: key for folder, key in keys.items() if key is not None}
    current = {folder: key for folder in present if (key := known.get(folder) or readable.get(folder)) is not None}
    if current != known:
        _write(root, file_name, current)
    return SceneIndex(root, file_name, {key: folder for folder, key in current.items()}, len(present) - len(current))


def _key(path: Path) -> str | None:
    try:
        key = peek_hidden_state(path).key
    except DamagedFeature as error:
        logger.warning("%s", error)
        return None
    return None if key is None else key.hex()


def _read(root: Path, file_name: str) -> dict[str, str]:
    """The stored index, ``LOG/TOKEN`` to key; empty where there is none that can be used."""
    try:
        content = json.loads((root / FOLDER / _FILE).read_text(encoding="utf-8"))
        if (content["format"], content["file"]) == (_FORMAT, file_name):
            return dict(content["keys"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _write(root: Path, file_name: str, keys: dict[str, str]) -> None:
    partial = root / FOLDER / f"{_FILE}.{uuid.uuid4().hex}.partial"
    content = {"format": _FORMAT, "file": file_name, "keys": keys}
    try:
        partial.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps(content), encoding="utf-8")
        os.replace(partial, root / FOLDER / _FILE)
    except OSError as error:
        logger.info("The index of %s is kept in memory, the cache cannot be written (%s)", root, error)
        partial.unlink(missing_ok=True)
