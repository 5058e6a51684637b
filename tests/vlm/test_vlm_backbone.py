from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from vlm_golden import HIDDEN_LENGTH, formula_image, scene

from navsim_recogdrive.observation import InvalidObservation
from navsim_recogdrive.vlm import (
    PromptTooLong,
    VLMCheckpointError,
    load_backbone,
    read_vlm_identity,
    write_tiny_checkpoint,
)

IMAGE_CONTEXT = 151667


@pytest.fixture(scope="module")
def scenes(backbone):
    """Three scenes with prompts of different lengths, the last with fewer tiles."""
    image = formula_image(960, 540)
    return [
        backbone.prepare(scene(image)),
        backbone.prepare(scene(image, command=0, past=(0.0, 0.0, 0.0))),
        backbone.prepare(scene(formula_image(100, 100), command=3)),
    ]


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return ((first.float() - second.float()).norm() / first.float().norm()).item()


def test_prepare_cuts_tiles_and_writes_the_prompt(backbone, scenes):
    assert scenes[0].tiles.shape == (9, 112, 112, 3)
    assert scenes[0].tiles.dtype == np.uint8
    assert scenes[0].token_ids.dtype == np.int64
    assert (scenes[0].token_ids == IMAGE_CONTEXT).sum() == 9 * 16
    assert len({len(inputs.token_ids) for inputs in scenes}) == 3


def test_hidden_states_are_padded_in_front_with_the_constant_row(backbone, scenes):
    hidden = backbone.hidden_states(scenes)
    assert hidden.shape == (3, HIDDEN_LENGTH, 64)
    assert hidden.dtype == backbone.dtype == torch.bfloat16
    assert hidden.device == backbone.device
    assert hidden.isfinite().all()
    for rows, inputs in zip(hidden, scenes, strict=True):
        pads = HIDDEN_LENGTH - len(inputs.token_ids)
        assert pads > 0
        assert torch.equal(rows[:pads], backbone.padding_row.expand(pads, -1))
        assert torch.equal(rows[pads:], backbone.content_rows(inputs))


def test_a_scenes_rows_do_not_depend_on_its_batch(backbone, scenes):
    together = backbone.hidden_states(scenes)
    for index, inputs in enumerate(scenes):
        assert torch.equal(backbone.hidden_states([inputs])[0], together[index])
    assert torch.equal(backbone.hidden_states(scenes[::-1]).flip(0), together)


def test_rows_before_the_image_are_the_same_for_every_scene(backbone, scenes):
    first, second, third = (backbone.content_rows(inputs)[:291] for inputs in scenes)
    assert torch.equal(first, second)
    assert relative(first, third) < 0.01  # another sequence length may round differently


def test_hidden_states_depend_on_image_and_prompt(backbone):
    image = formula_image(960, 540)
    before = backbone.prepare(scene(image))
    other_image = backbone.prepare(scene(255 - image[::-1]))
    other_speed = backbone.prepare(scene(image, past=(-15.23, -9.81, -4.4)))
    rows = backbone.content_rows(before)
    on_image = torch.from_numpy(before.token_ids == IMAGE_CONTEXT)
    seen = backbone.content_rows(other_image)
    assert relative(rows[on_image], seen[on_image]) > 0.5
    assert relative(rows[-60:], seen[-60:]) > 0.2
    faster = backbone.content_rows(other_speed)
    assert torch.equal(rows[on_image], faster[on_image])  # causal: the history comes after the image
    assert relative(rows[-1], faster[-1]) > 1e-3


def test_inputs_survive_pickling_and_read_only_arrays(backbone, scenes):
    copy = pickle.loads(pickle.dumps(scenes[0]))
    copy.tiles.flags.writeable = False
    copy.token_ids.flags.writeable = False
    assert torch.equal(backbone.content_rows(copy), backbone.content_rows(scenes[0]))


def test_an_observation_without_image_is_refused(backbone):
    with pytest.raises(InvalidObservation, match="front_image is None: the VLM needs the front camera"):
        backbone.prepare(scene(None))


def test_a_prompt_longer_than_the_hidden_state_is_refused(checkpoint, scenes):
    short = load_backbone(checkpoint, hidden_length=600)
    message = "the prompt has 628 tokens .9 image tiles., a hidden state 600 rows: use fewer tiles"
    with pytest.raises(PromptTooLong, match=message):
        short.prepare(scene(formula_image(960, 540)))
    with pytest.raises(PromptTooLong, match=message):
        short.hidden_states([scenes[0]])


