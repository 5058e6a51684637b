"""Reinforcement learning of a policy on batches of features and targets, the same for every host."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_recogdrive.policy.callbacks import ValidationDisplacement
from navsim_recogdrive.policy.features import EGO_STATUS, HIDDEN_STATE, PAST_POSES, TOKEN, TRAJECTORY
from navsim_recogdrive.policy.objective import InvalidFeature, describe_non_finite
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.rl.advantages import group_advantages
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.losses import policy_loss, scene_mean
from navsim_recogdrive.rl.ranks import scenes_per_rank
from navsim_recogdrive.rl.reference import ReferencePolicy
from navsim_recogdrive.rl.reward import Reward, RewardResult
from navsim_recogdrive.rl.rollout import (
    ChainScores,
    ReferenceDraw,
    ScoredRollout,
    draw_group,
    draw_reference,
    scene_condition,
    score_chains,
)
from navsim_recogdrive.rl.stopwatch import Stopwatch

CONDITION = "condition"
"""Key of a batch's condition in predictions."""

PLANS = {"deterministic": True, "stochastic": False}
"""Kinds of plans at validation, in the order of their axis, and whether they are drawn without noise."""


class InvalidReward(ValueError):
    """A reward with scores of another shape, or that are not numbers."""


@dataclass(frozen=True, eq=False)
class DrawnGroups:
    """What a training step drew and what it was worth.

    Attributes:
        trajectories: ``[B, G, 8, 3]`` metres and radians, ego frame.
        scores: ``[B, G]``.
        valid: ``[B]`` bool, which scenes could be scored.
    """

    trajectories: NDArray[np.float32]
    scores: NDArray[np.float32]
    valid: NDArray[np.bool_]


