"""The legend of a picture: what its colours mean, set in rows that fit its width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from navsim_recogdrive.viz.canvas import Canvas
from navsim_recogdrive.viz.palette import (
    AGENT_FILL,
    AGENT_NAMES,
    AREA_FILL,
    HISTORY,
    HUMAN,
    HUMAN_DASHES,
    INK,
    LINE,
    RIM_ALPHA,
    SAMPLES,
    Colour,
    Dashes,
    darker,
    plan_style,
    reward_colour,
)
from navsim_recogdrive.viz.scene_view import SceneView

_BAR_STEPS = 24


@dataclass(frozen=True)
class Entry:
    """One sign and its meaning.

    Attributes:
        label: the meaning.
        kind: ``line``, ``box``, ``outline`` (of a box that is seen through), ``moving`` (a box and its velocity) or
            ``bar`` (a scale of rewards).
        colour: of the sign; a bar has its own.
        dashes: of a line.
        dots: on a line.
        rim: a dark one round a line.
        scale: rewards at the ends of a bar.
    """

    label: str
    kind: str
    colour: Colour = INK
    dashes: Dashes | None = None
    dots: bool = False
    rim: bool = False
    scale: tuple[float, float] = (0.0, 1.0)


def trajectory_entries(view: SceneView) -> list[Entry]:
    """Signs of the trajectories in a view, the most important first."""
    entries = []
    for index in reversed(range(len(view.plans))):
        plan, style = view.plans[index], plan_style(index)
        label = plan.label if plan.score is None else f"{plan.label} ({plan.score:.3f})"
        entries.append(Entry(label, "line", style.colour, style.dashes, dots=True))
    if view.human is not None:
        entries.append(Entry("human", "line", HUMAN, HUMAN_DASHES, dots=True))
    if view.samples is not None:
        label = f"{len(view.samples.poses)} {view.samples.label}"
        if view.samples.rewards is None:
            entries.append(Entry(label, "line", SAMPLES, rim=True))
        else:
            entries.append(Entry(f"{label}, reward", "bar", scale=view.samples.scale))
    return entries


def scene_entries(view: SceneView) -> list[Entry]:
    """Signs of what else a bird's-eye view shows."""
    entries = []
    if view.past_poses is not None and len(view.past_poses) > 1:
        entries.append(Entry("past", "line", HISTORY))
    simulated = [plan_style(index).colour for index, plan in enumerate(view.plans) if plan.footprint is not None]
    if simulated:
        entries.append(Entry("simulated ego", "outline", simulated[-1]))
    kinds = {agent.kind for agent in view.agents}
    entries += [Entry(name, "box", AGENT_FILL[kind]) for kind, name in AGENT_NAMES.items() if kind in kinds]
    if kinds - set(AGENT_NAMES):
        entries.append(Entry("object", "box", AGENT_FILL["generic_object"]))
    moving = {agent.kind for agent in view.agents if agent.moves}
    if moving:
        kind = "vehicle" if "vehicle" in moving else min(moving)
        entries.append(Entry("velocity, 1 s", "moving", AGENT_FILL[kind]))
    for area_kind, name in (("route", "route"), ("stop_line", "stop line")):
        if any(area.kind == area_kind for area in view.areas):
            entries.append(Entry(name, "box", AREA_FILL[area_kind]))
    if any(line.kind == "red_light" for line in view.lines):
        entries.append(Entry("red light", "line", LINE["red_light"]))
    return entries


class Legend:
    """Entries set in rows.

    Args:
        canvas: what it will be drawn on.
        entries: in order.
        width: of the rows, pixels.
        size: of the letters, pixels.
    """

    def __init__(self, canvas: Canvas, entries: Sequence[Entry], width: float, size: float) -> None:
        self._canvas = canvas
        self._size = size
        self._rows: list[list[tuple[float, Entry]]] = []
        self.row_height = 1.55 * size
        self.width = 0.0
        at = np.inf
        for entry in entries:
            needed = self._sign_width(entry) + 0.45 * size + canvas.text_width(self._text(entry), size)
            if at + needed > width:
                self._rows.append([])
                at = 0.0
            self._rows[-1].append((at, entry))
            self.width = max(self.width, at + needed)
            at += needed + 1.3 * size

    @property
    def height(self) -> float:
        """Of all rows, pixels."""
        return self.row_height * len(self._rows)

    def draw(self, left: float, top: float) -> None:
        """Draw it with its upper left corner at (left, top)."""
        for row, entries in enumerate(self._rows):
            middle = top + (row + 0.5) * self.row_height
            for at, entry in entries:
                self._draw_sign(entry, left + at, middle)
                text_at = left + at + self._sign_width(entry) + 0.45 * self._size
                self._canvas.text((text_at, middle), self._text(entry), self._size, INK)

    def _sign_width(self, entry: Entry) -> float:
        return self._size * {"line": 2.0, "box": 1.1, "outline": 1.5, "moving": 2.0, "bar": 5.0}[entry.kind]

    def _text(self, entry: Entry) -> str:
        if entry.kind != "bar":
            return entry.label
        low, high = (f"{value:.2f}".rstrip("0").rstrip(".") for value in entry.scale)
        return f"{entry.label} {low} to {high}"

    def _draw_sign(self, entry: Entry, left: float, middle: float) -> None:
        canvas, size, right = self._canvas, self._size, left + self._sign_width(entry)
        unit = size / 14.0
        if entry.kind == "line":
            dashes = None if entry.dashes is None else (entry.dashes[0] * unit, entry.dashes[1] * unit)
            ends = np.array([[left, middle], [right, middle]])
            if entry.rim:
                canvas.line(ends, INK, 4.0 * unit, alpha=RIM_ALPHA)
            canvas.line(ends, entry.colour, 2.6 * unit, dashes=dashes)
            if entry.dots:
                canvas.disc(((left + right) / 2, middle), 3.2 * unit, entry.colour, edge=(255, 255, 255), width=unit)
            return
        top, bottom = middle - 0.42 * size, middle + 0.42 * size
        if entry.kind == "moving":
            canvas.line(np.array([[left, middle], [right, middle]]), darker(entry.colour), 1.6 * unit)
            right = left + 1.1 * size
        if entry.kind != "bar":
            box = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            if entry.kind == "outline":
                canvas.polygon([box], entry.colour, alpha=0.16)
                canvas.polygon([box], None, alpha=0.8, edge=entry.colour, width=1.2 * unit)
            else:
                canvas.polygon([box], entry.colour, edge=darker(entry.colour), width=unit)
            return
        edges = np.linspace(left, right, _BAR_STEPS + 1)
        for step, (start, stop) in enumerate(pairwise(edges.tolist())):
            colour = reward_colour(step / (_BAR_STEPS - 1), (0.0, 1.0))
            box = np.array([[start, top], [stop + 0.5, top], [stop + 0.5, bottom], [start, bottom]])
            canvas.polygon([box], colour)
