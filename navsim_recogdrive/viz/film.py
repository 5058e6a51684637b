"""Films: pictures with a time to stand, written as GIF (for slides and pages) or MP4.

    python -m navsim_recogdrive.viz.film film.gif PICTURE... [--seconds 0.5]

joins pictures, such as those that training leaves in its run's folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage

from navsim_recogdrive.viz.palette import signal_colours
from navsim_recogdrive.viz.scene_view import Image

SUFFIXES = (".gif", ".mp4")
FRAMES_PER_S = 12.5
"""Of MP4 files; pictures stand for a multiple of a frame, 0.08 s. VP9 takes a third of a second for each of them."""

_GIF_TICK_S = 0.01
_PALETTE_PICTURES = 6


class FilmError(ValueError):
    """A film that cannot be made."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture ``[H, W, 3]`` uint8 RGB and how long it stands, seconds."""

    picture: Image
    seconds: float


@dataclass(frozen=True)
class Codec:
    """How the pictures of a film are written.

    Attributes:
        name: of the codec.
        plays: where such films play, or where not; empty if they play everywhere.
    """

    name: str
    plays: str = ""

    def __str__(self) -> str:
        return f"{self.name}, which {self.plays}" if self.plays else self.name


GIF = Codec("GIF")
_MP4_CODECS = {
    "avc1": Codec("H.264"),
    "vp09": Codec("VP9", "plays in browsers and VLC; for slides take a GIF"),
    "mp4v": Codec("MPEG-4 part 2", "plays in VLC but not in browsers; for these take a GIF"),
}
"""By OpenCV's code, the best first: PyPI's OpenCV has no encoder for H.264."""


def write_film(path: Path, shots: Sequence[Shot]) -> Codec:
    """Write a film; it repeats for ever where its format knows how (GIF).

    Args:
        path: ``.gif`` or ``.mp4``; its folder must exist.
        shots: at least one, all of one size. MP4 wants even sides: an odd one loses its last row or column.

    Returns:
        How it was written: of an MP4 the first of H.264, VP9 and MPEG-4 part 2 that this OpenCV can write.

    Raises:
        FilmError: for another suffix, no pictures, pictures of several sizes, or an OpenCV without MP4.
    """
    if path.suffix not in SUFFIXES:
        raise FilmError(f"a film ends with {' or '.join(SUFFIXES)}, found {path}")
    if not shots:
        raise FilmError(f"no pictures for {path}")
    sizes = {shot.picture.shape for shot in shots}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width, _ in sorted(sizes))
        raise FilmError(f"the pictures of {path} must have one size, found {listed}")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        codec = (_write_gif if path.suffix == ".gif" else _write_mp4)(partial, shots)
        os.replace(partial, path)
        return codec
    finally:
        partial.unlink(missing_ok=True)


def _write_gif(path: Path, shots: Sequence[Shot]) -> Codec:
    # One palette for all pictures: with one for each, what does not move would flicker.
    chosen = np.round(np.linspace(0, len(shots) - 1, min(len(shots), _PALETTE_PICTURES))).astype(int)
    together = np.concatenate([shots[index].picture for index in chosen.tolist()])
    # Most pixels are house and sky: left to themselves, they would take the colours that mean something with them.
    kept = signal_colours()
    common = PillowImage.fromarray(together).quantize(256 - len(kept), PillowImage.Quantize.MEDIANCUT).getpalette()
    palette = PillowImage.new("P", (1, 1))
    palette.putpalette([*(channel for colour in kept for channel in colour), *(common or [])])
    frames = [
        PillowImage.fromarray(shot.picture).quantize(palette=palette, dither=PillowImage.Dither.NONE) for shot in shots
    ]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=[max(round(shot.seconds / _GIF_TICK_S), 2) * 10 for shot in shots],
        loop=0,
        optimize=False,
    )
    return GIF


def _write_mp4(path: Path, shots: Sequence[Shot]) -> Codec:
    for code, codec in _MP4_CODECS.items():
        with _silent_stderr():
            written = _encode(path, shots, code)
        if written:
            return codec
    raise FilmError(f"this OpenCV cannot write {path}: ask for a .gif, or install opencv-python from PyPI")


def _encode(path: Path, shots: Sequence[Shot], code: str) -> bool:
    """Write an MP4 file with a codec; whether there is such an encoder."""
    height, width = (side - side % 2 for side in shots[0].picture.shape[:2])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), FRAMES_PER_S, (width, height))
    if not writer.isOpened():
        return False
    try:
        for shot in shots:
            frame = np.ascontiguousarray(shot.picture[:height, :width, ::-1])
            for _ in range(max(round(shot.seconds * FRAMES_PER_S), 1)):
                writer.write(frame)
    finally:
        writer.release()
    return True


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """OpenCV and its FFmpeg write of every encoder that they do not have, past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Join pictures to a film; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.viz.film", description="Join pictures of one size to a film, in their order."
    )
    parser.add_argument("film", type=Path, help="to write: .gif or .mp4")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="that a picture stands [%(default)s]")
    parser.add_argument("--last", type=float, default=2.0, metavar="S", help="that the last stands [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        pictures = [np.array(PillowImage.open(path).convert("RGB")) for path in options.pictures]
        times = [options.seconds] * (len(pictures) - 1) + [options.last]
        codec = write_film(options.film, [Shot(*pair) for pair in zip(pictures, times, strict=True)])
    except (FilmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.film}: {len(pictures)} pictures, {codec}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
