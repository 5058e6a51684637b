"""Where the time of a hidden state goes, and what is saved against the published way of computing it.

The baseline runs the same random weights on the same kernels as the published pipeline does: one scene at a time, the
whole prompt padded in front to 2800 tokens, and the language modelling head over every row. Ours starts behind the
shared prefix, without padding, without head. Rows of both are compared before anything is timed; both run interleaved
in this process and the ratios of medians are printed, with images per second, peak memory and the share of the
machine's peak FLOPs, then the parts of ours. Every line is printed as soon as it is measured.

    python benchmarks/vlm.py                                   # CPU, a mid-size random model
    python benchmarks/vlm.py --shape 2b --device cuda --dtype bfloat16 --batches 1 4 8 16
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vlm_shapes import SHAPES, Shape, random_internvl

from navsim_recogdrive.observation import Observation
from navsim_recogdrive.planner import DiffusionPlanner, PlannerConfig
from navsim_recogdrive.vlm import Backbone, PromptProfile, VLMIdentity, VLMInputs, write_tiny_checkpoint
from navsim_recogdrive.vlm.preparation import ScenePreparation
from navsim_recogdrive.vlm.prompts import added_token_id
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer
from navsim_recogdrive.vlm.tiling import normalize_tiles

PUBLISHED_LENGTH = 2800


def build_backbone(options: argparse.Namespace, with_head: bool = False) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_qwen2_tokenizer(write_tiny_checkpoint(Path(folder) / "tokenizer"))
    family = random_internvl(
        SHAPES[options.shape],
        added_token_id(tokenizer, "<IMG_CONTEXT>"),
        getattr(torch, options.dtype),
        options.device,
        options.attention,
        with_head,
    )
    identity = VLMIdentity(family.architecture.hidden_size, PUBLISHED_LENGTH, "random")
    preparation = ScenePreparation(
        family.architecture,
        tokenizer,
        PromptProfile.load("published"),
        cameras=("front",),
        max_tiles=12,
        hidden_length=PUBLISHED_LENGTH,
    )
    return Backbone(family, preparation, identity)


def draw_scene(seed: int) -> Observation:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    past = np.zeros((4, 3))
    past[:3, 0] = -np.sort(random.uniform(1, 15, 3))[::-1]
    return Observation(image, past, np.array([5.0, 0.0]), np.zeros(2), np.eye(4)[seed % 4])


@torch.no_grad()
def as_published(backbone: Backbone, head: Tensor, inputs: VLMInputs) -> Tensor:
    """Rows ``[S, D]`` of one scene through a padded prompt, with the logits that the pipeline computes and drops."""
    padded = PUBLISHED_LENGTH - len(inputs.token_ids)
    ids = torch.full((1, PUBLISHED_LENGTH), backbone.preparation.pad_token_id)
    ids[0, padded:] = torch.from_numpy(inputs.token_ids)
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    tiles = torch.as_tensor(inputs.tiles).to(backbone.device)  # on a GPU they are there already
    hidden = backbone.model(
        input_ids=ids.to(backbone.device),
        attention_mask=mask.to(backbone.device),
        position_ids=positions.to(backbone.device),
        pixel_values=normalize_tiles(tiles).to(backbone.dtype),
        use_cache=False,
    ).last_hidden_state[0]
    logits = hidden @ head.T
    return hidden[padded:] + 0 * logits[padded:, :1]


def seconds(work: Callable[[], object], device: str) -> float:
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def median_of(work: Callable[[], object], options: argparse.Namespace) -> float:
    work()
    return statistics.median(seconds(work, options.device) for _ in range(options.repeats))


def peak_flops(options: argparse.Namespace) -> float:
    """What this machine reaches on one large product of matrices, in the same dtype."""
    size = 8192 if options.device.startswith("cuda") else 1024
    first, second = (torch.randn(size, size, device=options.device).to(getattr(torch, options.dtype)) for _ in range(2))
    best = min(seconds(lambda: first @ second, options.device) for _ in range(10))
    return 2 * size**3 / best


def tolerance(options: argparse.Namespace) -> float:
    """Largest share of a norm by which two ways to the same result may differ."""
    return 1e-4 if options.dtype == "float32" else 0.1


def check(backbone: Backbone, head: Tensor, options: argparse.Namespace) -> None:
    """Compare the rows of one scene, ours and the published way.

    Raises:
        SystemExit: if they differ by more than rounding.
    """
    inputs = backbone.prepare(draw_scene(0))
    expected = as_published(backbone, head, inputs).float()
    difference = ((backbone.content_rows(inputs).float() - expected).norm() / expected.norm()).item()
    if not difference <= tolerance(options):
        raise SystemExit(
            f"ours and the baseline differ by {difference:.3g} of the rows' norm, expected {tolerance(options):.3g}"
        )


def compare(backbone: Backbone, head: Tensor, batch: int, options: argparse.Namespace) -> dict[str, float | None]:
    """Ours in one batch against the published way, interleaved; milliseconds per scene."""
    inputs = [backbone.prepare(draw_scene(seed)) for seed in range(batch)]
    memory = peak_memory(lambda: backbone.hidden_states(inputs), options.device)  # warms up, too
    baseline, ours = [], []
    for _ in range(options.repeats):
        baseline.append(seconds(lambda: as_published(backbone, head, inputs[0]), options.device))
        ours.append(seconds(lambda: backbone.hidden_states(inputs), options.device) / batch)
    one, other = statistics.median(baseline), statistics.median(ours)
    # Enough on a GPU that filling the pipeline does not count; preparing is no matter beside a model on the CPU.
    batches = 10 * options.threads if options.device.startswith("cuda") else options.threads + 1
    return {
        "batch": batch,
        "published_ms": round(1e3 * one, 2),
        "ours_ms": round(1e3 * other, 2),
        "ratio": round(one / other, 3),
        "images_per_second": round(1 / other, 3),
        "images_per_second_prepared_in_threads": round(throughput(backbone, batch, batches, options), 3),
        "peak_memory_mb": memory,
    }


def throughput(backbone: Backbone, batch: int, batches: int, options: argparse.Namespace) -> float:
    """Images per second from decoded images on: threads prepare the next batches while the model computes one.

    The clock runs from before the first image is prepared until the last hidden state is there, so that what it says is
    never more than what preparing and computing can keep up.
    """
    observations = [draw_scene(seed) for seed in range(4)]

    def prepared(index: int) -> list[VLMInputs]:
        return [backbone.prepare(observations[(index + scene) % 4]) for scene in range(batch)]

    with ThreadPoolExecutor(options.threads) as pool:
        begin = time.perf_counter()
        pending = deque(pool.submit(prepared, index) for index in range(min(options.threads, batches)))
        submitted = len(pending)
        while pending:
            inputs = pending.popleft().result()
            if submitted < batches:
                pending.append(pool.submit(prepared, submitted))
                submitted += 1
            seconds(lambda inputs=inputs: backbone.hidden_states(inputs), options.device)
        return batch * batches / (time.perf_counter() - begin)


def graphed(work: Callable[[], Tensor], device: str) -> Callable[[], Tensor] | str:
    """``work`` captured in a CUDA graph, or why it cannot be."""
    if not device.startswith("cuda"):
        return "no GPU"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = work()
    except RuntimeError as error:
        return str(error).splitlines()[0]

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@torch.no_grad()
def parts(backbone: Backbone, options: argparse.Namespace) -> Iterator[tuple[str, float | str]]:
    """Milliseconds of each part of one scene, alone; a text where a part cannot be measured here."""
    observation = draw_scene(0)
    inputs = backbone.prepare(observation)
    tiles = torch.as_tensor(backbone.preparation.prepare(observation).tiles)
    on_device = tiles.to(options.device)
    rows = backbone.family.image_rows(on_device)
    planner = DiffusionPlanner(PlannerConfig.small(hidden_state_size=backbone.hidden_size))
    planner.to(options.device, backbone.dtype if options.device.startswith("cuda") else torch.float32).eval()
    dtype = next(planner.parameters()).dtype
    past, ego = (torch.zeros(shape, device=options.device, dtype=dtype) for shape in ((1, 4, 3), (1, 8)))
    # What a graph reads lies where it was when the graph was captured.
    hidden = backbone.hidden_states([inputs]).to(dtype).clone()
    noise = torch.randn(6, 1, 1, 8, 3, device=options.device)

    def language() -> Tensor:
        original = backbone.family.image_rows
        backbone.family.image_rows = lambda _tiles: rows  # type: ignore[method-assign]
        try:
            return backbone.hidden_states([inputs])
        finally:
            backbone.family.image_rows = original  # type: ignore[method-assign]

    def plan() -> Tensor:
        return planner.sample(planner.condition(hidden, past, ego), 1, initial_noise=noise[0], step_noise=noise[1:])

    def image_to_trajectory(planned: Callable[[], Tensor]) -> Tensor:
        hidden.copy_(backbone.hidden_states([backbone.prepare(observation)]))
        noise.normal_()
        return planned().cpu()

    measured = {
        "tiles and prompt": lambda: backbone.prepare(observation),
        "tiles and prompt, Pillow on the CPU": lambda: backbone.preparation.prepare(observation),
        "tiles to the device, normalised": lambda: normalize_tiles(tiles.to(options.device)),
        "vision tower and projector": lambda: backbone.family.image_rows(on_device),
        "language model behind the prefix": language,
        "whole hidden state": lambda: backbone.hidden_states([inputs]),
        "planner (small DiT, 5 steps)": plan,
        "decoded image to trajectory": lambda: image_to_trajectory(plan),
    }
    for name, work in measured.items():
        yield name, round(1e3 * median_of(work, options), 2)

    alone, whole = "planner in a CUDA graph", "decoded image to trajectory, planner in a CUDA graph"
    replay = graphed(plan, options.device)  # last, as a capture that fails may leave the GPU in disorder
    if not isinstance(replay, str):
        noise.normal_()
        expected = plan()
        difference = ((replay() - expected).norm() / expected.norm()).item()
        if difference <= tolerance(options):
            yield alone, round(1e3 * median_of(replay, options), 2)
            yield whole, round(1e3 * median_of(lambda: image_to_trajectory(replay), options), 2)
            return
        replay = f"differs by {difference:.3g} of the trajectory's norm"
    yield alone, replay
    yield whole, replay


def flops(shape: Shape, tokens: int, prefix: int) -> dict[str, float]:
    """FLOPs of one scene: what is needed, and what the published way spends."""
    needed = shape.vision_flops(9) + shape.language_flops(tokens, prefix)
    spent = shape.vision_flops(9) + shape.language_flops(PUBLISHED_LENGTH) + shape.head_flops(PUBLISHED_LENGTH)
    return {"vision": shape.vision_flops(9), "needed": needed, "published": spent}


def peak_memory(work: Callable[[], object], device: str) -> int | None:
    """MB while ``work`` runs, weights included: of the GPU's memory, or of this process; None where Linux hides it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return round(torch.cuda.max_memory_allocated() / 1e6)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        reset = True
    except OSError:
        reset = False
    work()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()) if reset else None
    return round(int(found[1]) * 1024 / 1e6) if found else None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mid", choices=list(SHAPES), help="size of the random model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2", "eager"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="scenes per batch")
    parser.add_argument("--threads", type=int, default=2, help="threads that prepare images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON, and what is read by people to stderr")
    options = parser.parse_args(arguments)
    if options.attention == "flash_attention_2" and options.dtype == "float32":
        parser.error("--attention flash_attention_2 has no kernel for float32: add --dtype bfloat16")

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    torch.manual_seed(0)
    shape = SHAPES[options.shape]
    backbone = build_backbone(options)
    head = torch.randn(shape.vocabulary, shape.text[0], device=options.device).to(backbone.dtype)
    check(backbone, head, options)
    prompt = len(backbone.prepare(draw_scene(0)).token_ids)
    cost = flops(shape, prompt, len(backbone.prefix_rows))
    peak = peak_flops(options)
    gflop = {name: round(value / 1e9, 1) for name, value in cost.items()}
    report = {
        "options": vars(options),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "prompt_tokens": prompt,
        "gflop": gflop,
        "peak_gflops": round(peak / 1e9, 1),
    }
    say(
        f"{options.shape}: {options.dtype} on {options.device}, {options.attention}, torch {torch.__version__}, "
        f"{report['threads']} threads, median of {options.repeats}; one scene = 9 tiles, {prompt} tokens; the rows of "
        "both ways agree"
    )
    say(
        f"GFLOP per scene: {gflop['needed']} needed ({gflop['vision']} of them vision), {gflop['published']} the "
        f"published way; peak {report['peak_gflops']} GFLOP/s (one product of matrices)"
    )
    say(f"images/s: of prepared scenes, and from decoded images on with {options.threads} threads preparing")
    say(
        f"{'batch':>5} {'published, ms':>14} {'ours, ms':>10} {'ratio':>7} {'prepared/s':>11} {'images/s':>9} "
        f"{'peak, MB':>9} {'utilisation':>12}"
    )
    compared = []
    for batch in options.batches:
        row = compare(backbone, head, batch, options)
        row["utilisation"] = round(cost["needed"] * 1e3 / row["ours_ms"] / peak, 3)
        compared.append(row)
        say(
            f"{batch:>5} {row['published_ms']:>14} {row['ours_ms']:>10} {row['ratio']:>7} "
            f"{row['images_per_second']:>11} {row['images_per_second_prepared_in_threads']:>9} "
            f"{row['peak_memory_mb'] or 'unknown':>9} {row['utilisation']:>12}"
        )
    timed = {}
    for name, value in parts(backbone, options):
        timed[name] = value
        say(f"  {name:54} {value:>10} {'' if isinstance(value, str) else 'ms'}".rstrip())
    if options.json:
        print(json.dumps({**report, "compared": compared, "parts_ms": timed}, indent=2))


if __name__ == "__main__":
    main()
