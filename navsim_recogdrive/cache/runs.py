"""Which scenes the runs that are filling a cache have left out: ``ROOT/_recogdrive/runs``, one file per run.

In the place of a scene that a run leaves out stand failed features (see :mod:`~navsim_recogdrive.cache.failed`), which
keep NAVSIM from the scene for as long as the run lasts. A scene belongs to every run that has claimed it; its failed
features may be removed by the last of them, or by anybody once all of them are dead.

A run is alive while its process is: on the same machine the system says so, at once. Elsewhere the time of its file
does, which a thread renews: a killed run counts as alive for :data:`DEAD_AFTER_S` there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from navsim_recogdrive.cache.identity import FOLDER

logger = logging.getLogger(__name__)

BEAT_S = 60.0
"""How often a run renews its file."""

DEAD_AFTER_S = 600.0
"""A run on another machine whose file is older than this is dead."""

_RUNS = "runs"
_LEAVING = "leaving"
_UNFINISHED = ".partial"
_POLL_S = 0.2


class Run:
    """A process as one that fills a cache; its file appears with the first claim.

    Args:
        root: of the cache.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / FOLDER / _RUNS / f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
        self._lines: list[str] = []
        self._lock = threading.Lock()  # the thread that renews the file may write it too
        self._over = threading.Event()

    def claim(self, scenes: Iterable[str]) -> None:
        """Make scenes, ``LOG/TOKEN``, this run's too; before their failed features are written.

        Raises:
            OSError: if the run's file cannot be written.
        """
        if not self._lines:
            self._append([_header()])
            threading.Thread(target=self._renew, name="cache run", daemon=True).start()
        self._append(scenes)

    def wait_for_leavers(self) -> None:
        """Wait for the runs that are removing their failed features and may not have seen what this one claimed."""
        while any(run.leaving for run in _live_runs(self._root) if run.path != self._path):
            time.sleep(_POLL_S)

    def leave(self) -> set[str]:
        """Give up all claims; the scenes that other runs claim. What only this run claimed is its own to remove."""
        if self._lines:
            with suppress(OSError):  # a full disk must not keep the failed features from being removed
                self._append([_LEAVING])
        return claimed_scenes(self._root)

    def end(self) -> None:
        """The run is over, and its failed features are removed."""
        self._over.set()
        with self._lock, suppress(OSError):  # a file that stays is that of a dead process
            self._path.unlink(missing_ok=True)

    def _append(self, lines: Iterable[str]) -> None:
        with self._lock:
            self._lines += lines
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a line that was read half would be another scene.
        partial = self._path.with_name(f"{self._path.name}{_UNFINISHED}")
        partial.write_text("\n".join(self._lines) + "\n", encoding="utf-8")
        partial.replace(self._path)

    def _renew(self) -> None:
        while not self._over.wait(BEAT_S):
            with self._lock:
                if self._over.is_set():
                    return
                try:
                    os.utime(self._path)
                except FileNotFoundError:  # taken for dead, after a long sleep of the machine
                    with suppress(OSError):
                        self._write()
                except OSError as error:
                    logger.debug("%s cannot be renewed now (%s)", self._path, error)


def claimed_scenes(root: Path) -> set[str]:
    """The scenes, ``LOG/TOKEN``, that runs which are alive have left out of the cache ``root``."""
    return {scene for run in _live_runs(root) if not run.leaving for scene in run.scenes}


def forget_dead_runs(root: Path) -> None:
    """Remove the files of dead runs; after their failed features were removed."""
    alive = {run.path for run in _live_runs(root)}
    now = _now(root / FOLDER / _RUNS)
    for path in _files(root):
        with suppress(OSError):
            # What a run is just writing has its final name a moment later.
            if path not in alive and (path.suffix != _UNFINISHED or now - path.stat().st_mtime > DEAD_AFTER_S):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _LiveRun:
    path: Path
    scenes: frozenset[str]
    leaving: bool


def _live_runs(root: Path) -> list[_LiveRun]:
    runs = []
    for path in _files(root):
        if path.suffix == _UNFINISHED:
            continue
        try:
            header, *lines = path.read_text(encoding="utf-8").splitlines()
            if _is_alive(path, json.loads(header)):
                runs.append(_LiveRun(path, frozenset(lines) - {_LEAVING}, _LEAVING in lines))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it ended just now, or is damaged
    return runs


def _files(root: Path) -> list[Path]:
    try:
        return sorted((root / FOLDER / _RUNS).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _header() -> str:
    return json.dumps({"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())})


def _is_alive(path: Path, header: dict[str, object]) -> bool:
    if header["started"] is not None and header["machine"] == _machine():
        return _started(int(str(header["pid"]))) == header["started"]
    return _now(path.parent) - path.stat().st_mtime < DEAD_AFTER_S


@lru_cache(maxsize=1)
def _machine() -> str:
    """The machine since its last start, and the part of it in which process ids count."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine started, in ticks; ``None`` if it is over, or the system does not tell."""
    try:
        # The name, in brackets, may hold anything.
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = content.rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else fields[18]


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system, which stamps the files."""
    probe = folder / f"now.{uuid.uuid4().hex}{_UNFINISHED}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a cache that can only be read
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
