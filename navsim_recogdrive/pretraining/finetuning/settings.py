"""Settings of a fine-tuning run; the defaults are the published ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.finetuning.conversations import SYSTEM_MESSAGE
from navsim_recogdrive.vlm.adapters import LoRA

TRAININGS = ("full", "lora")
PARTS = ("vision", "projector", "language")
"""Parts of the model that can be kept as they are: vision tower, projector, language model with its head."""

LAYOUTS = ("native", "hub")
"""How weights are saved: transformers' own InternVL, or InternVLChat as InternVL and ReCogDrive-VLM are published."""

PRECISIONS = ("bfloat16", "float32")

# What may differ between a run and its continuation.
_FREE = (
    "output",
    "workers",
    "save_steps",
    "keep_checkpoints",
    "log_steps",
    "resume",
    "report_to",
    "skip_broken",
    "deepspeed",
)


class InvalidSetting(ValueError):
    """A setting that cannot work; names it and the fix."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What is trained on what, and how.

    Attributes:
        model: folder or hub id of an InternVL3 (or fine-tuned) VLM in either layout.
        mixture: JSON file of data sets in InternVL's layout, or name of a built-in mixture.
        data_root: what relative paths in the mixture count from; ``None``: the file's folder.
        output: folder for checkpoints and, at the end, the model.
        revision: branch, tag or commit of a hub repository.
        training: ``full``, or ``lora``: adapters in the language model, everything else frozen; merged when saved.
        freeze: of :data:`PARTS`, what ``full`` leaves as it is.
        lora: shape of the adapters.
        epochs: how often the mixture is gone through.
        max_steps: stop after so many steps, whatever the epochs; ``None`` for no such bound.
        learning_rate: highest learning rate; cosine down to 0.
        warmup_ratio: share of the steps with a linear warm-up.
        weight_decay: AdamW's, but for norms and biases.
        max_grad_norm: gradients are scaled down to this norm.
        global_batch_size: samples of a step, over all processes.
        device_batch_size: samples that one process computes at once.
        max_tokens: longest sample.
        max_tiles: most tiles of an image, its thumbnail not counted; several images of a sample share them, but in
            questions of the planner each has them for itself.
        drop_path: stochastic depth of the vision tower's last layer, rising linearly from 0.
        gradient_checkpointing: compute inner values again in the backward pass in place of keeping them.
        length_grouping: batches of samples of about one length.
        precision: ``bfloat16`` (mixed; weights are kept in float32) or ``float32``.
        attention: ``sdpa``, ``flash_attention_2`` or ``eager``.
        system_message: for records without a system turn.
        prompt_profile: of the planner's questions, saved with the weights: name, path, or ``auto``: the one that the
            mixture names; where it names none, the base model's own.
        layout: of :data:`LAYOUTS`.
        seed: of the order, augmentation, stochastic depth and adapters.
        workers: processes that load data, per training process; they read the mixture at the start too.
        save_steps: steps between checkpoints.
        keep_checkpoints: older ones are deleted.
        log_steps: steps between lines of the log.
        resume: continue from the last whole checkpoint in ``output``, if there is one.
        skip_broken: train without broken lines and missing images in place of stopping at the start.
        report_to: where the Hugging Face Trainer reports to beside the log: ``none``, ``tensorboard``, ``wandb``...
        deepspeed: DeepSpeed configuration (JSON); ``None`` for none.
    """

    model: str
    mixture: str
    output: Path
    data_root: Path | None = None
    revision: str | None = None
    training: str = "full"
    freeze: tuple[str, ...] = ()
    lora: LoRA = field(default_factory=LoRA)
    epochs: float = 3.0
    max_steps: int | None = None
    learning_rate: float = 4e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    global_batch_size: int = 128
    device_batch_size: int = 1
    max_tokens: int = 12288
    max_tiles: int = 16
    drop_path: float = 0.1
    gradient_checkpointing: bool = True
    length_grouping: bool = True
    precision: str = "bfloat16"
    attention: str = "sdpa"
    system_message: str = SYSTEM_MESSAGE
    prompt_profile: str = "auto"
    layout: str = "native"
    seed: int = 0
    workers: int = 4
    save_steps: int = 500
    keep_checkpoints: int = 2
    log_steps: int = 10
    resume: bool = False
    skip_broken: bool = False
    report_to: str = "none"
    deepspeed: Path | None = None

    def __post_init__(self) -> None:
        for name, choices in (("training", TRAININGS), ("layout", LAYOUTS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise InvalidSetting(f"{name} must be one of {choices}, found {getattr(self, name)!r}")
        if self.attention == "flash_attention_2" and self.precision == "float32":
            raise InvalidSetting(
                "attention=flash_attention_2 has no kernel for precision=float32: set precision=bfloat16, or "
                "attention=sdpa"
            )
        if unknown := sorted(set(self.freeze) - set(PARTS)):
            raise InvalidSetting(f"freeze must name parts of {PARTS}, found {unknown}")
        if set(self.freeze) == set(PARTS):
            raise InvalidSetting("freeze names every part of the model: nothing is left to train")
        if self.training == "lora" and self.freeze:
            raise InvalidSetting("freeze cannot act with training=lora, which trains adapters alone: leave it out")
        if self.training != "lora" and self.lora != LoRA():
            raise InvalidSetting(f"the shape of adapters cannot act with training={self.training}: set training=lora")
        for name in ("epochs", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise InvalidSetting(f"{name} must be positive, found {getattr(self, name)!r}")
        for name in (
            *("global_batch_size", "device_batch_size", "max_tokens", "max_tiles", "save_steps", "keep_checkpoints"),
            "log_steps",
        ):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name} must be at least 1, found {getattr(self, name)!r}")
        for name in ("warmup_ratio", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidSetting(f"{name} must lie in 0..1, found {getattr(self, name)!r}")
        for name in ("weight_decay", "seed", "workers"):
            if not getattr(self, name) >= 0:
                raise InvalidSetting(f"{name} must not be negative, found {getattr(self, name)!r}")
        if self.max_steps is not None and self.max_steps < 1:
            raise InvalidSetting(f"max_steps must be at least 1, found {self.max_steps}")

    def accumulation(self, processes: int) -> int:
        """Batches of each of ``processes`` processes that make a step.

        Raises:
            InvalidSetting: if the global batch cannot be divided so.
        """
        together = self.device_batch_size * processes
        if self.global_batch_size % together:
            raise InvalidSetting(
                f"global_batch_size={self.global_batch_size} is no multiple of device_batch_size="
                f"{self.device_batch_size} times {processes} process(es): set global_batch_size to a multiple of "
                f"{together}"
            )
        return self.global_batch_size // together

    def binding(self) -> dict[str, Any]:
        """The settings that a continued run must share with the run that it continues, as JSON has them."""
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in _FREE
        } | {"lora": {**asdict(self.lora), "target_modules": list(self.lora.target_modules)}}
