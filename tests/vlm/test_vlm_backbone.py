from __future__ import annotations

import importlib.util
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
    PromptError,
    PromptTooLong,
    VLMCheckpointError,
    VLMOutOfMemory,
    VLMSettings,
    load_backbone,
    preparation,
    read_hidden_size,
    read_vlm_identity,
    write_tiny_checkpoint,
)
from navsim_recogdrive.vlm.tiling import normalize_tiles

IMAGE_CONTEXT = 151667


@pytest.fixture(scope="module")
def exact(checkpoint):
    """In float32, where two ways to the same result can be told from two results."""
    return load_backbone(checkpoint, dtype=torch.float32)


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


def test_tiles_cut_on_a_device_are_those_of_the_cpu(backbone, scenes):
    on_device = backbone.preparation.prepare(scene(formula_image(960, 540)), torch.device("cpu"))
    assert isinstance(on_device.tiles, torch.Tensor)
    on_cpu = backbone.prepare(scene(formula_image(960, 540)))
    assert np.array_equal(on_device.tiles.numpy(), on_cpu.tiles)
    assert np.array_equal(on_device.token_ids, on_cpu.token_ids)
    assert torch.equal(backbone.hidden_states([on_device]), backbone.hidden_states([on_cpu]))


def test_the_cpu_cuts_the_tiles_where_the_gpu_is_full(backbone, monkeypatch):
    real = preparation.cut_image

    def full(architecture, image, max_tiles):
        if isinstance(image, torch.Tensor):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(architecture, image, max_tiles)

    monkeypatch.setattr(preparation, "cut_image", full)
    inputs = backbone.preparation.prepare(scene(formula_image(960, 540)), torch.device("cpu"))
    assert np.array_equal(inputs.tiles, backbone.prepare(scene(formula_image(960, 540))).tiles)


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
        assert relative(rows[pads:], backbone.content_rows(inputs)) < 0.02  # bf16, batched and alone


def test_a_batch_gives_the_rows_of_its_scenes_by_themselves(exact, scenes):
    together = exact.hidden_states(scenes)
    for index, inputs in enumerate(scenes):
        alone = exact.hidden_states([inputs])[0]
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.hidden_states(scenes[::-1]).flip(0), together, rtol=1e-5, atol=1e-5)


def test_continuing_the_shared_prefix_gives_the_rows_of_the_whole_prompt(exact, scenes):
    for inputs in scenes:
        with torch.no_grad():
            whole = exact.model(
                input_ids=torch.from_numpy(inputs.token_ids)[None],
                pixel_values=normalize_tiles(torch.from_numpy(inputs.tiles)),
            ).last_hidden_state[0]
        torch.testing.assert_close(exact.content_rows(inputs), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_kernels_agree(checkpoint, exact, scenes, attention):
    other = load_backbone(checkpoint, dtype=torch.float32, attention=attention)
    torch.testing.assert_close(other.hidden_states(scenes), exact.hidden_states(scenes), rtol=1e-4, atol=1e-4)


def test_an_attention_kernel_that_is_not_there_is_refused(checkpoint):
    with pytest.raises(ValueError, match="attention must be one of .*, found 'flash'"):
        load_backbone(checkpoint, attention="flash")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(
            ValueError, match="needs the package flash-attn, which is not installed: use attention=sdpa"
        ):
            load_backbone(checkpoint, attention="flash_attention_2")


def test_rows_before_the_image_are_computed_once_and_the_same_for_every_scene(checkpoint, scenes):
    backbone = load_backbone(checkpoint)
    lengths = []
    hook = backbone.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append((kwargs.get("input_ids", kwargs.get("inputs_embeds"))).shape[1]),
        with_kwargs=True,
    )
    with hook:
        first, second = backbone.content_rows(scenes[0]), backbone.content_rows(scenes[2])
    assert lengths == [291, len(scenes[0].token_ids) - 291, len(scenes[2].token_ids) - 291]
    assert torch.equal(first[:291], second[:291])
    assert torch.equal(first[:291], backbone.prefix_rows)


