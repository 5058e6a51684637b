"""The VLM alone inside NAVSIM: through its own runners, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from copying_vlm import ANSWER_POSES, answer_text, write_copying_vlm
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from runners import Runners
from tiny_sizes import TINY_HIDDEN_SIZE, TINY_TILE

from navsim_recogdrive.vlm import VLMOutOfMemory

pytestmark = pytest.mark.navsim

TINY_TEXT_AGENT = [
    "agent=recogdrive_vlm_2b",
    f"agent.hidden_size={TINY_HIDDEN_SIZE}",
    "agent.vlm.dtype=float32",
    "agent.generation.max_new_tokens=185",
]
SUMMARY = re.compile(
    r"text planner: (\d+) answers, (\d+) exact, (\d+) repaired, (\d+) fallback \(constant velocity\), (\d+) cut off"
)


def _agent(**settings: Any) -> Any:
    from navsim_recogdrive.agents.text_agent import ReCogDriveTextAgent, TrajectorySampling

    sampling = settings.pop("trajectory_sampling", TrajectorySampling(time_horizon=4, interval_length=0.5))
    return ReCogDriveTextAgent(sampling, device="cpu", **settings)


def _composed(agent: str, vlm: Path) -> Any:
    """An agent's config as a runner composes it."""
    with initialize_config_module("navsim_recogdrive.configs", version_base=None):
        return compose("agent/" + agent, overrides=[f"agent.vlm.path={vlm}"]).agent


def _scenes(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["token"].astype(str).str.startswith("average")].sort_values("token").reset_index(drop=True)


def _counts(log: str) -> dict[str, int]:
    """Answers by outcome, over all agents that a runner made."""
    found = SUMMARY.findall(log)
    assert found, log[-3000:]
    names = ("answers", "exact", "repaired", "fallback", "cut_off")
    return {name: sum(int(line[index]) for line in found) for index, name in enumerate(names)}


def test_chain_of_a_vlm_that_writes_no_plan(runners: Runners) -> None:
    """Random weights: every scene gets constant velocity, and the score of NAVSIM's own constant velocity agent."""
    runners.cache_metrics()
    ours = _scenes(runners.score(TINY_TEXT_AGENT, "text"))
    counts = _counts(runners.output)
    assert len(ours) > 5
    assert counts["answers"] == counts["fallback"] == len(ours)
    assert runners.output.count("constant velocity instead") >= len(ours)
    theirs = _scenes(runners.score(["agent=constant_velocity_agent"], "constant_velocity"))
    assert theirs["score"].nunique() > 1
    columns = ["token", "valid", "score"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])


def test_chain_of_a_vlm_that_writes_a_plan(runners: Runners, tmp_path: Path) -> None:
    folder, profile = write_copying_vlm(tmp_path / "copier", answer_text(), TINY_TILE)
    agent = [*TINY_TEXT_AGENT, f"agent.vlm.path={folder}", f"agent.vlm.prompt_profile={profile}"]
    trajectories = runners.submit(agent, "text_submission")
    counts = _counts(runners.output)
    assert len(trajectories) > 5
    assert counts["answers"] == counts["exact"] == len(trajectories)
    for trajectory in trajectories.values():
        np.testing.assert_array_equal(trajectory.poses, ANSWER_POSES.astype(np.float32))


def test_training_refuses_it_at_once(runners: Runners) -> None:
    logs = ["train_test_split=trainval", "train_logs=[nowhere]", "val_logs=[nowhere]"]
    output = runners.run("run_training.py", *TINY_TEXT_AGENT, *logs, "experiment_name=refused", expect_failure=True)
    assert "run_training.py trains or caches for training, and the text planner has nothing to train there" in output
    assert "agent=recogdrive_2b" in output


def test_caching_refuses_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    job = SimpleNamespace(job=SimpleNamespace(name="run_dataset_caching"))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    with pytest.raises(InvalidSetting, match=r"run_dataset_caching\.py trains or caches"):
        _agent()


def test_a_gpu_without_memory_stops_scoring(
    tiny_vlm: Path, scene_loader: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_recogdrive.agents.cache_use import EvaluationStopped

    def exhausted(*_: Any) -> Any:
        raise VLMOutOfMemory("let fewer workers share the GPU")

    agent = _agent(vlm={"path": str(tiny_vlm), "dtype": "float32"}, hidden_size=TINY_HIDDEN_SIZE)
    agent.initialize()
    monkeypatch.setattr(agent._policy, "plan", exhausted)
    loader = scene_loader("test", agent.get_sensor_config())
    with pytest.raises(EvaluationStopped, match="let fewer workers"):
        agent.compute_trajectory(loader.get_agent_input_from_token(loader.tokens[0]))


@pytest.mark.parametrize(("size", "expected"), [("2b", 1536), ("8b", 3584)])
def test_a_vlm_of_another_size_is_refused_before_anything_is_loaded(tiny_vlm: Path, size: str, expected: int) -> None:
    from hydra.utils import instantiate

    config = _composed(f"recogdrive_vlm_{size}", tiny_vlm)
    with pytest.raises(Exception, match=f"hidden size {TINY_HIDDEN_SIZE}, this agent expects {expected}"):
        instantiate(config)
    with open_dict(config):
        config.hidden_size = None
    assert instantiate(config).name() == "ReCogDriveTextAgent"


def test_an_8b_vlm_is_sent_to_its_agent(tiny_vlm: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    config = json.loads((tiny_vlm / "config.json").read_text())
    config["llm_config"] |= {"hidden_size": 3584}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidSetting, match="hidden size 3584, this agent expects 1536: use agent=recogdrive_vlm_8b"):
        _agent(vlm={"path": str(tmp_path)}, hidden_size=1536)


def test_what_is_missing_or_wrong_is_said_early(tiny_vlm: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.agents.text_agent import TrajectorySampling
    from navsim_recogdrive.policy.settings import InvalidSetting
    from navsim_recogdrive.vlm import VLMCheckpointError

    with pytest.raises(InvalidSetting, match=r"set agent\.vlm\.path"):
        _agent().initialize()
    with pytest.raises(VLMCheckpointError, match="nowhere"):
        _agent(vlm={"path": str(tmp_path / "nowhere")})
    with pytest.raises(InvalidSetting, match="asks for 6 at 0.5 s"):
        _agent(trajectory_sampling=TrajectorySampling(time_horizon=3, interval_length=0.5))
    with pytest.raises(InvalidSetting, match="max_new_tokens=9 would cut answers off"):
        _agent(vlm={"path": str(tiny_vlm)}, generation={"max_new_tokens": 9}).initialize()


def test_it_has_no_features_to_cache(tiny_vlm: Path) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match="the text planner has nothing to train there: use agent=recogdrive_2b"):
        _agent(vlm={"path": str(tiny_vlm)}).get_feature_builders()


@pytest.mark.parametrize(("cam_type", "read"), [("single", {"cam_f0"}), ("multi", {"cam_l0", "cam_f0", "cam_r0"})])
def test_it_reads_the_cameras_that_its_vlm_sees(tiny_vlm: Path, cam_type: str, read: set[str]) -> None:
    agent = _agent(vlm={"path": str(tiny_vlm)}, cam_type=cam_type)
    assert {name for name, frames in vars(agent.get_sensor_config()).items() if frames} == read
