from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from navsim_recogdrive.cache import image_tiles
from navsim_recogdrive.cache.image_tiles import DamagedImageTiles, ImageTiles


def _tiles(count: int = 3, height: int = 40, width: int = 40, noise: int = 20) -> torch.Tensor:
    """A gradient with noise: no flat areas, no palette."""
    random = np.random.default_rng(count)
    slope = np.linspace(0, 200, count * height * width * 3).reshape(count, height, width, 3)
    return torch.from_numpy((slope + random.integers(0, noise, slope.shape)).astype(np.uint8))


@pytest.mark.parametrize(
    ("shape", "capacity"), [((3, 40, 40), 3), ((3, 40, 40), 5), ((1, 28, 56), 1), ((1, 1, 1), 2), ((2, 448, 448), 9)]
)
def test_pickling_is_lossless(shape: tuple[int, int, int], capacity: int) -> None:
    tiles = _tiles(*shape, noise=55)
    restored = pickle.loads(pickle.dumps(ImageTiles.wrap(tiles, capacity)))
    assert type(restored) is torch.Tensor
    assert restored.dtype == torch.uint8
    assert restored.shape == (capacity, *tiles.shape[1:])
    assert torch.equal(restored[: len(tiles)], tiles)
    assert not restored[len(tiles) :].any()


@pytest.mark.parametrize("values", [range(256), [0], [255], [7, 8]])
def test_every_level_survives(values: list[int]) -> None:
    """Few colours are where a codec goes over to a palette."""
    levels = np.random.default_rng(0).choice(list(values), size=(2, 32, 48, 3)).astype(np.uint8)
    restored = pickle.loads(pickle.dumps(ImageTiles.wrap(torch.from_numpy(levels), 2)))
    assert np.array_equal(restored.numpy(), levels)


def test_smaller_than_its_bytes_and_filling_costs_nothing() -> None:
    tiles = _tiles(4, 112, 112)
    sizes = [len(pickle.dumps(ImageTiles.wrap(tiles, capacity))) for capacity in (4, 13)]
    assert sizes[0] < 0.7 * tiles.nbytes
    assert sizes[1] - sizes[0] < 100


def test_operations_give_plain_tensors() -> None:
    wrapped = ImageTiles.wrap(_tiles(), 4)
    for result in (wrapped + 0, wrapped[0], torch.stack([wrapped, wrapped]), default_collate([wrapped])):
        assert type(result) is torch.Tensor


class _Scenes(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image_tiles": ImageTiles.wrap(_tiles(index + 1), 5)}


def test_uncached_samples_travel_through_dataloader_workers() -> None:
    batches = list(DataLoader(_Scenes(), batch_size=2, num_workers=1))
    assert [type(batch["image_tiles"]) for batch in batches] == [torch.Tensor, torch.Tensor]
    assert torch.equal(batches[1]["image_tiles"][1][:4], _tiles(4))


def test_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        ImageTiles.wrap(_tiles().float(), 3)
    with pytest.raises(ValueError, match="uint8 of shape"):
        ImageTiles.wrap(_tiles()[0], 3)
    with pytest.raises(ValueError, match="3 image tiles, at most 2"):
        ImageTiles.wrap(_tiles(), 2)


def test_damage_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = bytearray(pickle.dumps(ImageTiles.wrap(_tiles(), 3)))
    stored[len(stored) // 2] ^= 1
    with pytest.raises(DamagedImageTiles, match="checksum"):
        pickle.loads(bytes(stored))

    monkeypatch.setattr(image_tiles, "FORMAT_VERSION", 99)
    newer = pickle.dumps(ImageTiles.wrap(_tiles(), 3))
    monkeypatch.undo()
    with pytest.raises(DamagedImageTiles, match="cache format 99"):
        pickle.loads(newer)
