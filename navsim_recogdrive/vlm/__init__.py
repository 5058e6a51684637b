"""The vision-language backbone: image tiles and a prompt in, hidden states out.

Names are imported on first use, so that reading a VLM's identity loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.backbone import (
        Backbone,
        InternVLBackbone,
        PromptTooLong,
        VLMInputs,
        load_backbone,
    )
    from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
    from navsim_recogdrive.vlm.identity import VLMIdentity, read_vlm_identity
    from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile
    from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

_HOMES = {
    "Backbone": "backbone",
    "InternVLBackbone": "backbone",
    "PromptError": "prompts",
    "PromptProfile": "prompts",
    "PromptTooLong": "backbone",
    "VLMCheckpointError": "checkpoint_files",
    "VLMIdentity": "identity",
    "VLMInputs": "backbone",
    "load_backbone": "backbone",
    "read_vlm_identity": "identity",
    "write_tiny_checkpoint": "tiny_checkpoint",
}

__all__ = [
    "Backbone",
    "InternVLBackbone",
    "PromptError",
    "PromptProfile",
    "PromptTooLong",
    "VLMCheckpointError",
    "VLMIdentity",
    "VLMInputs",
    "load_backbone",
    "read_vlm_identity",
    "write_tiny_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
