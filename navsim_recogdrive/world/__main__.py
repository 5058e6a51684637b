"""Command line: ``python -m navsim_recogdrive.world OUTPUT --preset quickstart``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

from navsim_recogdrive.world.camera import CAMERA_SETS
from navsim_recogdrive.world.generate import WorldFolderError, generate
from navsim_recogdrive.world.presets import PRESETS, InvalidSettings, WorldSettings
from navsim_recogdrive.world.simulate import NoDriveFound


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT like 1920x1080, found {text!r}") from None
    return width, height


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    presets = "\n".join(f"  {name:<11}{_summary(settings)}" for name, settings in PRESETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.world",
        description="Make a synthetic driving world that NAVSIM reads: OpenScene logs, camera images, nuPlan maps.",
        epilog=f"presets:\n{presets}\n\nPoint NAVSIM at it with OPENSCENE_DATA_ROOT=OUTPUT and "
        "NUPLAN_MAPS_ROOT=OUTPUT/maps.\nA run that was stopped is continued by the same command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", type=Path, help="folder of the world: empty, new, or one to be continued")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="quickstart", help="default: %(default)s")
    parser.add_argument("--seed", type=int, help="everything random follows from it (default: 0)")
    parser.add_argument("--train-logs", type=int, metavar="N", help="drives for training")
    parser.add_argument("--val-logs", type=int, metavar="N", help="drives for validation")
    parser.add_argument("--test-logs", type=int, metavar="N", help="drives for testing")
    parser.add_argument("--seconds-per-log", type=float, metavar="S", help="length of a drive, at least 7 seconds")
    parser.add_argument("--vehicles", type=int, metavar="N", help="moving vehicles in a town")
    parser.add_argument("--pedestrians", type=int, metavar="N", help="people on foot in a town")
    parser.add_argument("--cameras", choices=tuple(CAMERA_SETS), help="which cameras to render (default: front)")
    parser.add_argument("--image-size", type=_size, metavar="WxH", help="image size in pixels")
    parser.add_argument("--jpeg-quality", type=int, metavar="Q", help="1 to 100 (default: 90)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _summary(settings: WorldSettings) -> str:
    scenes = [count * settings.scenes_per_log for count in (settings.train_logs, settings.val_logs, settings.test_logs)]
    width, height = settings.image_size
    return f"{scenes[0]} training, {scenes[1]} validation, {scenes[2]} test scenes, images {width}x{height}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    chosen = {
        field.name: getattr(options, field.name)
        for field in fields(WorldSettings)
        if getattr(options, field.name) is not None
    }
    started = time.monotonic()
    try:
        settings = replace(PRESETS[options.preset], **chosen)
        if options.workers < 1:
            raise InvalidSettings(f"workers must be at least 1, found {options.workers}")
        index = generate(options.output, settings, options.workers, progress=not options.quiet)
    except (InvalidSettings, WorldFolderError, NoDriveFound, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scenes = index["scenes"]
    print(
        f"{options.output}: {scenes['train']} training, {scenes['val']} validation, {scenes['test']} test scenes "
        f"in {time.monotonic() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
