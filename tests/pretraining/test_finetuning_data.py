"""Reading a mixture through, choosing samples, their order, and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_vlm import write_byte_vlm, write_short_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from qa_data import SAMPLES, front_image, talk, trajectory_records, write_data

from navsim_recogdrive.pretraining.finetuning import index as index_module
from navsim_recogdrive.pretraining.finetuning.conversations import IGNORED, ChatEncoder
from navsim_recogdrive.pretraining.finetuning.dataset import Collator, ConversationDataset, Sample, Skipped
from navsim_recogdrive.pretraining.finetuning.images import TileBudget, read_image
from navsim_recogdrive.pretraining.finetuning.index import InvalidData, Reader, Source, index_source
from navsim_recogdrive.pretraining.finetuning.sampling import LengthGroupedBatches
from navsim_recogdrive.pretraining.registry import load_mixture
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

PAD = 256
TILE_ROWS = 4


@pytest.fixture(scope="module")
def byte_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_vlm(tmp_path_factory.mktemp("vlm") / "bytes")


@pytest.fixture(scope="module")
def reader(byte_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    architecture = read_architecture(byte_vlm)
    encoder = ChatEncoder(load_qwen2_tokenizer(byte_vlm), architecture.image_tokens, "")
    profile = write_short_profile(tmp_path_factory.mktemp("profile") / "profile.json")
    return Reader(encoder, TileBudget(architecture, max_tiles=4), ConversationWriter.of(profile, None), "test")


def _source(mixture: Path) -> Source:
    ((name, entry),) = load_mixture(mixture).items()
    return Source.of(name, entry)


def _dataset(mixture: Path, reader: Reader, max_tokens: int = 4096, seed: int = 0) -> ConversationDataset:
    source = _source(mixture)
    index = index_source(source, reader, mixture.parent / "index")
    return ConversationDataset([source], [index], reader, max_tokens=max_tokens, seed=seed)


def test_lengths_are_those_of_the_samples(tmp_path: Path, reader: Reader) -> None:
    records = [
        talk("Hello", "Yes"),
        talk("What?", "That.", image="images/0.png"),  # sizes from the file
        talk("<image> or <image>?", "The first.", image=["images/0.png", "images/1.png"]),
        *trajectory_records(tmp_path / "profile.json", 3),
    ]
    dataset = _dataset(write_data(tmp_path, records), reader)
    samples = [dataset[index] for index in range(len(dataset))]
    assert [len(sample.token_ids) for sample in samples if isinstance(sample, Sample)] == dataset.lengths.tolist()
    # 96 x 54 is cut 2 x 1 and gets a thumbnail; two images share four tiles, so each is cut alike.
    assert [len(sample.tiles) for sample in samples if isinstance(sample, Sample)] == [0, 3, 6, 3, 3, 3]
    context = 256 + 24
    for sample in samples:
        assert isinstance(sample, Sample)
        assert (sample.token_ids == context).sum() == TILE_ROWS * len(sample.tiles)


def test_broken_lines_are_named(tmp_path: Path, reader: Reader) -> None:
    good = talk("Hello", "Yes")
    lines = [good, "{broken", good, "", talk("What?", "That.", image="images/gone.png"), good, talk("No answer")]
    index = index_source(_source(write_data(tmp_path, lines)), reader, tmp_path / "index")
    assert index.lines.tolist() == [1, 3, 6]
    assert [fault.line for fault in index.faults] == [2, 5, 7]
    assert "not valid JSON" in index.faults[0].reason
    assert "gone.png does not exist" in index.faults[1].reason


def test_a_listed_size_does_not_hide_a_missing_image(tmp_path: Path, reader: Reader) -> None:
    record = talk("What?", "That.", image="images/gone.png", width=96, height=54)
    index = index_source(_source(write_data(tmp_path, [record])), reader, tmp_path / "index")
    assert "gone.png does not exist" in index.faults[0].reason


def test_images_that_come_later_are_found(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = talk("What?", "That.", image="images/gone.png")
    source = _source(
        write_data(tmp_path, [talk("Hello", "Yes"), asked, "{broken", {**asked, "image": "images/no.png"}])
    )
    before = index_source(source, reader, tmp_path / "index")
    assert [fault.line for fault in before.faults] == [2, 3, 4]
    Image.fromarray(front_image(0)).save(tmp_path / "images" / "gone.png")
    mended = index_source(source, reader, tmp_path / "index", writes=False)  # another process of the run
    assert mended.lines.tolist() == [1, 2]
    assert [fault.line for fault in mended.faults] == [3, 4]
    assert mended.digest == before.digest
    again = index_source(source, reader, tmp_path / "index")
    fresh = index_source(source, reader, tmp_path / "other")
    for index in (mended, again):
        for name in ("offsets", "lines", "tokens", "planner"):
            np.testing.assert_array_equal(getattr(index, name), getattr(fresh, name))
        assert index.faults == fresh.faults
    (tmp_path / "images" / "no.png").write_bytes((tmp_path / "images" / "gone.png").read_bytes())
    monkeypatch.setattr(index_module, "read_record", _only_once(index_module.read_record))
    assert index_source(source, reader, tmp_path / "index").lines.tolist() == [1, 2, 4]


def _only_once(read: Any) -> Any:
    """Reads one line, and none after it."""
    left = [1]

    def counted(line: bytes) -> Any:
        left[0] -= 1
        assert left[0] >= 0
        return read(line)

    return counted


def test_chunks_change_nothing(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*trajectory_records(tmp_path / "profile.json"), "{broken", talk("Hello", "Yes")]
    source = _source(write_data(tmp_path, records))
    whole = index_source(source, reader, tmp_path / "whole")
    for size in (100, 1000):
        monkeypatch.setattr(index_module, "CHUNK_BYTES", size)
        chunks = index_source(source, reader, tmp_path / f"chunks{size}")
        for name in ("offsets", "lines", "tokens", "planner"):
            np.testing.assert_array_equal(getattr(chunks, name), getattr(whole, name))
        assert chunks.faults == whole.faults
    monkeypatch.setattr(index_module, "CHUNK_BYTES", 4000)
    processes = index_source(source, reader, tmp_path / "processes", workers=2)
    np.testing.assert_array_equal(processes.tokens, whole.tokens)


def test_an_index_is_kept_until_the_file_changes(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = write_data(tmp_path, [talk("Hello", "Yes")])
    first = index_source(_source(mixture), reader, tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "read_record", None)  # reading again would fail
        again = index_source(_source(mixture), reader, tmp_path / "index", writes=False)
    assert again.tokens.tolist() == first.tokens.tolist()
    write_data(tmp_path, [talk("Hello", "Yes"), talk("Hello", "No")])
    assert len(index_source(_source(mixture), reader, tmp_path / "index").tokens) == 2


def test_no_file_and_an_empty_file(tmp_path: Path, reader: Reader) -> None:
    mixture = write_data(tmp_path, [])
    with pytest.raises(InvalidData, match=r"qa: .*qa.jsonl is empty"):
        index_source(_source(mixture), reader, tmp_path / "index")
    (tmp_path / "qa.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="qa: there is no annotation file"):
        index_source(_source(mixture), reader, tmp_path / "index")


def test_long_samples_are_left_out_and_counted(tmp_path: Path, reader: Reader) -> None:
    records = [talk("Hello", "Yes"), talk("Hello" * 100, "Yes"), talk("Hello", "No")]
    dataset = _dataset(write_data(tmp_path, records), reader, max_tokens=200)
    assert len(dataset) == 2
    assert [line for line, _ in dataset.too_long[0]] == [2]
    assert dataset.too_long[0][0][1] > 500


@pytest.mark.parametrize(("repeat", "expected"), [(1, 16), (2, 32), (0.5, 8), (1.25, 20)])
def test_repeat_time(tmp_path: Path, reader: Reader, repeat: float, expected: int) -> None:
    mixture = write_data(tmp_path, [talk(f"Hello {n}", "Yes") for n in range(SAMPLES)], repeat_time=repeat)
    dataset = _dataset(mixture, reader)
    assert len(dataset) == expected
    seen = [dataset[n].token_ids.tobytes() for n in range(expected)]  # type: ignore[union-attr]
    counts = np.unique(seen, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    again = _dataset(mixture, reader)
    assert [again[n].token_ids.tobytes() for n in range(expected)] == seen  # type: ignore[union-attr]


def test_augmentation_compresses_images(tmp_path: Path, reader: Reader) -> None:
    record = talk("What?", "That.", image="images/0.png")
    plain = _dataset(write_data(tmp_path, [record]), reader)[0]
    augmented = _dataset(write_data(tmp_path, [record], data_augment=True), reader)[0]
    assert isinstance(plain, Sample)
    assert isinstance(augmented, Sample)
    difference = np.abs(plain.tiles.astype(int) - augmented.tiles)
    assert 0 < difference.mean() < 40
    np.testing.assert_array_equal(plain.token_ids, augmented.token_ids)


def test_jpeg_quality(tmp_path: Path) -> None:
    smooth = np.tile(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (54, 1, 3))
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    plain, coarse, fine = (read_image(tmp_path / "smooth.png", quality) for quality in (None, 10, 100))
    np.testing.assert_array_equal(plain, smooth)
    assert np.abs(fine.astype(int) - smooth).mean() < np.abs(coarse.astype(int) - smooth).mean()


def test_a_sample_that_breaks_later_is_skipped_with_its_name(tmp_path: Path, reader: Reader) -> None:
    dataset = _dataset(write_data(tmp_path, trajectory_records(tmp_path / "profile.json")), reader)
    image = tmp_path / "images" / "1.png"
    image.write_bytes(image.read_bytes()[:60])
    (tmp_path / "images" / "2.png").unlink()
    Image.fromarray(np.tile(front_image(3), (1, 3, 1))).save(tmp_path / "images" / "3.png")  # other size than listed
    for position, reason in ((1, "1.png cannot be decoded"), (2, "2.png does not exist")):
        skipped = dataset[position]
        assert isinstance(skipped, Skipped)
        assert skipped.name == f"qa line {position + 1}"
        assert reason in skipped.reason
    wider = dataset[3]  # what counts is the image
    assert isinstance(wider, Sample)
    assert (wider.token_ids == 256 + 24).sum() == TILE_ROWS * len(wider.tiles)
    batch = Collator(PAD)([dataset[position] for position in range(3)])
    assert [one.name for one in batch["skipped"]] == ["qa line 2", "qa line 3"]
    assert len(batch["input_ids"]) == 1


def _sample(length: int, tiles: int = 0) -> Sample:
    ids = np.arange(length)
    return Sample(ids, np.where(ids > 2, ids, IGNORED), np.zeros((tiles, 56, 56, 3), dtype=np.uint8))


def test_batches_are_filled_up_at_the_end() -> None:
    batch = Collator(PAD)([_sample(5, 2), _sample(3)])
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, PAD, PAD]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [3, 4], [IGNORED] * 5]
    assert batch["tiles"].shape == (2, 56, 56, 3)
    assert batch["tiles"].dtype == torch.uint8
    assert batch["tokens"] == 8
    assert "tiles" not in Collator(PAD)([_sample(3)])


def test_a_batch_without_a_usable_sample_has_no_loss() -> None:
    batch = Collator(PAD)([Skipped("qa line 1", "gone")])
    assert (batch["labels"] == IGNORED).all()
    assert batch["input_ids"].shape == (1, 2)
    assert batch["tokens"] == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=80),
    batch=st.integers(1, 4),
    world=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    grouped=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_every_sample_once_per_epoch(
    lengths: list[int], batch: int, world: int, accumulation: int, grouped: bool, epoch: int
) -> None:
    ranks = []
    for rank in range(world):
        batches = LengthGroupedBatches(
            np.array(lengths), batch, accumulation=accumulation, rank=rank, world=world, grouped=grouped
        )
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(ranks[-1]) == len(batches)
        assert all(len(one) == batch for one in ranks[-1])
    seen = np.concatenate([np.concatenate(one) for one in ranks])
    assert set(seen.tolist()) == set(range(len(lengths)))
    assert len(seen) - len(lengths) < batch * world  # only what fills the last turn is seen again


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 500)
    first = LengthGroupedBatches(lengths, 2, seed=1)
    epochs = []
    for epoch in range(2):
        first.set_epoch(epoch)
        epochs.append(list(first))
    resumed = LengthGroupedBatches(lengths, 2, seed=1)
    resumed.set_epoch(1)
    assert list(resumed) == epochs[1] != epochs[0]
    assert list(LengthGroupedBatches(lengths, 2, seed=2)) != epochs[0]


def test_grouping_saves_padding_and_starts_with_the_longest() -> None:
    lengths = np.random.default_rng(0).integers(300, 12000, 4000)

    def padding(grouped: bool) -> float:
        batches = list(LengthGroupedBatches(lengths, 4, accumulation=4, grouped=grouped))
        padded = sum(4 * lengths[batch].max() for batch in batches)
        return float(1 - sum(lengths[batch].sum() for batch in batches) / padded)

    assert padding(True) < 0.01 < 0.3 < padding(False)
    steps = list(LengthGroupedBatches(lengths, 4, accumulation=4))
    assert lengths.max() in lengths[np.concatenate(steps[:4])]
    means = [lengths[batch].mean() for batch in steps]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # no trend from long to short
