"""``agent.resume``: which run an agent goes on with, and which it refuses before anything is read or computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.navsim


@pytest.fixture
def in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from navsim_recogdrive.agents import recogdrive_agent

    monkeypatch.setattr(recogdrive_agent, "running_training", lambda: True)


@pytest.fixture
def stopped(in_training: None, make_agent: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """``resume`` and ``host`` of a run beside one that was stopped, as an agent's own callbacks wrote it."""
    from navsim_recogdrive.policy.last_checkpoint import FORMAT, KEY, STATE
    from navsim_recogdrive.policy.remembered_vlm import RememberVLM

    agent = make_agent(optimizer={"epochs": 2})
    (remember,) = [one for one in agent.get_training_callbacks() if isinstance(one, RememberVLM)]
    content: dict[str, Any] = {}
    remember.on_save_checkpoint(None, None, content)
    position = {"epoch": 0, "batches": 2, "batches_per_epoch": 4, "global_step": 2}
    content[KEY][STATE] = {"format": FORMAT, "settings": dict(agent._run_settings.fixed), **position}
    run = tmp_path / "experiment" / "2026.01.01.00.00.00"
    run.mkdir(parents=True)
    torch.save(content, run / "last.ckpt")
    return {"resume": "auto", "host": {"output_dir": str(run.with_name("2026.01.02.00.00.00"))}}


def continued(agent: Any) -> str | None:
    from navsim_recogdrive.policy.resume import ContinueRun

    paths = [one.ckpt_path for one in agent.get_training_callbacks() if isinstance(one, ContinueRun)]
    return paths[0] if paths else None


def test_the_same_run_goes_on(make_agent: Callable[..., Any], stopped: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "experiment" / "2026.01.01.00.00.00" / "last.ckpt")
    assert continued(make_agent(**stopped)) == path
    # What may change: the number of epochs, and what does not decide the updates.
    assert continued(make_agent(**stopped, optimizer={"epochs": 9}, sampling={"seed": 5})) == path
    assert continued(make_agent(resume=path)) == path
    assert continued(make_agent(host=stopped["host"])) is None
    assert continued(make_agent(resume="auto", host={"output_dir": str(tmp_path / "another")})) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"planner": {"num_layers": 4}}, "agent.planner.num_layers: 2 in the checkpoint, 4 in this run"),
        ({"planner": {"method": "flow"}}, "agent.planner.method: ddim in the checkpoint, flow in this run"),
        ({"optimizer": {"learning_rate": 2e-4}}, "agent.optimizer.learning_rate: 0.0001 in the checkpoint, 0.0002"),
        ({"imitation": {"draws_per_scene": 8}}, "agent.imitation.draws_per_scene: 1 in the checkpoint, 8 in this run"),
        ({"cache_hidden_state": False}, "agent.cache_hidden_state: True in the checkpoint, False in this run"),
    ],
)
def test_other_settings_are_refused(
    make_agent: Callable[..., Any], stopped: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    from navsim_recogdrive.policy.resume import ResumeError

    with pytest.raises(ResumeError) as error:
        make_agent(**stopped, **settings)
    assert message in str(error.value)


def test_another_vlm_is_refused(make_agent: Callable[..., Any], stopped: dict[str, Any]) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match=r"last.ckpt was trained with another VLM or prompt: .*max_tiles differs"):
        make_agent(**stopped, vlm={"max_tiles": 6})


def test_scoring_has_nothing_to_resume(make_agent: Callable[..., Any]) -> None:
    from navsim_recogdrive.policy.settings import InvalidSetting

    with pytest.raises(InvalidSetting, match="agent.resume=auto is for run_training.py"):
        make_agent(resume="auto")
