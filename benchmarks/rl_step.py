"""What sharing one condition per scene saves in reinforcement learning: our step against conditions per sample.

The baseline is our own code for the same loss: every sample of a group is treated as a scene of its own, so that hidden
states are projected, and keys and values computed, G times per scene, at each denoising step of a rollout, and once for
every step of every sample in the log-probabilities. As it needs much memory, ``--baseline-scenes`` lets it go through a
batch a few scenes at a time, with gradients accumulated. Both are given the same noise and must find the same loss and
gradients (checked before anything is timed). Times are medians of interleaved runs in this process, on the CPU in
processor seconds, which other work on the machine disturbs less; peak memory is that of a process of its own per case,
less what it holds before the step.

    python benchmarks/rl_step.py --baseline-scenes 1 --repeats 1 --memory-groups 8
                                   # CPU, small DiT, 8 scenes x 8 samples, 2800 x 1536: an hour, 8 GiB
    python benchmarks/rl_step.py --scenes 1 --repeats 1    # one scene: minutes, 15 GiB for the baseline with G = 16
    python benchmarks/rl_step.py --quick                  # 2 scenes, 200 hidden states
    python benchmarks/rl_step.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navsim_recogdrive.planner import Condition, DiffusionPlanner, PlannerConfig, denormalize_trajectory
from navsim_recogdrive.policy.backbones import SharedBackbone
from navsim_recogdrive.policy.configuration import VLMConfig
from navsim_recogdrive.policy.policy import ReCogDrivePolicy
from navsim_recogdrive.rl.advantages import group_advantages
from navsim_recogdrive.rl.configuration import RLConfig
from navsim_recogdrive.rl.losses import policy_loss, scene_mean
from navsim_recogdrive.rl.objective import RLObjective
from navsim_recogdrive.rl.reference import ReferencePolicy
from navsim_recogdrive.rl.reward import RewardResult
from navsim_recogdrive.rl.rollout import scene_condition, score_chains

Features = dict[str, Tensor]

# glibc keeps what is freed for later use, in pieces that other sizes do not fit into; resident memory then tells more
# of these pieces than of tensors. With this it returns every tensor to the system when it is freed.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

WAYS = {"baseline": "per sample", "kept": "ours, activations kept", "ours": "ours"}


class DistanceReward:
    """Costs nothing, so that only the network is measured: minus the distance of the end from a point, scaled."""

    def submit(self, tokens: Sequence[str], trajectories: Any) -> DistanceReward:
        """Score later."""
        self._ends = trajectories[:, :, -1, :2]
        return self

    def result(self) -> RewardResult:
        """Scores of what was submitted last."""
        scores = 1 - np.linalg.norm(self._ends - np.array([30.0, 0.0], np.float32), axis=-1) / 100
        return RewardResult(scores, np.ones(len(scores), bool), {}, 0.0)

    def close(self) -> None:
        """Nothing to give back."""


class Setup:
    """Actor, reference policy and a batch of the sizes asked for."""

    def __init__(self, options: argparse.Namespace, group_size: int) -> None:
        torch.manual_seed(0)
        self.options = options
        self.config = RLConfig(group_size=group_size)
        reference = build_planner(options)
        self.planner = build_planner(options).train()
        self.planner.load_state_dict(reference.state_dict())
        for parameter in self.planner.parameters():
            if parameter.requires_grad:
                parameter.data.add_(1e-3 * torch.randn_like(parameter))
        self.reference = ReferencePolicy(reference)
        self.reward = DistanceReward()
        policy = ReCogDrivePolicy(self.planner, SharedBackbone(VLMConfig()))
        self.objective = RLObjective(policy, self.config, self.reward, self.reference)
        keeping = replace(self.config, recompute_activations=False)
        self.keeping = RLObjective(policy, keeping, self.reward, self.reference)
        self.features = {
            "hidden_state": torch.randn(options.scenes, options.rows, options.hidden_size).bfloat16(),
            "past_poses": torch.randn(options.scenes, 4, 3),
            "ego_status": torch.randn(options.scenes, 8),
        }
        self.features = {name: values.to(options.device) for name, values in self.features.items()}
        self.targets = {"token": [str(scene) for scene in range(options.scenes)]}

    def step(self, parts: Callable[[], Iterable[Tensor]]) -> Tensor:
        """Loss and gradients, from the same noise every time, as a trainer with mixed precision does it.

        Args:
            parts: makes the terms of the loss, one after the other; their gradients are accumulated.
        """
        torch.manual_seed(1)
        self.planner.zero_grad(set_to_none=True)
        dtype = getattr(torch, self.options.dtype)
        total = torch.zeros((), device=self.options.device)
        terms = iter(parts())
        while True:
            with torch.autocast(self.options.device, dtype=dtype, enabled=dtype != torch.float32):
                part = next(terms, None)
            if part is None:
                return total
            part.backward()
            total += part.detach()

    def ours(self) -> Iterator[Tensor]:
        """The loss of one step of :class:`RLObjective`."""
        yield self.objective.loss(self.features, self.targets, self.objective.predict(self.features))

    def kept(self) -> Iterator[Tensor]:
        """The same without ``recompute_activations``."""
        yield self.keeping.loss(self.features, self.targets, self.keeping.predict(self.features))

    def baseline(self) -> Iterator[Tensor]:
        """The same loss with conditions per sample, a few scenes at a time."""
        return losses_recomputing(self)

    def scenes_at_once(self) -> Iterator[slice]:
        """The baseline's parts of the batch."""
        count = self.options.baseline_scenes or self.options.scenes
        return (slice(start, start + count) for start in range(0, self.options.scenes, count))

    def noise(self, samples: int) -> Tensor:
        """``[K + 1, B, samples, 8, 3]``, drawn in the order in which the planner draws it."""
        shape = self.options.scenes, samples, 8, 3
        count = self.planner.config.num_inference_steps + 1
        return torch.stack([torch.randn(shape, device=self.options.device) for _ in range(count)])


