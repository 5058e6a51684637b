"""The three things to draw, for any source of scenes: pictures, a film of the denoising, a film of training."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from navsim_recogdrive.observation import CAMERA_SETS, DRIVING_COMMANDS
from navsim_recogdrive.viz.bird_eye import draw_bird_eye, save_bird_eye
from navsim_recogdrive.viz.camera import draw_camera
from navsim_recogdrive.viz.drawable import DrawableScene, Planner, planned_view
from navsim_recogdrive.viz.film import write_film
from navsim_recogdrive.viz.films import denoising_film, training_film
from navsim_recogdrive.viz.scene_view import Image, InvalidView, SceneView
from navsim_recogdrive.viz.sheet import draw_sheet
from navsim_recogdrive.whole_numbers import whole_number_from

if TYPE_CHECKING:
    from navsim_recogdrive.policy.policy import ReCogDrivePolicy

KINDS = ("pictures", "denoising", "training")
_SMALLEST_HEIGHT = 240
_VIEWS = ("sheet", "bird_eye", "camera")


class WrongUsage(ValueError):
    """Arguments that contradict each other."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every source of scenes shares."""
    parser.add_argument("kind", choices=KINDS, help="pictures of scenes; films of their denoising; a film of training")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--token", nargs="+", default=[], metavar="TOKEN", help="scenes to draw")
    parser.add_argument("--log", nargs="+", default=[], metavar="NAME", help="logs whose scenes to draw")
    parser.add_argument(
        "--scenes", type=whole_number_from(1), default=4, metavar="N", help="of these, so many, spread evenly [4]"
    )
    models = parser.add_argument_group("planners")
    models.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="of a planner; may be given again: pictures show every planner's plan, the last on top, and a film of "
        "training shows one after the other. Without it pictures show the human's trajectory alone",
    )
    models.add_argument("--vlm", default=os.environ.get("VLM_PATH"), help="folder or hub id of the VLM [VLM_PATH]")
    models.add_argument("--weights", choices=("averaged", "raw"), default="averaged", help="of a checkpoint with both")
    models.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    models.add_argument(
        "--samples", type=whole_number_from(0), metavar="N", help="trajectories to sample [pictures 0, denoising 16]"
    )
    models.add_argument("--seed", type=whole_number_from(0), default=0, metavar="N", help="of the noise [0]")
    models.add_argument("--deterministic", action="store_true", help="no noise after the first")
    look = parser.add_argument_group("look")
    look.add_argument(
        "--height", type=whole_number_from(_SMALLEST_HEIGHT), default=720, metavar="PX", help="of pictures [720]"
    )
    look.add_argument("--views", nargs="+", choices=_VIEWS, default=["sheet"], help="pictures to write [sheet]")
    look.add_argument("--vector", choices=("pdf", "svg"), help="also the bird's-eye view as a vector file; matplotlib")
    look.add_argument("--film", nargs="+", choices=("gif", "mp4"), default=["gif"], help="kinds of film [gif]")


def check_options(options: argparse.Namespace) -> None:
    """What argparse does not see.

    Raises:
        WrongUsage: naming what is missing or cannot act.
    """
    if options.kind != "pictures" and not options.checkpoint:
        raise WrongUsage(f"a film of {options.kind} needs --checkpoint FILE")
    if options.checkpoint and not options.vlm:
        raise WrongUsage("which VLM? Give --vlm FOLDER, or set VLM_PATH")
    if options.samples is not None and not options.checkpoint:
        raise WrongUsage("--samples needs --checkpoint FILE to draw them from")
    if options.kind == "denoising" and len(options.checkpoint) > 1:
        raise WrongUsage("a film of the denoising shows one planner: give one --checkpoint")
    if options.kind == "denoising" and options.samples == 0:
        raise WrongUsage("a film of the denoising needs at least one of --samples")
    if options.kind == "training" and len(options.checkpoint) < 2:
        raise WrongUsage("a film of training needs at least two of --checkpoint, in their order")
    named_checkpoints(options.checkpoint)


