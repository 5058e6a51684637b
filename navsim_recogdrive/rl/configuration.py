"""Settings of reinforcement learning; the defaults are those of the published DiffGRPO."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from navsim_recogdrive.planner.configuration import FLOW_NOISE_LEVEL, LOG_PROB_STD_FLOOR, Method, SamplerSettings
from navsim_recogdrive.policy.settings import InvalidSetting

AdvantageScale = Literal["group", "global"]


@dataclass(frozen=True)
class RLConfig:
    """DiffGRPO (arXiv 2506.08052), with what its users have asked for beside it, off by default.

    Normalised units are those of the planner: 0.03 is 1 m ahead, 0.048 is 1 m to the side.

    Attributes:
        group_size: G, trajectories drawn and scored per scene.
        rollout_std_floor: smallest standard deviation of a rollout's denoising step, in normalised units.
        rollout_noise_clamp: a rollout's noise is clamped to +- this; ``None`` leaves it as drawn.
        clamp_chain_end: whether the last state of a chain is clamped to +-1 before it gets its log-probability;
            without that its log-probability is exact. The reward sees the clamped trajectory in both cases. ``None``:
            clamped for ddim and ddpm, as published; not for flow matching, where nothing keeps a step's mean within
            +-1 and a clamped end with a negative advantage would drive it further out.
        flow_noise_level: noise of flow matching's stochastic form; not published (flow had no log-probability).
        log_prob_std_floor: smallest standard deviation in a log-probability. The published 0.1 is wider than the
            rollout's 0.04; with both equal the policy gradient is exact, if ``log_prob_clamp`` lets the largest
            log-probability pass: 2.3 with 0.04.
        log_prob_clamp: bounds of a coordinate's log-probability; outside of them it has no gradient.
        denoising_discount: the step k of K counts ``discount ** (K - 1 - k)``; k = 0 is the noisiest.
        advantage_scale: ``group``: rewards are centred in their group and divided by its standard deviation.
            ``global``: divided by the standard deviation of all centred rewards of the batch, over all ranks
            (REINFORCE++ with a group baseline), so that groups with a small spread are not blown up.
        advantage_epsilon: added to the standard deviation.
        min_reward_spread: a group whose rewards differ by no more than this gets advantages of exactly 0. Not
            published: there, rounding gave such groups advantages up to 12.
        advantage_quantiles: advantages are clamped to these quantiles of the batch; (0, 1) does not clamp.
        bc_weight: weight of behaviour cloning, the log-probability of chains drawn by the frozen reference policy.
            Users report that 1.0 keeps last poses from reversing and comfort from dropping, where 0.1 does not.
        kl_weight: weight of the Kullback-Leibler divergence from the reference policy's denoising steps, on the drawn
            chains; for "KL in place of behaviour cloning" set ``bc_weight`` to 0.
        updates_per_rollout: U, training batches in which a rollout is used: in that of its own scenes, and in the U - 1
            after it. Needs ``ratio_clip``, and memory for the hidden states, conditions and activations of U
            batches.
        ratio_clip: the importance ratio of a rollout used again is clipped to 1 +- this (GRPO, PPO: 0.2). Needs
            ``updates_per_rollout`` of at least 2: the ratio of a fresh rollout is 1.
        recompute_activations: keep only the inputs of the planner's blocks and run the blocks a second time in the
            backward pass, so that memory hardly grows with G. Loss and gradients are the same.

    Raises:
        InvalidSetting: for a value that cannot work, or a setting that could not act.
    """

    group_size: int = 8
    rollout_std_floor: float = 0.04
    rollout_noise_clamp: float | None = 5.0
    clamp_chain_end: bool | None = None
    flow_noise_level: float = FLOW_NOISE_LEVEL
    log_prob_std_floor: float = LOG_PROB_STD_FLOOR
    log_prob_clamp: tuple[float, float] = (-5.0, 2.0)
    denoising_discount: float = 0.6
    advantage_scale: AdvantageScale = "group"
    advantage_epsilon: float = 1e-8
    min_reward_spread: float = 1e-6
    advantage_quantiles: tuple[float, float] = (0.0, 1.0)
    bc_weight: float = 0.1
    kl_weight: float = 0.0
    updates_per_rollout: int = 1
    ratio_clip: float | None = None
    recompute_activations: bool = True

    def __post_init__(self) -> None:
        for name, smallest in (("group_size", 2), ("updates_per_rollout", 1)):
            value = getattr(self, name)
            _require(_is_int(value) and value >= smallest, name, f"a whole number of at least {smallest}", value)
        for name in ("flow_noise_level", "log_prob_std_floor"):
            _require(_is_number(getattr(self, name)) and getattr(self, name) > 0, name, "positive", getattr(self, name))
        for name in ("rollout_std_floor", "advantage_epsilon", "min_reward_spread", "bc_weight", "kl_weight"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, name, "a number of at least 0", value)
        recompute = self.recompute_activations
        _require(isinstance(recompute, bool), "recompute_activations", "true or false", recompute)
        clamp = self.clamp_chain_end
        _require(clamp is None or isinstance(clamp, bool), "clamp_chain_end", "true, false or null", clamp)
        for name in ("rollout_noise_clamp", "ratio_clip"):
            value = getattr(self, name)
            _require(value is None or (_is_number(value) and value > 0), name, "positive or null", value)
        discount = self.denoising_discount
        _require(_is_number(discount) and 0 < discount <= 1, "denoising_discount", "in (0, 1]", discount)
        for name, least, most in (("log_prob_clamp", -math.inf, math.inf), ("advantage_quantiles", 0.0, 1.0)):
            _require(
                _is_interval(getattr(self, name), least, most),
                name,
                "two numbers, the smaller first" + (" and both in 0..1" if most == 1 else ""),
                getattr(self, name),
            )
        scales = get_args(AdvantageScale)
        _require(self.advantage_scale in scales, "advantage_scale", f"one of {scales}", self.advantage_scale)
        if (self.updates_per_rollout > 1) != (self.ratio_clip is not None):
            raise InvalidSetting(
                "rl.updates_per_rollout and rl.ratio_clip belong together: a rollout used again needs its importance "
                "ratio clipped, and the ratio of one used once is 1. Set both (for instance 2 and 0.2) or neither; "
                f"found {self.updates_per_rollout} and {self.ratio_clip}"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether a term of the loss reads the reference policy."""
        return self.bc_weight > 0 or self.kl_weight > 0

    def deciding(self) -> dict[str, Any]:
        """What decides the weights' updates, not how they are computed; a resumed run must have the same."""
        return {name: value for name, value in asdict(self).items() if name != "recompute_activations"}

    def memory_advice(self) -> list[str]:
        """Settings that lower the memory of a step, in the words of their names."""
        advice = []
        if not self.recompute_activations:  # with it, group_size hardly counts
            advice += ["set agent.rl.recompute_activations=true", "lower agent.rl.group_size"]
        if self.updates_per_rollout > 1:
            advice.append("lower agent.rl.updates_per_rollout")
        return advice

    def rollout(self, method: Method) -> SamplerSettings:
        """How rollouts and the reference policy's chains are drawn with a planner of this method."""
        return SamplerSettings.rollout(
            std_floor=self.rollout_std_floor,
            noise_clamp=self.rollout_noise_clamp,
            clamp_chain_end=method != "flow" if self.clamp_chain_end is None else self.clamp_chain_end,
            flow_noise_level=self.flow_noise_level,
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_interval(value: object, least: float, most: float) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not all(map(_is_number, value)):
        return False
    return bool(least <= value[0] < value[1] <= most)


def _require(fits: bool, name: str, wanted: str, found: object) -> None:
    if not fits:
        raise InvalidSetting(f"rl.{name} must be {wanted}, found {found!r}")
