"""``python -m navsim_recogdrive.viz pictures|denoising|training OUTPUT --world FOLDER``: draws the synthetic world."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from navsim_recogdrive.viz.commands import WrongUsage, add_options, check_options, fail, run, spread
from navsim_recogdrive.viz.drawable import DrawableScene
from navsim_recogdrive.viz.world_scenes import drawable
from navsim_recogdrive.world.generate import WorldFolderError
from navsim_recogdrive.world.scenes import SceneError, load_scenes


def chosen_scenes(options: argparse.Namespace) -> Iterator[DrawableScene]:
    """The scenes that the options ask for.

    Raises:
        WrongUsage: for tokens that the split does not have.
        SceneError, WorldFolderError: as :func:`~navsim_recogdrive.world.scenes.load_scenes`.
    """
    scenes = load_scenes(options.world, options.split, options.log or None)
    if options.token:
        known = {scene.token: scene for scene in scenes}
        unknown = [token for token in options.token if token not in known]
        if unknown:
            raise WrongUsage(f"split {options.split} of {options.world} has no scene {unknown[0]!r}")
        scenes = [known[token] for token in options.token]
    else:
        scenes = [scenes[index] for index in spread(len(scenes), options.scenes)]
    return (drawable(scene) for scene in scenes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 with an error."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.viz",
        description="Draw scenes of the synthetic world. Plans and samples are coloured and scored by the world's own "
        "scores, which are no PDM scores. For NAVSIM's scenes: python -m navsim_recogdrive.agents.draw_scenes",
    )
    add_options(parser)
    parser.add_argument("--world", type=Path, required=True, metavar="FOLDER", help="of navsim_recogdrive.world")
    parser.add_argument("--split", choices=("train", "val", "trainval", "test"), default="test", help="[%(default)s]")
    options = parser.parse_args(arguments)
    try:
        check_options(options)
        run(options, chosen_scenes(options))
    except (WrongUsage, SceneError, WorldFolderError, OSError, ValueError, ImportError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
