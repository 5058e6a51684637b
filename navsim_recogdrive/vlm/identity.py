"""Which VLM this is, without loading it: neither torch nor transformers is imported here.

A start-up check such as "this planner needs 3584 features, this VLM gives 1536" costs milliseconds with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from navsim_recogdrive.vlm.checkpoint_files import checkpoint_directory, content_digest, stored_tensors
from navsim_recogdrive.vlm.internvl_config import read_architecture
from navsim_recogdrive.vlm.prompts import PromptProfile

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
    """

    hidden_size: int
    hidden_length: int
    fingerprint: str


def read_vlm_identity(
    path: str | Path,
    *,
    hidden_length: int = HIDDEN_LENGTH,
    prompt_profile: str | Path = "published",
    max_tiles: int = MAX_TILES,
) -> VLMIdentity:
    """Read a VLM's identity from its files.

    The fingerprint covers the architecture (the keys of ``config.json`` that decide the result), each weight's name,
    dtype, shape and sampled bytes (see :func:`~navsim_recogdrive.vlm.checkpoint_files.content_digest`), the prompt
    profile, the length and the tiling. It is equal for the same checkpoint on another path or machine and in
    another division into shards. It leaves out the compute dtype, the attention kernel and the device, which change
    hidden states only by rounding, and the tokenizer's files, whose vocabulary the prompt profile checks.

    Args:
        path: hub-layout InternVLChat directory.
        hidden_length: rows of a hidden state, padding included.
        prompt_profile: name of a built-in profile or path of a JSON file.
        max_tiles: most tiles of an image, without the thumbnail.

    Raises:
        VLMCheckpointError: if the directory is not a whole, supported checkpoint.
        PromptError: if the profile is unknown or malformed.
    """
    directory = checkpoint_directory(path)
    architecture = read_architecture(directory)
    parts = (
        str(_COMPUTATION),
        architecture.canonical,
        content_digest(stored_tensors(directory)),
        PromptProfile.load(prompt_profile).fingerprint,
        str(hidden_length),
        str(max_tiles),
    )
    fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return VLMIdentity(architecture.hidden_size, hidden_length, fingerprint)
