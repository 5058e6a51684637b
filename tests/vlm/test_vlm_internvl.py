from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_internvl import FOLDER, GOLDEN, hidden_states, load, rewrite_weights
from safetensors.torch import load_file, save_file

from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, VLMCheckpointError
from navsim_recogdrive.vlm.internvl import native_names

PADDING = int((GOLDEN["padded_attention_mask"] == 0).sum())
"""Rows in front of the golden prompt."""


@pytest.fixture
def rows(monkeypatch):
    """Content rows of the golden prompt, through the backbone with its key/value prefix."""
    return lambda family: hidden_states(family, monkeypatch)[PADDING:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_content_rows_equal_the_original_code(rows, attention):
    found = rows(load(FOLDER, attention=attention))
    for form in ("eager", "sdpa", "flash_attention_2"):
        np.testing.assert_allclose(found.numpy(), GOLDEN[f"unpadded_{form}"], rtol=0, atol=2e-5)


def test_padding_in_front_equals_the_original_with_flash_attention(monkeypatch):
    found = hidden_states(load(FOLDER), monkeypatch)
    assert PADDING > 0
    np.testing.assert_allclose(found.numpy(), GOLDEN["padded_flash_attention_2"], rtol=0, atol=2e-5)


def test_bfloat16_stays_within_its_rounding_of_float32(rows):
    family = load(FOLDER, dtype=torch.bfloat16)
    found = rows(family)
    assert found.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in family.model.parameters()} == {torch.bfloat16}
    assert family.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % per operation, values here are up to 4.
    np.testing.assert_allclose(found.float().numpy(), GOLDEN["unpadded_sdpa"], rtol=0, atol=0.08)


def test_the_head_gives_the_original_logits_and_leaves_hidden_states_alone(rows):
    family = load(FOLDER, with_head=True)
    found = rows(family)
    np.testing.assert_allclose(found.numpy(), GOLDEN["unpadded_sdpa"], rtol=0, atol=2e-5)
    logits = family.generator.lm_head(found[-4:]).detach().numpy()
    np.testing.assert_allclose(logits, GOLDEN["logits_last4_eager"], rtol=0, atol=2e-5)
    assert load(FOLDER).generator is None


def test_hidden_states_carry_no_graph_and_parameters_need_no_gradient(rows):
    family = load(FOLDER)
    found = rows(family)
    assert not found.requires_grad
    assert not found.is_inference()  # a planner may save it for its own backward pass
    assert not any(parameter.requires_grad for parameter in family.model.parameters())
    assert not family.model.training


