"""Filling a hidden-state cache with NAVSIM's own ``Dataset`` and training from it: identity, faults, content."""

from __future__ import annotations

import gzip
import logging
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filled_cache import FILES, SCENES, Cache, wait

pytestmark = pytest.mark.navsim


def kill_at(call: int, share: float) -> Callable[[], None]:
    """In the ``call``-th file that NAVSIM writes, after this share of its content: SIGKILL."""

    def arm() -> None:
        from navsim.planning.training import dataset

        dump, calls = dataset.dump_feature_target_to_pickle, []

        def killed(path: Path, content: dict[str, Any]) -> None:
            calls.append(path)
            if len(calls) <= call:
                dump(path, content)
                return
            pickled = pickle.dumps(content)
            with gzip.open(path, "wb", compresslevel=1) as file:
                file.write(pickled[: int(share * len(pickled))])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        dataset.dump_feature_target_to_pickle = killed

    return arm


def test_the_identity_is_no_scene(full_cache: Cache) -> None:
    """NAVSIM takes every entry of the root for a log and every entry of that for a scene."""
    from navsim.planning.training.dataset import CacheOnlyDataset, Dataset

    assert (full_cache.root / "_recogdrive" / "identity.json").is_file()
    agent = full_cache.agent()
    builders = agent.get_feature_builders(), agent.get_target_builders()
    only = CacheOnlyDataset(str(full_cache.root), *builders, log_names=None)
    assert sorted(only.tokens) == sorted(full_cache.loader.tokens)
    both = Dataset(full_cache.loader, *builders, cache_path=str(full_cache.root), force_cache_computation=False)
    assert len(both) == SCENES
    assert not agent.computed


def test_what_comes_back_is_what_the_vlm_computed(full_cache: Cache) -> None:
    from navsim_recogdrive.agents.observations import observation_from_agent_input
    from navsim_recogdrive.policy.features import scene_key_of

    agent = full_cache.training_agent()
    features, targets = full_cache.batch(agent, workers=1)
    assert features["hidden_state"].dtype == torch.bfloat16
    assert features["scene_key"].shape == (SCENES, 16)
    backbone = agent._policy.backbone
    for index, token in enumerate(targets["token"]):
        observation = observation_from_agent_input(full_cache.loader.get_agent_input_from_token(token))
        expected = backbone.hidden_states([observation])[0].bfloat16()
        assert torch.equal(features["hidden_state"][index], expected)
        # Scoring hands over float32 poses where caching had float64.
        key = scene_key_of(observation, ("front",), backbone.preparation.profile)
        assert bytes(features["scene_key"][index].tolist()) == key


