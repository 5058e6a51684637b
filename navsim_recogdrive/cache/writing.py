"""Writing cache files that appear whole or not at all."""

from __future__ import annotations

import gzip
import pickle
import uuid
from pathlib import Path
from typing import Any


def write_feature(path: Path, features: dict[str, Any]) -> None:
    """Write one builder's dict as NAVSIM's ``Dataset`` does, a pickle in gzip level 1, in place of any older file.

    Raises:
        OSError: if it cannot be written; nothing is left then.
    """
    write_whole(path, gzip.compress(pickle.dumps(features), compresslevel=1))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it.

    Raises:
        OSError: if it cannot be written; nothing is left then.
    """
    # Nodes may share the folder, and their process ids.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
