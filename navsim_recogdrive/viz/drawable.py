"""Scenes to be drawn, and what planners make of them: what the commands share, wherever scenes come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from navsim_recogdrive.observation import Observation, PlannedTrajectory
from navsim_recogdrive.viz.scene_view import FloatArray, Plan, SampleGroup, SceneView


class Planner(Protocol):
    """What is needed of a policy: :class:`~navsim_recogdrive.policy.policy.ReCogDrivePolicy` is one."""

    def plan_samples(self, observation: Observation, num_samples: int) -> list[PlannedTrajectory]:
        """Trajectories of one scene; the first is its plan."""
        ...

    def denoise(self, observation: Observation, num_samples: int = 1) -> NDArray[np.float32]:
        """``[N, K + 1, 8, 3]`` states from noise to trajectories."""
        ...


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is thought of N trajectories.

    Attributes:
        scores: ``[N]``, 0 to 1.
        footprints: ``[N, T, 3]`` rear-axle poses that the simulated ego drove, present ego frame; ``None``: not known.
    """

    scores: FloatArray
    footprints: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class DrawableScene:
    """One scene.

    Attributes:
        token: NAVSIM's.
        log_name: the log it is cut from.
        observation: what policies see.
        view: the scene without plans.
        judge: scores trajectories ``[N, 8, 3]``; ``None`` where there is nothing to score with.
    """

    token: str
    log_name: str
    observation: Observation
    view: SceneView
    judge: Callable[[NDArray[np.float32]], Judgement] | None = None


def planned_view(scene: DrawableScene, planners: Mapping[str, Planner], num_samples: int = 0) -> SceneView:
    """The scene with a plan of every planner, and samples of the last.

    Args:
        scene: to plan for.
        planners: by the names in the legend, the most important last.
        num_samples: trajectories to be sampled from the last planner; 0: none.
    """
    plans, samples = [], None
    for name, planner in planners.items():
        last = name == list(planners)[-1]
        drawn = planner.plan_samples(scene.observation, max(num_samples, 1) if last else 1)
        poses = np.stack([plan.poses for plan in drawn])
        judgement = None if scene.judge is None else scene.judge(poses)
        plans.append(_plan(name, poses, judgement))
        if last and num_samples > 0:
            samples = SampleGroup(poses.astype(np.float64), None if judgement is None else judgement.scores)
    return replace(scene.view, plans=tuple(plans), samples=samples)


def _plan(name: str, poses: NDArray[np.float32], judgement: Judgement | None) -> Plan:
    if judgement is None:
        return Plan(name, poses[0].astype(np.float64))
    footprints = judgement.footprints
    return Plan(
        name, poses[0].astype(np.float64), float(judgement.scores[0]), None if footprints is None else footprints[0]
    )
