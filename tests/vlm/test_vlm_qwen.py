"""Qwen2.5-VL and Qwen3-VL against transformers' own code on the same tiny checkpoints."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from golden_internvl import edit, rename_weights, rewrite_weights
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from vlm_golden import DATA, formula_image, golden, scene

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.vlm import VLMCheckpointError, VLMSettings, load_backbone, write_tiny_checkpoint
from navsim_recogdrive.vlm.architecture import default_hidden_length, read_architecture
from navsim_recogdrive.vlm.checkpoint_files import stored_tensors
from navsim_recogdrive.vlm.language import padding_row
from navsim_recogdrive.vlm.loading import load_family
from navsim_recogdrive.vlm.preparation import cut_image

KINDS = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
PROCESSORS = {
    "qwen2_5_vl": {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 448 * 448}},
    "qwen3_vl": {
        "patch_size": 16,
        "size": {"shortest_edge": 65536, "longest_edge": 448 * 448},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
}
IMAGE_PAD = 151655


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(tmp_path_factory, request):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("qwen") / request.param, layout=request.param, hidden_size=32)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(VLMSettings(checkpoint, max_tiles=1), dtype=torch.float32, with_head=True)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return KINDS[checkpoint.name].from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / checkpoint.name)


def by_transformers(reference, image, token_ids):
    """A prompt's arguments as transformers' own image processor prepares them."""
    processor = Qwen2VLImageProcessorPil(**PROCESSORS[reference.config.model_type])
    images = [Image.fromarray(one) for one in (image if isinstance(image, list) else [image])]
    ids = torch.from_numpy(token_ids)[None]
    processed = dict(processor(images=images, return_tensors="pt"))
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_PAD).int(), **processed}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_hidden_states_equal_those_of_the_whole_prompt_in_transformers(backbone, reference):
    for image, command in ((formula_image(480, 270), 1), (formula_image(300, 500)[::-1], 3)):
        inputs = backbone.prepare(scene(image, command=command))
        expected = reference.model(**by_transformers(reference, image, inputs.token_ids)).last_hidden_state[0]
        assert relative(backbone.content_rows(inputs), expected) < 1e-5


@torch.no_grad()
def test_three_cameras_equal_transformers_too(checkpoint, reference):
    backbone = load_backbone(VLMSettings(checkpoint, max_tiles=1, cam_type="multi"), dtype=torch.float32)
    images = [formula_image(200, 120), 255 - formula_image(200, 120), formula_image(200, 120)[:, ::-1]]
    one = scene(images[1])
    inputs = backbone.prepare(
        Observation(
            images[1], one.past_poses, one.velocity, one.acceleration, one.driving_command, images[0], images[2]
        )
    )
    expected = reference.model(**by_transformers(reference, images, inputs.token_ids)).last_hidden_state[0]
    assert relative(backbone.content_rows(inputs), expected) < 1e-5


def test_a_batch_of_images_of_several_sizes_gives_the_rows_of_each_alone(backbone):
    inputs = [
        backbone.prepare(scene(formula_image(*size), command=command))
        for command, size in enumerate([(480, 270), (300, 500), (480, 270)])
    ]
    together = backbone.hidden_states(inputs)
    assert together.shape == (3, backbone.hidden_length, 32)
    for rows, one in zip(together, inputs, strict=True):
        alone = backbone.hidden_states([one])[0]
        assert relative(rows, alone) < 1e-5
        assert torch.equal(alone[0], backbone.padding_row)


def test_preprocessing_is_transformers_own_bit_for_bit(backbone, reference):
    for size in ((480, 270), (1920, 1080), (64, 48), (900, 20)):
        image = formula_image(*size)
        tiles = torch.from_numpy(cut_image(backbone.family.architecture, image, 1))
        nothing = torch.zeros((0, 1), dtype=torch.int64)
        ours = backbone.family.generate_arguments(nothing, nothing, tiles)
        theirs = by_transformers(reference, image, np.zeros(1, dtype=np.int64))
        assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
        assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_positions_equal_transformers_own(backbone, reference):
    image = formula_image(480, 270)
    inputs = backbone.prepare(scene(image))
    twice = np.concatenate([inputs.token_ids, inputs.token_ids[250:]])
    for token_ids, images in ((inputs.token_ids, image), (twice, [image, image]), (inputs.token_ids[:250], image)):
        arguments = by_transformers(reference, images, token_ids)
        expected, _ = reference.model.get_rope_index(
            arguments["input_ids"], arguments["mm_token_type_ids"], image_grid_thw=arguments["image_grid_thw"]
        )
        found = backbone.family.positions(token_ids, inputs.tiles.shape[1:3])
        assert found.shape == (3, len(token_ids))
        assert np.array_equal(found, expected[:, 0].numpy())
    with pytest.raises(ValueError, match=r"an image of \d+ x \d+ rows has \d+ image tokens"):
        backbone.family.positions(inputs.token_ids[:400], inputs.tiles.shape[1:3])


@torch.no_grad()
def test_generated_text_equals_transformers_own(backbone, reference):
    image = formula_image(480, 270)
    inputs = backbone.prepare(scene(image))
    ids = torch.from_numpy(inputs.token_ids)[None]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    arguments = backbone.family.generate_arguments(ids, settings["attention_mask"], torch.from_numpy(inputs.tiles))
    ours = backbone.family.generator.generate(input_ids=ids, **arguments, **settings)
    theirs = reference.generate(**by_transformers(reference, image, inputs.token_ids), **settings)
    assert ours.shape[1] > ids.shape[1]
    assert torch.equal(ours, theirs)


def test_the_padding_row_is_the_feed_forward_path_of_the_pad_token(backbone, reference):
    language_model = reference.model.language_model
    hidden = language_model.embed_tokens.weight[backbone.tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    for layer in language_model.layers:
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    expected = language_model.norm(hidden)
    assert relative(backbone.padding_row, expected) < 1e-6
    assert torch.equal(padding_row(backbone.model.language_model, 151643), backbone.padding_row)


def test_buffers_that_no_checkpoint_fills_are_transformers_own(backbone, reference):
    expected = dict(reference.named_buffers())
    found = dict(backbone.family.generator.named_buffers())
    assert found.keys() == expected.keys()
    assert any("visual" in name for name in found)
    assert any("language_model" in name for name in found)
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, expected[name]), name


def test_bfloat16_keeps_its_rotary_frequencies_in_float32(checkpoint):
    backbone = load_backbone(VLMSettings(checkpoint, max_tiles=1))
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in backbone.model.buffers()} == {torch.float32}
    inputs = backbone.prepare(scene(formula_image(480, 270)))
    assert backbone.hidden_states([inputs]).isfinite().all()


def test_both_attention_kernels_reach_tower_and_language_model(checkpoint, backbone):
    eager = load_backbone(VLMSettings(checkpoint, max_tiles=1), dtype=torch.float32, attention="eager")
    for part in (eager.model.visual, eager.model.language_model):
        assert part.config._attn_implementation == "eager"
    for part in (backbone.model.visual, backbone.model.language_model):
        assert "sdpa" in part.config._attn_implementation
    inputs = backbone.prepare(scene(formula_image(480, 270)))
    assert relative(eager.content_rows(inputs), backbone.content_rows(inputs)) < 1e-5


def to_newer(name: str) -> str:
    """The names of a transformers 5 model's own parameters."""
    if name.startswith(("model.visual.", "model.language_model.", "lm_head.")):
        return name
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def to_published(name: str) -> str:
    """The names of the published Qwen2.5-VL."""
    name = name.replace("model.language_model.", "model.", 1)
    return name.removeprefix("model.") if name.startswith("model.visual.") else name


