"""One fine-tuning run from its settings: data checked, model built, trained, saved."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.pretraining.finetuning.conversations import ChatEncoder
from navsim_recogdrive.pretraining.finetuning.dataset import ConversationDataset
from navsim_recogdrive.pretraining.finetuning.images import TileBudget
from navsim_recogdrive.pretraining.finetuning.index import (
    Reader,
    Source,
    SourceIndex,
    index_source,
    tokenizer_digest,
)
from navsim_recogdrive.pretraining.finetuning.model import build_trained_model
from navsim_recogdrive.pretraining.finetuning.saving import CheckpointWriter
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting
from navsim_recogdrive.pretraining.finetuning.trainer import (
    FinetuneTrainer,
    last_checkpoint,
    training_arguments,
)
from navsim_recogdrive.pretraining.registry import InvalidMixture, load_mixture
from navsim_recogdrive.vlm.adapters import PeftMissing
from navsim_recogdrive.vlm.architecture import CAMERA_SIZE, read_architecture
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.preparation import PAD_TOKEN
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, added_token_id, load_profile
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

logger = logging.getLogger(__name__)

SETTINGS_FILE = "finetuning.json"
INDEX_FOLDER = "data_index"
LEFT_OUT_FILE = "left_out.jsonl"

_SHOWN = 10


class InvalidData(ValueError):
    """Data that cannot be trained on; lists lines and reasons."""


UNUSABLE = (
    InvalidSetting,
    InvalidData,
    InvalidMixture,
    VLMCheckpointError,
    PromptError,
    PeftMissing,
    FileNotFoundError,
)
"""What is wrong with settings or data, in contrast to what is wrong with the program."""


def finetune(settings: FinetuneSettings, *, cpu: bool = False) -> Path:
    """Train, and save the model in ``settings.output``.

    Args:
        settings: of the run.
        cpu: use no GPU.

    Returns:
        The folder with the model.

    Raises:
        InvalidSetting: for settings that cannot work, or others than those of the run that is to be continued.
        InvalidData: for broken lines or missing images, listing them, unless ``skip_broken``; or no usable sample.
        ValueError: for an unusable checkpoint (``VLMCheckpointError``), prompt profile or mixture.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise InvalidSetting("fine-tuning needs accelerate: pip install 'navsim-recogdrive[pretraining]'")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings.accumulation(processes)  # before anything that takes time
    directory = checkpoint_directory(settings.model, settings.revision)
    architecture = read_architecture(directory)
    if not isinstance(architecture, InternVLArchitecture):
        raise InvalidSetting(f"{directory}: only InternVL is fine-tuned, this is {architecture.vlm_type}")
    if settings.max_tokens > architecture.max_positions:
        raise InvalidSetting(f"max_tokens={settings.max_tokens} is more than the model's {architecture.max_positions}")
    tokenizer = load_qwen2_tokenizer(directory)
    profile = _profile(settings, directory)
    profile.check_tokenizer(tokenizer, architecture.image_tokens)
    checkpoint = _continued(settings)
    dataset = prepare_data(settings, architecture, tokenizer)

    _say_what_runs(settings, architecture, dataset, processes)
    image_token_id = added_token_id(tokenizer, architecture.image_tokens.context)
    model = build_trained_model(directory, architecture, image_token_id, settings)
    # After the model: with DeepSpeed's stage 3 they would have transformers build it in pieces, without its weights.
    arguments = training_arguments(settings, processes, cpu=cpu)
    writer = CheckpointWriter(directory, architecture, image_token_id, profile, settings.layout)
    trainer = FinetuneTrainer(model, arguments, dataset, settings, writer, added_token_id(tokenizer, PAD_TOKEN))
    # Processes draw different stochastic depth; the Trainer seeds them alike.
    torch.manual_seed(settings.seed + arguments.process_index)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    trainer.save_state()
    return settings.output


