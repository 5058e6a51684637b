"""The settings of a training run as plain values by name, for a resumed run to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from navsim_recogdrive.policy.configuration import PolicyConfig


@dataclass(frozen=True)
class RunSettings:
    """Values that ``torch.load(weights_only=True)`` reads, by the names that a user sets them under.

    Attributes:
        fixed: what decides the weights' shape or their updates; a resumed run must have the same.
        changeable: what a resumed run may change; the log says so.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    changeable: Mapping[str, Any] = field(default_factory=dict)


def run_settings(config: PolicyConfig, objective: Mapping[str, Any] | None = None) -> RunSettings:
    """The settings of a run.

    The VLM is not among them: a checkpoint remembers which one it is, see
    :mod:`~navsim_recogdrive.policy.remembered_vlm`.

    Args:
        config: of the agent.
        objective: groups of settings of the objective by name, for instance ``rl``; ``None``: imitation learning.
    """
    optimizer = asdict(config.optimizer)
    epochs = optimizer.pop("epochs")
    groups: dict[str, Any] = {
        "planner": asdict(config.planner),
        "optimizer": optimizer,
        "vlm": {name: getattr(config.vlm, name) for name in ("training", "learning_rate")},
        **({"lora": asdict(config.lora)} if config.vlm.training == "lora" else {}),
        **({"imitation": asdict(config.imitation)} if objective is None else objective),
    }
    fixed: dict[str, Any] = {
        "objective": "imitation" if objective is None else "reinforcement",
        "agent.cache_hidden_state": config.cache_hidden_state,
    }
    for group, values in groups.items():
        fixed |= {f"agent.{group}.{name}": _plain(value) for name, value in values.items()}
    return RunSettings(fixed, {"agent.optimizer.epochs": epochs})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