@pytest.mark.parametrize("rename", [to_newer, to_published])
def test_both_namings_load_alike(copy, backbone, rename):
    names = set(stored_tensors(copy))
    rename_weights(copy, rename)
    changed = set(stored_tensors(copy)) != names
    assert changed == ((copy.name == "qwen2_5_vl") == (rename is to_newer))
    loaded = family(copy, with_head=True).generator.state_dict()
    for name, weight in backbone.family.generator.state_dict().items():
        assert torch.equal(loaded[name].float(), weight), name


def family(folder, **placement):
    defaults = {"dtype": torch.float32, "device": torch.device("cpu"), "attention": "sdpa"}
    return load_family(folder, read_architecture(folder), image_token_id=IMAGE_PAD, **defaults, **placement)


def test_what_transformers_saves_loads_back(backbone, tmp_path):
    backbone.family.generator.save_pretrained(tmp_path)
    saved = read_architecture(tmp_path)
    assert saved == backbone.family.architecture
    assert saved.canonical == backbone.family.architecture.canonical
    loaded = family(tmp_path).model.state_dict()
    for name, weight in backbone.model.state_dict().items():
        assert torch.equal(loaded[name], weight), name


def test_a_head_is_tied_where_the_file_says_so_and_none_is_stored(copy):
    head = "lm_head.weight"
    rewrite_weights(copy, lambda weights: weights.pop(head, None))
    tied = edit(edit(copy, "tie_word_embeddings", True), "architectures", None)
    generator = family(tied, with_head=True).generator
    assert generator.lm_head.weight is generator.model.language_model.embed_tokens.weight
    with pytest.raises(VLMCheckpointError, match=r"missing weights .*lm_head.weight"):
        family(edit(copy, "tie_word_embeddings", False), with_head=True)

    edit(copy, "tie_word_embeddings", True)
    stored = torch.ones_like(generator.lm_head.weight)
    rewrite_weights(copy, lambda weights: weights.update({head: stored}))
    generator = family(copy, with_head=True).generator
    assert torch.equal(generator.lm_head.weight, stored)
    assert not torch.equal(generator.model.language_model.embed_tokens.weight, stored)


