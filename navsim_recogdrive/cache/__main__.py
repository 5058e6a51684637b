"""``python -m navsim_recogdrive.cache estimate|inspect|repair|convert``: tools for feature caches."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from navsim_recogdrive.cache import commands
from navsim_recogdrive.cache.codec import MODES
from navsim_recogdrive.cache.conversion import Entry
from navsim_recogdrive.cache.scan import SETTLE_S
from navsim_recogdrive.observation import CAMERA_SETS
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.whole_numbers import whole_number_from


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # one thread per scene; torch's own would only get in each other's way
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on from here", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.cache", description="Tools for the feature caches of run_dataset_caching.py."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    one = subparsers.add_parser("estimate", help="disk and hours of a split, from a few timed samples")
    one.add_argument("sensor_blobs", type=Path, help="a split's images: OPENSCENE_DATA_ROOT/sensor_blobs/trainval")
    one.add_argument(
        "--scenes", type=_scenes, default="navtrain", help="navtrain, navtest or a number (default: navtrain)"
    )
    one.add_argument("--cache-path", type=Path, default=Path("."), help="folder on the disk of the cache to be")
    one.add_argument("--samples", type=whole_number_from(1), default=8, help="scenes to time (default: 8)")
    one.add_argument(
        "--processes", type=whole_number_from(1), help="caching processes, one per GPU (default: the GPUs seen here)"
    )
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    one.add_argument("--mode", default="bf16", choices=MODES, help="agent.cache_mode (default: bf16)")
    one.add_argument("--json", action="store_true")
    _add_vlm(one, required=True)
    one.set_defaults(run=commands.estimate)

    one = subparsers.add_parser("inspect", help="counts, sizes, identity and integrity; status 1 if damaged")
    _add_scan(one)
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=commands.inspect)

    one = subparsers.add_parser("repair", help="remove what is damaged or failed, so that caching computes it again")
    _add_scan(one)
    one.add_argument("--dry-run", action="store_true", help="only list")
    one.add_argument("--foreign", action="store_true", help="also remove hidden states of another VLM or prompt")
    one.add_argument(
        "--settle", type=float, default=SETTLE_S, metavar="S", help="wait so long for files that are being written"
    )
    one.set_defaults(run=commands.repair)

    one = subparsers.add_parser(
        "convert",
        help="copy a cache into another mode, or one of other software",
        description="Copy a cache into another mode, or, with --source-file and --source-key, one that other software "
        "made (SOURCE/LOG/TOKEN/FILE.gz, gzipped pickles of dicts of tensors). Training needs past poses, ego status "
        "and trajectory too: name them if the source holds them. A cache of other software holds no scene keys, so it "
        "can be trained from but not evaluated from.",
    )
    one.add_argument("source", type=Path)
    one.add_argument("target", type=Path, help="a new folder, or one where a conversion was interrupted")
    one.add_argument("--mode", required=True, choices=MODES)
    one.add_argument("--workers", type=whole_number_from(1), default=min(8, os.cpu_count() or 1), help="threads")
    one.add_argument("--source-file", metavar="FILE.gz", help="file of a scene with its hidden state")
    one.add_argument("--source-key", metavar="KEY", help="key of the hidden state, [L, D] floats, in its dict")
    for name, shape in (("past-poses", "[4, 3]"), ("ego-status", "[8]"), ("trajectory", "[8, 3]")):
        one.add_argument(f"--{name}", type=Entry.parse, metavar="FILE.gz:KEY", help=f"where the source has {shape}")
    _add_vlm(one, required=False)
    one.set_defaults(run=commands.convert)
    return parser


def _scenes(text: str) -> int:
    from navsim_recogdrive.policy.cache_estimate import SCENES  # with the VLM's imports, which no other command needs

    if text in SCENES:
        return SCENES[text]
    try:
        return whole_number_from(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be {', '.join(SCENES)} or a number from 1 on, found {text!r}") from None


def _add_scan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="the cache: cache_path of run_dataset_caching.py")
    parser.add_argument("--full", action="store_true", help="read and decode everything: finds flipped bits too")
    parser.add_argument("--logs", nargs="+", metavar="LOG", help="only these logs")
    parser.add_argument("--workers", type=whole_number_from(1), default=4 * (os.cpu_count() or 1), help="threads")


def _add_vlm(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--vlm",
        required=required,
        metavar="FOLDER",
        help="the VLM" if required else "the VLM that made the source; recorded as the cache's identity",
    )
    parser.add_argument("--dtype", default=VLMConfig.dtype, choices=["bfloat16", "float32"], help="that it computes in")
    parser.add_argument("--cam-type", default=VLMConfig.cam_type, choices=list(CAMERA_SETS))
    parser.add_argument("--prompt-profile", default=VLMConfig.prompt_profile)
    parser.add_argument("--hidden-length", type=whole_number_from(1), default=VLMConfig.hidden_length)
    parser.add_argument("--max-tiles", type=whole_number_from(1), default=VLMConfig.max_tiles)


if __name__ == "__main__":
    sys.exit(main())
