from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from navsim_recogdrive.cache.scene_key import KEY_MAGIC, SceneKey, scene_key


def _image(seed: int = 0, shape: tuple[int, ...] = (6, 8, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def test_a_key_tells_scenes_apart() -> None:
    one = _image()
    other = one.copy()
    other[3, 4, 1] ^= 1
    keys = [
        scene_key([one], "left"),
        scene_key([one], "right"),
        scene_key([other], "left"),
        scene_key([one.reshape(8, 6, 3)], "left"),
        scene_key([one, one], "left"),
        scene_key([one[:3], one[3:]], "left"),
        scene_key([_image(1)], "left"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}
    assert scene_key([one.copy(order="F")], "left") == keys[0]
    assert scene_key([np.asarray(one)[:, ::-1][:, ::-1]], "left") == keys[0]


def test_refuses_other_images() -> None:
    with pytest.raises(ValueError, match="uint8"):
        scene_key([_image().astype(np.float32)], "")
    with pytest.raises(ValueError, match=r"\[6, 8\]"):
        scene_key([_image()[..., 0]], "")
    with pytest.raises(ValueError, match="16 bytes"):
        SceneKey.wrap(b"short")


def test_as_a_feature() -> None:
    key = scene_key([_image()], "left")
    wrapped = SceneKey.wrap(key)
    assert KEY_MAGIC + key in pickle.dumps({"scene_key": wrapped})[:1024]
    restored = pickle.loads(pickle.dumps(wrapped))
    assert type(restored) is torch.Tensor
    assert bytes(restored.tolist()) == key
    assert type(default_collate([wrapped, wrapped])) is torch.Tensor
