"""Checkpoints that are written: both layouts, their names and configurations, the prompt profile."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_vlm import write_byte_vlm, write_short_profile
from jinja2 import Environment
from PIL import Image
from qa_data import observation
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from navsim_recogdrive.pretraining.finetuning import saving
from navsim_recogdrive.pretraining.finetuning.model import build_trained_model
from navsim_recogdrive.pretraining.finetuning.saving import CannotSave, CheckpointWriter, says_what_was_not_saved
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings
from navsim_recogdrive.pretraining.finetuning.trainer import load_weights
from navsim_recogdrive.vlm import VLMSettings, load_backbone, read_vlm_identity
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, load_profile
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiling import normalize_tiles, tile_image

CONTEXT = 256 + 24
LAYOUT_OF = {"internvl_chat": "hub", "internvl_hf": "native"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in both layouts."""
    folder = tmp_path_factory.mktemp("vlm")
    return {LAYOUT_OF[layout]: write_byte_vlm(folder / layout, layout=layout) for layout in LAYOUT_OF}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> PromptProfile:
    return write_short_profile(tmp_path_factory.mktemp("profile") / "profile.json")


def _written(base: Path, folder: Path, layout: str, profile: PromptProfile) -> Path:
    architecture: Any = read_architecture(base)
    settings = FinetuneSettings(str(base), "", folder, precision="float32")
    model = build_trained_model(base, architecture, CONTEXT, settings)
    writer = CheckpointWriter(base, architecture, CONTEXT, profile, layout)
    writer.write(folder, model.state_dict(), torch.bfloat16)
    return folder


def _sizes(folder: Path) -> dict[str, Any]:
    """The architecture, without dropout rates of zero, which only one layout states."""
    sizes: dict[str, Any] = json.loads(read_architecture(folder).canonical)
    sizes["vision"] = {name: value for name, value in sizes["vision"].items() if "drop" not in name or value}
    return sizes


@pytest.mark.parametrize("base", ["hub", "native"])
@pytest.mark.parametrize("layout", ["hub", "native"])
def test_both_layouts_from_both(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path, base: str, layout: str
) -> None:
    folder = _written(bases[base], tmp_path / "saved", layout, profile)
    saved, expected = (load_file(path / "model.safetensors") for path in (folder, bases[layout]))
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        assert saved[name].dtype == tensor.dtype
        assert torch.equal(saved[name], tensor), name
    assert _sizes(folder) == _sizes(bases[base])
    if base == layout:
        original, copy = (json.loads((path / "config.json").read_text()) for path in (bases[base], folder))
        assert copy == original


@pytest.mark.parametrize("layout", ["hub", "native"])
def test_hidden_states_are_those_of_the_base(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path, layout: str
) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", layout, profile)
    own = write_short_profile(tmp_path / "profile.json") and tmp_path / "profile.json"
    base = load_backbone(VLMSettings(bases["hub"], prompt_profile=own), dtype=torch.float32)
    saved = load_backbone(VLMSettings(folder), dtype=torch.float32)  # finds the profile beside the weights
    inputs = base.prepare(observation(3))
    np.testing.assert_array_equal(inputs.token_ids, saved.prepare(observation(3)).token_ids)
    assert torch.equal(base.content_rows(inputs), saved.content_rows(inputs))


def test_transformers_itself_reads_the_native_layout(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path
) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", "native", profile)
    model, report = InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    architecture: Any = read_architecture(folder)
    ours = build_trained_model(folder, architecture, CONTEXT, FinetuneSettings(str(folder), "", tmp_path))
    theirs = model.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(theirs[name], tensor), name
    assert model.config.image_token_id == CONTEXT
    assert model.config.vision_config.layer_norm_eps == 1e-6


