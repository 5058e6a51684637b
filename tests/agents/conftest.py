"""Agents at tiny size, inside the synthetic world."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filled_cache import SCENES, Cache
from runners import Runners
from submission_files import CREDIT, SYNTHETIC, TOKENS, arc
from tiny_sizes import TINY_HIDDEN_LENGTH, TINY_PLANNER


@pytest.fixture
def make_agent(tiny_vlm: Path) -> Callable[..., Any]:
    """``make_agent(**settings)``: a ReCogDriveAgent with a tiny planner and the tiny VLM."""

    def make(**settings: Any) -> Any:
        from navsim_recogdrive.agents.recogdrive_agent import ReCogDriveAgent, TrajectorySampling

        vlm = {
            "path": str(tiny_vlm),
            "hidden_length": TINY_HIDDEN_LENGTH,
            "dtype": "float32",
            **settings.pop("vlm", {}),
        }
        planner = {**TINY_PLANNER, **settings.pop("planner", {})}
        sampling = settings.pop("trajectory_sampling", TrajectorySampling(time_horizon=4, interval_length=0.5))
        return ReCogDriveAgent(sampling, vlm=vlm, planner=planner, device="cpu", **settings)

    return make


@pytest.fixture(scope="module")
def runners(tiny_world: Path, tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Runners:
    """NAVSIM's scripts on the world of seconds, with the tiny VLM as ``VLM_PATH``."""
    return Runners(tiny_world, tiny_vlm, tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def metric_cache(tiny_world: Path, tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metric caches of the world's test split, made by NAVSIM's own script."""
    runners = Runners(tiny_world, tiny_vlm, tmp_path_factory.mktemp("metrics"))
    return runners.cache_metrics().resolve()


@pytest.fixture
def navsim_world(tiny_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world of seconds, with NAVSIM's environment variables set to it."""
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tiny_world))
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tiny_world / "maps"))
    return tiny_world


@pytest.fixture
def imported_navsim_world(navsim_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, also for a NAVSIM that this process has imported before."""
    from navsim.common import dataclasses, dataloader

    for module in (dataclasses, dataloader):  # read from the environment when NAVSIM was imported
        for name in ("OPENSCENE_DATA_ROOT", "NUPLAN_MAPS_ROOT"):
            value = {"OPENSCENE_DATA_ROOT": str(navsim_world), "NUPLAN_MAPS_ROOT": str(navsim_world / "maps")}[name]
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    return navsim_world


@pytest.fixture
def scene_loader(imported_navsim_world: Path) -> Callable[..., Any]:
    """``scene_loader(split, sensor_config)``: NAVSIM's SceneLoader on the world, any version."""
    from navsim.common import dataclasses, dataloader

    def make(split: str, sensor_config: Any) -> Any:
        from navsim_recogdrive.agents.compat import NAVSIM_MAJOR

        blobs = "original_sensor_path" if NAVSIM_MAJOR >= 2 else "sensor_blobs_path"
        return dataloader.SceneLoader(
            data_path=imported_navsim_world / "navsim_logs" / split,
            scene_filter=dataclasses.SceneFilter(frame_interval=1, num_future_frames=10),
            sensor_config=sensor_config,
            **{blobs: imported_navsim_world / "sensor_blobs" / split},
        )

    return make


@pytest.fixture
def cache(
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Cache:
    from navsim_recogdrive.agents.target_builders import SceneTokenTargetBuilder

    def make(**settings: Any) -> Any:
        agent = make_agent(**settings)
        agent.computed = computed = []
        compute = SceneTokenTargetBuilder.compute_targets

        def noting(self: Any, scene: Any) -> dict[str, Any]:
            computed.append(scene.scene_metadata.initial_token)
            return compute(self, scene)

        builders = agent.get_target_builders

        def get_target_builders() -> list[Any]:
            made = builders()
            made[-1].compute_targets = noting.__get__(made[-1])
            return made

        agent.get_target_builders = get_target_builders
        return agent

    loader = scene_loader("test", make_agent().get_sensor_config())
    tokens = loader.tokens[:: max(1, len(loader.tokens) // SCENES)][:SCENES]
    loader.scene_frames_dicts = {token: loader.scene_frames_dicts[token] for token in tokens}
    return Cache(tmp_path / "cache", make, loader)


@pytest.fixture
def full_cache(cache: Cache) -> Cache:
    assert sorted(cache.fill()) == sorted(cache.loader.tokens)
    cache.age()
    return cache


@pytest.fixture(scope="module")
def submitted_trajectory() -> Callable[..., Any]:
    """``submitted_trajectory(poses)``: what NAVSIM pickles, with its class names; unchecked, as a pickle may be."""
    try:
        from navsim_recogdrive.agents.compat import Trajectory, TrajectorySampling
    except ImportError:
        pytest.skip("NAVSIM is not importable")

    def make(poses: Any = None, sampling: Any = None) -> Any:
        made = Trajectory(arc(), TrajectorySampling(time_horizon=4, interval_length=0.5))
        made.poses = made.poses if poses is None else poses
        made.trajectory_sampling = made.trajectory_sampling if sampling is None else sampling
        return made

    return make


@pytest.fixture
def submission_v1(submitted_trajectory: Callable[..., Any]) -> dict[str, Any]:
    return {**CREDIT, "predictions": [{token: submitted_trajectory(arc(8 + n)) for n, token in enumerate(TOKENS)}]}


@pytest.fixture
def submission_v2(submitted_trajectory: Callable[..., Any]) -> dict[str, Any]:
    second = {token: submitted_trajectory(arc(5 + n)) for n, token in enumerate(SYNTHETIC)}
    first = {token: submitted_trajectory(arc(8 + n)) for n, token in enumerate(TOKENS)}
    return {**CREDIT, "first_stage_predictions": [first], "second_stage_predictions": [second]}


@pytest.fixture
def check_submission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """``check_submission(content)``: the report on its pickle, held against ``TOKENS`` (v2.x: and ``SYNTHETIC``)."""
    from navsim_recogdrive.agents.check_submission import main

    def run(content: Any, *arguments: str, tokens: list[str] | None = None) -> dict[str, Any]:
        file = tmp_path / "submission.pkl"
        file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        two = isinstance(content, dict) and "first_stage_predictions" in content
        (tmp_path / "tokens.txt").write_text("\n".join(tokens or [*TOKENS, *(SYNTHETIC if two else [])]))
        status = main([str(file), "--tokens", str(tmp_path / "tokens.txt"), "--json", *arguments])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status == (0 if report["valid"] else 1)
        return report

    return run
