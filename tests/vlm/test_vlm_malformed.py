"""Malformed values in a checkpoint's JSON: each is one error that names file, key, expected and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_internvl import FOLDER
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2Model
from transformers.activations import ACT2FN
from vlm_golden import formula_image, scene

from navsim_recogdrive.observation import InvalidObservation
from navsim_recogdrive.vlm import VLMCheckpointError, load_backbone, write_tiny_checkpoint
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, read_json, stored_tensors
from navsim_recogdrive.vlm.config_section import ACTIVATIONS
from navsim_recogdrive.vlm.tiny_internvl import hub_config, native_config
from navsim_recogdrive.vlm.tiny_qwen import CONFIGS
from navsim_recogdrive.vlm.weights import Blueprint, build_model

VISION, TEXT = "vision_config", "llm_config"
HUB = [
    *(("downsample_ratio", value, "a number above 0 and of at most 1") for value in (0, "0.5", None, [0.5], -0.5, 2)),
    ("downsample_ratio", 10**400, "a number above 0 and of at most 1"),
    ("use_thumbnail", "false", "true or false"),
    (f"{VISION}.hidden_act", "foo", "one of gelu, "),
    (f"{VISION}.hidden_act", ["gelu"], "one of gelu, "),
    (f"{VISION}.norm_type", "foo", "one of layer_norm, rms_norm"),
    *((f"{VISION}.layer_norm_eps", value, "a number above 0 and below 1") for value in ("1e-6", None, 0, 1, True)),
    (f"{VISION}.layer_norm_eps", float("nan"), "a number above 0 and below 1"),
    *((f"{VISION}.qkv_bias", value, "true or false") for value in ("yes", 1, None)),
    (f"{VISION}.qk_normalization", "no", "true or false"),
    (f"{VISION}.num_attention_heads", 7, "a divisor of hidden_size 32"),
    (f"{VISION}.initializer_factor", "0.1", "a finite number"),
    (f"{VISION}.dropout", 1.5, "a number of at least 0 and below 1"),
    (f"{TEXT}.hidden_act", "foo", "one of gelu, "),
    *((f"{TEXT}.rms_norm_eps", value, "a number above 0 and below 1") for value in ("1e-6", None, [], -1e-6)),
    *((f"{TEXT}.rope_theta", value, "a positive number") for value in ("1e6", None, 0, True, float("inf"))),
    *((f"{TEXT}.rope_scaling", value, "an object") for value in ([2.0], "dynamic", 2.0)),
    *((f"{TEXT}.rope_parameters", value, "an object") for value in ([2.0], "dynamic")),
    *((f"{TEXT}.layer_types", value, "a list of 'full_attention'") for value in (5, "full_attention", [None])),
    (f"{TEXT}.num_attention_heads", 3, "a divisor of hidden_size 32"),
    (f"{TEXT}.num_key_value_heads", 4, "a divisor of num_attention_heads 2"),
    (f"{TEXT}.attention_dropout", "0", "a number of at least 0 and below 1"),
    (f"{TEXT}.tie_word_embeddings", "false", "true or false"),
]
NATIVE = [
    *(("downsample_ratio", value, "a number above 0 and of at most 1") for value in (0, None)),
    *((f"{VISION}.image_size", value, "the positive side of a square") for value in ([[56], [56]], True, [True, True])),
    (f"{VISION}.attention_bias", 1, "true or false"),
    (f"{VISION}.hidden_dropout_prob", None, "a number of at least 0 and below 1"),
    ("tie_word_embeddings", 0, "true or false"),
]
QWEN = [
    (f"{VISION}.hidden_act", "foo", "one of gelu, "),
    (f"{VISION}.num_heads", 7, "a divisor of hidden_size 32 that gives heads of a multiple of 4"),
    (f"{VISION}.num_heads", 16, "a divisor of hidden_size 32 that gives heads of a multiple of 4"),
    (f"{VISION}.rope_parameters", [1], "an object"),
    ("tie_word_embeddings", 0, "true or false"),
]
QWEN2_5 = [
    *((f"{VISION}.window_size", value, "a multiple of patch_size x spatial_merge_size, 28") for value in (13, 30)),
    (f"{VISION}.window_size", "112", "a positive integer"),
    (f"{VISION}.fullatt_block_indexes", [True], "a list of layers below depth 2"),
    ("rope_theta", "1e6", "a positive number"),
    ("rope_scaling", ["mrope"], "an object"),
    ("num_attention_heads", 3, "a divisor of hidden_size 32"),
    *(
        ("rope_scaling.mrope_section", value, "three positive whole numbers that add up to half the head size, 8")
        for value in (["a", 2, 3], [2.0, 3, 3], [-1, 4, 5], 8)
    ),
]
QWEN3 = [
    (f"{VISION}.num_position_embeddings", 2305, "the area of a square grid"),
    (f"{VISION}.deepstack_visual_indexes", "0", "a list of layers below depth 2"),
    ("text_config.head_dim", None, "a positive integer"),
]
CASES = [
    *(("internvl_chat", *case) for case in HUB),
    *(("internvl_hf", *case) for case in NATIVE),
    *((layout, *case) for layout in CONFIGS for case in QWEN),
    *(("qwen2_5_vl", *case) for case in QWEN2_5),
    *(("qwen3_vl", *case) for case in QWEN3),
]


def config_of(layout: str) -> dict[str, Any]:
    if layout in CONFIGS:
        return CONFIGS[layout](32, 2, 32, 512)
    config = hub_config(32, 2, 32, 56, 512)
    return config if layout == "internvl_chat" else native_config(config)


def write_config(folder: Path, layout: str, key: str = "", value: object = None) -> Path:
    config = config_of(layout)
    section, (*parts, name) = config, key.split(".")
    for part in parts:
        section = section[part]
    if key:
        section[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layout", ["internvl_chat", "internvl_hf", *CONFIGS])
def test_the_configurations_themselves_are_read(tmp_path, layout):
    assert read_architecture(write_config(tmp_path, layout)).hidden_size == 32


@pytest.mark.parametrize(("layout", "key", "value", "expected"), CASES)
def test_a_malformed_value_is_one_error_naming_file_key_expected_and_found(tmp_path, layout, key, value, expected):
    with pytest.raises(VLMCheckpointError) as error:
        read_architecture(write_config(tmp_path, layout, key, value))
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert f"{key} must be {expected}" in message
    assert f"found {value!r}"[:80] in message


def test_null_and_absent_rotary_scaling_are_the_default(tmp_path):
    found = [
        read_architecture(write_config(tmp_path, "internvl_chat", f"{TEXT}.{name}", value))
        for name, value in [("rope_scaling", None), ("rope_scaling", {}), ("layer_types", ["full_attention"] * 2)]
    ]
    assert found[0] == found[1] == found[2]


def test_every_activation_is_known_to_transformers():
    assert all(name in ACT2FN for name in ACTIVATIONS)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 200_000, '{"a": \xff}'])
def test_json_that_python_does_not_read_is_an_error_of_the_checkpoint(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(VLMCheckpointError, match=r"config.json is not valid JSON"):
        read_json(tmp_path / "config.json")


def test_a_directory_in_place_of_a_file_is_an_error_of_the_checkpoint(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(VLMCheckpointError, match=r"config.json cannot be read: Is a directory"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("file", [1, ["x"], None, "", "x.bin", "../x.safetensors", "part/x.safetensors"])
def test_an_index_that_names_no_file_is_refused(tmp_path, file):
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(VLMCheckpointError) as error:
        stored_tensors(tmp_path)
    expected = f"{INDEX_FILE}: weight_map.a must be the name of a .safetensors file beside the index, found {file!r}"
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [-2, -1]}, "weight.shape must be a list of whole numbers of at least 0, found [-2, -1]"),
        ({"shape": "2"}, "weight.shape must be a list of whole numbers of at least 0, found '2'"),
        ({"shape": [2.0]}, "weight.shape must be a list of whole numbers of at least 0, found [2.0]"),
        ({"data_offsets": [0, 8, 8]}, "weight.data_offsets must be two whole numbers of at least 0, found [0, 8, 8]"),
        ({"data_offsets": None}, "weight.data_offsets must be two whole numbers of at least 0, found None"),
        ({"dtype": 32}, "weight.dtype must be a string, found 32"),
    ],
)
def test_a_malformed_header_entry_is_named(tmp_path, entry, message):
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(VLMCheckpointError) as error:
        stored_tensors(tmp_path)
    assert str(error.value) == f"{file} has a damaged safetensors header: {message}; download it again"


@pytest.mark.parametrize("header", [b"[]", b'{"weight": 3}', b"[" * 100_000])
def test_a_header_of_another_kind_is_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(VLMCheckpointError, match=r"model.safetensors has a damaged safetensors header"):
        stored_tensors(tmp_path)


def test_what_transformers_has_against_a_configuration_is_an_error_of_the_checkpoint():
    config = Qwen2Config(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, hidden_act="foo")
    placement = {"dtype": torch.float32, "device": torch.device("cpu"), "attention": "sdpa"}
    with pytest.raises(VLMCheckpointError, match=r"config.json: transformers' Qwen2Model .*KeyError: 'foo'"):
        build_model(Blueprint(Qwen2Model, config, lambda stored: (stored,)), FOLDER, {}, **placement)


def test_an_image_too_long_for_qwen_is_an_invalid_observation(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "vlm", layout="qwen2_5_vl", hidden_size=32, num_layers=1)
    backbone = load_backbone(folder)
    with pytest.raises(InvalidObservation, match="an image of 603 x 3 pixels is more than 200 times longer than wide"):
        backbone.prepare(scene(formula_image(603, 3)))
