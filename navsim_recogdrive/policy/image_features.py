"""What the VLM reads of a scene as features, for training without cached hidden states (joint mode)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from navsim_recogdrive.cache.image_tiles import ImageTiles
from navsim_recogdrive.observation import Observation
from navsim_recogdrive.policy.features import IMAGE_TILES, NUM_TILES, PREPARATION, PROMPT, PROMPT_LENGTH

if TYPE_CHECKING:
    from navsim_recogdrive.vlm.preparation import ScenePreparation, VLMInputs


def tile_features(preparation: ScenePreparation, observation: Observation) -> dict[str, Tensor]:
    """Tiles and prompt of one scene, in shapes that are the same for every scene (Qwen: with images of one size).

    Returns:
        ``image_tiles`` [T, h, w, 3] uint8, filled up with black tiles, as a tensor that pickles itself small,
        ``num_tiles`` [] int64, ``prompt`` [L] int64, padded in front, ``prompt_length`` [] int64 and
        ``preparation`` [32] uint8.

    Raises:
        InvalidObservation: if the observation lacks an image.
        PromptTooLong: if the prompt has more than ``hidden_length`` tokens.
    """
    inputs = preparation.prepare(observation)
    prompt = torch.full((preparation.hidden_length,), preparation.pad_token_id)
    prompt[len(prompt) - len(inputs.token_ids) :] = torch.from_numpy(inputs.token_ids)
    return {
        IMAGE_TILES: ImageTiles.wrap(torch.as_tensor(inputs.tiles), preparation.tile_capacity),
        NUM_TILES: torch.tensor(len(inputs.tiles)),
        PROMPT: prompt,
        PROMPT_LENGTH: torch.tensor(len(inputs.token_ids)),
        PREPARATION: preparation_feature(preparation),
    }


def preparation_feature(preparation: ScenePreparation) -> Tensor:
    """The fingerprint of ``preparation`` as a feature, [32] uint8."""
    return torch.tensor(list(preparation.fingerprint), dtype=torch.uint8)


def scenes_of(features: Mapping[str, Tensor]) -> list[VLMInputs]:
    """The scenes of a batch of :func:`tile_features` without their filling; tiles stay on their device."""
    from navsim_recogdrive.vlm.preparation import VLMInputs

    lengths = torch.stack([features[NUM_TILES], features[PROMPT_LENGTH]], dim=1)
    numbers = torch.cat([lengths, features[PROMPT]], dim=1).cpu().numpy().astype(np.int64)  # one transfer, not three
    return [
        VLMInputs(tiles[: row[0]], row[len(row) - row[1] :])
        for tiles, row in zip(features[IMAGE_TILES], numbers, strict=True)
    ]
