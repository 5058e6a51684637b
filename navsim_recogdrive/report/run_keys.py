"""How a run looks on the page: a colour and a mark that stay with its name; the human driver has one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HUMAN = "human"
"""Name of the human driver, as a run and as a trajectory: green, in dashes, as in the pictures of scenes."""

COLOURS = 7
MARKS = ("circle", "square", "triangle", "diamond")
DISTINCT = COLOURS * len(MARKS)
"""Numbers of runs after which colour and mark together come again; neither number divides the other."""


class RunKey(NamedTuple):
    """A run's look.

    Attributes:
        colour: style class of the page.
        mark: its shape.
    """

    colour: str
    mark: str


HUMAN_KEY = RunKey("run-human", "cross")


def run_keys(names: Sequence[str]) -> dict[str, RunKey]:
    """Colour and mark of each run by its name; all apart for up to :data:`DISTINCT` runs.

    Args:
        names: of the runs in the report's order.
    """
    keys = {}
    for index, name in enumerate(name for name in names if name != HUMAN):
        keys[name] = RunKey(f"run-{index % COLOURS}", MARKS[index % len(MARKS)])
    return {name: HUMAN_KEY if name == HUMAN else keys[name] for name in names}
