"""Imitation learning of a policy on batches of features and targets, the same for every host."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from navsim_recogdrive.planner.configuration import POSE_SIZE
from navsim_recogdrive.policy.callbacks import ValidationDisplacement
from navsim_recogdrive.policy.features import EGO_STATUS, HIDDEN_STATE, IMAGE_TILES, PAST_POSES, TOKEN, TRAJECTORY
from navsim_recogdrive.policy.image_features import scenes_of
from navsim_recogdrive.policy.imitation import imitation_loss
from navsim_recogdrive.policy.noise import scene_generators
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.training_configuration import ImitationConfig

VALIDATION_SEED = 0
VALIDATION_DRAWS = 8
"""Validation draws this many (noise, timestep) pairs per scene, from the scene's own seed: the same in every epoch,
batch size and number of ranks, so that its loss curve compares like with like."""


class Objective(Protocol):
    """What an agent trains its planner by: predictions of a batch, and their loss."""

    displacement: ValidationDisplacement

    def predict(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """What :meth:`loss` needs of a batch; when the planner is not in training mode also ``trajectory``."""
        ...

    def loss(self, features: dict[str, Tensor], targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        """Loss of a batch, scalar float32."""
        ...


class InvalidFeature(ValueError):
    """A batch that training cannot use: features or a loss that are not finite; names the scenes."""


class ImitationObjective:
    """Predictions and loss of a batch.

    Args:
        policy: whose planner is trained.
        config: draws per scene.
    """

    def __init__(self, policy: ReCogDrivePolicy, config: ImitationConfig) -> None:
        self._policy = policy
        self._config = config
        self.displacement = ValidationDisplacement()

    def predict(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Condition of a batch; when the planner is not in training mode also a planned trajectory.

        Args:
            features: ``past_poses`` [B, 4, 3], ``ego_status`` [B, 8], and ``hidden_state`` [B, L, D] or, in joint mode,
                those of :func:`~navsim_recogdrive.policy.image_features.tile_features`.

        Returns:
            ``condition``, which :meth:`loss` uses, and when evaluating ``trajectory`` [B, 8, 3] float32.
        """
        planner = self._policy.planner
        condition = planner.condition(self._hidden_states(features), features[PAST_POSES], features[EGO_STATUS])
        predictions: dict[str, Any] = {"condition": condition}
        if not planner.training:
            samples = self._policy.sample(condition, features[PAST_POSES], features[EGO_STATUS])
            predictions[TRAJECTORY] = samples[:, 0]
        return predictions

    def loss(self, features: dict[str, Tensor], targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        """Imitation loss (scalar); evaluating, the displacement of the planned trajectory is recorded too.

        Raises:
            InvalidFeature: if the loss is not finite, naming the scenes whose features are to blame.
        """
        planner = self._policy.planner
        draws = {"draws_per_scene": self._config.draws_per_scene} if planner.training else self._fixed_draws(features)
        loss = imitation_loss(planner, predictions["condition"], targets[TRAJECTORY], **draws)
        if not torch.isfinite(loss):
            raise InvalidFeature(describe_non_finite(features, targets, f"the loss is {loss.item()}"))
        if TRAJECTORY in predictions:
            self.displacement.update(predictions[TRAJECTORY], targets[TRAJECTORY])
        return loss

    def _hidden_states(self, features: dict[str, Tensor]) -> Tensor:
        if HIDDEN_STATE in features:
            return features[HIDDEN_STATE]
        return self._policy.backbone.hidden_states_of(scenes_of(features), features[IMAGE_TILES].device)

    def _fixed_draws(self, features: dict[str, Tensor]) -> dict[str, Any]:
        planner = self._policy.planner
        noise, levels = [], []
        for generator in scene_generators(features[PAST_POSES], features[EGO_STATUS], VALIDATION_SEED):
            noise.append(torch.randn(VALIDATION_DRAWS, planner.config.horizon, POSE_SIZE, generator=generator))
            levels.append(planner.method.draw_levels((1, VALIDATION_DRAWS), torch.device("cpu"), generator)[0])
        return {"draws_per_scene": VALIDATION_DRAWS, "noise": torch.stack(noise), "levels": torch.stack(levels)}


def describe_non_finite(features: dict[str, Tensor], targets: dict[str, Any], symptom: str) -> str:
    """What to do about a batch with a result that is not finite: the scenes to blame, or the optimization.

    Args:
        features: of the batch.
        targets: of the batch, with scene tokens; the experts' trajectories are looked at where they are there.
        symptom: what is not finite, as the beginning of a sentence.
    """
    tokens = targets.get(TOKEN, [])
    culprits = []
    expert = {TRAJECTORY: targets[TRAJECTORY]} if TRAJECTORY in targets else {}
    for name, values in {**features, **expert}.items():
        finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1).tolist()
        culprits += [
            f"{name} of scene {token}" for token, is_finite in zip(tokens, finite, strict=False) if not is_finite
        ]
    if culprits:
        return (
            f"values that are not finite in: {', '.join(culprits)}. Delete these scenes' folders from the cache and "
            "run the caching again with force_cache_computation=false."
        )
    return (
        f"{symptom} although all features of the batch are finite (scenes {', '.join(tokens)}): "
        "training has diverged. Use trainer.params.gradient_clip_val=1.0, a lower agent.optimizer.learning_rate, or "
        "trainer.params.precision=bf16-mixed."
    )
