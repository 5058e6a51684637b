"""NAVSIM's PDM score as the reward of reinforcement learning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache
from navsim_recogdrive.agents.pdm_batch import PLANNED, SUB_SCORES
from navsim_recogdrive.agents.reward_messages import SceneScores, ScoringSettings
from navsim_recogdrive.agents.reward_pool import RewardPool
from navsim_recogdrive.agents.scene_scoring import SceneScoring
from navsim_recogdrive.rl.reward import RewardResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PDMRewardSettings:
    """How to compute the reward.

    Attributes:
        metric_cache_path: folder of the metric caches of all scenes to train on, made by ``run_metric_caching.py`` of
            the same NAVSIM version.
        workers: processes per rank that score scenes while the GPU works; 0 scores in this process, and ``submit``
            then returns when it is done. A scene with 8 trajectories takes one of them 30 to 60 ms.
        scenes_in_memory: decompressed metric caches that each process keeps, 2.6 MB each with 20 road users.
        progress_weight: weight of the ego progress in the score: 10 as published; NAVSIM's evaluation has 5.
        scorer: further values of NAVSIM's ``PDMScorerConfig`` by name; those not named are as in NAVSIM's evaluation,
            in v2.x with ``human_penalty_filter``.
        worker_timeout_s: seconds after which a silent worker is replaced.

    Raises:
        ValueError: a number that cannot be.
    """

    metric_cache_path: str
    workers: int = 4
    scenes_in_memory: int = 128
    progress_weight: float = 10.0
    scorer: Mapping[str, Any] = field(default_factory=dict)
    worker_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, smallest in (("workers", 0), ("scenes_in_memory", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, found {getattr(self, name)}")
        if self.worker_timeout_s <= 0:
            raise ValueError(f"worker_timeout_s must be more than 0, found {self.worker_timeout_s}")
        if "progress_weight" in self.scorer:
            raise ValueError("progress_weight is a setting of its own: take it out of scorer")


class PDMReward:
    """PDM scores of trajectories in recorded traffic; a :class:`navsim_recogdrive.rl.reward.Reward`.

    The score of a trajectory is that of NAVSIM's own simulator and scorer with these settings, to the last bit of
    float32: in v1.x the PDM score; in v2.x the score of one frame after the human filter, without the comfort over two
    frames, which is no property of one trajectory.

    Args:
        settings: see there.
        stop_at_unusable: raise ``UnusableMetricCache`` from ``result`` for the first scene whose metric cache cannot be
            read or was made by another NAVSIM version, in place of masking it; before training only some were read.

    Raises:
        UnusableMetricCache: no folder of metric caches is at ``settings.metric_cache_path``.
        ValueError: ``settings.scorer`` names what the installed scorer does not have.
    """

    def __init__(self, settings: PDMRewardSettings, stop_at_unusable: bool = False) -> None:
        self._stop_at_unusable = stop_at_unusable
        self.caches = MetricCacheFolder(settings.metric_cache_path)
        scoring = ScoringSettings(
            settings.metric_cache_path,
            settings.scenes_in_memory,
            {**settings.scorer, "progress_weight": settings.progress_weight},
        )
        here = SceneScoring(scoring)  # with workers too: it refuses what they would refuse
        self._here = None if settings.workers else here
        self._pool: RewardPool | None = None
        if settings.workers:
            self._pool = RewardPool(scoring, settings.workers, settings.worker_timeout_s)
        self._reported: set[str] = set()

    @property
    def process_ids(self) -> list[int]:
        """Of the worker processes."""
        return [] if self._pool is None else self._pool.process_ids

    def missing_tokens(self, tokens: Sequence[str]) -> list[str]:
        """Scenes that have no metric cache on disk, in order."""
        return self.caches.missing_tokens(tokens)

    def submit(self, tokens: Sequence[str], trajectories: NDArray[np.float32]) -> PendingScores:
        """Start to score; returns at once if there are workers.

        Args:
            tokens: B scenes; one may occur more than once.
            trajectories: [B, G, 8, 3], poses (x, y, heading) in metres and radians in the ego frame of their scene,
                0.5 s apart, the first one 0.5 s ahead.

        Raises:
            ValueError: shapes that do not belong together.
            RuntimeError: the reward is closed.
            RewardWorkerFailed: a worker could not start.
        """
        trajectories = np.asarray(trajectories, dtype=np.float32)
        expected = (len(tokens), PLANNED.num_poses, 3)
        if trajectories.ndim != 4 or (trajectories.shape[0], *trajectories.shape[2:]) != expected:
            raise ValueError(
                f"{len(tokens)} scenes need trajectories [{len(tokens)}, G, {PLANNED.num_poses}, 3], found "
                f"{list(trajectories.shape)}"
            )
        started = time.monotonic()
        if self._pool is not None:
            pool, jobs = self._pool, self._pool.submit(tokens, trajectories)
            return PendingScores(lambda: self._assemble(pool.wait_for(jobs), tokens, trajectories.shape[1], started))
        if self._here is None:
            raise RuntimeError("the reward was closed")
        scenes = [self._here.score(token, group) for token, group in zip(tokens, trajectories, strict=True)]
        result = self._assemble(scenes, tokens, trajectories.shape[1], started)
        return PendingScores(lambda: result)

    def _assemble(
        self, scenes: Sequence[SceneScores], tokens: Sequence[str], group_size: int, started: float
    ) -> RewardResult:
        errors = {token: scene.error for token, scene in zip(tokens, scenes, strict=True) if scene.error is not None}
        unusable = [token for token, scene in zip(tokens, scenes, strict=True) if scene.unusable]
        if unusable and self._stop_at_unusable:
            raise UnusableMetricCache(
                f"scene {unusable[0]} cannot be scored: {errors[unusable[0]]}. With agent.missing_metric_caches=skip "
                "such scenes are masked out of the loss"
            )
        for token, error in errors.items():
            if token not in self._reported:
                self._reported.add(token)
                _log.warning("scene %s is left out of training where it cannot be scored: %s", token, error)
        unknown = np.full((1 + len(SUB_SCORES), group_size), np.nan)
        empty = np.empty((0, *unknown.shape))
        stacked = np.stack([unknown if s.rows is None else s.rows for s in scenes]) if scenes else empty
        rows: NDArray[np.float32] = stacked.astype(np.float32)
        return RewardResult(
            scores=rows[:, 0],
            valid=np.array([scene.rows is not None for scene in scenes], dtype=np.bool_),
            sub_scores={name: rows[:, 1 + index] for index, name in enumerate(SUB_SCORES)},
            seconds=max((scene.finished for scene in scenes), default=started) - started,
            errors=errors,
        )

    def close(self) -> None:
        """End the worker processes. A second call does nothing."""
        if self._pool is not None:
            self._pool.close()
        self._here = None


class PendingScores:
    """A :class:`navsim_recogdrive.rl.reward.Pending`."""

    def __init__(self, wait: Callable[[], RewardResult]) -> None:
        self._wait = wait
        self._result: RewardResult | None = None

    def result(self) -> RewardResult:
        """Wait for the scores; a second call returns the same result.

        Raises:
            RuntimeError: the reward was closed meanwhile.
            UnusableMetricCache: with ``stop_at_unusable``, naming the scene.
            RewardWorkerFailed: a worker could not start.
        """
        if self._result is None:
            self._result = self._wait()
        return self._result