def prepare_data(settings: FinetuneSettings, architecture: InternVLArchitecture, tokenizer: Any) -> ConversationDataset:
    """Read the mixture through, report what is left out, and choose the samples; raises as :func:`finetune`."""
    entries = load_mixture(settings.mixture, settings.data_root)
    sources = [Source.of(name, entry) for name, entry in entries.items()]
    main = int(os.environ.get("RANK", "0")) == 0
    writes = int(os.environ.get("LOCAL_RANK", "0")) == 0
    encoder = ChatEncoder(tokenizer, architecture.image_tokens, settings.system_message)
    identity = json.dumps(
        [architecture.canonical, settings.max_tiles, settings.system_message, tokenizer_digest(tokenizer)]
    )
    reader = Reader(encoder, TileBudget(architecture, settings.max_tiles), identity)
    folder = settings.output / INDEX_FOLDER
    indexes = [
        index_source(source, reader, folder, workers=max(1, settings.workers), writes=writes) for source in sources
    ]
    if not settings.skip_broken:
        _refuse_broken(sources, indexes)
    dataset = ConversationDataset(sources, indexes, reader, max_tokens=settings.max_tokens, seed=settings.seed)
    if main:
        _report_left_out(settings, sources, indexes, dataset)
    if not len(dataset):
        raise InvalidData(f"{settings.mixture}: no usable sample is left; see {settings.output / LEFT_OUT_FILE}")
    return dataset


def _profile(settings: FinetuneSettings, directory: Path) -> PromptProfile:
    if settings.prompt_profile != "auto":
        return PromptProfile.load(settings.prompt_profile)
    return load_profile("auto", ("front",), directory)


def _continued(settings: FinetuneSettings) -> Path | None:
    """The checkpoint to continue from; makes the output folder and notes the settings in it."""
    checkpoint = last_checkpoint(settings.output)
    path = settings.output / SETTINGS_FILE
    if checkpoint is not None and not settings.resume:
        raise InvalidSetting(f"{settings.output} holds a run ({checkpoint.name}): add --resume, or name another output")
    if checkpoint is not None and path.is_file():
        before, now = json.loads(path.read_text(encoding="utf-8")), settings.binding()
        if changed := [name for name in now if now[name] != before.get(name)]:
            listed = ", ".join(f"{name}={now[name]!r} (was {before.get(name)!r})" for name in changed)
            raise InvalidSetting(f"{settings.output} was begun with other settings: {listed}")
    if int(os.environ.get("RANK", "0")) == 0:
        settings.output.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(settings.binding(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    return checkpoint


def _refuse_broken(sources: Sequence[Source], indexes: Sequence[SourceIndex]) -> None:
    listed = [
        f"{source.annotation} line {fault.line}: {fault.reason}"
        for source, index in zip(sources, indexes, strict=True)
        for fault in index.faults
    ]
    if listed:
        rest = f"\n  and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
        raise InvalidData(
            f"{len(listed)} record(s) cannot be trained on:\n  "
            + "\n  ".join(listed[:_SHOWN])
            + rest
            + "\nmend them, or train without them: --skip-broken"
        )


def _report_left_out(
    settings: FinetuneSettings, sources: Sequence[Source], indexes: Sequence[SourceIndex], dataset: ConversationDataset
) -> None:
    """Count per data set what is used and what is not, and list the latter in a file."""
    path = settings.output / LEFT_OUT_FILE
    with path.open("w", encoding="utf-8") as stream:
        for source, index, long in zip(sources, indexes, dataset.too_long, strict=True):
            reasons = [(fault.line, fault.reason) for fault in index.faults]
            reasons += [(line, f"{tokens} tokens, at most {settings.max_tokens} fit") for line, tokens in long]
            for line, reason in sorted(reasons):
                entry = {"dataset": source.name, "line": line, "reason": reason}
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
            records = len(index.offsets) + len(index.faults)
            logger.info(
                "%s: %d records, %d broken, %d longer than %d tokens, gone through %g times per epoch",
                *(source.name, records, len(index.faults), len(long), settings.max_tokens, source.repeat_time),
            )
            if long:
                shown = ", ".join(f"line {line} ({tokens})" for line, tokens in long[:_SHOWN])
                logger.warning("%s: left out as too long: %s%s", source.name, shown, "..." * (len(long) > _SHOWN))
            if source.length not in (None, records):
                logger.warning("%s: the mixture announces %s records, found %d", source.name, source.length, records)


def _say_what_runs(
    settings: FinetuneSettings,
    architecture: InternVLArchitecture,
    dataset: ConversationDataset,
    processes: int,
) -> None:
    tiles = architecture.tile_shape(*CAMERA_SIZE, settings.max_tiles)[0]
    logger.info(
        "%d samples per epoch, %d tokens on average, %d at most; steps of %d samples (%d x %d processes x %d)",
        *(len(dataset), dataset.lengths.mean(), dataset.lengths.max(), settings.global_batch_size),
        *(settings.device_batch_size, processes, settings.accumulation(processes)),
    )
    logger.info("a NAVSIM image is cut into %d tiles: plan with agent.vlm.max_tiles=%d", tiles, settings.max_tiles)
