"""The tables as files: every digit in CSV, nothing that breaks out in Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from score_files import write_two_stages, write_v1

from navsim_recogdrive.report.aligned import align
from navsim_recogdrive.report.estimates import Estimate, estimate
from navsim_recogdrive.report.runs import read_runs
from navsim_recogdrive.report.table_formats import to_csv, to_latex, to_markdown
from navsim_recogdrive.report.tables import MISSING, Change, Column, Table, number, p_text, tables_of

HOSTILE = r"a_b & 50% #1 {x} \cmd | `c` <b>[1]"


def table() -> Table:
    return Table(
        "scores",
        "Means of A_1 | B.",
        (Column("run"), Column("scenes"), Column("PDMS"), Column("change")),
        (
            (HOSTILE, 3, Estimate(0.9066, 0.9, 0.91), Change(Estimate(-0.02, -0.04, 0.0), 0.0004)),
            ("[y]", 4, Estimate(math.nan), Change(Estimate(0.0, 0.0, 0.0), math.nan)),
        ),
        "In brackets: 95% intervals.",
        "A sign-flip test.",
    )


def test_csv_has_every_digit() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(table()))))
    assert rows[0] == [
        "run",
        "scenes",
        "PDMS",
        "PDMS_low",
        "PDMS_high",
        "change",
        "change_low",
        "change_high",
        "change_p",
    ]
    assert rows[1] == [HOSTILE, "3", "0.9066", "0.9", "0.91", "-0.02", "-0.04", "0.0", "0.0004"]
    assert rows[2] == ["[y]", "4", "", "", "", "0.0", "0.0", "0.0", ""]


def test_markdown_keeps_its_columns() -> None:
    lines = to_markdown(table()).splitlines()
    assert lines[0] == r"Means of A\_1 \| B. In brackets: 95% intervals. A sign-flip test."
    assert lines[2] == "| run | scenes | PDMS | change |"
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    assert {len(row) for row in cells} == {4}
    assert cells[2][2].strip() == r"0.907 \[0.900, 0.910\]"
    assert cells[2][3].strip() == r"-0.020 \[-0.040, 0.000\] p\<0.001"
    assert cells[3][2].strip() == MISSING


def test_latex_is_escaped_and_in_percent() -> None:
    text = to_latex(table(), intervals=True)
    assert r"a\_b \& 50\% \#1 \{x\} \textbackslash{}cmd | `c` \textless{}b\textgreater{}{[}1{]}" in text
    assert "90.7 {[}90.0, 91.0{]}" in text
    assert r"p\textless{}0.001" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1
    assert r"\begin{tabular}{lrrr}" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [3, 3]
    # Outside of its own commands no special sign is left.
    plain = re.sub(r"\$-\$|\\[a-z]+(\{\})?|\\[&%#_{}$]|\\\\", "", body)
    assert not set("\\#$%_^~") & set(plain)
    assert plain.count("{") == plain.count("}")


def test_latex_fits_a_page() -> None:
    """Eleven numbers without their intervals, unless these are asked for; a star for what is clear."""
    text = to_latex(table())
    assert "[" not in text.replace(r"{[}y{]}", "").replace(r"{[}1{]}", "")
    assert r"\begin{adjustbox}{max width=\linewidth}" in text
    assert text.index(r"\end{tabular}") < text.index(r"\end{adjustbox}")
    assert r"& 90.7 & $-$2.0$^{*}$ \\" in text
    assert r"& -- & 0.0 \\" in text
    assert "In brackets" not in text
    assert "A sign-flip test. Scores and shares in percent. $^{*}$: $p < 0.05$." in text
    text = to_latex(table(), intervals=True)
    assert r"& 90.7 {[}90.0, 91.0{]} & $-$2.0 {[}$-$4.0, 0.0{]} p\textless{}0.001 \\" in text
    assert "In brackets: 95\\% intervals. A sign-flip test." in text
    assert "*" not in text
    assert "-" not in text.partition(r"\midrule")[2].replace("$-$", "").replace("--", "").partition(r"\bottomrule")[0]


def test_latex_says_why_there_are_no_stars() -> None:
    doubted = Change(Estimate(-0.02, -0.04, 0.0), 0.0004, trusted=False)
    columns = (Column("run"), Column("change"))
    text = to_latex(Table("d", "Differences.", columns, (("x", doubted),), "", "p is too small."))
    assert "Differences. p is too small. Scores" in text
    assert "^{*}" not in text


def test_p_values_that_are_too_small_are_not_clear() -> None:
    change = Change(Estimate(-0.02, -0.04, 0.0), 0.0004)
    assert change.clear
    assert not replace(change, trusted=False).clear
    assert not replace(change, p_value=0.05).clear
    assert not replace(change, p_value=math.nan).clear


@pytest.mark.parametrize(
    ("value", "scale", "sign", "text"),
    [(0.12345, 1, "", "0.123"), (0.9066, 100, "", "90.7"), (-0.0001, 1, "+", "0.000"), (0.05, 1, "+", "+0.050"),
     (-0.05, 1, "+", "-0.050"), (-0.0001, 1, "", "0.000"), (math.nan, 1, "", MISSING)],
)  # fmt: skip
def test_numbers(value: float, scale: float, sign: str, text: str) -> None:
    assert number(value, scale, sign) == text


def test_p_values() -> None:
    assert [p_text(value) for value in (0.0001, 0.0123, 0.5, 1.0, math.nan)] == [
        "p<0.001",
        "p=0.012",
        "p=0.50",
        "p=1.00",
        "",
    ]


def test_which_tables_there_are(tmp_path: Path) -> None:
    paths = [str(write_v1(tmp_path / f"{name}.csv", {"a": {}, "b": {"score": 0.5}})) for name in "xy"]
    runs = align(read_runs(paths[:1]), {})
    assert [table.key for table in tables_of(runs, estimate(runs, 200))] == ["scores", "failures"]
    runs = align(read_runs(paths), {})
    tables = tables_of(runs, estimate(runs, 200))
    assert [table.key for table in tables] == ["scores", "differences", "failures"]
    for one in tables:
        assert {len(row) for row in one.rows} == {len(one.columns)}


def test_two_stages_show_the_totals_of_navsim(tmp_path: Path) -> None:
    path = write_two_stages(tmp_path / "a.csv", {"a": {"score": 0.8}}, {"s": {"score": 0.4}}, 0.333)
    runs = align(read_runs([str(path)]), {})
    scores = tables_of(runs, estimate(runs, 200))[0]
    names = ["stage one", "stage two", "stage one (NAVSIM)", "stage two (NAVSIM)", "combined (NAVSIM)"]
    assert [row[1] for row in scores.rows] == names
    rows = list(csv.DictReader(io.StringIO(to_csv(scores))))
    assert [row["EPDMS"] for row in rows] == ["0.8", "0.4", "0.9", "0.7", "0.333"]
    assert [row["NC"][:4] for row in rows] == ["1.0", "1.0", "0.95", "0.75", ""]
    assert {row["EPDMS_low"] for row in rows[2:]} == {""}
    assert "Rows of NAVSIM are as its file has them" in scores.caption
