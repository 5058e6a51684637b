"""The scenes as the page's script reads them: columns rather than rows, since 12 000 scenes are in one page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.estimates import CHANGED_BY
from navsim_recogdrive.report.tables import number

_DIGITS = 4


def scene_data(runs: AlignedRuns) -> dict[str, Any]:
    """Columns of all scenes; ``null`` where a value is not known.

    Keys: ``runs``, ``metrics`` and ``failures`` name the axes, a failure also the number of its metric; ``tokens``,
    ``logs``, ``commands``, ``speeds`` and ``stages`` (``null`` where no scene has one) hold ``S`` entries;
    ``scores[run][metric]`` holds ``S`` numbers with four digits. From the unrounded scores, each ``[run]`` with ``S``
    entries: ``listed`` 0 or 1, ``failed`` one bit per kind of failure, ``changes`` -1, 0 or 1 against the baseline
    (``null`` where one of the two is not known).
    """
    facts = runs.facts
    columns = [metric.column for metric in runs.metrics]
    return {
        "benchmark": runs.benchmark,
        "runs": runs.names,
        "metrics": [{"short": metric.short, "name": metric.name} for metric in runs.metrics],
        "failures": [
            {"key": kind.key, "label": kind.label, "metric": columns.index(kind.column)} for kind in runs.failures
        ],
        "tokens": list(runs.tokens),
        "logs": [fact.log_name for fact in facts] if any(fact.log_name for fact in facts) else None,
        "commands": [fact.command for fact in facts] if runs.commands else None,
        "speeds": _numbers(np.array([fact.speed for fact in facts]), 2) if _any_speed(runs) else None,
        "stages": None if runs.stage is None else runs.stage.tolist(),
        "scores": [[_numbers(values, _DIGITS) for values in run] for run in runs.scores],
        "listed": runs.listed.astype(int).tolist(),
        "failed": _failure_bits(runs),
        "changes": _changes(runs),
    }


def _failure_bits(runs: AlignedRuns) -> list[list[int]]:
    bits = 1 << np.arange(len(runs.failures))
    return [[int(value) for value in bits @ (kinds == 1)] for kinds in runs.failed]


def _changes(runs: AlignedRuns) -> list[list[int | None]]:
    change = runs.scores[:, 0] - runs.scores[0, 0]
    signs = (change > CHANGED_BY).astype(int) - (change < -CHANGED_BY).astype(int)
    return [
        [None if math.isnan(value) else int(sign) for value, sign in zip(*row, strict=True)]
        for row in zip(change, signs, strict=True)
    ]


def _any_speed(runs: AlignedRuns) -> bool:
    return any(not math.isnan(fact.speed) for fact in runs.facts)


def _numbers(values: NDArray[np.float64], digits: int) -> list[float | int | None]:
    """Rounded, whole numbers without a point: a third of the page's size."""
    rounded = [None if math.isnan(value) else round(float(value), digits) for value in values]
    return [int(value) if value is not None and value == int(value) else value for value in rounded]


def scenes_csv(runs: AlignedRuns) -> list[list[str]]:
    """All scenes as rows of text, the head first: token, what is known of it, and every score of every run."""
    head = ["token", "log_name", "command", "speed"]
    head += [f"{name} {metric.short}" for name in runs.names for metric in runs.metrics]
    rows = [head]
    for scene, (token, fact) in enumerate(zip(runs.tokens, runs.facts, strict=True)):
        speed = "" if math.isnan(fact.speed) else number(fact.speed)
        values = ["" if math.isnan(value) else repr(float(value)) for value in runs.scores[:, :, scene].ravel()]
        rows.append([token, fact.log_name, fact.command, speed, *values])
    return rows
