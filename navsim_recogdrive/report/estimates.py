"""What the report states: means with intervals, differences with tests, failures, commands, the worst scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.statistics import bootstrap_means, holm, percentile_interval, sign_flip_test

CHANGED_BY = 1e-4
"""A scene's score has changed if it differs by more: the digits that are shown."""

FLIPS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval; NaN where there is none.

    Attributes:
        value: the mean.
        low: lower limit.
        high: upper limit.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Score:
    """A run's line in the table of scores.

    Attributes:
        run: number of the run.
        part: empty, or the stage.
        scenes: scenes listed.
        unscored: those among them that the agent failed in; they are in no mean, as in NAVSIM's.
        means: one per metric.
    """

    run: int
    part: str
    scenes: int
    unscored: int
    means: tuple[Estimate, ...]


@dataclass(frozen=True)
class Difference:
    """A run against the baseline, on the scenes that both have scored.

    Attributes:
        run: number of the run.
        part: empty, or the stage.
        scenes: how many both have scored.
        better: scenes whose score is higher.
        worse: scenes whose score is lower.
        means: one per metric, run minus baseline.
        p_values: one per metric, of the sign-flip test.
        adjusted: these, adjusted for all comparisons of one metric kind: the scores, or the sub-scores (Holm).
    """

    run: int
    part: str
    scenes: int
    better: int
    worse: int
    means: tuple[Estimate, ...]
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]


@dataclass(frozen=True)
class FailureCount:
    """How often a run fails in a kind.

    Attributes:
        run: number of the run.
        part: empty, or the stage.
        kind: number of the kind.
        scenes: failures.
        of: scenes in which the sub-score is known.
        share: ``scenes / of``.
        by_command: failures and scenes for each driving command that occurs.
    """

    run: int
    part: str
    kind: int
    scenes: int
    of: int
    share: Estimate
    by_command: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CommandScore:
    """A run's score under one driving command, of each stage; without a scored scene the estimate is NaN."""

    run: int
    part: str
    command: str
    scenes: int
    mean: Estimate


@dataclass(frozen=True)
class Estimates:
    """Everything that the tables show.

    Attributes:
        scores: runs times parts.
        differences: the other runs times parts.
        failures: runs times parts times kinds.
        commands: runs times parts times commands that occur.
        clusters: how many were resampled.
        confidence: of all intervals.
        replicates: of the bootstrap.
        seed: of everything random.
    """

    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    failures: tuple[FailureCount, ...]
    commands: tuple[CommandScore, ...]
    clusters: int
    confidence: float
    replicates: int
    seed: int


def estimate(runs: AlignedRuns, replicates: int = 2000, confidence: float = 0.95, seed: int = 0) -> Estimates:
    """Means, intervals and tests; the same for the same runs and seed.

    Args:
        runs: to be described.
        replicates: resamples of the bootstrap.
        confidence: of the intervals.
        seed: of everything random.
    """
    columns = _Columns(runs)
    scores = [(run, part) for run in range(len(runs.runs)) for part in range(len(runs.parts))]
    pairs = [(run, part) for run in range(1, len(runs.runs)) for part in range(len(runs.parts))]
    kinds = [(run, part, kind) for run, part in scores for kind in range(len(runs.failures))]
    commands = [(run, part, command) for run, part in scores for command in range(len(runs.commands))]
    for run, part in scores:
        columns.add(("score", run, part), np.where(runs.parts[part][1], runs.scores[run], np.nan))
    for run, part in pairs:
        difference = runs.scores[run] - runs.scores[0]
        columns.add(("difference", run, part), np.where(runs.parts[part][1], difference, np.nan))
    for run, part, kind in kinds:
        columns.add(("failure", run, part, kind), np.where(runs.parts[part][1], runs.failed[run, kind], np.nan)[None])
    for run, part, command in commands:
        inside = runs.parts[part][1] & runs.commands[command][1]
        columns.add(("command", run, part, command), np.where(inside, runs.scores[run, 0], np.nan)[None])
    columns.resample(replicates, confidence, np.random.default_rng([seed, 0]))
    differences = [_difference(runs, columns, run, part, seed) for run, part in pairs]
    return Estimates(
        scores=tuple(_score(runs, columns, run, part) for run, part in scores),
        differences=_adjusted(differences),
        failures=tuple(_failure(runs, columns, *key) for key in kinds),
        commands=tuple(_command(runs, columns, *key) for key in commands),
        clusters=runs.cluster_count,
        confidence=confidence,
        replicates=replicates,
        seed=seed,
    )


_Key: TypeAlias = "tuple[str | int, ...]"
"""What a column is of: its kind, then numbers of run, part and so on."""


