"""Which VLM this is, without loading it: neither torch nor transformers is imported here.

A start-up check such as "this planner needs 3584 features, this VLM gives 1536" costs milliseconds with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.vlm.architecture import Architecture, default_hidden_length, read_architecture
from navsim_recogdrive.vlm.checkpoint_files import content_digest, stored_tensors
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.prompts import PromptProfile, load_profile

HIDDEN_LENGTH = 2800
"""Rows of a hidden state in the published pipeline; published planners average over exactly this many."""

MAX_TILES = 12
"""Most tiles of an image in the published pipeline, without the thumbnail."""

# To be raised with any change that gives other hidden states for the same weights and scene: caches made before it
# then no longer match.
_COMPUTATION = 1


@dataclass(frozen=True)
class VLMIdentity:
    """Identity of a VLM's hidden states.

    Attributes:
        hidden_size: width of a hidden state; 1536 (2B) or 3584 (8B).
        hidden_length: rows of a hidden state, padding included.
        fingerprint: SHA-256 (hex) of weights, architecture, prompt profile, length and tiling.
        model: SHA-256 (hex) of weights and architecture alone; empty for a model that has no files.
        profile: fingerprint of the prompt profile alone.
    """

    hidden_size: int
    hidden_length: int
    fingerprint: str
    model: str = ""
    profile: str = ""


@dataclass(frozen=True)
class VLMSettings:
    """Which VLM, and how it is asked: everything that decides its hidden states but for rounding.

    Attributes:
        path: checkpoint folder, or the id of a hub repository (``ORGANISATION/NAME``).
        revision: branch, tag or commit of a hub repository.
        vlm_type: ``auto``, or the kind that is insisted on (``internvl``, ``qwen2_5_vl``, ``qwen3_vl``).
        cam_type: ``single`` (the front camera, as published) or ``multi`` (front-left, front, front-right).
        prompt_profile: name of a built-in profile, path of a JSON file, or ``auto``: the one in the checkpoint's
            folder (``prompt_profile.json``, as fine-tuning leaves it) or else ``published`` for one camera and
            ``three_cameras`` for three.
        hidden_length: rows of a hidden state, padding included; ``None``: 496 and what the cameras' images take, which
            makes 2800 for the published model.
        max_tiles: most tiles of an image, a thumbnail not counted; for Qwen, most pixels in units of 448 x 448.
    """

    path: str | Path
    revision: str | None = None
    vlm_type: str = "auto"
    cam_type: str = "single"
    prompt_profile: str | Path = "auto"
    hidden_length: int | None = None
    max_tiles: int = MAX_TILES

    def __post_init__(self) -> None:
        if self.cam_type not in CAMERA_SETS:
            raise ValueError(f"cam_type must be one of {sorted(CAMERA_SETS)}, found {self.cam_type!r}")

    @property
    def cameras(self) -> tuple[str, ...]:
        """What the VLM sees, from left to right."""
        return CAMERA_SETS[self.cam_type]

    def profile(self) -> PromptProfile:
        """Load the prompt profile.

        Raises:
            PromptError: if it is unknown, malformed, or about other cameras.
            VLMCheckpointError: for ``auto``, if there is no checkpoint.
        """
        checkpoint = checkpoint_directory(self.path, self.revision) if self.prompt_profile == "auto" else None
        return load_profile(self.prompt_profile, self.cameras, checkpoint)

    def length(self, architecture: Architecture) -> int:
        """Rows of a hidden state.

        Raises:
            ValueError: if they are more than the model's positions.
        """
        length = self.hidden_length
        if length is None:
            length = default_hidden_length(architecture, len(self.cameras), self.max_tiles)
        if not 1 <= length <= architecture.max_positions:
            raise ValueError(
                f"hidden_length must be between 1 and the model's {architecture.max_positions} positions, "
                f"found {length}"
            )
        return length


def read_vlm_identity(settings: VLMSettings) -> VLMIdentity:
    """Read a VLM's identity from its files.

    The fingerprint covers the architecture (the keys of ``config.json`` that decide the result), each weight's name,
    dtype, shape and sampled bytes (see :func:`~navsim_recogdrive.vlm.checkpoint_files.content_digest`), the prompt
    profile, the cameras, the length and the tiling. It is equal for the same checkpoint on another path or machine and
    in another division into shards. It leaves out the compute dtype, the attention kernel and the device, which change
    hidden states only by rounding, and the tokenizer's files, whose vocabulary the prompt profile checks.

    Raises:
        VLMCheckpointError: if there is no whole, supported checkpoint.
        PromptError: if the profile is unknown, malformed, or about other cameras.
        ValueError: for settings that do not fit.
    """
    directory = checkpoint_directory(settings.path, settings.revision)
    architecture = read_architecture(directory, settings.vlm_type)
    length = settings.length(architecture)
    model = (str(_COMPUTATION), architecture.canonical, content_digest(stored_tensors(directory)))
    profile = settings.profile().fingerprint
    parts = (*model, profile, ",".join(settings.cameras), str(length), str(settings.max_tiles))
    return VLMIdentity(architecture.hidden_size, length, _sha256(parts), _sha256(model), profile)


def read_hidden_size(settings: VLMSettings) -> int:
    """Width of a VLM's hidden states from ``config.json`` alone; of a hub repository nothing else is fetched.

    Raises:
        VLMCheckpointError: if there is no supported ``config.json``.
    """
    directory = checkpoint_directory(settings.path, settings.revision, config_only=True)
    return read_architecture(directory, settings.vlm_type).hidden_size


def _sha256(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
