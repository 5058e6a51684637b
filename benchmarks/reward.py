"""What the batched PDM reward saves: our scores of a group against one call of NAVSIM's ``pdm_score`` per trajectory.

Both give the same numbers (checked to the last bit before anything is timed), both run interleaved in this process on
one core, scene after scene, with the scene's metric cache in memory; medians and their ratio are printed, then what the
parts of ours take, and scenes per second with worker processes.

    export OMP_NUM_THREADS=1
    python benchmarks/reward.py --metric-cache $NAVSIM_EXP_ROOT/metric_cache           # G = 8
    python benchmarks/reward.py --metric-cache ... --group-size 8 32 --workers 1 2 4 8

NAVSIM v1.1 or v2.2, whichever is installed; the metric cache is made with ``run_metric_caching.py`` of the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from navsim.common.dataclasses import Trajectory
from navsim.evaluate.pdm_score import pdm_score
from navsim.planning.simulation.planner.pdm_planner.scoring.pdm_scorer import PDMScorer, PDMScorerConfig
from navsim.planning.simulation.planner.pdm_planner.simulation.pdm_simulator import PDMSimulator
from numpy.typing import NDArray
from tqdm import tqdm

from navsim_recogdrive.agents.compat_pdm import IS_V2, NAVSIM_NAME, Scorer
from navsim_recogdrive.agents.metric_cache import MetricCacheFolder
from navsim_recogdrive.agents.pdm_batch import PLANNED, SUB_SCORES, BatchScorer, interpolate, prepare
from navsim_recogdrive.agents.pdm_reward import PDMReward, PDMRewardSettings

Timings = dict[str, list[float]]
_FIRST = "first group, with PDM-Closed"


class NavsimOneByOne:
    """NAVSIM's ``pdm_score`` with its evaluation settings."""

    def __init__(self, human_filter: bool) -> None:
        config = PDMScorerConfig(human_penalty_filter=human_filter) if IS_V2 else PDMScorerConfig()
        sampling = Scorer().sampling
        self._arguments: tuple[Any, ...] = (sampling, PDMSimulator(sampling), PDMScorer(sampling, config))
        if IS_V2:
            from navsim.traffic_agents_policies.log_replay_traffic_agents import LogReplayTrafficAgents

            self._arguments = (*self._arguments, LogReplayTrafficAgents(sampling))

    def score(self, cache: Any, trajectories: NDArray[np.float32]) -> list[Any]:
        """One after the other."""
        return [pdm_score(cache, Trajectory(poses, PLANNED), *self._arguments) for poses in trajectories]


def group(rng: np.random.Generator, cache: Any, size: int) -> NDArray[np.float32]:
    """Trajectories [G, 8, 3] as a planner draws them: ego speed and a little turning, with noise."""
    speed = cache.ego_state.dynamic_car_state.speed + rng.normal(0, 1, size=(size, 1))
    distance = np.maximum(speed, 0) * np.arange(1, 9) * 0.5
    heading = np.clip(rng.normal(0, 0.01, size=(size, 1)) * distance, -1, 1)
    poses = np.stack([distance * np.cos(heading / 2), distance * np.sin(heading / 2), heading], axis=-1)
    return (poses + rng.normal(0, 0.02, size=poses.shape)).astype(np.float32)


def check_equal(ours: Any, theirs: list[Any]) -> None:
    for name in SUB_SCORES:
        values = [row[0][name].iloc[0] if IS_V2 else getattr(row, name) for row in theirs]
        np.testing.assert_array_equal(ours.sub_scores[name], np.array(values, dtype=np.float64), err_msg=name)


