"""A VLM's hidden states out of a cache, for planning again and again on the same scenes without running the VLM."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from navsim_recogdrive.cache.identity import CacheIdentity, CacheIdentityError, check_same, read_identity
from navsim_recogdrive.cache.peek import read_features
from navsim_recogdrive.cache.scene_index import open_scene_index
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.backbones import SharedBackbone, hint_for_hidden_size
from navsim_recogdrive.policy.configuration import PolicyConfig, VLMConfig
from navsim_recogdrive.policy.features import HIDDEN_STATE, HIDDEN_STATE_CACHE, SCENE_KEY, scene_key_of
from navsim_recogdrive.policy.remembered_vlm import check_remembered_vlm
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.vlm.prompts import load_profile

logger = logging.getLogger(__name__)


class SceneNotCached(LookupError):
    """A scene whose hidden state the cache does not hold."""


@dataclass
class CacheCounts:
    """How many scenes were found in the cache, and how many not."""

    hits: int = 0
    misses: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, hit: bool) -> None:
        """Count one scene."""
        with self.lock:
            self.hits += hit
            self.misses += not hit


class CachedBackbone:
    """Hidden states by what the VLM would see, from a cache that ``run_dataset_caching.py`` made.

    Needs neither the VLM's weights nor a GPU. The numbers of hits and misses are logged when it is given up.

    Args:
        root: of the cache.
        config: prompt profile and cameras, as in caching; the VLM itself is compared where its folder is there.
        vlm: to compare the cache with and to compute what is missing; not loaded before that.
        compute_missing: have ``vlm`` compute scenes that are missing; else they are an error.

    Raises:
        FileNotFoundError: if there is no such folder.
        CacheIdentityError: if the cache was made by another VLM or several, or for another prompt or other cameras.
        InvalidSetting: if the cache holds no hidden state that can be found.
    """

    def __init__(
        self, root: str | Path, config: VLMConfig, vlm: SharedBackbone, *, compute_missing: bool = False
    ) -> None:
        self._root = Path(root)
        self._cameras = config.cameras
        folder = None if config.path is None else Path(config.path)
        self._profile = load_profile(config.prompt_profile, config.cameras, folder)
        self._vlm = vlm
        self._compute_missing = compute_missing
        self._index = open_scene_index(self._root, f"{HIDDEN_STATE_CACHE}.gz")
        self.identity = read_identity(self._root)
        self._check(config)
        self.counts = CacheCounts()
        weakref.finalize(self, _summarise, self.counts, self._root)

    def hidden_states(self, observations: Sequence[Observation]) -> Tensor:
        """Hidden states [B, L, D] of ``observations``, on the CPU as they were stored (bf16, or float32).

        Raises:
            SceneNotCached: if one is missing and there is nothing to compute it with.
            DamagedFeature: if a cache file cannot be read, or is of another scene.
        """
        return torch.stack([self._hidden_state(observation) for observation in observations])

    def _hidden_state(self, observation: Observation) -> Tensor:
        key = scene_key_of(observation, self._cameras, self._profile)
        path = self._index.find(key)
        self.counts.add(path is not None)
        if path is not None:
            features = read_features(path, SCENE_KEY, HIDDEN_STATE)
            if bytes(features[SCENE_KEY].tolist()) != key:
                raise DamagedFeature(
                    f"{path} holds the hidden state of another scene than when the cache was indexed: it was changed "
                    "while this run reads it. Run again"
                )
            return features[HIDDEN_STATE]
        if not self._compute_missing:
            raise SceneNotCached(
                f"the hidden-state cache {self._root} ({len(self._index)} scenes, {self._index.unusable} damaged or "
                "without key) does not hold this scene: it is of another split, incomplete or damaged. "
                f"python -m navsim_recogdrive.cache inspect {self._root} --full finds damage, and repair --full "
                "removes it. Then run run_dataset_caching.py for this train_test_split with "
                "force_cache_computation=false, or set agent.hidden_state_cache_miss=vlm to compute what is missing"
            )
        return self._vlm.hidden_states([observation])[0].cpu()

    def _check(self, config: VLMConfig) -> None:
        if not len(self._index):
            raise InvalidSetting(
                f"the cache {self._root} holds no hidden state that a scene can be found by ({self._index.unusable} "
                "without key or damaged): give the folder that run_dataset_caching.py filled as cache_path"
            )
        expected = None if self.identity is None else self.identity.origin.hex()
        foreign = {origin: count for origin, count in self._index.origins.items() if origin != expected}
        if len(foreign) > (expected is None):
            marks = ", ".join(f"{origin} on {count} scenes" for origin, count in sorted(self._index.origins.items()))
            raise CacheIdentityError(
                f"the cache {self._root} holds hidden states of several VLMs or prompts, as if caches had been merged: "
                f"marks {marks}; its own is {expected or 'not known'}. Run python -m navsim_recogdrive.cache repair "
                f"{self._root} --foreign and cache the split again"
            )
        if self.identity is None:
            logger.warning("The cache %s does not say what made it: nothing checks that it fits the VLM", self._root)
            return
        if self.identity.prompt != self._profile.fingerprint or tuple(self.identity.cameras) != self._cameras:
            raise CacheIdentityError(
                f"the cache {self._root} was made with another prompt or other cameras ({self.identity.describe()}) "
                f"than configured (prompt {self._profile.fingerprint[:12]}, cameras {'+'.join(self._cameras)}): set "
                "agent.vlm.prompt_profile and agent.cam_type as they were in caching"
            )
        if config.path is not None and Path(config.path).is_dir():
            advice = "Set agent.vlm.path to the VLM of the cache, or give the cache of this VLM"
            wanted = self._vlm.identity(self.identity.mode)
            check_same(self._root, self.identity, wanted, CacheIdentity.DECIDING, advice)


def open_evaluation_cache(config: PolicyConfig, vlm: SharedBackbone, checkpoint: str | Path) -> CachedBackbone:
    """The cache that a planner is evaluated from, checked against the planner and its checkpoint.

    Raises:
        FileNotFoundError: if there is no such folder.
        CacheIdentityError: if the cache is of another VLM or prompt than configured, or than the VLM in the checkpoint.
        InvalidSetting: if the cache is empty, of another width, or not what the planner was trained with, or if missing
            scenes are to be computed and no VLM is configured.
        VLMCheckpointError: if missing scenes are to be computed and the VLM cannot be loaded.
    """
    if config.hidden_state_cache is None:
        raise InvalidSetting("agent.hidden_state_cache is not set")
    compute_missing = config.hidden_state_cache_miss == "vlm"
    if compute_missing:
        vlm.load()  # now: what fails in a scene the runners report, and go on
    source = CachedBackbone(config.hidden_state_cache, config.vlm, vlm, compute_missing=compute_missing)
    if source.identity is None:
        return source
    if source.identity.hidden_size != config.planner.hidden_state_size:
        raise InvalidSetting(
            f"the cache {config.hidden_state_cache} holds hidden states of size {source.identity.hidden_size}, the "
            f"planner expects {config.planner.hidden_state_size}. {hint_for_hidden_size(source.identity.hidden_size)} "
            "or give the cache of the right VLM"
        )
    if source.identity.trained != vlm.trained_fingerprint:
        raise CacheIdentityError(
            f"the cache {config.hidden_state_cache} was made with the VLM as trained in "
            f"{source.identity.trained[:12] or 'no joint training'}, the checkpoint {checkpoint} holds "
            f"{vlm.trained_fingerprint[:12] or 'no trained VLM'}: cache the split with agent.checkpoint_path set to it"
        )
    check_remembered_vlm(checkpoint, source.identity, cached=True)
    return source


def _summarise(counts: CacheCounts, root: Path) -> None:
    if counts.hits or counts.misses:
        level = logging.WARNING if counts.misses else logging.INFO
        logger.log(level, "hidden-state cache %s: %d hits, %d misses", root, counts.hits, counts.misses)