def test_the_published_prompt_is_asked_in_qwens_vocabulary(backbone):
    name, sample = next(iter(golden("prompt_token_ids.json")["samples"].items()))
    prompts = golden("prompt_token_ids.json")
    inputs = backbone.prepare(scene(formula_image(480, 270), command=1))
    prefix = prompts["prefix_ids"]
    assert inputs.token_ids[: len(prefix) - 1].tolist() == prefix[:-1]
    assert inputs.token_ids[len(prefix) - 1] == 151652
    assert sample["total_tokens_9_tiles"] == len(prefix) + 2304 + len(prompts["suffix_ids"][name])
    tail = prompts["suffix_ids"][name][1:20]
    end = int(np.flatnonzero(inputs.token_ids == 151653)[0])
    assert inputs.token_ids[end + 1 : end + 20].tolist() == tail


@pytest.mark.parametrize("max_tiles", [1, 4, 12])
def test_images_are_brought_to_the_size_that_the_published_preprocessor_chooses(backbone, max_tiles):
    architecture = backbone.family.architecture
    smallest = PROCESSORS[architecture.vlm_type]["size"]["shortest_edge"]
    unit = architecture.patch_size * architecture.merge_size
    rng = np.random.default_rng(max_tiles)
    for width, height in [(1920, 1080), (28, 28), (199, 1), *rng.integers(20, 4000, (200, 2)).tolist()]:
        expected = smart_resize(height, width, unit, smallest, max_tiles * 448 * 448)
        assert architecture.tile_shape(width, height, max_tiles) == (1, *expected)
    with pytest.raises(ValueError, match="more than 200 times longer than wide"):
        architecture.tile_shape(201, 1, max_tiles)
    with pytest.raises(ValueError, match="must be positive, found 0, 1, "):
        architecture.tile_shape(0, 1, max_tiles)


def test_a_navsim_image_keeps_nearly_all_its_pixels_and_the_length_follows(backbone):
    architecture = backbone.family.architecture
    size, rows = {"qwen2_5_vl": ((1092, 1932), 2691), "qwen3_vl": ((1088, 1920), 2040)}[architecture.vlm_type]
    assert architecture.tile_shape(1920, 1080, 12) == (1, *size)
    assert architecture.rows_per_tile(*size) == rows
    assert default_hidden_length(architecture, 1, 12) == 496 + rows


