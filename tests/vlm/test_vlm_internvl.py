from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vlm_golden import DATA

from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, VLMCheckpointError, stored_tensors
from navsim_recogdrive.vlm.internvl import content_rows, load_internvl, native_names, padding_row
from navsim_recogdrive.vlm.internvl_config import read_architecture

GOLDEN = np.load(DATA / "tiny_internvl_chat" / "golden.npz")


def load(folder, *, dtype=torch.float32, attention="sdpa"):
    return load_internvl(
        folder,
        read_architecture(folder),
        stored_tensors(folder),
        image_token_id=int(GOLDEN["image_token_id"]),
        dtype=dtype,
        device=torch.device("cpu"),
        attention=attention,
    )


def rows(model):
    return content_rows(model, torch.from_numpy(GOLDEN["input_ids"][0]), torch.from_numpy(GOLDEN["pixel_values"]))


def rewrite_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_content_rows_equal_the_original_code(attention):
    found = rows(load(DATA / "tiny_internvl_chat", attention=attention))
    for form in ("eager", "sdpa", "flash_attention_2"):
        np.testing.assert_allclose(found.numpy(), GOLDEN[f"unpadded_{form}"], rtol=0, atol=2e-5)


def test_padding_in_front_equals_the_original_with_flash_attention():
    model = load(DATA / "tiny_internvl_chat")
    content = rows(model)
    padded = GOLDEN["padded_flash_attention_2"]
    pads = int((GOLDEN["padded_attention_mask"] == 0).sum())
    assert pads == len(padded) - len(content) > 0
    constant = padding_row(model, int(GOLDEN["pad_token_id"]))
    found = torch.cat([constant.expand(pads, -1), content])
    np.testing.assert_allclose(found.numpy(), padded, rtol=0, atol=2e-5)


def test_bfloat16_stays_within_its_rounding_of_float32():
    model = load(DATA / "tiny_internvl_chat", dtype=torch.bfloat16)
    found = rows(model)
    assert found.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % per operation, values here are up to 4.
    np.testing.assert_allclose(found.float().numpy(), GOLDEN["unpadded_sdpa"], rtol=0, atol=0.08)


def test_hidden_states_carry_no_graph_and_parameters_need_no_gradient():
    model = load(DATA / "tiny_internvl_chat")
    found = rows(model)
    assert not found.requires_grad
    assert not found.is_inference()  # a planner may save it for its own backward pass
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_sharded_weights_load_like_a_single_file(golden_checkpoint):
    expected = rows(load(golden_checkpoint))
    weights = load_file(golden_checkpoint / "model.safetensors")
    (golden_checkpoint / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-{index % 3}.safetensors" for index, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in names if weight_map[name] == file}, golden_checkpoint / file)
    (golden_checkpoint / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(rows(load(golden_checkpoint)), expected)


def test_a_checkpoint_without_language_modelling_head_loads(golden_checkpoint):
    expected = rows(load(golden_checkpoint))
    rewrite_weights(golden_checkpoint, lambda weights: weights.pop("language_model.lm_head.weight"))
    assert torch.equal(rows(load(golden_checkpoint)), expected)


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


def test_a_weight_of_another_shape_is_named_with_both_shapes(golden_checkpoint):
    name = "vision_model.encoder.layers.0.attn.qkv.weight"
    rewrite_weights(golden_checkpoint, lambda weights: weights.update({name: torch.zeros(48, 32)}))
    with pytest.raises(VLMCheckpointError, match=r"qkv.weight has shape \[48, 32\], config.json asks for \[96, 32\]"):
        load(golden_checkpoint)


def test_query_and_key_norms_of_larger_towers_are_loaded(edit_config):
    folder = edit_config("vision_config.qk_normalization", True)
    norms = {
        f"vision_model.encoder.layers.{layer}.attn.{part}_norm.weight": torch.full((32,), 1.0 + layer)
        for layer in range(2)
        for part in "qk"
    }
    rewrite_weights(folder, lambda weights: weights.update(norms))
    model = load(folder)
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
        load(DATA / "tiny_internvl_chat", attention="flash")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", "internvl", "model_type must be 'internvl_chat', found 'internvl'"),
        ("ps_version", "v1", "ps_version must be 'v2', found 'v1'"),
        ("select_layer", -2, "select_layer must be -1, found -2"),
        ("use_llm_lora", 16, "use_llm_lora is 16"),
        ("use_backbone_lora", 8, "use_backbone_lora is 8"),
        ("llm_config.architectures", ["InternLM2ForCausalLM"], "the language model is qwen2.*InternLM2ForCausalLM"),
        ("llm_config.model_type", "llama", "the language model is llama"),
        ("llm_config.use_sliding_window", True, "use_sliding_window is true"),
        ("llm_config.rope_scaling", {"type": "yarn", "factor": 4}, "rope_scaling is 'yarn'"),
        ("llm_config.rope_theta", None, "llm_config.rope_theta is missing"),
        ("llm_config", None, "llm_config is missing"),
        ("vision_config", 3, "vision_config must be an object, found 3"),
        ("vision_config.qkv_bias", None, "vision_config.qkv_bias is missing"),
        ("vision_config.model_type", "siglip", "vision_config.model_type must be 'intern_vit_6b', found 'siglip'"),
        ("vision_config.use_moe", True, "use_moe is true"),
        ("force_image_size", 448, "force_image_size 448, vision_config.image_size 56 and patch_size 14 do not fit"),
        ("downsample_ratio", 0.3, "downsample_ratio 0.3 does not divide"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(edit_config, key, value, message):
    with pytest.raises(VLMCheckpointError, match=message) as error:
        read_architecture(edit_config(key, value))
    assert "config.json" in str(error.value)


def test_attention_kernel_and_code_references_of_the_file_are_not_taken_over(edit_config):
    folder = edit_config("llm_config._attn_implementation", "flash_attention_2")
    model = load(folder)
    assert model.config.text_config._attn_implementation == "sdpa"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "auto_map")
