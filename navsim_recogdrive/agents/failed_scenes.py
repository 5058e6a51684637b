"""Caching goes on when a scene fails, and says in the end which ones did."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.cache.failed import ADVICE, MAX_STORED_BYTES, FailedFeature, FailedFeatureRead
from navsim_recogdrive.cache.peek import cached_scene_folders, read_content
from navsim_recogdrive.cache.runs import Run
from navsim_recogdrive.cache.scan import refuse_failed
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.cache.writing import write_feature
from navsim_recogdrive.policy.settings import InvalidSetting

logger = logging.getLogger(__name__)

HOPELESS = 10
"""Caching stops if this many scenes failed, none succeeded and the cache holds none: then it is not the scenes."""

# Every scene would fail in the same way, or nothing works any more after it.
_STOP = (InvalidSetting, ImportError, MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class Failure:
    """One scene that could not be cached; ``ours`` unless it is only another run in progress that leaves it out."""

    log: str
    token: str
    reason: str
    ours: bool = True

    @property
    def scene(self) -> str:
        """``LOG/TOKEN``."""
        return f"{self.log}/{self.token}"


@dataclass
class _Report:
    """What the builders that fill one cache in one process have to say in the end; threads share it."""

    cache_path: Path
    files: tuple[str, ...]
    run: Run
    process: int
    builders: int = 0
    failures: list[Failure] = field(default_factory=list)
    left_out: list[Failure] | None = None  # None: nobody has looked

    @classmethod
    def of(cls, cache_path: Path, files: tuple[str, ...]) -> _Report:
        """That of this process; a fork begins its own."""
        process = os.getpid()
        key = (process, cache_path, files)
        if key not in _REPORTS:
            _REPORTS[key] = cls(cache_path, files, Run(cache_path), process)
        return _REPORTS[key]


_REPORTS: dict[tuple[int, Path, tuple[str, ...]], _Report] = {}
_LOCK = threading.RLock()  # the end of some builders can come while the same thread makes others


class FailedScenes:
    """What the builders of one agent share to go on after a scene that fails.

    NAVSIM tells feature builders no token. It runs all builders of a scene one after the other, target builders last,
    so the one that sees the token closes the scene. When the last builders of this process that fill the cache are
    given up, the files of failed scenes are removed, so that the next run tries them again, and listed with their
    reasons.

    Args:
        cache_path: where features are written; ``None``: failures are not caught.
        files: names of the files of a scene.
    """

    def __init__(self, cache_path: Path | None, files: tuple[str, ...]) -> None:
        self._cache_path = cache_path
        self._files = files
        self._error: Exception | None = None
        self._succeeded = False
        self._failures = 0
        self._report: _Report | None = None
        if cache_path is not None:
            with _LOCK:
                self._report = _Report.of(cache_path, files)
                self._report.builders += 1
            # At the end of the task that holds the builders, or of the process. Never by a killed process: what it
            # leaves is found by scans.
            weakref.finalize(self, _give_up, self._report)

    @property
    def are_caught(self) -> bool:
        """Whether a scene that fails is left out and caching goes on."""
        return self._report is not None

    def leave_out(self, find: Callable[[], Sequence[Failure]]) -> None:
        """Have NAVSIM pass over scenes that would stop it before any builder sees them.

        Until the builders are given up a failed feature stands in the place of each of their files, so NAVSIM takes the
        scenes for cached. Other processes may leave out the same scenes: each claims them, the last one takes the
        failed features away.

        Args:
            find: lists the scenes; called once per process, before anything is computed.
        """
        if self._report is None:
            return
        with _LOCK:
            first = self._report.left_out is None
            if self._report.left_out is None:
                self._report.left_out = list(find())
            ours = [failure for failure in self._report.left_out if failure.ours]
            if first and ours:
                self._report.run.claim(failure.scene for failure in ours)
                self._report.run.wait_for_leavers()
            for failure in ours:
                folder = self._report.cache_path / failure.log / failure.token
                folder.mkdir(parents=True, exist_ok=True)
                for name in self._files:
                    path = folder / f"{name}.gz"
                    # One that was there is written anew: who took it for a dead run's sees that it changed.
                    if not path.is_file() or (first and failed_reason(path) is not None):
                        write_feature(path, {name: FailedFeature(failure.reason)})

    def attempt(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``compute``, or a :class:`~navsim_recogdrive.cache.failed.FailedFeature` under ``name``.

        Raises:
            Exception: of ``compute``, where failures are not caught or all scenes would fail in the same way.
        """
        if self._cache_path is None:
            return compute()
        if self._error is not None:  # a second look at the same scene
            return {name: FailedFeature(_reason(self._error))}
        try:
            return compute()
        except Exception as error:
            if isinstance(error, _STOP) or "out of memory" in str(error).lower() or "CUDA error" in str(error):
                raise
            self._error = error
            return {name: FailedFeature(_reason(error))}

    def close(self, log: str, token: str) -> FailedFeature | None:
        """End a scene: ``None``, or what is to be stored in place of its token.

        Raises:
            Exception: the scene's own, after :data:`HOPELESS` failures without a success, now or in an earlier run.
        """
        error, self._error = self._error, None
        if error is None:
            self._succeeded = True
            return None
        reason = _reason(error)
        logger.warning("Scene %s of log %s cannot be cached (%s); going on", token, log, reason)
        self._failures += 1
        if self._report is not None:
            failure = Failure(log, token, reason)
            with _LOCK:
                self._report.failures.append(failure)
                self._report.run.claim([failure.scene])
        if self._failures >= HOPELESS and not self._succeeded:
            # A run that goes on where another one ended may have nothing but that one's failed scenes left.
            self._succeeded = self._holds_whole_scene()
            if not self._succeeded:
                logger.error("The first %d scenes all failed, so it is not the scenes: stopping", HOPELESS)
                raise error
        return FailedFeature(reason)

    def _holds_whole_scene(self) -> bool:
        if self._cache_path is None:
            return False
        names = [f"{name}.gz" for name in self._files]
        return any(_is_whole(folder, names) for folder in cached_scene_folders(self._cache_path, None, names[-1]))