def test_float32_weights_come_back_exactly(bases: dict[str, Path], profile: PromptProfile, tmp_path: Path) -> None:
    architecture: Any = read_architecture(bases["hub"])
    model = build_trained_model(bases["hub"], architecture, CONTEXT, FinetuneSettings("", "", tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    wanted = {name: weight.clone() for name, weight in model.state_dict().items()}
    for layout in ("hub", "native"):
        folder = tmp_path / layout
        CheckpointWriter(bases["hub"], architecture, CONTEXT, profile, layout).write(
            folder, model.state_dict(), torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_weights(model, folder)
        assert all(torch.equal(weight, wanted[name]) for name, weight in model.state_dict().items())
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["torch_dtype"] == config["llm_config"]["torch_dtype"] == "float32"


def test_weights_of_another_model_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    architecture: Any = read_architecture(bases["hub"])
    model = build_trained_model(bases["hub"], architecture, CONTEXT, FinetuneSettings("", "", tmp_path))
    del model.model.vision_tower.encoder.layer[1]
    with pytest.raises(VLMCheckpointError, match="is no checkpoint of this model: missing .*unexpected .*layer.1"):
        load_weights(model, bases["hub"])


def test_a_tied_head_is_left_out(bases: dict[str, Path], profile: PromptProfile, tmp_path: Path) -> None:
    base = tmp_path / "tied"
    write_byte_vlm(base, layout="internvl_hf")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    weights = load_file(base / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    saving.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    for layout in ("native", "hub"):
        folder = _written(base, tmp_path / layout, layout, profile)
        names = load_file(folder / "model.safetensors").keys()
        assert "language_model.lm_head.weight" not in names
        head = load_backbone(folder, dtype=torch.float32, with_head=True).family.generator.lm_head.weight
        embeddings = weights["language_model.model.embed_tokens.weight"].float()
        assert torch.equal(head, embeddings)


def test_shards(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _written(bases["hub"], tmp_path / "saved", "native", profile)
    expected = read_vlm_identity(VLMSettings(whole))
    monkeypatch.setattr(saving, "SHARD_BYTES", 100_000)
    shards = _written(bases["hub"], tmp_path / "saved", "native", profile)  # over the other one
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    assert not (shards / "model.safetensors").exists()
    assert read_vlm_identity(VLMSettings(shards)) == expected
    monkeypatch.undo()
    again = _written(bases["hub"], tmp_path / "saved", "native", profile)
    assert not list(again.glob("model-*.safetensors"))
    assert read_vlm_identity(VLMSettings(again)) == expected


def test_a_failure_leaves_the_earlier_checkpoint(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", "native", profile)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(saving, "SHARD_BYTES", 100_000)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, hard))  # in place of a full disk
    try:
        with pytest.raises(CannotSave, match=r"saved cannot be saved, the disk or a quota is full .*--resume"):
            _written(bases["hub"], folder, "native", replace(profile, history_join="|"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8 vs 4")):
        with pytest.raises(CannotSave, match="the disk or a quota is full"), says_what_was_not_saved(tmp_path):
            raise error
    for other in (OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA error"), ValueError("No space left")):
        with pytest.raises(type(other), match=str(other.args[-1])), says_what_was_not_saved(tmp_path):
            raise other


def test_transformers_processor_finds_what_it_needs(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path
) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", "native", profile)
    content = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert content["processor_config.json"] == {"image_seq_length": 4, "processor_class": "InternVLProcessor"}
    assert content["preprocessor_config.json"]["size"] == {"height": 56, "width": 56}
    assert content["preprocessor_config.json"]["image_mean"] == [0.485, 0.456, 0.406]
    assert content["video_preprocessor_config.json"]["video_processor_type"] == "InternVLVideoProcessor"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = (tokenizer.start_image_token, tokenizer.context_image_token, tokenizer.end_image_token)
    assert named == ("<img>", "<IMG_CONTEXT>", "</img>")
    assert tokenizer.context_image_token_id == CONTEXT
    assert len(tokenizer) == len(load_qwen2_tokenizer(bases["hub"]))  # no token is new
    ends = GenerationConfig.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens([ends.eos_token_id, ends.pad_token_id]) == ["<|im_end|>", "<|endoftext|>"]
    pixels = GotOcr2ImageProcessorPil.from_pretrained(folder)
    image = observation(1).front_image
    assert image is not None
    cut = pixels(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    ours = tile_image(image, 56, 12)
    torch.testing.assert_close(cut, normalize_tiles(torch.from_numpy(ours)), atol=0.03, rtol=0)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where to?"}]}]
    written = Environment().from_string((folder / "chat_template.jinja").read_text())
    assert written.render(messages=asked, add_generation_prompt=True) == (
        "<|im_start|>user\n<IMG_CONTEXT>\nWhere to?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "chat_template" not in content["tokenizer_config.json"]


def test_processor_files_of_a_native_base_are_kept(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path
) -> None:
    base = shutil.copytree(bases["native"], tmp_path / "base")
    kept = {"preprocessor_config.json": {"max_patches": 6}, "generation_config.json": {"eos_token_id": [1, 2]}}
    for name, content in kept.items():
        (base / name).write_text(json.dumps(content))
    (base / "chat_template.jinja").write_text("own")
    native = _written(base, tmp_path / "native", "native", profile)
    hub = _written(base, tmp_path / "hub", "hub", profile)
    assert {name: json.loads((native / name).read_text()) for name in kept} == kept
    assert (native / "chat_template.jinja").read_text() == "own"
    assert (hub / "generation_config.json").is_file()
    assert not (hub / "preprocessor_config.json").exists()


def test_profiles_are_written_as_they_are_read(tmp_path: Path) -> None:
    for name in ("published", "three_cameras"):
        profile = PromptProfile.load(name)
        path = tmp_path / f"{name}.json"
        path.write_text(profile.to_json(), encoding="utf-8")
        assert PromptProfile.load(path) == profile
        assert PromptProfile.load(path).fingerprint == profile.fingerprint


def test_the_profile_beside_the_weights_is_found(
    bases: dict[str, Path], profile: PromptProfile, tmp_path: Path
) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", "hub", profile)
    found = read_vlm_identity(VLMSettings(folder))
    assert found.profile == profile.fingerprint
    assert read_vlm_identity(VLMSettings(folder, prompt_profile="published")).profile != profile.fingerprint
    path = folder / "prompt_profile.json"
    path.write_text(replace(profile, commands=("A", "B", "C", "D")).to_json())
    changed = read_vlm_identity(VLMSettings(folder))
    assert (changed.model, changed.profile == found.profile) == (found.model, False)
    assert changed.fingerprint != found.fingerprint
    path.unlink()
    assert read_vlm_identity(VLMSettings(folder)).profile == PromptProfile.load("published").fingerprint
    assert load_profile("auto", ("front",)) == PromptProfile.load("published")


def test_a_profile_of_other_cameras_is_refused(bases: dict[str, Path], profile: PromptProfile, tmp_path: Path) -> None:
    folder = _written(bases["hub"], tmp_path / "saved", "hub", profile)
    with pytest.raises(PromptError, match="about a single image"):
        read_vlm_identity(VLMSettings(folder, cam_type="multi"))
