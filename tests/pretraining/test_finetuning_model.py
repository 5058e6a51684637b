"""The model as it is fine-tuned: loss, frozen parts, adapters, stochastic depth, sharding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_vlm import write_byte_vlm
from qa_data import trajectory_records, write_data
from torch.nn.functional import cross_entropy
from transformers import InternVLForConditionalGeneration

from navsim_recogdrive.pretraining.finetuning.dataset import Collator
from navsim_recogdrive.pretraining.finetuning.drop_path import add_drop_path, drop_path
from navsim_recogdrive.pretraining.finetuning.model import (
    TrainedInternVL,
    adapter_weights,
    build_trained_model,
    merged_weights,
    parts_of,
)
from navsim_recogdrive.pretraining.finetuning.run import prepare_data
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting
from navsim_recogdrive.pretraining.registry import load_mixture
from navsim_recogdrive.vlm.adapters import LoRA
from navsim_recogdrive.vlm.architecture import read_architecture
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.prompts import PromptProfile
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiling import normalize_tiles

REPOSITORY = Path(__file__).parents[2]
CONTEXT, PAD = 256 + 24, 256


@pytest.fixture(scope="module")
def byte_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_vlm(tmp_path_factory.mktemp("vlm") / "bytes")


@pytest.fixture(scope="module")
def batch(byte_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    mixture = write_data(folder, trajectory_records(folder / "profile.json", 3))
    settings = FinetuneSettings(str(byte_vlm), str(mixture), folder / "out", max_tiles=2, workers=0)
    architecture: Any = read_architecture(byte_vlm)
    writer = ConversationWriter.of(PromptProfile.load(folder / "profile.json"), None)
    dataset, _ = prepare_data(settings, load_mixture(mixture), architecture, load_qwen2_tokenizer(byte_vlm), writer)
    collated = Collator(PAD)([dataset[index] for index in range(len(dataset))])
    return {name: collated[name] for name in ("input_ids", "labels", "tiles")}


def _model(folder: Path, **changes: Any) -> TrainedInternVL:
    settings = FinetuneSettings(str(folder), "", Path(), **{"precision": "float32", "drop_path": 0.0, **changes})
    architecture: Any = read_architecture(folder)
    return build_trained_model(folder, architecture, CONTEXT, settings)


def test_the_loss_is_cross_entropy_of_the_next_token(byte_vlm: Path, batch: dict[str, Any]) -> None:
    model = _model(byte_vlm).eval()
    with torch.no_grad():
        loss = model(**batch)["loss"]
        whole = InternVLForConditionalGeneration.forward(
            model,
            input_ids=batch["input_ids"],
            pixel_values=normalize_tiles(batch["tiles"]),
            attention_mask=(batch["input_ids"] != PAD).long(),
        )
    terms = []
    for logits, labels in zip(whole.logits, batch["labels"], strict=True):
        for row in np.flatnonzero(labels.numpy() != -100):
            terms.append(cross_entropy(logits[row - 1], labels[row]))
    assert len(terms) > 300
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-5, atol=1e-5)
    counted = model(**batch, num_items_in_batch=torch.tensor(2 * len(terms)))["loss"]
    torch.testing.assert_close(counted, loss / 2)


def test_only_taught_tokens_decide_the_loss(byte_vlm: Path, batch: dict[str, Any]) -> None:
    model = _model(byte_vlm).eval()
    last = batch["labels"].clone()
    last[:, :-1] = -100
    changed = {**batch, "labels": last}
    changed["input_ids"] = batch["input_ids"].clone()
    changed["input_ids"][:, -1] = 7  # the last token itself is read by no row with a loss
    with torch.no_grad():
        assert model(**{**batch, "labels": last})["loss"] == model(**changed)["loss"] > 0
        nothing = model(**{**batch, "labels": torch.full_like(last, -100)})["loss"]
    assert nothing == 0


def test_a_batch_without_images_reaches_every_parameter(byte_vlm: Path) -> None:
    model = _model(byte_vlm).train()
    ids = torch.arange(20)[None]
    model(input_ids=ids, labels=ids)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    vision = [parameter.grad for parameter in model.model.vision_tower.parameters()]
    assert all((gradient == 0).all() for gradient in vision if gradient is not None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(byte_vlm: Path, batch: dict[str, Any], checkpointing: bool) -> None:
    model = _model(byte_vlm, gradient_checkpointing=checkpointing, drop_path=0.5).train()
    assert model.is_gradient_checkpointing is checkpointing
    torch.manual_seed(0)
    loss = model(**batch)["loss"]
    loss.backward()
    reference = _model(byte_vlm, gradient_checkpointing=False, drop_path=0.5).train()
    torch.manual_seed(0)
    reference(**batch)["loss"].backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_frozen_layers_that_gradients_flow_through_are_computed_again(byte_vlm: Path, batch: dict[str, Any]) -> None:
    for frozen, language, vision in (((), 2, 2), (("language",), 2, 2), (("vision",), 2, 1), (("projector",), 2, 2)):
        model = _model(byte_vlm, freeze=frozen).train()
        calls = {"language": 0, "vision": 0}

        def count(name: str, calls: dict[str, int] = calls) -> Any:
            def hook(*inputs: Any) -> None:
                calls[name] += 1

            return hook

        model.model.language_model.layers[0].mlp.register_forward_pre_hook(count("language"))
        model.model.vision_tower.encoder.layer[0].mlp.register_forward_pre_hook(count("vision"))
        model(**batch)["loss"].backward()
        assert calls == {"language": language, "vision": vision}, frozen
    frozen_model = _model(byte_vlm, freeze=("language",)).train()
    for layer in frozen_model.model.language_model.layers:
        assert not any(part.training for part in layer.modules() if part is not layer)  # no dropout
    assert not any(part.training for part in frozen_model.eval().modules())


@pytest.mark.parametrize("frozen", [("vision",), ("projector",), ("language",), ("vision", "language")])
def test_frozen_parts(byte_vlm: Path, batch: dict[str, Any], frozen: tuple[str, ...]) -> None:
    model = _model(byte_vlm, freeze=frozen, drop_path=0.9).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch)["loss"].backward()
    optimizer.step()
    after = model.state_dict()
    for part, modules in parts_of(model).items():
        changed = []
        for module in modules:
            assert module.training is (part not in frozen)
            names = [name for name, found in model.named_modules() if found is module]
            changed += [not torch.equal(after[n], before[n]) for n in after if n.startswith(tuple(names))]
        assert any(changed) is (part not in frozen), part
    if "vision" in frozen:  # nothing drops out of a frozen tower
        with torch.no_grad():
            assert model(**batch)["loss"] == model(**batch)["loss"]


def test_adapters_are_all_that_is_trained_and_merge(byte_vlm: Path, batch: dict[str, Any]) -> None:
    lora = LoRA(rank=2, alpha=8.0, dropout=0.0)
    model = _model(byte_vlm, training="lora", lora=lora).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert trained == adapter_weights(model.state_dict()).keys()
    assert not model.model.vision_tower.training
    assert model.model.language_model.training
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        plain = _model(byte_vlm).eval()
        before = plain(**batch)["loss"]
        plain.load_state_dict(merged_weights(model.state_dict(), lora))
        merged, adapted = plain(**batch)["loss"], model.eval()(**batch)["loss"]
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    assert abs(merged - before) > 0.01


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 3, 2), 0.25)
    kept = dropped[:, 0, 0] > 0
    assert ((dropped == 0) | (dropped == 1 / 0.75)).all()
    assert (dropped.flatten(1).min(1).values == dropped.flatten(1).max(1).values).all()
    assert abs(kept.float().mean() - 0.75) < 0.03


def test_drop_path_rises_over_the_layers_and_acts_in_training_only(byte_vlm: Path) -> None:
    tower = _model(byte_vlm).model.vision_tower
    pixels = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = tower.eval()(pixels).last_hidden_state
        add_drop_path(tower, 0.999999)  # the last of two layers drops all but surely, the first nothing
        torch.testing.assert_close(tower.eval()(pixels).last_hidden_state, plain)
        inputs = []
        tower.encoder.layer[1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        dropped = tower.train()(pixels).last_hidden_state
    torch.testing.assert_close(dropped, inputs[0])  # both branches of the last layer are gone
    assert (dropped - plain).abs().max() > 0.1


def test_drop_path_differs_between_tiles(byte_vlm: Path) -> None:
    tower = _model(byte_vlm, drop_path=0.5).model.vision_tower.train()
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0)).expand(16, -1, -1, -1)
    with torch.no_grad():
        rows = tower(pixels).last_hidden_state.flatten(1)
    assert 1 < len({tuple(row[:4].tolist()) for row in rows}) <= 4  # each of two branches is there or not


def test_sharded_with_and_without_images(byte_vlm: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"),
            *("--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"),
            *(str(Path(__file__).with_name("sharded_rank.py")), str(byte_vlm)),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    words = next(line for line in done.stdout.splitlines() if line.startswith("loss")).split()
    assert float(words[1]) == pytest.approx(float(words[3]), rel=1e-5)
    assert float(words[5]) < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": "some"}, "training must be one of"),
        ({"layout": "other"}, "layout must be one of"),
        ({"freeze": ("head",)}, r"freeze must name parts of .*found \['head'\]"),
        ({"freeze": ("vision", "projector", "language")}, "nothing is left to train"),
        ({"training": "lora", "freeze": ("vision",)}, "freeze cannot act with training=lora"),
        ({"lora": LoRA(rank=4)}, "adapters cannot act with training=full"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio must lie in 0\.\.1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"attention": "flash_attention_2", "precision": "float32"}, "has no kernel for precision=float32: set precis"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        FinetuneSettings("vlm", "mixture", Path("out"), **changes)


def test_the_global_batch_is_divided() -> None:
    settings = FinetuneSettings("vlm", "mixture", Path("out"), device_batch_size=2)
    assert settings.accumulation(8) == 8
    with pytest.raises(InvalidSetting, match=r"128 is no multiple of device_batch_size=2 times 3 .* multiple of 6"):
        settings.accumulation(3)
