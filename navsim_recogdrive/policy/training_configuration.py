"""Settings of training alone: the objective, the optimizer, the average, and what a run writes."""

from __future__ import annotations

from dataclasses import dataclass

from navsim_recogdrive.policy.settings import InvalidSetting, require_int, require_positive


@dataclass(frozen=True)
class ImitationConfig:
    """Imitation learning: ``draws_per_scene`` (noise, timestep) pairs share one condition (published: 1)."""

    draws_per_scene: int = 1

    def __post_init__(self) -> None:
        require_int("imitation.draws_per_scene", self.draws_per_scene, minimum=1)


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
        require_int("optimizer.warmup_epochs", self.warmup_epochs, minimum=0)


@dataclass(frozen=True)
class EMAConfig:
    """Exponential moving average of the trained weights, see :mod:`navsim_recogdrive.policy.averaging`.

    Attributes:
        decay: share of the old average that an optimizer step keeps, in (0, 1); ``None``: no average.
        warmup: step ``n`` keeps at most ``(1 + n) / (10 + n)``.
    """

    decay: float | None = None
    warmup: bool = True

    def __post_init__(self) -> None:
        if self.decay is not None and (
            not isinstance(self.decay, float | int) or isinstance(self.decay, bool) or not 0 < self.decay < 1
        ):
            raise InvalidSetting(f"ema.decay must be a number between 0 and 1, or null, found {self.decay!r}")
        if not isinstance(self.warmup, bool):
            raise InvalidSetting(f"ema.warmup must be true or false, found {self.warmup!r}")
        if self.decay is None and not self.warmup:
            raise InvalidSetting(
                "agent.ema.warmup=false cannot act without an average: set agent.ema.decay, or leave it out"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """How often ``last.ckpt`` is written, beside the end of every epoch and when a signal stops the run.

    Attributes:
        every_minutes: of training; ``None``: not by time.
        every_steps: optimizer steps; ``None``: not by steps.
    """

    every_minutes: float | None = 10.0
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_minutes is not None:
            require_positive("checkpoint.every_minutes", self.every_minutes)
        if self.every_steps is not None:
            require_int("checkpoint.every_steps", self.every_steps, minimum=1)


@dataclass(frozen=True)
class DivergenceConfig:
    """When gradients stop a run, see :class:`~navsim_recogdrive.policy.divergence.GradientWatch`.

    Attributes:
        factor: bound of the gradient norm, times the median of the last ``window`` norms; ``None``: no bound. Norms
            that are not finite stop a run in any case.
        window: optimizer steps that the median is of; before so many nothing is compared.
        patience: steps in a row above the bound that stop the run.
        skipped_steps: with ``precision=16-mixed``: steps in a row with gradients that are not finite that stop the run.
    """

    factor: float | None = 100.0
    window: int = 100
    patience: int = 5
    skipped_steps: int = 20

    def __post_init__(self) -> None:
        if self.factor is not None:
            require_positive("divergence.factor", self.factor, above=1.0)
        for name in ("window", "patience", "skipped_steps"):
            require_int(f"divergence.{name}", getattr(self, name), minimum=1)


@dataclass(frozen=True)
class PicturesConfig:
    """Pictures of plans in the log of a training run, see :mod:`navsim_recogdrive.viz.training_pictures`.

    Attributes:
        every_epochs: after the first epoch, every so many, and the last; 0: none.
        scenes: in a picture.
    """

    every_epochs: int = 5
    scenes: int = 8

    def __post_init__(self) -> None:
        require_int("pictures.every_epochs", self.every_epochs, minimum=0)
        require_int("pictures.scenes", self.scenes, minimum=1)
        if self.every_epochs == 0 and self.scenes != type(self).scenes:
            raise InvalidSetting("agent.pictures.scenes cannot act with agent.pictures.every_epochs=0: leave it out")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases beside TensorBoard, see :mod:`navsim_recogdrive.policy.tracking`.

    Attributes:
        project: that runs are logged to; ``None``: they are not.
        name: of the run; ``None``: Weights & Biases finds one.
    """

    project: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        for setting in ("project", "name"):
            value = getattr(self, setting)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidSetting(f"wandb.{setting} must be a text, or null, found {value!r}")
        if self.name is not None and self.project is None:
            raise InvalidSetting("agent.wandb.name cannot act without agent.wandb.project: set it, or leave it out")
