"""Hub-layout InternVLChat weights in transformers' own InternVL model, and the two computations on it.

The model is built empty on its device and each stored tensor is copied straight into place, so the peak is about one
model. The language modelling head is left out: over 2800 rows it would cost more than a tenth of the whole forward
pass and 1.7 GB (2B), and hidden states do not need it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModel, InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config

from navsim_recogdrive.vlm.checkpoint_files import StoredTensor, VLMCheckpointError, shortened
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture

ATTENTION_KERNELS = ("sdpa", "flash_attention_2", "eager")

_LM_HEAD = "language_model.lm_head.weight"
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
)
_FUSED = re.compile(r"^(vision_tower\.encoder\.layer\.\d+\.attention\.)qkv\.(weight|bias)$")


def load_internvl(
    directory: Path,
    architecture: InternVLArchitecture,
    tensors: dict[str, StoredTensor],
    *,
    image_token_id: int,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "sdpa",
) -> InternVLModel:
    """Build the model and stream the weights into it.

    Args:
        directory: the checkpoint, for error messages.
        architecture: from :func:`~navsim_recogdrive.vlm.internvl_config.read_architecture`.
        tensors: from :func:`~navsim_recogdrive.vlm.checkpoint_files.stored_tensors`.
        image_token_id: id of the token that stands for one row of an image; 151667 in published checkpoints.
        dtype: dtype of the parameters.
        device: where the model is built.
        attention: one of :data:`ATTENTION_KERNELS`.

    Returns:
        The model in evaluation mode, its parameters not requiring gradients.

    Raises:
        VLMCheckpointError: naming every missing or unexpected weight, or one of another shape than the configuration's.
        ValueError: for an unknown attention kernel.
    """
    if attention not in ATTENTION_KERNELS:
        raise ValueError(f"attention must be one of {ATTENTION_KERNELS}, found {attention!r}")
    with torch.device("meta"):
        model = AutoModel.from_config(
            _native_config(architecture, image_token_id), attn_implementation=attention, dtype=dtype
        )
    model.requires_grad_(False).eval()
    sources = _sources(directory, model.state_dict(), tensors)
    model.to_empty(device=device)
    _rebuild_rotary(model, device)

    destinations = model.state_dict()  # shares the parameters' memory
    for file, names in _by_file(tensors):
        with safe_open(file, framework="pt", device="cpu") as stream:
            for name in names:
                natives = sources.get(name, ())
                parts = stream.get_tensor(name).chunk(len(natives)) if natives else ()
                for native, part in zip(natives, parts, strict=True):
                    destinations[native].copy_(part)
    return model


def content_rows(model: InternVLModel, token_ids: Tensor, pixels: Tensor) -> Tensor:
    """Last hidden states of one scene, after the final norm, without padding.

    Args:
        model: from :func:`load_internvl`.
        token_ids: ``[S]`` int64 on the model's device.
        pixels: ``[T, 3, tile, tile]`` normalised tiles on the model's device.

    Returns:
        ``[S, hidden_size]`` in the model's dtype.
    """
    with torch.no_grad():
        output = model(input_ids=token_ids[None], pixel_values=pixels.to(model.dtype), use_cache=False)
    return output.last_hidden_state[0]


def padding_row(model: InternVLModel, pad_token_id: int) -> Tensor:
    """The hidden state of every left-padded row, ``[hidden_size]``: one constant vector per checkpoint.

    The published pipeline pads to a fixed length and its planners average over the padding. With flash attention a
    padded row attends to nothing, so its attention output is zero and only the feed-forward path acts on the
    embedding of the pad token. Computed that way here, because what other kernels return for rows that attend to
    nothing depends on kernel and version.
    """
    language_model = model.language_model
    with torch.no_grad():
        hidden = language_model.embed_tokens.weight[pad_token_id][None, None]
        for layer in language_model.layers:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return language_model.norm(hidden)[0, 0]


def native_names(stored: str) -> tuple[str, ...]:
    """The parameters that a stored tensor fills: one, or query, key and value for a fused one (chunked along dim 0)."""
    name = stored
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if fused := _FUSED.match(name):
        return tuple(f"{fused[1]}{part}_proj.{fused[2]}" for part in "qkv")
    return (name,)


def _native_config(architecture: InternVLArchitecture, image_token_id: int) -> InternVLConfig:
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**architecture.vision),
        text_config=Qwen2Config(**architecture.text, tie_word_embeddings=False),
        image_token_id=image_token_id,
        image_seq_length=architecture.image_tokens_per_tile,
        downsample_ratio=architecture.downsample_ratio,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _sources(
    directory: Path, parameters: dict[str, Tensor], tensors: dict[str, StoredTensor]
) -> dict[str, tuple[str, ...]]:
    """Match stored names with parameters, before a byte of data is read."""
    sources = {stored: native_names(stored) for stored in tensors if stored != _LM_HEAD}
    if unexpected := [stored for stored, names in sources.items() if not set(names) <= parameters.keys()]:
        raise VLMCheckpointError(
            f"{directory}: weights that config.json has no place for: {shortened(unexpected)}; config.json and the "
            "weights are of different checkpoints"
        )
    filled = {native for names in sources.values() for native in names}
    if missing := [native for native in parameters if native not in filled]:
        raise VLMCheckpointError(
            f"{directory}: missing weights (by their names in transformers): {shortened(missing)}; download the "
            "checkpoint again"
        )
    for stored, names in sources.items():
        shape = parameters[names[0]].shape
        expected = (shape[0] * len(names), *shape[1:])
        if tensors[stored].shape != expected:
            raise VLMCheckpointError(
                f"{directory}: {stored} has shape {list(tensors[stored].shape)}, config.json asks for {list(expected)}"
            )
    return sources


def _rebuild_rotary(model: InternVLModel, device: torch.device) -> None:
    """Compute the rotary frequencies anew, in float32: they are buffers without stored values."""
    language_model = model.language_model
    language_model.rotary_emb = type(language_model.rotary_emb)(config=language_model.config).to(device)
    others = [name for name, _ in model.named_buffers() if not name.startswith("language_model.rotary_emb.")]
    if others:
        raise RuntimeError(f"this transformers version keeps buffers that no checkpoint fills: {shortened(others)}")


def _by_file(tensors: dict[str, StoredTensor]) -> Iterator[tuple[Path, list[str]]]:
    files = dict.fromkeys(tensor.file for tensor in tensors.values())
    for file in files:
        yield file, [name for name, tensor in tensors.items() if tensor.file == file]
