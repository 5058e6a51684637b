"""World scores of agents on scenes of the synthetic world: the counterpart of NAVSIM's PDM scoring, not PDM scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from navsim_recogdrive.observation import HORIZON_POSES, POSE_INTERVAL_S
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.world.scenes import WorldScene
from navsim_recogdrive.world.scores import score

Planner = Callable[[WorldScene], NDArray[np.float32]]


def human(scene: WorldScene) -> NDArray[np.float32]:
    """The expert's own future, [8, 3]."""
    return scene.future_poses()


def constant_velocity(scene: WorldScene) -> NDArray[np.float32]:
    """Straight ahead at the present speed, [8, 3]."""
    speed = float(np.hypot(*scene.observation().velocity))
    poses = np.zeros((HORIZON_POSES, 3), dtype=np.float32)
    poses[:, 0] = speed * POSE_INTERVAL_S * np.arange(1, HORIZON_POSES + 1)
    return poses


def policy_planner(policy: ReCogDrivePolicy) -> Planner:
    """Plans of a policy, [8, 3]."""
    return lambda scene: policy.plan(scene.observation()).poses


def score_agents(scenes: Sequence[WorldScene], agents: Mapping[str, Planner], output_dir: Path) -> pd.DataFrame:
    """Score every agent on every scene and write one CSV per agent.

    Returns:
        One row per agent: the mean of every score over the scenes.
    """
    means = {}
    for name, plan in agents.items():
        rows = []
        for scene in tqdm(scenes, desc=f"World scores of {name}", unit="scene"):
            scores = score(scene, plan(scene)[None])
            parts = {**asdict(scores), "score": scores.score}
            rows.append({"token": scene.token, **{key: float(value[0]) for key, value in parts.items()}})
        table = pd.DataFrame(rows)
        output_dir.mkdir(parents=True, exist_ok=True)
        table.to_csv(output_dir / f"world_scores_{name}.csv", index=False)
        means[name] = table.drop(columns="token").mean()
    return pd.DataFrame(means).T
