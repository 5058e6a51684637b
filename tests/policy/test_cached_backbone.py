"""Hidden states out of a cache, found by what the VLM sees."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_observation import random_observation
from tiny_sizes import TINY_PLANNER

from navsim_recogdrive.cache import scene_index
from navsim_recogdrive.cache.identity import CacheIdentityError, claim
from navsim_recogdrive.cache.stored import DamagedFeature
from navsim_recogdrive.policy import remembered_vlm
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.cached_backbone import CachedBackbone, SceneNotCached, open_evaluation_cache
from navsim_recogdrive.policy.configuration import PolicyConfig, VLMConfig
from navsim_recogdrive.policy.features import HIDDEN_STATE_CACHE
from navsim_recogdrive.policy.settings import InvalidSetting

SCENES = ("first", "second", "third")


@pytest.fixture(scope="module")
def config(tiny_vlm: Path) -> VLMConfig:
    return VLMConfig(path=str(tiny_vlm))


def write(root: Path, scene: str, seed: int, vlm: SharedBackbone) -> Path:
    folder = root / "log" / scene
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{HIDDEN_STATE_CACHE}.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        pickle.dump(vlm.cacheable_features(random_observation(seed)), stream)
    return file


@pytest.fixture
def cache(config: VLMConfig, tmp_path: Path) -> Path:
    scene_index.open_scene_index.cache_clear()
    vlm = SharedBackbone(config, "cpu")
    root = tmp_path / "cache"
    claim(root, vlm.identity())
    for seed, scene in enumerate(SCENES):
        write(root, scene, seed, vlm)
    return root


def opened(root: Path, config: VLMConfig, **options: bool) -> CachedBackbone:
    scene_index.open_scene_index.cache_clear()
    return CachedBackbone(root, config, SharedBackbone(config, "cpu"), **options)


def test_hidden_states_are_those_of_the_vlm(cache: Path, config: VLMConfig) -> None:
    observations = [random_observation(seed) for seed in (2, 0, 1)]
    source = opened(cache, config)
    expected = torch.cat([SharedBackbone(config, "cpu").hidden_states([one]) for one in observations])
    assert torch.equal(source.hidden_states(observations), expected)
    assert (source.counts.hits, source.counts.misses) == (3, 0)


def test_another_dtype_of_the_cache_is_warned_of_with_what_changes_it(
    cache: Path, config: VLMConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = SharedBackbone(config, "cpu").identity()
    assert identity.dtype == "bfloat16"
    checkpoint = tmp_path / "last.ckpt"
    remembered = {"vlm": replace(identity, dtype="float32").to_dict()}
    torch.save({"state_dict": {}, "navsim_recogdrive": remembered}, checkpoint)
    remembered_vlm._warn_of_dtype.cache_clear()
    settings = PolicyConfig.from_mapping(
        {
            "vlm": {"path": config.path, "dtype": "float32"},
            "planner": TINY_PLANNER,
            "hidden_state_cache": str(cache),
            "device": "cpu",
        }
    )
    scene_index.open_scene_index.cache_clear()
    open_evaluation_cache(settings, SharedBackbone(settings.vlm, "cpu"), checkpoint)
    (warning,) = (one.message for one in caplog.records if "the planner was trained on" in one.message)
    assert "computed in float32, the cache's were computed in bfloat16: " in warning
    assert warning.endswith("Cache the split again with agent.vlm.dtype=float32 for the same.")


def test_a_missing_scene_is_an_error_or_computed(cache: Path, config: VLMConfig) -> None:
    with pytest.raises(SceneNotCached, match=r"\(3 scenes, 0 damaged or without key\) does not hold this scene"):
        opened(cache, config).hidden_states([random_observation(9)])
    source = opened(cache, config, compute_missing=True)
    expected = SharedBackbone(config, "cpu").hidden_states([random_observation(9)])
    assert torch.equal(source.hidden_states([random_observation(9)]), expected)
    assert (source.counts.hits, source.counts.misses) == (0, 1)


def test_the_index_is_kept_and_follows_changes(cache: Path, config: VLMConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(cache, config)
    peeked = []
    peek = scene_index.peek_hidden_state
    monkeypatch.setattr(scene_index, "peek_hidden_state", lambda path: peeked.append(path.parent.name) or peek(path))
    opened(cache, config)
    assert peeked == []
    write(cache, "fourth", 7, SharedBackbone(config, "cpu"))
    write(cache, "second", 8, SharedBackbone(config, "cpu"))  # its image has changed
    shutil.rmtree(cache / "log" / "third")
    source = opened(cache, config)
    assert sorted(peeked) == ["fourth", "second"]
    source.hidden_states([random_observation(seed) for seed in (0, 7, 8)])
    for gone in (1, 2):
        with pytest.raises(SceneNotCached):
            source.hidden_states([random_observation(gone)])


def test_a_file_that_changes_under_a_run_is_noticed(cache: Path, config: VLMConfig) -> None:
    source = opened(cache, config)
    shutil.copy(*(cache / "log" / scene / f"{HIDDEN_STATE_CACHE}.gz" for scene in ("first", "second")))
    with pytest.raises(DamagedFeature, match="holds the hidden state of another scene"):
        source.hidden_states([random_observation(1)])


def test_any_flipped_bit_is_noticed(cache: Path, config: VLMConfig) -> None:
    source = opened(cache, config)
    file = cache / "log" / "first" / f"{HIDDEN_STATE_CACHE}.gz"
    whole = file.read_bytes()
    # Beyond gzip's own header, whose file name and time carry nothing.
    for place in [*range(64, 400, 7), *range(400, len(whole), max(1, len(whole) // 60))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(DamagedFeature, match=str(file)):
            source.hidden_states([random_observation(0)])


def test_a_cut_off_file_is_no_scene(cache: Path, config: VLMConfig) -> None:
    file = cache / "log" / "first" / f"{HIDDEN_STATE_CACHE}.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SceneNotCached, match=r"\(2 scenes, 1 damaged .* --full finds damage"):
        opened(cache, config).hidden_states([random_observation(0)])


def test_hidden_states_of_another_vlm_among_them_are_refused(cache: Path, config: VLMConfig) -> None:
    other = SharedBackbone(replace(config, max_tiles=6), "cpu")
    write(cache, "second", 1, other)
    with pytest.raises(CacheIdentityError, match="of several VLMs or prompts, as if caches had been merged"):
        opened(cache, config)
    shutil.rmtree(cache / "_recogdrive")
    with pytest.raises(CacheIdentityError, match="its own is not known"):
        opened(cache, config)


def test_another_vlm_prompt_or_camera_is_refused(cache: Path, config: VLMConfig) -> None:
    with pytest.raises(CacheIdentityError, match="max_tiles"):
        opened(cache, replace(config, max_tiles=6))
    with pytest.raises(CacheIdentityError, match="made with another prompt or other cameras"):
        opened(cache, replace(config, cam_type="multi"))


def test_a_read_only_file_system_is_indexed_in_memory(
    cache: Path, config: VLMConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(30, os.strerror(30))

    for name in ("write_text", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    assert opened(cache, config).hidden_states([random_observation(0)]).shape[0] == 1
    assert not (cache / "_recogdrive" / "scene_index.json").exists()


def test_computing_what_is_missing_needs_a_vlm_at_the_start(cache: Path) -> None:
    settings = {"hidden_state_cache": str(cache), "hidden_state_cache_miss": "vlm", "vlm": {"path": None}}
    policy = PolicyConfig.from_mapping(settings)
    with pytest.raises(InvalidSetting, match="no VLM is configured"):
        open_evaluation_cache(policy, SharedBackbone(policy.vlm, "cpu"), cache)
    with pytest.raises(InvalidSetting, match="hidden_state_cache_miss must be error or vlm"):
        PolicyConfig.from_mapping({**settings, "hidden_state_cache_miss": "skip"})
    with pytest.raises(InvalidSetting, match="cannot act without agent.hidden_state_cache"):
        PolicyConfig.from_mapping({"hidden_state_cache_miss": "vlm"})


def test_an_empty_cache_is_refused(tmp_path: Path, config: VLMConfig) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidSetting, match="holds no hidden state that a scene can be found by"):
        opened(tmp_path / "empty", config)
    with pytest.raises(FileNotFoundError, match="no hidden-state cache at"):
        opened(tmp_path / "absent", config)
