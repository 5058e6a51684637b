"""Finds the hidden state of a scene by the scene's key, in a cache whose folders are named by log and token.

The index is made from the first bytes of every file and kept in ``ROOT/_recogdrive``; later uses read only the files
that have come or changed since. A cache that cannot be written is indexed in memory.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from navsim_recogdrive.cache.identity import FOLDER
from navsim_recogdrive.cache.peek import cached_scene_folders, check_size, peek_hidden_state
from navsim_recogdrive.cache.stored import DamagedFeature

logger = logging.getLogger(__name__)

_FILE = "scene_index.json"
_FORMAT = 1


@dataclass(frozen=True)
class IndexEntry:
    """What the index knows of one file.

    Attributes:
        key: of the scene, hexadecimal; empty where the file has none or is damaged.
        origin: mark of what computed the hidden state, hexadecimal.
        size: of the file in bytes.
        modified_ns: time of its last change; with the size it tells a file that was replaced.
    """

    key: str
    origin: str
    size: int
    modified_ns: int


class SceneIndex:
    """Scene keys of one cache.

    Args:
        root: of the cache.
        file_name: of a scene's hidden state, with its ending.
        entries: ``LOG/TOKEN`` to what is known of its file.

    Attributes:
        origins: how many scenes each mark of origin has.
        unusable: scenes whose file has no key or is damaged.
    """

    def __init__(self, root: Path, file_name: str, entries: dict[str, IndexEntry]) -> None:
        self._root = root
        self._file_name = file_name
        usable = {folder: entry for folder, entry in entries.items() if entry.key}
        self._folders = {entry.key: folder for folder, entry in usable.items()}
        self.origins = Counter(entry.origin for entry in usable.values())
        self.unusable = len(entries) - len(usable)

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
    entries = {}
    changed = []
    for path in cached_scene_folders(root, None, file_name):
        folder = f"{path.parent.name}/{path.name}"
        found = (path / file_name).stat()
        entry = known.get(folder)
        if entry is not None and (entry.size, entry.modified_ns) == (found.st_size, found.st_mtime_ns):
            entries[folder] = entry
        else:
            changed.append((folder, found.st_size, found.st_mtime_ns))
    with ThreadPoolExecutor(workers) as pool:
        read = pool.map(lambda item: (item[0], _entry(root / item[0] / file_name, *item[1:])), changed)
        entries.update(tqdm(read, "Indexing the cache", len(changed), unit="scene", disable=not changed))
    if entries != known:
        _write(root, file_name, entries)
    return SceneIndex(root, file_name, entries)


def _entry(path: Path, size: int, modified_ns: int) -> IndexEntry:
    try:
        head = peek_hidden_state(path)
        check_size(path, head)
    except (DamagedFeature, OSError) as error:
        logger.warning("%s", error)
        return IndexEntry("", "", size, modified_ns)
    return IndexEntry("" if head.key is None else head.key.hex(), head.origin.hex(), size, modified_ns)


def _read(root: Path, file_name: str) -> dict[str, IndexEntry]:
    """The stored index; empty where there is none that can be used."""
    try:
        content = json.loads((root / FOLDER / _FILE).read_text(encoding="utf-8"))
        if (content["format"], content["file"]) == (_FORMAT, file_name):
            return {folder: IndexEntry(*values) for folder, values in content["scenes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _write(root: Path, file_name: str, entries: dict[str, IndexEntry]) -> None:
    partial = root / FOLDER / f"{_FILE}.{uuid.uuid4().hex}.partial"
    scenes = {folder: astuple(entry) for folder, entry in entries.items()}
    try:
        partial.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps({"format": _FORMAT, "file": file_name, "scenes": scenes}), encoding="utf-8")
        os.replace(partial, root / FOLDER / _FILE)
    except OSError as error:
        logger.info("The index of %s is kept in memory, the cache cannot be written (%s)", root, error)
        with suppress(OSError):  # a read-only file system refuses even what is not there
            partial.unlink(missing_ok=True)
