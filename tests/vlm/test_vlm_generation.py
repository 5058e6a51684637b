from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from copying_vlm import answer_text, write_copying_vlm
from tiny_sizes import TINY_TILE
from vlm_golden import formula_image, scene

from navsim_recogdrive.vlm import VLMOutOfMemory, VLMSettings, language, load_backbone, write_tiny_checkpoint
from navsim_recogdrive.vlm.generation import END_TOKENS, generate, longest_answer
from navsim_recogdrive.vlm.prompts import PromptError
from navsim_recogdrive.vlm.tiling import normalize_tiles
from navsim_recogdrive.vlm.tiny_checkpoint import LAYOUTS

NEW_TOKENS = 5


@pytest.fixture(scope="module")
def writer(tiny_vlm):
    return load_backbone(tiny_vlm, dtype=torch.float32, with_head=True)


@pytest.fixture(scope="module")
def scenes(writer):
    """Three scenes with prompts of different lengths, the last with fewer tiles."""
    image = formula_image(960, 540)
    return [
        writer.prepare(scene(image)),
        writer.prepare(scene(image, command=0, past=(0.0, 0.0, 0.0))),
        writer.prepare(scene(formula_image(100, 100), command=3)),
    ]


@pytest.fixture(scope="module")
def copier(tmp_path_factory):
    folder, profile = write_copying_vlm(tmp_path_factory.mktemp("vlm") / "copier", answer_text(), TINY_TILE)
    settings = VLMSettings(folder, prompt_profile=profile)
    return load_backbone(settings, dtype=torch.float32, with_head=True)


