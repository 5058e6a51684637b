"""Reading the score CSVs that NAVSIM's ``run_pdm_score*.py`` write, v1.1 and v2.x, one stage or two."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.report.metrics import EPDMS, METRICS, PDMS, SCORE

STAGES = ("stage one", "stage two")
_SUFFIXES = ("_stage_one", "_stage_two")
_TOTALS = "extended_pdm_score_"
_AVERAGES = ("average", "average_all_frames")
_TIMESTAMP = re.compile(r"^\d{4}\.\d\d\.\d\d\.\d\d\.\d\d\.\d\d$")
# NAVSIM writes its own mean with all digits.
_MEAN_TOLERANCE = 1e-6
_RANGE_TOLERANCE = 1e-6


class UnreadableRun(ValueError):
    """A run without scores, or a file that NAVSIM's scoring did not write."""


@dataclass(frozen=True)
class ScoreRun:
    """The scores of one run.

    Attributes:
        name: what it is called in the report.
        path: of the CSV.
        benchmark: :data:`~navsim_recogdrive.report.metrics.PDMS` or ``EPDMS``.
        tokens: of the ``S`` scenes, in the file's order.
        scores: by metric's column, ``[S]`` float64; NaN where NAVSIM scored nothing.
        valid: ``[S]`` bool, false where the agent failed.
        stage: ``[S]`` int8, 0 or 1 for the stages of two-stage scoring; ``None`` for one stage.
        summary: NAVSIM's own totals by name (``mean``, or ``stage one``, ``stage two``, ``combined``), each by
            metric's column; NaN where the file has none, such as sub-scores of ``combined``.
        notes: what a reader should know about the file.
    """

    name: str
    path: Path
    benchmark: str
    tokens: tuple[str, ...]
    scores: dict[str, NDArray[np.float64]]
    valid: NDArray[np.bool_]
    stage: NDArray[np.int8] | None
    summary: dict[str, dict[str, float]]
    notes: tuple[str, ...] = field(default=())


def read_runs(arguments: Sequence[str]) -> list[ScoreRun]:
    """The runs that a command line names, each ``PATH`` or ``NAME=PATH``; names are made unique from the paths.

    Raises:
        UnreadableRun: if one cannot be read, or they are of different benchmarks, or two have one name.
    """
    named: list[tuple[str | None, Path]] = []
    for argument in arguments:
        name, separator, rest = argument.partition("=")
        given = bool(separator and name) and "/" not in name and not Path(argument).exists()
        named.append((name, Path(rest)) if given else (None, Path(argument)))
    files = [(name, *find_scores(path)) for name, path in named]
    automatic = _short_names([file for name, file, _ in files if name is None])
    runs = [read_scores(file, name or automatic[file], notes) for name, file, notes in files]
    for index, run in enumerate(runs):
        for other in runs[:index]:
            if run.name == other.name:
                raise UnreadableRun(f"two runs are called {run.name!r}, {other.path} and {run.path}: give NAME=PATH")
        if (run.benchmark, run.stage is None) != (runs[0].benchmark, runs[0].stage is None):
            raise UnreadableRun(
                f"{runs[0].name} has {_kind(runs[0])}, {run.name} has {_kind(run)}: these scores cannot be compared; "
                "write one report for each"
            )
    return runs


