from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from random_observation import random_observation

from navsim_recogdrive.vlm import adapters, attention
from navsim_recogdrive.vlm.adapters import LoRA, PeftMissing, TrainedVLM, make_trainable, parameter_dtype, restore
from navsim_recogdrive.vlm.backbone import Backbone, VLMInputs
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.identity import VLMSettings
from navsim_recogdrive.vlm.loading import load_backbone
from navsim_recogdrive.vlm.preparation import load_preparation
from navsim_recogdrive.vlm.tiny_checkpoint import write_tiny_checkpoint

ADAPTERS = LoRA(rank=2, alpha=8, dropout=0.0)


@pytest.fixture(scope="module", params=["internvl_chat", "qwen2_5_vl", "qwen3_vl"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / request.param
    tile = {"tile_size": 56} if request.param == "internvl_chat" else {}
    return write_tiny_checkpoint(folder, layout=request.param, hidden_size=32, **tile)


Load = Callable[..., Backbone]


@pytest.fixture
def load(checkpoint: Path) -> Load:
    def load(training: str = "frozen", dtype: torch.dtype = torch.float32) -> Backbone:
        settings = VLMSettings(checkpoint, max_tiles=4, hidden_length=640)
        return load_backbone(settings, dtype=parameter_dtype(training, dtype))

    return load


def _trained(load: Load, training: str, dtype: torch.dtype = torch.float32) -> tuple[Backbone, TrainedVLM]:
    """A backbone after one step of gradient descent, and what a checkpoint would hold of it."""
    backbone = load(training, dtype)
    base = backbone.fingerprint
    lora = ADAPTERS if training == "lora" else None
    make_trainable(backbone, training, lora, dtype=dtype)
    if training == "lora":  # B starts at zero, and A gets no gradient then
        with torch.no_grad():
            for name, value in adapters.trained_parameters(backbone.model, "lora").items():
                if "lora_B" in name:
                    value.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    scenes = [backbone.prepare(random_observation(seed)) for seed in range(2)]
    backbone.hidden_states(scenes).float().square().mean().backward()
    parameters = adapters.trained_parameters(backbone.model, training)
    silent = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert not silent, "DDP without find_unused_parameters needs a gradient for every parameter"
    untrained = [name for name, p in backbone.model.named_parameters() if p.grad is not None and name not in parameters]
    assert not untrained
    with torch.no_grad():
        for parameter in parameters.values():
            parameter -= 0.3 * parameter.grad
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return backbone, TrainedVLM(training, base, lora, weights)


@pytest.mark.parametrize("training", ["lora", "full"])
def test_what_was_trained_is_restored_exactly(load: Load, training: str) -> None:
    frozen = load()
    scenes: list[VLMInputs] = [frozen.prepare(random_observation(seed)) for seed in range(3)]
    before = frozen.hidden_states(scenes)
    backbone, trained = _trained(load, training)
    with torch.no_grad():
        after = backbone.hidden_states(scenes)
    assert (after - before).abs().max() > 1e-3

    stored = TrainedVLM.from_state(trained.about, trained.weights)
    restored = load(training)
    restore(restored, stored, torch.float32)
    assert torch.equal(restored.hidden_states(scenes), after)
    assert not any(parameter.requires_grad for parameter in restored.model.parameters())
    assert restored.fingerprint == trained.fingerprint != frozen.fingerprint
    assert torch.equal(frozen.hidden_states(scenes), before), "another copy of the base was changed"


def test_bf16_computes_alike_in_training_and_after(load: Load) -> None:
    for training in ("lora", "full"):
        backbone, trained = _trained(load, training, torch.bfloat16)
        assert {value.dtype for value in trained.weights.values()} == {torch.float32}
        scenes = [backbone.prepare(random_observation(0))]
        with torch.no_grad():
            after = backbone.hidden_states(scenes)
        assert after.dtype == torch.bfloat16
        restored = load(training, torch.bfloat16)
        restore(restored, trained, torch.bfloat16)
        assert torch.equal(restored.hidden_states(scenes), after)


@pytest.mark.parametrize(
    ("training", "dtype"),
    [("frozen", torch.float32), ("lora", torch.bfloat16), ("full", torch.bfloat16)],
)
def test_attention_is_computed_in_the_configured_dtype(
    load: Load, training: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(training, dtype)
    if training != "frozen":
        make_trainable(backbone, training, ADAPTERS if training == "lora" else None, dtype=dtype)
        backbone.model.eval()
    found: dict[str, set[torch.dtype]] = {"sdpa_attention_forward": set(), "scaled_dot_product_attention": set()}

    def watch(name: str) -> None:
        kernel = getattr(attention, name)

        def spy(*arguments: object, **how: object) -> object:
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            found[name].update(one.dtype for one in tensors[:3])
            return kernel(*arguments, **how)

        monkeypatch.setattr(attention, name, spy)

    for name in found:  # of whole prompts and images, and behind the prefix
        watch(name)
    with torch.no_grad():
        hidden = backbone.hidden_states([backbone.prepare(random_observation(0))])
    assert hidden.dtype == dtype
    assert found == {name: {dtype} for name in found}


@pytest.mark.parametrize("training", ["lora", "full"])
def test_checkpointed_gradients_are_the_same(load: Load, training: str) -> None:
    lora = LoRA(rank=2, dropout=0.0) if training == "lora" else None
    results, calls = [], []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = load(training)
        make_trainable(backbone, training, lora, dtype=torch.float32, gradient_checkpointing=gradient_checkpointing)
        backbone.model.train()
        counted: list[object] = []
        for layer in backbone.model.language_model.layers:
            layer.self_attn.register_forward_pre_hook(lambda *_, counted=counted: counted.append(1))
        scenes = [backbone.prepare(random_observation(seed)) for seed in range(2)]
        backbone.hidden_states(scenes).square().mean().backward()
        parameters = adapters.trained_parameters(backbone.model, training)
        results.append({name: parameter.grad for name, parameter in parameters.items()})
        calls.append(len(counted))
        with torch.no_grad():  # a rollout in training mode
            rollout = backbone.hidden_states(scenes)
        backbone.model.eval()
        torch.testing.assert_close(backbone.hidden_states(scenes).detach(), rollout, rtol=1e-4, atol=1e-5)
    assert calls[1] == 2 * calls[0], "checkpointed layers run again in the backward pass"
    torch.testing.assert_close(results[0], results[1])


def test_gradients_do_not_depend_on_an_outer_autocast(load: Load) -> None:
    """16-mixed training would compute in float16, in which InternVL overflows."""
    backbone = load()
    scenes = [backbone.prepare(random_observation(0))]
    plain = backbone.hidden_states(scenes)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(backbone.hidden_states(scenes), plain)


def test_another_base_and_other_weights_are_refused(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    _, trained = _trained(load, "lora")
    with pytest.raises(VLMCheckpointError, match=rf"{trained.base}.*{'0' * 64}|{'0' * 64}.*{trained.base}"):
        restore(load(), TrainedVLM("lora", "0" * 64, trained.lora, trained.weights), torch.float32)
    name, *others = trained.weights
    fewer = {key: trained.weights[key] for key in others}
    with pytest.raises(VLMCheckpointError, match=f"missing: {name}$"):
        restore(load(), TrainedVLM("lora", trained.base, trained.lora, fewer), torch.float32)
    with pytest.raises(VLMCheckpointError, match="unexpected: stray"):
        restore(
            load(),
            TrainedVLM("lora", trained.base, trained.lora, {**trained.weights, "stray": torch.zeros(1)}),
            torch.float32,
        )
    strays = {f"stray{number}": torch.zeros(1) for number in range(10)}
    with pytest.raises(VLMCheckpointError, match=rf"missing: {name}; unexpected: stray0, .* and 2 more$"):
        restore(load(), TrainedVLM("lora", trained.base, trained.lora, {**fewer, **strays}), torch.float32)
    (logged,) = (record.message for record in caplog.records if record.levelname == "ERROR")
    assert all(stray in logged for stray in strays), "the list that the message shortens"
    with pytest.raises(VLMCheckpointError, match=r"other shape: .*expected"):
        restore(load(), TrainedVLM("lora", trained.base, trained.lora, {**fewer, name: torch.zeros(3)}), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(load: Load, value: float) -> None:
    backbone, trained = _trained(load, "lora")
    before = {name: weight.clone() for name, weight in trained.weights.items()}
    name = sorted(trained.weights)[3]
    broken = {key: weight + 1 for key, weight in before.items()}
    broken[name][0, 0] = value
    with pytest.raises(VLMCheckpointError, match=rf"values that are not finite: {name}; its training"):
        adapters.load_trained(backbone, TrainedVLM("lora", trained.base, trained.lora, broken))
    kept = adapters.trained_parameters(backbone.model, "lora")
    assert all(torch.equal(weight, kept[key]) for key, weight in before.items()), "nothing is changed then"


def test_loading_weights_forgets_what_others_gave(load: Load) -> None:
    backbone, trained = load("full"), _trained(load, "full")[1]
    scene = backbone.prepare(random_observation(0))
    backbone.hidden_states([scene])  # what it keeps of the prefix is of the base VLM
    restore(backbone, trained, torch.float32)
    fresh = load("full")
    restore(fresh, trained, torch.float32)
    assert torch.equal(backbone.hidden_states([scene]), fresh.hidden_states([scene]))


def test_fingerprint_covers_the_weights(load: Load) -> None:
    _, trained = _trained(load, "lora")
    name = next(iter(trained.weights))
    changed = {**trained.weights, name: trained.weights[name] + 1e-3}
    assert TrainedVLM("lora", trained.base, trained.lora, changed).fingerprint != trained.fingerprint
    assert TrainedVLM("lora", trained.base, LoRA(rank=2, alpha=9), trained.weights).fingerprint != trained.fingerprint
    assert TrainedVLM("lora", "other", trained.lora, trained.weights).fingerprint != trained.fingerprint


def test_damaged_descriptions(load: Load) -> None:
    for content, message in (
        (b"{", "damaged"),
        (b'{"format": 1}', "damaged"),
        (json.dumps({"format": 2}).encode(), "format 2"),
    ):
        with pytest.raises(VLMCheckpointError, match=message):
            TrainedVLM.from_state(torch.tensor(list(content), dtype=torch.uint8), {})


def test_adapters_that_cannot_be_made(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\['query'\].*'q_proj'"):
        make_trainable(load(), "lora", LoRA(target_modules=("query",)), dtype=torch.float32)
    for settings in ({"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"target_modules": ()}, {"target_modules": "all"}):
        with pytest.raises(ValueError, match=f"lora.{next(iter(settings))}"):
            LoRA(**settings)  # type: ignore[arg-type]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(PeftMissing, match=r"pip install -e '\.\[lora\]'"):
        make_trainable(load(), "lora", LoRA(), dtype=torch.float32)


def test_preparing_without_weights_gives_the_same(load: Load, checkpoint: Path) -> None:
    backbone = load()
    preparation = load_preparation(VLMSettings(checkpoint, max_tiles=4, hidden_length=640))
    assert preparation.fingerprint == backbone.preparation.fingerprint
    for seed, size in enumerate([(112, 200), (200, 112), (96, 400)]):
        ours, theirs = (
            preparation.prepare(random_observation(seed, size)),
            backbone.prepare(random_observation(seed, size)),
        )
        assert np.array_equal(ours.tiles, theirs.tiles)
        assert np.array_equal(ours.token_ids, theirs.token_ids)
        assert len(ours.tiles) <= preparation.tile_capacity
    other = load_preparation(VLMSettings(checkpoint, max_tiles=2, hidden_length=640))
    assert other.fingerprint != preparation.fingerprint
