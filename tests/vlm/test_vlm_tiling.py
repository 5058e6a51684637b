from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vlm_golden import formula_image, golden

from navsim_recogdrive.vlm.resampling import resize_bicubic
from navsim_recogdrive.vlm.tile_grid import tile_grid
from navsim_recogdrive.vlm.tiling import normalize_tiles, tile_image

CASES = golden("preprocess_golden.json")["cases"]


@pytest.mark.parametrize("size", CASES)
def test_tiles_and_normalised_tiles_equal_the_published_pipeline_bit_for_bit(size):
    image = formula_image(*map(int, size.split("x")))
    tiles = tile_image(image)
    assert np.array_equal(tile_image(torch.from_numpy(image)), tiles), "as an accelerator cuts them"
    pixels = normalize_tiles(torch.from_numpy(tiles))
    assert tiles.shape == (CASES[size]["tiles"], 448, 448, 3)
    assert hashlib.sha256(tiles.tobytes()).hexdigest() == CASES[size]["sha256_uint8_NHWC"]
    assert pixels.shape == (CASES[size]["tiles"], 3, 448, 448)
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() == CASES[size]["sha256_float32_NCHW"]


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**32 - 1),
    extreme=st.booleans(),
)
def test_a_tensor_is_resized_to_pillows_bytes(source, size, seed, extreme):
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3), dtype=np.uint8)
    if extreme:  # overshoots of the filter are cut off between the passes too
        image = np.where(image > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(resize_bicubic(torch.from_numpy(image), *size), resize_bicubic(image, *size))


def test_the_order_of_passes_does_not_depend_on_pillows_version():
    """1600 x 900 to 1792 x 896 as Pillow 10 does it; Pillow 13 by itself resizes columns first."""
    image = formula_image(1600, 900)
    digest = hashlib.sha256(np.ascontiguousarray(resize_bicubic(image, 1792, 896)).tobytes()).hexdigest()
    assert digest == "b5d16bc00255ce51db287b94b5dcd4c4f333ea015606869ffee550088666367a"


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (1920, 1080, (4, 2)),
        (1080, 1920, (2, 4)),
        (448, 448, (1, 1)),
        (633, 633, (1, 1)),
        (634, 634, (2, 2)),  # more than half of 2x2 tiles' pixels
        (10000, 100, (12, 1)),
    ],
)
def test_the_grid_is_the_closest_ratio_and_area_settles_ties(width, height, grid):
    assert tile_grid(width, height) == grid


def test_fewer_tiles_no_thumbnail_and_another_tile_size():
    image = formula_image(1920, 1080)
    assert tile_image(image, max_tiles=1).shape == (1, 448, 448, 3)  # a thumbnail of one tile would repeat it
    assert tile_image(image, tile_size=112).shape == (9, 112, 112, 3)
    without = tile_image(image, tile_size=112, thumbnail=False)
    assert np.array_equal(without, tile_image(image, tile_size=112)[:8])


def test_tiles_run_row_by_row_and_end_with_the_whole_image():
    image = np.zeros((224, 448, 3), dtype=np.uint8)
    image[:, 224:] = 200
    tiles = tile_image(image, tile_size=56)
    assert tile_grid(448, 224, 56) == (4, 2)
    assert [int(tile[28, 28, 0]) for tile in tiles[:8]] == [0, 0, 200, 200] * 2
    assert tiles[8, 28, 8, 0] == 0
    assert tiles[8, 28, 48, 0] == 200


def test_a_view_that_is_not_contiguous_gives_the_same_tiles():
    image = formula_image(300, 200)
    mirrored = image[:, ::-1]
    assert not mirrored.flags.c_contiguous
    assert np.array_equal(tile_image(mirrored, 56), tile_image(mirrored.copy(), 56))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_what_is_not_an_rgb_image_is_refused(image):
    with pytest.raises(ValueError, match=r"image must be uint8 RGB of shape \[H, W, 3\], found"):
        tile_image(image)


def test_sizes_and_tensors_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="must be positive, found 10, 10, 448, 0"):
        tile_grid(10, 10, 448, 0)
    with pytest.raises(ValueError, match=r"tiles must be uint8 of shape \[T, H, W, 3\], found torch.float32"):
        normalize_tiles(torch.zeros(1, 4, 4, 3))
    with pytest.raises(ValueError, match=r"found torch.uint8 \[1, 3, 4, 4\]"):
        normalize_tiles(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