def test_hidden_states_stay_bf16_up_to_the_planner(full_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities import move_data_to_device

    agent = full_cache.training_agent().train()
    features, _ = move_data_to_device(full_cache.batch(agent), torch.device("cpu"))
    condition, seen = agent.action_head.condition, []

    def watched(hidden_states: torch.Tensor, *rest: torch.Tensor) -> Any:
        seen.append(hidden_states.dtype)
        return condition(hidden_states, *rest)

    monkeypatch.setattr(agent.action_head, "condition", watched)
    agent.forward(features)
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize(("mode", "dtype"), [("int8", torch.bfloat16), ("fp32", torch.float32)])
def test_other_modes(cache: Cache, mode: str, dtype: torch.dtype) -> None:
    assert len(cache.fill(cache_mode=mode)) == SCENES
    assert {key[0] for key in cache.check().states} == {mode}
    features, _ = cache.batch(cache.training_agent())
    assert features["hidden_state"].dtype == dtype
    assert cache.train() == SCENES, "training does not ask for the mode"


# The third scene's files are written by calls 8 to 11.
@pytest.mark.parametrize(("call", "share"), [(8, 0.0), (8, 0.5), (9, 0.0), (10, 0.5), (11, 0.0), (11, 0.9)])
def test_killed_while_filling(cache: Cache, call: int, share: float) -> None:
    assert cache.fill_in_child(kill_at(call, share)) == -signal.SIGKILL
    cache.age()
    # Already now nothing damaged can be trained on: NAVSIM does not take the scene for complete, or training refuses.
    from navsim_recogdrive.agents.cache_use import DamagedCache

    if call < 11:
        assert cache.train() == 2
    else:
        with pytest.raises(DamagedCache, match=r"repair .* force_cache_computation=false"):
            cache.train()
    computed = cache.fill()
    assert len(computed) == SCENES - 2
    report = cache.check()
    assert (report.scenes, report.findings, report.incomplete) == (SCENES, [], [])
    assert cache.train() == SCENES
    assert cache.fill() == []


@pytest.mark.parametrize("call", [8, 9, 11])
def test_killed_while_filling_again(full_cache: Cache, call: int) -> None:
    """With ``force_cache_computation=true`` all files are there, one of them cut off: NAVSIM trusts it."""
    from navsim_recogdrive.agents.cache_use import DamagedCache

    assert full_cache.fill_in_child(kill_at(call, 0.5), force=True) == -signal.SIGKILL
    full_cache.age()
    (finding,) = full_cache.check(full=False).misleading
    assert finding.path.name == f"{FILES[call - 8]}.gz"
    with pytest.raises(DamagedCache, match=finding.scene):
        full_cache.train()
    assert full_cache.fill() == [finding.path.parent.name]
    assert full_cache.train() == SCENES


def test_disk_full(cache: Cache) -> None:
    def small_disk() -> None:
        from navsim.planning.training import dataset

        dump, calls = dataset.dump_feature_target_to_pickle, []

        def limited(path: Path, content: dict[str, Any]) -> None:
            calls.append(path)
            if len(calls) == 9:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            dump(path, content)

        dataset.dump_feature_target_to_pickle = limited

    assert cache.fill_in_child(small_disk) == 7
    assert cache.train() == 2
    assert len(cache.fill()) == SCENES - 2
    assert cache.check().scenes == SCENES


def test_two_processes_fill_one_cache(cache: Cache) -> None:
    children = [cache.start_child() for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    report = cache.check()
    assert (report.scenes, report.findings, report.incomplete) == (SCENES, [], [])
    assert cache.fill() == []


def test_a_truncated_file_and_a_flipped_bit(full_cache: Cache) -> None:
    from navsim_recogdrive.agents.cache_use import DamagedCache
    from navsim_recogdrive.cache.stored import DamagedHiddenState

    first, second = full_cache.files()[:2]
    content = bytearray(first.read_bytes())
    first.write_bytes(content[:-100])
    full_cache.age()
    with pytest.raises(DamagedCache, match=f"{first.parent.name}: .*{first}"):
        full_cache.train()
    assert full_cache.fill() == [first.parent.name]
    with gzip.open(second) as file:
        pickled = bytearray(file.read())
    pickled[-2000] ^= 1
    with gzip.open(second, "wb", compresslevel=1) as file:
        file.write(pickled)
    # Inside a DataLoader worker only the file's name helps.
    with pytest.raises((DamagedHiddenState, RuntimeError), match=rf"{second}: .*checksum"):
        full_cache.batch(full_cache.agent(full_cache.host(use_cache_without_dataset=True)), workers=1)


def test_a_moved_read_only_cache_is_trained_from(full_cache: Cache, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    shutil.move(full_cache.root, moved)
    folders = [path for path in [moved, *moved.rglob("*")] if path.is_dir()]
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert full_cache.train(moved) == SCENES
        assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_another_vlm_or_prompt_is_refused(full_cache: Cache, tmp_path: Path) -> None:
    from navsim_recogdrive.cache.identity import CacheIdentityError
    from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

    other = tmp_path / "other"
    write_tiny_checkpoint(other, hidden_size=32, tile_size=112, seed=1)
    before = full_cache.snapshot()
    for settings, differing in (({"path": str(other)}, "model"), ({"max_tiles": 6}, "max_tiles")):
        for use in (full_cache.fill, full_cache.training_agent):
            with pytest.raises(CacheIdentityError, match=f"{differing} differs.\n  in the cache: .*\n  this run: "):
                use(vlm=settings)
    with pytest.raises(CacheIdentityError, match="mode differs"):
        full_cache.fill(cache_mode="int8")
    with pytest.raises(CacheIdentityError, match="dtype differs"):
        full_cache.fill(vlm={"dtype": "bfloat16"})
    full_cache.training_agent(vlm={"dtype": "bfloat16"})  # differs by rounding alone
    full_cache.training_agent(vlm={"path": None})
    full_cache.training_agent(vlm={"path": str(tmp_path / "on another machine")})
    assert full_cache.snapshot() == before


def test_merged_caches_are_refused(full_cache: Cache) -> None:
    """A copy of another cache into this one overwrites no file, so only the marks in the files tell."""
    from navsim_recogdrive.agents.cache_use import DamagedCache
    from navsim_recogdrive.cache.identity import CacheIdentityError

    other = Cache(full_cache.root.with_name("other"), full_cache._make_agent, full_cache.loader)
    other.fill(vlm={"max_tiles": 6})
    other.age()
    shutil.copytree(next(other.root.glob("world*")), full_cache.root / "merged", copy_function=shutil.copy2)
    scenes = len(list((full_cache.root / "merged").iterdir()))
    with pytest.raises(DamagedCache, match=rf"^{scenes} files .*\n  merged/.* is of another VLM or prompt"):
        full_cache.train()
    with pytest.raises(CacheIdentityError, match=f"{scenes} hidden states .* as if two caches had been merged"):
        full_cache.fill()


def test_a_cache_without_identity(full_cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(full_cache.root / "_recogdrive")
    with caplog.at_level(logging.WARNING):
        assert full_cache.train() == SCENES
        full_cache.files()[0].unlink()
        assert len(full_cache.fill()) == 1
    assert len([record for record in caplog.records if "does not say what made it" in record.message]) == 2
    assert not (full_cache.root / "_recogdrive").exists(), "what is not known must not be claimed"


def test_the_marks_of_a_cache_without_identity_tell_its_dtype(full_cache: Cache) -> None:
    from navsim_recogdrive.cache.identity import read_identity
    from navsim_recogdrive.policy.remembered_vlm import RememberVLM

    made_by = read_identity(full_cache.root)
    assert made_by is not None
    assert made_by.dtype == "float32"
    shutil.rmtree(full_cache.root / "_recogdrive")
    agent = full_cache.training_agent(vlm={"dtype": "bfloat16"})
    (callback,) = [one for one in agent.get_training_callbacks() if isinstance(one, RememberVLM)]
    assert callback._vlm == made_by


def test_a_merged_cache_without_identity_is_refused(full_cache: Cache) -> None:
    from navsim_recogdrive.cache.identity import CacheIdentityError

    other = Cache(full_cache.root.with_name("other"), full_cache._make_agent, full_cache.loader)
    other.fill(vlm={"max_tiles": 6})
    shutil.rmtree(other.root / "_recogdrive")
    shutil.rmtree(full_cache.root / "_recogdrive")
    for force in (False, True):
        with pytest.raises(CacheIdentityError, match=f"than configured: {SCENES} with the mark"):
            other.fill(force=force)
    with pytest.raises(CacheIdentityError, match=f"than configured: {SCENES} with the mark"):
        other.train()
    shutil.copytree(next(other.root.glob("world*")), full_cache.root / "merged")
    several = r"several VLMs.*: \d with the mark \w{16}, \d with the mark \w{16}\."
    for refused in (full_cache.train, full_cache.fill):
        with pytest.raises(CacheIdentityError, match=several):
            refused()


def test_files_in_the_root_are_named(full_cache: Cache) -> None:
    from navsim_recogdrive.agents.cache_use import DamagedCache

    (full_cache.root / "README").write_text("x")
    with pytest.raises(DamagedCache, match="found the file README: NAVSIM fails"):
        full_cache.fill()


def test_the_layout_is_that_of_the_builders(make_agent: Callable[..., Any]) -> None:
    from navsim_recogdrive.agents.cache_use import layout_of

    for settings in ({}, {"cache_hidden_state": False}):
        agent = make_agent(**settings)
        builders = [*agent.get_feature_builders(), *agent.get_target_builders()]
        assert tuple(builder.get_unique_name() for builder in builders) == layout_of(agent._host, agent.config).files


def test_checkpoints_remember_the_vlm(full_cache: Cache, tmp_path: Path) -> None:
    from navsim_recogdrive.cache.identity import read_identity
    from navsim_recogdrive.policy.remembered_vlm import RememberVLM, read_remembered_vlm
    from navsim_recogdrive.policy.settings import InvalidSetting

    agent = full_cache.training_agent()
    (callback,) = [one for one in agent.get_training_callbacks() if isinstance(one, RememberVLM)]
    content: dict[str, Any] = {"state_dict": {f"agent.{key}": value for key, value in agent.state_dict().items()}}
    torch.save(content, tmp_path / "published.ckpt")
    callback.on_save_checkpoint(None, None, content)
    torch.save(content, tmp_path / "last.ckpt")
    assert read_remembered_vlm(tmp_path / "last.ckpt") == read_identity(full_cache.root)
    for name in ("last.ckpt", "published.ckpt"):
        full_cache._make_agent(checkpoint_path=str(tmp_path / name)).initialize()
    other = {"checkpoint_path": str(tmp_path / "last.ckpt"), "vlm": {"max_tiles": 6}}
    with pytest.raises(InvalidSetting, match=r"max_tiles differs.\n  trained with: .*\n  configured: "):
        full_cache._make_agent(**other).initialize()
    full_cache._make_agent(**{**other, "checkpoint_path": str(tmp_path / "published.ckpt")}).initialize()
