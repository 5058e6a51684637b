"""Reads the ``config.json`` of InternVL checkpoints, without transformers and without remote code.

Only the keys named here are taken over, under the names of transformers' own InternVL and Qwen2 classes. Whatever
would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navsim_recogdrive.vlm.architecture import ImageTokens, LanguageSizes
from navsim_recogdrive.vlm.config_section import ACTIVATIONS, ConfigSection, read_head_size, read_rope, read_text
from navsim_recogdrive.vlm.tile_grid import tile_grid

_VISION_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# Name in transformers' configuration class -> name in the hub's configuration.
_HUB_VISION = {
    "attention_bias": "qkv_bias",
    "use_qk_norm": "qk_normalization",
    "layer_scale_init_value": "initializer_factor",
    "projection_dropout": "dropout",
    "attention_dropout": "attention_dropout",
}
_NATIVE_VISION = {name: name for name in (*_HUB_VISION, "hidden_dropout_prob")}


@dataclass(frozen=True)
class InternVLArchitecture(LanguageSizes):
    """What ``config.json`` says about the model.

    Attributes:
        vision: keyword arguments of transformers' ``InternVLVisionConfig``.
        text: keyword arguments of transformers' ``Qwen2Config``.
        downsample_ratio: pixel shuffle's factor per side.
        tile_size: side of an image tile in pixels.
        image_tokens_per_tile: rows that one tile becomes in the language model; 256 for tiles of 448 pixels.
        hidden_size: width of the language model's hidden states; 1536 (2B) or 3584 (8B).
        thumbnail: whether a thumbnail follows the tiles of an image.
        tied_head: the language modelling head is the embedding matrix, unless the checkpoint stores one.
    """

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    downsample_ratio: float
    tile_size: int
    image_tokens_per_tile: int
    hidden_size: int
    thumbnail: bool
    tied_head: bool = False

    vlm_type = "internvl"
    image_tokens = ImageTokens("<img>", "<IMG_CONTEXT>", "</img>")

    @property
    def canonical(self) -> str:
        """The architecture as one line of JSON, for fingerprints."""
        content = {**vars(self), "vision": dict(self.vision), "text": dict(self.text)}
        del content["tied_head"]  # no part of the hidden states
        return json.dumps(content, sort_keys=True)

    def tile_shape(self, width: int, height: int, max_tiles: int) -> tuple[int, int, int]:
        """``(T, tile_size, tile_size)`` for an image of ``width`` x ``height`` pixels, the thumbnail counted."""
        columns, rows = tile_grid(width, height, self.tile_size, max_tiles)
        count = columns * rows
        return count + (self.thumbnail and count > 1), self.tile_size, self.tile_size

    def rows_per_tile(self, height: int, width: int) -> int:
        """:attr:`image_tokens_per_tile`; all tiles are of one size.

        Raises:
            ValueError: for tiles of another size.
        """
        if (height, width) != (self.tile_size, self.tile_size):
            raise ValueError(
                f"tiles of this checkpoint are {self.tile_size} x {self.tile_size} pixels, found {height} x {width}"
            )
        return self.image_tokens_per_tile


def read_hub_internvl(path: Path, config: Mapping[str, Any]) -> InternVLArchitecture:
    """Check the ``config.json`` of the hub's InternVLChat layout.

    Args:
        path: of the file, for error messages.
        config: its content.

    Raises:
        VLMCheckpointError: naming the key, what was expected, and what was found.
    """
    whole = ConfigSection(path, config)
    whole.expect("ps_version", "v2", why="older pixel shuffles order their rows differently")
    whole.expect("select_layer", -1, why="only the vision tower's last layer is supported")
    for flag in ("use_backbone_lora", "use_llm_lora"):
        if whole.get(flag):
            raise whole.error(
                f"{flag} is {whole.get(flag)}: the weights hold LoRA adapters; merge them into the model first"
            )
    tower, llm = whole.section("vision_config"), whole.section("llm_config")
    tower.expect("model_type", "intern_vit_6b", why="only InternViT is supported")
    tower.expect("use_moe", False, None, why="mixture-of-experts towers are not supported")
    _check_language_model(whole, llm)
    vision = _read_vision(tower, _HUB_VISION)
    tile_size, image_size = whole.size("force_image_size"), tower.size("image_size")
    if tile_size != image_size:
        raise whole.error(
            f"force_image_size {tile_size} and vision_config.image_size {image_size} do not fit: they must be equal"
        )
    return _architecture(
        whole,
        tower,
        llm,
        vision,
        tile_size=tile_size,
        patch_size=tower.size("patch_size"),
        ratio=_ratio(whole),
        thumbnail=whole.flag("use_thumbnail", absent=False),
        tied_head=llm.flag("tie_word_embeddings", absent=False),
    )


def read_native_internvl(path: Path, config: Mapping[str, Any]) -> InternVLArchitecture:
    """Check the ``config.json`` of transformers' own InternVL layout (published repositories named ``...-hf``).

    Images are cut as in the hub layout: such a repository's processor takes 1 to 12 tiles and a thumbnail.

    Args:
        path: of the file, for error messages.
        config: its content.

    Raises:
        VLMCheckpointError: naming the key, what was expected, and what was found.
    """
    whole = ConfigSection(path, config)
    whole.expect("projector_hidden_act", "gelu", why="only the published projector is supported", absent="gelu")
    whole.expect("vision_feature_layer", -1, why="only the vision tower's last layer is supported", absent=-1)
    whole.expect("vision_feature_select_strategy", "default", why="the class token is no image row", absent="default")
    tower, text = whole.section("vision_config"), whole.section("text_config")
    tower.expect("model_type", "internvl_vision", why="only InternViT is supported")
    tower.expect("use_mask_token", False, why="mask tokens are for pretraining", absent=False)
    tower.expect("use_absolute_position_embeddings", True, why="InternViT has them", absent=True)
    tower.expect("use_mean_pooling", True, why="InternViT has no norm behind its last layer", absent=True)
    _check_language_model(whole, text)
    vision = _read_vision(tower, _NATIVE_VISION)
    architecture = _architecture(
        whole,
        tower,
        text,
        vision,
        tile_size=_side(tower, "image_size"),
        patch_size=_side(tower, "patch_size"),
        ratio=_ratio(whole) if "downsample_ratio" in whole else 0.5,
        thumbnail=True,
        # Both of transformers' versions tie by default, and use a stored head all the same.
        tied_head=whole.flag("tie_word_embeddings", absent=text.flag("tie_word_embeddings", absent=True)),
    )
    rows = architecture.image_tokens_per_tile
    whole.expect("image_seq_length", rows, why="a tile's patches and downsample_ratio give that many", absent=rows)
    return architecture


def _architecture(
    whole: ConfigSection,
    tower: ConfigSection,
    llm: ConfigSection,
    vision: dict[str, Any],
    *,
    tile_size: int,
    patch_size: int,
    ratio: float,
    thumbnail: bool,
    tied_head: bool,
) -> InternVLArchitecture:
    """What both layouts say, checked."""
    if tile_size % patch_size:
        raise tower.error(f"patch_size {patch_size} does not divide the image size {tile_size}")
    side = tile_size // patch_size * ratio
    if side != int(side) or 1 / ratio != int(1 / ratio):
        raise whole.error(
            f"downsample_ratio {ratio} does not divide a tile's {tile_size // patch_size} patches per side"
        )
    vision["image_size"] = [tile_size, tile_size]
    vision["patch_size"] = [patch_size, patch_size]

    text = read_text(llm)
    read_head_size(llm, text, "Qwen2's")
    # Dynamic scaling acts beyond max_position_embeddings only, and prompts that long are refused; the default form
    # gives the same angles without a device synchronisation per forward pass.
    theta, _ = read_rope(llm, "default", "dynamic")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return InternVLArchitecture(
        vision=vision,
        text=text,
        downsample_ratio=ratio,
        tile_size=tile_size,
        image_tokens_per_tile=int(side) ** 2,
        hidden_size=text["hidden_size"],
        thumbnail=thumbnail,
        tied_head=tied_head,
    )


def _check_language_model(whole: ConfigSection, llm: ConfigSection) -> None:
    kind, architectures = llm.get("model_type"), llm.get("architectures")
    if kind != "qwen2" or architectures not in (None, ["Qwen2ForCausalLM"]):
        raise whole.error(
            f"the language model is {kind} {architectures}; only qwen2 ['Qwen2ForCausalLM'] (InternVL3 and the "
            "published ReCogDrive VLMs) is supported"
        )


def _read_vision(tower: ConfigSection, names: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of transformers' vision configuration but for the sizes of image and patch.

    Args:
        tower: the vision tower's section.
        names: by transformers' name, the layout's name of each key that the layouts name differently or may leave out.
    """
    tower.expect("num_channels", 3, why="images are RGB", absent=3)
    vision: dict[str, Any] = tower.sizes(_VISION_SIZES)
    tower.divides("num_attention_heads", vision["num_attention_heads"], "hidden_size", vision["hidden_size"])
    vision["norm_type"] = tower.choice("norm_type", ("layer_norm", "rms_norm"))
    vision["hidden_act"] = tower.choice("hidden_act", ACTIVATIONS)
    vision["layer_norm_eps"] = tower.epsilon("layer_norm_eps")
    if "num_channels" in tower:
        vision["num_channels"] = 3
    for name, here in names.items():
        if name in ("attention_bias", "use_qk_norm"):
            vision[name] = tower.flag(here)
        elif here in tower and name == "layer_scale_init_value":
            vision[name] = float(tower.number(here))
        elif here in tower:
            vision[name] = tower.dropout(here)
    return vision


def _ratio(whole: ConfigSection) -> float:
    """Factor of the pixel shuffle per side."""
    expected = "a number above 0 and of at most 1"
    return float(whole.number("downsample_ratio", expected, lambda ratio: 0 < ratio <= 1))


def _side(tower: ConfigSection, name: str) -> int:
    """Side of a square that is given as one number or as two."""
    value = tower.required(name)
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    side = sides[0]
    if any(type(one) is not int for one in sides) or side < 1 or side != sides[1]:
        raise tower.wrong(name, "the positive side of a square", value)
    return int(side)
