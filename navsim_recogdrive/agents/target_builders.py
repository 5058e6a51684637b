"""Target builders: what only a Scene knows, for compute_loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from navsim_recogdrive.agents.compat import AbstractTargetBuilder, Scene
from navsim_recogdrive.agents.failed_scenes import CachedBuilder
from navsim_recogdrive.cache.checked import CheckedFeatures
from navsim_recogdrive.observation import HORIZON_POSES
from navsim_recogdrive.policy.features import TOKEN, TOKEN_CACHE, TRAJECTORY, TRAJECTORY_CACHE


class TrajectoryTargetBuilder(CachedBuilder, AbstractTargetBuilder):
    """The expert's next 4 seconds: 8 poses at 0.5 s, metres and radians in the current ego frame.

    Args:
        failed: what to do with scenes that fail.
    """

    file_name = TRAJECTORY_CACHE

    def compute_targets(self, scene: Scene) -> dict[str, Any]:
        """``{"trajectory": [8, 3] float32}``.

        Raises:
            ValueError: if the scene ends before the horizon; where failures are not caught, also if the expert's poses
                are not finite.
        """
        available = len(scene.frames) - scene.scene_metadata.num_history_frames
        if available < HORIZON_POSES:
            raise ValueError(
                f"scene {scene.scene_metadata.initial_token} of log {scene.scene_metadata.log_name} has {available} "
                f"future frames, {HORIZON_POSES} are needed: set train_test_split.scene_filter.num_future_frames="
                f"{HORIZON_POSES} or more"
            )

        def compute() -> dict[str, Any]:
            poses = np.asarray(scene.get_future_trajectory(HORIZON_POSES).poses, dtype=np.float32)
            if not np.isfinite(poses).all():
                raise ValueError(
                    f"scene {scene.scene_metadata.initial_token}: the expert's future poses are not finite"
                )
            return CheckedFeatures({TRAJECTORY: torch.from_numpy(poses)})

        return self._failed.attempt(TRAJECTORY, compute)


class SceneTokenTargetBuilder(CachedBuilder, AbstractTargetBuilder):
    """The scene token, so that errors in training can name their scene (and a reward can find it).

    The last of a scene's builders, and the first that knows its token: it also ends a scene that failed.

    Args:
        failed: what to do with scenes that fail.
    """

    file_name = TOKEN_CACHE

    def compute_targets(self, scene: Scene) -> dict[str, Any]:
        """``{"token": str}``; the default collate makes a list of str of a batch."""
        metadata = scene.scene_metadata
        failure = self._failed.close(metadata.log_name, metadata.initial_token)
        return CheckedFeatures({TOKEN: metadata.initial_token if failure is None else failure})
