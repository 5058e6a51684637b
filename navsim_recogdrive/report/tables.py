"""The report's tables, once, for the page and for files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.estimates import Difference, Estimate, Estimates
from navsim_recogdrive.report.metrics import PROGRESS_FACTORS, Metric

DIGITS = 3
MISSING = "–"


@dataclass(frozen=True)
class Change:
    """A difference with what a test says of it.

    Attributes:
        estimate: the difference.
        p_value: adjusted for the number of comparisons; NaN if there is none.
        trusted: whether p is of clusters that are independent; of scenes of one drive it is too small.
    """

    estimate: Estimate
    p_value: float
    trusted: bool = True

    @property
    def clear(self) -> bool:
        """Whether the difference is marked as one: p < 0.05, and p may be trusted."""
        return self.trusted and self.p_value < 0.05


Cell: TypeAlias = "str | int | float | Estimate | Change"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: short name.
        title: in words; empty if the short name says it.
    """

    head: str
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: name for files.
        caption: a sentence or two.
        columns: of each row.
        rows: cells.
        intervals: a sentence about the limits in the cells.
        test: a sentence about the p-values in the cells.
    """

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    intervals: str = ""
    test: str = ""

    @property
    def full_caption(self) -> str:
        """For a table whose cells show limits and p-values."""
        return " ".join(part for part in (self.caption, self.intervals, self.test) if part)


def tables_of(runs: AlignedRuns, estimates: Estimates) -> list[Table]:
    """All tables that these runs give: scores, and differences, failures and commands where there are any."""
    tables = [scores_table(runs, estimates)]
    if estimates.differences:
        tables.append(differences_table(runs, estimates))
    tables.append(failures_table(runs, estimates))
    if estimates.commands:
        tables.append(commands_table(runs, estimates))
    return tables


def scores_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """Runs (and stages) by metric; of two stages also NAVSIM's totals, which have no interval."""
    rows: list[tuple[Cell, ...]] = []
    staged = runs.stage is not None
    for score in estimates.scores:
        name = runs.names[score.run]
        rows.append((name, *((score.part,) if staged else ()), score.scenes, score.unscored, *score.means))
        if staged and score.part == runs.parts[-1][0]:
            for total, values in runs.runs[score.run].summary.items():
                means = [Estimate(values[metric.column]) for metric in runs.metrics]
                rows.append((name, f"{total} (NAVSIM)", "", "", *means))
    stages = (
        " Rows of NAVSIM are as its file has them: it averages groups of scenes, and weights those of stage two by "
        "their distance to the plan of stage one, which the file does not hold. The other means are plain ones."
        if staged
        else ""
    )
    return Table(
        "scores",
        f"Mean {runs.benchmark} and sub-scores. Scenes that the agent failed in are in no mean, as in NAVSIM's."
        f"{stages}",
        (
            Column("run"),
            *_stage_column(runs),
            Column("scenes"),
            Column("failed", "scenes in which the agent raised an error"),
            *_metric_columns(runs.metrics),
        ),
        tuple(rows),
        _intervals(estimates),
    )


def differences_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """The other runs minus the baseline, by metric."""
    trust = f" Scenes are taken as independent ({runs.cluster_reason}): p is too small." if runs.cluster_reason else ""
    return Table(
        "differences",
        f"Difference to {runs.names[0]} on the scenes that both have scored. Better and worse: scenes whose "
        f"{runs.benchmark} changed.",
        (
            Column("run"),
            *_stage_column(runs),
            Column("scenes", "scored in both runs"),
            Column("better", "scenes whose score rose"),
            Column("worse", "scenes whose score fell"),
            *_metric_columns(runs.metrics),
        ),
        tuple(_difference_row(runs, difference) for difference in estimates.differences),
        _intervals(estimates),
        f"p: sign-flip permutation test over {estimates.clusters} {runs.cluster_kind}s, adjusted (Holm) for the number "
        f"of scores, or of sub-scores, in this table.{trust}",
    )


