"""What text generation saves by starting behind the prompts' shared prefix.

The baseline is transformers' ``generate`` on whole prompts, padded in front, with the same random weights on the same
kernels. Answers of both are compared before anything is timed; both run interleaved in this process, and ratios of
medians are printed: up to the first token, and for a whole answer. On a CPU the clock counts this process's CPU time.

    python benchmarks/vlm_text.py                              # CPU, a mid-size random model
    python benchmarks/vlm_text.py --shape 2b --device cuda --dtype bfloat16 --batches 1 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig
from vlm import build_backbone, draw_scene
from vlm_shapes import SHAPES

from navsim_recogdrive.vlm import Backbone, VLMInputs
from navsim_recogdrive.vlm.generation import generate
from navsim_recogdrive.vlm.tiling import normalize_tiles


@torch.no_grad()
def from_whole_prompts(backbone: Backbone, inputs: Sequence[VLMInputs], count: int) -> list[str]:
    """Answers of ``count`` tokens."""
    longest = max(len(scene.token_ids) for scene in inputs)
    ids = torch.full((len(inputs), longest), backbone.preparation.pad_token_id)
    for row, scene in zip(ids, inputs, strict=True):
        row[longest - len(scene.token_ids) :] = torch.from_numpy(scene.token_ids)
    tiles: Tensor = torch.cat([torch.as_tensor(scene.tiles) for scene in inputs]).to(backbone.device)
    written = backbone.family.generator.generate(
        input_ids=ids.to(backbone.device),
        attention_mask=(ids != backbone.preparation.pad_token_id).long().to(backbone.device),
        pixel_values=normalize_tiles(tiles).to(backbone.dtype),
        generation_config=GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0),
    )
    return [backbone.tokenizer.decode(new.tolist()) for new in written[:, longest:]]


def seconds(work: Callable[[], object], device: str) -> float:
    if not device.startswith("cuda"):
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(backbone: Backbone, batch: int, count: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Milliseconds of a batch from whole prompts and behind the prefix, and the median of their ratios.

    Raises:
        SystemExit: if the answers differ, in float32; rounding of bfloat16 decides ties of random weights.
    """
    inputs = [backbone.prepare(draw_scene(seed)) for seed in range(batch)]
    expected = from_whole_prompts(backbone, inputs, count)
    found = [answer.text for answer in generate(backbone, inputs, count)]
    if options.dtype == "float32" and found != expected:
        raise SystemExit(f"answers differ: {found} behind the prefix, {expected} from whole prompts")
    whole, ours = [], []
    for _ in range(options.repeats):
        whole.append(seconds(lambda: from_whole_prompts(backbone, inputs, count), options.device))
        ours.append(seconds(lambda: generate(backbone, inputs, count), options.device))
    ratio = statistics.median(one / other for one, other in zip(whole, ours, strict=True))
    return 1e3 * statistics.median(whole), 1e3 * statistics.median(ours), ratio


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="mid", choices=list(SHAPES), help="size of the random model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2", "eager"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="scenes per batch")
    parser.add_argument("--tokens", type=int, default=150, help="of a whole answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON, and what is read by people to stderr")
    options = parser.parse_args(arguments)
    if options.attention == "flash_attention_2" and options.dtype == "float32":
        parser.error("--attention flash_attention_2 has no kernel for float32: add --dtype bfloat16")

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    torch.manual_seed(0)
    backbone = build_backbone(options, with_head=True)
    prompt, shared = len(backbone.prepare(draw_scene(0)).token_ids), len(backbone.prefix_rows)
    shape = SHAPES[options.shape]
    whole, needed = (shape.vision_flops(9) + shape.language_flops(prompt, rows) for rows in (0, shared))
    say(
        f"{options.shape}: {options.dtype} on {options.device}, {options.attention}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {options.repeats}; one scene = {prompt} tokens, {shared} of "
        f"them shared: up to the first token {whole / 1e9:.1f} GFLOP of whole prompts, {needed / 1e9:.1f} needed "
        f"({whole / needed:.3f} times)"
    )
    say(f"{'batch':>5} {'tokens':>7} {'whole, ms':>10} {'ours, ms':>10} {'ratio':>7}")
    rows = []
    for batch in options.batches:
        for count in (1, options.tokens):
            before, ours, ratio = compare(backbone, batch, count, options)
            rows.append({"batch": batch, "tokens": count, "whole_ms": before, "ours_ms": ours, "ratio": ratio})
            say(f"{batch:>5} {count:>7} {before:>10.0f} {ours:>10.0f} {ratio:>7.3f}")
    if options.json:
        print(json.dumps({"options": vars(options), "flops_ratio": whole / needed, "compared": rows}, indent=2))


if __name__ == "__main__":
    main()
