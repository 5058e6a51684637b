"""Settings of a policy: plain dataclasses that mirror ``configs/agent/*.yaml`` and say early what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from navsim_recogdrive.cache.codec import MODES
from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.vlm.adapters import TRAININGS, LoRA
from navsim_recogdrive.vlm.architecture import ATTENTION_KERNELS, VLM_TYPES
from navsim_recogdrive.vlm.identity import MAX_TILES, VLMSettings

T = TypeVar("T")


class InvalidSetting(ValueError):
    """A setting with an unknown name or a value that cannot work."""


_IDLE = "agent.{} cannot act while the VLM is frozen: set agent.vlm.training=lora or full, or leave it out"


@dataclass(frozen=True)
class VLMConfig:
    """Which VLM computes the hidden states, and how.

    Attributes:
        path: checkpoint folder or id of a hub repository; ``None`` where hidden states only come from a cache.
        revision: branch, tag or commit of a hub repository.
        dtype: ``bfloat16`` or ``float32``.
        attention: ``sdpa``, ``flash_attention_2`` or ``eager``.
        prompt_profile: ``auto``, the name of a built-in profile, or the path of one.
        hidden_length: rows of a hidden state, padding included; ``None``: computed, 2800 for the published model.
        max_tiles: most tiles per image, the thumbnail not counted.
        vlm_type: ``auto``, or the kind of VLM that is insisted on.
        cam_type: ``single`` or ``multi``, see :data:`~navsim_recogdrive.observation.CAMERA_SETS`.
        training: ``frozen``, ``lora`` (adapters in the language model) or ``full``; the last two need
            ``cache_hidden_state=false``.
        gradient_checkpointing: while training, compute a layer's inner values again in place of keeping them.
        learning_rate: highest learning rate of what is trained of the VLM; ``None``: the planner's.
    """

    path: str | None = None
    revision: str | None = None
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    prompt_profile: str = "auto"
    hidden_length: int | None = None
    max_tiles: int = MAX_TILES
    vlm_type: str = "auto"
    cam_type: str = "single"
    training: str = "frozen"
    gradient_checkpointing: bool = False
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32"):
            raise InvalidSetting(f"vlm.dtype must be bfloat16 or float32, found {self.dtype!r}")
        if self.attention not in ATTENTION_KERNELS:
            raise InvalidSetting(f"vlm.attention must be one of {ATTENTION_KERNELS}, found {self.attention!r}")
        if self.vlm_type not in ("auto", *VLM_TYPES):
            raise InvalidSetting(f"vlm_type must be auto or one of {VLM_TYPES}, found {self.vlm_type!r}")
        if self.cam_type not in CAMERA_SETS:
            raise InvalidSetting(f"cam_type must be one of {tuple(CAMERA_SETS)}, found {self.cam_type!r}")
        if self.hidden_length is not None:
            _require_int("vlm.hidden_length", self.hidden_length, minimum=1)
        _require_int("vlm.max_tiles", self.max_tiles, minimum=1)
        if self.training not in TRAININGS:
            raise InvalidSetting(f"vlm.training must be one of {TRAININGS}, found {self.training!r}")
        if not isinstance(self.gradient_checkpointing, bool):
            raise InvalidSetting(
                f"vlm.gradient_checkpointing must be true or false, found {self.gradient_checkpointing!r}"
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InvalidSetting(f"vlm.learning_rate must be positive or null, found {self.learning_rate!r}")
        if self.training == "frozen":
            if self.gradient_checkpointing:
                raise InvalidSetting(_IDLE.format("vlm.gradient_checkpointing=true"))
            if self.learning_rate is not None:
                raise InvalidSetting(_IDLE.format(f"vlm.learning_rate={self.learning_rate}"))

    def frozen(self) -> VLMConfig:
        """The same VLM with the default settings of training, which do not decide what is loaded."""
        return replace(self, training="frozen", gradient_checkpointing=False, learning_rate=None)

    @property
    def cameras(self) -> tuple[str, ...]:
        """What the VLM sees, from left to right."""
        return CAMERA_SETS[self.cam_type]

    def settings(self) -> VLMSettings:
        """The part that decides the hidden states.

        Raises:
            InvalidSetting: if no path is configured.
        """
        if self.path is None:
            raise InvalidSetting(
                "no VLM is configured: set agent.vlm.path=FOLDER (or the environment variable VLM_PATH) to a folder or "
                "a hub repository; training from a complete cache (use_cache_without_dataset=true "
                "force_cache_computation=false) needs none"
            )
        return VLMSettings(
            self.path,
            self.revision,
            self.vlm_type,
            self.cam_type,
            self.prompt_profile,
            self.hidden_length,
            self.max_tiles,
        )


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
    """All settings of a :class:`~navsim_recogdrive.policy.policy.ReCogDrivePolicy` and its training.

    Attributes:
        planner: the diffusion planner.
        vlm: the VLM, and what of it is trained.
        sampling: how trajectories are drawn.
        imitation: the objective.
        optimizer: of training.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        cache_hidden_state: the planner is trained on hidden states computed beforehand, as published; if not (joint
            mode), on image tiles that the VLM sees in every step.
        cache_mode: how hidden states are cached, one of :data:`~navsim_recogdrive.cache.codec.MODES`; a cache of any
            mode can be trained from.
        hidden_state_cache: folder of a cache of the evaluated split, read in place of running the VLM; ``None``: run
            it.
        hidden_state_cache_miss: what a scene that the cache lacks leads to: ``error``, or ``vlm`` to run it.
        lora: shape of the adapters for ``vlm.training=lora``.
    """

    planner: PlannerConfig = field(default_factory=PlannerConfig)
    vlm: VLMConfig = field(default_factory=VLMConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    device: str = "auto"
    cache_hidden_state: bool = True
    cache_mode: str = "bf16"
    hidden_state_cache: str | None = None
    hidden_state_cache_miss: str = "error"
    lora: LoRA = field(default_factory=LoRA)

    def __post_init__(self) -> None:
        if not isinstance(self.cache_hidden_state, bool):
            raise InvalidSetting(f"cache_hidden_state must be true or false, found {self.cache_hidden_state!r}")
        if self.cache_mode not in MODES:
            raise InvalidSetting(f"cache_mode must be one of {MODES}, found {self.cache_mode!r}")
        if self.cache_mode != "bf16" and not self.cache_hidden_state:
            raise InvalidSetting(
                f"agent.cache_mode={self.cache_mode} cannot act with agent.cache_hidden_state=false, which caches "
                "image tiles: leave it out"
            )
        if self.hidden_state_cache_miss not in ("error", "vlm"):
            raise InvalidSetting(
                f"hidden_state_cache_miss must be error or vlm, found {self.hidden_state_cache_miss!r}"
            )
        if self.hidden_state_cache_miss != "error" and self.hidden_state_cache is None:
            raise InvalidSetting("agent.hidden_state_cache_miss cannot act without agent.hidden_state_cache")
        training = self.vlm.training
        if training != "frozen" and self.cache_hidden_state:
            raise InvalidSetting(
                f"agent.vlm.training={training} needs agent.cache_hidden_state=false: no gradient reaches the VLM "
                "through cached hidden states"
            )
        if training != "lora" and self.lora != LoRA():
            changed = [f.name for f in fields(LoRA) if getattr(self.lora, f.name) != getattr(LoRA(), f.name)]
            raise InvalidSetting(
                f"agent.lora.{', agent.lora.'.join(changed)} cannot act with agent.vlm.training={training}: set "
                "agent.vlm.training=lora, or leave it out"
            )

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> PolicyConfig:
        """Build from nested mappings (a resolved YAML); ``vlm_type`` and ``cam_type`` stand beside ``vlm``.

        Raises:
            InvalidSetting: for a name that does not exist, listing those that do, or a value that cannot work.
        """
        kinds: dict[str, type] = {
            "planner": PlannerConfig,
            "vlm": VLMConfig,
            "sampling": SamplingConfig,
            "imitation": ImitationConfig,
            "optimizer": OptimizerConfig,
            "lora": LoRA,
        }
        parts: dict[str, Any] = {
            name: build_settings(kinds[name], value, name) if name in kinds else value
            for name, value in with_vlm_group(settings).items()
        }
        return build_settings(cls, parts, "agent")


def with_vlm_group(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with ``vlm_type`` and ``cam_type``, which configurations keep beside ``vlm``, moved into it."""
    beside = {name: settings[name] for name in ("vlm_type", "cam_type") if name in settings}
    grouped = {name: value for name, value in settings.items() if name not in beside}
    return {**grouped, "vlm": {**grouped.get("vlm", {}), **beside}}


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
