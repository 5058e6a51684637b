"""Sizes and method of a diffusion planner, and how a denoising run is drawn."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Method = Literal["ddim", "ddpm", "flow"]
METHODS: tuple[str, ...] = get_args(Method)

HIDDEN_STATE_SIZES = {"2B": 1536, "8B": 3584}
"""Width of a hidden state of the published ReCogDrive VLMs."""

POSE_SIZE = 3
"""Numbers in a pose: x, y, heading."""

HISTORY_POSES = 4
"""Past poses that the planner reads."""

EGO_STATUS_SIZE = 8
"""Driving command one-hot (4), velocity (2), acceleration (2)."""


@dataclass(frozen=True)
class PlannerConfig:
    """Everything that decides a planner's parameters and buffers (arXiv 2506.08052, diffusion planner).

    The defaults are the published small DiT for the 2B model.

    Attributes:
        hidden_state_size: width of the VLM's hidden states (1536 for 2B, 3584 for 8B).
        num_heads: attention heads.
        head_dim: width of one head, even (rotary embedding turns pairs). Heads x head_dim is the embedding size.
        num_layers: DiT blocks, even: self-attention and cross-attention alternate.
        output_size: width of the DiT's output, read by the action decoder.
        mlp_hidden_size: hidden width of the history, ego-status and action-decoder MLPs.
        horizon: poses in a trajectory (8, at 0.5 s).
        method: ``"ddim"`` or ``"ddpm"`` (noise prediction) or ``"flow"`` (flow matching).
        num_train_timesteps: length of the noise schedule; not used by ``"flow"``.
        num_inference_steps: denoising steps of a sample.

    Raises:
        ValueError: for a size that cannot make a planner, naming the field.
    """

    hidden_state_size: int = HIDDEN_STATE_SIZES["2B"]
    num_heads: int = 8
    head_dim: int = 48
    num_layers: int = 16
    output_size: int = 512
    mlp_hidden_size: int = 1024
    horizon: int = 8
    method: Method = "ddim"
    num_train_timesteps: int = 100
    num_inference_steps: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "method" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"PlannerConfig.{field.name} must be a positive integer, found {value!r}")
        if self.method not in METHODS:
            raise ValueError(f"PlannerConfig.method must be one of {', '.join(METHODS)}, found {self.method!r}")
        for name in ("head_dim", "num_layers"):
            if getattr(self, name) % 2:
                raise ValueError(f"PlannerConfig.{name} must be even, found {getattr(self, name)}")
        check_num_steps(self.num_inference_steps, self.method, self.num_train_timesteps)

    @property
    def embedding_size(self) -> int:
        """Width of the DiT's residual stream: heads x head_dim."""
        return self.num_heads * self.head_dim

    @classmethod
    def small(cls, **overrides: Any) -> PlannerConfig:
        """The published small DiT: 8 heads x 48, output 512 (34 M parameters with 2B hidden states)."""
        return cls(**overrides)

    @classmethod
    def large(cls, **overrides: Any) -> PlannerConfig:
        """The published large DiT: 32 heads x 48, output 1536 (522 M parameters with 2B hidden states)."""
        return cls(**{"num_heads": 32, "output_size": 1536, **overrides})


@dataclass(frozen=True)
class SamplerSettings:
    """How one denoising run is drawn: ``x <- mean + max(std, std_floor) * clamp(noise)`` at every step.

    Attributes:
        std_floor: smallest standard deviation of a denoising step, in normalised units. Not used by a deterministic
            run, nor by ``flow`` with ``flow_noise_level`` 0: their steps have none.
        noise_clamp: the drawn noise is clamped to +- this; ``None`` leaves it as drawn.
        noise_at_last_step: whether the last step (timestep 0) adds noise too.
        clamp_chain_end: whether the last state of a :class:`~.planner.Chain` is clamped to +-1, as published: its
            log-probability is then that of a clamped action under an unclamped Gaussian. With ``False`` the chain keeps
            the sample as drawn and its density is exact. The trajectory comes from the clamped state in both cases.
        num_inference_steps: denoising steps, or ``None`` for the planner's own number.
        flow_noise_level: ``a`` of flow matching's stochastic form, see :data:`FLOW_NOISE_LEVEL`; 0 is the ordinary
            differential equation, as published for inference. Not used by the other methods.
    """

    std_floor: float
    noise_clamp: float | None
    noise_at_last_step: bool = True
    clamp_chain_end: bool = True
    num_inference_steps: int | None = None
    flow_noise_level: float = 0.0

    def __post_init__(self) -> None:
        if self.flow_noise_level < 0:
            raise ValueError(f"SamplerSettings.flow_noise_level must not be negative, found {self.flow_noise_level}")
        if self.std_floor < 0:
            raise ValueError(f"SamplerSettings.std_floor must not be negative, found {self.std_floor}")
        if self.noise_clamp is not None and self.noise_clamp <= 0:
            raise ValueError(f"SamplerSettings.noise_clamp must be positive or None, found {self.noise_clamp}")

    @classmethod
    def inference(cls, method: Method, **overrides: Any) -> SamplerSettings:
        """The published evaluation. Its DDIM samples with eta = 1: it is stochastic."""
        published: dict[str, Any] = (
            {"std_floor": 1e-3, "noise_clamp": None, "noise_at_last_step": False}
            if method == "ddpm"
            else {"std_floor": 1e-4, "noise_clamp": 1.0}
        )
        return cls(**{**published, **overrides})

    @classmethod
    def rollout(cls, **overrides: Any) -> SamplerSettings:
        """The published DiffGRPO rollout: wider steps, to explore. Flow matching runs in its stochastic form."""
        published = {"std_floor": 0.04, "noise_clamp": 5.0, "flow_noise_level": FLOW_NOISE_LEVEL}
        return cls(**{**published, **overrides})


FLOW_NOISE_LEVEL = 0.2
"""Noise level of flow matching's rollouts and log-probabilities (Flow-GRPO's ``a``).

With 5 steps the last one then has a standard deviation of 0.045, near the 0.04 (1.3 m ahead) of a published DDIM
rollout. Flow-GRPO's own 0.7, chosen for images, would leave 0.157 (5.2 m) on every trajectory."""


LOG_PROB_STD_FLOOR = 0.1
"""Published standard-deviation floor of a log-probability. A rollout's is 0.04, so a published chain is scored under
wider steps than it was drawn from; pass the rollout's floor to :meth:`~.planner.DiffusionPlanner.log_prob` for the
exact density."""


def check_num_steps(num_steps: int, method: Method, num_train_timesteps: int) -> None:
    """Raise ``ValueError`` where a noise schedule cannot give ``num_steps`` denoising steps."""
    if num_steps < 1 or (method != "flow" and num_steps > num_train_timesteps):
        raise ValueError(
            f"num_inference_steps must lie in 1..{num_train_timesteps} (num_train_timesteps) for {method}, "
            f"found {num_steps}"
        )
