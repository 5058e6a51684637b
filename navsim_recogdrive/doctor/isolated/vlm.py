"""Step ``vlm``: is a VLM's folder whole and of a kind that this package loads; reads headers, no weights."""

from __future__ import annotations

import math
from typing import Any

from navsim_recogdrive.doctor.isolated.settings import agent_settings, vlm_config
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.checkpoint_files import stored_tensors
from navsim_recogdrive.vlm.hub import checkpoint_directory

_HEAD = "lm_head.weight"  # not loaded where hidden states are all that is wanted


def run(parameters: dict[str, Any], results: dict[str, Any], argument: str) -> dict[str, Any]:
    """Look at a VLM as its first use would, weights excepted.

    Returns:
        ``vlm_type``, ``hidden_size``, ``hidden_length`` (rows of a hidden state), ``parameters`` (count, without the
        language modelling head), ``layers`` and ``intermediate_size`` of the language model.

    Raises:
        VLMCheckpointError: for a folder that is not whole or of another kind.
    """
    config = vlm_config(agent_settings(parameters, results))
    settings = config.settings()
    folder = checkpoint_directory(settings.path, settings.revision)
    architecture = read_architecture(folder, settings.vlm_type)
    tensors = stored_tensors(folder)
    SharedBackbone(config).preparation  # noqa: B018  -- reads the tokenizer, and the prompt in its vocabulary
    text: dict[str, Any] = getattr(architecture, "text", {})
    return {
        "vlm_type": architecture.vlm_type,
        "hidden_size": architecture.hidden_size,
        "hidden_length": settings.length(architecture),
        "parameters": sum(math.prod(one.shape) for name, one in tensors.items() if not name.endswith(_HEAD)),
        "layers": text.get("num_hidden_layers"),
        "intermediate_size": text.get("intermediate_size"),
    }
