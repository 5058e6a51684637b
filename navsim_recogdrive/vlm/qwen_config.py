"""Reads the ``config.json`` of Qwen2.5-VL and Qwen3-VL checkpoints, without transformers.

Only the keys named here are taken over. Whatever would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navsim_recogdrive.observation import InvalidObservation
from navsim_recogdrive.vlm.architecture import ImageTokens, LanguageSizes
from navsim_recogdrive.vlm.config_section import ACTIVATIONS, ConfigSection, read_head_size, read_rope, read_text

FRAMES_PER_PATCH = 2
"""A patch spans two frames of a video; an image is shown twice."""

TILE_PIXELS = 448 * 448
"""``max_tiles`` of Qwen is a number of pixels in this unit."""

_MIN_PIXELS = {"qwen2_5_vl": 56 * 56, "qwen3_vl": 256 * 256}  # of the published preprocessors
_LONGEST_RATIO = 200

_VISION_SIZES = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size", "spatial_merge_size"),
    "out_hidden_size",
)
_LAYERS = {"qwen2_5_vl": "fullatt_block_indexes", "qwen3_vl": "deepstack_visual_indexes"}
_TOKEN_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


@dataclass(frozen=True)
class QwenArchitecture(LanguageSizes):
    """What ``config.json`` says about the model.

    Attributes:
        vlm_type: ``qwen2_5_vl`` or ``qwen3_vl``.
        vision: keyword arguments of transformers' vision configuration.
        text: keyword arguments of transformers' text configuration.
        tied_head: the language modelling head is the embedding matrix, unless the checkpoint stores one.
    """

    vlm_type: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    tied_head: bool = False

    image_tokens = ImageTokens("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")

    @property
    def hidden_size(self) -> int:
        """Width of the language model's hidden states."""
        return int(self.text["hidden_size"])

    @property
    def patch_size(self) -> int:
        """Side of a patch of the vision tower in pixels: 14 (Qwen2.5-VL) or 16 (Qwen3-VL)."""
        return int(self.vision["patch_size"])

    @property
    def merge_size(self) -> int:
        """Patches per side that become one row of the language model: 2."""
        return int(self.vision["spatial_merge_size"])

    @property
    def canonical(self) -> str:
        """The architecture as one line of JSON, for fingerprints."""
        content = {"vlm_type": self.vlm_type, "vision": dict(self.vision), "text": dict(self.text)}
        return json.dumps(content, sort_keys=True)

    def tile_shape(self, width: int, height: int, max_tiles: int) -> tuple[int, int, int]:
        """``(1, h, w)``: the size an image is brought to, near its own in size and aspect ratio.

        Both sides are multiples of a row's patches (28 or 32 pixels); the area is at most ``max_tiles`` times 448 x 448
        pixels, and at least what the published preprocessor asks for.

        Raises:
            ValueError: for sizes that are not positive.
            InvalidObservation: for an image more than 200 times as long as it is wide.
        """
        if min(width, height, max_tiles) < 1:
            raise ValueError(f"width, height and max_tiles must be positive, found {width}, {height}, {max_tiles}")
        if max(width, height) > _LONGEST_RATIO * min(width, height):
            raise InvalidObservation(
                f"an image of {width} x {height} pixels is more than {_LONGEST_RATIO} times longer than wide, which "
                "Qwen's preprocessing does not allow: give the camera's whole image"
            )
        unit = self.patch_size * self.merge_size
        rows, columns = round(height / unit), round(width / unit)
        largest, smallest = max_tiles * TILE_PIXELS, _MIN_PIXELS[self.vlm_type]
        if rows * columns * unit**2 > largest:
            shrink = math.sqrt(height * width / largest)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
        elif rows * columns * unit**2 < smallest:
            grow = math.sqrt(smallest / (height * width))
            rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
        return 1, rows * unit, columns * unit

    def rows_per_tile(self, height: int, width: int) -> int:
        """Rows that an image of this size, see :meth:`tile_shape`, becomes in the language model."""
        unit = self.patch_size * self.merge_size
        return (height // unit) * (width // unit)


def read_qwen(path: Path, config: Mapping[str, Any]) -> QwenArchitecture:
    """Check the ``config.json`` of a Qwen2.5-VL or Qwen3-VL checkpoint.

    Args:
        path: of the file, for error messages.
        config: its content; the language model's keys may lie flat beside ``vision_config``, as in the published
            Qwen2.5-VL, or in a ``text_config``.

    Raises:
        VLMCheckpointError: naming the key, what was expected, and what was found.
    """
    whole = ConfigSection(path, config)
    kind = str(whole.required("model_type"))
    tower = whole.section("vision_config")
    nested = "text_config" in whole or kind != "qwen2_5_vl"
    text = whole.section("text_config") if nested else whole
    tower.expect("model_type", kind, f"{kind}_vision", why="this is another vision tower", absent=kind)
    text.expect("model_type", kind, f"{kind}_text", why="this is another language model", absent=kind)
    for name, expected in _TOKEN_IDS.items():
        whole.expect(name, expected, None, why="the published vocabulary places this token there")

    language = _read_language_model(kind, text)
    vision = _read_vision(kind, tower)
    if vision["out_hidden_size"] != language["hidden_size"]:
        raise tower.wrong(
            "out_hidden_size", f"the language model's hidden_size {language['hidden_size']}", vision["out_hidden_size"]
        )
    if kind == "qwen3_vl" and len(vision["deepstack_visual_indexes"]) > language["num_hidden_layers"]:
        raise tower.wrong(
            "deepstack_visual_indexes",
            f"no longer than the {language['num_hidden_layers']} layers of the language model",
            vision["deepstack_visual_indexes"],
        )
    tied = whole.flag("tie_word_embeddings", absent=text.flag("tie_word_embeddings", absent=False))
    return QwenArchitecture(kind, vision | {"temporal_patch_size": FRAMES_PER_PATCH, "in_channels": 3}, language, tied)


def _read_language_model(kind: str, text: ConfigSection) -> dict[str, Any]:
    language = read_text(text)
    if kind == "qwen3_vl":
        language["head_dim"] = head_size = text.size("head_dim")
        text.expect("attention_bias", False, why="Qwen3-VL's attention has no bias", absent=False)
    else:
        head_size = read_head_size(text, language, "Qwen2.5-VL's")
    theta, rope = read_rope(text, "default", "mrope")
    section = rope.whole_numbers(
        "mrope_section",
        f"three positive whole numbers that add up to half the head size, {head_size / 2:g}",
        lambda parts: len(parts) == 3 and min(parts) > 0 and 2 * sum(parts) == head_size,
    )
    interleaved = kind == "qwen3_vl"
    if (found := rope.get("mrope_interleaved", interleaved)) != interleaved:
        raise rope.wrong("mrope_interleaved", str(interleaved), found)
    language["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, "mrope_section": section}
    if interleaved:
        language["rope_parameters"]["mrope_interleaved"] = True
    return language


def _read_vision(kind: str, tower: ConfigSection) -> dict[str, Any]:
    tower.expect("temporal_patch_size", FRAMES_PER_PATCH, why="a still image is shown twice", absent=FRAMES_PER_PATCH)
    for name in ("in_channels", "in_chans"):
        tower.expect(name, 3, why="images are RGB", absent=3)
    if tower.get("rope_parameters") is not None:
        rope = tower.section("rope_parameters")
        if rope.get("rope_theta", 10000.0) != 10000.0:
            raise tower.wrong("rope_parameters", "of base 10000", tower.get("rope_parameters"))
    vision: dict[str, Any] = tower.sizes(_VISION_SIZES)
    width, heads, depth = vision["hidden_size"], vision["num_heads"], vision["depth"]
    if width % (4 * heads):  # rotated by height and by width, each in pairs
        raise tower.wrong("num_heads", f"a divisor of hidden_size {width} that gives heads of a multiple of 4", heads)
    vision["hidden_act"] = tower.choice("hidden_act", ACTIVATIONS)
    name = _LAYERS[kind]
    vision[name] = tower.whole_numbers(
        name, f"a list of layers below depth {depth}", lambda layers: all(0 <= layer < depth for layer in layers)
    )
    if kind == "qwen2_5_vl":
        vision["window_size"] = window = tower.size("window_size")
        unit = vision["patch_size"] * vision["spatial_merge_size"]
        if window % unit:
            raise tower.wrong("window_size", f"a multiple of patch_size x spatial_merge_size, {unit}", window)
    else:
        vision["num_position_embeddings"] = positions = tower.size("num_position_embeddings")
        if math.isqrt(positions) ** 2 != positions:
            raise tower.wrong("num_position_embeddings", "the area of a square grid", positions)
    return vision
