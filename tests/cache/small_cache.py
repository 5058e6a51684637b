"""Small caches, written as NAVSIM's ``Dataset`` writes them."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.cache.hidden_state import UNKNOWN_ORIGIN, HiddenState
from navsim_recogdrive.cache.hidden_state_features import HiddenStateFeatures
from navsim_recogdrive.cache.identity import CacheIdentity
from navsim_recogdrive.cache.scan import Layout
from navsim_recogdrive.cache.scene_key import SceneKey

LAYOUT = Layout(("state", "ego", "trajectory", "token"), "state")
IDENTITY = CacheIdentity(
    vlm="InternVL3-2B",
    model="a" * 64,
    trained="",
    prompt="b" * 64,
    cameras=("front",),
    hidden_size=64,
    hidden_length=900,
    max_tiles=12,
    dtype="bfloat16",
    mode="bf16",
    package="0.1.0",
)
OLD_NS = 1_600_000_000 * 10**9
"""A time long ago, at which every file of a made cache was written."""


def rows(seed: int = 0, length: int = 900, features: int = 64, padding: int = 9) -> torch.Tensor:
    """``[length, features]`` bf16: a file of it is larger than those that a quick scan reads whole."""
    values = torch.randn(length, features, generator=torch.Generator().manual_seed(seed)).bfloat16()
    values[:padding] = values[0].clone()
    return values


def dump(path: Path, content: dict[str, Any]) -> None:
    """As NAVSIM's ``dump_feature_target_to_pickle``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb", compresslevel=1) as file:
        pickle.dump(content, file)


def write_scene(folder: Path, seed: int = 0, mode: str = "bf16", origin: bytes = UNKNOWN_ORIGIN) -> None:
    """One whole scene, written long ago."""
    dump(
        folder / "state.gz",
        HiddenStateFeatures(
            scene_key=SceneKey.wrap(bytes([seed] * 16)),
            hidden_state=HiddenState.wrap(rows(seed), 9, mode, origin),
        ),
    )
    dump(folder / "ego.gz", {"past_poses": torch.zeros(4, 3), "ego_status": torch.zeros(8)})
    dump(folder / "trajectory.gz", {"trajectory": torch.zeros(8, 3)})
    dump(folder / "token.gz", {"token": folder.name})
    for path in folder.iterdir():
        os.utime(path, ns=(OLD_NS, OLD_NS))


def write_cache(root: Path, scenes: int = 4, **arguments: Any) -> list[Path]:
    """A whole cache of two logs; returns the scenes' folders."""
    folders = [root / f"log_{index % 2}" / f"{index:016x}" for index in range(scenes)]
    for index, folder in enumerate(folders):
        write_scene(folder, index, **arguments)
    return folders


def cut(path: Path, keep: float = 0.5) -> None:
    """Cut a file off, its time unchanged."""
    stat = path.stat()
    path.write_bytes(path.read_bytes()[: int(keep * stat.st_size)])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip(path: Path, at: float = 0.5) -> None:
    """Flip a bit of a file, its time unchanged."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[int(at * stat.st_size)] ^= 4
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
