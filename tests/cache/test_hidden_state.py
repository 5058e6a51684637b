from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from navsim_recogdrive.cache import codec
from navsim_recogdrive.cache.failed import FailedFeature, FailedFeatureRead
from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.cache.peek import cached_scene_folders, peek_feature
from navsim_recogdrive.cache.stored import DamagedFeature, DamagedHiddenState


def _rows(length: int = 40, padding: int = 9, features: int = 8) -> torch.Tensor:
    rows = torch.randn(length, features, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows[:padding] = rows[0].clone()
    return rows


@pytest.mark.parametrize("padding", [0, 1, 9, 40])
@pytest.mark.parametrize("mode", ["bf16", "fp32"])
def test_pickling_is_lossless(padding: int, mode: str) -> None:
    rows = _rows(padding=padding).to(torch.float32 if mode == "fp32" else torch.bfloat16)
    wrapped = HiddenState.wrap(rows, padding, mode)
    restored = pickle.loads(pickle.dumps(wrapped))
    assert type(restored) is torch.Tensor
    assert restored.dtype == wrapped.dtype == rows.dtype
    assert torch.equal(restored, rows)


def test_padding_and_float32_are_not_stored() -> None:
    def stored(padding: int, mode: str) -> int:
        rows = _rows(length=400, padding=padding).float()
        return len(pickle.dumps(HiddenState.wrap(rows, padding, mode)))

    assert stored(300, "bf16") < 0.5 * stored(0, "bf16")
    assert stored(0, "int8") < stored(0, "bf16") <= 400 * 8 * 2 + 400


def test_operations_give_plain_tensors() -> None:
    wrapped = HiddenState.wrap(_rows(), 9)
    for result in (wrapped + 0, wrapped.unsqueeze(0), torch.stack([wrapped, wrapped]), default_collate([wrapped])):
        assert type(result) is torch.Tensor


class _Scenes(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"hidden_state": HiddenState.wrap(_rows() * index, 9)}


def test_uncached_samples_travel_through_dataloader_workers() -> None:
    batches = list(DataLoader(_Scenes(), batch_size=2, num_workers=1))
    assert [type(batch["hidden_state"]) for batch in batches] == [torch.Tensor, torch.Tensor]
    assert torch.equal(batches[1]["hidden_state"][1], _rows() * 3)


def test_refuses_what_cannot_be_stored() -> None:
    rows = _rows()
    rows[20, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        HiddenState.wrap(rows, 9)
    with pytest.raises(ValueError, match="not one constant"):
        HiddenState.wrap(_rows(padding=9), 10)
    with pytest.raises(ValueError, match="matrix"):
        HiddenState.wrap(_rows()[0], 0)


def test_damage_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = bytearray(pickle.dumps(HiddenState.wrap(_rows(), 9)))
    position = len(stored) // 2
    stored[position] ^= 1
    with pytest.raises(DamagedHiddenState, match="checksum"):
        pickle.loads(bytes(stored))

    monkeypatch.setattr(codec, "FORMAT_VERSION", 99)
    newer = pickle.dumps(HiddenState.wrap(_rows(), 9))
    monkeypatch.undo()
    with pytest.raises(DamagedHiddenState, match="cache format 99"):
        pickle.loads(newer)


def test_peek(tmp_path: Path) -> None:
    for log, token in (("log_b", "t1"), ("log_a", "t2"), ("log_a", "t3")):
        (tmp_path / log / token).mkdir(parents=True)
        with gzip.open(tmp_path / log / token / "x.gz", "wb") as file:
            pickle.dump({"hidden_state": HiddenState.wrap(_rows(), 9)}, file)
    (tmp_path / "log_a" / "incomplete").mkdir()
    folders = [str(path.relative_to(tmp_path)) for path in cached_scene_folders(tmp_path, None, "x.gz")]
    assert folders == ["log_a/t2", "log_a/t3", "log_b/t1"]
    assert list(cached_scene_folders(tmp_path, ["absent", "log_b"], "x.gz")) == [tmp_path / "log_b" / "t1"]
    path = tmp_path / "log_a" / "t2" / "x.gz"
    assert peek_feature(path, "hidden_state").shape == (40, 8)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DamagedFeature, match=r"x\.gz cannot be read .* repair.*force_cache_computation=false"):
        peek_feature(path, "hidden_state")


def test_errors_in_a_worker_name_the_file(tmp_path: Path) -> None:
    """NAVSIM's reader unpickles from an open gzip file, and what unpickles itself sees its own bytes alone."""

    def read(path: Path) -> object:
        with gzip.open(path, "rb") as f:
            return pickle.load(f)

    def write(content: bytes) -> Path:
        with gzip.open(tmp_path / "x.gz", "wb") as file:
            file.write(content)
        return tmp_path / "x.gz"

    content = bytearray(pickle.dumps({"hidden_state": HiddenState.wrap(_rows(), 9)}))
    content[-40] ^= 1
    path = write(bytes(content))
    with pytest.raises(DamagedHiddenState, match=rf"^{path}: .*checksum"):
        read(path)
    with pytest.raises(DamagedHiddenState, match="^hidden state with a wrong checksum"):
        pickle.loads(bytes(content))
    path = write(pickle.dumps({"hidden_state": FailedFeature("no image")}))
    with pytest.raises(FailedFeatureRead, match=rf"^{path}: .*could not be computed \(no image\)"):
        read(path)
