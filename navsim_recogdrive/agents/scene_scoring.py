"""Score the trajectories of a scene given by its token: what a worker process does, or this one where there is none."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.agents.compat_pdm import Scorer
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, SceneMemory, UnusableMetricCache
from navsim_recogdrive.agents.pdm_batch import BatchScorer, Reference, prepare
from navsim_recogdrive.agents.reward_messages import SceneScores, ScoringSettings


class SceneScoring:
    """Scores scenes by token; raises nothing that one scene can cause.

    Raises:
        UnusableMetricCache: the folder cannot be used at all.
        ValueError: a setting that the installed scorer does not have.
    """

    def __init__(self, settings: ScoringSettings) -> None:
        scorer = Scorer(settings.scorer)
        folder = MetricCacheFolder(settings.metric_cache_path)
        self._memory = SceneMemory(folder, settings.scenes_in_memory, lambda cache: prepare(cache, scorer))
        self._batch = BatchScorer(scorer)
        # A few hundred bytes per scene, so that they outlive the metric caches.
        self._references: dict[str, Reference] = {}

    def score(self, token: str, trajectories: NDArray[np.float32]) -> SceneScores:
        """Score G trajectories [G, 8, 3] of a scene (as :meth:`BatchScorer.score`)."""
        try:
            cache = self._memory.get(token)
            found = self._batch.score(trajectories, cache, self._references.get(token))
        except Exception as error:
            unusable = isinstance(error, UnusableMetricCache)
            return SceneScores(None, f"{type(error).__name__}: {error}", time.monotonic(), unusable)
        self._references[token] = found.reference
        return SceneScores(np.stack([found.scores, *found.sub_scores.values()]), None, time.monotonic())