COMMON = [
    ("vision_config.temporal_patch_size", 1, "temporal_patch_size must be 2, found 1"),
    ("vision_config.out_hidden_size", 64, "out_hidden_size must be the language model's hidden_size 32, found 64"),
    ("vision_config.depth", 0, "vision_config.depth must be a positive integer, found 0"),
    ("vision_config.model_type", "siglip", "vision_config.model_type must be .*found 'siglip'"),
    ("vision_config.rope_parameters", {"rope_theta": 5.0}, "rope_parameters must be of base 10000"),
    ("vision_config.patch_size", None, "vision_config.patch_size is missing"),
    ("vision_config", None, "vision_config is missing"),
    ("image_token_id", 7, "image_token_id must be 151655 or None, found 7"),
    ("{text}rope_scaling", {"type": "yarn", "mrope_section": [2, 3, 3]}, "must be of type 'default' or 'mrope'"),
    (
        "{text}rope_scaling",
        {"type": "mrope"},
        "mrope_section must be three positive whole numbers that add up to half .*8, found None",
    ),
    ("{text}use_sliding_window", True, "use_sliding_window must be False or None"),
    ("{text}hidden_size", "32", "hidden_size must be a positive integer, found '32'"),
    ("{text}rope_theta", None, "rope_theta is missing"),
]
PARTICULAR = {
    "qwen2_5_vl": [
        ("vision_config.in_chans", 1, "in_chans must be 3, found 1"),
        ("vision_config.fullatt_block_indexes", [2], r"must be a list of layers below depth 2, found \[2\]"),
        ("head_dim", 8, "head_dim must be 16 or None, found 8"),
        (
            "rope_scaling",
            {"type": "mrope", "mrope_section": [2, 3, 3], "mrope_interleaved": True},
            "mrope_interleaved must be False",
        ),
    ],
    "qwen3_vl": [
        ("vision_config.in_channels", 1, "in_channels must be 3, found 1"),
        ("vision_config.deepstack_visual_indexes", [2], r"must be a list of layers below depth 2, found \[2\]"),
        ("vision_config.deepstack_visual_indexes", [0, 1, 1], "no longer than the 2 layers of the language model"),
        ("text_config.model_type", "qwen3", "text_config.model_type must be .*found 'qwen3'"),
        ("text_config.attention_bias", True, "attention_bias must be False"),
        ("text_config", None, "text_config is missing"),
        (
            "text_config.rope_scaling",
            {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": False},
            "mrope_interleaved must be True, found False",
        ),
    ],
}


def test_what_changes_the_result_is_refused_by_name(checkpoint, tmp_path):
    text = "text_config." if checkpoint.name == "qwen3_vl" else ""
    for index, (key, value, message) in enumerate(COMMON + PARTICULAR[checkpoint.name]):
        folder = tmp_path / str(index)
        folder.mkdir()
        shutil.copyfile(checkpoint / "config.json", folder / "config.json")
        with pytest.raises(VLMCheckpointError, match=message) as error:
            read_architecture(edit(folder, key.format(text=text), value))
        assert "config.json" in str(error.value)


def test_the_language_models_keys_may_be_nested_in_qwen2_5_vl(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "vlm", layout="qwen2_5_vl", hidden_size=32, num_layers=1)
    flat = read_architecture(folder)
    text = {**flat.text, "model_type": "qwen2_5_vl_text"}
    for name in (*flat.text, "rope_scaling", "rope_theta"):
        if name != "rope_parameters":
            edit(folder, name, None)
    assert read_architecture(edit(folder, "text_config", text)) == flat


def test_the_golden_internvl_is_no_qwen():
    with pytest.raises(VLMCheckpointError, match="this is a internvl checkpoint"):
        read_architecture(DATA / "tiny_internvl_chat", "qwen2_5_vl")
