"""The report's figures as inline SVG; colours come from the page's style, and follow its light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.report.estimates import Estimate
from navsim_recogdrive.report.markup import Markup, element
from navsim_recogdrive.report.pictures import Points
from navsim_recogdrive.report.run_keys import RunKey
from navsim_recogdrive.report.tables import number

WIDTH = 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 20.0, 8.0, 30.0


def mark(key: RunKey, x: float, y: float, size: float = 4.5) -> Markup:
    """The mark of a run."""
    style = f"fill {key.colour}"
    if key.mark == "circle":
        return element("circle", cx=_f(x), cy=_f(y), r=size, class_=style)
    if key.mark == "square":
        edge = 1.8 * size
        return element("rect", x=_f(x - edge / 2), y=_f(y - edge / 2), width=edge, height=edge, class_=style)
    reach = 1.3 * size
    corners = [(0, -reach), (reach, 0), (0, reach), (-reach, 0)]
    if key.mark == "triangle":
        corners = [(0, -reach), (reach, 0.8 * reach), (-reach, 0.8 * reach)]
    if key.mark == "cross":
        arm = 0.38 * reach
        corners = [(-arm, -reach), (arm, -reach), (arm, -arm), (reach, -arm), (reach, arm), (arm, arm)]
        corners += [(-right, -down) for right, down in corners]
    return element("polygon", points=" ".join(f"{_f(x + dx)},{_f(y + dy)}" for dx, dy in corners), class_=style)


def key_mark(key: RunKey) -> Markup:
    """A run's mark, to stand beside its name in text."""
    return element("svg", mark(key, 7, 7), viewBox="0 0 14 14", class_="key", aria_hidden="true")


def intervals(rows: Sequence[tuple[str, RunKey, Estimate]], zero: bool = False) -> Markup:
    """Means with their intervals, one row per run.

    Args:
        rows: name and look of the run, mean.
        zero: whether zero is marked and shown: for differences.
    """
    values = [value for _, _, mean in rows for value in (mean.value, mean.low, mean.high) if not math.isnan(value)]
    values += [0.0] if zero else []
    if not values:
        return Markup()
    ticks = _ticks(min(values), max(values), None if zero else (0.0, 1.0))
    height = _TOP + 22.0 * len(rows) + _BOTTOM
    scale = _Scale(ticks[0], ticks[-1], 14.0, WIDTH - 62.0)
    parts = [_axis(ticks, scale, height, signed=zero)]
    if zero:
        parts.append(element("line", x1=_f(scale(0)), x2=_f(scale(0)), y1=_TOP, y2=height - _BOTTOM, class_="zero"))
    for place, (name, key, mean) in enumerate(rows):
        if math.isnan(mean.value):
            continue
        y = _TOP + 22.0 * place + 12.0
        row = [element("title", f"{name}: {number(mean.value, sign='+' if zero else '')}{_range(mean)}")]
        if not math.isnan(mean.low):
            row.append(
                element(
                    "line", x1=_f(scale(mean.low)), x2=_f(scale(mean.high)), y1=y, y2=y, class_=f"whisker {key.colour}"
                )
            )
        row.append(mark(key, scale(mean.value), y))
        row.append(element("text", number(mean.value, sign="+" if zero else ""), x=WIDTH - 2, y=y + 4, class_="value"))
        parts.append(element("g", row))
    label = "; ".join(f"{name} {number(mean.value)}{_range(mean)}" for name, _, mean in rows)
    return _figure(parts, height, label)


def histogram(values: NDArray[np.float64], low: float, high: float, bins: int, key: RunKey, what: str) -> Markup:
    """Numbers of scenes in bins of equal width; the last bin holds its upper limit.

    Args:
        values: ``[S]``, NaN left out.
        low: lower limit of the first bin.
        high: upper limit of the last.
        bins: how many.
        key: look of the run, for the colour.
        what: is counted, for those who cannot see it.
    """
    known = values[~np.isnan(values)]
    counts, edges = np.histogram(np.clip(known, low, high), bins=bins, range=(low, high))
    height = 150.0
    across = _Scale(low, high, _LEFT, WIDTH - _RIGHT)
    ticks = _count_ticks(int(counts.max(initial=0)))
    up = _Scale(0.0, float(ticks[-1]), height - _BOTTOM, _TOP)
    parts = [_axis([low + (high - low) * part / 4 for part in range(5)], across, height, signed=low < 0)]
    for tick in ticks:
        y = up(float(tick))
        parts.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=_f(y), y2=_f(y), class_="grid"))
        parts.append(element("text", str(tick), x=_LEFT - 5, y=_f(y + 4), class_="value"))
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            y, x = up(float(count)), across(float(left))
            title = element("title", f"{left:.2f} to {right:.2f}: {count} scenes")
            wide = max(0.5, across(float(right)) - x - 1)
            parts.append(
                element(
                    "rect", title, x=_f(x + 0.5), y=_f(y), width=_f(wide), height=_f(height - _BOTTOM - y),
                    class_=f"fill {key.colour}",
                )
            )  # fmt: skip
    shown = ", ".join(
        f"{left:.2f} to {right:.2f}: {count}" for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
    )
    return _figure(parts, height, f"Histogram of {what}, {len(known)} scenes. {shown}")


