"""Qwen2.5-VL and Qwen3-VL as backbones, from the published layout or the one that transformers writes now."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)

from navsim_recogdrive.vlm.family import ImageRows
from navsim_recogdrive.vlm.qwen_config import FRAMES_PER_PATCH, QwenArchitecture
from navsim_recogdrive.vlm.tiling import normalize_tiles
from navsim_recogdrive.vlm.weights import Blueprint, split_head

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

_NORMALIZATION = {"qwen2_5_vl": (CLIP_MEAN, CLIP_STD), "qwen3_vl": (HALF, HALF)}
_CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLModel, Qwen3VLForConditionalGeneration),
}
_RENAMES = (
    (r"^model\.(visual|language_model)\.", r"\1."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
)
_LM_HEAD = "lm_head.weight"
_VISION_BATCH = 8
"""Images that the vision tower sees at once: up to 100 000 patches, and bounded memory for any number of scenes."""


class Qwen:
    """A Qwen2.5-VL or Qwen3-VL model, a :class:`~navsim_recogdrive.vlm.family.Family`.

    Args:
        architecture: from ``config.json``.
        built: transformers' model of :func:`blueprint`.
    """

    def __init__(self, architecture: QwenArchitecture, built: Any) -> None:
        self.architecture = architecture
        self._image_token_id = int(built.config.image_token_id)
        self.generator, self.model = split_head(built)
        # Since release 5.2 transformers' generate takes positions; before, it counts what follows a prefix from zero.
        self.writes_behind_prefix = "_prepare_position_ids_for_generation" in vars(type(built))

    def image_rows(self, tiles: Tensor) -> ImageRows:
        """Vision tower and merger: ``[N, h, w, 3]`` uint8 -> ``[N, (h / unit) * (w / unit), D]``, units of 28 or 32."""
        parts = []
        for part in tiles.split(_VISION_BATCH):
            found = self.model.visual(self._patches(part), grid_thw=self._grid(part))
            layers = (found.pooler_output, *getattr(found, "deepstack_features", ()))
            parts.append([layer.unflatten(0, (len(part), -1)) for layer in layers])
        rows, *deeper = (torch.cat(layer) for layer in zip(*parts, strict=True))
        return ImageRows(rows, tuple(deeper))

    def positions(self, token_ids: NDArray[np.int64], tile_size: tuple[int, int]) -> NDArray[np.int64]:
        """Rotary positions ``[3, S]`` in time, height and width.

        Text counts on in all three. The rows of an image share a time and count its lines and columns from there; text
        goes on behind the longer side.

        Raises:
            ValueError: if an image has another number of tokens than its size asks for.
        """
        unit = self.architecture.patch_size * self.architecture.merge_size
        lines, columns = (side // unit for side in tile_size)
        # A step up where an image begins and down behind its end.
        steps = np.diff((token_ids == self._image_token_id).astype(np.int8), prepend=0, append=0)
        image = np.stack(
            [
                np.zeros(lines * columns, dtype=np.int64),
                np.repeat(np.arange(lines), columns),
                np.tile(np.arange(columns), lines),
            ]
        )
        parts, done, position = [], 0, 0
        for start, end in zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True):
            if end - start != image.shape[1]:
                raise ValueError(f"an image of {lines} x {columns} rows has {end - start} image tokens")
            parts += [_counting(position, start - done), image + (position + start - done)]
            position += start - done + max(lines, columns)
            done = end
        return np.concatenate([*parts, _counting(position, len(token_ids) - done)], axis=1)

    def generate_arguments(self, token_ids: Tensor, mask: Tensor, tiles: Tensor) -> dict[str, Tensor]:
        """The patches of all images in order, their grids, and where tokens stand, as for hidden states."""
        arguments = {"pixel_values": self._patches(tiles), "image_grid_thw": self._grid(tiles)}
        if self.writes_behind_prefix:
            height, width = tiles.shape[1:3]
            positions = torch.zeros((3, *token_ids.shape), dtype=torch.int64)
            for row, (ids, own) in enumerate(zip(token_ids, mask.bool(), strict=True)):
                positions[:, row, own] = torch.from_numpy(self.positions(ids[own].numpy(), (height, width)))
            arguments["position_ids"] = positions.to(tiles.device)
        return arguments

    def _patches(self, tiles: Tensor) -> Tensor:
        """Patches ``[N * P, 3 * 2 * side * side]`` in the model's dtype; those that make one row are neighbours."""
        mean, std = _NORMALIZATION[self.architecture.vlm_type]
        planes = normalize_tiles(tiles, mean, std).to(self.model.visual.dtype)
        side, merge = self.architecture.patch_size, self.architecture.merge_size
        patches = planes.unflatten(3, (-1, merge, side)).unflatten(2, (-1, merge, side))
        # [N, channel, line, line in row, y, column, column in row, x] -> [N, line, column, in row, channel, y, x]
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
        return patches[:, :, None].expand(-1, -1, FRAMES_PER_PATCH, -1, -1).flatten(1)

    def _grid(self, tiles: Tensor) -> Tensor:
        """``[N, 3]``: patches in time, height and width of each image."""
        height, width = tiles.shape[1:3]
        side = self.architecture.patch_size
        return torch.tensor([[1, height // side, width // side]], device=tiles.device).repeat(len(tiles), 1)


def blueprint(
    architecture: QwenArchitecture, stored: Collection[str], image_token_id: int, with_head: bool = False
) -> Blueprint:
    """How transformers builds this model from weights named ``stored``."""
    config_kind, base, generator = _CLASSES[architecture.vlm_type]
    tied = architecture.tied_head and _LM_HEAD not in stored
    config = config_kind(
        vision_config=dict(architecture.vision),
        text_config={**architecture.text, "tie_word_embeddings": tied},
        image_token_id=image_token_id,
        tie_word_embeddings=tied,
    )
    return Blueprint(generator if with_head else base, config, lambda name: native_names(name, with_head))


def native_names(stored: str, with_head: bool = False) -> tuple[str, ...]:
    """The parameter that a stored tensor fills; none for an unused head."""
    if stored == _LM_HEAD:
        return (stored,) if with_head else ()
    name = stored
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return (f"model.{name}" if with_head else name,)


def _counting(first: int, count: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(first, first + count), (3, count))