def repeat(features: Features, times: int) -> Features:
    return {name: values.repeat_interleave(times, dim=0) for name, values in features.items()}


def part_of(features: Features, scenes: slice) -> Features:
    return {name: values[scenes] for name, values in features.items()}


@torch.no_grad()
def chains_recomputing(planner: DiffusionPlanner, features: Features, noises: Tensor, config: RLConfig) -> Tensor:
    """A DDIM rollout ``[B, N, K + 1, 8, 3]`` with the condition recomputed at every step for every sample."""
    settings = config.rollout(planner.config.method)
    steps = planner.method.steps(planner.config.num_inference_steps, 1.0, noises.device)
    repeated = repeat(features, noises.shape[2])
    x = noises[0]
    states = [x]
    for k, timestep in enumerate(steps.timesteps):
        flat = x.flatten(0, 1).unsqueeze(1)
        prediction = planner.predict(scene_condition(planner, repeated), flat, timestep).float()
        mean, std = steps.step(k, x, prediction.reshape(x.shape))
        assert std is not None
        assert settings.noise_clamp is not None
        noise = noises[k + 1].clamp(-settings.noise_clamp, settings.noise_clamp)
        x = mean + std.clamp(min=settings.std_floor) * noise
        states.append(x)
    states[-1] = x.clamp(-1, 1)
    return torch.stack(states, dim=2)


def log_prob_recomputing(planner: DiffusionPlanner, features: Features, states: Tensor, config: RLConfig) -> Tensor:
    """Clamped mean log-probabilities ``[B, N, K]`` with every step of every sample as a scene of its own."""
    scenes, samples, count = states.shape[0], states.shape[1], states.shape[2] - 1
    condition = scene_condition(planner, repeat(features, samples * count))
    steps = planner.method.steps(count, 1.0, states.device)
    before = states[:, :, :-1]
    timesteps = steps.timesteps.repeat(scenes * samples)[:, None]
    prediction = planner.predict(condition, before.flatten(0, 2).unsqueeze(1), timesteps).float()
    mean, std = steps.step(slice(None), before, prediction.reshape(before.shape))
    assert std is not None
    normal = torch.distributions.Normal(mean, std.clamp(min=config.log_prob_std_floor))
    return normal.log_prob(states[:, :, 1:]).clamp(*config.log_prob_clamp).mean(dim=(-2, -1))


