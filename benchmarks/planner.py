"""What sharing one condition per scene saves: our planner against the same weights with the condition recomputed.

The baseline computes hidden-state projection, keys and values anew at every denoising step and for every sample, which
is what a planner does that treats the VLM's hidden states as one more input of its network. Both give the same numbers
(checked before anything is timed), both run interleaved in this process, and the medians' ratios are printed.

    python benchmarks/planner.py                        # CPU, small DiT, 2800 hidden states of width 1536
    python benchmarks/planner.py --quick                # seconds: 200 hidden states, 3 repeats
    python benchmarks/planner.py --device cuda --dtype bfloat16 --size large
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from navsim_recogdrive.planner import (
    DiffusionPlanner,
    PlannerConfig,
    SamplerSettings,
    denormalize_trajectory,
    normalize_trajectory,
)
from navsim_recogdrive.policy.imitation import imitation_loss

Inputs = dict[str, Tensor]


@dataclass
class Row:
    """Two ways to the same result."""

    name: str
    baseline_label: str
    baseline: Callable[[], object]
    ours: Callable[[], object]


def repeat_scenes(inputs: Inputs, times: int) -> Inputs:
    return {name: tensor.repeat_interleave(times, dim=0) for name, tensor in inputs.items()}


@torch.no_grad()
def sample_recomputing(planner: DiffusionPlanner, inputs: Inputs, initial: Tensor, step_noise: Tensor) -> Tensor:
    """Published DDIM inference with the condition recomputed at every step for every sample: ``[B, N, 8, 3]``."""
    batch, samples = initial.shape[:2]
    settings = SamplerSettings.inference(planner.config.method)
    steps = planner.method.steps(len(step_noise), eta=1.0, device=initial.device)
    repeated = repeat_scenes(inputs, samples)
    x = initial
    for k, noise in enumerate(step_noise):
        flat = x.flatten(0, 1).unsqueeze(1)
        prediction = planner.predict(planner.condition(**repeated), flat, steps.timesteps[k]).float()
        mean, std = steps.step(k, x, prediction.reshape(x.shape))
        assert std is not None
        assert settings.noise_clamp is not None
        x = mean + std.clamp(min=settings.std_floor) * noise.clamp(-settings.noise_clamp, settings.noise_clamp)
    return denormalize_trajectory(x.clamp(-1, 1)).reshape(batch, samples, -1, 3)


def loss_recomputing(
    planner: DiffusionPlanner, inputs: Inputs, trajectories: Tensor, noise: Tensor, levels: Tensor
) -> Tensor:
    """The imitation loss of several draws with every draw treated as a scene of its own."""
    draws = noise.shape[1]
    condition = planner.condition(**repeat_scenes(inputs, draws))
    actions = normalize_trajectory(trajectories).repeat_interleave(draws, dim=0).unsqueeze(1)
    example = planner.method.training_example(actions, noise.flatten(0, 1).unsqueeze(1), levels.reshape(-1, 1))
    prediction = planner.predict(condition, example.noisy_actions, example.timesteps).float()
    return torch.nn.functional.mse_loss(prediction, example.target)


def build_planner(options: argparse.Namespace) -> DiffusionPlanner:
    preset = PlannerConfig.small if options.size == "small" else PlannerConfig.large
    planner = DiffusionPlanner(preset(hidden_state_size=options.hidden_size))
    for name, parameter in planner.named_parameters():
        # A fresh planner's modulations are zero, and zero gates would let every attention be wrong unnoticed.
        if "adaLN_modulation" in name or "modulation_proj" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return planner.to(options.device, getattr(torch, options.dtype))


def draw_inputs(options: argparse.Namespace, scenes: int) -> Inputs:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=options.device, dtype=getattr(torch, options.dtype))

    return {
        "hidden_states": draw(scenes, options.rows, options.hidden_size),
        "past_poses": draw(scenes, 4, 3),
        "ego_status": draw(scenes, 8),
    }


def sampling_row(planner: DiffusionPlanner, options: argparse.Namespace, scenes: int, samples: int) -> Row:
    inputs = draw_inputs(options, scenes)
    initial = torch.randn(scenes, samples, 8, 3, device=options.device)
    step_noise = torch.randn(5, *initial.shape, device=options.device)

    @torch.no_grad()
    def ours() -> Tensor:
        return planner.sample(planner.condition(**inputs), samples, initial_noise=initial, step_noise=step_noise)

    def baseline() -> Tensor:
        return sample_recomputing(planner, inputs, initial, step_noise)

    difference = (ours() - baseline()).abs().max().item()
    check_agreement(f"{samples} samples of {scenes} scenes", difference, options, fp32_bound=1e-2)
    name = f"{scenes} scene{'s' if scenes > 1 else ''}, {samples} sample{'s' if samples > 1 else ''} each"
    return Row(name, "condition per step and sample", baseline, ours)


def training_rows(planner: DiffusionPlanner, options: argparse.Namespace, scenes: int) -> list[Row]:
    inputs = draw_inputs(options, scenes)
    trajectories = torch.rand(scenes, 8, 3, device=options.device)
    noise = torch.randn(scenes, 8, 8, 3, device=options.device)
    levels = torch.randint(0, 100, (scenes, 8), device=options.device)

    def step(loss: Tensor) -> Tensor:
        planner.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    def ours(draws: int) -> Tensor:
        condition = planner.condition(**inputs)
        loss = imitation_loss(
            planner,
            condition,
            trajectories,
            draws_per_scene=draws,
            noise=noise[:, :draws],
            levels=levels[:, :draws],
        )
        return step(loss)

    def baseline() -> Tensor:
        return step(loss_recomputing(planner, inputs, trajectories, noise, levels))

    check_agreement("training loss", abs((ours(8) - baseline()).item()), options, fp32_bound=1e-4)
    return [
        Row(f"training step, {scenes} x 8 draws", "condition per draw", baseline, lambda: ours(8)),
        Row(f"training step, {scenes} x 8 draws", "ours with 1 draw", lambda: ours(1), lambda: ours(8)),
    ]


def check_agreement(name: str, difference: float, options: argparse.Namespace, fp32_bound: float) -> None:
    """Stop where the two ways disagree: metres (the untrained network amplifies rounding) or loss."""
    bound = fp32_bound * (1 if options.dtype == "float32" else 300)
    if not difference <= bound:
        raise SystemExit(f"{name}: ours and the baseline differ by {difference:.3g}, expected at most {bound:.3g}")


def milliseconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def measure(row: Row, options: argparse.Namespace) -> dict[str, object]:
    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    row.baseline(), row.ours()
    for _ in tqdm(range(options.repeats), desc=row.name, leave=False):
        times["baseline"].append(milliseconds(row.baseline, options.device))
        times["ours"].append(milliseconds(row.ours, options.device))
    baseline, ours = (statistics.median(times[name]) for name in ("baseline", "ours"))
    return {
        "case": row.name,
        "baseline": row.baseline_label,
        "baseline_ms": round(baseline, 2),
        "ours_ms": round(ours, 2),
        "ratio": round(baseline / ours, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", default="small", choices=["small", "large"])
    parser.add_argument("--rows", type=int, default=2800, help="hidden states per scene")
    parser.add_argument("--hidden-size", type=int, default=1536, help="1536 for 2B, 3584 for 8B")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--training-scenes", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="200 hidden states, 3 repeats")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.repeats = 200, 3
    torch.manual_seed(0)
    planner = build_planner(options)
    rows = [
        *(sampling_row(planner, options, scenes, samples) for scenes, samples in ((1, 1), (8, 1), (1, 8))),
        *training_rows(planner, options, options.training_scenes),
    ]
    results = [measure(row, options) for row in rows]
    if options.json:
        print(json.dumps({"options": vars(options), "torch": torch.__version__, "results": results}, indent=2))
        return
    print(
        f"{options.size} DiT, {options.rows} x {options.hidden_size} hidden states, {options.dtype} on "
        f"{options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads, median of {options.repeats}"
    )
    print(f"{'case':32} {'compared with':32} {'it, ms':>10} {'ours, ms':>10} {'ratio':>7}")
    for result in results:
        print(
            f"{result['case']:32} {result['baseline']:32} {result['baseline_ms']:>10} {result['ours_ms']:>10} "
            f"{result['ratio']:>7}"
        )


if __name__ == "__main__":
    main()
