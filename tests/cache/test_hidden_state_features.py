"""No bit in a hidden state's file can flip and go unnoticed, in what says whose it is either."""

from __future__ import annotations

import gzip
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_cache import dump, rows

from navsim_recogdrive.cache import hidden_state_features
from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.cache.hidden_state_features import HEAD_MAGIC, HiddenStateFeatures
from navsim_recogdrive.cache.peek import HiddenStateHead, peek_hidden_state
from navsim_recogdrive.cache.scene_key import SceneKey
from navsim_recogdrive.cache.stored import DamagedFeature, DamagedHiddenState
from navsim_recogdrive.cache.unpickling import load_feature

KEY, ORIGIN = bytes(range(16)), b"RcHSmark"  # a mark that looks like the beginning of a payload
STATE = rows(length=40, features=8)


def _features() -> dict[str, torch.Tensor]:
    return {"scene_key": SceneKey.wrap(KEY), "hidden_state": HiddenState.wrap(STATE, 9, origin=ORIGIN)}


def _peek(folder: Path, content: bytes) -> HiddenStateHead:
    (folder / "x.gz").write_bytes(gzip.compress(content, 1))
    return peek_hidden_state(folder / "x.gz")


def test_they_come_back_as_a_plain_dict(tmp_path: Path) -> None:
    stored = pickle.dumps(HiddenStateFeatures(_features()))
    for features in (pickle.loads(stored), load_feature(stored, tmp_path)):
        assert type(features) is dict
        assert list(features) == ["scene_key", "hidden_state"]
        assert {type(value) for value in features.values()} == {torch.Tensor}
        assert bytes(features["scene_key"].tolist()) == KEY
        assert torch.equal(features["hidden_state"], STATE)
    head = _peek(tmp_path, stored)
    assert (head.key, head.origin, head.info.length) == (KEY, ORIGIN, 40)
    assert 0 <= len(stored) - head.content_bytes < 256


def test_without_a_key(tmp_path: Path) -> None:
    stored = pickle.dumps(HiddenStateFeatures(state=HiddenState.wrap(STATE, 9)))
    assert list(pickle.loads(stored)) == ["state"]
    assert _peek(tmp_path, stored).key is None


@pytest.mark.parametrize(
    "features",
    [{}, {"a": torch.zeros(2)}, {"state": HiddenState.wrap(STATE, 9), "key": SceneKey.wrap(KEY)}],
)
def test_other_features_are_refused(features: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a scene's key and a HiddenState are stored"):
        pickle.dumps(HiddenStateFeatures(features))


def test_every_flipped_bit_of_the_head_is_found(tmp_path: Path) -> None:
    stored = pickle.dumps(HiddenStateFeatures(_features()))
    start = stored.index(HEAD_MAGIC)
    end = stored.index(b"hidden_state", start) + len(b"hidden_state") + 4
    for position in range(start, end):
        for bit in range(8):
            flipped = bytearray(stored)
            flipped[position] ^= 1 << bit
            with pytest.raises(DamagedHiddenState):
                pickle.loads(bytes(flipped))
            with pytest.raises(DamagedFeature, match=r"x\.gz"):
                _peek(tmp_path, bytes(flipped))


def test_no_flipped_bit_comes_back_as_something_else(tmp_path: Path) -> None:
    """Also of the pickle round head and payload, whose bits have no checksum but gzip's."""
    stored = pickle.dumps(HiddenStateFeatures(_features()))
    expected = pickle.loads(stored)
    chance = random.Random(0)
    everywhere = {*range(400), *range(len(stored) - 20, len(stored)), *chance.sample(range(len(stored)), 200)}
    for position in sorted(everywhere & set(range(len(stored)))):
        flipped = bytearray(stored)
        flipped[position] ^= 1 << chance.randrange(8)
        try:
            found = load_feature(bytes(flipped), tmp_path)
        except DamagedFeature:
            continue
        assert found.keys() == expected.keys(), position
        assert all(torch.equal(found[name], expected[name]) for name in expected), position


def test_files_from_before_there_was_a_checksum(tmp_path: Path) -> None:
    dump(tmp_path / "x.gz", {**_features(), "hidden_state": HiddenState.wrap(STATE, 9, origin=b"original")})
    head = peek_hidden_state(tmp_path / "x.gz")
    assert (head.key, head.origin) == (KEY, b"original")
    assert torch.equal(load_feature(gzip.decompress((tmp_path / "x.gz").read_bytes()), tmp_path)["hidden_state"], STATE)


def test_a_later_version_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_state_features, "FORMAT_VERSION", 7)
    stored = pickle.dumps(HiddenStateFeatures(_features()))
    monkeypatch.undo()
    with pytest.raises(DamagedHiddenState, match="format 7, this package reads format 2 and older ones: upgrade"):
        pickle.loads(stored)
    with pytest.raises(DamagedFeature, match="format 7"):
        _peek(tmp_path, stored)
