"""In which order samples are trained on: shuffled anew each epoch, samples of about one length side by side.

The order is a function of seed and epoch alone. Every process computes it and takes its own part, and a run that is
resumed continues exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

GROUPED_STEPS = 50
"""Samples are sorted by length within so many steps' worth of them: little padding, and still a random order."""


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of one process.

    All processes' batches of one turn, and all batches of one step, have about the same length, so that none waits for
    the others. Where the samples do not fill the last batches, the first ones of the epoch are used once more.

    Args:
        lengths: ``[N]`` tokens of each sample.
        batch_size: samples of a batch.
        accumulation: batches of one process that make a step.
        rank: this process.
        world: number of processes.
        seed: of the order.
        grouped: sort by length; if not, shuffle only.

    Attributes:
        epoch: of the next iteration, from 0.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        grouped: bool = True,
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._turn = batch_size * world
        self._step = self._turn * accumulation
        self._rank, self._world = rank, world
        self._seed = seed
        self._grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._turn)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        order = np.resize(order, len(self) * self._turn)  # repeats from the start
        for start in range(0, len(order), self._turn):
            yield order[start + self._rank : start + self._turn : self._world].tolist()

    def _order(self) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, self.epoch))
        order = rng.permutation(len(self._lengths))
        if not self._grouped:
            return order
        reach = self._step * GROUPED_STEPS
        order = np.concatenate([self._longest_first(order[i : i + reach]) for i in range(0, len(order), reach)])
        whole = len(order) // self._step * self._step
        steps = order[:whole].reshape(-1, self._step)
        if len(steps):
            # The longest step first: too little memory shows at once.
            first = self._lengths[steps].max(1).argmax()
            rest = rng.permutation(np.delete(np.arange(len(steps)), first))
            steps = steps[np.concatenate([[first], rest])]
        return np.concatenate([steps.reshape(-1), order[whole:]])

    def _longest_first(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices[np.argsort(-self._lengths[indices], kind="stable")]
