"""Command line of ``python -m navsim_recogdrive.plan``."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from navsim_recogdrive.observation import CAMERA_SETS, DRIVING_COMMANDS
from navsim_recogdrive.whole_numbers import whole_number_from

_IMAGE_ONLY = ("history", "status", "speed", "front_left_image", "front_right_image")
_SCENE_ONLY = ("frame", "split", "metric_cache")
_PLANNER_ONLY = ("checkpoint", "weights", "samples", "seed", "deterministic")
_SUFFIXES = (".json", ".png", ".jpg", ".jpeg")
_VLM_OPTIONS = ("dtype", "cam_type", "prompt_profile", "hidden_length", "max_tiles")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, or 2 with an error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            _run(options)
        except (OSError, ValueError, ImportError, MemoryError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    # Here, not above: --help and wrong usage need neither torch nor transformers.
    from navsim_recogdrive.plan.output import Planned, as_text, write
    from navsim_recogdrive.plan.planning import PlanningSettings
    from navsim_recogdrive.plan.situation import Situation, from_image, from_navsim, read_history
    from navsim_recogdrive.policy.configuration import SamplingConfig

    settings = PlanningSettings(
        vlm=options.vlm,
        checkpoint=options.checkpoint,
        weights=options.weights or "averaged",
        device=options.device,
        sampling=SamplingConfig(options.deterministic, options.seed or 0),
        vlm_options={name: value for name in _VLM_OPTIONS if (value := getattr(options, name)) is not None},
    )
    cameras = settings.vlm_config.cameras
    situation: Situation
    if options.image is not None:
        images = {
            "front": options.image,
            "front_left": options.front_left_image,
            "front_right": options.front_right_image,
        }
        situation = from_image(
            {name: path for name, path in images.items() if path is not None},
            None if options.history is None else read_history(options.history),
            options.status,
            options.speed,
            options.command or "unknown",
        )
    else:
        situation = from_navsim(
            options.data_root,
            cameras,
            token=options.token,
            log=options.log,
            frame=options.frame,
            split=options.split,
            command=options.command,
            metric_cache=options.metric_cache,
        )
    trajectories = settings.plan(situation.observation, options.samples or 1)
    planned = Planned(
        situation,
        trajectories,
        {} if situation.score is None else situation.score(trajectories),
        {
            "vlm": settings.vlm,
            "checkpoint": None if settings.checkpoint is None else str(settings.checkpoint),
            "seed": settings.sampling.seed,
            "deterministic": settings.sampling.deterministic,
        },
    )
    sys.stdout.write(as_text(planned))
    for path in options.output:
        write(planned, path)
        print(f"wrote {path}")


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Usage errors that argparse does not see."""

    def given(names: Sequence[str]) -> list[str]:
        # By identity: 0 is equal to False, and a speed or a seed.
        values = ((name, getattr(options, name)) for name in names)
        return [f"--{name.replace('_', '-')}" for name, value in values if value is not None and value is not False]

    scene = options.token is not None or options.log is not None
    if (options.image is not None) == scene:
        parser.error("say what to plan for: --image FILE, or --token TOKEN, or --log NAME")
    if scene and (idle := given(_IMAGE_ONLY)):
        parser.error(f"{', '.join(idle)} cannot be given with a scene of NAVSIM, which has its own")
    if not scene and (idle := given(_SCENE_ONLY)):
        parser.error(f"{', '.join(idle)} needs --token or --log")
    if options.token is not None and options.frame is not None:
        parser.error("--frame goes with --log; a token names its frame")
    if scene and options.data_root is None:
        parser.error("where is NAVSIM's data? Set OPENSCENE_DATA_ROOT, or give --data-root FOLDER")
    if options.status is not None and len(options.status) not in (2, 4):
        parser.error(f"--status takes VX VY or VX VY AX AY, found {len(options.status)} numbers")
    if options.status is not None and options.speed is not None:
        parser.error("give --status or --speed, not both")
    if options.vlm is None:
        parser.error("which VLM? Give --vlm FOLDER, or set VLM_PATH")
    if options.text:
        if idle := given(_PLANNER_ONLY):
            parser.error(f"{', '.join(idle)} cannot act with --text: the VLM alone writes one trajectory")
    elif options.checkpoint is None:
        environment = os.environ.get("CHECKPOINT")
        if not environment:
            parser.error("which planner? Give --checkpoint FILE or set CHECKPOINT, or --text for the VLM alone")
        options.checkpoint = Path(environment)
    for path in options.output:
        if path.suffix.lower() not in _SUFFIXES:
            parser.error(f"--output {path}: the name must end in .json, .png or .jpg")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    environment = os.environ
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.plan",
        description="Plan the next 4 seconds: from a front-camera image and how the car moves, or for a scene of "
        "NAVSIM's data. Positions are metres, headings radians, in the present ego frame (origin at the rear axle, x "
        "ahead, y left). Sizes and settings come from the checkpoint.",
    )
    # argparse takes -1e-3 and -9. for options; NumPy prints numbers so.
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    one = parser.add_argument_group("from an image")
    one.add_argument("--image", type=Path, metavar="FILE", help="the front camera's, 16:9 like NAVSIM's")
    one.add_argument("--front-left-image", type=Path, metavar="FILE", help="for a policy of three cameras")
    one.add_argument("--front-right-image", type=Path, metavar="FILE", help="likewise")
    one.add_argument(
        "--history",
        nargs="+",
        metavar="FILE|X",
        help="4 poses (x y heading) at -1.5, -1, -0.5 and 0 s, the last 0 0 0: a .json, .npy or text file, or 12 "
        "numbers; if left out, constant velocity",
    )
    one.add_argument(
        "--status",
        nargs="+",
        type=float,
        metavar="V",
        help="VX VY [AX AY] in m/s and m/s^2; if left out, the history's",
    )
    one.add_argument("--speed", type=float, metavar="M/S", help="in place of --status; 5 if nothing at all is given")
    scene = parser.add_argument_group("for a scene of NAVSIM (which must be installed)")
    scene.add_argument("--token", help="of the scene, as in NAVSIM's score tables")
    scene.add_argument("--log", metavar="NAME", help="of a log")
    scene.add_argument(
        "--frame", type=whole_number_from(0), metavar="N", help="present frame in the log, from 3 on (default: 3)"
    )
    scene.add_argument("--split", help="folder below navsim_logs (default: all)")
    scene.add_argument(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        default=Path(environment["OPENSCENE_DATA_ROOT"]) if environment.get("OPENSCENE_DATA_ROOT") else None,
        help="with navsim_logs and sensor_blobs (default: $OPENSCENE_DATA_ROOT)",
    )
    scene.add_argument("--metric-cache", type=Path, metavar="FOLDER", help="score the plans with it")
    parser.add_argument("--command", choices=DRIVING_COMMANDS, help="default: unknown; of a scene its own")

    models = parser.add_argument_group("models")
    models.add_argument(
        "--vlm", metavar="FOLDER", default=environment.get("VLM_PATH") or None, help="or hub id (default: $VLM_PATH)"
    )
    models.add_argument("--checkpoint", type=Path, metavar="FILE", help="of the planner (default: $CHECKPOINT)")
    models.add_argument("--weights", choices=("averaged", "raw"), help="of a checkpoint that holds both")
    models.add_argument("--text", action="store_true", help="no planner: the VLM writes its trajectory as text")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    drawn = parser.add_argument_group("sampling")
    drawn.add_argument("--samples", type=whole_number_from(1), metavar="N", help="trajectories to draw (default: 1)")
    drawn.add_argument("--seed", type=whole_number_from(0), metavar="N", help="of the noise (default: 0)")
    drawn.add_argument("--deterministic", action="store_true", help="no noise after the first")
    vlm = parser.add_argument_group("the VLM (defaults: as the checkpoint remembers, else as published)")
    vlm.add_argument("--dtype", choices=("bfloat16", "float32"))
    vlm.add_argument("--cam-type", choices=list(CAMERA_SETS))
    vlm.add_argument("--prompt-profile")
    vlm.add_argument("--hidden-length", type=whole_number_from(1))
    vlm.add_argument("--max-tiles", type=whole_number_from(1))
    parser.add_argument(
        "--output", type=Path, nargs="+", default=[], metavar="FILE", help="plan.json, plan.png, or both"
    )
    return parser