class _Columns:
    """Values ``[S]`` of which means are wanted, resampled together."""

    def __init__(self, runs: AlignedRuns) -> None:
        self._runs = runs
        self._values: dict[_Key, NDArray[np.float64]] = {}
        self._estimates: dict[_Key, list[Estimate]] = {}

    def add(self, key: _Key, values: NDArray[np.float64]) -> None:
        self._values[key] = values

    def resample(self, replicates: int, confidence: float, rng: np.random.Generator) -> None:
        stacked = np.concatenate(list(self._values.values())).T
        means = bootstrap_means(stacked, self._runs.clusters, replicates, rng)
        begin = 0
        for key, values in self._values.items():
            self._estimates[key] = []
            for offset, row in enumerate(values):
                known = ~np.isnan(row)
                units = len(np.unique(self._runs.clusters[known]))
                limits = percentile_interval(means[:, begin + offset], units, confidence)
                mean = float(row[known].mean()) if known.any() else math.nan
                self._estimates[key].append(Estimate(mean, *limits))
            begin += len(values)

    def __getitem__(self, key: _Key) -> tuple[Estimate, ...]:
        return tuple(self._estimates[key])

    def values(self, key: _Key) -> NDArray[np.float64]:
        return self._values[key]


def _score(runs: AlignedRuns, columns: _Columns, run: int, part: int) -> Score:
    name, inside = runs.parts[part]
    listed = runs.listed[run] & inside
    unscored = int((listed & np.isnan(runs.scores[run, 0])).sum())
    return Score(run, name, int(listed.sum()), unscored, columns["score", run, part])


def _difference(runs: AlignedRuns, columns: _Columns, run: int, part: int, seed: int) -> Difference:
    values = columns.values(("difference", run, part))
    rng = np.random.default_rng([seed, 1, run, part])
    p_values = tuple(sign_flip_test(row, runs.clusters, FLIPS, rng) for row in values)
    score = values[0][~np.isnan(values[0])]
    better, worse = int((score > CHANGED_BY).sum()), int((score < -CHANGED_BY).sum())
    name = runs.parts[part][0]
    means = columns["difference", run, part]
    return Difference(run, name, len(score), better, worse, means, p_values, p_values)


def _adjusted(differences: list[Difference]) -> tuple[Difference, ...]:
    if not differences:
        return ()
    p_values = np.array([difference.p_values for difference in differences])  # [pairs, M]
    adjusted = np.empty_like(p_values)
    adjusted[:, 0] = holm(p_values[:, 0])
    adjusted[:, 1:] = holm(p_values[:, 1:].ravel()).reshape(p_values[:, 1:].shape)
    return tuple(
        replace(difference, adjusted=tuple(float(value) for value in row))
        for difference, row in zip(differences, adjusted, strict=True)
    )


def _failure(runs: AlignedRuns, columns: _Columns, run: int, part: int, kind: int) -> FailureCount:
    failed = columns.values(("failure", run, part, kind))[0]
    known = ~np.isnan(failed)
    by_command = tuple((int(np.nansum(failed[inside])), int((known & inside).sum())) for _, inside in runs.commands)
    (share,) = columns["failure", run, part, kind]
    name = runs.parts[part][0]
    return FailureCount(run, name, kind, int(np.nansum(failed)), int(known.sum()), share, by_command)


def _command(runs: AlignedRuns, columns: _Columns, run: int, part: int, command: int) -> CommandScore:
    scored = int((~np.isnan(columns.values(("command", run, part, command)))).sum())
    (mean,) = columns["command", run, part, command]
    return CommandScore(run, runs.parts[part][0], runs.commands[command][0], scored, mean)


def worst_scenes(runs: AlignedRuns, run: int, count: int) -> list[int]:
    """Numbers of the scenes with the lowest scores of a run.

    Among equal scores those with more kinds of failure come first, then those with a lower sum of sub-scores, then in
    the order of the tokens; what has no weight in the score decides nothing. Scenes that could not be scored are not
    among them.
    """
    scores = runs.scores[run]
    failed = runs.failed[run, [kind.weighs for kind in runs.failures]]
    parts = scores[runs.weighing]
    order = sorted(
        np.flatnonzero(~np.isnan(scores[0])),
        key=lambda scene: (
            scores[0, scene],
            -np.nansum(failed[:, scene]),
            np.nansum(parts[:, scene]),
            runs.tokens[scene],
        ),
    )
    return [int(scene) for scene in order[:count]]


def most_worsened(runs: AlignedRuns, run: int, count: int) -> list[int]:
    """Numbers of the scenes whose score fell most from the baseline to a run; only scenes where it fell."""
    change = runs.scores[run, 0] - runs.scores[0, 0]
    order = sorted(np.flatnonzero(change < -CHANGED_BY), key=lambda scene: (change[scene], runs.tokens[scene]))
    return [int(scene) for scene in order[:count]]
