"""Training from a cache of hidden states at real size, and what int8 does to planned trajectories.

Three parts, each printed as a table; the made-up activations are those of ``benchmarks/cache.py``:

``loading``   samples/s of NAVSIM's ``CacheOnlyDataset`` in a DataLoader that does nothing else, the published way of
              caching and ours side by side.
``training``  samples/s of one epoch through NAVSIM's unchanged ``run_training.py``, and which share of it the trainer
              waits for data, by Lightning's own profiler.
``planning``  distance between trajectories planned from a real cache as it is and with its hidden states stored as
              int8, same checkpoint, same noise. Needs ``--checkpoint`` and ``--cache``.

    python benchmarks/cache_end_to_end.py loading --workers 4
    python benchmarks/cache_end_to_end.py training --accelerator gpu --batch-size 16 --workers 8 --scenes 2048
    python benchmarks/cache_end_to_end.py planning --checkpoint last.ckpt --cache CACHE_PATH --scenes 500

Scenes are hard links to a few files, which the page cache holds: a disk that is too slow is not seen here.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from cache import PUBLISHED, realistic_activations
from torch.utils.data import DataLoader

from navsim_recogdrive.cache.codec import MODES, decode, encode
from navsim_recogdrive.cache.hidden_state import HiddenState
from navsim_recogdrive.cache.peek import cached_scene_folders, peek_feature, peek_hidden_state
from navsim_recogdrive.cache.writing import write_feature
from navsim_recogdrive.planner.checkpoints import infer_planner_config, load_planner_weights
from navsim_recogdrive.planner.planner import DiffusionPlanner
from navsim_recogdrive.policy.features import (
    EGO_CACHE,
    EGO_STATUS,
    HIDDEN_STATE,
    HIDDEN_STATE_CACHE,
    HIDDEN_STATE_LAYOUT,
    PAST_POSES,
    TOKEN,
    TOKEN_CACHE,
    TRAJECTORY,
    TRAJECTORY_CACHE,
)
from navsim_recogdrive.policy.noise import scene_noise

FILES = 8
PADDING_ROWS = 9
FEATURES_OF_PLANNER = {1536: "recogdrive_2b", 3584: "recogdrive_8b"}
PROFILED = re.compile(
    r"\|\s*\[?[\w.]*\]?\.?(run_training_epoch|run_training_batch|train_dataloader_next)\s*\|([^|]+)\|([^|]+)\|([^|]+)\|"
)


def make_cache(root: Path, scenes: int, rows: int, features: int, way: str) -> float:
    """A cache of ``scenes`` in two logs, ``train`` and ``val``; returns the bytes of a scene's hidden state."""
    state = realistic_activations(rows, features)
    path = Path()
    for index in range(scenes):
        folder = root / ("val" if index % 8 == 7 else "train") / f"{index:016x}"
        folder.mkdir(parents=True)
        path = folder / f"{HIDDEN_STATE_CACHE}.gz"
        if index < FILES:
            content = state.float() if way == PUBLISHED else HiddenState.wrap(state, PADDING_ROWS, way)
            write_feature(path, {HIDDEN_STATE: content})
            first = folder.parents[1]
        else:
            source = index % FILES
            log = "val" if source % 8 == 7 else "train"
            os.link(first / log / f"{source:016x}" / path.name, path)
        past = torch.linspace(-3, 0, 4)[:, None] * torch.tensor([4.0, 0.0, 0.0])
        status = torch.tensor([0.0, 1, 0, 0, 8, 0, 0, 0])
        future = torch.linspace(0.5, 4, 8)[:, None] * torch.tensor([8.0, 0.0, 0.0])
        write_feature(folder / f"{EGO_CACHE}.gz", {PAST_POSES: past, EGO_STATUS: status})
        write_feature(folder / f"{TRAJECTORY_CACHE}.gz", {TRAJECTORY: future})
        write_feature(folder / f"{TOKEN_CACHE}.gz", {TOKEN: folder.name})
    return path.stat().st_size


class Named:
    """A builder, as far as ``CacheOnlyDataset`` needs one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def get_unique_name(self) -> str:
        """Name of the cache file, without its ending."""
        return self._name


def measure_loading(root: Path, workers: int, batch_size: int) -> float:
    """Samples per second of the second half of a pass, when the workers run."""
    from navsim.planning.training.dataset import CacheOnlyDataset

    builders = [Named(name) for name in HIDDEN_STATE_LAYOUT.files]
    dataset = CacheOnlyDataset(str(root), builders[:2], builders[2:], log_names=["train"])
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, drop_last=True)
    marks = [time.perf_counter() for _ in loader]
    half = len(marks) // 2
    return batch_size * (len(marks) - 1 - half) / (marks[-1] - marks[half])


def run_training(root: Path, options: argparse.Namespace, features: int) -> dict[str, tuple[float, int]]:
    """Total seconds and calls of Lightning's profiled actions, from the unchanged runner."""
    import navsim.planning.script as script

    command = [
        sys.executable,
        str(Path(script.__file__).parent / "run_training.py"),
        f"agent={FEATURES_OF_PLANNER[features]}",
        "agent.vlm.path=null",
        "train_test_split=trainval",
        "train_logs=[train]",
        "val_logs=[val]",
        f"experiment_name=benchmark_{features}",
        f"cache_path='{root}'",
        "use_cache_without_dataset=true",
        "force_cache_computation=false",
        "trainer.params.max_epochs=1",
        "trainer.params.gradient_clip_val=1.0",
        "+trainer.params.devices=1",
        "trainer.params.strategy=auto",
        f"trainer.params.accelerator={options.accelerator}",
        f"trainer.params.precision={options.precision}",
        "+trainer.params.profiler=simple",
        "+trainer.params.enable_progress_bar=false",
        f"dataloader.params.num_workers={options.workers}",
        f"dataloader.params.batch_size={options.batch_size}",
        f"dataloader.params.pin_memory={str(options.accelerator == 'gpu').lower()}",
        "agent.optimizer.warmup_epochs=0",
    ]
    environment = {
        "OPENSCENE_DATA_ROOT": str(root),
        "NUPLAN_MAPS_ROOT": str(root),
        "NAVSIM_EXP_ROOT": str(root.parent / "exp"),
    }
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return {match[1]: (float(match[4]), int(match[3])) for match in PROFILED.finditer(done.stdout + done.stderr)}


