"""Settings of a policy: plain dataclasses that mirror ``configs/agent/*.yaml`` and say early what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from navsim_recogdrive.planner.configuration import PlannerConfig

T = TypeVar("T")


class InvalidSetting(ValueError):
    """A setting with an unknown name or a value that cannot work."""


@dataclass(frozen=True)
class VLMConfig:
    """Which VLM computes the hidden states, and how.

    Attributes:
        path: checkpoint folder; ``None`` where hidden states only come from a cache.
        dtype: ``bfloat16`` or ``float32``.
        attention: name of the attention implementation in transformers.
        prompt_profile: ``published`` or the path of a profile.
        hidden_length: rows of a hidden state, padding included.
        max_tiles: most tiles per image, the thumbnail not counted.
    """

    path: str | None = None
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    prompt_profile: str = "published"
    hidden_length: int = 2800
    max_tiles: int = 12

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise InvalidSetting(f"vlm.dtype must be bfloat16 or float32, found {self.dtype!r}")


@dataclass(frozen=True)
class SamplingConfig:
    """How trajectories are drawn at evaluation.

    Attributes:
        deterministic: no noise after the initial one (DDIM with eta = 0); the published evaluation is stochastic.
        seed: with a scene's ego history and status it fixes the noise of that scene.
    """

    deterministic: bool = False
    seed: int = 0


@dataclass(frozen=True)
class ImitationConfig:
    """Imitation learning: ``draws_per_scene`` (noise, timestep) pairs share one condition (published: 1)."""

    draws_per_scene: int = 1

    def __post_init__(self) -> None:
        if self.draws_per_scene < 1:
            raise InvalidSetting(f"imitation.draws_per_scene must be at least 1, found {self.draws_per_scene}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the learning rate over epochs; the defaults are those of published imitation learning.

    Published reinforcement learning runs 10 epochs without warm-up down to 0; imitation 200 epochs.

    Attributes:
        learning_rate: highest learning rate.
        weight_decay: AdamW's, on all parameters.
        betas: AdamW's.
        warmup_epochs: epochs of linear warm-up.
        min_learning_rate: floor of the cosine.
        epochs: epochs of the whole run; ``None`` where nothing is trained.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: int = 3
    min_learning_rate: float = 1e-6
    epochs: int | None = None


@dataclass(frozen=True)
class PolicyConfig:
    """All settings of a :class:`~navsim_recogdrive.policy.policy.ReCogDrivePolicy` and its training."""

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    vlm: VLMConfig = field(default_factory=VLMConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    device: str = "auto"

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> PolicyConfig:
        """Build from nested mappings (a resolved YAML).

        Raises:
            InvalidSetting: for a name that does not exist, listing those that do, or a value that cannot work.
        """
        kinds: dict[str, type] = {
            "planner": PlannerConfig,
            "vlm": VLMConfig,
            "sampling": SamplingConfig,
            "imitation": ImitationConfig,
            "optimizer": OptimizerConfig,
        }
        parts: dict[str, Any] = {
            name: build_settings(kinds[name], value, name) if name in kinds else value
            for name, value in settings.items()
        }
        return build_settings(cls, parts, "agent")


def build_settings(kind: type[T], settings: Mapping[str, Any], name: str) -> T:
    """``kind(**settings)`` for a dataclass, with an error that names an unknown setting and those that exist.

    Raises:
        InvalidSetting: for unknown names.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InvalidSetting(f"unknown setting(s) {', '.join(unknown)} in '{name}'; it has: {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()})