def bird_eye(trajectories: Mapping[str, Points], keys: Mapping[str, RunKey]) -> Markup:
    """Trajectories of a scene from above, the ego vehicle at the bottom, driving up; equal scales in both directions.

    Args:
        trajectories: points in the ego frame (metres, x forward, y left) by name.
        keys: looks by name; trajectories that are called otherwise are drawn in grey, dashed.
    """
    points = [(0.0, 0.0), *(point for rows in trajectories.values() for point in rows)]
    forward = [x for x, _ in points]
    side = [y for _, y in points]
    reach = max(max(forward) - min(forward), max(side) - min(side), 10.0) * 1.12
    middle_x, middle_y = (max(forward) + min(forward)) / 2, (max(side) + min(side)) / 2
    size = 240.0
    scale = size / reach

    def place(x: float, y: float) -> tuple[float, float]:
        return size / 2 - (y - middle_y) * scale, size / 2 - (x - middle_x) * scale

    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if step * scale >= 30 or step == 1000)
    parts = [
        element("line", x1=8, x2=_f(8 + step * scale), y1=_f(size + 14), y2=_f(size + 14), class_="axis"),
        element("text", f"{step} m", x=_f(14 + step * scale), y=_f(size + 18)),
    ]
    at = place(0.0, 0.0)
    for name, rows in trajectories.items():
        line = " ".join(f"{_f(x)},{_f(y)}" for x, y in (at, *(place(*row) for row in rows)))
        key = keys.get(name)
        style = f"path {key.colour}" if key else "path other"
        parts.append(element("polyline", element("title", name), points=line, class_=style))
        end = place(*rows[-1])
        parts.append(mark(key, *end) if key else element("circle", cx=_f(end[0]), cy=_f(end[1]), r=3.5))
    parts.append(element("polygon", points=f"{_f(at[0])},{_f(at[1] - 7)} {_f(at[0] + 5)},{_f(at[1] + 5)} "
                         f"{_f(at[0] - 5)},{_f(at[1] + 5)}", class_="ego"))  # fmt: skip
    label = f"Trajectories from above: {', '.join(trajectories)}"
    return element(
        "svg", element("title", label), parts, viewBox=f"0 0 {size:g} {size + 24:g}", role="img", class_="bird-eye"
    )


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._slope = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._slope


def _ticks(low: float, high: float, limits: tuple[float, float] | None) -> list[float]:
    """Three to six round numbers that enclose a range, within limits."""
    span = max(high - low, 0.02)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if span / step <= 4.0 or step == 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if limits is not None and first * step >= limits[1]:
        first -= 1
    last = max(last, first + 1)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _count_ticks(largest: int) -> list[int]:
    unit = 1
    while True:
        for step in (unit, 2 * unit, 5 * unit):
            if largest <= 4 * step:
                return list(range(0, max(step, -(-largest // step) * step) + 1, step))
        unit *= 10


def _axis(ticks: Sequence[float], scale: _Scale, height: float, signed: bool) -> Markup:
    base = height - _BOTTOM
    parts = [element("line", x1=_f(scale(ticks[0])), x2=_f(scale(ticks[-1])), y1=base, y2=base, class_="axis")]
    for tick in ticks:
        x = _f(scale(tick))
        parts.append(element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        text = f"{tick:+.2f}" if signed and tick else f"{tick:.2f}"
        parts.append(element("text", text, x=x, y=base + 17, class_="tick"))
    return element("g", parts)


def _figure(parts: Sequence[Markup], height: float, label: str) -> Markup:
    return element("svg", parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label)


def _range(mean: Estimate) -> str:
    return "" if math.isnan(mean.low) else f" [{number(mean.low)}, {number(mean.high)}]"


def _f(value: float) -> str:
    return f"{value:.1f}"
