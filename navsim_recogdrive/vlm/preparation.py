"""From an observation to what the VLM reads, tiles and prompt, without the VLM's weights.

Needs a checkpoint's ``config.json`` and tokenizer alone, so processes that only prepare scenes stay small.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navsim_recogdrive.observation import HISTORY_POSES, InvalidObservation, Observation
from navsim_recogdrive.vlm.architecture import CAMERA_SIZE, Architecture, read_architecture
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.identity import VLMSettings
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.prompts import PromptProfile, added_token_id
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.resampling import Pixels, own_stream, resize_bicubic
from navsim_recogdrive.vlm.tiling import tile_image

PAD_TOKEN = "<|endoftext|>"

# To be raised with any change that gives other tiles or prompts for the same settings and scene.
_PREPARATION = 1


class PromptTooLong(ValueError):
    """A prompt with more tokens than a hidden state has rows."""


@dataclass(frozen=True)
class VLMInputs:
    """One scene, ready for the VLM; small enough to be sent between processes.

    Attributes:
        tiles: ``[T, h, w, 3]`` uint8 RGB, of all cameras from left to right; tensors may be on any device.
        token_ids: ``[S]`` int64, the whole prompt without padding.
    """

    tiles: NDArray[np.uint8] | Tensor
    token_ids: NDArray[np.int64]

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        height, width = self.tiles.shape[1:3]
        return int(height), int(width)


class ScenePreparation:
    """Cuts images into tiles and writes prompts, as one VLM wants them; has no state, so threads may share it.

    Args:
        architecture: from ``config.json``.
        tokenizer: the checkpoint's tokenizer.
        profile: how the prompt is written.
        cameras: what the VLM sees, from left to right.
        max_tiles: most tiles of an image, a thumbnail not counted.
        hidden_length: most tokens of a prompt: the rows of a hidden state.
    """

    def __init__(
        self,
        architecture: Architecture,
        tokenizer: Any,
        profile: PromptProfile,
        *,
        cameras: Sequence[str],
        max_tiles: int,
        hidden_length: int,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.profile = profile
        self.cameras = tuple(cameras)
        self.max_tiles = max_tiles
        self.hidden_length = hidden_length
        self.image_token_id = added_token_id(tokenizer, architecture.image_tokens.context)
        self.pad_token_id = added_token_id(tokenizer, PAD_TOKEN)
        self.prefix_ids = np.asarray(profile.prefix_ids(tokenizer, architecture.image_tokens), dtype=np.int64)

    def prepare(self, observation: Observation, device: torch.device | None = None) -> VLMInputs:
        """Cut the images into tiles and write the prompt.

        Args:
            observation: of the scene.
            device: an accelerator that cuts the tiles, beside what else it computes, and keeps them; where its memory
                is full, the CPU cuts them.

        Raises:
            InvalidObservation: if the observation lacks an image, or has one too long for its width (Qwen).
            PromptTooLong: if the prompt has more than ``hidden_length`` tokens.
        """
        if device is not None:
            try:
                with own_stream(device):
                    return self._prepare(observation, device)
            except torch.cuda.OutOfMemoryError:  # the model may still fit; the CPU gives the same bytes
                return self._prepare(observation, None)
        return self._prepare(observation, None)

    def _prepare(self, observation: Observation, device: torch.device | None) -> VLMInputs:
        tiles: list[Any] = []
        image_rows = []
        for camera in self.cameras:
            image = observation.image(camera)
            if image is None:
                raise InvalidObservation(
                    f"{camera}_image is None: the VLM needs the {camera.replace('_', '-')} camera; ask the host for it "
                    f"(last frame, cam_type={'single' if len(self.cameras) == 1 else 'multi'}), or plan from cached "
                    "hidden states instead"
                )
            if device is None:
                tiles.append(cut_image(self.architecture, image, self.max_tiles))
            else:
                pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device)
                tiles.append(cut_image(self.architecture, pixels, self.max_tiles))
            image_rows.append(len(tiles[-1]) * self.architecture.rows_per_tile(*tiles[-1].shape[1:3]))
        if len({one.shape[1:] for one in tiles}) > 1:
            sizes = {camera: list(one.shape[1:3]) for camera, one in zip(self.cameras, tiles, strict=True)}
            raise InvalidObservation(f"the cameras' images must have one size, found tiles of {sizes}")
        token_ids = self._token_ids(observation.past_poses, observation.command_index, image_rows)
        self._check_length(len(token_ids), sum(image_rows))
        joined = np.concatenate(tiles) if device is None else torch.cat(tiles)
        return VLMInputs(joined, np.asarray(token_ids, dtype=np.int64))

    def check(self, scene: VLMInputs) -> None:
        """Make sure that a scene was prepared as this object does it.

        Raises:
            PromptTooLong: if the prompt has more than ``hidden_length`` tokens.
            ValueError: for tiles of another shape, a prompt with another number of image tokens than its tiles need, or
                one that does not begin as the profile's prompts do.
        """
        if scene.tiles.ndim != 4 or scene.tiles.shape[3] != 3:
            raise ValueError(f"tiles must have shape [T, h, w, 3], found {list(scene.tiles.shape)}")
        expected = len(scene.tiles) * self.architecture.rows_per_tile(*scene.tile_size)
        found = int((scene.token_ids == self.image_token_id).sum())
        if found != expected:
            raise ValueError(f"{len(scene.tiles)} tiles need {expected} image tokens, the prompt has {found}")
        self._check_length(len(scene.token_ids), expected)
        if not np.array_equal(scene.token_ids[: len(self.prefix_ids)], self.prefix_ids):
            raise ValueError(
                "the prompt does not begin as this backbone's profile writes it: prepare it with prepare()"
            )

    @cached_property
    def tile_capacity(self) -> int:
        """Most tiles that a scene can have beside the shortest prompt: 9 for the published model.

        Batches of scenes with different numbers of tiles are padded to it.
        """
        cameras = len(self.cameras)
        widest, height, width = self.architecture.tile_shape(self.max_tiles * 1000, 1000, self.max_tiles)
        standing = np.zeros((HISTORY_POSES, 3))
        text = min(
            len(self._token_ids(standing, command, [0] * cameras)) for command in range(len(self.profile.commands))
        )
        if widest == 1:  # one image of any size, whose rows are bounded by its pixels
            return cameras
        fitting = (self.hidden_length - text) // self.architecture.rows_per_tile(height, width)
        return max(cameras, min(cameras * widest, fitting))

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of everything that decides tiles and prompts; 32 bytes. Weights have no part in it."""
        sizes = (CAMERA_SIZE, (960, 540), (1000, 1000), (500, 2000))
        shapes = [self.architecture.tile_shape(*size, self.max_tiles) for size in sizes]
        parts = {
            "version": _PREPARATION,
            "vlm_type": self.architecture.vlm_type,
            "image_tokens": asdict(self.architecture.image_tokens),
            "tiles": [(*shape, self.architecture.rows_per_tile(*shape[1:])) for shape in shapes],
            "profile": self.profile.fingerprint,
            "cameras": self.cameras,
            "max_tiles": self.max_tiles,
            "hidden_length": self.hidden_length,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()

    def _token_ids(self, past_poses: NDArray[np.floating[Any]], command: int, image_rows: Sequence[int]) -> list[int]:
        return self.profile.token_ids(self.tokenizer, past_poses, command, image_rows, self.architecture.image_tokens)

    def _check_length(self, tokens: int, image_rows: int) -> None:
        if tokens > self.hidden_length:
            raise PromptTooLong(
                f"the prompt has {tokens} tokens ({image_rows} of them for images), a hidden state "
                f"{self.hidden_length} rows: use fewer tiles (max_tiles, now {self.max_tiles}), a shorter prompt "
                "profile, or a larger hidden_length; published planners need exactly 2800 rows"
            )


def load_preparation(settings: VLMSettings) -> ScenePreparation:
    """Read what preparing needs from a checkpoint: its configuration, tokenizer and prompt profile, not its weights.

    Raises:
        VLMCheckpointError: if there is no supported checkpoint, or its tokenizer is another's.
        PromptError: if the profile is unknown, malformed, or not made for the checkpoint's tokenizer or the cameras.
        ValueError: for a length beyond the model's positions.
    """
    directory = checkpoint_directory(settings.path, settings.revision)
    architecture = read_architecture(directory, settings.vlm_type)
    tokenizer = load_qwen2_tokenizer(directory)
    if len(tokenizer) > architecture.vocabulary_size:
        raise VLMCheckpointError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary only "
            f"{architecture.vocabulary_size}: the tokenizer files are of another checkpoint"
        )
    profile = settings.profile()
    profile.check_tokenizer(tokenizer, architecture.image_tokens)
    return ScenePreparation(
        architecture,
        tokenizer,
        profile,
        cameras=settings.cameras,
        max_tiles=settings.max_tiles,
        hidden_length=settings.length(architecture),
    )


def cut_image(architecture: Architecture, image: Pixels, max_tiles: int) -> Pixels:
    """Cut or resize an image ``[H, W, 3]`` uint8 RGB into the ``[T, h, w, 3]`` of ``architecture.tile_shape``.

    Raises:
        InvalidObservation: for an image too long for its width (Qwen).
    """
    if isinstance(architecture, InternVLArchitecture):
        return tile_image(image, architecture.tile_size, max_tiles, architecture.thumbnail)
    _, height, width = architecture.tile_shape(image.shape[1], image.shape[0], max_tiles)
    return resize_bicubic(image, width, height)[None]
