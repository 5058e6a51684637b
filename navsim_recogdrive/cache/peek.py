"""Look at what a feature cache holds without reading it all."""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from navsim_recogdrive.cache.hidden_state import DamagedHiddenState


def cached_scene_folders(cache_path: Path, log_names: Iterable[str] | None, file_name: str) -> Iterator[Path]:
    """Folders ``cache_path/LOG/TOKEN`` that hold ``file_name``, in the order of ``log_names`` (``None``: all logs)."""
    names = sorted(path.name for path in cache_path.iterdir()) if log_names is None else log_names
    for name in names:
        log = cache_path / name
        if log.is_dir():
            yield from (folder for folder in sorted(log.iterdir()) if (folder / file_name).is_file())


def peek_feature(path: Path, name: str) -> Tensor:
    """The tensor ``name`` of the cache file ``path``.

    Raises:
        DamagedHiddenState: if the file cannot be read, naming it and what to do.
    """
    try:
        with gzip.open(path, "rb") as file:
            features = pickle.load(file)
        return features[name]
    except (OSError, EOFError, zlib.error, pickle.UnpicklingError, KeyError, ValueError, AttributeError) as error:
        raise DamagedHiddenState(
            f"the cache file {path} cannot be read ({type(error).__name__}: {error}); a killed run leaves such files. "
            "Delete it and run the caching again with force_cache_computation=false"
        ) from error