class CachedBuilder:
    """What this package's feature and target builders share: a file in the cache, and scenes that may fail.

    Args:
        failed: what to do with scenes that fail.
    """

    file_name: str
    """Name of the cache file, without its ending."""

    def __init__(self, failed: FailedScenes) -> None:
        super().__init__()
        self._failed = failed

    def get_unique_name(self) -> str:
        """Name of the cache file, without its ending."""
        return self.file_name


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"  # one line in the list at the end


def _is_whole(folder: Path, names: list[str]) -> bool:
    try:
        for name in names:
            refuse_failed(folder / name, read_content(folder / name))
    except DamagedFeature:
        return False
    return True


def _give_up(report: _Report) -> None:
    with _LOCK:
        report.builders -= 1
        if report.builders or report.process != os.getpid():  # a fork's copy: the run goes on in its own process
            return
        del _REPORTS[report.process, report.cache_path, report.files]
        failures = [*(report.left_out or ()), *report.failures]
    if not failures:
        return
    claimed = report.run.leave()
    for failure in failures:
        if failure.ours and failure.scene not in claimed:
            for name in report.files:
                _remove_failed(report.cache_path / failure.log / failure.token / f"{name}.gz")
    report.run.end()
    listing = "\n".join(f"  {one.scene}: {one.reason}" for one in failures)
    logger.error(
        "%d scenes could not be cached; the next run with force_cache_computation=false tries them again:\n%s",
        len(failures),
        listing,
    )


def failed_reason(path: Path) -> str | None:
    """Why the feature in a cache file could not be computed; ``None`` if it could, is damaged, or is not there."""
    try:
        # No failed feature is larger; hidden states are not read for this.
        if path.stat().st_size <= MAX_STORED_BYTES:
            refuse_failed(path, read_content(path))
    except FailedFeatureRead as error:
        return str(error).removesuffix(ADVICE)
    except (DamagedFeature, OSError):
        logger.debug("%s is gone, or being written", path)
    return None


def _remove_failed(path: Path) -> None:
    """Remove ``path`` if it holds a failed feature: another process may have computed the scene meanwhile."""
    if failed_reason(path) is not None:
        path.unlink(missing_ok=True)
