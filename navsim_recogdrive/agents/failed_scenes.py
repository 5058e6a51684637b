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
from navsim_recogdrive.cache.peek import read_content
from navsim_recogdrive.cache.scan import refuse_failed
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.policy.configuration import InvalidSetting

logger = logging.getLogger(__name__)

HOPELESS = 10
"""Caching stops if this many scenes failed and none succeeded: then it is not the scenes."""

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
        self._catching = cache_path is not None
        self._reason: str | None = None
        self._succeeded = 0
        self._failures: list[Failure] = []
        if cache_path is not None:
            # At the end of the task that holds the builders, or of the process. Never by a killed process: what it
            # leaves is found by scans.
            weakref.finalize(self, _report, self._failures, cache_path, files)

    def attempt(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of ``compute``, or a :class:`~navsim_recogdrive.cache.failed.FailedFeature` under ``name``.

        Raises:
            Exception: of ``compute``, where failures are not caught, where all scenes would fail in the same way, or
                after :data:`HOPELESS` failures without a success.
        """
        if not self._catching:
            return compute()
        if self._reason is not None:  # a second look at the same scene
            return {name: FailedFeature(self._reason)}
        try:
            return compute()
        except Exception as error:
            if isinstance(error, _STOP) or "out of memory" in str(error).lower() or "CUDA error" in str(error):
                raise
            if not self._succeeded and len(self._failures) + 1 >= HOPELESS:
                logger.error("The first %d scenes all failed, so it is not the scenes: stopping", HOPELESS)
                raise
            self._reason = f"{type(error).__name__}: {error}"
            return {name: FailedFeature(self._reason)}

    def close(self, log: str, token: str) -> FailedFeature | None:
        """End a scene: ``None``, or what is to be stored in place of its token."""
        reason, self._reason = self._reason, None
        if reason is None:
            self._succeeded += 1
            return None
        logger.warning("Scene %s of log %s cannot be cached (%s); going on", token, log, reason)
        self._failures.append(Failure(log, token, reason))
        return FailedFeature(reason)


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
