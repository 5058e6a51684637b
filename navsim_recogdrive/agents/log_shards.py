"""Divides the logs of a split among caching processes, so that all have about the same number of scenes.

    python -m navsim_recogdrive.agents.log_shards --shards 8 train_test_split=navtrain [HYDRA OVERRIDES]

prints one line per shard: its number of scenes, a tab, and its logs as a Hydra list. The split, its filter and its
paths come from NAVSIM's own configuration, and its own SceneLoader counts the scenes. The same input gives the same
shards on every node.
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
from tqdm import tqdm

from navsim_recogdrive.agents.compat import count_scenes, training_config_folder


class CannotShard(ValueError):
    """A split that cannot be divided by logs."""


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
        CannotShard: if the filter has ``max_scenes``, which each process would apply for itself.
        FileNotFoundError: if the split has no folder of logs.
    """
    with initialize_config_dir(config_dir=str(training_config_folder()), version_base=None):
        config = compose("default_training", overrides=list(overrides))
    scene_filter = instantiate(config.train_test_split.scene_filter)
    if scene_filter.max_scenes is not None:
        raise CannotShard(
            f"scene_filter.max_scenes={scene_filter.max_scenes} would apply to every process: leave it out, or cache "
            "with one process"
        )
    folder = Path(config.navsim_log_path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of logs {folder}: check OPENSCENE_DATA_ROOT and train_test_split")
    names = sorted(path.stem for path in folder.glob("*.pkl"))
    if scene_filter.log_names is not None:
        names = sorted(set(names) & set(scene_filter.log_names))
    count = partial(_count, folder, scene_filter)
    progress = partial(tqdm, total=len(names), desc="Counting scenes", unit="log", file=sys.stderr)
    if workers <= 1 or len(names) <= workers:
        return dict(zip(names, progress(map(count, names)), strict=True))
    with ProcessPoolExecutor(workers) as pool:
        return dict(zip(names, progress(pool.map(count, names)), strict=True))


def _count(folder: Path, scene_filter: Any, log: str) -> int:
    with redirect_stderr(io.StringIO()):  # NAVSIM's progress bar, one per log
        return count_scenes(folder, scene_filter, log)


def main() -> int:
    """Print the shards; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.log_shards",
        description="Divide the logs of a split among caching processes; prints scenes and logs of each shard.",
    )
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that count scenes")
    options, overrides = parser.parse_known_args()
    try:
        for shard in balance(scenes_per_log(overrides, options.workers), options.shards):
            print(f"{shard.scenes}\t{shard.override}")
    except (CannotShard, FileNotFoundError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
