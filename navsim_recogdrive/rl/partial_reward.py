"""A reward that is not asked for some scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.rl.reward import Pending, Reward, RewardResult


class PartialReward:
    """Another reward, which never hears of the scenes that are left out; a :class:`~.reward.Reward` itself.

    Scenes left out are answered like scenes that could not be scored, so that they are masked out of the loss.

    Args:
        reward: scores the other scenes.
    """

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._left_out: dict[str, str] = {}

    def leave_out(self, tokens: Iterable[str], why: str) -> None:
        """Do not ask for these scenes any more; ``why`` stands in the results' ``errors``."""
        self._left_out.update(dict.fromkeys(tokens, why))

    def submit(self, tokens: Sequence[str], trajectories: NDArray[np.float32]) -> Pending:
        """Start to score the scenes that are not left out; ``trajectories`` [B, G, 8, 3] as in ``Reward.submit``."""
        asked = np.array([token not in self._left_out for token in tokens], dtype=np.bool_)
        if asked.all():
            return self._reward.submit(tokens, trajectories)
        kept = [token for token, is_asked in zip(tokens, asked, strict=True) if is_asked]
        errors = {token: self._left_out[token] for token in tokens if token in self._left_out}
        return _PartlyPending(self._reward.submit(kept, trajectories[asked]), asked, errors)

    def close(self) -> None:
        """Close the other reward."""
        self._reward.close()


class _PartlyPending:
    def __init__(self, pending: Pending, asked: NDArray[np.bool_], errors: dict[str, str]) -> None:
        self._pending = pending
        self._asked = asked
        self._errors = errors

    def result(self) -> RewardResult:
        """The other reward's result, with rows of NaN that are not valid for the scenes left out."""
        found = self._pending.result()
        valid = np.zeros(len(self._asked), dtype=np.bool_)
        valid[self._asked] = found.valid
        return RewardResult(
            scores=self._spread(found.scores),
            valid=valid,
            sub_scores={name: self._spread(values) for name, values in found.sub_scores.items()},
            seconds=found.seconds,
            errors={**found.errors, **self._errors},
        )

    def _spread(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = np.full((len(self._asked), *values.shape[1:]), np.nan, dtype=np.float32)
        rows[self._asked] = values
        return rows
