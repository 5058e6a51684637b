"""The agent of reinforcement learning: what it refuses before the first step; elsewhere it is the plain one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_pdm_metric_cache import of_the_other_version, path_of
from tiny_sizes import TINY_PLANNER

pytestmark = pytest.mark.navsim

LOG = "a_log"


@pytest.fixture
def imitation(tmp_path: Path) -> Path:
    """A planner of the tiny size."""
    from navsim_recogdrive.planner.configuration import PlannerConfig
    from navsim_recogdrive.planner.planner import DiffusionPlanner

    torch.manual_seed(0)
    path = tmp_path / "imitation.ckpt"
    torch.save({"state_dict": DiffusionPlanner(PlannerConfig(**TINY_PLANNER)).state_dict()}, path)
    return path


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``make(**settings)``: a ReCogDriveRLAgent as in run_training.py."""
    from navsim_recogdrive.agents import rl_agent

    monkeypatch.setattr(rl_agent, "running_training", lambda: True)

    def make(**settings: Any) -> Any:
        sampling = rl_agent.TrajectorySampling(time_horizon=4, interval_length=0.5)
        return rl_agent.ReCogDriveRLAgent(sampling, planner=TINY_PLANNER, device="cpu", **settings)

    return make


def cache_of(folder: Path, tokens: list[str]) -> dict[str, Any]:
    """A run that trains and validates on these scenes, from a cache whose files are empty."""
    from navsim_recogdrive.policy.features import HIDDEN_STATE_LAYOUT

    for token in tokens:
        scene = folder / LOG / token
        scene.mkdir(parents=True)
        for name in HIDDEN_STATE_LAYOUT.files:
            (scene / f"{name}.gz").touch()
    return {
        "cache_path": str(folder),
        "use_cache_without_dataset": True,
        "train_logs": [LOG],
        "val_logs": [LOG],
    }


