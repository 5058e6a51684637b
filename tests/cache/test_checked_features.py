"""Small features with a checksum of their own."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from navsim_recogdrive.cache import checked
from navsim_recogdrive.cache.checked import CheckedFeatures
from navsim_recogdrive.cache.image_tiles import ImageTiles
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.cache.unpickling import load_feature
from navsim_recogdrive.cache.writing import write_feature

FEATURES = {
    "past_poses": torch.arange(12.0).reshape(4, 3),
    "view": torch.arange(6.0).reshape(2, 3).T,
    "num_tiles": torch.tensor(3),
    "preparation": torch.arange(32, dtype=torch.uint8),
    "token": "a1b2c3",
}


def read_as_navsim(path: Path) -> Any:
    with gzip.open(path, "rb") as f:
        return pickle.load(f)


def same(found: dict[str, Any]) -> bool:
    return all(
        found[name] == value if isinstance(value, str) else torch.equal(found[name], value)
        for name, value in FEATURES.items()
    )


def test_a_plain_dict_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "ego.gz"
    write_feature(path, CheckedFeatures(FEATURES))
    for found in (read_as_navsim(path), load_feature(pickle.dumps(CheckedFeatures(FEATURES)), path)):
        assert type(found) is dict
        assert list(found) == list(FEATURES)
        assert same(found)
        assert {type(value) for value in found.values()} == {torch.Tensor, str}
        found["past_poses"] += 1  # writable
    tiles = ImageTiles.wrap(torch.randint(0, 255, (2, 8, 8, 3), dtype=torch.uint8), 3)
    write_feature(path, CheckedFeatures({"image_tiles": tiles, "num_tiles": torch.tensor(2)}))
    found = read_as_navsim(path)
    assert torch.equal(found["image_tiles"], tiles.as_subclass(torch.Tensor))
    assert found["num_tiles"] == 2


def test_damage_that_navsim_does_not_notice_is_refused(tmp_path: Path) -> None:
    """NAVSIM's reader never gets to gzip's checksum."""
    path = tmp_path / "ego.gz"
    for features, refused in ((FEATURES, False), (CheckedFeatures(FEATURES), True)):
        content = bytearray(pickle.dumps(features))
        for value in (FEATURES["past_poses"].numpy().tobytes(), b"a1b2c3", FEATURES["preparation"].numpy().tobytes()):
            damaged = bytearray(content)
            damaged[damaged.index(value) + 4] ^= 1
            # Damaged on disk: gzip's checksum is still that of the whole file.
            stored = bytearray(gzip.compress(bytes(damaged), compresslevel=0))
            stored[-8:-4] = gzip.compress(bytes(content))[-8:-4]
            path.write_bytes(stored)
            if refused:
                with pytest.raises(DamagedFeature, match=rf"^{re.escape(str(path))}: features with a wrong checksum"):
                    read_as_navsim(path)
            else:
                assert not same(read_as_navsim(path))


def test_caches_without_checksums_and_of_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_feature(tmp_path / "old.gz", FEATURES)
    assert same(read_as_navsim(tmp_path / "old.gz"))
    monkeypatch.setattr(checked, "FORMAT_VERSION", 99)
    write_feature(tmp_path / "newer.gz", CheckedFeatures(FEATURES))
    monkeypatch.undo()
    with pytest.raises(DamagedFeature, match=r"newer\.gz: features of cache format 99, this package reads format 1"):
        read_as_navsim(tmp_path / "newer.gz")


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.float64), torch.zeros(0, 3)])
def test_what_cannot_be_stored(value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="poses must be a non-empty tensor of float32, int64, uint8, found float"):
        pickle.dumps(CheckedFeatures(poses=value))
