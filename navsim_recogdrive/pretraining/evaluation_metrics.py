"""How far a VLM's written trajectories are from the reference; plain numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.pretraining.finetuning.conversations import Record
from navsim_recogdrive.vlm.answers import Outcome, parse_trajectory

SECONDS = (1, 2, 3, 4)


class NotATrajectory(ValueError):
    """A record whose answer is no trajectory."""


@dataclass(frozen=True)
class Question:
    """A question for a trajectory and what the log says.

    Attributes:
        line: of the annotation file, counted from 1.
        record: the whole record.
        reference: ``[8, 3]`` float32 (x, y, heading), metres and radians, ego frame, 0.5 s apart.
    """

    line: int
    record: Record
    reference: NDArray[np.float32]

    @classmethod
    def of(cls, line: int, record: Record) -> Question:
        """A record as a question.

        Raises:
            NotATrajectory: if its answer is not a trajectory exactly as prompt profiles write it.
        """
        parsed = parse_trajectory(record.answer)
        if parsed.poses is None or parsed.outcome != "exact":
            raise NotATrajectory(f"the answer is no trajectory as prompt profiles write it: {record.answer!r:.80}")
        return cls(line, record, parsed.poses)


@dataclass(frozen=True)
class Judged:
    """One answer beside its reference.

    Attributes:
        outcome: how the answer was read.
        finished: the VLM ended it itself.
        distances: ``[8]`` metres between written and true position, ``None`` if the answer has no plan.
        heading_errors: ``[8]`` radians, of at least 0 and at most pi; ``None`` likewise.
    """

    outcome: Outcome
    finished: bool
    distances: NDArray[np.float64] | None
    heading_errors: NDArray[np.float64] | None


def judge(question: Question, answer: str, finished: bool) -> Judged:
    """Compare an answer with the reference."""
    parsed = parse_trajectory(answer)
    if parsed.poses is None:
        return Judged(parsed.outcome, finished, None, None)
    difference = parsed.poses.astype(np.float64) - question.reference
    turned = np.abs((difference[:, 2] + np.pi) % (2 * np.pi) - np.pi)
    return Judged(parsed.outcome, finished, np.hypot(difference[:, 0], difference[:, 1]), turned)


def summarize(judged: Sequence[Judged]) -> dict[str, Any]:
    """Numbers of an evaluation.

    Returns:
        ``answers``; of them ``exact``, ``repaired`` and ``fallback`` (without a plan: the text planner falls back to
        constant velocity there) and ``cut_off``; ``parse_rate``; and over the parsed ones ``l2_1s`` to ``l2_4s``
        (metres at that time), ``ade`` (mean over the 8 poses), ``fde`` (the last) and ``heading_error`` (radians,
        mean over the 8 poses), ``None`` if none was parsed.
    """
    outcomes = Counter(one.outcome for one in judged)
    counts: dict[str, Any] = {
        "answers": len(judged),
        "exact": outcomes["exact"],
        "repaired": outcomes["repaired"],
        "fallback": outcomes["unparsed"],
        "cut_off": sum(not one.finished for one in judged),
    }
    distances = [one.distances for one in judged if one.distances is not None]
    headings = [one.heading_errors for one in judged if one.heading_errors is not None]
    counts["parse_rate"] = len(distances) / len(judged) if judged else None
    names = [*(f"l2_{second}s" for second in SECONDS), "ade", "fde", "heading_error"]
    if not distances:
        return counts | dict.fromkeys(names)
    mean = np.mean(distances, axis=0)
    at = [float(mean[round(second / POSE_INTERVAL_S) - 1]) for second in SECONDS]
    values = [*at, float(mean.mean()), float(mean[HORIZON_POSES - 1]), float(np.mean(headings))]
    return counts | dict(zip(names, values, strict=True))
