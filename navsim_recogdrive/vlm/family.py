"""What differs between kinds of VLM once they are loaded: how images become rows, and where tokens stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from navsim_recogdrive.vlm.architecture import Architecture


@dataclass(frozen=True)
class ImageRows:
    """Images in the language model's space.

    Attributes:
        rows: ``[N, R, D]``, R rows for each of N tiles.
        deeper: further ``[N, R, D]`` that are added to the image rows after the language model's first layers, one per
            layer (DeepStack, Qwen3-VL); empty elsewhere.
    """

    rows: Tensor
    deeper: tuple[Tensor, ...] = ()


class Family(Protocol):
    """One kind of VLM, loaded.

    Attributes:
        model: transformers' base model; has ``language_model`` (with ``embed_tokens``, ``layers``, ``norm``).
        generator: the whole model with its language modelling head (``generate``), ``None`` unless text is wanted.
    """

    model: Any
    generator: Any

    @property
    def architecture(self) -> Architecture:
        """What the configuration says."""
        ...

    @property
    def writes_behind_prefix(self) -> bool:
        """Transformers' ``generate`` can go on behind keys and values of the prompts' first tokens."""
        ...

    def image_rows(self, tiles: Tensor) -> ImageRows:
        """Vision tower and projector: ``[N, h, w, 3]`` uint8 tiles of one size, on the model's device."""
        ...

    def positions(self, token_ids: NDArray[np.int64], tile_size: tuple[int, int]) -> NDArray[np.int64]:
        """Rotary positions of a prompt ``[S]`` whose tiles have ``tile_size`` (h, w): ``[S]``, or ``[3, S]``."""
        ...

    def generate_arguments(self, token_ids: Tensor, mask: Tensor, tiles: Tensor) -> dict[str, Tensor]:
        """What transformers' ``generate`` needs beside ids and mask, on the model's device.

        Args:
            token_ids: ``[B, S]`` on the CPU, padded anywhere.
            mask: ``[B, S]`` on the CPU, 1 for a prompt's own tokens, 0 for padding.
            tiles: all of the prompts, in order, on the model's device.
        """
        ...
