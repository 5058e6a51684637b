"""Unpickling of cache files that admits tensors, arrays and this package's own features, and no other code.

Caches are passed from hand to hand, and a pickle may name any function to be called.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.cache.stored import DamagedFeature

_ADMITTED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.serialization", "_get_layout"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    *(
        (f"navsim_recogdrive.cache.{name}", "_restore")
        for name in ("hidden_state", "hidden_state_features", "image_tiles", "scene_key", "checked", "failed")
    ),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage_from_bytes
        if (module, name) in _ADMITTED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no feature needs")


def _storage_from_bytes(content: bytes) -> Any:
    # What torch.storage._load_from_bytes does, without its weights_only=False.
    return torch.load(io.BytesIO(content), weights_only=True)


def load_feature(content: bytes, path: Path) -> dict[str, Any]:
    """The dict of one builder from the pickle ``content`` of the cache file ``path``.

    Raises:
        DamagedFeature: if it cannot be unpickled, naming the file; ``FailedFeatureRead`` among it.
    """
    try:
        features = _Unpickler(io.BytesIO(content)).load()
    except DamagedFeature as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes make it raise
        raise DamagedFeature(f"{path} cannot be unpickled ({type(error).__name__}: {error})") from error
    if not isinstance(features, dict):
        raise DamagedFeature(f"{path} must hold a dict of features, found {type(features).__name__}")
    return features
