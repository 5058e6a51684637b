"""The worst scenes as cards: sub-scores of every run, pictures and trajectories where there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from navsim_recogdrive.report import figures
from navsim_recogdrive.report.aligned import AlignedRuns
from navsim_recogdrive.report.estimates import CHANGED_BY, most_worsened, worst_scenes
from navsim_recogdrive.report.markup import Child, Markup, element
from navsim_recogdrive.report.pictures import PictureFolder, Points, data_uri, pictures_of
from navsim_recogdrive.report.run_keys import HUMAN, HUMAN_KEY, RunKey, run_keys
from navsim_recogdrive.report.runs import STAGES
from navsim_recogdrive.report.scene_facts import SceneFacts
from navsim_recogdrive.report.tables import number


def shown_scenes(runs: AlignedRuns, count: int) -> list[int]:
    """Numbers of all scenes that get a card, each once, those of the first run first."""
    scenes = [scene for run in range(len(runs.runs)) for scene in worst_scenes(runs, run, count)]
    scenes += [scene for run in range(1, len(runs.runs)) for scene in most_worsened(runs, run, count)]
    return list(dict.fromkeys(scenes))


def cards(runs: AlignedRuns, count: int, folders: Sequence[PictureFolder]) -> Markup:
    """A list of cards for the worst scenes of each run, and for those that fell most from the baseline.

    A picture is stored once in the page: further cards of its scene refer to the first. A card with a picture has no
    colour of the runs in it, since in the picture colours may stand for other plans; its own legend tells.

    Raises:
        UnreadablePicture: if a picture cannot be read.
    """
    if count < 1:
        return element("p", "No scenes were asked for.")
    seen: set[Path] = set()

    def card(scene: int, run: int) -> Markup:
        return _card(runs, scene, run, folders, seen)

    lists = []
    for run, name in enumerate(runs.names):
        scenes = worst_scenes(runs, run, count)
        heading = f"Lowest {runs.benchmark} of {name}"
        lists.append(_list(heading, _lowest_note(runs, run, scenes), scenes, run, card, opened=run == 0))
    for run in range(1, len(runs.runs)):
        scenes = most_worsened(runs, run, count)
        heading = f"Fell most from {runs.names[0]} to {runs.names[run]}"
        fell = int((runs.scores[run, 0] - runs.scores[0, 0] < -CHANGED_BY).sum())
        lists.append(_list(heading, f"{len(scenes)} of {fell} scenes whose score fell.", scenes, run, card))
    return Markup("".join(lists))


def _lowest_note(runs: AlignedRuns, run: int, scenes: Sequence[int]) -> str:
    if not scenes:
        return "No scene was scored."
    scores = runs.scores[run, 0]
    last = scores[scenes[-1]]
    equal = int((np.abs(scores - last) <= 1e-9).sum())
    shown = int((np.abs(scores[list(scenes)] - last) <= 1e-9).sum())
    if equal <= shown:
        return f"{len(scenes)} scenes."
    return (
        f"{len(scenes)} scenes; {equal} have a score of {number(float(last))}, and of these the ones with most kinds "
        "of failure are shown."
    )


def _list(
    heading: str, note: str, scenes: Sequence[int], run: int, card: Callable[[int, int], Markup], opened: bool = False
) -> Markup:
    grid = element("div", [card(scene, run) for scene in scenes], class_="cards")
    return element("details", element("summary", heading), element("p", note), grid, open=opened)


def _card(runs: AlignedRuns, scene: int, run: int, folders: Sequence[PictureFolder], seen: set[Path]) -> Markup:
    token = runs.tokens[scene]
    found = pictures_of(token, runs.names[run], folders)
    keys = run_keys(runs.names)
    parts: list[Child] = [
        element("h3", element("code", token)),
        element("p", _facts(runs, scene, found.facts), class_="facts"),
    ]
    new = [path for path in found.files if path not in seen]
    seen.update(new)
    parts.append(_pictures(token, new, runs.names[run]))
    if len(new) < len(found.files):
        parts.append(element("p", "Its pictures stand in an earlier card of this scene.", class_="facts"))
    if found.trajectories and not found.files:
        looks = {**keys, HUMAN: HUMAN_KEY}
        drawn = figures.bird_eye(found.trajectories, looks)
        parts.append(element("div", drawn, _trajectory_legend(found.trajectories, looks), class_="paths"))
    parts += [element("p", caption, class_="facts") for caption in found.captions]
    kinds = [
        element("li", failure.label)
        for index, failure in enumerate(runs.failures)
        if runs.failed[run, index, scene] == 1
    ]
    parts.append(element("ul", kinds, class_="kinds", aria_label="Failures") if kinds else None)
    parts.append(_score_table(runs, scene, {} if found.files else keys))
    return element("article", parts, class_="card", data_token=token, data_run=run)


def _facts(runs: AlignedRuns, scene: int, noted: SceneFacts) -> str:
    known = runs.facts[scene]
    log, command = known.log_name or noted.log_name, known.command or noted.command
    speed = known.speed if not math.isnan(known.speed) else noted.speed
    parts = [log, f"command: {command}" if command else "", "" if math.isnan(speed) else f"{speed:.1f} m/s"]
    parts += [STAGES[int(runs.stage[scene])]] if runs.stage is not None else []
    return " · ".join(part for part in parts if part)


def _pictures(token: str, files: Sequence[Path], run: str) -> list[Markup]:
    """Buttons, since the script shows a picture larger when one is pressed."""
    return [
        element(
            "button",
            element("img", src=data_uri(path), alt=f"Scene {token}, {run}: {path.name}"),
            type="button",
            class_="picture",
            title="Show larger",
        )
        for path in files
    ]


def _trajectory_legend(trajectories: Mapping[str, Points], keys: Mapping[str, RunKey]) -> Markup:
    items = [
        element("li", figures.key_mark(keys[name]) if name in keys else element("span", class_="other"), name)
        for name in trajectories
    ]
    return element("ul", items, class_="legend")


def _score_table(runs: AlignedRuns, scene: int, keys: Mapping[str, RunKey]) -> Markup:
    """Sub-scores by run; runs without a key stand without a mark."""
    heads = [element("th", element("abbr", metric.short, title=metric.name), scope="col") for metric in runs.metrics]
    failed = [
        {kind.column for kind, value in zip(runs.failures, runs.failed[run, :, scene], strict=True) if value == 1}
        for run in range(len(runs.runs))
    ]
    rows = [
        element(
            "tr",
            element("th", figures.key_mark(keys[name]) if name in keys else None, name, scope="row"),
            [
                element("td", number(float(value)), class_="low" if metric.column in failed[index] else None)
                for metric, value in zip(runs.metrics, runs.scores[index, :, scene], strict=True)
            ],
        )
        for index, name in enumerate(runs.names)
    ]
    table = element(
        "table",
        element("thead", element("tr", element("td"), heads)),
        element("tbody", rows),
        class_="numbers small",
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Sub-scores")
