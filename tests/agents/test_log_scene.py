"""One scene of NAVSIM's data, found without a runner: its observation and its plan are those of the runners' agent."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.navsim


@pytest.fixture
def checkpoint(make_agent: Callable[..., Any], tmp_path: Path) -> Path:
    """Of a planner that looks at its condition, in a file that says nothing of its VLM."""
    torch.manual_seed(0)
    agent = make_agent()
    for parameter in agent.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"agent.{key}": value for key, value in agent.state_dict().items()}}, path)
    return path


@pytest.fixture
def planning(tiny_vlm: Path, checkpoint: Path) -> list[str]:
    from tiny_sizes import TINY_HIDDEN_LENGTH

    vlm = ["--vlm", str(tiny_vlm), "--dtype", "float32", "--hidden-length", str(TINY_HIDDEN_LENGTH)]
    return [*vlm, "--checkpoint", str(checkpoint), "--device", "cpu"]


def log_files(world: Path, split: str) -> list[Path]:
    return sorted((world / "navsim_logs" / split).glob("*.pkl"))


def test_every_scene_is_found_with_the_runners_numbers(
    navsim_world: Path, scene_loader: Callable[..., Any], make_agent: Callable[..., Any]
) -> None:
    from navsim_recogdrive.agents.log_scene import find_scene
    from navsim_recogdrive.agents.observations import observation_from_agent_input
    from navsim_recogdrive.policy.observation_input import implausibilities

    loader = scene_loader("test", make_agent().get_sensor_config())
    for token in loader.tokens:
        found = find_scene(navsim_world, token=token)
        scene = loader.get_scene_from_token(token)
        assert (found.token, found.split, found.log_name) == (token, "test", scene.scene_metadata.log_name)
        expected = observation_from_agent_input(loader.get_agent_input_from_token(token))
        observation = found.observation()
        for name in ("front_image", "past_poses", "velocity", "acceleration", "driving_command"):
            np.testing.assert_array_equal(getattr(observation, name), getattr(expected, name), err_msg=name)
        np.testing.assert_array_equal(found.human_poses, scene.get_future_trajectory(8).poses.astype(np.float32))
        again = find_scene(navsim_world, log=found.log_name, frame=found.frame)
        assert again.token == token
        assert implausibilities(observation) == []
    assert len(loader.tokens) > 5


def test_a_log_ends_before_the_human_does(navsim_world: Path) -> None:
    from navsim_recogdrive.agents.log_scene import find_scene

    path = log_files(navsim_world, "test")[0]
    count = len(pickle.loads(path.read_bytes()))
    last = find_scene(navsim_world, log=path.stem, frame=count - 1)
    assert last.human_poses is None
    assert find_scene(navsim_world, log=path.stem, frame=count - 8).human_poses is None
    assert find_scene(navsim_world, log=path.stem, frame=count - 9).human_poses.shape == (8, 3)
    assert last.observation(()).past_poses.shape == (4, 3)
    assert find_scene(navsim_world, log=path.stem).frame == 3


def test_what_is_not_found(navsim_world: Path, tmp_path: Path) -> None:
    from navsim_recogdrive.agents.log_scene import SceneNotFound, find_scene

    path = log_files(navsim_world, "test")[0]
    frames = pickle.loads(path.read_bytes())
    for arguments, message in (
        ({"token": "0123"}, r"no scene '0123' in 5 log\(s\)"),
        ({"token": frames[9]["token"], "split": "trainval"}, r"in 3 log\(s\) of .*navsim_logs/trainval"),
        ({"token": frames[2]["token"]}, f"frame 2 of log {path.stem} cannot be planned from"),
        ({"log": path.stem, "frame": len(frames)}, f"it has frames 0 to {len(frames) - 1}"),
        ({"log": f"{path.stem}x"}, f"has no log '{path.stem}x' among 5, such as {path.stem}"),
        ({"log": path.stem, "split": "mini"}, "no split 'mini'; it has test, trainval"),
    ):
        with pytest.raises(SceneNotFound, match=message):
            find_scene(navsim_world, **arguments)
    with pytest.raises(SceneNotFound, match="set OPENSCENE_DATA_ROOT"):
        find_scene(tmp_path, token="0123")
    elsewhere = tmp_path / "data"
    (elsewhere / "navsim_logs" / "test").mkdir(parents=True)
    (elsewhere / "navsim_logs" / "test" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SceneNotFound, match="an image of scene .* is missing"):
        find_scene(elsewhere, log=path.stem).observation()


def test_the_command_plans_as_the_agent(
    navsim_world: Path,
    make_agent: Callable[..., Any],
    scene_loader: Callable[..., Any],
    checkpoint: Path,
    planning: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from navsim_recogdrive.plan.command import main

    agent = make_agent(checkpoint_path=str(checkpoint))
    agent.initialize()
    loader = scene_loader("test", agent.get_sensor_config())
    token = loader.tokens[-1]
    expected = agent.compute_trajectory(loader.get_agent_input_from_token(token)).poses
    written = tmp_path / "plan.json"

    def plan(*words: str) -> Any:
        assert main([*words, *planning, "--output", str(written), str(tmp_path / "plan.png")]) == 0
        return json.loads(written.read_text())

    alone = plan("--token", token)
    np.testing.assert_array_equal(np.float32(alone["plans"]), expected[None])
    np.testing.assert_allclose(np.float32(plan("--token", token, "--samples", "8")["plans"])[0], expected, atol=1e-5)
    assert alone["scene"]["token"] == token
    assert np.array(alone["human"]).shape == (8, 3)
    assert "from the human's trajectory" in capsys.readouterr().out
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.size == (2000, 720)

    own = alone["input"]["command"]
    other = "left" if own != "left" else "right"
    told = plan("--token", token, "--command", other)
    assert told["input"]["command"] == other
    assert not np.allclose(told["plans"], alone["plans"], atol=1e-3)
    assert f"command: {other} in place of the scene's {own}" in capsys.readouterr().out

    assert main(["--token", token, *planning, "--metric-cache", str(tmp_path / "nowhere")]) == 2
    assert "no metric cache folder" in capsys.readouterr().err
