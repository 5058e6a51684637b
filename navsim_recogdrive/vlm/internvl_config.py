"""Reads the ``config.json`` of a hub-layout InternVLChat checkpoint, without transformers and without remote code.

Only the keys named here are taken over, under the names of transformers' own InternVL and Qwen2 classes. Whatever
would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, read_json

# Name in the hub's configuration -> name in transformers' configuration class.
_VISION_REQUIRED = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "norm_type": "norm_type",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_VISION_OPTIONAL = {
    "num_channels": "num_channels",
    "initializer_factor": "layer_scale_init_value",
    "dropout": "projection_dropout",
    "attention_dropout": "attention_dropout",
}
_TEXT_REQUIRED = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "max_position_embeddings",
    )
}
_TEXT_OPTIONAL = {"attention_dropout": "attention_dropout"}


@dataclass(frozen=True)
class InternVLArchitecture:
    """What ``config.json`` says about the model.

    Attributes:
        vision: keyword arguments of transformers' ``InternVLVisionConfig``.
        text: keyword arguments of transformers' ``Qwen2Config``.
        downsample_ratio: pixel shuffle's factor per side.
        tile_size: side of an image tile in pixels.
        image_tokens_per_tile: rows that one tile becomes in the language model; 256 for tiles of 448 pixels.
        hidden_size: width of the language model's hidden states; 1536 (2B) or 3584 (8B).
        thumbnail: whether a thumbnail follows the tiles of an image.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    downsample_ratio: float
    tile_size: int
    image_tokens_per_tile: int
    hidden_size: int
    thumbnail: bool

    @property
    def canonical(self) -> str:
        """The architecture as one line of JSON, for fingerprints."""
        return json.dumps({**vars(self), "vision": dict(self.vision), "text": dict(self.text)}, sort_keys=True)


def read_architecture(directory: Path) -> InternVLArchitecture:
    """Read and check ``config.json``.

    Raises:
        VLMCheckpointError: naming the key, what was expected, and what was found.
    """
    path = directory / "config.json"
    config = read_json(path)
    _expect(path, config, "model_type", "internvl_chat", "only the hub's InternVLChat layout is read")
    _expect(path, config, "ps_version", "v2", "older pixel shuffles order their rows differently")
    _expect(path, config, "select_layer", -1, "only the vision tower's last layer is supported")
    for flag in ("use_backbone_lora", "use_llm_lora"):
        if config.get(flag):
            raise VLMCheckpointError(
                f"{path}: {flag} is {config[flag]}: the weights hold LoRA adapters; merge them into the model first"
            )
    vision_config, llm_config = _section(path, config, "vision_config"), _section(path, config, "llm_config")
    _expect(path, vision_config, "model_type", "intern_vit_6b", "only InternViT is supported", "vision_config.")
    if vision_config.get("use_moe"):
        raise VLMCheckpointError(f"{path}: vision_config.use_moe is true: mixture-of-experts towers are not supported")
    _check_language_model(path, llm_config)

    vision = _taken(path, vision_config, "vision_config", _VISION_REQUIRED, _VISION_OPTIONAL)
    tile_size = _required(path, config, "force_image_size")
    patch_size = vision["patch_size"]
    if tile_size != vision["image_size"] or tile_size % patch_size:
        raise VLMCheckpointError(
            f"{path}: force_image_size {tile_size}, vision_config.image_size {vision['image_size']} and patch_size "
            f"{patch_size} do not fit: expected equal image sizes that the patch size divides"
        )
    ratio = _required(path, config, "downsample_ratio")
    side = tile_size // patch_size * ratio
    if side != int(side) or 1 / ratio != int(1 / ratio):
        raise VLMCheckpointError(
            f"{path}: downsample_ratio {ratio} does not divide a tile's {tile_size // patch_size} patches per side"
        )
    vision["image_size"] = [tile_size, tile_size]
    vision["patch_size"] = [patch_size, patch_size]

    text = _taken(path, llm_config, "llm_config", _TEXT_REQUIRED, _TEXT_OPTIONAL)
    # Dynamic scaling acts beyond max_position_embeddings only, and prompts that long are refused; the default form
    # gives the same angles without a device synchronisation per forward pass.
    theta = _required(path, llm_config, "rope_theta", "llm_config.")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return InternVLArchitecture(
        vision=vision,
        text=text,
        downsample_ratio=ratio,
        tile_size=tile_size,
        image_tokens_per_tile=int(side) ** 2,
        hidden_size=text["hidden_size"],
        thumbnail=bool(config.get("use_thumbnail", False)),
    )


def _check_language_model(path: Path, llm_config: Mapping[str, Any]) -> None:
    architectures = llm_config.get("architectures")
    if llm_config.get("model_type") != "qwen2" or architectures not in (None, ["Qwen2ForCausalLM"]):
        raise VLMCheckpointError(
            f"{path}: the language model is {llm_config.get('model_type')} {architectures}; only qwen2 "
            "['Qwen2ForCausalLM'] (InternVL3 and the published ReCogDrive VLMs) is supported"
        )
    if llm_config.get("use_sliding_window"):
        raise VLMCheckpointError(f"{path}: llm_config.use_sliding_window is true: only full attention is supported")
    scaling = llm_config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "dynamic"):
        raise VLMCheckpointError(f"{path}: llm_config.rope_scaling is {kind!r}; expected none or 'dynamic'")


def _section(path: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = _required(path, config, name)
    if not isinstance(section, dict):
        raise VLMCheckpointError(f"{path}: {name} must be an object, found {section!r}")
    return section


def _required(path: Path, config: Mapping[str, Any], name: str, prefix: str = "") -> Any:
    if name not in config:
        raise VLMCheckpointError(f"{path}: {prefix}{name} is missing; is this a whole InternVLChat configuration?")
    return config[name]


def _expect(path: Path, config: Mapping[str, Any], name: str, expected: object, why: str, prefix: str = "") -> None:
    if config.get(name) != expected:
        raise VLMCheckpointError(f"{path}: {prefix}{name} must be {expected!r}, found {config.get(name)!r}: {why}")


def _taken(
    path: Path, config: Mapping[str, Any], section: str, required: Mapping[str, str], optional: Mapping[str, str]
) -> dict[str, Any]:
    taken = {native: _required(path, config, name, f"{section}.") for name, native in required.items()}
    return taken | {native: config[name] for name, native in optional.items() if name in config}
