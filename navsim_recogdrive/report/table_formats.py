"""The report's tables as files: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable

from navsim_recogdrive.report.estimates import Estimate
from navsim_recogdrive.report.tables import MISSING, Cell, Change, Table, cell_text, number


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
    return f"{_markdown_text(table.full_caption)}\n\n{body}\n"


def _markdown_text(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


_STAR = "$^{*}$"


def to_latex(table: Table, intervals: bool = False) -> str:
    """A ``table`` with booktabs' rules, as wide as the text at most; scores in percent, as papers print them.

    Args:
        table: to be written.
        intervals: whether limits and p-values are written too, which makes the letters of a row of ten scores tiny;
            else a clear difference has a star.
    """
    head = " & ".join(_latex_text(column.head) for column in table.columns)
    rows = [" & ".join(_latex_cell(cell, intervals) for cell in row) + r" \\" for row in table.rows]
    layout = "".join(
        "l" if all(isinstance(row[i], str) for row in table.rows) else "r" for i in range(len(table.columns))
    )
    stars = any(_STAR in row for row in rows)
    # Where p is not to be trusted there are no stars, and the test's sentence says why.
    untrusted = any(isinstance(cell, Change) and not cell.trusted for row in table.rows for cell in row)
    caption = table.full_caption if intervals else f"{table.caption} {table.test if stars or untrusted else ''}"
    star = rf" {_STAR}: $p < 0.05$." if stars else ""
    return "\n".join(
        (
            r"% \usepackage{booktabs,adjustbox}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex_text(caption)} Scores and shares in percent.{star}}}",
            rf"  \label{{tab:{table.key}}}",
            r"  \small",
            r"  \setlength{\tabcolsep}{4pt}",
            r"  \begin{adjustbox}{max width=\linewidth}",
            rf"  \begin{{tabular}}{{{layout}}}",
            r"  \toprule",
            rf"  {head} \\",
            r"  \midrule",
            *(f"  {row}" for row in rows),
            r"  \bottomrule",
            r"  \end{tabular}",
            r"  \end{adjustbox}",
            r"\end{table}",
            "",
        )
    )


def _latex_cell(cell: Cell, intervals: bool) -> str:
    if isinstance(cell, (str, int)):
        return _latex_text(str(cell))
    if isinstance(cell, float) or intervals:
        text = cell_text(cell, 100.0)
    elif isinstance(cell, Change):
        text = number(cell.estimate.value, 100.0, "+")
    else:
        text = number(cell.value, 100.0)
    star = _STAR if isinstance(cell, Change) and cell.clear and not intervals else ""
    return _latex_text(text).replace("-", "$-$").replace("$-$$-$", "--") + star


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