def find_scores(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The score CSV of a run's folder, the newest if it was scored several times; a file is taken as it is.

    Raises:
        UnreadableRun: if there is none.
    """
    if path.is_file():
        return path, ()
    if not path.is_dir():
        raise UnreadableRun(f"{path}: no such file or folder; a run is the folder or the CSV of NAVSIM's run_pdm_score")
    found = sorted((file for file in path.rglob("*.csv") if _has_scores(file)), key=lambda file: (file.name, file))
    if not found:
        raise UnreadableRun(f"{path} holds no score CSV (columns token, valid and scores); was the run scored?")
    notes = () if len(found) == 1 else (f"the newest of {len(found)} score files in its folder",)
    return found[-1], notes


def read_scores(path: Path, name: str, notes: tuple[str, ...] = ()) -> ScoreRun:
    """Read one CSV.

    Args:
        path: of the file.
        name: what the run is called.
        notes: kept with the run.

    Raises:
        UnreadableRun: naming the file, the row and what is wrong with it.
    """
    rows = _rows(path)
    columns = {column for column in rows[0] if column}
    two_stages = any(column.endswith(_SUFFIXES) for column in columns)
    benchmark = _benchmark(path, columns, two_stages)
    scenes, totals = _split(path, rows)
    if not scenes:
        raise UnreadableRun(f"{path} holds no scene, only NAVSIM's totals")
    tokens = tuple(row["token"] for row in scenes)
    repeated = len(tokens) - len(set(tokens))
    if repeated:
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise UnreadableRun(f"{path}: {repeated} scenes stand twice, {twice} for one; was the file put together?")
    scores, stage = _scores(path, scenes, benchmark, two_stages)
    stated = np.array([_flag(path, row) for row in scenes])
    summary = {name: _total(path, row, name, benchmark) for name, row in totals.items()}
    run = ScoreRun(name, path, benchmark, tokens, scores, stated & ~np.isnan(scores[SCORE]), stage, summary, notes)
    for column, values in scores.items():
        scores[column] = np.where(run.valid, values, np.nan)
    return _compare_with_summary(run)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("token", "valid") if name not in (reader.fieldnames or ())]
            if missing:
                raise UnreadableRun(f"{path} is no score CSV of NAVSIM: it lacks the column {' and '.join(missing)}")
            rows = [_whole(path, reader, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableRun(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UnreadableRun(f"{path} holds a header and no row; did the scoring fail?")
    return rows


def _whole(path: Path, reader: csv.DictReader[str], row: dict[str, str]) -> dict[str, str]:
    """The row if it has as many values as the header has names."""
    head = len(reader.fieldnames or ())
    found = sum(value is not None for value in row.values())
    if found < head:
        raise UnreadableRun(
            f"{path}: line {reader.line_num} is cut off, it has {found} of {head} values; score again to write the file"
        )
    if len(row) > head:
        raise UnreadableRun(f"{path}: line {reader.line_num} has more values than the header has names ({head})")
    return row


def _has_scores(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline().strip().split(",")
    except (OSError, UnicodeDecodeError):
        return False
    return {"token", "valid", SCORE} <= set(header)


def _benchmark(path: Path, columns: set[str], two_stages: bool) -> str:
    plain = {_unstaged(column) for column in columns}
    for benchmark in (EPDMS, PDMS):
        wanted = {metric.column for metric in METRICS[benchmark]}
        if wanted <= plain and not (two_stages and benchmark == PDMS):
            return benchmark
    closest = EPDMS if "history_comfort" in plain or two_stages else PDMS
    missing = sorted({metric.column for metric in METRICS[closest]} - plain)
    raise UnreadableRun(f"{path} has neither PDMS nor EPDMS: for {closest} it lacks {', '.join(missing)}")


def _unstaged(column: str) -> str:
    for suffix in _SUFFIXES:
        column = column.removesuffix(suffix)
    return column


def _split(path: Path, rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, dict[str, str]]]:
    """Rows of scenes, and those of NAVSIM's totals by name."""
    scenes, totals = [], {}
    for row in rows:
        token = row["token"]
        if token.startswith(_TOTALS):
            totals[token.removeprefix(_TOTALS).replace("_", " ")] = row
        elif token in _AVERAGES:
            totals["mean"] = row
        elif not token:
            raise UnreadableRun(f"{path}: a row has no token")
        else:
            scenes.append(row)
    return scenes, totals


def _total(path: Path, row: dict[str, str], name: str, benchmark: str) -> dict[str, float]:
    suffix = _SUFFIXES[STAGES.index(name)] if name in STAGES else ""
    columns = [metric.column for metric in METRICS[benchmark]]
    return {column: _number(path, row, column if column == SCORE else column + suffix) for column in columns}


def _scores(
    path: Path, scenes: list[dict[str, str]], benchmark: str, two_stages: bool
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int8] | None]:
    scores = {}
    for metric in METRICS[benchmark]:
        column = metric.column
        names = [column] if column == SCORE or not two_stages else [column + suffix for suffix in _SUFFIXES]
        values = np.array([[_number(path, row, name) for name in names if name in row] for row in scenes])
        scores[column] = np.where(np.isnan(values[:, 0]), values[:, -1], values[:, 0])
    if not two_stages:
        return scores, None
    # A scene belongs to the stage that has its sub-scores; one that failed says nothing: NAVSIM lists it with neither.
    second = [any(row.get(f"{metric.column}{_SUFFIXES[1]}") for metric in METRICS[benchmark]) for row in scenes]
    return scores, np.array(second, dtype=np.int8)


def _number(path: Path, row: dict[str, str], column: str) -> float:
    text = row.get(column) or ""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise UnreadableRun(f"{path}: {column} of scene {row['token']} is {text!r}, expected a number") from None
    if not (math.isnan(value) or -_RANGE_TOLERANCE <= value <= 1 + _RANGE_TOLERANCE):
        raise UnreadableRun(f"{path}: {column} of scene {row['token']} is {text}, expected 0 to 1")
    return value


def _flag(path: Path, row: dict[str, str]) -> bool:
    text = row["valid"].strip().lower()
    if text not in ("true", "false", "1", "0", "1.0", "0.0"):
        raise UnreadableRun(f"{path}: valid of scene {row['token']} is {row['valid']!r}, expected True or False")
    return text in ("true", "1", "1.0")


def _compare_with_summary(run: ScoreRun) -> ScoreRun:
    """A file whose rows do not give NAVSIM's own mean has lost or gained some: say so."""
    stated, found = run.summary.get("mean", {}).get(SCORE, math.nan), run.scores[SCORE]
    if run.stage is not None:
        if "combined" in run.summary:
            return run
        note = "NAVSIM's total is missing: the scoring did not finish, or the file was cut"
    elif "mean" not in run.summary:
        note = "NAVSIM's mean is missing: the scoring did not finish, or the file was cut"
    elif run.valid.any() and abs(stated - found[run.valid].mean()) > _MEAN_TOLERANCE:
        note = f"its rows have mean {found[run.valid].mean():.4f}, NAVSIM wrote {stated:.4f}: the file was changed"
    else:
        return run
    return replace(run, notes=(*run.notes, note))


def _kind(run: ScoreRun) -> str:
    return run.benchmark if run.stage is None else f"{run.benchmark} in two stages"


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that differ, without NAVSIM's timestamps."""
    parts = {path: [part for part in _steps(path) if not _TIMESTAMP.match(part)] or [path.stem] for path in paths}
    names = {}
    for path, own in parts.items():
        length = 1
        others = [other for key, other in parts.items() if key != path]
        while length < len(own) and any(own[-length:] == other[-length:] for other in others):
            length += 1
        names[path] = "/".join(own[-length:])
    return names


def _steps(path: Path) -> list[str]:
    whole = path.absolute()
    return [*whole.parent.parts[1:], whole.stem]
