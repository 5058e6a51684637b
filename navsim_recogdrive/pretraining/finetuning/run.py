"""One fine-tuning run from its settings: data checked, model built, trained, saved."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from navsim_recogdrive.pretraining.finetuning.conversations import ChatEncoder
from navsim_recogdrive.pretraining.finetuning.dataset import ConversationDataset
from navsim_recogdrive.pretraining.finetuning.images import TileBudget
from navsim_recogdrive.pretraining.finetuning.index import (
    InvalidData,
    Reader,
    Source,
    SourceIndex,
    index_source,
    tokenizer_digest,
)
from navsim_recogdrive.pretraining.finetuning.model import build_trained_model
from navsim_recogdrive.pretraining.finetuning.planner_prompts import check_prompts, choose_profile
from navsim_recogdrive.pretraining.finetuning.requirements import SETTINGS_FILE, check_output, check_requirements
from navsim_recogdrive.pretraining.finetuning.saving import CannotSave, CheckpointWriter, says_what_was_not_saved
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting
from navsim_recogdrive.pretraining.finetuning.trainer import (
    FinetuneTrainer,
    last_checkpoint,
    training_arguments,
)
from navsim_recogdrive.pretraining.registry import Entry, InvalidMixture, load_mixture
from navsim_recogdrive.vlm.adapters import PeftMissing
from navsim_recogdrive.vlm.architecture import CAMERA_SIZE, read_architecture
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, read_json
from navsim_recogdrive.vlm.conversation import ConversationWriter
from navsim_recogdrive.vlm.hub import checkpoint_directory
from navsim_recogdrive.vlm.internvl_config import InternVLArchitecture
from navsim_recogdrive.vlm.preparation import PAD_TOKEN
from navsim_recogdrive.vlm.prompts import PromptError, PromptProfile, added_token_id
from navsim_recogdrive.vlm.qwen_tokenizer import load_qwen2_tokenizer

logger = logging.getLogger(__name__)

INDEX_FOLDER = "data_index"
LEFT_OUT_FILE = "left_out.jsonl"

_SHOWN = 10


UNUSABLE = (
    InvalidSetting,
    InvalidData,
    InvalidMixture,
    VLMCheckpointError,
    PromptError,
    PeftMissing,
    FileNotFoundError,
    CannotSave,
)
"""What is wrong with settings, data or the disk, in contrast to what is wrong with the program."""


def finetune(settings: FinetuneSettings, *, cpu: bool = False) -> Path:
    """Train, and save the model in ``settings.output``.

    Args:
        settings: of the run.
        cpu: use no GPU.

    Returns:
        The folder with the model.

    Raises:
        InvalidSetting: for settings that cannot work, or others, or other data, than those of the run that is to be
            continued; or an output that holds the base model.
        InvalidData: for broken lines or missing images, listing them, unless ``skip_broken``; for trajectory questions
            in other words than the saved prompt profile's; or no usable sample.
        CannotSave: if the disk is full.
        Preempted: after SIGTERM or SIGUSR1, when a checkpoint is written; ends the process with status 75.
        ValueError: for an unusable checkpoint (``VLMCheckpointError``), prompt profile or mixture.
    """
    check_requirements(settings)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    settings.accumulation(processes)  # before anything that takes time
    entries = load_mixture(settings.mixture, settings.data_root)
    directory = checkpoint_directory(settings.model, settings.revision)
    check_output(settings.output, directory)
    architecture = read_architecture(directory)
    if not isinstance(architecture, InternVLArchitecture):
        raise InvalidSetting(f"{directory}: only InternVL is fine-tuned, this is {architecture.vlm_type}")
    if settings.max_tokens > architecture.max_positions:
        raise InvalidSetting(f"max_tokens={settings.max_tokens} is more than the model's {architecture.max_positions}")
    tokenizer = load_qwen2_tokenizer(directory)
    profile = choose_profile(settings.prompt_profile, entries, directory)
    profile.check_tokenizer(tokenizer, architecture.image_tokens)
    writer = ConversationWriter.of(profile, tokenizer)
    check_prompts(entries, writer)
    begun = _Begun.read(settings)
    begun.check({"settings": settings.binding(), "prompt_profile": profile.fingerprint})
    with says_what_was_not_saved(settings.output):
        dataset, data = prepare_data(settings, entries, architecture, tokenizer, writer)
        begun.check({"data": data})
        _note({"settings": settings.binding(), "prompt_profile": profile.fingerprint, "data": data}, settings.output)

    _say_what_runs(settings, architecture, profile, dataset, processes)
    image_token_id = added_token_id(tokenizer, architecture.image_tokens.context)
    model = build_trained_model(directory, architecture, image_token_id, settings)
    # After the model: with DeepSpeed's stage 3 they would have transformers build it in pieces, without its weights.
    arguments = training_arguments(settings, processes, cpu=cpu)
    checkpoints = CheckpointWriter(
        directory, architecture, image_token_id, profile, settings.layout, settings.max_tiles
    )
    trainer = FinetuneTrainer(model, arguments, dataset, settings, checkpoints, added_token_id(tokenizer, PAD_TOKEN))
    # Processes draw different stochastic depth; the Trainer seeds them alike.
    torch.manual_seed(settings.seed + arguments.process_index)
    trainer.train(resume_from_checkpoint=None if begun.checkpoint is None else str(begun.checkpoint))
    trainer.stop.end_if_stopped(settings.output, main=arguments.process_index == 0)
    trainer.save_model()
    trainer.save_state()
    return settings.output


def prepare_data(
    settings: FinetuneSettings,
    entries: Mapping[str, Entry],
    architecture: InternVLArchitecture,
    tokenizer: Any,
    writer: ConversationWriter,
) -> tuple[ConversationDataset, dict[str, Any]]:
    """Read the mixture through, report what is left out, and choose the samples.

    Args:
        settings: of the run.
        entries: of the mixture, with absolute paths.
        architecture: of the model.
        tokenizer: the checkpoint's.
        writer: writes the questions of the planner.

    Returns:
        The samples, and for each data set what a continued run must find again, as JSON has it.

    Raises:
        InvalidData: as :func:`finetune`.
        FileNotFoundError: if there is no annotation file.
    """
    sources = [Source.of(name, entry) for name, entry in entries.items()]
    main = int(os.environ.get("RANK", "0")) == 0
    writes = int(os.environ.get("LOCAL_RANK", "0")) == 0
    encoder = ChatEncoder(tokenizer, architecture.image_tokens, settings.system_message)
    identity = json.dumps(
        [
            *(architecture.canonical, settings.max_tiles, settings.system_message, tokenizer_digest(tokenizer)),
            *(writer.profile.fingerprint, writer.system),
        ]
    )
    reader = Reader(encoder, TileBudget(architecture, settings.max_tiles), writer, identity)
    folder = settings.output / INDEX_FOLDER
    indexes = [
        index_source(source, reader, folder, workers=max(1, settings.workers), writes=writes) for source in sources
    ]
    if not settings.skip_broken:
        _refuse_broken(sources, indexes)
    dataset = ConversationDataset(sources, indexes, reader, max_tokens=settings.max_tokens, seed=settings.seed)
    if main:
        _report_left_out(settings, sources, indexes, dataset)
    _refuse_too_long(settings, sources, indexes, dataset)
    if not len(dataset):
        raise InvalidData(f"{settings.mixture}: no usable sample is left; see {settings.output / LEFT_OUT_FILE}")
    return dataset, {
        source.name: {
            "sha256": index.digest,
            "usable_records": len(index.offsets),
            "repeat_time": source.repeat_time,
            "data_augment": source.data_augment,
        }
        for source, index in zip(sources, indexes, strict=True)
    }


@dataclass(frozen=True)
class _Begun:
    """The run that is to be continued.

    Attributes:
        checkpoint: to continue from, ``None`` for a new run.
        notes: what the run was begun with.
        output: its folder.
    """

    checkpoint: Path | None
    notes: Mapping[str, Any]
    output: Path

    @staticmethod
    def read(settings: FinetuneSettings) -> _Begun:
        checkpoint = last_checkpoint(settings.output)
        if checkpoint is None:
            return _Begun(None, {}, settings.output)
        if not settings.resume:
            raise InvalidSetting(
                f"{settings.output} holds a run ({checkpoint.name}): add --resume, or name another output"
            )
        return _Begun(checkpoint, read_json(settings.output / SETTINGS_FILE), settings.output)

    def check(self, now: Mapping[str, Mapping[str, Any] | str]) -> None:
        """Refuse to continue with anything else, by sections of the notes."""
        if self.checkpoint is None:
            return
        changed: list[str] = []
        for section, values in now.items():
            before = self.notes.get(section)
            if not isinstance(values, Mapping):
                values, before = {section: values}, {section: before}
            before = before if isinstance(before, Mapping) else {}
            for name in dict.fromkeys((*values, *before)):
                if values.get(name) != before.get(name):
                    changed.append(f"{name}={values.get(name)!r} (was {before.get(name)!r})")
        if changed:
            kind = "data" if "data" in now else "settings"
            raise InvalidSetting(
                f"{self.output} was begun with other {kind}: {', '.join(changed)}; name another output"
            )


def _note(begun: Mapping[str, Any], output: Path) -> None:
    """Keep what the run is begun with."""
    if int(os.environ.get("RANK", "0")) == 0:
        partial = output / f".{SETTINGS_FILE}"
        partial.write_text(json.dumps(begun, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(output / SETTINGS_FILE)


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


def _refuse_too_long(
    settings: FinetuneSettings, sources: Sequence[Source], indexes: Sequence[SourceIndex], dataset: ConversationDataset
) -> None:
    """A data set without one sample that fits is a mistake of the settings."""
    for source, index, long in zip(sources, indexes, dataset.too_long, strict=True):
        if long and len(long) == len(index.offsets):
            shortest = min(tokens for _, tokens in long)
            raise InvalidData(
                f"{source.name}: all {len(long)} records are longer than max_tokens={settings.max_tokens}, the "
                f"shortest has {shortest}: fewer tiles make them shorter (--max-tiles, now {settings.max_tiles}; the "
                "planner's questions about three cameras fit with 12), or raise --max-tokens"
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
    profile: PromptProfile,
    dataset: ConversationDataset,
    processes: int,
) -> None:
    logger.info(
        "%d samples per epoch, %d tokens on average, %d at most; steps of %d samples (%d x %d processes x %d)",
        *(len(dataset), dataset.lengths.mean(), dataset.lengths.max(), settings.global_batch_size),
        *(settings.device_batch_size, processes, settings.accumulation(processes)),
    )
    images = 1 if profile.camera_labels is None else len(profile.camera_labels)
    tiles = architecture.tile_shape(*CAMERA_SIZE, settings.max_tiles)[0]
    logger.info(
        "%d of them are questions of the planner: %d NAVSIM image(s), each cut into %d tiles, thumbnail included; plan "
        "with agent.cam_type=%s agent.vlm.max_tiles=%d",
        *(dataset.planner, images, tiles, "single" if images == 1 else "multi", settings.max_tiles),
    )
