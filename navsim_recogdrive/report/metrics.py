"""The sub-scores of NAVSIM's benchmarks: their columns, usual short names, and what a failure of each is called."""

from __future__ import annotations

from dataclasses import dataclass, replace

PDMS = "PDMS"
"""NAVSIM v1: the PDM score."""

EPDMS = "EPDMS"
"""NAVSIM v2: the extended PDM score."""

SCORE = "score"


@dataclass(frozen=True)
class Metric:
    """A column of a score CSV; every value is in [0, 1] and more is better.

    Attributes:
        column: its name in the CSV.
        short: as in tables of papers.
        name: in words.
    """

    column: str
    short: str
    name: str


@dataclass(frozen=True)
class Failure:
    """A kind of failure: a sub-score of a scene below a limit.

    Attributes:
        key: name for filters and files.
        label: in words.
        column: of the sub-score.
        below: the scene fails if the sub-score is less.
        weighs: whether the sub-score is part of the score.
    """

    key: str
    label: str
    column: str
    below: float = 1.0
    weighs: bool = True


_TOTAL = {
    PDMS: Metric(SCORE, "PDMS", "PDM score"),
    EPDMS: Metric(SCORE, "EPDMS", "extended PDM score"),
}
_NC = Metric("no_at_fault_collisions", "NC", "no at-fault collisions")
_DAC = Metric("drivable_area_compliance", "DAC", "drivable area compliance")
_DDC = Metric("driving_direction_compliance", "DDC", "driving direction compliance")
_TLC = Metric("traffic_light_compliance", "TLC", "traffic light compliance")
_EP = Metric("ego_progress", "EP", "ego progress")
_TTC = Metric("time_to_collision_within_bound", "TTC", "time to collision within bound")
_C = Metric("comfort", "C", "comfort")
_LK = Metric("lane_keeping", "LK", "lane keeping")
_HC = Metric("history_comfort", "HC", "history comfort")
_EC = Metric("two_frame_extended_comfort", "EC", "two-frame extended comfort")

METRICS = {
    PDMS: (_TOTAL[PDMS], _NC, _DAC, _DDC, _EP, _TTC, _C),
    EPDMS: (_TOTAL[EPDMS], _NC, _DAC, _DDC, _TLC, _EP, _TTC, _LK, _HC, _EC),
}
"""Of each benchmark: the score first, then the sub-scores in the order of the published tables."""

WITHOUT_WEIGHT = {PDMS: frozenset({_DDC.column}), EPDMS: frozenset[str]()}
"""Columns that NAVSIM writes but gives no weight in the score."""

PROGRESS_FACTORS = {PDMS: (_NC.column, _DAC.column), EPDMS: ()}
"""Sub-scores that NAVSIM multiplies progress by before it writes it: where one is below 1, progress repeats it."""

PROGRESS = _EP.column

SLOW_BELOW = 0.5

_FAILURES = (
    Failure("collision", "at-fault collision", _NC.column),
    Failure("off_road", "off the drivable area", _DAC.column),
    Failure("wrong_direction", "wrong driving direction", _DDC.column),
    Failure("red_light", "red light", _TLC.column),
    Failure("time_to_collision", "time to collision too short", _TTC.column),
    Failure("slow", f"progress below {SLOW_BELOW}", _EP.column, SLOW_BELOW),
    Failure("lane", "lane not kept", _LK.column),
    Failure("comfort", "uncomfortable", _C.column),
    Failure("history_comfort", "uncomfortable (with the history)", _HC.column),
    Failure("two_frame_comfort", "plans of two frames disagree", _EC.column),
)


def failures_of(benchmark: str) -> tuple[Failure, ...]:
    """The kinds of failure that a benchmark's sub-scores tell apart; the label says if one costs nothing."""
    columns = {metric.column for metric in METRICS[benchmark]}
    found = (failure for failure in _FAILURES if failure.column in columns)
    return tuple(_weighed(failure, failure.column not in WITHOUT_WEIGHT[benchmark]) for failure in found)


def _weighed(failure: Failure, weighs: bool) -> Failure:
    return failure if weighs else replace(failure, label=f"{failure.label} (weight 0)", weighs=False)