class RLObjective:
    """Predictions and DiffGRPO loss of a batch (arXiv 2506.08052).

    A training step draws a group of trajectories per scene, hands them to the reward, computes log-probabilities and
    the reference policy's part while the reward's workers run, and then waits for the scores.

    A rollout that is used more than once (``updates_per_rollout`` U) is kept with its features and has its share in the
    loss of the U - 1 batches after its own. So every call makes one rollout, one loss and, with the host's automatic
    optimization, one backward pass: no trainer has to know of inner updates, and gradient accumulation, mixed precision
    and DDP, which runs one backward pass per forward, stay as they are. An update averages over U rollouts, and no
    scene of the epoch is left out. With gradient accumulation, batches are counted, not updates.

    Args:
        policy: whose planner is trained.
        config: of the objective.
        reward: scores trajectories of scenes by their tokens.
        reference: the frozen reference policy; may be ``None`` where neither weight of ``config`` needs it.

    Attributes:
        statistics: numbers of the last :meth:`loss`, for the log. Those of scored scenes are NaN where there is none;
            ``ratio/...`` are of rollouts used again alone, as the ratio of a fresh one is exactly 1.
        displacement: of validation plans from the expert's trajectory.
        latest: groups of the last training :meth:`loss`, for pictures; ``None`` before the first.

    Raises:
        InvalidSetting: for a reference policy that is missing or of another kind than the planner.
    """

    def __init__(
        self, policy: ReCogDrivePolicy, config: RLConfig, reward: Reward, reference: ReferencePolicy | None
    ) -> None:
        _check_reference(policy, config, reference)
        self._policy = policy
        self._config = config
        self._reward = reward
        self._reference = reference
        self._watch = Stopwatch(torch.device("cpu"))
        self._used_again: deque[ScoredRollout] = deque(maxlen=config.updates_per_rollout - 1)
        self._planners = {
            name: ReCogDrivePolicy(policy.planner, policy.backbone, replace(policy.sampling, deterministic=quiet))
            for name, quiet in PLANS.items()
        }
        self.statistics: dict[str, float] = {}
        self.displacement = ValidationDisplacement()
        self.latest: DrawnGroups | None = None

    @property
    def config(self) -> RLConfig:
        """Settings of the objective."""
        return self._config

    def predict(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """Condition of a batch; when the planner is not in training mode also its plans.

        Args:
            features: ``hidden_state`` [B, L, D], ``past_poses`` [B, 4, 3], ``ego_status`` [B, 8].

        Returns:
            ``condition``, which :meth:`loss` uses, and when evaluating ``deterministic`` and ``stochastic``, plans
            [B, 8, 3] with the scenes' own noise, and ``trajectory``, that of them which ``sampling.deterministic``
            asks for. Flow matching is evaluated without noise, so its two are the same.
        """
        self._watch = Stopwatch(features[EGO_STATUS].device)
        with self._watch.part("condition"):
            condition = scene_condition(self._policy.planner, features)
        predictions: dict[str, Any] = {CONDITION: condition}
        if not self._policy.planner.training:
            for name, policy in self._planners.items():
                predictions[name] = policy.sample(condition, features[PAST_POSES], features[EGO_STATUS])[:, 0]
            predictions[TRAJECTORY] = predictions[_evaluated(self._policy)]
        return predictions

    def loss(self, features: dict[str, Tensor], targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        """DiffGRPO's loss (scalar, float32); when evaluating, minus the mean reward of the plans.

        Scenes that the reward cannot score contribute nothing; without any the loss is 0 with gradients of 0. Every
        scored scene weighs the same, however they are spread over DDP ranks: the average of the ranks' losses is that
        of one process with all scenes.

        Args:
            features: as in :meth:`predict`.
            targets: ``token``, list of B str, and when evaluating ``trajectory`` [B, 8, 3] for the displacement.
            predictions: of :meth:`predict`.

        Raises:
            InvalidFeature: if trajectories or the loss are not finite, naming the scenes whose features are to blame.
            InvalidReward: if the reward answers with scores of another shape, or with NaN for a scene it calls valid.
        """
        if not self._policy.planner.training:
            return self._validation_loss(targets, predictions)
        planner, config, condition = self._policy.planner, self._config, predictions[CONDITION]
        device = condition.context.device
        watch = self._watch
        with watch.part("rollout"):
            chain = draw_group(planner, condition, config)
        trajectories = chain.trajectories.cpu().numpy()
        if not np.isfinite(trajectories).all():
            raise InvalidFeature(describe_non_finite(features, targets, "sampled trajectories are not finite"))
        pending = self._reward.submit(targets[TOKEN], trajectories)

        with watch.part("log_prob"):
            reference = self._draw_reference(features, chain.states)
            scores = score_chains(planner, condition, chain.states, reference, config)
            again = [
                (old, score_chains(planner, scene_condition(planner, old.features), old.states, old.reference, config))
                for old in self._used_again
            ]

        start = time.perf_counter()
        result = pending.result()
        waited = time.perf_counter() - start
        _check_result(result, trajectories.shape[:2])
        self.latest = DrawnGroups(trajectories, result.scores, result.valid)

        valid = torch.as_tensor(result.valid, dtype=torch.bool, device=device)
        advantages = group_advantages(torch.as_tensor(result.scores, device=device), valid, config)
        rollout = ScoredRollout(
            {name: features[name] for name in (HIDDEN_STATE, PAST_POSES, EGO_STATUS)},
            chain.states,
            reference,
            scores.log_prob.detach(),
            advantages.values,
            valid,
            scenes_per_rank(valid),
        )
        terms = [self._terms(*pair) for pair in [(rollout, scores), *again]]
        loss = torch.stack([term["loss/total"] for term in terms]).mean()
        if self._used_again.maxlen:
            self._used_again.append(rollout)

        measured = {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}
        if config.ratio_clip is not None:
            measured |= _ratio_statistics(again, config.ratio_clip)
        measured |= _log_prob_statistics(scores.unclamped, config)
        self.statistics = _numbers(measured)  # waits for the device
        self.statistics |= _reward_statistics(result, advantages.has_spread.cpu().numpy())
        self.statistics |= {f"seconds/{name}": seconds for name, seconds in watch.seconds().items()}
        self.statistics |= {"seconds/reward": result.seconds, "seconds/reward_wait": waited}
        if not np.isfinite(self.statistics["loss/total"]):
            symptom = f"the loss is {self.statistics['loss/total']}"
            raise InvalidFeature(describe_non_finite(features, targets, symptom))
        return loss

    def _draw_reference(self, features: dict[str, Tensor], states: Tensor) -> ReferenceDraw | None:
        if self._reference is None:
            return None
        return draw_reference(self._reference.on(states.device), features, states, self._config)

    def _terms(self, rollout: ScoredRollout, scores: ChainScores) -> dict[str, Tensor]:
        """The loss of one rollout and its terms, scalars with gradients."""
        config = self._config
        clipped = config.ratio_clip is not None
        policy = policy_loss(
            scores.log_prob,
            rollout.advantages,
            rollout.valid,
            discount=config.denoising_discount,
            old_log_prob=rollout.log_prob if clipped else None,
            ratio_clip=config.ratio_clip,
            count=rollout.count,
        )
        terms, total = {"loss/policy": policy}, policy
        if scores.cloning is not None:
            terms["loss/behaviour_cloning"] = -scene_mean(scores.cloning, rollout.valid, rollout.count)
            total = total + config.bc_weight * terms["loss/behaviour_cloning"]
        if scores.kl is not None:
            terms["kl"] = scene_mean(scores.kl, rollout.valid, rollout.count)
            total = total + config.kl_weight * terms["kl"]
        return {**terms, "loss/total": total}

    def _validation_loss(self, targets: dict[str, Any], predictions: dict[str, Any]) -> Tensor:
        plans = torch.stack([predictions[name] for name in PLANS], dim=1)
        result = self._reward.submit(targets[TOKEN], plans.float().cpu().numpy()).result()
        _check_result(result, plans.shape[:2])
        scored = result.scores[result.valid]
        means = scored.mean(axis=0) if len(scored) else np.full(len(PLANS), np.nan)
        self.statistics = {f"score/{name}": float(mean) for name, mean in zip(PLANS, means, strict=True)}
        self.statistics["score/scenes"] = float(len(scored))
        if TRAJECTORY in targets:
            self.displacement.update(predictions[TRAJECTORY], targets[TRAJECTORY])
        # Without a scored scene there is nothing to average; a NaN here would spoil the epoch's mean.
        mean = self.statistics[f"score/{_evaluated(self._policy)}"] if len(scored) else 0.0
        return plans.new_tensor(-mean)


def _evaluated(policy: ReCogDrivePolicy) -> str:
    return "deterministic" if policy.sampling.deterministic else "stochastic"


def _check_reference(policy: ReCogDrivePolicy, config: RLConfig, reference: ReferencePolicy | None) -> None:
    if reference is None:
        if config.needs_reference:
            raise InvalidSetting(
                f"rl.bc_weight {config.bc_weight} and rl.kl_weight {config.kl_weight} need a reference policy: set "
                "agent.reference_policy_checkpoint=FILE, or both weights to 0"
            )
        return
    ours, theirs = policy.planner.config, reference.config
    differing = [
        f"{field.name}: {getattr(theirs, field.name)} in the reference, {getattr(ours, field.name)} in the planner"
        for field in fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if differing:
        raise InvalidSetting(f"the reference policy is not of the planner's kind: {'; '.join(differing)}")


def _check_result(result: RewardResult, shape: Sequence[int]) -> None:
    if result.scores.shape != tuple(shape) or result.valid.shape != tuple(shape[:1]):
        raise InvalidReward(
            f"the reward must answer with scores {list(shape)} and valid {list(shape[:1])}, found "
            f"{list(result.scores.shape)} and {list(result.valid.shape)}"
        )
    if not np.isfinite(result.scores[result.valid]).all():
        raise InvalidReward("the reward calls scenes valid whose scores are not finite")


def _numbers(measured: dict[str, Tensor]) -> dict[str, float]:
    """All scalars in one transfer from the device."""
    return dict(zip(measured, torch.stack([value.detach() for value in measured.values()]).tolist(), strict=True))


def _ratio_statistics(again: Sequence[tuple[ScoredRollout, ChainScores]], clip: float) -> dict[str, Tensor]:
    """Of rollouts used again, each with a scored scene; NaN without any."""
    rows = []
    for rollout, scores in again:
        ratio = (scores.log_prob.detach() - rollout.log_prob).exp()
        parts = torch.stack(
            [scene_mean(ratio, rollout.valid), scene_mean(((ratio - 1).abs() > clip).float(), rollout.valid)]
        )
        rows.append(torch.where(rollout.valid.any(), parts, torch.nan))
    mean, outside = torch.stack(rows).nanmean(dim=0) if rows else torch.full((2,), torch.nan)
    return {"ratio/mean": mean, "ratio/outside_clip": outside}


def _log_prob_statistics(unclamped: Tensor, config: RLConfig) -> dict[str, Tensor]:
    low, high = config.log_prob_clamp
    return {
        "log_prob/mean": unclamped.mean(),
        "log_prob/min": unclamped.min(),
        "log_prob/max": unclamped.max(),
        "log_prob/clamped": ((unclamped < low) | (unclamped > high)).float().mean(),
    }


def _reward_statistics(result: RewardResult, has_spread: NDArray[np.bool_]) -> dict[str, float]:
    valid = result.valid
    scores: NDArray[Any] = result.scores[valid]
    names = ("mean", "std", "min", "max")
    of_scores = {f"reward/{name}": float(getattr(scores, name)()) if scores.size else np.nan for name in names}
    parts = {
        f"reward/{name}": float(values[valid].mean()) if scores.size else np.nan
        for name, values in result.sub_scores.items()
    }
    return {
        **of_scores,
        **parts,
        "reward/groups_without_spread": float(1 - has_spread[valid].mean()) if scores.size else np.nan,
        "reward/scenes_not_scored": float(1 - valid.mean()),
    }
