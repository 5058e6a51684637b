"""What reinforcement learning asks of a reward: trajectories in, one score per trajectory out, in the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RewardResult:
    """Scores of B scenes with G trajectories each.

    Attributes:
        scores: [B, G] float32; NaN in the rows of scenes that could not be scored, so that a forgotten mask shows.
        valid: [B] bool, whether a scene could be scored.
        sub_scores: the parts of the score by name, each [B, G] float32; NaN where ``scores`` is.
        seconds: from ``submit`` until the last scene was scored, however late ``result`` was called.
        errors: why a scene could not be scored, by scene token.
    """

    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]
    sub_scores: dict[str, NDArray[np.float32]]
    seconds: float
    errors: dict[str, str] = field(default_factory=dict)


class Pending(Protocol):
    """Trajectories that are being scored."""

    def result(self) -> RewardResult:
        """Wait for the scores; a second call returns the same result."""
        ...


class Reward(Protocol):
    """Scores trajectories of known scenes."""

    def submit(self, tokens: Sequence[str], trajectories: NDArray[np.float32]) -> Pending:
        """Start to score.

        Args:
            tokens: the B scenes; one may occur more than once.
            trajectories: [B, G, 8, 3] float32, poses (x, y, heading) in metres and radians, in the ego frame of their
                scene, 0.5 s apart, the first one 0.5 s ahead.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory; the reward cannot be used afterwards. A second call does nothing."""
        ...