def loading(options: argparse.Namespace) -> None:
    print(f"{'loading':28} {'MB':>6} {'samples/s':>10} {'ratio':>6}   {options.workers} workers")
    for features in options.hidden_sizes:
        published = 0.0
        for way in (PUBLISHED, *MODES):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                size = make_cache(Path(folder) / "cache", options.scenes, options.rows, features, way)
                rate = measure_loading(Path(folder) / "cache", options.workers, options.batch_size)
            published = published or rate
            print(f"{f'{features} {way}':28} {size / 1e6:6.2f} {rate:10.1f} {rate / published:6.2f}")


def training(options: argparse.Namespace) -> None:
    print(
        f"{'training':28} {'samples/s':>10} {'waiting':>8} {'step ms':>8}   {options.accelerator}, {options.workers} "
        "workers"
    )
    for features in options.hidden_sizes:
        for mode in ("bf16", "int8"):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                make_cache(Path(folder) / "cache", options.scenes, options.rows, features, mode)
                found = run_training(Path(folder) / "cache", options, features)
            epoch, batches = found["run_training_epoch"][0], found["run_training_batch"][1]
            waiting, step = found["train_dataloader_next"][0], found["run_training_batch"][0]
            rate = batches * options.batch_size / (waiting + step)
            print(
                f"{f'{features} {mode}':28} {rate:10.1f} {waiting / (waiting + step):8.0%} {1e3 * step / batches:8.0f}"
                f"   epoch with validation {epoch:.1f} s"
            )


def planned(planner: DiffusionPlanner, folders: list[Path], int8: bool) -> Iterator[torch.Tensor]:
    """Trajectories [8, 3] of cached scenes, each with its own noise."""
    config = planner.config
    for folder in folders:
        path = folder / f"{HIDDEN_STATE_CACHE}.gz"
        rows = peek_feature(path, HIDDEN_STATE)
        if int8:
            rows = decode(encode(rows, padding_rows=peek_hidden_state(path).info.padding_rows, mode="int8"))
        past, status = (peek_feature(folder / f"{EGO_CACHE}.gz", name)[None] for name in (PAST_POSES, EGO_STATUS))
        first, steps = scene_noise(
            past, status, num_samples=1, num_steps=config.num_inference_steps, horizon=config.horizon, seed=0
        )
        condition = planner.condition(rows[None], past, status)
        yield planner.sample(condition, 1, initial_noise=first, step_noise=steps)[0, 0]


def planning(options: argparse.Namespace) -> None:
    if options.checkpoint is None or options.cache is None:
        raise SystemExit("planning needs --checkpoint and --cache")
    planner = DiffusionPlanner(infer_planner_config(options.checkpoint))
    load_planner_weights(planner, options.checkpoint)
    planner.eval()
    folders = list(cached_scene_folders(options.cache, None, f"{HIDDEN_STATE_CACHE}.gz"))[: options.scenes]
    with torch.inference_mode():
        exact, rounded = (torch.stack(list(planned(planner, folders, int8))) for int8 in (False, True))
    distance = (exact[..., :2] - rounded[..., :2]).norm(dim=-1)
    heading = torch.rad2deg((exact[..., 2] - rounded[..., 2]).abs().mean())
    print(
        f"planning from int8 in place of {len(folders)} scenes' own hidden states: mean displacement "
        f"{100 * distance.mean():.2f} cm, at 4 s {100 * distance[:, -1].mean():.2f} cm, largest "
        f"{100 * distance.max():.2f} cm, heading {heading:.3f} degrees; trajectories reach "
        f"{exact[:, -1, :2].norm(dim=-1).mean():.1f} m on average"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["loading", "training", "planning"])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--rows", type=int, default=2800)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[1536], choices=list(FEATURES_OF_PLANNER))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--precision", default="32", help="the trainer's; 16-mixed as published, on a GPU")
    parser.add_argument("--folder", type=Path, help="where to write the caches (default: where temporary files go)")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"loading": loading, "training": training, "planning": planning}[options.part](options)


if __name__ == "__main__":
    main()