def losses_recomputing(setup: Setup) -> Iterator[Tensor]:
    """The published DiffGRPO loss, in parts that add up to that of the batch."""
    planner, config = setup.planner, setup.config
    drawn, of_reference = setup.noise(config.group_size), setup.noise(1)
    for scenes in setup.scenes_at_once():
        features = part_of(setup.features, scenes)
        states = chains_recomputing(planner, features, drawn[:, scenes], config)
        trajectories = denormalize_trajectory(states[:, :, -1]).cpu().numpy()
        result = setup.reward.submit(setup.targets["token"][scenes], trajectories).result()
        log_prob = log_prob_recomputing(planner, features, states, config)
        taught = chains_recomputing(setup.reference.on(states.device), features, of_reference[:, scenes], config)
        cloning = log_prob_recomputing(planner, features, taught, config)
        valid = torch.ones(len(states), dtype=torch.bool, device=states.device)
        advantages = group_advantages(torch.as_tensor(result.scores, device=states.device), valid, config).values
        policy = policy_loss(log_prob, advantages, valid, discount=config.denoising_discount)
        loss = policy - config.bc_weight * scene_mean(cloning, valid)
        yield loss * (len(states) / setup.options.scenes)


def build_planner(options: argparse.Namespace) -> DiffusionPlanner:
    preset = PlannerConfig.small if options.size == "small" else PlannerConfig.large
    planner = DiffusionPlanner(preset(hidden_state_size=options.hidden_size))
    for name, parameter in planner.named_parameters():
        # A fresh planner's modulations are zero, and zero gates would let every attention be wrong unnoticed.
        if "adaLN_modulation" in name or "modulation_proj" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return planner.to(options.device)


