"""The diffusion planner (torch only): hidden states, history and ego status in, trajectories out."""

from .checkpoints import LoadReport, PlannerCheckpointError, infer_planner_config, load_planner_weights
from .condition import Condition
from .configuration import PlannerConfig, SamplerSettings
from .normalization import denormalize_trajectory, normalize_trajectory
from .planner import Chain, DiffusionPlanner
from .samplers import LogProbUnsupported

__all__ = [
    "Chain",
    "Condition",
    "DiffusionPlanner",
    "LoadReport",
    "LogProbUnsupported",
    "PlannerCheckpointError",
    "PlannerConfig",
    "SamplerSettings",
    "denormalize_trajectory",
    "infer_planner_config",
    "load_planner_weights",
    "normalize_trajectory",
]
