"""Training a VLM, all of it or LoRA adapters in its language model, and what a checkpoint holds of it afterwards."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, listed
from navsim_recogdrive.vlm.weights import all_finite

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.backbone import Backbone

TRAININGS = ("frozen", "lora", "full")
"""What of a VLM is trained beside the planner: nothing, adapters in the language model, or every weight."""

FORMAT_VERSION = 1

_SAMPLES, _SAMPLE_BYTES = 4, 4096


class PeftMissing(ImportError):
    """LoRA adapters are asked for, or a checkpoint holds some, and the package peft is not installed."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685): ``W x`` becomes ``W x + alpha / rank * B A x``, and A and B are trained.

    Attributes:
        rank: columns of B and rows of A.
        alpha: strength of the adapters.
        dropout: share of their inputs set to zero in training.
        target_modules: names of the language model's linear layers that get one; by default all of a decoder layer.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"lora.rank must be a whole number of at least 1, found {self.rank!r}")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be positive, found {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in 0..1, found {self.dropout!r}")
        names = self.target_modules
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"lora.target_modules must be a list of module names, found {names!r}")


@dataclass(frozen=True)
class TrainedVLM:
    """What training made of a base VLM: enough to make the same of another copy of it.

    Attributes:
        training: ``lora`` or ``full``.
        base: fingerprint of the base VLM, see :class:`~navsim_recogdrive.vlm.identity.VLMIdentity`.
        lora: how the adapters are shaped, ``None`` where everything was trained.
        weights: the trained parameters by their names in transformers' base model.
    """

    training: str
    base: str
    lora: LoRA | None
    weights: Mapping[str, Tensor]

    @property
    def about(self) -> Tensor:
        """Everything but the weights as a uint8 tensor that holds JSON: a state dict can carry it."""
        content = {
            "format": FORMAT_VERSION,
            "training": self.training,
            "base": self.base,
            "lora": None if self.lora is None else asdict(self.lora),
        }
        return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the base VLM's fingerprint and the trained weights' names, shapes and sampled bytes."""
        digest = hashlib.sha256(self.about.numpy().tobytes())
        for name in sorted(self.weights):
            weight = self.weights[name].detach().cpu().contiguous()
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            content = weight.reshape(-1).view(torch.uint8)
            for start in np.linspace(0, max(0, len(content) - _SAMPLE_BYTES), _SAMPLES, dtype=int).tolist():
                digest.update(content[start : start + _SAMPLE_BYTES].numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_state(cls, about: Tensor, weights: Mapping[str, Tensor]) -> TrainedVLM:
        """The inverse of :attr:`about`.

        Raises:
            VLMCheckpointError: for another format or damaged content.
        """
        try:
            content = json.loads(bytes(about.cpu().tolist()))
            version = content["format"]
            if version != FORMAT_VERSION:
                raise VLMCheckpointError(
                    f"the checkpoint's trained VLM has format {version}, this package reads {FORMAT_VERSION}: use the "
                    "version of navsim-recogdrive that wrote it"
                )
            lora = content["lora"]
            if lora is not None:
                lora = LoRA(**{**lora, "target_modules": tuple(lora["target_modules"])})
            return cls(content["training"], content["base"], lora, weights)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, VLMCheckpointError):
                raise
            raise VLMCheckpointError(
                f"the checkpoint's description of its trained VLM is damaged ({error}): use another copy of the file"
            ) from error


def parameter_dtype(training: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype in which the base VLM is loaded: float32 where it is trained itself, whatever it computes in."""
    return torch.float32 if training == "full" else dtype


def make_trainable(
    backbone: Backbone,
    training: str,
    lora: LoRA | None,
    *,
    dtype: torch.dtype,
    gradient_checkpointing: bool = False,
) -> None:
    """Let gradients reach a frozen backbone, loaded in :func:`parameter_dtype`.

    Args:
        backbone: changed in place; nobody else may be using it.
        training: ``lora`` or ``full``.
        lora: shape of the adapters, for ``lora``.
        dtype: what the model computes in; parameters that are trained stay float32.
        gradient_checkpointing: keep one row per layer for the backward pass and compute the rest again.

    Raises:
        PeftMissing: for adapters without peft.
        ValueError: for target modules that the language model does not have.
    """
    _shape(backbone, training, lora, dtype)
    for parameter in trained_parameters(backbone.model, training).values():
        parameter.requires_grad_(True)
    backbone.trainable = True
    if gradient_checkpointing:
        part = backbone.model if training == "full" else backbone.model.language_model
        # transformers renames it
        enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def restore(backbone: Backbone, trained: TrainedVLM, dtype: torch.dtype) -> None:
    """Make of a freshly loaded base VLM (in :func:`parameter_dtype`) the trained one, frozen.

    Args:
        backbone: changed in place, its fingerprint too; nobody else may be using it.
        trained: from a checkpoint.
        dtype: what the model computes in.

    Raises:
        PeftMissing: for adapters without peft.
        VLMCheckpointError: for another base VLM, or weights that do not fit it or are not finite, listing them.
    """
    check_base(backbone.fingerprint, trained)
    _shape(backbone, trained.training, trained.lora, dtype)
    load_trained(backbone, trained)
    backbone.model.requires_grad_(False).eval()
    backbone.fingerprint = trained.fingerprint


