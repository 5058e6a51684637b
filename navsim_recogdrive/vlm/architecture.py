"""What a checkpoint's ``config.json`` says about its model, the same questions for every kind of VLM; no torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, read_json

VLM_TYPES = ("internvl", "qwen2_5_vl", "qwen3_vl")
"""Kinds of backbone; the first is the published one."""

ATTENTION_KERNELS = ("sdpa", "flash_attention_2", "eager")
"""Attention a user may ask for: torch's fused kernels, the flash-attn package, and plain matrix products."""

CAMERA_SIZE = (1920, 1080)
"""Width and height of every NAVSIM camera image."""

TEXT_ROWS = 496
"""Rows of a hidden state beside those of the images: 2800 rows as published, less 9 tiles of 256."""


@dataclass(frozen=True)
class ImageTokens:
    """The tokens round an image (``start``, ``end``) and in place of each of its rows (``context``)."""

    start: str
    context: str
    end: str


class Architecture(Protocol):
    """A model as its configuration describes it.

    Attributes:
        vlm_type: one of :data:`VLM_TYPES`.
        hidden_size: width of the language model's hidden states; 1536 (2B) or 3584 (8B).
        max_positions: longest sequence of the language model.
        vocabulary_size: rows of the embedding matrix.
        image_tokens: how an image appears in the prompt.
    """

    @property
    def vlm_type(self) -> str: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def max_positions(self) -> int: ...  # noqa: D102
    @property
    def vocabulary_size(self) -> int: ...  # noqa: D102
    @property
    def image_tokens(self) -> ImageTokens: ...  # noqa: D102

    @property
    def canonical(self) -> str:
        """The architecture as one line of JSON, for fingerprints."""
        ...

    def tile_shape(self, width: int, height: int, max_tiles: int) -> tuple[int, int, int]:
        """``(T, h, w)``: what an image of ``width`` x ``height`` pixels is cut into.

        Square tiles for InternVL; one resized image (T = 1) for Qwen.
        """
        ...

    def rows_per_tile(self, height: int, width: int) -> int:
        """Rows that one tile of ``height`` x ``width`` pixels becomes in the language model."""
        ...


class LanguageSizes:
    """What every architecture reads off the keyword arguments of its language model."""

    text: Mapping[str, Any]

    @property
    def max_positions(self) -> int:
        """Longest sequence of the language model."""
        return int(self.text["max_position_embeddings"])

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding matrix."""
        return int(self.text["vocab_size"])


def default_hidden_length(architecture: Architecture, cameras: int, max_tiles: int) -> int:
    """Rows of a hidden state for ``cameras`` NAVSIM images: 2800 for the published model with its one camera.

    Text keeps :data:`TEXT_ROWS` rows, which every command and history fits into; image rows are computed from the
    architecture.
    """
    tiles, height, width = architecture.tile_shape(*CAMERA_SIZE, max_tiles)
    return TEXT_ROWS + cameras * tiles * architecture.rows_per_tile(height, width)


def read_architecture(directory: Path, vlm_type: str = "auto") -> Architecture:
    """Read and check ``config.json`` of any supported layout.

    Args:
        directory: of the checkpoint.
        vlm_type: one of :data:`VLM_TYPES` to insist on that kind, ``auto`` to take what the file says.

    Raises:
        VLMCheckpointError: naming the key, what was expected, and what was found.
        ValueError: for an unknown ``vlm_type``.
    """
    if vlm_type not in ("auto", *VLM_TYPES):
        raise ValueError(f"vlm_type must be auto or one of {VLM_TYPES}, found {vlm_type!r}")
    path = directory / "config.json"
    config = read_json(path)
    found = config.get("model_type")
    architecture: Architecture
    if found == "internvl_chat":
        from navsim_recogdrive.vlm.internvl_config import read_hub_internvl

        architecture = read_hub_internvl(path, config)
    elif found == "internvl":
        from navsim_recogdrive.vlm.internvl_config import read_native_internvl

        architecture = read_native_internvl(path, config)
    elif found in ("qwen2_5_vl", "qwen3_vl"):
        from navsim_recogdrive.vlm.qwen_config import read_qwen

        architecture = read_qwen(path, config)
    else:
        raise VLMCheckpointError(
            f"{path}: model_type must be internvl_chat (the hub's InternVLChat layout, as published), internvl "
            f"(transformers' own layout), qwen2_5_vl or qwen3_vl, found {found!r}"
        )
    if vlm_type not in ("auto", architecture.vlm_type):
        raise VLMCheckpointError(
            f"{path}: this is a {architecture.vlm_type} checkpoint (model_type {found!r}), vlm_type={vlm_type} was "
            f"asked for: set vlm_type={architecture.vlm_type} or auto, or give another checkpoint"
        )
    return architecture
