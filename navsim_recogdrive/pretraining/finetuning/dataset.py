"""Question-answer data as a torch data set: records chosen by an index, read from disk when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from navsim_recogdrive.pretraining.finetuning.conversations import IGNORED, InvalidRecord, read_record
from navsim_recogdrive.pretraining.finetuning.images import JPEG_QUALITIES, UnreadableImage, read_image
from navsim_recogdrive.pretraining.finetuning.index import Reader, Source, SourceIndex


@dataclass(frozen=True)
class Sample:
    """One conversation, ready for the model.

    Attributes:
        token_ids: ``[S]`` int64.
        labels: ``[S]`` int64, see :class:`~navsim_recogdrive.pretraining.finetuning.conversations.EncodedConversation`.
        tiles: ``[T, tile, tile, 3]`` uint8 of all images in order; T = 0 for text alone.
    """

    token_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    tiles: NDArray[np.uint8]


@dataclass(frozen=True)
class Skipped:
    """A sample that turned out unusable while it was loaded."""

    name: str
    reason: str


class ConversationDataset(Dataset[Sample | Skipped]):
    """The samples of a mixture, data set after data set, each as often as its ``repeat_time`` says.

    Args:
        sources: the data sets.
        indexes: of each.
        reader: writes conversations and cuts images.
        max_tokens: longest sample; longer ones are left out and counted in :attr:`too_long`.
        seed: of the subsets that fractions of ``repeat_time`` are, and of augmentation.

    Attributes:
        lengths: ``[N]`` tokens of each sample.
        planner: number of samples that are questions of the planner.
        too_long: for each data set the (line, tokens) of what was left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        indexes: Sequence[SourceIndex],
        reader: Reader,
        *,
        max_tokens: int,
        seed: int = 0,
    ) -> None:
        self._sources = tuple(sources)
        self._indexes = tuple(indexes)
        self._reader = reader
        self._max_tokens = max_tokens
        self._seed = seed
        self.too_long: list[list[tuple[int, int]]] = []
        chosen = []
        for number, (source, index) in enumerate(zip(sources, indexes, strict=True)):
            fits = np.flatnonzero(index.tokens <= max_tokens)
            long = np.flatnonzero(index.tokens > max_tokens)
            self.too_long.append(list(zip(index.lines[long].tolist(), index.tokens[long].tolist(), strict=True)))
            whole, fraction = divmod(source.repeat_time, 1)
            subset = np.random.default_rng((seed, number)).permutation(fits)[: round(fraction * len(fits))]
            rows = np.concatenate([np.tile(fits, int(whole)), np.sort(subset)])
            chosen.append(np.stack([np.full(len(rows), number), rows]))
        self._rows = np.concatenate(chosen, axis=1)
        self.lengths = np.concatenate([index.tokens[rows[1]] for index, rows in zip(indexes, chosen, strict=True)])
        self.planner = sum(int(index.planner[rows[1]].sum()) for index, rows in zip(indexes, chosen, strict=True))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, position: int) -> Sample | Skipped:
        number, row = self._rows[:, position].tolist()
        source, index = self._sources[number], self._indexes[number]
        try:
            with source.annotation.open("rb") as stream:
                stream.seek(int(index.offsets[row]))
                line = stream.readline()
            return self._load(source, line, position)
        except (InvalidRecord, UnreadableImage, OSError) as error:
            return Skipped(f"{source.name} line {index.lines[row]}", str(error))

    def _load(self, source: Source, line: bytes, position: int) -> Sample | Skipped:
        record = read_record(line)
        budget = self._reader.budget
        side = budget.architecture.tile_size
        shared_by = self._reader.shared_by(record)
        tiles = [np.empty((0, side, side, 3), dtype=np.uint8)]
        rng = np.random.default_rng((self._seed, position))
        for path in record.images:
            quality = int(rng.choice(JPEG_QUALITIES)) if source.data_augment else None
            tiles.append(budget.cut(read_image(source.root / path, quality), shared_by))
        per_tile = budget.architecture.rows_per_tile(side, side)
        conversation = self._reader.encoder.encode(record, [len(one) * per_tile for one in tiles[1:]])
        if len(conversation.token_ids) > self._max_tokens:
            raise InvalidRecord(
                f"the images are larger than width and height say: {len(conversation.token_ids)} tokens, at most "
                f"{self._max_tokens} fit"
            )
        return Sample(conversation.token_ids, conversation.labels, np.concatenate(tiles))


class Collator:
    """Samples of one batch as tensors, filled up at the end to the longest; unusable ones are left out and reported.

    No attention mask is needed: a causal model's rows do not see what follows them.

    Args:
        pad_token_id: fills up shorter samples; what it predicts carries no loss.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Sample | Skipped]) -> dict[str, Any]:
        """``input_ids`` and ``labels`` ``[B, S]`` int64, ``tiles`` ``[T, tile, tile, 3]`` uint8 if there are any.

        ``skipped`` lists what was left out; where that is everything, one row without a loss takes its place.
        """
        usable = [sample for sample in samples if isinstance(sample, Sample)]
        longest = max((len(sample.token_ids) for sample in usable), default=2)
        ids = np.full((max(1, len(usable)), longest), self._pad_token_id, dtype=np.int64)
        labels = np.full_like(ids, IGNORED)
        for row, sample in enumerate(usable):
            ids[row, : len(sample.token_ids)] = sample.token_ids
            labels[row, : len(sample.labels)] = sample.labels
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "tokens": sum(len(sample.token_ids) for sample in usable),
            "skipped": [sample for sample in samples if isinstance(sample, Skipped)],
        }
        tiles = [sample.tiles for sample in usable if len(sample.tiles)]
        if tiles:
            joined: Tensor = torch.from_numpy(np.concatenate(tiles))
            batch["tiles"] = joined
        return batch
