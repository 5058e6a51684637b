from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from navsim_recogdrive.cache.failed import FailedFeature, FailedFeatureRead
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.cache.unpickling import load_feature

PATH = Path("log/token/x.gz")


class _Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_tensors_and_arrays_come_through() -> None:
    features = {
        "float": torch.randn(3, 4),
        "bf16": torch.randn(3).bfloat16(),
        "view": torch.arange(12).reshape(3, 4).T,
        "array": np.arange(6.0).reshape(2, 3),
        "scalar": np.float32(1.5),
        "token": "abc",
        "nested": collections.OrderedDict(a=[1, (2.0, None)]),
    }
    for protocol in (2, 4, 5):
        loaded = load_feature(pickle.dumps(features, protocol), PATH)
        for name in ("float", "bf16", "view"):
            assert torch.equal(loaded[name], features[name])
        assert np.array_equal(loaded["array"], features["array"])
        assert (loaded["scalar"], loaded["token"], loaded["nested"]) == (1.5, "abc", features["nested"])


def test_nothing_else_is_called(tmp_path: Path) -> None:
    made = tmp_path / "made"
    content = pickle.dumps({"x": _Command(made)})
    with pytest.raises(DamagedFeature, match=rf"{PATH} cannot be unpickled .*mkdir"):
        load_feature(content, PATH)
    assert not made.exists()
    pickle.loads(content)
    assert made.exists(), "the test's pickle would have done nothing anyway"


def test_damage() -> None:
    content = pickle.dumps({"x": torch.zeros(3)})
    for damaged in (b"", content[:-20], b"\x80" + content, pickle.dumps([1])):
        with pytest.raises(DamagedFeature, match=str(PATH)):
            load_feature(damaged, PATH)
    with pytest.raises(FailedFeatureRead, match=f"{PATH}: .*no image"):
        load_feature(pickle.dumps({"x": FailedFeature("no image")}), PATH)