def test_fewer_tiles_make_a_shorter_prompt(checkpoint):
    few = load_backbone(checkpoint, hidden_length=HIDDEN_LENGTH, max_tiles=1)
    assert few.prepare(scene(formula_image(960, 540))).tiles.shape[0] == 1


def test_inputs_that_do_not_fit_are_refused(backbone, scenes):
    with pytest.raises(ValueError, match="at least one scene"):
        backbone.hidden_states([])
    with pytest.raises(ValueError, match="8 tiles need 128 image tokens, the prompt has 144"):
        backbone.content_rows(replace(scenes[0], tiles=scenes[0].tiles[:8]))
    with pytest.raises(ValueError, match=r"tiles must have shape \[T, 112, 112, 3\]"):
        backbone.content_rows(replace(scenes[0], tiles=scenes[0].tiles[:, :56]))


def test_identity_is_known_without_loading(checkpoint, backbone):
    identity = read_vlm_identity(checkpoint, hidden_length=HIDDEN_LENGTH)
    assert (identity.hidden_size, identity.hidden_length) == (backbone.hidden_size, backbone.hidden_length)
    assert identity.fingerprint == backbone.fingerprint


def test_float32_and_bfloat16_agree_and_share_their_identity(checkpoint, backbone, scenes):
    exact = load_backbone(checkpoint, hidden_length=HIDDEN_LENGTH, dtype=torch.float32)
    assert exact.fingerprint == backbone.fingerprint
    # Random attention is sharper than a trained model's, so single rows part company; the bulk does not.
    assert relative(exact.content_rows(scenes[0]), backbone.content_rows(scenes[0])) < 0.1
    assert relative(exact.padding_row, backbone.padding_row) < 0.02


def test_published_sizes_give_published_lengths(tmp_path):
    backbone = load_backbone(write_tiny_checkpoint(tmp_path / "vlm", num_layers=1))
    inputs = backbone.prepare(scene(formula_image(1920, 1080)))
    assert inputs.tiles.shape == (9, 448, 448, 3)
    assert (inputs.token_ids == IMAGE_CONTEXT).sum() == 2304
    assert 2782 <= len(inputs.token_ids) <= 2799
    assert backbone.hidden_states([inputs]).shape == (1, 2800, 64)


def test_moving_follows_the_caller(backbone):
    assert backbone.to("cpu") is backbone
    assert backbone.device == torch.device("cpu")


def test_a_hidden_length_beyond_the_models_positions_is_refused(checkpoint):
    with pytest.raises(
        ValueError, match="hidden_length must be between 1 and the model's 32768 positions, found 40000"
    ):
        load_backbone(checkpoint, hidden_length=40000)


@pytest.fixture
def damaged(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "damaged")


def test_a_checkpoint_without_tokenizer_is_refused(damaged):
    (damaged / "merges.txt").unlink()
    with pytest.raises(
        VLMCheckpointError, match=r"has no tokenizer: looked for tokenizer.json, or vocab.json and merges"
    ):
        load_backbone(damaged)


def test_a_damaged_tokenizer_is_refused(damaged):
    (damaged / "vocab.json").write_text("{")
    with pytest.raises(VLMCheckpointError, match=r"the tokenizer files .* cannot be read"):
        load_backbone(damaged)


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(damaged):
    config = json.loads((damaged / "config.json").read_text())
    config["llm_config"]["vocab_size"] = 151665
    (damaged / "config.json").write_text(json.dumps(config))
    with pytest.raises(VLMCheckpointError, match="the tokenizer has 151674 tokens, the model's vocabulary only 151665"):
        load_backbone(damaged)


def test_no_code_of_the_checkpoint_is_run(damaged, backbone, scenes):
    for name in ("configuration_internvl_chat.py", "modeling_internvl_chat.py", "tokenization_other.py"):
        (damaged / name).write_text("raise SystemExit('remote code was run')")
    for name, reference in (
        ("config.json", {"AutoConfig": "configuration_internvl_chat.C", "AutoModel": "modeling_internvl_chat.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_other.T", None]}),
    ):
        content = json.loads((damaged / name).read_text())
        (damaged / name).write_text(json.dumps(content | {"auto_map": reference}))
    found = load_backbone(damaged, hidden_length=HIDDEN_LENGTH)
    assert found.fingerprint == backbone.fingerprint
    assert torch.equal(found.content_rows(scenes[2]), backbone.content_rows(scenes[2]))