def test_the_vision_tower_sees_the_tiles_of_all_scenes_at_once(backbone, scenes):
    batches = []
    with backbone.model.vision_tower.register_forward_pre_hook(
        lambda _module, _args, kwargs: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    ):
        backbone.hidden_states(scenes)
    assert batches == [sum(len(inputs.tiles) for inputs in scenes)]


def test_a_trainable_backbone_keeps_nothing_from_one_call_to_the_next(checkpoint, scenes):
    backbone = load_backbone(checkpoint, dtype=torch.float32)
    frozen = backbone.hidden_states(scenes[:1])
    assert not frozen.requires_grad
    backbone.trainable = True
    weight = backbone.model.language_model.layers[0].mlp.up_proj.weight.requires_grad_()
    hidden = backbone.hidden_states(scenes[:1])
    torch.testing.assert_close(hidden.detach(), frozen, rtol=1e-4, atol=1e-4)
    hidden[:, :300].sum().backward()  # padding and prefix rows only
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    with torch.no_grad():
        before = backbone.hidden_states(scenes[:1])
        weight.mul_(1.5)
        after = backbone.hidden_states(scenes[:1])
    assert relative(before[:, :2], after[:, :2]) > 1e-3  # padding
    assert relative(before[:, 100:300], after[:, 100:300]) > 1e-3  # prefix


def test_what_was_kept_before_training_is_not_used_after_it(checkpoint, scenes):
    backbone = load_backbone(checkpoint, dtype=torch.float32)
    before = backbone.hidden_states(scenes[:1])
    backbone.trainable = True
    with torch.no_grad():
        backbone.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
    trained = backbone.hidden_states(scenes[:1]).detach()
    backbone.trainable = False
    after = backbone.hidden_states(scenes[:1])
    assert relative(before[:, :300], after[:, :300]) > 1e-3
    torch.testing.assert_close(after, trained, rtol=1e-4, atol=1e-4)