def check_base(fingerprint: str, trained: TrainedVLM) -> None:
    """Compare the base VLM at hand with the one that was trained.

    Raises:
        VLMCheckpointError: if they differ, naming both.
    """
    if fingerprint != trained.base:
        raise VLMCheckpointError(
            f"the checkpoint's VLM was trained from a base VLM with fingerprint {trained.base}, the one configured has "
            f"{fingerprint}: set agent.vlm.path to the same weights, and prompt_profile, cam_type, hidden_length and "
            "max_tiles as they were in training"
        )


def load_trained(backbone: Backbone, trained: TrainedVLM) -> None:
    """Copy trained weights into a backbone that has been shaped for them.

    Raises:
        VLMCheckpointError: for missing or unexpected weights, others of another shape, or values that are not finite;
            nothing is changed then.
    """
    parameters = trained_parameters(backbone.model, trained.training)
    shapes = [
        f"{name} {list(weight.shape)} (expected {list(parameters[name].shape)})"
        for name, weight in trained.weights.items()
        if name in parameters and weight.shape != parameters[name].shape
    ]
    differences = {
        "missing": sorted(parameters.keys() - trained.weights.keys()),
        "unexpected": sorted(trained.weights.keys() - parameters.keys()),
        "other shape": shapes,
    }
    if any(differences.values()):
        found = [
            f"{kind}: {listed(f'weights of a trained VLM, {kind}', names)}"
            for kind, names in differences.items()
            if names
        ]
        raise VLMCheckpointError(f"the checkpoint's trained VLM does not fit its base VLM: {'; '.join(found)}")
    check_finite(trained.weights)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained.weights[name])
    backbone.forget_prefix()


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Make sure that trained weights hold neither NaN nor infinity.

    Raises:
        VLMCheckpointError: naming those that do.
    """
    broken = [name for name, weight in sorted(weights.items()) if not all_finite(weight)]
    if broken:
        names = listed("weights of a trained VLM that are not finite", broken)
        raise VLMCheckpointError(
            f"the checkpoint's trained VLM holds values that are not finite: {names}; its training has diverged, or "
            "the file is damaged: use an earlier checkpoint"
        )


def trained_parameters(model: nn.Module, training: str) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: all, or the adapters'."""
    named = dict(model.named_parameters())
    return named if training == "full" else {name: value for name, value in named.items() if ".lora_" in name}


def _shape(backbone: Backbone, training: str, lora: LoRA | None, dtype: torch.dtype) -> None:
    """Put the adapters in, and set what trained parameters compute in."""
    if training == "lora":
        if lora is None:
            raise ValueError("training=lora needs the shape of the adapters")
        inject_lora(backbone.model, lora)
    # The same in training and evaluation, so that a plan does not depend on where it is made.
    backbone.autocast = None if dtype == torch.float32 else dtype


def inject_lora(model: Any, lora: LoRA) -> None:
    """Put float32 adapters into the ``language_model`` of transformers' base model, in place.

    Raises:
        PeftMissing: without peft.
        ValueError: for target modules that the language model does not have.
    """
    if importlib.util.find_spec("peft") is None:
        raise PeftMissing(
            "LoRA adapters need the package peft: pip install -e '.[lora]' in the checkout of navsim-recogdrive"
        )
    from peft import LoraConfig, inject_adapter_in_model

    language_model = model.language_model
    names = {name.rpartition(".")[2] for name, part in language_model.named_modules() if isinstance(part, nn.Linear)}
    if unknown := sorted(set(lora.target_modules) - names):
        raise ValueError(f"lora.target_modules names {unknown}, the language model's linear layers are {sorted(names)}")
    settings: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    inject_adapter_in_model(LoraConfig(**settings, target_modules=list(lora.target_modules)), language_model)
    for adapter in trained_parameters(model, "lora").values():
        adapter.data = adapter.data.float()  # peft gives them the base's dtype, in which small steps vanish