def check_agreement(setup: Setup) -> None:
    """Stop where the ways disagree in the loss or in any gradient."""
    bound = 2e-3 if setup.options.dtype == "float32" else 0.2
    found = {}
    for way in WAYS:
        value = setup.step(getattr(setup, way))
        gradients = [p.grad.float().flatten() for p in setup.planner.parameters() if p.grad is not None]
        found[way] = value.item(), torch.cat(gradients)
    for way, other in (("kept", "baseline"), ("ours", "baseline"), ("ours", "kept")):
        (value, gradient), (wanted, expected) = found[way], found[other]
        difference = ((gradient - expected).norm() / expected.norm()).item()
        pair = f"{WAYS[way]} against {WAYS[other]}: loss {value:.6f} and {wanted:.6f}"
        if not (abs(value - wanted) <= bound * max(1, abs(wanted)) and difference <= bound):
            raise SystemExit(f"{pair}, gradients differ by {difference:.3g}; expected at most {bound}")
        print(f"{pair}, gradients differ by {difference:.1e} of their norm")


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(name: str, ways: dict[str, Callable[[], object]], options: argparse.Namespace) -> None:
    """Times of every way, and how many times that of ours the baseline needs."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, work in ways.items():
            times[way].append(seconds(work, options.device))
    medians = {way: statistics.median(values) for way, values in times.items()}
    columns = " ".join(f"{medians[way]:>{max(len(title), 9)}.3f}" for way, title in WAYS.items())
    print(f"{name:34} {columns} {medians['baseline'] / medians['ours']:>7.1f}")


def log_prob_steps(setup: Setup) -> dict[str, Callable[[], object]]:
    """Forward and backward of a group's log-probabilities, the condition's included."""
    planner, config = setup.planner, setup.config
    states = planner.sample_chain(scene_condition(planner, setup.features), config.group_size).states

    def ours(objective: RLConfig) -> Iterator[Tensor]:
        condition: Condition = scene_condition(planner, setup.features)
        yield score_chains(planner, condition, states, None, objective).log_prob.mean()

    def baseline() -> Iterator[Tensor]:
        for scenes in setup.scenes_at_once():
            part = part_of(setup.features, scenes)
            yield log_prob_recomputing(planner, part, states[scenes], config).sum() / states[:, :, 1:, 0, 0].numel()

    return {
        "baseline": lambda: setup.step(baseline),
        "kept": lambda: setup.step(lambda: ours(setup.keeping.config)),
        "ours": lambda: setup.step(lambda: ours(config)),
    }


class ResidentPeak:
    """Highest resident memory (bytes) of this process inside a ``with``, by looking every few milliseconds (Linux)."""

    def __enter__(self) -> ResidentPeak:
        """Begin to look."""
        self.before = self.highest = self._resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.003):
            self.highest = max(self.highest, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_of_step(options: argparse.Namespace, way: str, group_size: int) -> float:
    """MiB that one step needs above what its process holds before it."""
    setup = Setup(options, group_size)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        setup.step(getattr(setup, way))
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    with ResidentPeak() as peak:
        setup.step(getattr(setup, way))
    return (peak.highest - peak.before) / 2**20


def measure_peak(way: str, group_size: int) -> float | None:
    """:func:`peak_of_step` in a process of its own; ``None`` if it does not fit into memory."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--peak", way, "--group-size", str(group_size)]
    run = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, **GIVE_BACK})
    out_of_memory = any(text in run.stderr for text in ("allocate memory", "enough memory", "MemoryError"))
    if run.returncode == -signal.SIGKILL or out_of_memory:
        return None
    if run.returncode != 0:
        raise SystemExit(f"{shlex.join(arguments)} has ended with {run.returncode}:\n{run.stderr}")
    return float(json.loads(run.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of autocast")
    parser.add_argument("--size", default="small", choices=["small", "large"])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--baseline-scenes", type=int, help="of the baseline at a time [--scenes]")
    parser.add_argument("--rows", type=int, default=2800, help="hidden states per scene")
    parser.add_argument("--hidden-size", type=int, default=1536, help="1536 for 2B, 3584 for 8B")
    parser.add_argument("--memory-groups", type=int, nargs="*", default=[4, 8, 16], help="G of the memory table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 scenes, 200 hidden states, 1 repeat, G = 4, 8")
    parser.add_argument("--peak", choices=list(WAYS), help="only print the peak memory of this way, MiB")
    options = parser.parse_args()
    for name in ("scenes", "group_size", "rows", "hidden_size", "repeats", "baseline_scenes"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    if options.quick:
        options.scenes, options.rows, options.repeats, options.memory_groups = 2, 200, 1, [4, 8]
    if options.peak:
        print(json.dumps(peak_of_step(options, options.peak, options.group_size)))
        return
    print(
        f"{options.size} DiT, {options.scenes} scenes x {options.group_size} samples, {options.rows} x "
        f"{options.hidden_size} hidden states, {options.dtype} on {options.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {options.repeats}"
    )
    setup = Setup(options, options.group_size)
    check_agreement(setup)
    unit = "seconds" if options.device == "cuda" else "processor seconds of all threads"
    print(f"{unit:34} {' '.join(f'{title:>9}' for title in WAYS.values())} {'ratio':>7}")
    compare("log-probability, forward+backward", log_prob_steps(setup), options)
    steps: dict[str, Callable[[], object]] = {way: partial(setup.step, getattr(setup, way)) for way in WAYS}
    compare("RL step", steps, options)
    at_once = options.baseline_scenes or options.scenes
    print(f"peak memory; {WAYS['baseline']}: of {at_once} scene(s) at a time, ours: of all {options.scenes}")
    print(f"{'peak memory of a step, MiB':34} " + " ".join(f"{f'G = {size}':>10}" for size in options.memory_groups))
    for way, title in WAYS.items():
        peaks = (measure_peak(way, size) for size in options.memory_groups)
        print(f"{title:34} " + " ".join(f"{'no room' if peak is None else round(peak):>10}" for peak in peaks))


if __name__ == "__main__":
    main()