def test_a_resumed_run_must_have_the_same_reference_policy(
    make: Callable[..., Any], imitation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same content, under whatever path."""
    from navsim_recogdrive.agents import rl_agent
    from navsim_recogdrive.policy.configuration import PolicyConfig
    from navsim_recogdrive.policy.run_settings import run_settings

    class Made(Exception):
        pass

    def stop(*_: Any, objective_settings: dict[str, Any], **__: Any) -> None:
        raise Made(run_settings(PolicyConfig(), objective_settings).fixed)

    for name in ("SceneCheck", "MetricCacheFolder"):
        monkeypatch.setattr(rl_agent, name, lambda *_: None)
    monkeypatch.setattr(rl_agent.ReCogDriveAgent, "__init__", stop)

    def fixed(path: Path, **settings: Any) -> Any:
        with pytest.raises(Made) as made:
            make(reference_policy_checkpoint=str(path), metric_cache_path="caches", **settings)
        return made.value.args[0]

    moved, other = tmp_path / "moved.ckpt", tmp_path / "other.ckpt"
    moved.write_bytes(imitation.read_bytes())
    weights = torch.load(imitation, weights_only=True)["state_dict"]
    name = next(name for name in weights if name.endswith(".bias"))
    torch.save({"state_dict": {**weights, name: weights[name] + 1}}, other)
    assert fixed(moved) == fixed(imitation)
    assert fixed(other) != fixed(imitation)
    before = fixed(imitation)
    assert fixed(imitation, rl={"recompute_activations": False}) == before
    assert fixed(imitation, rl={"group_size": 4}) != before
    monkeypatch.setattr(rl_agent, "NAVSIM_NAME", "another")
    changed = {name for name, value in fixed(imitation).items() if value != before[name]}
    assert changed == {"agent.reward.navsim"}, "the reward would become another score"


def test_no_reference_policy(make: Callable[..., Any], imitation: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match=r"set agent\.reference_policy_checkpoint=FILE"):
        make(checkpoint_path=str(imitation))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        make(reference_policy_checkpoint=str(tmp_path / "nowhere.ckpt"))
    with pytest.raises(InvalidSetting, match="needs a trained planner to start from"):
        make(rl={"bc_weight": 0.0})
    with pytest.raises(InvalidSetting, match=r"checkpoint_weights=raw cannot act without agent\.checkpoint_path"):
        make(reference_policy_checkpoint=str(imitation), checkpoint_weights="raw")


def test_reference_policy_of_another_size(make: Callable[..., Any], tmp_path: Path) -> None:
    from navsim_recogdrive.planner.checkpoints import PlannerCheckpointError
    from navsim_recogdrive.planner.configuration import PlannerConfig
    from navsim_recogdrive.planner.planner import DiffusionPlanner

    path = tmp_path / "other.ckpt"
    other = DiffusionPlanner(PlannerConfig(**{**TINY_PLANNER, "num_layers": 4}))
    torch.save({"state_dict": other.state_dict()}, path)
    with pytest.raises(PlannerCheckpointError, match=r"Its num_layers is 4, the planner's 2"):
        make(reference_policy_checkpoint=str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"set agent\.metric_cache_path=FOLDER"),
        ({"cache_hidden_state": False}, r"agent\.cache_hidden_state=false is for imitation learning"),
        ({"imitation": {"draws_per_scene": 8}}, r"agent\.imitation\.draws_per_scene cannot act"),
        ({"rl": {"group_sise": 8}}, r"unknown setting\(s\) group_sise in 'rl'; it has: group_size"),
        ({"rl": {"group_size": 1}}, r"rl\.group_size must be a whole number of at least 2, found 1"),
        ({"reward": {"workers": -1}, "metric_cache_path": "x"}, r"agent\.reward: workers must be at least 0"),
        ({"reward": {"worker": 1}, "metric_cache_path": "x"}, r"unknown setting\(s\) worker in 'reward'"),
        ({"reward": {"metric_cache_path": "y"}, "metric_cache_path": "x"}, r"set agent\.metric_cache_path"),
    ],
)
def test_settings_that_cannot_work(
    make: Callable[..., Any], imitation: Path, settings: dict[str, Any], message: str
) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match=message):
        make(reference_policy_checkpoint=str(imitation), **settings)


def test_missing_metric_caches(make: Callable[..., Any], imitation: Path, metric_cache: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache
    from navsim_recogdrive.agents.reward_scenes import MissingMetricCaches
    from navsim_recogdrive.policy.settings import InvalidSetting

    there = MetricCacheFolder(metric_cache).tokens[:2]
    unknown = [f"unknown{i:02}" for i in range(12)]
    reward = {"reference_policy_checkpoint": str(imitation), "metric_cache_path": str(metric_cache)}
    host = cache_of(tmp_path / "cache", [*there, *unknown])
    with pytest.raises(MissingMetricCaches, match="run_metric_caching_train.sh") as error:
        make(host=host, **reward)
    for split in ("training", "validation"):
        assert f"{split}: 12 of 14 scenes have no metric cache in {metric_cache}: unknown00," in str(error.value)
    assert "unknown09 and 2 more" in str(error.value)
    assert "agent.missing_metric_caches=skip to train on the others" in str(error.value)

    none = cache_of(tmp_path / "none", unknown)
    with pytest.raises(MissingMetricCaches, match="12 of 12") as error:
        make(host=none, missing_metric_caches="skip", **reward)
    assert "train on the others" not in str(error.value)
    with pytest.raises(InvalidSetting, match=r"agent\.missing_metric_caches must be stop or skip, found 'ignore'"):
        make(host=host, missing_metric_caches="ignore", **reward)
    with pytest.raises(UnusableMetricCache, match="no metric cache folder"):
        make(host=host, **{**reward, "metric_cache_path": str(tmp_path / "nowhere")})


@pytest.fixture
def copied(metric_cache: Path, tmp_path: Path) -> Path:
    """The metric caches, to be spoiled; their table still names the original's files."""
    copy = tmp_path / "copy"
    shutil.copytree(metric_cache, copy)
    return copy


def test_skipped_scenes_are_returned_and_others_are_read(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Missing, cut short, and broken in the middle, which only reading finds; one of another NAVSIM is not skipped."""
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder, UnusableMetricCache
    from navsim_recogdrive.agents.reward_scenes import SceneCheck

    folder = MetricCacheFolder(copied)
    first, second, short, broken, other = folder.tokens[:5]
    scenes = {"training": [short, first, "unknown"], "validation": ["nowhere", second, broken]}
    assert SceneCheck(folder, "skip").check(scenes) == ["unknown", "nowhere"]

    content = path_of(copied, short).read_bytes()
    path_of(copied, short).write_bytes(content[:-100])
    content = path_of(copied, broken).read_bytes()
    path_of(copied, broken).write_bytes(content[:500] + bytes(300) + content[800:])
    caplog.clear()
    assert SceneCheck(folder, "skip").check(scenes) == ["unknown", short, "nowhere", broken]
    assert f"training: 1 of 3 scenes have no metric cache in {copied}: unknown" in caplog.text
    assert (
        f"training: 1 of 2 metric caches in {copied} cannot be read: {path_of(copied, short)} (its end" in caplog.text
    )
    assert f"{path_of(copied, broken)} (Corrupt input data)" in caplog.text
    for token in (short, broken):
        with pytest.raises(UnusableMetricCache, match=f"{token}.*delete the file, then run .*keeps every file"):
            SceneCheck(folder, "stop").check({"training": [token, first]})

    of_the_other_version(copied, other)
    with pytest.raises(UnusableMetricCache, match=f"{other}.*occupancy maps.*another folder .METRIC_CACHE_PATH=FOLDER"):
        SceneCheck(folder, "skip").check({**scenes, "training": [first, other]})


def test_a_split_without_any_usable_metric_cache_stops_the_start(
    make: Callable[..., Any], imitation: Path, copied: Path, tmp_path: Path
) -> None:
    """Or an epoch later there were no score to choose a checkpoint by."""
    from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
    from navsim_recogdrive.agents.reward_scenes import MissingMetricCaches, SceneCheck

    folder = MetricCacheFolder(copied)
    good, short = folder.tokens[:2]
    path_of(copied, short).write_bytes(path_of(copied, short).read_bytes()[:-100])
    for scenes in ([short], ["unknown"], [short, "unknown"]):
        with pytest.raises(MissingMetricCaches, match=r"validation: (?s:.)*trainer\.params\.limit_val_batches=0"):
            SceneCheck(folder, "skip").check({"training": [good], "validation": scenes})
        with pytest.raises(MissingMetricCaches, match=r"broken first$"):
            SceneCheck(folder, "skip").check({"training": scenes, "validation": [good]})

    host = cache_of(tmp_path / "cache", [good])
    of_validation = tmp_path / "cache" / "validation_log"
    shutil.copytree(tmp_path / "cache" / LOG / good, of_validation / "unknown")
    settings = {
        "reference_policy_checkpoint": str(imitation),
        "metric_cache_path": str(copied),
        "missing_metric_caches": "skip",
        "reward": {"workers": 0},
    }
    host = {**host, "val_logs": [of_validation.name]}
    with pytest.raises(MissingMetricCaches, match="validation: 1 of 1"):
        make(host=host, **settings)
    make(host={**host, "limit_val_batches": 0}, **settings)


@pytest.mark.parametrize(("missing", "stops"), [("stop", True), ("skip", False)])
def test_unusable_metric_caches_met_in_training_stop_what_missing_ones_stop(
    make: Callable[..., Any], imitation: Path, metric_cache: Path, missing: str, stops: bool
) -> None:
    agent = make(
        reference_policy_checkpoint=str(imitation),
        metric_cache_path=str(metric_cache),
        missing_metric_caches=missing,
        reward={"workers": 0},
    )
    assert agent._reward._reward._stop_at_unusable is stops


def test_numpy_that_cannot_read_metric_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents.reward_scenes import check_numpy

    check_numpy()
    monkeypatch.setattr(np, "__version__", "1.26.3")
    with pytest.raises(ImportError, match=r"need numpy 1\.26\.4 or newer, found 1\.26\.3"):
        check_numpy()


def test_outside_of_training_it_is_the_plain_agent(imitation: Path) -> None:
    from navsim_recogdrive.agents.recogdrive_agent import ReCogDriveAgent
    from navsim_recogdrive.agents.rl_agent import ReCogDriveRLAgent, TrajectorySampling
    from navsim_recogdrive.policy.objective import ImitationObjective

    sampling = TrajectorySampling(time_horizon=4, interval_length=0.5)
    settings: dict[str, Any] = {"planner": TINY_PLANNER, "device": "cpu", "checkpoint_path": str(imitation)}
    host = {"use_cache_without_dataset": True}
    ours = ReCogDriveRLAgent(sampling, metric_cache_path="nowhere", host=host, **settings)
    plain = ReCogDriveAgent(sampling, host=host, **settings)
    assert isinstance(ours._objective, ImitationObjective)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in ours.state_dict().items())
    kinds = [type(callback) for callback in ours.get_training_callbacks()]
    assert kinds == [type(callback) for callback in plain.get_training_callbacks()]


@pytest.mark.parametrize(
    ("job", "expected"),
    [("run_training", True), ("train_ddp_process_1", True), ("run_pdm_score", False)],
)
def test_ranks_that_lightning_started_train_too(job: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents import host

    config = OmegaConf.create({"job": {"name": job}})
    monkeypatch.setattr(host.HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(host.HydraConfig, "get", staticmethod(lambda: config))
    assert host.running_training() is expected


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [(["agent=recogdrive_2b_rl"], True), (["trainer.params.max_epochs=100"], False), (["agent.x=1", "split=a"], True)],
)
def test_epochs_by_default_are_warned_of(
    make: Callable[..., Any],
    imitation: Path,
    overrides: list[str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from navsim_recogdrive.agents import rl_agent
    from navsim_recogdrive.policy.settings import InvalidSetting

    config = OmegaConf.create({"overrides": {"task": overrides}})
    monkeypatch.setattr(rl_agent.HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(rl_agent.HydraConfig, "get", staticmethod(lambda: config))
    with pytest.raises(InvalidSetting, match="metric_cache_path"):
        make(reference_policy_checkpoint=str(imitation), optimizer={"epochs": 100})
    assert ("trains for 100 epochs" in caplog.text) == warned


def test_configs_say_the_defaults() -> None:
    import navsim_recogdrive.configs
    from navsim_recogdrive.agents.pdm_reward import PDMRewardSettings
    from navsim_recogdrive.policy.settings import build_settings
    from navsim_recogdrive.rl.configuration import RLConfig

    folder = Path(navsim_recogdrive.configs.__file__).parent / "agent"
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "recogdrive_2b_rl.yaml"))
    assert build_settings(RLConfig, config["rl"], "rl") == RLConfig()
    assert set(config["rl"]) == set(RLConfig.__dataclass_fields__)
    default = PDMRewardSettings("x")
    assert build_settings(PDMRewardSettings, {"metric_cache_path": "x", **config["reward"]}, "reward") == default
    assert {"metric_cache_path", *config["reward"]} == set(PDMRewardSettings.__dataclass_fields__)
