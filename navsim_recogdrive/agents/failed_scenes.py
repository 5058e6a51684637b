"""Caching goes on when a scene fails, and says in the end which ones did."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.cache.failed import FailedFeature, FailedFeatureRead
from navsim_recogdrive.cache.peek import cached_scene_folders, read_content
from navsim_recogdrive.cache.scan import refuse_failed
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.policy.configuration import InvalidSetting

logger = logging.getLogger(__name__)

HOPELESS = 10
"""Caching stops if this many scenes failed, none succeeded and the cache holds none: then it is not the scenes."""

# Every scene would fail in the same way, or nothing works any more after it.
_STOP = (InvalidSetting, ImportError, MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class Failure:
    """One scene that could not be cached."""

    log: str
    token: str
    reason: str


class FailedScenes:
    """What the builders of one agent share to go on after a scene that fails.

    NAVSIM tells feature builders no token. It runs all builders of a scene one after the other, target builders last,
    so the one that sees the token closes the scene. When the caching of these builders is over, the files of failed
    scenes are removed, so that the next run tries them again, and listed with their reasons.

    Args:
        cache_path: where features are written; ``None``: failures are not caught.
        files: names of the files of a scene.
    """

    def __init__(self, cache_path: Path | None, files: tuple[str, ...]) -> None:
        self._cache_path = cache_path
        self._files = files
        self._error: Exception | None = None
        self._succeeded = False
        self._failures: list[Failure] = []
        if cache_path is not None:
            # At the end of the task that holds the builders, or of the process. Never by a killed process: what it
            # leaves is found by scans.
            weakref.finalize(self, _report, self._failures, cache_path, files)

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
        self._failures.append(Failure(log, token, reason))
        if len(self._failures) >= HOPELESS and not self._succeeded:
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
    return f"{type(error).__name__}: {error}"


def _is_whole(folder: Path, names: list[str]) -> bool:
    try:
        for name in names:
            refuse_failed(folder / name, read_content(folder / name))
    except DamagedFeature:
        return False
    return True


def _report(failures: list[Failure], cache_path: Path, files: tuple[str, ...]) -> None:
    if not failures:
        return
    for failure in failures:
        folder = cache_path / failure.log / failure.token
        for name in files:
            _remove_failed(folder / f"{name}.gz")
    listing = "\n".join(f"  {one.log}/{one.token}: {one.reason}" for one in failures)
    logger.error(
        "%d scenes could not be cached; the next run with force_cache_computation=false tries them again:\n%s",
        len(failures),
        listing,
    )


def _remove_failed(path: Path) -> None:
    """Remove ``path`` if it holds a failed feature: another process may have computed the scene meanwhile."""
    try:
        refuse_failed(path, read_content(path))
    except FailedFeatureRead:
        path.unlink(missing_ok=True)
    except DamagedFeature:
        logger.debug("%s is gone, or being written", path)
