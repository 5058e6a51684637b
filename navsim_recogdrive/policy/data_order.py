"""Which scene comes when: a function of seed and epoch alone, so that a killed run goes on inside an epoch.

Lightning builds the iterator of a resumed epoch anew, from its first batch, and in several processes with the order of
epoch 0. A plain ``DataLoader(shuffle=True)`` draws its order from the global generator. Both are replaced here, through
the strategy's ``process_dataloader``, the place where Lightning lets a loader be changed before it is iterated over.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler

from navsim_recogdrive.policy.collation import name_unequal_scenes
from navsim_recogdrive.policy.loader_workers import let_signals_pass


class SceneOrder(Sampler[int]):
    """The scenes of one rank in a shuffled order, possibly from the middle of an epoch on.

    The order shuffles the scenes sorted by token, so neither the file system's order of a cache folder nor the number
    of random draws before it matters. In several processes every scene comes once per epoch, on one rank; where their
    number is no multiple of the ranks, the first of the order come once more to fill up, as in
    ``torch.utils.data.DistributedSampler``, which draws it.

    Args:
        dataset: sized; with a list of ``tokens`` if it has one.
        seed: of the run.
        ranks: number of processes.
        rank: of this process.
    """

    def __init__(self, dataset: Any, seed: int, ranks: int = 1, rank: int = 0) -> None:
        self.tokens = tokens = scene_tokens(dataset)
        every = range(len(dataset))
        self._sorted = list(every) if tokens is None else sorted(every, key=lambda index: tokens[index])
        self._shuffled: DistributedSampler[int] = DistributedSampler(
            dataset, num_replicas=ranks, rank=rank, shuffle=True, seed=seed
        )
        self.seed = seed
        self._begin = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order the next iteration has; Lightning calls it at the start of every epoch."""
        self._shuffled.set_epoch(epoch)

    def begin_at(self, epoch: int, scenes: int) -> None:
        """Leave out the first ``scenes`` of this rank in ``epoch``, the one that comes next, and in no other."""
        self._begin = (epoch, scenes)
        self.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        epoch, scenes = self._begin
        skipped = scenes if self._shuffled.epoch == epoch else 0
        return itertools.islice((self._sorted[position] for position in self._shuffled), skipped, None)

    def __len__(self) -> int:
        """Scenes of a whole epoch: Lightning counts the batches of a resumed one from its start."""
        return len(self._shuffled)


def scene_tokens(dataset: Any) -> Sequence[str] | None:
    """Tokens of a data set in its own order; ``None`` if it has none. NAVSIM's two kinds keep them in two places."""
    tokens = getattr(dataset, "tokens", None)
    if tokens is None:
        tokens = getattr(getattr(dataset, "_scene_loader", None), "tokens", None)
    return tokens


class OrderedScenes(pl.Callback):
    """Gives the training loader a :class:`SceneOrder`; both loaders workers that outlive a signal, and clear errors.

    Attributes:
        order: of the training loader, once Lightning has prepared it; ``None`` for one that is not
            ``DataLoader(dataset, batch_size=..., shuffle=True)``, which is left as it is.
        batch_size: scenes per batch and rank, with ``order``.
    """

    def __init__(self) -> None:
        self.order: SceneOrder | None = None
        self.batch_size: int | None = None
        self._begin: tuple[int, int] | None = None

    def begin_at(self, epoch: int, batches: int) -> None:
        """Start the run in ``epoch``, after so many batches of it."""
        self._begin = (epoch, batches)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lightning has not looked at the loaders yet."""
        if stage == "fit":
            strategy = trainer.strategy
            strategy.process_dataloader = partial(self._process, trainer, strategy.process_dataloader)

    def describe(self) -> dict[str, Any]:
        """What the order is made of, as plain values; empty without an order."""
        if self.order is None:
            return {}
        tokens = self.order.tokens
        digest = None if tokens is None else hashlib.sha256("\n".join(sorted(tokens)).encode()).hexdigest()[:16]
        return {
            "seed": self.order.seed,
            "ranks": self.order._shuffled.num_replicas,
            "batch size": self.batch_size,
            "scenes": len(self.order._sorted),
            "digest of the scenes' tokens": digest,
        }

    def _process(self, trainer: pl.Trainer, process: Any, dataloader: object) -> object:
        if isinstance(dataloader, DataLoader):
            self._prepare(trainer, dataloader)
        return process(dataloader)

    def _prepare(self, trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
        # What workers are seeded with is no draw of the global generator: a resumed epoch draws it once more.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(seed + trainer.global_rank)
        let_signals_pass(loader, trainer.global_rank)
        name_unequal_scenes(loader)
        sampler = loader.sampler
        if isinstance(sampler, DistributedSampler) and sampler.shuffle and not sampler.drop_last:
            order = SceneOrder(loader.dataset, sampler.seed, sampler.num_replicas, sampler.rank)
        elif (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
        ):
            order = SceneOrder(loader.dataset, seed)
        else:
            return
        if loader.batch_size is None:
            return
        batches: Any = loader.batch_sampler  # a BatchSampler, by these arguments of the loader
        batches.sampler = order
        self.order, self.batch_size = order, loader.batch_size
        if self._begin is not None:
            epoch, batches = self._begin
            order.begin_at(epoch, batches * loader.batch_size)
