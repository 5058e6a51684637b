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
        _require_int("vlm.hidden_length", self.hidden_length, minimum=1)
        _require_int("vlm.max_tiles", self.max_tiles, minimum=1)


@dataclass(frozen=True)
class SamplingConfig:
    """How trajectories are drawn at evaluation.

    Attributes:
        deterministic: no noise after the initial one (DDIM with eta = 0); the published evaluation is stochastic.
        seed: with a scene's ego history and status it fixes the noise of that scene.
    """

    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.deterministic, bool):
            raise InvalidSetting(f"sampling.deterministic must be true or false, found {self.deterministic!r}")
        _require_int("sampling.seed", self.seed, minimum=0)


@dataclass(frozen=True)
class ImitationConfig:
    """Imitation learning: ``draws_per_scene`` (noise, timestep) pairs share one condition (published: 1)."""

    draws_per_scene: int = 1

    def __post_init__(self) -> None:
        _require_int("imitation.draws_per_scene", self.draws_per_scene, minimum=1)


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

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise InvalidSetting(f"optimizer.learning_rate must be positive, found {self.learning_rate!r}")
        if not 0 <= self.min_learning_rate <= self.learning_rate:
            raise InvalidSetting(
                f"optimizer.min_learning_rate must lie in 0..{self.learning_rate} (the learning rate), found "
                f"{self.min_learning_rate!r}"
            )
        if not self.weight_decay >= 0:
            raise InvalidSetting(f"optimizer.weight_decay must not be negative, found {self.weight_decay!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidSetting(f"optimizer.betas must be two numbers in [0, 1), found {self.betas!r}")
        _require_int("optimizer.warmup_epochs", self.warmup_epochs, minimum=0)


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


def _require_int(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InvalidSetting(f"{name} must be a whole number of at least {minimum}, found {value!r}")


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
