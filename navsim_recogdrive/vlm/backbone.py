"""From an observation to hidden states: the interface that policies use, and its InternVL form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import InternVLModel

from navsim_recogdrive.observation import InvalidObservation, Observation
from navsim_recogdrive.vlm import internvl
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, checkpoint_directory, stored_tensors
from navsim_recogdrive.vlm.identity import HIDDEN_LENGTH, MAX_TILES, VLMIdentity, read_vlm_identity
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture, read_architecture
from navsim_recogdrive.vlm.prompts import IMAGE_CONTEXT, PromptProfile, added_token_id
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiling import normalize_tiles, tile_image

PAD_TOKEN = "<|endoftext|>"


class PromptTooLong(ValueError):
    """A prompt with more tokens than a hidden state has rows."""


@dataclass(frozen=True)
class VLMInputs:
    """One scene, ready for the VLM; small enough to be sent between processes.

    Attributes:
        tiles: ``[T, tile, tile, 3]`` uint8 RGB.
        token_ids: ``[S]`` int64, the whole prompt without padding.
    """

    tiles: NDArray[np.uint8]
    token_ids: NDArray[np.int64]


class Backbone(Protocol):
    """What a policy needs from a vision-language model.

    Attributes:
        hidden_size: width of a hidden state.
        hidden_length: rows of a hidden state, padding included.
        fingerprint: identity of the hidden states, see :class:`~navsim_recogdrive.vlm.identity.VLMIdentity`.
        tokenizer: the checkpoint's tokenizer.
    """

    hidden_size: int
    hidden_length: int
    fingerprint: str
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where hidden states are computed."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        ...

    def to(self, device: torch.device | str) -> Backbone:
        """Move the model; returns itself."""
        ...

    def prepare(self, observation: Observation) -> VLMInputs:
        """Cut the image into tiles and write the prompt, on the CPU."""
        ...

    def content_rows(self, inputs: VLMInputs) -> Tensor:
        """Hidden states ``[S, hidden_size]`` of one scene without padding."""
        ...

    def hidden_states(self, inputs: Sequence[VLMInputs]) -> Tensor:
        """Hidden states ``[B, hidden_length, hidden_size]``, padded in front."""
        ...


class InternVLBackbone:
    """An InternVLChat checkpoint as a :class:`Backbone`; made by :func:`load_backbone`.

    Inference only: hidden states carry no graph. Not a ``torch.nn.Module``, so that a module that holds one does not
    write gigabytes of frozen weights into its own checkpoints.
    """

    def __init__(
        self,
        model: InternVLModel,
        tokenizer: Any,
        profile: PromptProfile,
        architecture: InternVLArchitecture,
        identity: VLMIdentity,
        max_tiles: int,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.profile = profile
        self.architecture = architecture
        self.hidden_size = identity.hidden_size
        self.hidden_length = identity.hidden_length
        self.fingerprint = identity.fingerprint
        self.max_tiles = max_tiles

    @property
    def device(self) -> torch.device:
        """Where hidden states are computed."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the hidden states."""
        return self.model.dtype

    def to(self, device: torch.device | str) -> InternVLBackbone:
        """Move the model; returns itself."""
        self.model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps its signature away
        return self

    def prepare(self, observation: Observation) -> VLMInputs:
        """Cut the image into tiles and write the prompt, on the CPU.

        Raises:
            InvalidObservation: if the observation has no image.
            PromptTooLong: if the prompt has more than ``hidden_length`` tokens.
        """
        if observation.front_image is None:
            raise InvalidObservation(
                "front_image is None: the VLM needs the front camera; ask the host for it (cam_f0 of the last frame), "
                "or plan from cached hidden states instead"
            )
        tiles = tile_image(
            observation.front_image, self.architecture.tile_size, self.max_tiles, self.architecture.thumbnail
        )
        token_ids = self.profile.token_ids(
            self.tokenizer,
            observation.past_poses,
            observation.command_index,
            len(tiles),
            self.architecture.image_tokens_per_tile,
        )
        self._check_length(len(token_ids), len(tiles))
        return VLMInputs(tiles, np.asarray(token_ids, dtype=np.int64))

    def content_rows(self, inputs: VLMInputs) -> Tensor:
        """Hidden states of one scene without padding.

        Returns:
            ``[S, hidden_size]`` in the model's dtype, on its device, S the number of prompt tokens.

        Raises:
            ValueError: if the tiles have another size than the checkpoint's, or the prompt has another number of image
                tokens than the tiles need.
        """
        size = self.architecture.tile_size
        if inputs.tiles.shape[1:] != (size, size, 3):
            raise ValueError(f"tiles must have shape [T, {size}, {size}, 3], found {list(inputs.tiles.shape)}")
        expected = len(inputs.tiles) * self.architecture.image_tokens_per_tile
        found = int((inputs.token_ids == self.model.config.image_token_id).sum())
        if found != expected:
            raise ValueError(f"{len(inputs.tiles)} tiles need {expected} image tokens, the prompt has {found}")
        token_ids = torch.tensor(inputs.token_ids, device=self.device)
        tiles = torch.tensor(inputs.tiles, device=self.device)
        return internvl.content_rows(self.model, token_ids, normalize_tiles(tiles))

    def hidden_states(self, inputs: Sequence[VLMInputs]) -> Tensor:
        """Hidden states of several scenes, each padded in front with the checkpoint's constant padding row.

        Each scene is computed by itself and without padding, so that its rows do not depend, to the last bit, on the
        scenes it happens to share a batch with. One scene already is a batch of tiles for the vision tower and some
        2800 rows for the language model.

        Args:
            inputs: B scenes; at least one.

        Returns:
            ``[B, hidden_length, hidden_size]`` in the model's dtype, on its device.

        Raises:
            PromptTooLong: if a prompt has more than ``hidden_length`` tokens.
            ValueError: for an empty batch, or as :meth:`content_rows`.
        """
        if not inputs:
            raise ValueError("hidden_states needs at least one scene")
        for scene in inputs:
            self._check_length(len(scene.token_ids), len(scene.tiles))
        hidden = self.padding_row.to(self.device).repeat(len(inputs), self.hidden_length, 1)
        for rows, scene in zip(hidden, inputs, strict=True):
            rows[self.hidden_length - len(scene.token_ids) :] = self.content_rows(scene)
        return hidden

    @cached_property
    def padding_row(self) -> Tensor:
        """``[hidden_size]``: what every padded row holds, see :func:`~navsim_recogdrive.vlm.internvl.padding_row`."""
        return internvl.padding_row(self.model, added_token_id(self.tokenizer, PAD_TOKEN))

    def _check_length(self, tokens: int, tiles: int) -> None:
        if tokens > self.hidden_length:
            raise PromptTooLong(
                f"the prompt has {tokens} tokens ({tiles} image tiles), a hidden state {self.hidden_length} rows: use "
                f"fewer tiles (max_tiles, now {self.max_tiles}), a shorter prompt profile, or a larger hidden_length; "
                f"published planners need exactly {HIDDEN_LENGTH} rows"
            )