def named_checkpoints(arguments: Sequence[str]) -> dict[str, Path]:
    """Checkpoint files by name, from ``[NAME=]FILE``; a file without a name is called as its stem.

    Raises:
        WrongUsage: if there is no such file, or a name stands for two.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, separator, rest = argument.partition("=")
        path = Path(argument)
        if path.is_file() or not separator:
            name = "ReCogDrive" if len(arguments) == 1 else path.stem
        else:
            path = Path(rest)
        if not path.is_file():
            raise WrongUsage(f"no checkpoint {path}: expected --checkpoint FILE or NAME=FILE")
        if name in found:
            raise WrongUsage(f"two checkpoints are called {name!r}: give them names, --checkpoint NAME=FILE")
        found[name] = path
    return found


def cameras_of(options: argparse.Namespace) -> tuple[str, ...]:
    """The cameras that the planners of the checkpoints see; the front camera is always among them."""
    from navsim_recogdrive.policy.remembered_vlm import remembered_vlm_config

    wanted = {"front"}
    for path in named_checkpoints(options.checkpoint).values():
        remembered = remembered_vlm_config(path)
        wanted |= set(() if remembered is None else remembered.cameras)
    return tuple(camera for camera in CAMERA_SETS["multi"] if camera in wanted)


def run(options: argparse.Namespace, scenes: Iterable[DrawableScene]) -> list[Path]:
    """Draw what was asked for; the files written, in order, are also printed.

    Raises:
        InvalidView: if there is no scene, or one that cannot be drawn.
        ValueError: for models that cannot be loaded or do not fit together.
    """
    planners = _planners(options)
    options.output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def announce(path: Path) -> None:
        written.append(path)
        print(path, flush=True)

    if options.kind == "training":
        several = list(scenes)
        if several:
            _write_films(options, "training", training_film(several, planners, side=options.height), announce)
    else:
        for scene in scenes:
            if options.kind == "pictures":
                _draw(options, scene, planners, announce)
            else:
                planner = next(iter(planners.values()))
                film = denoising_film(scene, planner, options.samples or 16, height=options.height)
                _write_films(options, f"{scene.token}.denoising", film, announce)
    if not written:
        raise InvalidView("no scene to draw")
    return written


def _planners(options: argparse.Namespace) -> dict[str, Planner]:
    if not options.checkpoint:
        return {}
    # Here, not above: pictures without plans need neither torch nor transformers.
    from navsim_recogdrive.policy.configuration import SamplingConfig
    from navsim_recogdrive.policy.policy import ReCogDrivePolicy

    def load(path: Path) -> ReCogDrivePolicy:
        return ReCogDrivePolicy.from_pretrained(
            options.vlm,
            path,
            device=options.device,
            sampling=SamplingConfig(options.deterministic, options.seed),
            weights=options.weights,
        )

    return {name: load(path) for name, path in named_checkpoints(options.checkpoint).items()}


def _draw(
    options: argparse.Namespace,
    scene: DrawableScene,
    planners: Mapping[str, Planner],
    announce: Callable[[Path], None],
) -> None:
    view = planned_view(scene, planners, options.samples or 0)
    drawings: dict[str, Callable[[], Image]] = {
        "sheet": lambda: draw_sheet(view, options.height),
        "bird_eye": lambda: draw_bird_eye(view, (options.height, options.height)),
        "camera": lambda: draw_camera(view),
    }
    for name in dict.fromkeys(options.views):
        path = options.output / (f"{scene.token}.png" if name == "sheet" else f"{scene.token}.{name}.png")
        write_png(path, drawings[name]())
        announce(path)
    if options.vector:
        path = options.output / f"{scene.token}.bird_eye.{options.vector}"
        save_bird_eye(view, path, (options.height, options.height))
        announce(path)
    notes = options.output / f"{scene.token}.json"
    notes.write_text(json.dumps(notes_of(scene, view)) + "\n", encoding="utf-8")
    announce(notes)


def notes_of(scene: DrawableScene, view: SceneView) -> dict[str, Any]:
    """What the evaluation report shows beside a scene's picture, as plain values."""
    trajectories = {plan.label: plan.poses.round(3).tolist() for plan in view.plans}
    if view.human is not None:
        trajectories["human"] = view.human.round(3).tolist()
    return {
        "log_name": scene.log_name,
        "command": DRIVING_COMMANDS[scene.observation.command_index],
        "speed": round(float(np.hypot(*scene.observation.velocity)), 3),
        "trajectories": trajectories,
    }


def _write_films(
    options: argparse.Namespace, name: str, shots: Sequence[Any], announce: Callable[[Path], None]
) -> None:
    for kind in dict.fromkeys(options.film):
        path = options.output / f"{name}.{kind}"
        codec = write_film(path, shots)
        announce(path)
        if codec.plays:
            print(f"{path.name}: {codec}", file=sys.stderr)


def write_png(path: Path, picture: Image) -> None:
    """Write a picture ``[H, W, 3]`` uint8 RGB."""
    encoded = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])[1]
    path.write_bytes(encoded.tobytes())


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` places, spread evenly, the first and the last among them."""
    chosen = np.round(np.linspace(0, count - 1, min(count, wanted))).astype(int)
    return list(dict.fromkeys(chosen.tolist()))


def fail(error: BaseException) -> int:
    """Print an error and return the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return 2
