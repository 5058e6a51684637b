"""The HTML page: one file that reads nothing but itself; only its table of all scenes needs the script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np

from navsim_recogdrive.report import figures
from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.estimates import Estimate, Estimates
from navsim_recogdrive.report.markup import Child, Markup, element, embedded_json
from navsim_recogdrive.report.metrics import PROGRESS, PROGRESS_FACTORS
from navsim_recogdrive.report.pictures import PictureFolder
from navsim_recogdrive.report.run_keys import RunKey, run_keys
from navsim_recogdrive.report.scene_cards import cards
from navsim_recogdrive.report.scene_data import scene_data
from navsim_recogdrive.report.statistics import FEW_CLUSTERS
from navsim_recogdrive.report.tables import MISSING, Cell, Change, Table, limits, number, p_text, tables_of

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
_POLICY += "form-action 'none'"
_SCORE_BINS = 20
# An odd number: scenes that did not change stand in the middle of one.
_CHANGE_BINS = 21


@dataclass(frozen=True)
class PageOptions:
    """What a page shows beside the numbers.

    Attributes:
        title: of the page.
        worst: how many scenes of each run are shown as cards.
        pictures: folders with pictures of scenes.
        settings: of each run, by name of the run; shown in a table.
        notes: what a reader should know before the numbers.
    """

    title: str = "Evaluation report"
    worst: int = 12
    pictures: tuple[PictureFolder, ...] = ()
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_page(runs: AlignedRuns, estimates: Estimates, options: PageOptions) -> str:
    """The page as text.

    Raises:
        UnreadablePicture: if a picture of a scene that is shown cannot be read.
    """
    keys = run_keys(runs.names)
    tables = {table.key: html_table(table, keys) for table in tables_of(runs, estimates)}
    sections = [
        _section("runs", "Runs", _runs(runs, options), _notes(runs, estimates, options)),
        _section("scores", "Scores", tables["scores"], _score_figures(runs, estimates)),
    ]
    if "differences" in tables:
        drawn = _difference_figures(runs, estimates)
        sections.append(_section("differences", f"Compared with {runs.names[0]}", tables["differences"], drawn))
    sections.append(_section("distributions", "Distributions", _histograms(runs)))
    failures = [_failure_figures(runs, estimates), tables["failures"], tables.get("commands")]
    sections.append(_section("failures", "Failures", failures))
    sections.append(_section("worst", "Worst scenes", cards(runs, options.worst, options.pictures)))
    sections.append(_section("scenes", "All scenes", _scene_browser(runs)))
    links = [element("a", text, href=f"#{key}") for key, text, _ in sections]
    body = [
        element("a", "Skip to the scores", href="#scores", class_="skip"),
        element("header", element("h1", options.title), element("p", _summary(runs)), class_="top"),
        element("nav", links, aria_label="Sections"),
        element("main", [content for _, _, content in sections]),
        element(
            "dialog", element("img", alt="The picture, larger"), element("button", "Close", type="button"), id="large"
        ),
        embedded_json("data", scene_data(runs)),
        element("script", Markup(_resource("page.js"))),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="navsim-recogdrive"),
        element("title", options.title),
        element("style", Markup(_resource("page.css"))),
    ]
    return f"<!DOCTYPE html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"


def _resource(name: str) -> str:
    return (files("navsim_recogdrive.report") / name).read_text(encoding="utf-8")


def _section(key: str, heading: str, *children: Child) -> tuple[str, str, Markup]:
    content = element("section", element("h2", heading, id=f"{key}-heading"), list(children), id=key,
                      aria_labelledby=f"{key}-heading")  # fmt: skip
    return key, heading, content


def _summary(runs: AlignedRuns) -> str:
    names = ", ".join(runs.names)
    kind = runs.benchmark if runs.stage is None else f"{runs.benchmark} in two stages"
    return f"{kind} of {names} on {len(runs.tokens)} scenes"


def _runs(runs: AlignedRuns, options: PageOptions) -> Markup:
    shown = list(dict.fromkeys(name for settings in options.settings.values() for name in settings))
    head = ["run", "file", *shown]
    keys = run_keys(runs.names)
    rows = []
    for run in runs.runs:
        settings = options.settings.get(run.name, {})
        notes = [element("span", note, class_="warning") for note in run.notes]
        cells = [element("th", figures.key_mark(keys[run.name]), run.name, scope="row")]
        cells.append(element("td", element("code", str(run.path)), notes))
        cells += [element("td", settings.get(name, MISSING)) for name in shown]
        rows.append(element("tr", cells))
    return _scrolled(
        element("thead", element("tr", [element("th", name, scope="col") for name in head])),
        element("tbody", rows),
        label="Runs",
        class_="plain",
    )


def _notes(runs: AlignedRuns, estimates: Estimates, options: PageOptions) -> Markup:
    notes = list(options.notes)
    if runs.cluster_kind == "log":
        notes.append(
            f"Intervals resample the {estimates.clusters} logs, not the scenes: those of one drive resemble each other."
        )
    else:
        notes.append(_scenes_note(runs))
    if estimates.clusters < FEW_CLUSTERS:
        notes.append(f"With {estimates.clusters} {runs.cluster_kind}s every interval and every p-value is rough.")
    notes.append("An interval without width says only that all scenes have the same value.")
    notes.append(
        f"Bootstrap: {estimates.replicates} resamples, seed {estimates.seed}; the same resamples for every run, so "
        "that differences are paired."
    )
    if not runs.commands:
        notes.append("The driving commands are not known (--scene-facts), so failures are not told apart by command.")
    common = int((~np.isnan(runs.scores[:, 0])).all(axis=0).sum())
    if len(runs.runs) > 1 and common < len(runs.tokens):
        notes.append(f"All runs have scored {common} of the {len(runs.tokens)} scenes.")
    return element("ul", [element("li", note) for note in notes], class_="notes")


def _scenes_note(runs: AlignedRuns) -> str:
    several = len(runs.runs) > 1
    note = (
        f"{'Intervals and tests' if several else 'Intervals'} take the scenes as independent: {runs.cluster_reason}. "
    )
    note += "Scenes of one drive resemble each other, so intervals are narrower "
    return note + (
        "and p-values smaller than they should be; no difference is coloured." if several else "than they should be."
    )


def html_table(table: Table, keys: Mapping[str, RunKey]) -> Markup:
    """A table with its caption, in a frame that scrolls by itself on narrow screens; names of runs get their mark."""
    heads = [
        element(
            "th",
            element("abbr", column.head, title=column.title) if column.title else column.head,
            scope="col",
            class_="text" if all(isinstance(row[index], str) for row in table.rows) else None,
        )
        for index, column in enumerate(table.columns)
    ]
    rows = [
        element(
            "tr", element("th", _marked(str(row[0]), keys), scope="row"), [_html_cell(cell, keys) for cell in row[1:]]
        )
        for row in table.rows
    ]
    return _scrolled(
        element("caption", table.full_caption),
        element("thead", element("tr", heads)),
        element("tbody", rows),
        label=table.caption.split(".")[0],
        class_="numbers",
    )


def _scrolled(*children: Child, label: str, class_: str) -> Markup:
    table = element("table", list(children), class_=class_)
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex=0)


def _marked(text: str, keys: Mapping[str, RunKey]) -> list[str]:
    return [figures.key_mark(keys[text]), text] if text in keys else [text]


def _html_cell(cell: Cell, keys: Mapping[str, RunKey]) -> Markup:
    if isinstance(cell, Change):
        mean = cell.estimate
        style = ("better" if mean.value > 0 else "worse") if cell.clear else None
        p_value = element("small", p_text(cell.p_value))
        value = element("span", number(mean.value, sign="+"), class_="mean")
        return element("td", value, element("small", limits(mean, sign="+")), p_value, class_=style)
    if isinstance(cell, Estimate):
        return element("td", element("span", number(cell.value), class_="mean"), element("small", limits(cell)))
    if isinstance(cell, str):
        return element("td", _marked(cell, keys), class_="text")
    return element("td", number(cell) if isinstance(cell, float) else str(cell))


def _panel(heading: str, content: Markup, note: str = "") -> Markup:
    text = element("figcaption", heading, element("small", note) if note else None)
    return element("figure", text, content)


def _panels(panels: Sequence[Markup]) -> Markup:
    return element("div", list(panels), class_="panels")


def _legend(runs: AlignedRuns, first: int = 0) -> Markup:
    keys = run_keys(runs.names)
    items = [element("li", figures.key_mark(keys[name]), name) for name in runs.names[first:]]
    return element("ul", items, class_="legend")


def _score_figures(runs: AlignedRuns, estimates: Estimates) -> Markup:
    panels = []
    for stage, _ in runs.parts:
        rows = [score for score in estimates.scores if score.part == stage]
        for index, metric in enumerate(runs.metrics):
            drawn = _drawn(runs, [(row.run, row.means[index]) for row in rows])
            panels.append(_panel(_heading(metric.short, stage), figures.intervals(drawn), metric.name))
    return Markup(_legend(runs) + _panels(panels))


def _difference_figures(runs: AlignedRuns, estimates: Estimates) -> Markup:
    panels = []
    for stage, _ in runs.parts:
        rows = [difference for difference in estimates.differences if difference.part == stage]
        for index, metric in enumerate(runs.metrics):
            drawn = _drawn(runs, [(row.run, row.means[index]) for row in rows])
            heading = _heading(f"{metric.short} minus {runs.names[0]}", stage)
            panels.append(_panel(heading, figures.intervals(drawn, zero=True), metric.name))
    return Markup(_legend(runs, first=1) + _panels(panels))


def _failure_figures(runs: AlignedRuns, estimates: Estimates) -> Markup:
    panels = []
    for stage, _ in runs.parts:
        for kind, failure in enumerate(runs.failures):
            rows = [count for count in estimates.failures if (count.kind, count.part) == (kind, stage)]
            drawn = _drawn(runs, [(row.run, row.share) for row in rows])
            heading = _heading(failure.label[0].upper() + failure.label[1:], stage)
            note = "share of the scenes" + (_of_which(runs) if failure.column == PROGRESS else "")
            panels.append(_panel(heading, figures.intervals(drawn), note))
    return Markup(_legend(runs) + _panels(panels))


def _drawn(runs: AlignedRuns, means: Sequence[tuple[int, Estimate]]) -> list[tuple[str, RunKey, Estimate]]:
    keys = run_keys(runs.names)
    return [(runs.names[run], keys[runs.names[run]], mean) for run, mean in means]


def _of_which(runs: AlignedRuns) -> str:
    """What scenes progress is counted in."""
    factors = [metric.short for metric in runs.metrics if metric.column in PROGRESS_FACTORS[runs.benchmark]]
    return f" with {' and '.join(factors)} of 1" if factors else ""


def _heading(text: str, stage: str) -> str:
    return f"{text}, {stage}" if stage else text


def _histograms(runs: AlignedRuns) -> Markup:
    keys = run_keys(runs.names)
    (progress,) = (metric for metric in runs.metrics if metric.column == PROGRESS)
    panels = []
    for stage, inside in runs.parts:
        for index, (name, key) in enumerate(keys.items()):
            shown = [
                (runs.metrics[0], runs.scores[index, 0], ""),
                (progress, runs.plain_progress[index], _of_which(runs)),
            ]
            for metric, values, which in shown:
                what = _heading(f"{metric.name} of {name}", stage)
                drawn = figures.histogram(values[inside], 0.0, 1.0, _SCORE_BINS, key, what)
                panels.append(_panel(_heading(f"{metric.short} of {name}", stage), drawn, f"scenes{which}"))
            if index:
                change = (runs.scores[index, 0] - runs.scores[0, 0])[inside]
                what = _heading(f"the change of {runs.benchmark} from {runs.names[0]} to {name}", stage)
                drawn = figures.histogram(change, -1.0, 1.0, _CHANGE_BINS, key, what)
                heading = _heading(f"{runs.benchmark}: {name} minus {runs.names[0]}", stage)
                panels.append(_panel(heading, drawn, "scenes"))
    return _panels(panels)


def _scene_browser(runs: AlignedRuns) -> Markup:
    """What the script fills: filters, table and pages."""
    several = len(runs.runs) > 1
    names = [(str(index), name) for index, name in enumerate(runs.names)]
    kinds = [("", "any"), ("some", "some failure"), ("none", "no failure")]
    kinds += [(kind.key, kind.label) for kind in runs.failures] + [("unscored", "not scored")]
    controls = [
        _field("Token or log", element("input", type="search", id="filter-text", autocomplete="off")),
        _field("Run", _select("run", names))
        if several
        else element("input", type="hidden", id="filter-run", value="0"),
        _field("Failure", _select("failure", kinds)),
    ]
    if several:
        changes = [("", "any"), ("better", "better"), ("worse", "worse"), ("same", "the same")]
        controls.append(_field(f"Score, against {runs.names[0]}", _select("change", changes)))
    if runs.commands:
        commands = [("", "any"), *((name, name) for name, _ in runs.commands)]
        controls.append(_field("Command", _select("command", commands)))
    if runs.stage is not None:
        controls.append(_field("Stage", _select("stage", [("", "both"), ("0", "one"), ("1", "two")])))
    controls.append(element("button", "Reset", type="button", id="filter-reset"))
    controls.append(element("button", "Save as CSV", type="button", id="save"))
    table = _scrolled(
        element("thead", element("tr", id="scene-head")),
        element("tbody", id="scene-rows"),
        label="All scenes",
        class_="numbers browser",
    )
    pages = element(
        "div",
        element("button", "Previous", type="button", id="page-before"),
        element("span", id="page-now"),
        element("button", "Next", type="button", id="page-after"),
        class_="pages",
    )
    return Markup(
        element("noscript", element("p", "This table needs JavaScript; everything above does not."))
        + element("div", controls, class_="controls", role="search", aria_label="Filter scenes")
        + element("p", id="scene-count", role="status")
        + table
        + pages
    )


def _field(label: str, control: Markup) -> Markup:
    return element("label", element("span", label), control)


def _select(key: str, options: Sequence[tuple[str, str]]) -> Markup:
    return element("select", [element("option", text, value=value) for value, text in options], id=f"filter-{key}")
