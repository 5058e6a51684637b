"""The vision-language backbone: image tiles and a prompt in, hidden states out.

Names are imported on first use, so that reading a VLM's identity loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.backbone import Backbone, PromptTooLong, VLMInputs, VLMOutOfMemory
    from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
    from navsim_recogdrive.vlm.identity import VLMIdentity, VLMSettings, read_hidden_size, read_vlm_identity
    from navsim_recogdrive.vlm.loading import load_backbone
    from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile
    from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

_HOMES = {
    "Backbone": "backbone",
    "PromptError": "prompts",
    "PromptProfile": "prompts",
    "PromptTooLong": "backbone",
    "VLMCheckpointError": "checkpoint_files",
    "VLMIdentity": "identity",
    "VLMInputs": "backbone",
    "VLMOutOfMemory": "backbone",
    "VLMSettings": "identity",
    "load_backbone": "loading",
    "read_hidden_size": "identity",
    "read_vlm_identity": "identity",
    "write_tiny_checkpoint": "tiny_checkpoint",
}

__all__ = [
    "Backbone",
    "PromptError",
    "PromptProfile",
    "PromptTooLong",
    "VLMCheckpointError",
    "VLMIdentity",
    "VLMInputs",
    "VLMOutOfMemory",
    "VLMSettings",
    "load_backbone",
    "read_hidden_size",
    "read_vlm_identity",
    "write_tiny_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
