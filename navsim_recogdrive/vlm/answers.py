"""From a VLM's answer to a trajectory: reads what models really write, and says what it had to mend.

A trained VLM answers ``[PT, (+2.76, +0.08, +0.06), ...]``. Less trained ones, or ones that are cut off, drop brackets,
headings or poses, repeat the history, or talk about other numbers. The answer is cut into tokens, numbers that stand
together become *runs*, runs with nothing but labels between them become *passages*, and the passage that looks most
like a plan is read. Every step is one pass, so the time is linear in the length of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import HISTORY_POSES, HORIZON_POSES

LEAST_POSES = 4
"""Fewest poses that a plan is continued from; with fewer an answer counts as unparsed."""

LARGEST_COORDINATE_M = 250.0
LARGEST_HEADING_RAD = 2 * math.pi
LARGEST_STEP_M = 50.0
"""Farthest from one pose to the next, the present one included: 0.5 s at 360 km/h."""

LARGEST_REVERSE_STEP_M = 5.0
"""Farthest backwards, along a pose's own heading, from the pose before it: 0.5 s at 36 km/h in reverse."""

LARGEST_SIDEWAYS_STEP_M = 8.0
"""Farthest across a pose's own heading from the pose before it: what a lost decimal point makes, not a car."""

_STANDING_M = 0.1

Outcome = Literal["exact", "repaired", "unparsed"]


@dataclass(frozen=True)
class ParsedAnswer:
    """What a text said.

    Attributes:
        poses: ``[8, 3]`` float32 (x, y, heading), metres and radians, ego frame, 0.5 s steps; ``None`` if unparsed.
        outcome: ``exact`` (as profiles write it), ``repaired`` (a plan after mending) or ``unparsed``.
        reason: what was mended, or why there is no plan; empty for exact answers.
    """

    poses: NDArray[np.float32] | None
    outcome: Outcome
    reason: str = ""


class _NoPlan(Exception):
    """Why a text holds no plan."""


_NUMBER = r"[+-]?[0-9]{1,4}(?:\.[0-9]{1,6})?"
_POSE = rf"\({_NUMBER}, ?{_NUMBER}, ?{_NUMBER}\)"
_EXACT = re.compile(rf"\[(?:PT, ?)?({_POSE}(?:, ?{_POSE}){{{HORIZON_POSES - 1}}})\]")
_NUMBERS = re.compile(_NUMBER)

_TOKEN = re.compile(
    r"(?P<label>\bt[ ]?[+-][ ]?[0-9]+(?:\.[0-9]+)?s?\b"  # t-3, t+0.5s
    r"|(?<![\w.+-])[0-9]{1,2}(?:\.[0-9]{1,3})?[ ]?s(?:ec)?\b"  # 0.5 s
    r"|^[ \t]*[0-9]{1,2}[.):][ \t]+(?=[(\[0-9+-]))"  # 1. at the start of a line
    r"|(?<![\w.])(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)(?:m|rad|deg|degrees)?(?!\w)"
    r"|(?<![\w.])(?P<infinite>[+-]?(?:nan|inf|infinity))\b"
    r"|(?P<minus>-(?=\s*[0-9.]))"  # one that neither belongs to a number for certain nor to a label
    r"|(?P<degrees>[°º])"
    r"|(?P<word>\w+)"
    r"|(?P<open>[(\[{])"
    r"|(?P<close>[)\]}])"
    r"|(?P<end>;|(?<![,\s])[ \t]*\n)",
    re.MULTILINE | re.IGNORECASE,
)
_SIGNS: dict[int, str | None] = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"), "-"),
    ord("\uff0b"): "+",
    ord("$"): None,
}
_SIGN_APART = re.compile(r"(?<=[(\[{,=:])(\s*[+-])\s+(?=[0-9.])")
_MARK = "pt"
_WRITTEN_MARK = re.compile(r"(?<!\w)PT(?!\w)")
_COORDINATES = frozenset({"x", "y", "h", "yaw", "theta", "psi", "heading", "m", "rad", "meters", "metres", "radians"})
"""Words that may stand between the numbers of a pose."""
_LABELS = frozenset({"t", "s", "sec", "seconds", "step", "point", "pose", "waypoint", "p", _MARK, "at", "and"})
"""Words that may stand between two poses."""

