"""Divides the logs of a split among caching processes, so that all have about the same number of scenes.

    python -m navsim_recogdrive.agents.log_shards --shards 8 train_test_split=navtrain [HYDRA OVERRIDES]

prints one line per shard: its number of scenes, a tab, and its logs as a Hydra list. The split, its filter and its
paths come from NAVSIM's own configuration, and its own SceneLoader counts the scenes. The same input gives the same
shards on every node.

    python -m navsim_recogdrive.agents.log_shards --check-metric-caching train_test_split=navtest [HYDRA OVERRIDES]

only looks whether there are logs to cache metrics of. The exit status is 2 where there is nothing to cache.
"""

from __future__ import annotations

import argparse
import heapq
import io
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from navsim_recogdrive.agents.compat import NavsimNotUsable, count_scenes, runner_config_folder, training_config_folder


class CannotShard(ValueError):
    """A split that cannot be divided by logs, or that has none."""


@dataclass(frozen=True)
class Shard:
    """The part of one process.

    Attributes:
        logs: names, sorted.
        scenes: their number of scenes.
    """

    logs: tuple[str, ...]
    scenes: int

    @property
    def override(self) -> str:
        """The logs as a value for ``train_test_split.scene_filter.log_names``."""
        return "[" + ",".join(f"'{log}'" for log in self.logs) + "]"


def balance(scenes_of: Mapping[str, int], shards: int) -> list[Shard]:
    """Divide logs into ``shards``, the largest log first, each to the shard with the fewest scenes.

    Args:
        scenes_of: number of scenes of each log; logs without one are left out.
        shards: how many.

    Returns:
        All shards; empty ones where there are fewer logs than shards.

    Raises:
        CannotShard: for less than one shard.
    """
    if shards < 1:
        raise CannotShard(f"the number of shards must be at least 1, found {shards}")
    parts: list[list[str]] = [[] for _ in range(shards)]
    heap = [(0, index) for index in range(shards)]
    for log, scenes in sorted(scenes_of.items(), key=lambda item: (-item[1], item[0])):
        if scenes:
            total, index = heapq.heappop(heap)
            parts[index].append(log)
            heapq.heappush(heap, (total + scenes, index))
    totals = {index: total for total, index in heap}
    return [Shard(tuple(sorted(part)), totals[index]) for index, part in enumerate(parts)]


def scenes_per_log(overrides: Sequence[str], workers: int) -> dict[str, int]:
    """Number of scenes of each log that a split's filter admits; logs are read one at a time per worker.

    Args:
        overrides: Hydra's, as for ``run_dataset_caching.py``.
        workers: processes.

    Raises:
        CannotShard: if the filter has ``max_scenes``, which each process would apply for itself, or if there is no
            scene.
        FileNotFoundError: if the split has no folder of logs.
    """
    config = _compose(training_config_folder(), "default_training", overrides)
    scene_filter = instantiate(config.train_test_split.scene_filter)
    if scene_filter.max_scenes is not None:
        raise CannotShard(
            f"scene_filter.max_scenes={scene_filter.max_scenes} would apply to every process: leave it out, or cache "
            "with one process"
        )
    folder, names = _logs(config, scene_filter)
    count = partial(_count, folder, scene_filter)
    progress = partial(tqdm, total=len(names), desc="Counting scenes", unit="log", file=sys.stderr)
    if workers <= 1 or len(names) <= workers:
        scenes_of = dict(zip(names, progress(map(count, names)), strict=True))
    else:
        with ProcessPoolExecutor(workers) as pool:
            scenes_of = dict(zip(names, progress(pool.map(count, names)), strict=True))
    if not any(scenes_of.values()):
        raise CannotShard(
            f"the scene filter admits no scene of the {len(names)} logs in {folder}: check OPENSCENE_DATA_ROOT and "
            "SPLIT (train_test_split), and overrides of the filter"
        )
    return scenes_of


def check_metric_caching(overrides: Sequence[str]) -> None:
    """See that there are logs to cache metrics of; where there are none, NAVSIM ends well with nothing written.

    Args:
        overrides: Hydra's, as for ``run_metric_caching.py``.

    Raises:
        CannotShard: if none of the split's logs is there.
        FileNotFoundError: if the split has no folder of logs.
    """
    config = _compose(runner_config_folder("metric_caching"), "default_metric_caching", overrides)
    _logs(config, instantiate(config.train_test_split.scene_filter))


def _compose(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(config_dir=str(folder), version_base=None):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def _logs(config: DictConfig, scene_filter: Any) -> tuple[Path, list[str]]:
    """Folder of the split's logs, and those that are there; a warning says how many of the filter's are not."""
    folder, split = Path(config.navsim_log_path), config.hydra.runtime.choices.train_test_split
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of logs {folder}: check OPENSCENE_DATA_ROOT and train_test_split")
    there = {path.stem for path in folder.glob("*.pkl")}
    wanted = there if scene_filter.log_names is None else set(scene_filter.log_names)
    found = sorted(there & wanted)
    if not found:
        if there and not wanted:
            raise CannotShard(f"the scene filter of {split} admits no log: check scene_filter.log_names")
        logs = f"none of the {len(wanted)} logs of {split} is in" if wanted else f"no log of {split} is in"
        raise CannotShard(f"{logs} {folder}: check OPENSCENE_DATA_ROOT and SPLIT (train_test_split)")
    if len(found) < len(wanted):
        print(
            f"warning: {len(wanted) - len(found)} of the {len(wanted)} logs of {split} are not in {folder}",
            file=sys.stderr,
        )
    return folder, found


def _count(folder: Path, scene_filter: Any, log: str) -> int:
    with redirect_stderr(io.StringIO()):  # NAVSIM's progress bar, one per log
        return count_scenes(folder, scene_filter, log)


def main() -> int:
    """Print the shards; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.log_shards",
        description="Divide the logs of a split among caching processes; prints scenes and logs of each shard.",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--shards", type=int)
    task.add_argument(
        "--check-metric-caching", action="store_true", help="only look whether there are logs to cache metrics of"
    )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that count scenes")
    options, overrides = parser.parse_known_args()
    try:
        if options.check_metric_caching:
            check_metric_caching(overrides)
            return 0
        for shard in balance(scenes_per_log(overrides, options.workers), options.shards):
            print(f"{shard.scenes}\t{shard.override}")
    except (CannotShard, FileNotFoundError, HydraException, NavsimNotUsable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
