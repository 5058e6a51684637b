"""Every layout loads into the same model, strictly, and with the memory of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_internvl import FOLDER, GOLDEN, edit, hidden_states, load, rename_weights, rewrite_weights
from safetensors.torch import load_file
from transformers import InternVLForConditionalGeneration
from vlm_golden import formula_image, scene

from navsim_recogdrive.vlm import PromptError, VLMCheckpointError, VLMSettings, load_backbone, write_tiny_checkpoint
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.tiny_checkpoint import LAYOUTS, write_weights
from navsim_recogdrive.vlm.tiny_internvl import hub_config, hub_weights, native_config, native_weights

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """The golden model as transformers' own code saves it."""
    folder = tmp_path / "native"
    load(FOLDER, with_head=True).generator.save_pretrained(folder)
    return folder


def as_version_5(name: str) -> str:
    """The names of a version 5 model's own parameters."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def as_version_4(name: str) -> str:
    """The names in published repositories."""
    if name.endswith("lm_head.weight"):
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    return re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)


@pytest.mark.parametrize("names", [as_version_4, as_version_5])
def test_golden_hidden_states_come_out_of_both_native_layouts(native, monkeypatch, names):
    rename_weights(native, names)
    assert any(name.startswith("model." if names is as_version_5 else "vision_tower.") for name in stored(native))
    family = load(native, with_head=True)
    found = hidden_states(family, monkeypatch)
    np.testing.assert_allclose(found.numpy(), GOLDEN["padded_flash_attention_2"], rtol=0, atol=2e-5)
    head = load_file(FOLDER / "model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(family.generator.lm_head.weight.to(head.dtype), head)
    assert torch.equal(hidden_states(load(native), monkeypatch), found)


def stored(folder: Path) -> list[str]:
    return list(load_file(folder / "model.safetensors"))


def test_transformers_itself_reads_the_tiny_native_layout_alike(tmp_path):
    sizes = {"hidden_size": 32, "tile_size": 56, "num_layers": 1}
    chat = write_tiny_checkpoint(tmp_path / "chat", **sizes)
    native = write_tiny_checkpoint(tmp_path / "hf", layout="internvl_hf", **sizes)
    ours = load_backbone(native, dtype=torch.float32)
    inputs = ours.prepare(scene(formula_image(120, 80)))
    assert len(inputs.tiles) > 1  # with the thumbnail
    assert torch.equal(load_backbone(chat, dtype=torch.float32).content_rows(inputs), ours.content_rows(inputs))

    theirs = InternVLForConditionalGeneration.from_pretrained(native, dtype=torch.float32).eval()
    pixels = ours.family.generate_arguments(None, None, torch.from_numpy(inputs.tiles))["pixel_values"]
    with torch.no_grad():
        expected = theirs.model(input_ids=torch.from_numpy(inputs.token_ids)[None], pixel_values=pixels)
    assert_close(ours.content_rows(inputs), expected.last_hidden_state[0])


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def test_a_head_that_is_not_stored_is_the_embedding_matrix_where_the_file_ties_them(native):
    rewrite_weights(native, lambda weights: [weights.pop(name) for name in list(weights) if "lm_head" in name])
    with pytest.raises(VLMCheckpointError, match=r"missing weights .*lm_head.weight"):
        load(native, with_head=True)
    generator = load(edit(native, "tie_word_embeddings", True), with_head=True).generator
    assert generator.lm_head.weight is generator.model.language_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("projector_hidden_act", "relu", "projector_hidden_act must be 'gelu', found 'relu'"),
        ("vision_feature_layer", -2, "vision_feature_layer must be -1, found -2"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy must be 'default', found 'full'"),
        ("downsample_ratio", 0.3, "downsample_ratio 0.3 does not divide"),
        ("image_seq_length", 256, "image_seq_length must be 4, found 256"),
        ("vision_config.use_mask_token", True, "vision_config.use_mask_token must be False, found True"),
        ("vision_config.use_absolute_position_embeddings", False, "use_absolute_position_embeddings must be True"),
        ("vision_config.use_mean_pooling", False, "vision_config.use_mean_pooling must be True, found False"),
        ("vision_config.model_type", "siglip", "vision_config.model_type must be 'internvl_vision', found 'siglip'"),
        ("vision_config.image_size", [56, 28], r"image_size must be the positive side of a square, found \[56, 28\]"),
        ("vision_config.use_qk_norm", None, "vision_config.use_qk_norm is missing"),
        ("text_config.model_type", "llama", "the language model is llama .*only qwen2"),
        ("text_config.rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "must be of type 'default' or 'dyn"),
        ("text_config.rope_parameters", {"rope_type": "default"}, "rope_parameters.rope_theta is missing"),
    ],
)
def test_what_changes_the_result_of_a_native_layout_is_refused_by_name(native, key, value, message):
    with pytest.raises(VLMCheckpointError, match=message) as error:
        read_architecture(edit(native, key, value))
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("rope", [{"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, None])
def test_rotary_settings_are_read_as_either_version_writes_them(native, rope):
    if rope is not None:
        edit(native, "text_config.rope_parameters", None)
        for name, value in rope.items():
            edit(native, f"text_config.{name}", value)
    rope_parameters = read_architecture(native).text["rope_parameters"]
    assert rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("layout", "key", "value", "message"),
    [
        ("internvl_chat", "llm_config.model_type", "llama", "the language model is llama"),
        ("internvl_chat", "ps_version", "v1", "ps_version must be 'v2', found 'v1'"),
        ("qwen2_5_vl", "model_type", "qwen2_vl", "found 'qwen2_vl'"),
    ],
)
def test_checkpoints_of_another_architecture_are_refused(tmp_path, layout, key, value, message):
    folder = write_tiny_checkpoint(tmp_path / "vlm", layout=layout, hidden_size=32, num_layers=1)
    with pytest.raises(VLMCheckpointError, match=message):
        load_backbone(edit(folder, key, value))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """One checkpoint of each layout, in three files."""
    root = tmp_path_factory.mktemp("layouts")
    return {
        layout: write_tiny_checkpoint(root / layout, layout=layout, hidden_size=32, num_layers=1, shards=3)
        for layout in LAYOUTS
    }


@pytest.fixture(params=LAYOUTS)
def damaged(sharded, tmp_path, request):
    return shutil.copytree(sharded[request.param], tmp_path / "damaged")


def test_a_truncated_shard_is_named(damaged):
    shard = damaged / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(VLMCheckpointError, match=r"model-00002-of-00003.safetensors is truncated or damaged"):
        load_backbone(damaged)


def test_a_missing_and_an_unexpected_weight_are_named(damaged, caplog):
    index = json.loads((damaged / "model.safetensors.index.json").read_text())["weight_map"]
    weights = {name: tensor for file in set(index.values()) for name, tensor in load_file(damaged / file).items()}
    for file in damaged.glob("model*"):
        file.unlink()
    lost = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    write_weights(damaged, weights | {"surplus.weight": torch.zeros(2)})
    with pytest.raises(VLMCheckpointError, match=r"no place for: surplus.weight; config.json and the weights"):
        load_backbone(damaged)
    surplus = {f"surplus.{index}": torch.zeros(2) for index in range(10)}
    write_weights(damaged, {name: weight for name, weight in weights.items() if name != lost} | surplus)
    both = r"no place for: surplus.0, .* and 2 more; .*; missing weights .*layers.0.mlp.up_proj.weight; download"
    with pytest.raises(VLMCheckpointError, match=both) as error:
        load_backbone(damaged)
    assert "surplus.9" not in str(error.value)
    logged = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 1  # the list that is shortened in the message
    assert all(name in logged[0] for name in surplus)
    write_weights(damaged, {name: weight for name, weight in weights.items() if name != lost})
    with pytest.raises(VLMCheckpointError, match=r"missing weights .*layers.0.mlp.up_proj.weight; download"):
        load_backbone(damaged)


def test_weights_that_are_not_finite_are_named(native):
    def spoil(weights):
        for name, value in zip(sorted(weights), [float("nan"), float("inf"), -float("inf")], strict=False):
            weights[name].view(-1)[-1] = value

    rewrite_weights(native, spoil)
    first, second, third = sorted(stored(native))[:3]
    with pytest.raises(VLMCheckpointError, match=r"weights that are not finite: .*; a file is damaged, or") as error:
        load(native, with_head=True)
    assert all(name in str(error.value) for name in (first, second, third))


def test_huge_weights_are_finite(native):
    """Of bfloat16, whose sum overflows float32."""
    name = next(name for name in sorted(stored(native)) if name.endswith("mlp.up_proj.weight"))
    rewrite_weights(native, lambda weights: weights[name].fill_(3e38))
    load(native)


def test_one_weight_in_two_layouts_is_refused(native):
    rewrite_weights(native, lambda w: w.update({"model.language_model.norm.weight": torch.zeros(64)}))
    message = r"language_model.model.norm.weight and model.language_model.norm.weight are the same weight"
    with pytest.raises(VLMCheckpointError, match=message):
        load(native)


def test_a_tokenizer_without_the_image_tokens_is_refused(damaged):
    architecture = read_architecture(damaged)
    for name in ("added_tokens.json", "tokenizer_config.json"):
        text = (damaged / name).read_text()
        assert architecture.image_tokens.context in text
        (damaged / name).write_text(text.replace(architecture.image_tokens.context, "<|other|>"))
    with pytest.raises(PromptError, match="the tokenizer has no token") as error:
        load_backbone(damaged)
    assert architecture.image_tokens.context in str(error.value)


def test_settings_name_the_kind_of_every_layout(sharded):
    for layout, folder in sharded.items():
        kind = "internvl" if layout.startswith("internvl") else layout
        assert load_backbone(VLMSettings(folder, vlm_type=kind)).family.architecture.vlm_type == kind


OURS = """
    from navsim_recogdrive.vlm.architecture import read_architecture
    from navsim_recogdrive.vlm.loading import load_family

    def load():
        placement = {"image_token_id": 5, "dtype": dtype, "device": torch.device("cpu"), "attention": "sdpa"}
        return load_family(folder, read_architecture(folder), **placement).model.state_dict().values()