def test_autocast_of_a_trainer_does_not_reach_the_model(exact, scenes):
    plain = exact.hidden_states(scenes[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact.hidden_states(scenes[:1]), plain)


def test_running_out_of_gpu_memory_names_the_setting_that_lowers_it(checkpoint, scenes, monkeypatch):
    backbone = load_backbone(checkpoint)

    def exhausted(*_args, **_kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(backbone.family, "image_rows", exhausted)
    with pytest.raises(
        VLMOutOfMemory, match=r"with 2 scene\(s\) at once: lower dataloader.params.batch_size.*20.00 GiB"
    ):
        backbone.hidden_states(scenes[:2])
    alone = r"with 1 scene\(s\) at once: let fewer workers share the GPU .*, or use the 2B model"
    with pytest.raises(VLMOutOfMemory, match=f"{alone}, or free the GPU"):
        backbone.hidden_states(scenes[:1])
    backbone.trainable = True
    with pytest.raises(VLMOutOfMemory, match="agent.vlm.gradient_checkpointing=true"):
        backbone.hidden_states(scenes[:1])
    backbone.model.language_model.gradient_checkpointing_enable()
    with pytest.raises(VLMOutOfMemory, match=alone):
        backbone.hidden_states(scenes[:1])
    monkeypatch.setattr("navsim_recogdrive.vlm.loading.build_model", exhausted)
    with pytest.raises(VLMOutOfMemory, match=r"does not fit on cpu in torch.bfloat16: use .*the 2B model"):
        load_backbone(checkpoint)


@pytest.fixture(scope="module")
def three_cameras(checkpoint):
    return load_backbone(VLMSettings(checkpoint, cam_type="multi"), dtype=torch.float32)


def test_three_cameras_have_a_length_of_their_own(three_cameras, backbone):
    assert backbone.hidden_length == 496 + 9 * 16
    assert three_cameras.hidden_length == 496 + 3 * 9 * 16
    assert three_cameras.fingerprint != backbone.fingerprint
    left, front, right = formula_image(960, 540), 255 - formula_image(960, 540), formula_image(960, 540)[::-1]
    observation = replace(scene(front), front_left_image=left, front_right_image=right)
    inputs = three_cameras.prepare(observation)
    assert inputs.tiles.shape == (27, 112, 112, 3)
    for tiles, image in zip(np.split(inputs.tiles, 3), (left, front, right), strict=True):
        assert np.array_equal(tiles, backbone.prepare(scene(image)).tiles)
    hidden = three_cameras.hidden_states([inputs])
    assert hidden.shape == (1, 928, 64)
    swapped = three_cameras.prepare(replace(observation, front_left_image=right, front_right_image=left))
    assert relative(hidden[0, -60:], three_cameras.hidden_states([swapped])[0, -60:]) > 0.01


def test_a_camera_that_is_missing_or_of_another_size_is_refused(three_cameras):
    image = formula_image(960, 540)
    with pytest.raises(InvalidObservation, match=r"front_left_image is None.*last frame, cam_type=multi"):
        three_cameras.prepare(scene(image))
    other = replace(scene(image), front_left_image=image, front_right_image=formula_image(540, 960))
    assert len(three_cameras.prepare(other).tiles) == 27


def test_a_profile_about_other_cameras_is_refused(checkpoint):
    with pytest.raises(PromptError, match="about a single image"):
        load_backbone(VLMSettings(checkpoint, cam_type="multi", prompt_profile="published"))
    with pytest.raises(ValueError, match=r"cam_type must be one of \['multi', 'single'\], found 'all'"):
        VLMSettings(checkpoint, cam_type="all")


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
    short = load_backbone(VLMSettings(checkpoint, hidden_length=600))
    message = "the prompt has 628 tokens .144 of them for images., a hidden state 600 rows: use fewer tiles"
    with pytest.raises(PromptTooLong, match=message):
        short.prepare(scene(formula_image(960, 540)))
    with pytest.raises(PromptTooLong, match=message):
        short.hidden_states([scenes[0]])


def test_fewer_tiles_make_a_shorter_prompt(checkpoint):
    few = load_backbone(VLMSettings(checkpoint, hidden_length=HIDDEN_LENGTH, max_tiles=1))
    assert few.prepare(scene(formula_image(960, 540))).tiles.shape[0] == 1


def test_inputs_that_do_not_fit_are_refused(backbone, scenes):
    with pytest.raises(ValueError, match="at least one scene"):
        backbone.hidden_states([])
    with pytest.raises(ValueError, match="8 tiles need 128 image tokens, the prompt has 144"):
        backbone.content_rows(replace(scenes[0], tiles=scenes[0].tiles[:8]))
    with pytest.raises(ValueError, match=r"tiles of this checkpoint are 112 x 112 pixels, found 56 x 112"):
        backbone.content_rows(replace(scenes[0], tiles=scenes[0].tiles[:, :56]))
    with pytest.raises(ValueError, match=r"tiles must have shape \[T, h, w, 3\], found \[9, 112, 112\]"):
        backbone.content_rows(replace(scenes[0], tiles=scenes[0].tiles[..., 0]))
    with pytest.raises(ValueError, match="the prompt does not begin as this backbone's profile writes it"):
        backbone.content_rows(replace(scenes[0], token_ids=scenes[0].token_ids[1:]))


def test_identity_is_known_without_loading(checkpoint, backbone):
    identity = read_vlm_identity(VLMSettings(checkpoint))
    assert read_hidden_size(VLMSettings(checkpoint)) == 64
    assert (identity.hidden_size, identity.hidden_length) == (backbone.hidden_size, backbone.hidden_length)
    assert identity.fingerprint == backbone.fingerprint


def test_float32_and_bfloat16_agree_and_share_their_identity(exact, backbone, scenes):
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
        load_backbone(VLMSettings(checkpoint, hidden_length=40000))


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
    found = load_backbone(damaged)
    assert found.fingerprint == backbone.fingerprint
    assert torch.equal(found.content_rows(scenes[2]), backbone.content_rows(scenes[2]))
