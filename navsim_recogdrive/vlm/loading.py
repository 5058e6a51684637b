"""Loads a VLM of any supported layout, without remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.vlm import internvl
from navsim_recogdrive.vlm.architecture import Architecture
from navsim_recogdrive.vlm.backbone import Backbone, VLMOutOfMemory
from navsim_recogdrive.vlm.checkpoint_files import stored_tensors
from navsim_recogdrive.vlm.family import Family
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.identity import VLMSettings, read_vlm_identity
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.preparation import load_preparation
from navsim_recogdrive.vlm.qwen_config import QwenArchitecture
from navsim_recogdrive.vlm.weights import build_model


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


def load_family(
    directory: Path,
    architecture: Architecture,
    *,
    image_token_id: int,
    with_head: bool = False,
    dtype: torch.dtype,
    device: torch.device,
    attention: str,
) -> Family:
    """Build the model of a checkpoint and stream its weights in.

    Args:
        directory: of the checkpoint.
        architecture: from its ``config.json``.
        image_token_id: id of the token that stands for one row of an image; 151667 in published checkpoints.
        with_head: load the language modelling head too.
        dtype: of the parameters.
        device: where the model is built.
        attention: one of :data:`~navsim_recogdrive.vlm.architecture.ATTENTION_KERNELS`.

    Raises:
        VLMCheckpointError: if weights and configuration do not fit.
        ValueError: for an attention kernel that is unknown or not installed.
        VLMOutOfMemory: if the model does not fit on the GPU.
    """
    tensors = stored_tensors(directory)
    family: Any
    if isinstance(architecture, InternVLArchitecture):
        family, plan = internvl.InternVL, internvl.blueprint(architecture, tensors, image_token_id, with_head)
    elif isinstance(architecture, QwenArchitecture):
        from navsim_recogdrive.vlm import qwen

        family, plan = qwen.Qwen, qwen.blueprint(architecture, tensors, image_token_id, with_head)
    else:
        raise TypeError(f"no model for {type(architecture).__name__}")
    try:
        built = build_model(plan, directory, tensors, dtype=dtype, device=device, attention=attention)
    except torch.cuda.OutOfMemoryError as error:
        raise VLMOutOfMemory(
            f"the VLM in {directory} does not fit on {device} in {dtype}: use vlm.dtype=bfloat16, the 2B model, or "
            f"free the GPU of other processes. {error}"
        ) from error
    loaded: Family = family(architecture, built)
    return loaded