"""
TWICE = """
    from safetensors.torch import load_file

    def load():
        files = [load_file(file) for file in folder.glob("*.safetensors")]
        state = [tensor.to(dtype, copy=True) for file in files for tensor in file.values()]
        copy = [tensor.clone() for tensor in state]
        return copy
"""
PEAK = """
    import sys
    from pathlib import Path

    import torch

    folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
    {load}
    torch.zeros(1).to(dtype)
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(tensor.numel() * tensor.element_size() for tensor in load()), flush=True)
"""


def peak_of_loading(folder: Path, dtype: str, load: str) -> tuple[int, int]:
    """Bytes of the loaded model, and how far the process's own memory rose at most while it was loaded.

    Pages of the mapped weight files belong to the page cache, which gives them back whenever memory is wanted; so the
    anonymous memory is looked at, from outside, every millisecond.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PEAK.replace("    {load}", load)), str(folder), dtype],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    status = Path(f"/proc/{process.pid}/status")

    def own_memory() -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024 if found else 0

    with process:
        assert process.stdout.readline() == "ready\n"
        before = peak = own_memory()
        process.stdin.write("go\n")
        process.stdin.flush()
        os.set_blocking(process.stdout.fileno(), False)
        while not (answer := process.stdout.readline()):
            peak = max(peak, own_memory())
            time.sleep(0.001)
        process.stdin.close()
    return int(answer), peak - before


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("layout", "dtype"), [("internvl_chat", "float32"), ("internvl_hf", "bfloat16")])
def test_loading_takes_the_memory_of_about_one_model(tmp_path, layout, dtype):
    config = hub_config(512, 14, 64, 56, 512)
    weights = hub_weights(config, 0)
    if layout == "internvl_hf":
        config, weights = native_config(config), native_weights(weights)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_weights(tmp_path, dict(weights), shards=3)  # about 70 MB in bfloat16

    size, peak = peak_of_loading(tmp_path, dtype, OURS)
    print(f"{layout} in {dtype}: {size / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, {peak / size:.2f} models")
    assert size > 60e6 * (2 if dtype == "float32" else 1)
    assert 0.9 * size < peak < 1.5 * size
    if dtype == "float32":
        assert peak_of_loading(tmp_path, dtype, TWICE)[1] > 1.8 * size  # the measurement sees a second copy
