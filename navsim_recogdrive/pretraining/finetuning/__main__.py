"""Command line of fine-tuning; start it by torchrun or accelerate for several processes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from navsim_recogdrive.pretraining.finetuning.settings import (
    LAYOUTS,
    PARTS,
    PRECISIONS,
    TRAININGS,
    FinetuneSettings,
)
from navsim_recogdrive.vlm.adapters import LoRA
from navsim_recogdrive.vlm.architecture import ATTENTION_KERNELS


def _parser() -> argparse.ArgumentParser:
    default = {field.name: field.default for field in fields(FinetuneSettings)}
    lora = LoRA()
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.pretraining.finetuning",
        description="Fine-tune InternVL3 on question-answer data. Defaults are the published settings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(name: str, help: str, **kwargs: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", default=default[name], help=help, **kwargs)

    parser.add_argument("--model", required=True, help="folder or hub id of an InternVL3, in either layout")
    parser.add_argument("--mixture", required=True, help="JSON file in InternVL's layout, or a built-in mixture's name")
    parser.add_argument("--output", required=True, type=Path, help="folder for checkpoints and the model")
    add("data_root", "what relative paths in the mixture count from [the mixture's folder]", type=Path)
    add("revision", "branch, tag or commit of a hub repository")
    add("training", "train everything, or adapters in the language model", choices=TRAININGS)
    add("freeze", "parts left as they are with --training full", nargs="*", choices=PARTS)
    parser.add_argument("--lora-rank", type=int, default=lora.rank, help="rank of adapters")
    parser.add_argument("--lora-alpha", type=float, default=lora.alpha, help="strength of adapters")
    parser.add_argument("--lora-dropout", type=float, default=lora.dropout, help="dropout of adapters' inputs")
    add("epochs", "how often the mixture is gone through", type=float)
    add("max_steps", "stop after so many steps", type=int)
    add("learning_rate", "highest learning rate, cosine down to 0", type=float)
    add("warmup_ratio", "share of the steps with a linear warm-up", type=float)
    add("weight_decay", "AdamW's, but for norms and biases", type=float)
    add("max_grad_norm", "gradients are scaled down to this norm", type=float)
    add("global_batch_size", "samples of a step, over all processes", type=int)
    add("device_batch_size", "samples that one process computes at once", type=int)
    add("max_tokens", "longest sample; longer ones are left out and listed", type=int)
    add("max_tiles", "most tiles of an image, or of several together but for the planner's own questions", type=int)
    add("drop_path", "stochastic depth of the vision tower's last layer", type=float)
    add("gradient_checkpointing", "compute inner values again when needed", action=argparse.BooleanOptionalAction)
    add("length_grouping", "batches of samples of about one length", action=argparse.BooleanOptionalAction)
    add("precision", "bfloat16 is mixed: weights are kept in float32", choices=PRECISIONS)
    add("attention", "attention kernel", choices=ATTENTION_KERNELS)
    parser.add_argument(
        "--system-message",
        default=argparse.SUPPRESS,
        help="for records without a system turn (default: InternVL's own; empty: no system block)",
    )
    add("prompt_profile", "saved with the weights: name, path, or auto: the mixture's")
    add("layout", "of saved weights: transformers' own, or InternVLChat", choices=LAYOUTS)
    add("seed", "of order, augmentation, stochastic depth and adapters", type=int)
    add("workers", "processes per training process that load data", type=int)
    add("save_steps", "steps between checkpoints", type=int)
    add("keep_checkpoints", "older ones are deleted", type=int)
    add("log_steps", "steps between lines of the log", type=int)
    add("resume", "continue from the last whole checkpoint, if there is one", action="store_true")
    add("skip_broken", "train without broken lines and missing images", action="store_true")
    add("report_to", "where to report beside the log: none, tensorboard, wandb, ...")
    add("deepspeed", "DeepSpeed configuration (JSON)", type=Path)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says; errors of settings and data end with status 2."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    cpu = options.pop("cpu")
    shape = [options.pop(f"lora_{name}") for name in ("rank", "alpha", "dropout")]
    options["freeze"] = tuple(options["freeze"])
    try:
        settings = FinetuneSettings(lora=LoRA(*shape), **options)
    except ValueError as error:
        parser.error(str(error))
    # Here, not above: --help need not wait for torch.
    from navsim_recogdrive.pretraining.finetuning.run import UNUSABLE, finetune

    try:
        folder = finetune(settings, cpu=cpu)
    except UNUSABLE as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if rank == 0:
        print(f"wrote {folder}")


if __name__ == "__main__":
    main()