_DEGREES = frozenset({"deg", "degree", "degrees"})

_Pose = tuple[float, float, float | None]
"""x, y, and the heading unless it is missing."""


@dataclass
class _Run:
    """Numbers that stand together.

    ``tight`` tells which neighbours have nothing but a comma between them, ``problem`` why they cannot be trusted.
    """

    numbers: list[float] = field(default_factory=list)
    decimals: list[int] = field(default_factory=list)
    tight: list[bool] = field(default_factory=list)
    closed: bool = False
    history: bool = False
    problem: str = ""

    @property
    def decimal_commas(self) -> bool:
        """Whether it reads like ``1,20; 0,05`` or ``1,20, 0,05, 0,01``, pairs of digits that a comma makes a number."""
        if any(self.decimals) or not self.tight:
            return False
        pairs = [place % 2 == 0 for place in range(len(self.tight))]
        if len(self.tight) == 1:
            return self.tight == pairs and not self.closed
        return len(self.tight) % 2 == 1 and (self.tight == pairs or (self.closed and self.tight == [True] * 5))


@dataclass
class _Passage:
    """Runs with nothing but labels between them."""

    marked: bool = False
    runs: list[_Run] = field(default_factory=list)


@dataclass
class _Candidate:
    """The poses of one passage, any number of them, and what was mended so far."""

    marked: bool
    poses: list[_Pose] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)


def parse_trajectory(text: str) -> ParsedAnswer:
    """Read the planned trajectory out of a VLM's answer; never raises, whatever the text.

    Where ``PT`` is written, only what follows its first mention counts. The first eight poses in the trained form are
    taken as they stand. Otherwise the best passage of numbers is read: one behind ``PT`` before others, then the first
    with eight poses, then the longest. Poses labelled ``t-k`` and a repeated history (four poses that come from behind
    and end at the origin) are left out; of more than eight poses the first eight count; fewer, but at least four, are
    continued by the last step at the last heading; missing headings follow the motion. A plan with a number that is
    not finite, a coordinate beyond 250 m, a heading beyond 2 pi, a step beyond 50 m, or one of more than 5 m backwards
    or 8 m sideways is no plan. Not read are numbers with decimal commas (``1,20; 0,05``), which cannot be told from
    pairs for certain, headings in degrees, and numbers behind a dash that may be a sign or not (``2.5 - 0.1``); after a
    bracket or a comma typographers' dashes and signs with a blank behind them are signs.

    Args:
        text: the whole answer.
    """
    mark = _WRITTEN_MARK.search(text)
    text = text[max(mark.start() - 1, 0) :] if mark else text  # with the bracket before it
    for exact in _EXACT.finditer(text):
        numbers = [float(number) for number in _NUMBERS.findall(exact[1])]
        poses = np.array(numbers).reshape(HORIZON_POSES, 3)
        if _begins_with_history([(x, y, heading) for x, y, heading in poses.tolist()]):
            continue
        if problem := _implausible(poses) or _undrivable(poses):
            return ParsedAnswer(None, "unparsed", problem)
        return ParsedAnswer(poses.astype(np.float32), "exact")
    try:
        poses, repairs = _read(_best([_poses(passage) for passage in _passages(text)]))
    except _NoPlan as problem:
        return ParsedAnswer(None, "unparsed", str(problem))
    reason = ", ".join(repairs) or "written in another form"
    return ParsedAnswer(poses.astype(np.float32), "repaired", reason)


