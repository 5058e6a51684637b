"""Draws NAVSIM's scenes: pictures, films of the denoising, a film of training.

    python -m navsim_recogdrive.agents.draw_scenes pictures OUTPUT --token TOKEN --vlm FOLDER --checkpoint FILE

Scenes are named by token or by log. With a metric cache, plans and samples are scored and coloured by PDM score, and
the ego is drawn where NAVSIM's simulator drives it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from navsim_recogdrive.agents import compat  # noqa: F401  first: it says in one sentence where NAVSIM is missing
from navsim_recogdrive.agents.log_scene import LogScene, SceneNotFound, find_scene
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
from navsim_recogdrive.agents.scene_views import drawable, map_folder, scenes_of_log
from navsim_recogdrive.viz.commands import WrongUsage, add_options, cameras_of, check_options, fail, run, spread
from navsim_recogdrive.viz.drawable import DrawableScene


def chosen_scenes(options: argparse.Namespace) -> Iterator[DrawableScene]:
    """The scenes that the options ask for; logs and images are read one after the other.

    Tokens that are not in the logs, as those of a second stage, are passed over with a line on stderr.

    Raises:
        SceneNotFound: for tokens none of which the data has, or a log that it does not have.
        NoMap: if a map cannot be opened.
        UnusableMetricCache: for a folder that holds no metric caches of this NAVSIM.
    """
    maps = options.maps or map_folder()
    if maps is None:
        print("no nuPlan maps: set NUPLAN_MAPS_ROOT to draw them", file=sys.stderr)
    # An unusable one is refused before anything is loaded.
    scored = None if options.metric_cache is None else MetricCacheFolder(options.metric_cache)
    cameras = cameras_of(options)
    return (drawable(scene, maps, options.metric_cache, cameras) for scene in _log_scenes(options, scored))


def _log_scenes(options: argparse.Namespace, scored: MetricCacheFolder | None) -> Iterator[LogScene]:
    """Those named by token, then some of the logs'; where plans are scored, those that can be."""
    failure = None
    there = 0
    for token in options.token:
        try:
            scene = find_scene(options.data_root, token=token, split=options.split)
        except SceneNotFound as error:
            failure = failure or error
            if len(options.token) > 1:
                print(f"passed over: {error}", file=sys.stderr)
            continue
        there += 1
        yield scene
    if failure is not None and not there:
        raise failure
    found = [
        (log, token, frame)
        for log in options.log
        for token, frame in scenes_of_log(options.data_root, log, options.split).items()
    ]
    if found and scored is not None:
        missing = set(scored.missing_tokens(token for _, token, _ in found))
        found = [scene for scene in found if scene[1] not in missing]
        if not found:
            raise SceneNotFound(f"no scene of {', '.join(options.log)} has a metric cache in {options.metric_cache}")
    for index in spread(len(found), options.scenes):
        log, _, frame = found[index]
        yield find_scene(options.data_root, log=log, frame=frame, split=options.split)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 with an error."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.draw_scenes",
        description="Draw scenes of NAVSIM's data, named by token or by log. Paths come from the environment: "
        "OPENSCENE_DATA_ROOT and NUPLAN_MAPS_ROOT.",
    )
    add_options(parser)
    root = os.environ.get("OPENSCENE_DATA_ROOT")
    parser.add_argument("--data-root", type=Path, default=Path(root) if root else None, help="[OPENSCENE_DATA_ROOT]")
    parser.add_argument("--split", help="folder of the logs: mini, trainval, test [all are searched]")
    parser.add_argument("--maps", type=Path, help="folder of nuPlan's maps [NUPLAN_MAPS_ROOT]")
    parser.add_argument("--metric-cache", type=Path, metavar="FOLDER", help="score plans with these metric caches")
    options = parser.parse_args(arguments)
    try:
        check_options(options)
        if not options.token and not options.log:
            raise WrongUsage("which scenes? Give --token TOKEN... or --log NAME...")
        if options.data_root is None:
            raise WrongUsage("where is NAVSIM's data? Set OPENSCENE_DATA_ROOT, or give --data-root FOLDER")
        run(options, chosen_scenes(options))
    except (WrongUsage, SceneNotFound, OSError, ValueError, ImportError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
