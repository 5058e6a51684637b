"""Joint mode: the VLM as a part of the agent that is trained with the planner, or saved with it.

What is trained is what is saved: an agent's checkpoint holds ``agent.vlm.model.NAME`` for the trained parameters of the
VLM and nothing for the frozen ones, and ``agent.vlm._extra_state``, which says what they were trained from and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from navsim_recogdrive.planner.checkpoints import read_state_dict
from navsim_recogdrive.policy.backbones import SharedBackbone, load_base, resolve_device
from navsim_recogdrive.policy.configuration import PolicyConfig
from navsim_recogdrive.policy.settings import InvalidSetting
from navsim_recogdrive.vlm.adapters import (
    LoRA,
    TrainedVLM,
    check_base,
    check_finite,
    load_trained,
    make_trainable,
    trained_parameters,
)
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.identity import read_vlm_identity

if TYPE_CHECKING:
    from navsim_recogdrive.policy.configuration import VLMConfig
    from navsim_recogdrive.vlm.backbone import Backbone

_ABOUT = "_extra_state"
_MODEL = "model."


def read_trained_vlm(path: str | Path, weights: str = "averaged") -> TrainedVLM | None:
    """What a checkpoint holds of a VLM that was trained together with its planner; ``None`` if nothing.

    The weights are mapped into memory, not read; which of them, see
    :data:`~navsim_recogdrive.planner.checkpoints.WEIGHTS`.

    Raises:
        FileNotFoundError: if there is no such file.
        PlannerCheckpointError: if it cannot be read.
        VLMCheckpointError: if its VLM is of another format, damaged or without description.
    """
    state = read_state_dict(path, weights)
    described = [key.removesuffix(_ABOUT) for key in state if f".{key}".endswith(f".vlm.{_ABOUT}")]
    if described:
        return _trained_in(state, described[0])
    if found := [key for key in state if key.startswith(("agent.vlm.", "vlm."))]:
        raise VLMCheckpointError(
            f"{path} holds weights of a trained VLM ({found[0]}, ...) without their description "
            f"(agent.vlm.{_ABOUT}): use the checkpoint as run_training.py wrote it"
        )
    return None


def _trained_in(state: Mapping[str, Tensor], prefix: str) -> TrainedVLM:
    """The VLM of a state dict whose entries begin with ``prefix``."""
    return TrainedVLM.from_state(state[prefix + _ABOUT], _weights_in(state, prefix))


def _weights_in(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    model = prefix + _MODEL
    return {key.removeprefix(model): value for key, value in state.items() if key.startswith(model)}


def check_base_vlm(config: VLMConfig, trained: TrainedVLM) -> None:
    """Compare the configured VLM with the one that ``trained`` was made of; reads no weights.

    Raises:
        VLMCheckpointError: if they differ, naming both.
    """
    if config.path is not None:
        check_base(read_vlm_identity(config.settings()).fingerprint, trained)


class TrainableVLM(nn.Module):
    """A VLM as the part of an agent that is trained, saved and moved between devices with it.

    Its state dict holds the trained parameters alone. Parts that are not trained stay in evaluation mode.

    Args:
        config: which VLM, what of it is trained, and where it is loaded.
        trained: weights to start from, of the same kind of training.

    Raises:
        InvalidSetting: if ``trained`` is of another kind of training, or has adapters of another shape.
        VLMCheckpointError: for an unusable checkpoint, or another base VLM than that of ``trained``.
        PeftMissing: for adapters without peft.
    """

    def __init__(self, config: PolicyConfig, trained: TrainedVLM | None = None) -> None:
        super().__init__()
        self._kind = config.vlm.training
        self._lora: LoRA | None = config.lora if self._kind == "lora" else None
        self.backbone = load_base(config.vlm, resolve_device(config.device), self._kind)
        self._base = self.backbone.fingerprint
        make_trainable(
            self.backbone,
            self._kind,
            self._lora,
            dtype=getattr(torch, config.vlm.dtype),
            gradient_checkpointing=config.vlm.gradient_checkpointing,
        )
        self.model = self.backbone.model
        self._frozen_keys: set[str] = set()
        self._register_state_dict_hook(_leave_out_frozen)
        self.register_load_state_dict_post_hook(_forgive_frozen)
        if trained is not None:
            self._check_same(trained)
            load_trained(self.backbone, trained)
        self.train()  # a model is loaded in evaluation mode, and Lightning keeps the modes that it finds

    def trained(self) -> TrainedVLM:
        """What has been trained so far; shares the parameters' memory."""
        weights = {name: value.detach() for name, value in trained_parameters(self.model, self._kind).items()}
        return TrainedVLM(self._kind, self._base, self._lora, weights)

    def train(self, mode: bool = True) -> TrainableVLM:
        """Training mode for what is trained: everything, or the language model with its adapters."""
        super().train(mode)
        if self._kind == "lora":
            self.model.eval()
            self.model.language_model.train(mode)
        return self

    def get_extra_state(self) -> Tensor:
        """What the trained parameters are, as a uint8 tensor."""
        return self.trained().about

    def set_extra_state(self, state: Tensor) -> None:
        """Make sure that a state dict is of the same training of the same base VLM."""
        self._check_same(TrainedVLM.from_state(state, {}))

    def _check_same(self, other: TrainedVLM) -> None:
        mine = self.trained()
        if (other.training, other.lora) != (mine.training, mine.lora):
            raise InvalidSetting(
                f"the checkpoint's VLM was trained with agent.vlm.training={_describe(other)}, this run asks for "
                f"{_describe(mine)}: use the same, or agent.vlm.training=frozen to train the planner alone"
            )
        check_base(mine.base, other)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        check_finite(_weights_in(state_dict, prefix))  # Lightning loads the weights of a resumed run here
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._frozen_keys = self._frozen(prefix)

    def _frozen(self, prefix: str) -> set[str]:
        names = self.model.state_dict().keys() - trained_parameters(self.model, self._kind).keys()
        return {prefix + _MODEL + name for name in names}


def _leave_out_frozen(module: TrainableVLM, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in module._frozen(prefix):
        del state[key]


def _forgive_frozen(module: TrainableVLM, incompatible: Any) -> None:
    """Frozen parameters are in no state dict, so they are not missing from one."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in module._frozen_keys]


def _describe(trained: TrainedVLM) -> str:
    if trained.lora is None:
        return trained.training
    return (
        f"{trained.training} ({', '.join(f'agent.lora.{name}={value}' for name, value in vars(trained.lora).items())})"
    )


class CarriedVLM(nn.Module):
    """The trained VLM of the checkpoint that a run of the planner alone starts from.

    The planner still needs it, so the run's own checkpoints hold it unchanged. It has no parameters and is not moved to
    a GPU.
    """

    def __init__(self, trained: TrainedVLM) -> None:
        super().__init__()
        self._trained = trained

    def get_extra_state(self) -> Tensor:
        """What the weights are, as a uint8 tensor."""
        return self._trained.about

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + _MODEL + name: value for name, value in self._trained.weights.items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + _ABOUT in state_dict:
            trained = _trained_in(state_dict, prefix)
            check_finite(trained.weights)
            self._trained = trained
        else:
            missing_keys.append(prefix + _ABOUT)


class OwnBackbone(SharedBackbone):
    """A handle on a VLM that is being trained: nobody else's, wherever its agent has been moved."""

    def __init__(self, config: VLMConfig, backbone: Backbone) -> None:
        super().__init__(config)
        self._backbone = backbone

    def load(self, device: torch.device | None = None) -> Backbone:
        """The VLM itself, on the device where it is."""
        return self._backbone
