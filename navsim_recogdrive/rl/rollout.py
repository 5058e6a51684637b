"""Drawing chains for a batch of scenes, scoring them under the policy, and what of them a later step needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from navsim_recogdrive.planner.condition import Condition
from navsim_recogdrive.planner.planner import Chain, DiffusionPlanner
from navsim_recogdrive.policy.features import EGO_STATUS, HIDDEN_STATE, PAST_POSES
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.losses import gaussian_kl


@dataclass(frozen=True)
class ReferenceDraw:
    """The reference policy's part of a rollout, without gradients.

    Attributes:
        states: [B, 1, K + 1, 8, 3] one chain per scene, to be cloned; ``None`` with ``bc_weight`` 0.
        means: [B, G, K, 8, 3] means of its denoising steps from the states of the actor's chains.
    """

    states: Tensor | None
    means: Tensor


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with its score, as it is kept for the training steps that use it again.

    Attributes:
        features: what :func:`scene_condition` reads; hidden states in their own dtype.
        states: [B, G, K + 1, 8, 3] the actor's chains.
        reference: the reference policy's part; ``None`` without one.
        log_prob: [B, G, K] under the policy that drew the chains, see :func:`.losses.policy_loss`.
        advantages: [B, G].
        valid: [B] bool, whether the scene was scored.
        count: scalar, what sums over scored scenes are divided by, see :func:`.ranks.scenes_per_rank`.
    """

    features: dict[str, Tensor]
    states: Tensor
    reference: ReferenceDraw | None
    log_prob: Tensor
    advantages: Tensor
    valid: Tensor
    count: Tensor


def scene_condition(planner: DiffusionPlanner, features: dict[str, Tensor]) -> Condition:
    """The one condition per scene that samples, log-probabilities and the whole group share."""
    return planner.condition(features[HIDDEN_STATE], features[PAST_POSES], features[EGO_STATUS])


def draw_group(planner: DiffusionPlanner, condition: Condition, config: RLConfig) -> Chain:
    """G chains per scene, [B, G, K + 1, 8, 3], and their trajectories [B, G, 8, 3], without gradients."""
    return planner.sample_chain(condition, config.group_size, settings=config.rollout(planner.config.method))


@torch.no_grad()
def draw_reference(
    reference: DiffusionPlanner, features: dict[str, Tensor], states: Tensor, config: RLConfig
) -> ReferenceDraw:
    """A chain per scene from the reference policy, and its denoising steps on the actor's chains.

    Args:
        reference: on the features' device.
        features: of B scenes.
        states: [B, G, K + 1, 8, 3], the actor's.
        config: how chains are drawn and scored.
    """
    condition = scene_condition(reference, features)
    drawn = None
    if config.bc_weight > 0:
        drawn = reference.sample_chain(condition, settings=config.rollout(reference.config.method)).states
    transitions = reference.transitions(
        condition, states, std_floor=config.log_prob_std_floor, flow_noise_level=config.flow_noise_level
    )
    return ReferenceDraw(drawn, transitions.mean)


@dataclass(frozen=True)
class ChainScores:
    """What the policy being trained says of a rollout, with gradients.

    Attributes:
        log_prob: [B, G, K] of the actor's chains, clamped per coordinate, mean over a step's coordinates.
        cloning: [B, 1, K] the same of the reference policy's chains, or ``None``.
        kl: [B, G, K] divergence from the reference policy, mean over a step's coordinates, or ``None``.
        unclamped: [B, G, K, 8, 3] log-probabilities per coordinate, without gradients.
    """

    log_prob: Tensor
    cloning: Tensor | None
    kl: Tensor | None
    unclamped: Tensor


def score_chains(
    planner: DiffusionPlanner,
    condition: Condition,
    states: Tensor,
    reference: ReferenceDraw | None,
    config: RLConfig,
) -> ChainScores:
    """All chains of a rollout, the reference policy's included, through the network in one call.

    Args:
        planner: the policy being trained.
        condition: of B scenes, made by it with gradients.
        states: [B, G, K + 1, 8, 3].
        reference: the reference policy's part of the rollout.
        config: bounds and floor of the log-probabilities.
    """
    group = states.shape[1]
    chains = states if reference is None or reference.states is None else torch.cat([states, reference.states], dim=1)
    transitions = planner.transitions(
        condition,
        chains,
        std_floor=config.log_prob_std_floor,
        flow_noise_level=config.flow_noise_level,
        recompute=config.recompute_activations,
    )
    unclamped = transitions.log_prob(chains[:, :, 1:])
    log_prob = unclamped.clamp(*config.log_prob_clamp).mean(dim=(-2, -1))
    kl = None
    if reference is not None:
        mean = transitions.mean[:, :group] if config.kl_weight > 0 else transitions.mean[:, :group].detach()
        assert transitions.std is not None
        kl = gaussian_kl(mean, reference.means, transitions.std).mean(dim=(-2, -1))
    return ChainScores(
        log_prob=log_prob[:, :group],
        cloning=log_prob[:, group:] if chains.shape[1] > group else None,
        kl=kl,
        unclamped=unclamped[:, :group].detach(),
    )
