"""Settings of a policy: plain dataclasses that mirror ``configs/agent/*.yaml`` and say early what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from navsim_recogdrive.cache.codec import MODES
from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.planner.checkpoints import WEIGHTS
from navsim_recogdrive.planner.configuration import PlannerConfig
from navsim_recogdrive.policy.settings import InvalidSetting, build_settings, require_int
from navsim_recogdrive.policy.training_configuration import (
    CheckpointConfig,
    DivergenceConfig,
    EMAConfig,
    ImitationConfig,
    OptimizerConfig,
    PicturesConfig,
    WandbConfig,
)
from navsim_recogdrive.vlm.adapters import TRAININGS, LoRA
from navsim_recogdrive.vlm.architecture import ATTENTION_KERNELS, VLM_TYPES
from navsim_recogdrive.vlm.identity import MAX_TILES, VLMSettings

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
        if self.attention == "flash_attention_2" and self.dtype == "float32":
            raise InvalidSetting(
                "vlm.attention=flash_attention_2 has no kernel for vlm.dtype=float32: set vlm.dtype=bfloat16, or "
                "vlm.attention=sdpa"
            )
        if self.vlm_type not in ("auto", *VLM_TYPES):
            raise InvalidSetting(f"vlm_type must be auto or one of {VLM_TYPES}, found {self.vlm_type!r}")
        if self.cam_type not in CAMERA_SETS:
            raise InvalidSetting(f"cam_type must be one of {tuple(CAMERA_SETS)}, found {self.cam_type!r}")
        if self.hidden_length is not None:
            require_int("vlm.hidden_length", self.hidden_length, minimum=1)
        require_int("vlm.max_tiles", self.max_tiles, minimum=1)
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
        require_int("sampling.seed", self.seed, minimum=0)


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
        ema: the average of the trained weights.
        checkpoint_weights: which weights of a checkpoint of a run with an average are loaded: ``averaged`` or ``raw``.
        checkpoint: how often a run saves itself.
        divergence: when gradients stop a run.
        pictures: of plans, in the log of a training run.
        wandb: where a training run is logged beside TensorBoard.
        resume: the run that training goes on with: ``auto``, a ``last.ckpt``, or a run's folder; ``None``: a new one.
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
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint_weights: str = "averaged"
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    resume: str | None = None

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
        if self.checkpoint_weights not in WEIGHTS:
            raise InvalidSetting(f"checkpoint_weights must be one of {WEIGHTS}, found {self.checkpoint_weights!r}")
        if self.resume is not None and (not isinstance(self.resume, str) or not self.resume):
            raise InvalidSetting(
                f"resume must be auto, a checkpoint file, a run's folder, or null, found {self.resume!r}"
            )
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

    def check_checkpoint(self, path: str | None) -> None:
        """Make sure that there is a checkpoint whose weights are to be chosen.

        Raises:
            InvalidSetting: if there is none.
        """
        if path is None and self.checkpoint_weights != "averaged":
            raise InvalidSetting(
                f"agent.checkpoint_weights={self.checkpoint_weights} cannot act without agent.checkpoint_path: set it, "
                "or leave it out"
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
            "ema": EMAConfig,
            "checkpoint": CheckpointConfig,
            "divergence": DivergenceConfig,
            "pictures": PicturesConfig,
            "wandb": WandbConfig,
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