def test_sharded_weights_load_like_a_single_file(golden_checkpoint, rows):
    expected = rows(load(golden_checkpoint))
    weights = load_file(golden_checkpoint / "model.safetensors")
    (golden_checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in names if weight_map[name] == file}, golden_checkpoint / file)
    (golden_checkpoint / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(rows(load(golden_checkpoint)), expected)


def test_a_checkpoint_without_language_modelling_head_loads(golden_checkpoint, rows):
    expected = rows(load(golden_checkpoint))
    rewrite_weights(golden_checkpoint, lambda weights: weights.pop("language_model.lm_head.weight"))
    assert torch.equal(rows(load(golden_checkpoint)), expected)
    with pytest.raises(VLMCheckpointError, match=r"missing weights .* lm_head.weight; download"):
        load(golden_checkpoint, with_head=True)


@pytest.mark.parametrize(
    ("stored", "native"),
    [
        ("mlp1.3.bias", "multi_modal_projector.linear_2.bias"),
        ("vision_model.encoder.layers.1.attn.qkv.weight", "vision_tower.encoder.layer.1.attention.q_proj.weight"),
        ("vision_model.embeddings.class_embedding", "vision_tower.embeddings.cls_token"),
        ("language_model.model.layers.0.self_attn.k_proj.bias", "language_model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_a_missing_weight_is_named(golden_checkpoint, stored, native):
    rewrite_weights(golden_checkpoint, lambda weights: weights.pop(stored))
    with pytest.raises(VLMCheckpointError, match="missing weights") as error:
        load(golden_checkpoint)
    assert native in str(error.value)


@pytest.mark.parametrize(
    "name", ["language_model.base_model.model.lora_A.weight", "mlp1.2.weight", "vision_model.encoder.layers.2.ls1"]
)
def test_an_unexpected_weight_is_named(golden_checkpoint, name):
    rewrite_weights(golden_checkpoint, lambda weights: weights.update({name: torch.zeros(2)}))
    with pytest.raises(VLMCheckpointError, match="no place for") as error:
        load(golden_checkpoint)
    assert name in str(error.value)


def test_all_weights_of_another_shape_are_named_with_both_shapes_beside_missing_ones(golden_checkpoint):
    fused, projector, lost = "vision_model.encoder.layers.0.attn.qkv.weight", "mlp1.0.bias", "mlp1.3.bias"

    def damage(weights):
        weights.update({fused: torch.zeros(48, 32), projector: torch.zeros(2, 3)})
        del weights[lost]

    expected = list(load_file(FOLDER / "model.safetensors")[projector].shape)
    rewrite_weights(golden_checkpoint, damage)
    with pytest.raises(VLMCheckpointError) as error:
        load(golden_checkpoint)
    assert f"{fused} [48, 32] (config.json asks for [96, 32])" in str(error.value)
    assert f"{projector} [2, 3] (config.json asks for {expected})" in str(error.value)
    assert "missing weights (by their names in transformers): multi_modal_projector.linear_2.bias;" in str(error.value)


def test_query_and_key_norms_of_larger_towers_are_loaded(edit_config):
    folder = edit_config("vision_config.qk_normalization", True)
    norms = {
        f"vision_model.encoder.layers.{layer}.attn.{part}_norm.weight": torch.full((32,), 1.0 + layer)
        for layer in range(2)
        for part in "qk"
    }
    rewrite_weights(folder, lambda weights: weights.update(norms))
    model = load(folder).model
    assert torch.equal(model.vision_tower.encoder.layer[1].attention.k_norm.weight, torch.full((32,), 2.0))


def test_fused_attention_weights_fill_query_key_and_value_in_this_order():
    prefix = "vision_tower.encoder.layer.7.attention"
    assert native_names("vision_model.encoder.layers.7.attn.qkv.bias") == (
        f"{prefix}.q_proj.bias",
        f"{prefix}.k_proj.bias",
        f"{prefix}.v_proj.bias",
    )


def test_an_unknown_attention_kernel_is_refused():
    with pytest.raises(ValueError, match=r"attention must be one of .*found 'flash'"):
        load(FOLDER, attention="flash")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "qwen2_vl", "model_type must be internvl_chat .* qwen2_5_vl or qwen3_vl, found 'qwen2_vl'"),
        ("ps_version", "v1", "ps_version must be 'v2', found 'v1'"),
        ("select_layer", -2, "select_layer must be -1, found -2"),
        ("use_llm_lora", 16, "use_llm_lora is 16"),
        ("use_backbone_lora", 8, "use_backbone_lora is 8"),
        ("llm_config.architectures", ["InternLM2ForCausalLM"], "the language model is qwen2.*InternLM2ForCausalLM"),
        ("llm_config.model_type", "llama", "the language model is llama"),
        ("llm_config.use_sliding_window", True, "llm_config.use_sliding_window must be False or None, found True"),
        (
            "llm_config.rope_scaling",
            {"type": "yarn", "factor": 4},
            "rope_scaling must be of type 'default' or 'dynamic', found 'yarn'",
        ),
        ("llm_config.rope_theta", None, "llm_config.rope_theta is missing"),
        ("llm_config", None, "llm_config is missing"),
        ("vision_config", 3, "vision_config must be an object, found 3"),
        ("vision_config.qkv_bias", None, "vision_config.qkv_bias is missing"),
        ("vision_config.model_type", "siglip", "vision_config.model_type must be 'intern_vit_6b', found 'siglip'"),
        ("vision_config.use_moe", True, "vision_config.use_moe must be False or None, found True"),
        ("vision_config.num_channels", 1, "vision_config.num_channels must be 3, found 1: images are RGB"),
        ("vision_config.hidden_size", "32", "vision_config.hidden_size must be a positive integer, found '32'"),
        ("vision_config.patch_size", 13, "patch_size 13 does not divide the image size 56"),
        ("llm_config.hidden_size", 0, "llm_config.hidden_size must be a positive integer, found 0"),
        ("llm_config.head_dim", 32, "llm_config.head_dim must be 16 or None, found 32"),
        ("llm_config.layer_types", ["sliding_attention"] * 2, "layer_types holds sliding_attention"),
        ("force_image_size", 448, "force_image_size 448 and vision_config.image_size 56 do not fit"),
        ("downsample_ratio", 0.3, "downsample_ratio 0.3 does not divide"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(edit_config, key, value, message):
    with pytest.raises(VLMCheckpointError, match=message) as error:
        read_architecture(edit_config(key, value))
    assert "config.json" in str(error.value)


def test_rotary_settings_that_are_not_known_are_refused(edit_config):
    scaling = {"type": "dynamic", "factor": 2, "partial_rotary_factor": 0.5}
    with pytest.raises(VLMCheckpointError, match=r"rope_scaling must be without \['partial_rotary_factor'\]"):
        read_architecture(edit_config("llm_config.rope_scaling", scaling))


def test_another_kind_than_asked_for_is_refused():
    assert read_architecture(FOLDER, "internvl").vlm_type == "internvl"
    with pytest.raises(VLMCheckpointError, match="this is a internvl checkpoint .*vlm_type=qwen3_vl was asked for"):
        read_architecture(FOLDER, "qwen3_vl")


def test_attention_kernel_and_code_references_of_the_file_are_not_taken_over(edit_config):
    model = load(edit_config("llm_config._attn_implementation", "flash_attention_2")).model
    eager = load(FOLDER, attention="eager").model
    for part in ("text_config", "vision_config"):
        asked = getattr(model.config, part)._attn_implementation
        assert "sdpa" in asked
        assert getattr(eager.config, part)._attn_implementation == "eager" != asked
    assert not hasattr(model.config, "auto_map")
