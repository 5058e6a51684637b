"""Loads a VLM of any supported layout, without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.vlm.architecture import Architecture
from navsim_recogdrive.vlm.backbone import Backbone, VLMOutOfMemory
from navsim_recogdrive.vlm.checkpoint_files import stored_tensors
from navsim_recogdrive.vlm.family import Family
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.identity import VLMSettings, read_vlm_identity
from navsim_recogdrive.vlm.internvl import InternVL
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.preparation import load_preparation
from navsim_recogdrive.vlm.qwen_config import QwenArchitecture


def load_backbone(
    settings: VLMSettings | str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
    with_head: bool = False,
) -> Backbone:
    """Load a VLM: InternVLChat (ReCogDrive-VLM, InternVL3), transformers' own InternVL, Qwen2.5-VL or Qwen3-VL.

    Args:
        settings: which VLM and how it is asked; a path stands for its default settings.
        dtype: dtype of parameters and hidden states.
        device: where the model is built.
        attention: ``sdpa``, ``flash_attention_2`` or ``eager``.
        with_head: load the language modelling head too; needed only to generate text.

    Raises:
        VLMCheckpointError: if there is no whole, supported checkpoint; the message names the fix.
        PromptError: if the profile is unknown, malformed, or not made for the checkpoint's tokenizer or the cameras.
        ValueError: for an attention kernel that is unknown or not installed, or a length beyond the model's positions.
        VLMOutOfMemory: if the model does not fit on the GPU.
    """
    if not isinstance(settings, VLMSettings):
        settings = VLMSettings(settings)
    identity = read_vlm_identity(settings)
    preparation = load_preparation(settings)
    family = load_family(
        checkpoint_directory(settings.path, settings.revision),
        preparation.architecture,
        image_token_id=preparation.image_token_id,
        with_head=with_head,
        dtype=dtype,
        device=torch.device(device),
        attention=attention,
    )
    return Backbone(family, preparation, identity)


def load_family(directory: Path, architecture: Architecture, **placement: Any) -> Family:
    """Load the model itself, see :class:`~navsim_recogdrive.vlm.internvl.InternVL` for the arguments."""
    tensors = stored_tensors(directory)
    try:
        if isinstance(architecture, InternVLArchitecture):
            return InternVL(architecture, directory, tensors, **placement)
        if isinstance(architecture, QwenArchitecture):
            from navsim_recogdrive.vlm.qwen import Qwen

            return Qwen(architecture, directory, tensors, **placement)
        raise TypeError(f"no model for {type(architecture).__name__}")
    except torch.cuda.OutOfMemoryError as error:
        raise VLMOutOfMemory(
            f"the VLM in {directory} does not fit on {placement['device']} in {placement['dtype']}: use "
            f"vlm.dtype=bfloat16, the 2B model, or free the GPU of other processes. {error}"
        ) from error
