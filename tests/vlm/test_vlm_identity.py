from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from navsim_recogdrive.vlm import VLMCheckpointError, VLMSettings, write_tiny_checkpoint
from navsim_recogdrive.vlm import read_vlm_identity as read_identity
from navsim_recogdrive.vlm.checkpoint_files import INDEX_FILE, content_digest, stored_tensors


def identity(folder, **settings):
    return read_identity(VLMSettings(folder, **settings))


def test_neither_torch_nor_transformers_is_imported_for_an_identity(golden_checkpoint):
    code = (
        "import sys, navsim_recogdrive.vlm as vlm\n"
        f"print(vlm.read_vlm_identity(vlm.VLMSettings({str(golden_checkpoint)!r})).hidden_size)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "64"


def test_the_fingerprint_is_the_same_on_another_path(golden_checkpoint, tmp_path):
    copy = shutil.copytree(golden_checkpoint, tmp_path / "elsewhere")
    assert identity(copy) == identity(golden_checkpoint)


def test_the_fingerprint_does_not_depend_on_the_division_into_shards(checkpoint, tmp_path):
    sharded = write_tiny_checkpoint(tmp_path / "sharded", tile_size=112, shards=3)
    assert (sharded / INDEX_FILE).is_file()
    assert identity(sharded) == identity(checkpoint)


def test_the_fingerprint_ignores_keys_that_do_not_decide_the_result(edit_config, golden_checkpoint):
    before = identity(golden_checkpoint)
    assert identity(edit_config("llm_config._name_or_path", "another/name")) == before


def test_the_fingerprint_changes_with_any_weight(golden_checkpoint):
    weights = load_file(golden_checkpoint / "model.safetensors")
    seen = {identity(golden_checkpoint).fingerprint}
    for name in ("mlp1.3.bias", "language_model.model.embed_tokens.weight", "vision_model.encoder.layers.1.ls2"):
        changed = weights | {name: weights[name] + 0.125}
        save_file(changed, golden_checkpoint / "model.safetensors")
        seen.add(identity(golden_checkpoint).fingerprint)
    assert len(seen) == 4


def test_the_digest_reads_from_the_first_byte_of_a_large_tensor_to_its_last(tmp_path):
    digests = set()
    for position in (None, 0, -1):
        values = torch.zeros(40_000)
        if position is not None:
            values[position] = 1.0
        save_file({"weight": values}, tmp_path / "model.safetensors")
        digests.add(content_digest(stored_tensors(tmp_path)))
    assert len(digests) == 3


@pytest.mark.parametrize(
    "settings",
    [{"hidden_length": 2801}, {"max_tiles": 6}, {"prompt_profile": "profile.json"}],
    ids=lambda s: next(iter(s)),
)
def test_the_fingerprint_changes_with_prompt_length_and_tiling(golden_checkpoint, tmp_path, settings):
    if "prompt_profile" in settings:
        number = {"format": "%.1f", "decimals": 1, "zero": "0", "zero_limit": 0.0}
        segments = dict.fromkeys(("before_image", "question_head", "before_command", "after_command"), "text")
        history = {"history_item": "{x}", "history_steps": [3, 2, 1, 0], "history_join": " "}
        profile = {**segments, **history, "number": number, "commands": ["l", "s", "r", "u"]}
        settings = {"prompt_profile": tmp_path / "profile.json"}
        settings["prompt_profile"].write_text(json.dumps(profile))
    assert identity(golden_checkpoint, **settings).fingerprint != identity(golden_checkpoint).fingerprint


def test_the_fingerprint_changes_with_the_architecture(edit_config, golden_checkpoint):
    before = identity(golden_checkpoint).fingerprint
    assert identity(edit_config("use_thumbnail", False)).fingerprint != before


def test_an_absent_or_wrong_path_is_one_clear_error(tmp_path):
    with pytest.raises(
        VLMCheckpointError, match=r"no VLM checkpoint at '.*absent': not a directory; give the directory"
    ):
        identity(tmp_path / "absent")
    with pytest.raises(
        VLMCheckpointError, match=r"the directory has no config.json; give the directory.*tiny_checkpoint"
    ):
        identity(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(VLMCheckpointError, match="is not valid JSON"):
        identity(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(VLMCheckpointError, match="must hold a JSON object, found a list"):
        identity(tmp_path)


def test_absent_weights_are_an_error_that_says_what_was_looked_for(golden_checkpoint):
    (golden_checkpoint / "model.safetensors").unlink()
    with pytest.raises(VLMCheckpointError, match=r"lacks the weight files \['model.safetensors'\]; looked for"):
        identity(golden_checkpoint)


def cut(data: bytes) -> bytes:
    return data[:-100]


def grown(data: bytes) -> bytes:
    return data + b"\0"


def cut_in_the_header(data: bytes) -> bytes:
    return data[:100]


def pointer(data: bytes) -> bytes:
    return b"version https://example.org/lfs\noid sha256:00\nsize 3\n"


def header_changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new, 1)


def gap_between_tensors(data: bytes) -> bytes:
    return header_changed(data, b'"data_offsets":[0,', b'"data_offsets":[2,')


def without_a_shape(data: bytes) -> bytes:
    return header_changed(data, b'"shape"', b'"shope"')


def damaged_header(data: bytes) -> bytes:
    return data[:8] + b"\xff" + data[9:]


def stored_as_float64(data: bytes) -> bytes:
    return data.replace(b'"BF16"', b'"F64" ', 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"truncated or damaged: its header announces \d+ bytes, found \d+"),
        (grown, "truncated or damaged"),
        (cut_in_the_header, r"not a whole safetensors file \(100 bytes\)"),
        (pointer, "git-lfs pointer.*git lfs pull"),
        (damaged_header, "damaged safetensors header"),
        (gap_between_tensors, r"damaged safetensors header \(.*\): download it again"),
        (without_a_shape, "damaged safetensors header: .*shape must be a list of whole numbers .*found None; download"),
        (stored_as_float64, "is stored as F64; expected one of"),
    ],
)
def test_damaged_weight_files_are_found_from_their_headers(golden_checkpoint, damage, message):
    file = golden_checkpoint / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(VLMCheckpointError, match=message):
        identity(golden_checkpoint)