def _passages(text: str) -> list[_Passage]:
    passages = [_Passage()]
    run, history, end = _Run(), False, 0
    text = _SIGN_APART.sub(r"\1", text.translate(_SIGNS))

    def end_run(closed: bool = False) -> None:
        nonlocal run, history
        if run.numbers:
            run.closed, run.history = closed, history
            passages[-1].runs.append(run)
            run, history = _Run(), False

    for token in _TOKEN.finditer(text):
        kind, written = token.lastgroup, token[0].lower()
        if kind in ("number", "infinite"):
            number = token[kind]
            if run.numbers:
                run.tight.append(text[end : token.start()] == ",")
            end = token.end()
            run.numbers.append(float(number))
            run.decimals.append(len(number.partition(".")[2]))
            if written.endswith(("deg", "degrees")):
                run.problem = "headings in degrees, where radians are expected"
        elif kind == "degrees" or written in _DEGREES:
            run.problem = "headings in degrees, where radians are expected"
        elif kind == "minus":
            run.problem = "a minus that may be a sign or a dash"
        elif kind == "word" and written.rstrip("0123456789_") in _COORDINATES:
            continue
        else:
            end_run(closed=kind == "close")
            if kind == "label":
                history = written.startswith("t") and "-" in written
            elif kind == "word" and (written == _MARK or written.rstrip("0123456789_") not in _LABELS):
                passages.append(_Passage(marked=written == _MARK))
                history = False
    end_run()
    return passages


def _poses(passage: _Passage) -> _Candidate:
    """The poses of a passage; stops where numbers no longer group into poses."""
    runs = [run for run in passage.runs if len(run.numbers) > 1]  # a number by itself counts or labels something
    found = _Candidate(passage.marked)
    if problem := next((run.problem for run in runs if run.problem), ""):
        found.repairs.append(problem)
        return found
    if any(run.decimal_commas for run in runs):
        found.repairs.append("decimal commas, where numbers are written with a point")
        return found
    if any(run.history for run in runs):
        found.repairs.append("history left out")
        runs = [run for run in runs if not run.history]
    lengths = [len(run.numbers) for run in runs]
    eight_poses = sum(lengths) == 3 * HORIZON_POSES and all(length % 3 == 0 for length in lengths)
    if len(runs) >= LEAST_POSES and (fewest := min(lengths)) > 3 and not eight_poses:  # brackets may have been dropped
        found.repairs.append(f"{fewest} numbers together where a pose has 3")  # poses with times or speeds, say
        return found
    with_headings = any(len(run.numbers) % 3 == 0 for run in runs)
    for run in runs:
        numbers = run.numbers
        cut_off = run is runs[-1] and not run.closed
        if len(numbers) == 2 and not (with_headings and cut_off):
            found.poses.append((numbers[0], numbers[1], None))
            continue
        size = 3 if with_headings else 2
        if len(numbers) % size and not cut_off:
            found.repairs.append(f"{len(numbers)} numbers together after {len(found.poses)} poses")
            break
        whole = len(numbers) // size
        found.poses += [
            (group[0], group[1], group[2] if with_headings else None)
            for group in (numbers[index * size : (index + 1) * size] for index in range(whole))
        ]
        # "(+1.20, +0.05, +0" at the end of an answer whose other poses have their brackets: the last number is cut too.
        bracketed = any(other.closed for other in runs)
        if cut_off and bracketed and with_headings and len(numbers) == 3 and run.decimals[2] < run.decimals[1]:
            found.poses.pop()
    if _begins_with_history(found.poses):
        found.repairs.append("history left out")
        del found.poses[:HISTORY_POSES]
    if any(heading is None for *_, heading in found.poses):
        found.repairs.append("missing headings taken from the motion")
    return found


def _begins_with_history(poses: Sequence[_Pose]) -> bool:
    """Whether poses begin with four that come from behind, or stand still, and end where the car is.

    Eight poses or fewer that stand still, to the tremor of what models write, are the plan of a car that stands.
    """
    past, present = [x for x, *_ in poses[: HISTORY_POSES - 1]], poses[HISTORY_POSES - 1 : HISTORY_POSES]
    return (
        len(poses) >= HISTORY_POSES
        and all(x <= 0 for x in past)
        and (len(poses) > HORIZON_POSES or (past == sorted(past) and past[0] < -_STANDING_M))
        and all(x == y == 0 and not heading for x, y, heading in present)
    )


