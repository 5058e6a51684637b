"""The feature cache of offline mode: the same files, in the same folders, as NAVSIM's dataset caching writes.

``CACHE/LOG/TOKEN/NAME.gz`` holds a gzipped pickle of one builder's dict. Unlike NAVSIM's writer, files appear whole or
not at all, so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from navsim_recogdrive.cache.checked import CheckedFeatures
from navsim_recogdrive.cache.identity import claim
from navsim_recogdrive.cache.writing import write_feature
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.features import (
    EGO_CACHE,
    HIDDEN_STATE_CACHE,
    TOKEN,
    TOKEN_CACHE,
    TRAJECTORY,
    TRAJECTORY_CACHE,
    ego_features,
)
from navsim_recogdrive.world.scenes import WorldScene

FEATURE_FILES = (HIDDEN_STATE_CACHE, EGO_CACHE)
TARGET_FILES = (TRAJECTORY_CACHE, TOKEN_CACHE)


def scene_folder(cache_path: Path, scene: WorldScene) -> Path:
    """Folder of one scene."""
    return cache_path / scene.log_name / scene.token


def cache_scenes(scenes: Sequence[WorldScene], backbone: SharedBackbone, cache_path: Path, mode: str = "bf16") -> int:
    """Compute and store features and targets of ``scenes``; complete ones are left alone.

    Args:
        scenes: to be cached.
        backbone: the VLM.
        cache_path: root of the cache.
        mode: how hidden states are stored, one of :data:`~navsim_recogdrive.cache.codec.MODES`.

    Returns:
        The number of scenes computed now.

    Raises:
        CacheIdentityError: if it is a cache of another VLM, prompt or mode.
    """
    claim(cache_path, backbone.identity(mode))
    missing = [
        scene
        for scene in scenes
        if not all((scene_folder(cache_path, scene) / f"{name}.gz").is_file() for name in FEATURE_FILES + TARGET_FILES)
    ]
    for scene in tqdm(missing, desc="Caching hidden states", unit="scene"):
        observation = scene.observation()
        folder = scene_folder(cache_path, scene)
        folder.mkdir(parents=True, exist_ok=True)
        write_feature(folder / f"{HIDDEN_STATE_CACHE}.gz", backbone.cacheable_features(observation, mode))
        write_feature(folder / f"{EGO_CACHE}.gz", CheckedFeatures(ego_features(observation)))
        future = torch.from_numpy(scene.future_poses())
        write_feature(folder / f"{TRAJECTORY_CACHE}.gz", CheckedFeatures({TRAJECTORY: future}))
        write_feature(folder / f"{TOKEN_CACHE}.gz", CheckedFeatures({TOKEN: scene.token}))
    return len(missing)


class CachedScenes(Dataset[tuple[dict[str, Tensor], dict[str, Any]]]):
    """Features and targets of cached scenes, in the order given.

    Raises:
        FileNotFoundError: if there is no scene, or one is not in the cache.
    """

    def __init__(self, scenes: Sequence[WorldScene], cache_path: Path) -> None:
        if not scenes:
            raise FileNotFoundError("the split holds no scene: check train_logs, val_logs and world_root")
        self._folders = [scene_folder(cache_path, scene) for scene in scenes]
        missing = [folder for folder in self._folders if not (folder / f"{TOKEN_CACHE}.gz").is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(scenes)} scenes are not in the cache {cache_path}, the first is {missing[0]}: "
                "run stage=cache with the same cache_path"
            )

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self._folders)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Features and targets of one scene."""
        folder = self._folders[index]
        return _read(folder, FEATURE_FILES), _read(folder, TARGET_FILES)


def _read(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name in names:
        with gzip.open(folder / f"{name}.gz", "rb") as file:
            content.update(pickle.load(file))
    return content