def timed(timings: Timings, name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    timings.setdefault(name, []).append((time.perf_counter() - start) * 1e3)
    return result


def compare(folder: MetricCacheFolder, size: int, repeats: int, human_filter: bool, seed: int) -> Timings:
    """Milliseconds per scene."""
    rng = np.random.default_rng(seed)
    scorer = Scorer({"human_penalty_filter": human_filter} if IS_V2 else {})
    batch, navsim = BatchScorer(scorer), NavsimOneByOne(human_filter)
    timings: Timings = {}
    for token in tqdm(folder.tokens, desc=f"{size} per scene"):
        theirs = folder.read(token)
        cache = timed(timings, "read the metric cache", lambda token=token: folder.read(token))
        timed(timings, "prepare it", lambda cache=cache: prepare(cache, scorer))
        trajectories = group(rng, cache, size)
        first = timed(timings, _FIRST, lambda cache=cache, drawn=trajectories: batch.score(drawn, cache))
        reference = first.reference
        check_equal(first, navsim.score(theirs, trajectories))
        for _ in range(repeats):
            timed(timings, "navsim", lambda theirs=theirs, drawn=trajectories: navsim.score(theirs, drawn))
            timed(
                timings,
                "ours",
                lambda cache=cache, drawn=trajectories, reference=reference: batch.score(drawn, cache, reference),
            )
            proposals = timed(timings, "interpolate", lambda c=cache, drawn=trajectories: interpolate(drawn, c, scorer))
            states = timed(timings, "simulate", lambda c=cache, p=proposals: scorer.simulate(p, c))
            timed(timings, "score", lambda c=cache, s=states: scorer.raw_metrics(s, c))
    return timings


def cpu_seconds(process_ids: list[int]) -> float:
    """Time that processes have had a core (Linux)."""
    stats = [Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split() for process_id in process_ids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def throughput(path: str, size: int, workers: int, seconds: float) -> tuple[float, float]:
    """Batches of 8 scenes, two in flight, caches in memory: scenes per second, and cores that the workers got."""
    reward = PDMReward(PDMRewardSettings(path, workers=workers))
    try:
        rng = np.random.default_rng(0)
        tokens = reward.caches.tokens
        drawn = {token: group(rng, reward.caches.read(token), size) for token in tokens}
        every = reward.submit(tokens, np.stack([drawn[token] for token in tokens]))
        every.result()  # start, and metric caches from disk
        start, cpu, done, pending = time.perf_counter(), cpu_seconds(reward.process_ids), 0, []
        while time.perf_counter() - start < seconds:
            batch = [tokens[i] for i in rng.integers(len(tokens), size=8)]
            pending.append(reward.submit(batch, np.stack([drawn[token] for token in batch])))
            if len(pending) == 2:
                done += int(pending.pop(0).result().valid.sum())
        done += sum(int(one.result().valid.sum()) for one in pending)
        elapsed = time.perf_counter() - start
        return done / elapsed, (cpu_seconds(reward.process_ids) - cpu) / elapsed
    finally:
        reward.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metric-cache", required=True, help="folder made by run_metric_caching.py")
    parser.add_argument("--group-size", type=int, nargs="+", default=[8])
    parser.add_argument("--repeats", type=int, default=5, help="per scene")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="per number of workers")
    parser.add_argument("--no-human-filter", action="store_true", help="v2.x: without the human filter, both sides")
    parser.add_argument("--json", help="write the medians there")
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: numpy would take more than one core for both sides")
    warnings.simplefilter("ignore")
    folder = MetricCacheFolder(arguments.metric_cache)
    found: dict[str, Any] = {"navsim": NAVSIM_NAME, "scenes": len(folder.tokens), "cores": os.cpu_count()}
    print(f"NAVSIM {NAVSIM_NAME}, {len(folder.tokens)} scenes, one core; medians of {arguments.repeats} per scene")
    for size in arguments.group_size:
        timings = compare(folder, size, arguments.repeats, not arguments.no_human_filter, seed=0)
        medians = {name: statistics.median(values) for name, values in timings.items()}
        fastest = {name: min(values) for name, values in timings.items()}
        ratio = medians["navsim"] / medians["ours"]
        found[f"group of {size}"] = medians | {"ratio": ratio}
        print(f"\nG = {size}, ms per trajectory (median, fastest); same sub-scores to the last bit")
        for name in ("navsim", "ours"):
            print(f"  {name:30}{medians[name] / size:8.2f}{fastest[name] / size:8.2f}")
        print(f"  ratio {ratio:.1f} (of the fastest {fastest['navsim'] / fastest['ours']:.1f})")
        print("of which, ms per scene")
        for name in ("interpolate", "simulate", "score"):
            print(f"  {name:30}{medians[name]:8.2f}{fastest[name]:8.2f}")
        print("and when a scene is seen for the first time, ms")
        for name in ("read the metric cache", "prepare it", _FIRST):
            print(f"  {name:30}{medians[name]:8.2f}{fastest[name]:8.2f}")
    for workers in arguments.workers:
        rate, cores = throughput(arguments.metric_cache, arguments.group_size[0], workers, arguments.seconds)
        found[f"{workers} workers"] = {"scenes per second": rate, "cores": cores}
        print(
            f"{workers} workers: {rate:.1f} scenes of {arguments.group_size[0]} per second on {cores:.2f} of "
            f"{os.cpu_count()} cores, {rate / cores:.1f} per second and core"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
