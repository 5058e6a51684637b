"""The report's tables, once, for HTML, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.estimates import Difference, Estimate, Estimates
from navsim_recogdrive.report.metrics import Metric

DIGITS = 3
MISSING = "–"


@dataclass(frozen=True)
class Change:
    """A difference with what a test says of it.

    Attributes:
        estimate: the difference.
        p_value: adjusted for the number of comparisons; NaN if there is none.
    """

    estimate: Estimate
    p_value: float


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
    """

    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


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
    """Runs (and stages) by metric; of two stages also NAVSIM's total, which has no interval."""
    rows: list[tuple[Cell, ...]] = []
    staged = runs.stage is not None
    for score in estimates.scores:
        name = runs.names[score.run]
        rows.append((name, *((score.part,) if staged else ()), score.scenes, score.unscored, *score.means))
        if staged and score.part == runs.parts[-1][0]:
            total = Estimate(runs.runs[score.run].summary.get("combined", math.nan))
            blank = [Estimate(math.nan)] * (len(runs.metrics) - 1)
            rows.append((name, "combined (NAVSIM)", "", "", total, *blank))
    stages = (
        " NAVSIM's combined score weights the scenes of stage two by their distance to the plan of stage one, which "
        "its file does not hold; the means of the stages are plain ones."
        if staged
        else ""
    )
    return Table(
        "scores",
        f"Mean {runs.benchmark} and sub-scores with {_interval(estimates)}. Scenes that the agent failed in are in no "
        f"mean, as in NAVSIM's.{stages}",
        (
            Column("run"),
            *((Column("stage"),) if staged else ()),
            Column("scenes"),
            Column("failed", "scenes in which the agent raised an error"),
            *_metric_columns(runs.metrics),
        ),
        tuple(rows),
    )


def differences_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """The other runs minus the baseline, by metric."""
    staged = runs.stage is not None
    return Table(
        "differences",
        f"Difference to {runs.names[0]} on the scenes that both have scored, with {_interval(estimates)}. p: sign-flip "
        f"permutation test over {estimates.clusters} {runs.cluster_kind}s, adjusted (Holm) for the number of scores, "
        f"or of sub-scores, in this table. Better and worse: scenes whose {runs.benchmark} changed.",
        (
            Column("run"),
            *((Column("stage"),) if staged else ()),
            Column("scenes", "scored in both runs"),
            Column("better", "scenes whose score rose"),
            Column("worse", "scenes whose score fell"),
            *_metric_columns(runs.metrics),
        ),
        tuple(_difference_row(runs, difference, staged) for difference in estimates.differences),
    )


def _difference_row(runs: AlignedRuns, difference: Difference, staged: bool) -> tuple[Cell, ...]:
    changes = [Change(mean, p) for mean, p in zip(difference.means, difference.adjusted, strict=True)]
    stage = (difference.part,) if staged else ()
    return runs.names[difference.run], *stage, difference.scenes, difference.better, difference.worse, *changes


def failures_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """Kinds of failure by run, and by driving command where commands are known."""
    rows: list[tuple[Cell, ...]] = [
        (
            runs.failures[count.kind].label,
            runs.names[count.run],
            count.scenes,
            count.share,
            *(f"{failures} of {of}" for failures, of in count.by_command),
        )
        for count in sorted(estimates.failures, key=lambda count: (count.kind, count.run))
    ]
    return Table(
        "failures",
        f"Scenes with a sub-score below 1 (progress: below a half), by kind; a scene may have several. Shares with "
        f"{_interval(estimates)}.",
        (
            Column("failure"),
            Column("run"),
            Column("scenes"),
            Column("share", "of the scenes in which the sub-score is known"),
            *(Column(name, f"failures of the scenes with the driving command {name}") for name, _ in runs.commands),
        ),
        tuple(rows),
    )


def commands_table(runs: AlignedRuns, estimates: Estimates) -> Table:
    """Score by run and driving command."""
    rows = [(score.command, runs.names[score.run], score.scenes, score.mean) for score in estimates.commands]
    order = [name for name, _ in runs.commands]
    return Table(
        "commands",
        f"Mean {runs.benchmark} by driving command, with {_interval(estimates)}.",
        (Column("command"), Column("run"), Column("scenes", "scored"), Column(runs.benchmark)),
        tuple(sorted(rows, key=lambda row: order.index(str(row[0])))),
    )


def _metric_columns(metrics: Sequence[Metric]) -> list[Column]:
    return [Column(metric.short, metric.name) for metric in metrics]


def _interval(estimates: Estimates) -> str:
    return f"{100 * estimates.confidence:g} % intervals"


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


def to_csv(table: Table) -> str:
    """All digits, one column per number: NAME, NAME_low, NAME_high, NAME_p."""
    kinds = [next((row[i] for row in table.rows if not isinstance(row[i], str)), "") for i in range(len(table.columns))]
    head: list[str] = []
    for column, kind in zip(table.columns, kinds, strict=True):
        head += [column.head + suffix for suffix in _suffixes(kind)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        cells: list[str] = []
        for cell, kind in zip(row, kinds, strict=True):
            values = _values(cell)
            cells += values + [""] * (len(_suffixes(kind)) - len(values))
        writer.writerow(cells)
    return buffer.getvalue()


def _suffixes(cell: Cell) -> tuple[str, ...]:
    if isinstance(cell, Change):
        return "", "_low", "_high", "_p"
    return ("", "_low", "_high") if isinstance(cell, Estimate) else ("",)


def _values(cell: Cell) -> list[str]:
    if isinstance(cell, Change):
        return [*_values(cell.estimate), _digits(cell.p_value)]
    if isinstance(cell, Estimate):
        return [_digits(value) for value in (cell.value, cell.low, cell.high)]
    return [_digits(cell) if isinstance(cell, float) else str(cell)]


def _digits(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def to_markdown(table: Table) -> str:
    """As GitHub reads it; the caption stands above."""
    head = [column.head for column in table.columns]
    lines = [head, ["---"] * len(head), *([cell_text(cell) for cell in row] for row in table.rows)]
    body = "\n".join(f"| {' | '.join(_markdown_text(text) for text in line)} |" for line in lines)
    return f"{_markdown_text(table.caption)}\n\n{body}\n"


def _markdown_text(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def to_latex(table: Table) -> str:
    """A ``table`` with booktabs' rules; scores in percent, as papers print them."""
    head = " & ".join(_latex_text(column.head) for column in table.columns)
    body = "\n".join(" & ".join(_latex_text(cell_text(cell, 100.0)) for cell in row) + r" \\" for row in table.rows)
    layout = "".join(
        "l" if all(isinstance(row[i], str) for row in table.rows) else "r" for i in range(len(table.columns))
    )
    return "\n".join(
        (
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex_text(table.caption)} Scores and shares in percent.}}",
            rf"  \label{{tab:{table.key}}}",
            rf"  \begin{{tabular}}{{{layout}}}",
            r"  \toprule",
            rf"  {head} \\",
            r"  \midrule",
            *(f"  {line}" for line in body.split("\n")),
            r"  \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        )
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # a line that begins with one would be read as an argument of the line break before it
    "]": "{]}",
    MISSING: "--",
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "csv": (".csv", to_csv),
    "md": (".md", to_markdown),
    "latex": (".tex", to_latex),
}
"""Ending of the file and writer, by name of the format."""