@torch.no_grad()
def plain_loop(writer, inputs, count: int) -> str:
    """Argmax over whole forward passes, nothing kept from one to the next."""
    token_ids = torch.from_numpy(inputs.token_ids)[None]
    pixels = normalize_tiles(torch.from_numpy(inputs.tiles))
    for _ in range(count):
        logits = writer.family.generator(
            input_ids=token_ids, pixel_values=pixels, use_cache=False, logits_to_keep=1
        ).logits
        token_ids = torch.cat([token_ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return writer.tokenizer.decode(token_ids[0, -count:].tolist())


def test_answers_are_those_of_a_plain_loop_over_whole_forward_passes(writer, scenes):
    answers = generate(writer, scenes, NEW_TOKENS)
    assert [answer.text for answer in answers] == [plain_loop(writer, inputs, NEW_TOKENS) for inputs in scenes]
    assert len({answer.text for answer in answers}) == 3


def test_a_scenes_answer_does_not_depend_on_its_batch(writer, scenes):
    together = generate(writer, scenes, NEW_TOKENS)
    assert [generate(writer, [inputs], NEW_TOKENS)[0] for inputs in scenes] == together
    assert generate(writer, scenes[::-1], NEW_TOKENS) == together[::-1]


@torch.no_grad()
def loop_over_hidden_states(writer, inputs, count: int) -> str:
    """As above for every kind of VLM, from the rows that planners see."""
    for _ in range(count):
        logits = writer.family.generator.lm_head(writer.hidden_states([inputs])[:, -1])
        inputs = replace(inputs, token_ids=np.append(inputs.token_ids, logits.argmax().item()))
    return writer.tokenizer.decode(inputs.token_ids[-count:].tolist())


@pytest.fixture(scope="module", params=LAYOUTS)
def any_kind(request, tmp_path_factory):
    tiles = {"tile_size": TINY_TILE} if request.param.startswith("internvl") else {}
    folder = tmp_path_factory.mktemp("vlm") / request.param
    return VLMSettings(write_tiny_checkpoint(folder, layout=request.param, hidden_size=32, **tiles), max_tiles=1)


def prepare_several(writer):
    """Four scenes with prompts of different lengths; one image stands upright."""
    scenes = [
        writer.prepare(scene(formula_image(*size), command=command, past=past))
        for size, command, past in [
            ((480, 270), 1, (-10.23, -6.81, -3.4)),
            ((480, 270), 0, (0.0, 0.0, 0.0)),
            ((270, 480), 2, (-3.0, -2.0, -1.0)),
            ((480, 270), 3, (-103.0, -62.0, -31.0)),
        ]
    ]
    assert len({len(inputs.token_ids) for inputs in scenes}) > 2
    return scenes


def test_every_kind_writes_what_its_hidden_states_say_in_any_batch(any_kind):
    writer = load_backbone(any_kind, dtype=torch.float32, with_head=True)
    scenes = prepare_several(writer)
    answers = [answer.text for answer in generate(writer, scenes, NEW_TOKENS)]
    assert answers == [loop_over_hidden_states(writer, inputs, NEW_TOKENS) for inputs in scenes]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_behind_the_prefix_are_those_of_whole_prompts(any_kind, dtype, monkeypatch):
    writer = load_backbone(any_kind, dtype=dtype, with_head=True)
    if not writer.family.writes_behind_prefix:
        pytest.skip("this release of transformers cannot do it for this kind")
    scenes = prepare_several(writer)
    batches = [scenes, scenes[:1], scenes[::-1], scenes[1:3]]
    behind, compute_prefix, computed, rows = len(writer.preparation.prefix_ids), language.compute_prefix, [], []

    def counted(*arguments):
        computed.append(compute_prefix(*arguments))
        return computed[-1]

    def record(module, arguments, keywords):
        rows.append(keywords["inputs_embeds"].shape[1])

    monkeypatch.setattr(language, "compute_prefix", counted)
    first = generate(writer, scenes[:1], NEW_TOKENS)
    stored = [part.clone() for layer in computed[0].keys_and_values for part in layer]
    watch = writer.model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    continued = [generate(writer, batch, NEW_TOKENS) for batch in batches]
    prefills = [count for count in rows if count > 1]
    assert len(computed) == 1, "once for all batches"
    kept = [part for layer in computed[0].keys_and_values for part in layer]
    assert all(torch.equal(before, after) for before, after in zip(stored, kept, strict=True)), "written to"

    rows.clear()
    writer.trainable = True  # what changes from step to step is computed anew
    whole = [generate(writer, batch, NEW_TOKENS) for batch in batches]
    watch.remove()
    assert prefills == [count - behind for count in rows if count > 1]
    assert len(computed) == 1
    assert continued == whole
    assert first == continued[1]


def test_generation_is_bounded_and_says_that_it_was_cut_off(writer, scenes):
    for answer, longer in zip(generate(writer, scenes, 3), generate(writer, scenes, NEW_TOKENS), strict=True):
        assert not answer.finished
        assert answer.text != longer.text
        assert longer.text.startswith(answer.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_an_answer_ends_with_its_end_token(copier):
    image = formula_image(960, 540)
    inputs = [copier.prepare(scene(image)), copier.prepare(scene(image, past=(0.0, 0.0, 0.0)))]
    assert len({len(one.token_ids) for one in inputs}) == 2
    for answer in generate(copier, inputs, 256):
        assert answer.finished
        assert answer.text.strip() == answer_text()


@pytest.mark.parametrize("end", END_TOKENS)
def test_either_end_token_ends_an_answer(writer, scenes, end):
    head = writer.family.generator.lm_head.weight
    likeliest = writer.family.generator.lm_head(writer.hidden_states(scenes[:1])[:, -1]).argmax()
    saved = head[writer.tokenizer.convert_tokens_to_ids(end)].clone()
    try:
        head[writer.tokenizer.convert_tokens_to_ids(end)] = 2 * head[likeliest]
        (answer,) = generate(writer, scenes[:1], NEW_TOKENS)
    finally:
        head[writer.tokenizer.convert_tokens_to_ids(end)] = saved
    assert answer.text == ""
    assert answer.finished


def test_the_checkpoints_own_sampling_settings_are_not_read(tiny_vlm, writer, scenes, tmp_path):
    folder = tmp_path / "vlm"
    shutil.copytree(tiny_vlm, folder)
    sampling = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 1}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    other = load_backbone(folder, dtype=torch.float32, with_head=True)
    assert generate(other, scenes[:1], NEW_TOKENS) == generate(writer, scenes[:1], NEW_TOKENS)


def test_longest_answer_is_enough_for_every_plan(copier, writer):
    most = longest_answer(writer)
    assert most == 185
    random = np.random.default_rng(0)
    for scale in (0.1, 5.0, 80.0):
        poses = np.clip(random.normal(size=(8, 3)) * scale, -249.99, 249.99)
        text = writer.profile.answer_text(writer.tokenizer, poses)
        assert len(writer.tokenizer.encode(text, add_special_tokens=False)) < most


def test_a_tokenizer_without_an_end_of_turn_is_refused_before_the_first_scene(copier, monkeypatch):
    known = copier.tokenizer.convert_tokens_to_ids
    monkeypatch.setattr(
        copier.tokenizer, "convert_tokens_to_ids", lambda token: None if token == "<|im_end|>" else known(token)
    )
    with pytest.raises(PromptError, match=r"the tokenizer has no token <\|im_end\|>"):
        longest_answer(copier)


def test_a_backbone_without_head_cannot_write(tiny_vlm, scenes):
    with pytest.raises(ValueError, match="with_head=True"):
        generate(load_backbone(tiny_vlm), scenes, NEW_TOKENS)


def test_bad_arguments(writer, scenes):
    with pytest.raises(ValueError, match="at least one scene"):
        generate(writer, [], NEW_TOKENS)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, found 0"):
        generate(writer, scenes, 0)
    with pytest.raises(ValueError, match="more than the model's 32768 positions: lower max_new_tokens"):
        generate(writer, scenes, 32768)


def test_out_of_memory_names_the_settings(writer, scenes, monkeypatch):
    def fail(**_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(writer.family.generator, "generate", fail)
    with pytest.raises(VLMOutOfMemory, match="lower agent.generation.max_new_tokens or agent.vlm.max_tiles"):
        generate(writer, scenes, NEW_TOKENS)