def test_shards_that_disagree_with_their_index_are_refused(tmp_path):
    def shard(name: str, *tensors: str) -> None:
        save_file({tensor: torch.zeros(2) for tensor in tensors}, tmp_path / name)

    def index(**weight_map: str) -> None:
        (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))

    shard("1.safetensors", "a")
    index(a="1.safetensors", b="2.safetensors")
    with pytest.raises(VLMCheckpointError, match=r"lacks the weight files \['2.safetensors'\]"):
        stored_tensors(tmp_path)
    shard("2.safetensors", "c")
    with pytest.raises(VLMCheckpointError, match=r"2.safetensors holds c, which .* places in None"):
        stored_tensors(tmp_path)
    index(a="1.safetensors", c="2.safetensors", d="2.safetensors")
    with pytest.raises(VLMCheckpointError, match="names tensors that no shard holds: d"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX_FILE).write_text("{}")
    with pytest.raises(VLMCheckpointError, match="has no weight_map"):
        stored_tensors(tmp_path)


def test_headers_locate_every_tensors_bytes(golden_checkpoint):
    tensors = stored_tensors(golden_checkpoint)
    weights = load_file(golden_checkpoint / "model.safetensors")
    assert tensors.keys() == weights.keys()
    data = (golden_checkpoint / "model.safetensors").read_bytes()
    for name, tensor in tensors.items():
        stored = np.frombuffer(data[tensor.start : tensor.end], dtype=np.int16)
        assert np.array_equal(stored, weights[name].view(torch.int16).numpy().ravel())
        assert tensor.shape == tuple(weights[name].shape)
