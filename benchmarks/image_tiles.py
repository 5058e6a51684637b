"""What the image tiles of one scene cost in joint mode's cache, against other lossless ways to store the same bytes.

A 1920 x 1080 image (``--image``, or a made-up photograph: 1/f noise with edges and sensor noise, through JPEG quality
92 as cameras do) is cut into 9 tiles, 5.42 MB. Each way writes and reads all of them on one core, in turns, and is
checked to give the same bytes back; times are medians of CPU time. "float32 tensor, gzip 1" is what NAVSIM's cache
makes of the normalised tensor that a model takes; "ours" is in NAVSIM's pickle and gzip too.

    python benchmarks/image_tiles.py
    python benchmarks/image_tiles.py --image CAM_F0.jpg
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from navsim_recogdrive.cache.image_tiles import ImageTiles
from navsim_recogdrive.vlm.tiling import normalize_tiles, tile_image

Tile = NDArray[np.uint8]
Way = tuple[Callable[..., Any], Callable[..., Any]]
"""Writes tiles as the files of a scene, and reads them back."""


def photograph() -> Tile:
    """``[1080, 1920, 3]`` uint8."""
    generator = np.random.default_rng(0)
    height, width = 1080, 1920
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency**1.1
    channels = np.moveaxis(np.fft.irfft2(spectrum, s=(height, width)), 0, -1)
    image = channels[..., :1] + 0.25 * channels  # grey more than coloured
    image = np.ascontiguousarray((image - image.mean()) / image.std() * 50 + 120)
    for _ in range(300):
        corner = generator.integers(0, (width, height))
        colour = [float(value) for value in generator.integers(0, 255, 3)]
        cv2.rectangle(image, corner.tolist(), (corner + generator.integers(5, 200, 2)).tolist(), colour, -1)
    image += generator.standard_normal((height, width, 1)) * 4
    encoded = cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)


def each_tile(write: Callable[[Tile], bytes], read: Callable[[bytes], Tile]) -> Way:
    """Writes and reads a scene's tiles one by one."""
    return lambda tiles: [write(tile) for tile in tiles], lambda files: np.stack([read(file) for file in files])


def with_pillow(form: str, **settings: Any) -> Way:
    def write(tile: Tile) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, form, **settings)
        return stream.getvalue()

    return each_tile(write, lambda file: np.asarray(Image.open(io.BytesIO(file))))


def with_opencv(suffix: str, *settings: int) -> Way:
    return each_tile(
        lambda tile: cv2.imencode(suffix, tile, list(settings))[1].tobytes(),
        lambda file: np.asarray(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR), dtype=np.uint8),
    )


def from_differences(file: bytes, shape: tuple[int, ...]) -> Tile:
    return np.cumsum(np.frombuffer(zlib.decompress(file), np.uint8).reshape(shape), axis=1, dtype=np.uint8)


def ways(shape: tuple[int, ...]) -> dict[str, Way]:
    """Write and read functions by name; what a write gives is what the disk holds, in one or several pieces."""
    return {
        "float32 tensor, gzip 1": (
            lambda tiles: [gzip.compress(pickle.dumps(normalize_tiles(torch.from_numpy(tiles))), 1)],
            lambda files: pickle.loads(gzip.decompress(files[0])),
        ),
        "bytes, zlib 1": each_tile(
            lambda tile: zlib.compress(tile.tobytes(), 1),
            lambda file: np.frombuffer(zlib.decompress(file), np.uint8).reshape(shape),
        ),
        "differences to the left, zlib 1": each_tile(
            lambda tile: zlib.compress(np.diff(tile, axis=1, prepend=np.uint8(0)).tobytes(), 1),
            lambda file: from_differences(file, shape),
        ),
        "PNG, level 1 (OpenCV)": with_opencv(".png", cv2.IMWRITE_PNG_COMPRESSION, 1),
        "PNG, level 6 (Pillow)": with_pillow("PNG", compress_level=6),
        "JPEG 2000 (OpenCV)": with_opencv(".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000),
        "WebP, method 0, quality 0 (Pillow)": with_pillow("WEBP", lossless=True, method=0, quality=0),
        "WebP, method 4, quality 50 (Pillow)": with_pillow("WEBP", lossless=True, method=4, quality=50),
        "ours": (
            lambda tiles: [gzip.compress(pickle.dumps(ImageTiles.wrap(torch.from_numpy(tiles), len(tiles))), 1)],
            lambda files: pickle.loads(gzip.decompress(files[0])),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a camera image [a made-up photograph]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tile-size", type=int, default=448)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    image = photograph() if options.image is None else np.array(Image.open(options.image).convert("RGB"))
    tiles = tile_image(image, options.tile_size)
    candidates = ways(tiles.shape[1:])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    sizes: dict[str, int] = {}
    for _ in tqdm(range(options.repeats), leave=False):
        for name, (write, read) in candidates.items():
            begin = time.process_time()
            files = write(tiles)
            written = time.process_time()
            found = read(files)
            times[name].append((written - begin, time.process_time() - written))
            sizes[name] = sum(map(len, files))
            if found.dtype in (np.uint8, torch.uint8) and not np.array_equal(found, tiles):
                raise SystemExit(f"{name} gave other bytes back")
    report = {
        name: {
            "mb": round(sizes[name] / 1e6, 3),
            "write_ms": round(1e3 * statistics.median(write for write, _ in measured), 1),
            "read_ms": round(1e3 * statistics.median(read for _, read in measured), 1),
        }
        for name, measured in times.items()
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{len(tiles)} tiles, {tiles.nbytes / 1e6:.2f} MB")
    for name, row in report.items():
        print(f"{name:36} {row['mb']:7.2f} MB {row['write_ms']:8.1f} ms to write {row['read_ms']:7.1f} ms to read")


if __name__ == "__main__":
    main()
