"""InternVL (the published backbone) from the hub's InternVLChat layout or transformers' own."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLModel,
    InternVLVisionConfig,
    Qwen2Config,
)

from navsim_recogdrive.vlm.family import ImageRows
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.tiling import normalize_tiles
from navsim_recogdrive.vlm.weights import Blueprint, split_head

_RENAMES = (
    (r"^language_model\.model\.", "language_model."),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"vision_tower.encoder.layer.\1."),
    (r"^vision_model\.embeddings\.class_embedding$", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision_tower.embeddings.patch_embeddings.projection."),
    (r"^(vision_tower\.encoder\.layer\.\d+)\.ls([12])$", r"\1.lambda_\2"),
    (r"^(vision_tower\.encoder\.layer\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"^(vision_tower\.encoder\.layer\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"^(vision_tower\.encoder\.layer\.\d+)\.attn\.proj\.", r"\1.attention.projection_layer."),
    (r"^(vision_tower\.encoder\.layer\.\d+)\.attn\.", r"\1.attention."),
    # transformers' own layout, as written by its version 5 and by version 4
    (r"^model\.", ""),
)
_LM_HEADS = ("language_model.lm_head.weight", "lm_head.weight")
_FUSED = re.compile(r"^(vision_tower\.encoder\.layer\.\d+\.attention\.)qkv\.(weight|bias)$")
_VISION_BATCH = 72
"""Tiles that the vision tower sees at once: enough to fill a GPU, and bounded memory for any number of scenes."""


class InternVL:
    """An InternVL model, a :class:`~navsim_recogdrive.vlm.family.Family`.

    Args:
        architecture: from ``config.json``.
        built: transformers' model of :func:`blueprint`.
    """

    def __init__(self, architecture: InternVLArchitecture, built: Any) -> None:
        self.architecture = architecture
        self.generator, self.model = split_head(built)
        self.writes_behind_prefix = True

    def image_rows(self, tiles: Tensor) -> ImageRows:
        """Vision tower, pixel shuffle and projector: ``[N, tile, tile, 3]`` uint8 -> rows ``[N, 256, D]``."""
        dtype = self.model.vision_tower.dtype
        parts = [
            self.model.get_image_features(pixel_values=normalize_tiles(part).to(dtype)).pooler_output
            for part in tiles.split(_VISION_BATCH)
        ]
        return ImageRows(torch.cat(parts))

    def positions(self, token_ids: NDArray[np.int64], tile_size: tuple[int, int]) -> NDArray[np.int64]:
        """``[S]``: 0, 1, 2, ..."""
        return np.arange(len(token_ids))

    def generate_arguments(self, token_ids: Tensor, mask: Tensor, tiles: Tensor) -> dict[str, Tensor]:
        """The normalised tiles of all prompts, in order."""
        return {"pixel_values": normalize_tiles(tiles).to(self.model.vision_tower.dtype)}


def blueprint(
    architecture: InternVLArchitecture, stored: Collection[str], image_token_id: int, with_head: bool = False
) -> Blueprint:
    """How transformers builds this model from weights named ``stored``."""
    tied = architecture.tied_head and not any(name in stored for name in _LM_HEADS)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**architecture.vision),
        text_config=Qwen2Config(**architecture.text, tie_word_embeddings=tied),
        image_token_id=image_token_id,
        image_seq_length=architecture.image_tokens_per_tile,
        downsample_ratio=architecture.downsample_ratio,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    kind = InternVLForConditionalGeneration if with_head else InternVLModel
    return Blueprint(kind, config, lambda name: native_names(name, with_head))


def native_names(stored: str, with_head: bool = False) -> tuple[str, ...]:
    """The parameters that a stored tensor fills: one; query, key and value for a fused one; none for an unused head."""
    if stored in _LM_HEADS:
        return ("lm_head.weight",) if with_head else ()
    name = stored
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    prefix = "model." if with_head else ""
    if fused := _FUSED.match(name):
        return tuple(f"{prefix}{fused[1]}{part}_proj.{fused[2]}" for part in "qkv")
    return (prefix + name,)
