"""Runs side by side: one row per scene that any of them scored, and the clusters that its statistics resample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import DRIVING_COMMANDS
from navsim_recogdrive.report.metrics import (
    METRICS,
    PROGRESS,
    PROGRESS_FACTORS,
    WITHOUT_WEIGHT,
    Failure,
    Metric,
    failures_of,
)
from navsim_recogdrive.report.runs import STAGES, ScoreRun
from navsim_recogdrive.report.scene_facts import SceneFacts

CLUSTERS = ("auto", "log", "scene")

MIN_LOGS = 6
"""With fewer logs no two-sided sign-flip test can give less than 0.05, so that ``auto`` takes scenes and says why."""


class UnknownLogs(ValueError):
    """Clusters by log were asked for, but not every scene's log is known."""


@dataclass(frozen=True)
class AlignedRuns:
    """Scores of ``N`` runs in ``M`` metrics on the ``S`` scenes that any of them lists.

    Attributes:
        runs: the first is the baseline of all comparisons.
        tokens: of the scenes: the baseline's in its order, then the others'.
        facts: of the scenes, ``S`` of them.
        scores: ``[N, M, S]`` float64 in the order of :attr:`metrics`; NaN where a run has none.
        listed: ``[N, S]`` bool: whether the run's file lists the scene.
        stage: ``[S]`` int8, 0 or 1; ``None`` for one-stage scoring.
        clusters: ``[S]`` int64 from 0 without gaps.
        cluster_kind: what a cluster is: ``log`` or ``scene``.
        cluster_reason: why it is a scene; empty for logs.
    """

    runs: tuple[ScoreRun, ...]
    tokens: tuple[str, ...]
    facts: tuple[SceneFacts, ...]
    scores: NDArray[np.float64]
    listed: NDArray[np.bool_]
    stage: NDArray[np.int8] | None
    clusters: NDArray[np.int64]
    cluster_kind: str
    cluster_reason: str

    @property
    def benchmark(self) -> str:
        """Name of the score: PDMS or EPDMS."""
        return self.runs[0].benchmark

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The score and its sub-scores."""
        return METRICS[self.benchmark]

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Kinds of failure that the sub-scores tell apart."""
        return failures_of(self.benchmark)

    @property
    def names(self) -> list[str]:
        """Of the runs."""
        return [run.name for run in self.runs]

    @property
    def cluster_count(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    @cached_property
    def parts(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """What is averaged apart: all scenes, or those of each stage; name and ``[S]`` bool."""
        if self.stage is None:
            return [("", np.ones(len(self.tokens), dtype=bool))]
        return [(name, self.stage == number) for number, name in enumerate(STAGES)]

    @cached_property
    def failed(self) -> NDArray[np.float64]:
        """``[N, F, S]``: 1 where a run fails in a kind, 0 where not, NaN where that is not known.

        In a scene whose progress NAVSIM lowered for another failure (v1.1), nothing is known of slowness.
        """
        values = np.stack([self._values(kind.column) for kind in self.failures], axis=1)
        limits = np.array([kind.below for kind in self.failures])[None, :, None]
        slow = [kind.column for kind in self.failures].index(PROGRESS)
        values[:, slow] = self.plain_progress
        return np.where(np.isnan(values), np.nan, (values < limits - 1e-9).astype(np.float64))

    @cached_property
    def plain_progress(self) -> NDArray[np.float64]:
        """``[N, S]``: ego progress; NaN also where it is lowered by sub-scores that NAVSIM multiplies it by."""
        lowered = np.zeros((len(self.runs), len(self.tokens)), dtype=bool)
        for column in PROGRESS_FACTORS[self.benchmark]:
            lowered |= self._values(column) < 1 - 1e-9
        return np.where(lowered, np.nan, self._values(PROGRESS))

    def _values(self, column: str) -> NDArray[np.float64]:
        return self.scores[:, [metric.column for metric in self.metrics].index(column)]

    @cached_property
    def weighing(self) -> NDArray[np.bool_]:
        """``[M]``: whether a metric is a part of the score; false for the score itself."""
        free = WITHOUT_WEIGHT[self.benchmark]
        return np.array([index > 0 and metric.column not in free for index, metric in enumerate(self.metrics)])

    @cached_property
    def commands(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """The driving commands that occur, with ``[S]`` bool; empty where none is known."""
        own = np.array([facts.command for facts in self.facts])
        return [(name, own == name) for name in DRIVING_COMMANDS if (own == name).any()]


def align(
    runs: Sequence[ScoreRun], facts: Mapping[str, SceneFacts], cluster: str = "auto", baseline: str | None = None
) -> AlignedRuns:
    """Put runs side by side.

    Args:
        runs: at least one, all of one benchmark.
        facts: by token.
        cluster: one of :data:`CLUSTERS`; ``auto`` takes logs if every scene's is known and there are
            :data:`MIN_LOGS`.
        baseline: name of the run that the others are compared with; the first if ``None``.

    Raises:
        UnknownLogs: for ``cluster="log"`` without the logs.
        ValueError: if no run is called as the baseline.
    """
    if baseline is not None and baseline not in [run.name for run in runs]:
        names = ", ".join(run.name for run in runs)
        raise ValueError(f"no run is called {baseline!r}, to be the baseline; the runs are {names}")
    ordered = tuple(sorted(runs, key=lambda run: baseline is not None and run.name != baseline))
    tokens = tuple(dict.fromkeys(token for run in ordered for token in run.tokens))
    place = {token: index for index, token in enumerate(tokens)}
    metrics = METRICS[ordered[0].benchmark]
    scores = np.full((len(ordered), len(metrics), len(tokens)), np.nan)
    listed = np.zeros((len(ordered), len(tokens)), dtype=bool)
    stage = None if ordered[0].stage is None else np.zeros(len(tokens), dtype=np.int8)
    for number, run in enumerate(ordered):
        rows = np.array([place[token] for token in run.tokens])
        listed[number, rows] = True
        for index, metric in enumerate(metrics):
            scores[number, index, rows] = run.scores[metric.column]
        if stage is not None and run.stage is not None:
            stage[rows] = np.maximum(stage[rows], run.stage)
    own = tuple(facts.get(token, SceneFacts()) for token in tokens)
    reason = _why_scenes(tokens, own, cluster)
    units = list(tokens) if reason else [fact.log_name for fact in own]
    clusters = np.unique(np.array(units), return_inverse=True)[1].astype(np.int64).reshape(-1)
    return AlignedRuns(ordered, tokens, own, scores, listed, stage, clusters, "scene" if reason else "log", reason)


def _why_scenes(tokens: tuple[str, ...], facts: tuple[SceneFacts, ...], cluster: str) -> str:
    """Why scenes are taken as clusters; empty where logs are."""
    if cluster == "scene":
        return "--cluster scene asks for it"
    unknown = [token for token, fact in zip(tokens, facts, strict=True) if not fact.log_name]
    if unknown:
        reason = f"the log of {len(unknown)} of {len(tokens)} scenes is not known"
        if cluster == "log":
            raise UnknownLogs(
                f"{reason}, {unknown[0]} for one: give --metric-cache FOLDER or --scene-facts FILE, or --cluster scene"
            )
        return reason
    logs = len({fact.log_name for fact in facts})
    if cluster == "auto" and logs < MIN_LOGS:
        return f"there {'is' if logs == 1 else 'are'} only {logs} log{'' if logs == 1 else 's'}"
    return ""