def load_backbone(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
    hidden_length: int = HIDDEN_LENGTH,
    prompt_profile: str | Path = "published",
    max_tiles: int = MAX_TILES,
) -> Backbone:
    """Load a hub-layout InternVLChat directory (published ReCogDrive VLMs, InternVL3) without remote code.

    Args:
        path: directory with ``config.json``, safetensors weights (single or sharded) and tokenizer files.
        dtype: dtype of parameters and hidden states.
        device: where the model is built.
        attention: ``sdpa``, ``flash_attention_2`` or ``eager``.
        hidden_length: rows of a hidden state; published planners need 2800.
        prompt_profile: name of a built-in prompt profile or path of a JSON file.
        max_tiles: most tiles of an image, without the thumbnail.

    Raises:
        VLMCheckpointError: if the directory is not a whole, supported checkpoint; the message names the fix.
        PromptError: if the profile is unknown, malformed, or not made for the checkpoint's tokenizer.
        ValueError: for an unknown attention kernel or a ``hidden_length`` beyond the model's positions.
    """
    identity = read_vlm_identity(path, hidden_length=hidden_length, prompt_profile=prompt_profile, max_tiles=max_tiles)
    directory = checkpoint_directory(path)
    architecture = read_architecture(directory)
    positions = architecture.text["max_position_embeddings"]
    if not 1 <= hidden_length <= positions:
        raise ValueError(
            f"hidden_length must be between 1 and the model's {positions} positions, found {hidden_length}"
        )
    tokenizer = load_qwen2_tokenizer(directory)
    if len(tokenizer) > architecture.text["vocab_size"]:
        raise VLMCheckpointError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary only "
            f"{architecture.text['vocab_size']}: the tokenizer files are of another checkpoint"
        )
    profile = PromptProfile.load(prompt_profile)
    profile.check_tokenizer(tokenizer)
    model = internvl.load_internvl(
        directory,
        architecture,
        stored_tensors(directory),
        image_token_id=added_token_id(tokenizer, IMAGE_CONTEXT),
        dtype=dtype,
        device=torch.device(device),
        attention=attention,
    )
    return InternVLBackbone(model, tokenizer, profile, architecture, identity, max_tiles)