def _difference_row(runs: AlignedRuns, difference: Difference) -> tuple[Cell, ...]:
    trusted = not runs.cluster_reason
    changes = [Change(mean, p, trusted) for mean, p in zip(difference.means, difference.adjusted, strict=True)]
    counts = difference.scenes, difference.better, difference.worse
    return runs.names[difference.run], *_stage(difference.part), *counts, *changes


def failures_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """Kinds of failure by run and stage, and by driving command where commands are known."""
    rows: list[tuple[Cell, ...]] = [
        (
            runs.failures[count.kind].label,
            runs.names[count.run],
            *_stage(count.part),
            count.scenes,
            count.share,
            *(f"{failures} of {of}" for failures, of in count.by_command),
        )
        for count in sorted(estimates.failures, key=lambda count: (count.kind, count.run))
    ]
    free = [kind.label.removesuffix(" (weight 0)") for kind in runs.failures if not kind.weighs]
    facts = f" {' and '.join(free).capitalize()} has weight 0 in NAVSIM's {runs.benchmark}." if free else ""
    factors = [metric for metric in runs.metrics if metric.column in PROGRESS_FACTORS[runs.benchmark]]
    if factors:
        shorts = " and ".join(metric.short for metric in factors)
        facts += (
            f" NAVSIM multiplies progress by {shorts}, so it is judged only where these are 1: else each such failure "
            "would be counted again as slowness."
        )
    return Table(
        "failures",
        f"Scenes with a sub-score below 1 (progress: below a half), by kind; a scene may have several.{facts}",
        (
            Column("failure"),
            Column("run"),
            *_stage_column(runs),
            Column("scenes"),
            Column("share", "of the scenes in which the sub-score is known"),
            *(Column(name, f"failures of the scenes with the driving command {name}") for name, _ in runs.commands),
        ),
        tuple(rows),
        _intervals(estimates),
    )


def commands_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """Score by run, stage and driving command."""
    rows: list[tuple[Cell, ...]] = [
        (score.command, runs.names[score.run], *_stage(score.part), score.scenes, score.mean)
        for score in estimates.commands
    ]
    order = [name for name, _ in runs.commands]
    return Table(
        "commands",
        f"Mean {runs.benchmark} by driving command.",
        (
            Column("command"),
            Column("run"),
            *_stage_column(runs),
            Column("scenes", "scored"),
            Column(runs.benchmark),
        ),
        tuple(sorted(rows, key=lambda row: order.index(str(row[0])))),
        _intervals(estimates),
    )


def _stage_column(runs: AlignedRuns) -> tuple[Column, ...]:
    return (Column("stage"),) if runs.stage is not None else ()


def _stage(part: str) -> tuple[str, ...]:
    return (part,) if part else ()


def _metric_columns(metrics: Sequence[Metric]) -> list[Column]:
    return [Column(metric.short, metric.name) for metric in metrics]


def _intervals(estimates: Estimates) -> str:
    return f"In brackets: {100 * estimates.confidence:g} % intervals."


def number(value: float, scale: float = 1.0, sign: str = "") -> str:
    """A score in text; ``scale`` 100 gives percent with one digit."""
    if math.isnan(value):
        return MISSING
    text = f"{value * scale:{sign}.{DIGITS if scale == 1 else 1}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def p_text(value: float) -> str:
    """A p-value in text; empty if there is none."""
    if math.isnan(value):
        return ""
    return "p<0.001" if value < 0.001 else f"p={value:.3f}" if value < 0.1 else f"p={value:.2f}"


def limits(estimate: Estimate, scale: float = 1.0, sign: str = "") -> str:
    """The interval in text; empty if there is none."""
    if math.isnan(estimate.low):
        return ""
    return f"[{number(estimate.low, scale, sign)}, {number(estimate.high, scale, sign)}]"


def cell_text(cell: Cell, scale: float = 1.0) -> str:
    """A cell in one line of text."""
    if isinstance(cell, Estimate):
        return f"{number(cell.value, scale)} {limits(cell, scale)}".strip()
    if isinstance(cell, Change):
        mean = cell.estimate
        return f"{number(mean.value, scale, '+')} {limits(mean, scale, '+')} {p_text(cell.p_value)}".strip()
    return number(cell, scale) if isinstance(cell, float) else str(cell)
