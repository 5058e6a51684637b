"""Step ``settings``: can the agent be made with its settings, and how large is its planner."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.cache_estimate import SCENES
from navsim_recogdrive.policy.configuration import PolicyConfig, VLMConfig, with_vlm_group
from navsim_recogdrive.policy.settings import build_settings


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Check the settings.

    Returns:
        ``planner_parameters`` (count; 0 for an agent without one), ``planner`` settings with their defaults, and
        ``scenes`` of NAVSIM's published splits.

    Raises:
        InvalidSetting: as the agent itself would.
    """
    agent = agent_settings(parameters, results)
    answer: dict[str, Any] = {"planner_parameters": 0, "planner": None, "scenes": SCENES}
    if "planner" not in agent:
        vlm_config(agent)
        return answer
    names = {field.name for field in fields(PolicyConfig)} | {"vlm_type", "cam_type"}
    planner = PolicyConfig.from_mapping({name: value for name, value in agent.items() if name in names}).planner
    with torch.device("meta"):
        parameters_of = DiffusionPlanner(planner).parameters()
        answer["planner_parameters"] = sum(parameter.numel() for parameter in parameters_of)
    answer["planner"] = {field.name: getattr(planner, field.name) for field in fields(PlannerConfig)}
    return answer


def agent_settings(parameters: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What Hydra composed, or where it failed, the published values."""
    settings: dict[str, Any] = results["hydra"]["agent"] if "hydra" in results else parameters["published"]
    return settings


def vlm_config(agent: dict[str, Any]) -> VLMConfig:
    """The VLM's settings in an agent's."""
    return build_settings(VLMConfig, with_vlm_group(agent)["vlm"], "agent.vlm")
