"""``python -m navsim_recogdrive.report RUN [RUN ...]``: an evaluation report from NAVSIM's score CSVs."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from navsim_recogdrive.report.aligned import CLUSTERS, MIN_LOGS, AlignedRuns, align
from navsim_recogdrive.report.estimates import Estimates, estimate
from navsim_recogdrive.report.page import PageOptions, write_page
from navsim_recogdrive.report.pictures import PictureFolder, parse_folders, pictures_of
from navsim_recogdrive.report.runs import ScoreRun, read_runs
from navsim_recogdrive.report.scene_cards import shown_scenes
from navsim_recogdrive.report.scene_data import scenes_csv
from navsim_recogdrive.report.scene_facts import (
    RunSettings,
    SceneFacts,
    UnreadableFacts,
    logs_of_metric_cache,
    read_facts,
    read_settings,
)
from navsim_recogdrive.report.table_formats import FORMATS, to_latex
from navsim_recogdrive.report.tables import Table, cell_text, tables_of
from navsim_recogdrive.whole_numbers import whole_number_from


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.report",
        description="Write one HTML page about runs that NAVSIM scored (v1.1: PDMS, v2.x: EPDMS): scores with "
        "intervals, what changed between the runs, failures, the worst scenes, and all scenes to filter and sort.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="[NAME=]PATH of a score CSV, or of the folder NAVSIM wrote it into")
    add("--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    add("--title", default="Evaluation report")
    add("--baseline", metavar="NAME", help="the run that the others are compared with (default: the first)")
    add(
        "--scenes",
        type=whole_number_from(0),
        default=12,
        metavar="N",
        help="worst scenes to show of each run (default: %(default)s)",
    )
    pictures = "TOKEN.png and TOKEN.json of scenes, for all runs or the one called NAME; may be given several times"
    add("--pictures", action="append", default=[], metavar="[NAME=]FOLDER", help=pictures)
    facts = "CSV of python -m navsim_recogdrive.agents.scene_facts: driving command, log and speed of the scenes"
    add("--scene-facts", type=Path, metavar="FILE", help=facts)
    cache = "NAVSIM's, for the names of the logs (default: the one that a run's settings name, if it is there)"
    add("--metric-cache", type=Path, metavar="FOLDER", help=cache)
    cluster = f"what intervals and tests take as independent (default: logs, of {MIN_LOGS} or more that are all known)"
    add("--cluster", choices=CLUSTERS, default="auto", help=cluster)
    add("--confidence", type=_share, default=0.95, metavar="P", help="of the intervals (default: %(default)s)")
    add(
        "--replicates",
        type=whole_number_from(100),
        default=2000,
        metavar="R",
        help="bootstrap resamples (default: %(default)s)",
    )
    add("--seed", type=whole_number_from(0), default=0, help="of everything random (default: %(default)s)")
    add("--formats", nargs="+", choices=tuple(FORMATS), default=[], help="write the tables beside the page, too")
    latex = "limits and p-values in the LaTeX tables, too; their letters get small"
    add("--latex-intervals", action="store_true", help=latex)
    add("--tokens", type=Path, metavar="FILE", help="write the tokens of the scenes that are shown, one per line")
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0.5 <= value <= 0.999:
        raise argparse.ArgumentTypeError(f"must be from 0.5 to 0.999, found {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        report(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(options: argparse.Namespace) -> None:
    """Read, compute and write what the options say.

    Raises:
        ValueError: for anything that cannot be read or does not fit together; each names what and the fix.
    """
    found = read_runs(options.runs)
    folders = parse_folders(options.pictures, [run.name for run in found])
    settings = {run.name: read_settings(run.path) for run in found}
    facts, notes = _facts(found, settings, options.scene_facts, options.metric_cache)
    runs = align(found, facts, options.cluster, options.baseline)
    estimates = estimate(runs, options.replicates, options.confidence, options.seed)
    if folders:
        notes.append(_pictures_note(runs, options.scenes, folders))
    page = PageOptions(
        options.title, options.scenes, tuple(folders), {name: own.shown for name, own in settings.items()}, tuple(notes)
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(write_page(runs, estimates, page), encoding="utf-8")
    tables = tables_of(runs, estimates)
    for name in options.formats:
        _write_tables(runs, tables, options.output, name, options.latex_intervals)
    if options.tokens:
        shown = (runs.tokens[scene] for scene in shown_scenes(runs, options.scenes))
        options.tokens.write_text("".join(f"{token}\n" for token in shown), encoding="utf-8")
    print(_as_text(tables[0]))
    for run in runs.runs:
        for note in run.notes:
            print(f"{run.name}: {note}", file=sys.stderr)
    print(f"\n{options.output}: {_summary(runs, estimates)}")


def _facts(
    runs: Sequence[ScoreRun], settings: dict[str, RunSettings], scene_facts: Path | None, metric_cache: Path | None
) -> tuple[dict[str, SceneFacts], list[str]]:
    """Facts by token, those that were asked for before those that the runs' settings lead to."""
    facts = read_facts(scene_facts) if scene_facts else {}
    notes = []
    if metric_cache:
        caches = [metric_cache]
    else:
        named = (settings[run.name].metric_cache for run in runs)
        caches = list(dict.fromkeys(cache for cache in named if cache is not None))
    for cache in caches:
        try:
            logs = logs_of_metric_cache(cache)
        except UnreadableFacts as error:
            if metric_cache:
                raise
            notes.append(f"{error}; a run's settings name it")
            continue
        for token, log in logs.items():
            known = facts.get(token, SceneFacts())
            if not known.log_name:
                facts[token] = replace(known, log_name=log)
    if scene_facts and not any(token in facts for run in runs for token in run.tokens):
        notes.append(f"{scene_facts} knows none of the scenes; is it of another split?")
    return facts, notes


def _pictures_note(runs: AlignedRuns, count: int, folders: Sequence[PictureFolder]) -> str:
    shown = [runs.tokens[scene] for scene in shown_scenes(runs, count)]
    found = sum(any(pictures_of(token, run, folders).files for run in runs.names) for token in shown)
    return f"{found} of the {len(shown)} scenes that are shown have pictures."


def _write_tables(runs: AlignedRuns, tables: Sequence[Table], page: Path, name: str, intervals: bool) -> None:
    ending, write = FORMATS[name]
    for table in tables:
        text = to_latex(table, intervals) if name == "latex" else write(table)
        page.with_name(f"{page.stem}_{table.key}{ending}").write_text(text, encoding="utf-8")
    if name == "csv":
        with page.with_name(f"{page.stem}_scenes.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(scenes_csv(runs))


def _as_text(table: Table) -> str:
    lines = [[column.head for column in table.columns], *([cell_text(cell) for cell in row] for row in table.rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def _summary(runs: AlignedRuns, estimates: Estimates) -> str:
    several = "runs" if len(runs.runs) > 1 else "run"
    reason = f", taken as independent: {runs.cluster_reason}" if runs.cluster_reason else ""
    return (
        f"{len(runs.runs)} {several}, {len(runs.tokens)} scenes; {100 * estimates.confidence:g} % intervals over "
        f"{estimates.clusters} {runs.cluster_kind}s{reason}"
    )


if __name__ == "__main__":
    sys.exit(main())
