"""The tables as files: every digit in CSV, nothing that breaks out in Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from score_files import write_two_stages, write_v1

from navsim_recogdrive.report.aligned import align
from navsim_recogdrive.report.estimates import Estimate, estimate
from navsim_recogdrive.report.runs import read_runs
from navsim_recogdrive.report.tables import (
    MISSING,
    Change,
    Column,
    Table,
    number,
    p_text,
    tables_of,
    to_csv,
    to_latex,
    to_markdown,
)

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
    assert lines[0] == r"Means of A\_1 \| B."
    assert lines[2] == "| run | scenes | PDMS | change |"
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    assert {len(row) for row in cells} == {4}
    assert cells[2][2].strip() == r"0.907 \[0.900, 0.910\]"
    assert cells[2][3].strip() == r"-0.020 \[-0.040, 0.000\] p\<0.001"
    assert cells[3][2].strip() == MISSING


def test_latex_is_escaped_and_in_percent() -> None:
    text = to_latex(table())
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
    plain = re.sub(r"\\[a-z]+(\{\})?|\\[&%#_{}$]|\\\\", "", body)
    assert not set("\\#$%_^~") & set(plain)
    assert plain.count("{") == plain.count("}")


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


def test_two_stages_show_the_total_of_navsim(tmp_path: Path) -> None:
    path = write_two_stages(tmp_path / "a.csv", {"a": {"score": 0.8}}, {"s": {"score": 0.4}}, 0.333)
    runs = align(read_runs([str(path)]), {})
    scores = tables_of(runs, estimate(runs, 200))[0]
    assert [row[1] for row in scores.rows] == ["stage one", "stage two", "combined (NAVSIM)"]
    assert list(csv.reader(io.StringIO(to_csv(scores))))[3][4] == "0.333"