def _best(candidates: Sequence[_Candidate]) -> _Candidate:
    """The first of those that rank highest; among those without poses one that says why."""

    def rank(one: _Candidate) -> tuple[bool, int, bool]:
        count = len(one.poses)
        return one.marked and count >= LEAST_POSES, min(count, HORIZON_POSES), not count and bool(one.repairs)

    return max(candidates, key=rank)


def _read(candidate: _Candidate) -> tuple[NDArray[np.float64], list[str]]:
    """Eight poses ``[8, 3]`` and what was mended.

    Raises:
        _NoPlan: if there are too few poses, or impossible ones.
    """
    count, repairs = len(candidate.poses), candidate.repairs
    if count < LEAST_POSES:
        raise _NoPlan(", ".join([f"{count} poses found, at least {LEAST_POSES} needed", *repairs]))
    written = candidate.poses[:HORIZON_POSES]
    if problem := _implausible(np.array([(x, y, heading or 0.0) for x, y, heading in written])):
        raise _NoPlan(problem)
    poses = np.array(list(_with_headings(written)))
    if count > HORIZON_POSES:
        repairs.append(f"{count} poses, the first {HORIZON_POSES} taken")
    elif count < HORIZON_POSES:
        repairs.append(f"{count} poses, continued at the last speed and heading")
        step = np.append(poses[-1, :2] - poses[-2, :2], 0.0)
        poses = np.concatenate([poses, poses[-1] + step * np.arange(1, HORIZON_POSES - count + 1)[:, None]])
    if problem := _implausible(poses) or _undrivable(poses):
        raise _NoPlan(problem)
    return poses, repairs


def _with_headings(poses: Sequence[_Pose]) -> Iterator[tuple[float, float, float]]:
    """Missing headings point along the step that leads to the pose; kept where the car stands or backs up."""
    last = (0.0, 0.0, 0.0)
    for x, y, heading in poses:
        if heading is None:
            heading = math.atan2(y - last[1], x - last[0])
            if math.hypot(x - last[0], y - last[1]) < 0.1 or math.cos(heading - last[2]) < 0:
                heading = last[2]
        last = (x, y, heading)
        yield last


def _implausible(poses: NDArray[np.float64]) -> str | None:
    """What speaks against poses ``[N, 3]`` as the plan of a car."""
    if not np.isfinite(poses).all():
        return "a number is not finite"
    if (farthest := np.abs(poses[:, :2]).max()) > LARGEST_COORDINATE_M:
        return f"a coordinate of {farthest:.4g} m is implausible"
    if (turn := np.abs(poses[:, 2]).max()) > LARGEST_HEADING_RAD:
        return f"a heading of {turn:.4g} rad is implausible"
    steps = np.diff(poses[:, :2], axis=0, prepend=0.0)
    if (step := np.hypot(*steps.T).max()) > LARGEST_STEP_M:
        return f"a step of {step:.4g} m in half a second is implausible"
    return None


def _undrivable(poses: NDArray[np.float64]) -> str | None:
    """What speaks against poses ``[N, 3]`` whose values are plausible as the way of a car."""
    steps, headings = np.diff(poses[:, :2], axis=0, prepend=0.0), poses[:, 2]
    backwards = -(steps[:, 0] * np.cos(headings) + steps[:, 1] * np.sin(headings)).min()
    if backwards > LARGEST_REVERSE_STEP_M:
        return f"a step of {backwards:.4g} m backwards in half a second is implausible"
    sideways = np.abs(steps[:, 1] * np.cos(headings) - steps[:, 0] * np.sin(headings)).max()
    if sideways > LARGEST_SIDEWAYS_STEP_M:
        return f"a step of {sideways:.4g} m sideways in half a second is implausible"
    return None
