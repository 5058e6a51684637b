"""The Hugging Face Trainer with this package's order of samples, checkpoints and log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from navsim_recogdrive.policy.loader_workers import let_signals_pass
from navsim_recogdrive.pretraining.finetuning.dataset import Collator, ConversationDataset, Skipped
from navsim_recogdrive.pretraining.finetuning.model import TrainedInternVL, adapter_weights, merged_weights
from navsim_recogdrive.pretraining.finetuning.sampling import LengthGroupedBatches
from navsim_recogdrive.pretraining.finetuning.saving import CheckpointWriter, says_what_was_not_saved
from navsim_recogdrive.pretraining.finetuning.settings import FinetuneSettings, InvalidSetting
from navsim_recogdrive.pretraining.finetuning.stopping import StopAtSignal
from navsim_recogdrive.vlm.checkpoint_files import VLMCheckpointError, stored_tensors
from navsim_recogdrive.vlm.internvl import native_names

logger = logging.getLogger(__name__)

ADAPTERS_FILE = "adapters.safetensors"
TRAINER_STATE = "trainer_state.json"
SKIPPED_FILE = "skipped_{rank}.jsonl"

MOST_SKIPPED_IN_A_ROW = 100
"""So many unusable samples one after the other are no bad samples but a folder that is gone."""


def training_arguments(settings: FinetuneSettings, processes: int, *, cpu: bool) -> TrainingArguments:
    """The Trainer's own settings."""
    return TrainingArguments(
        output_dir=str(settings.output),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.device_batch_size,
        gradient_accumulation_steps=settings.accumulation(processes),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        seed=settings.seed,
        logging_steps=settings.log_steps,
        logging_first_step=True,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        dataloader_num_workers=settings.workers,
        remove_unused_columns=False,
        report_to=settings.report_to,
        deepspeed=None if settings.deepspeed is None else str(settings.deepspeed),
        ddp_find_unused_parameters=False,
        use_cpu=cpu,
    )


class FinetuneTrainer(Trainer):
    """Trains on conversations.

    Every checkpoint is a whole VLM that an agent can load, and what is needed to continue exactly: float32 weights, or
    the adapters beside the merged model, and the state of optimiser, schedule and random numbers.

    Args:
        model: from :func:`~navsim_recogdrive.pretraining.finetuning.model.build_trained_model`.
        args: from :func:`training_arguments`.
        dataset: the samples.
        settings: of the run.
        writer: of checkpoints.
        pad_token_id: fills up shorter samples.

    Attributes:
        stop: ends training when a signal announces the end of the job.
    """

    def __init__(
        self,
        model: TrainedInternVL,
        args: TrainingArguments,
        dataset: ConversationDataset,
        settings: FinetuneSettings,
        writer: CheckpointWriter,
        pad_token_id: int,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._batches = LengthGroupedBatches(
            dataset.lengths,
            settings.device_batch_size,
            accumulation=args.gradient_accumulation_steps,
            rank=args.process_index,
            world=args.world_size,
            seed=settings.seed,
            grouped=settings.length_grouping,
        )
        self._tokens = self._skipped = self._skipped_in_a_row = 0
        self._logged_at = time.perf_counter()
        super().__init__(model, args, data_collator=Collator(pad_token_id), train_dataset=dataset)
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise InvalidSetting(
                "of FSDP only version 2 is supported: set fsdp_version: 2 in accelerate's configuration"
            )
        self.add_callback(_Epochs(self._batches, args.gradient_accumulation_steps))

        self.stop = StopAtSignal()
        self.add_callback(self.stop)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; nothing else divides them among processes."""
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=torch.cuda.is_available() and not self.args.use_cpu,
        )
        let_signals_pass(loader, self.args.process_index)
        return loader

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss; counts tokens and samples that could not be used."""
        inputs = dict(inputs)
        skipped = inputs.pop("skipped")
        self._tokens += inputs.pop("tokens")
        self._note(skipped, samples=len(inputs["input_ids"]), any_usable=bool((inputs["labels"] >= 0).any()))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _note(self, skipped: list[Skipped], samples: int, any_usable: bool) -> None:
        self._skipped_in_a_row = len(skipped) + (0 if any_usable else self._skipped_in_a_row)
        if not skipped:
            return
        self._skipped += len(skipped)
        path = Path(str(self.args.output_dir)) / SKIPPED_FILE.format(rank=self.args.process_index)
        with path.open("a", encoding="utf-8") as stream:
            for sample in skipped:
                logger.warning("skipped: %s: %s", sample.name, sample.reason)
                stream.write(json.dumps(vars(sample), ensure_ascii=False) + "\n")
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{self._skipped_in_a_row} samples in a row could not be read, the last was {skipped[-1].name}: "
                f"{skipped[-1].reason}; make the data reachable again and continue with --resume"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds tokens per second and skipped samples, over all processes."""
        if "loss" in logs:
            now = time.perf_counter()
            counts = torch.tensor([self._tokens, self._skipped], dtype=torch.float64, device=self.args.device)
            tokens, skipped = self.accelerator.reduce(counts, "sum").tolist()
            logs["tokens_per_s"] = round(tokens / (now - self._logged_at), 1)
            if skipped:
                logs["skipped"] = int(skipped)
            self._tokens, self._logged_at = 0, now
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A whole checkpoint and what continuing needs; CannotSave if the disk is full."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with says_what_was_not_saved(folder):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A whole checkpoint, from the process that saves."""
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        state = _gathered(model.state_dict() if state_dict is None else state_dict, self.args.should_save)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        final = folder == Path(str(self.args.output_dir))
        if self._settings.training == "lora":
            folder.mkdir(parents=True, exist_ok=True)
            adapters = {name: weight.detach().cpu().contiguous() for name, weight in adapter_weights(state).items()}
            save_file(adapters, folder / ADAPTERS_FILE)
            state = merged_weights(state, self._settings.lora)
        bf16 = self._settings.precision == "bfloat16" and (final or self._settings.training == "lora")
        self._writer.write(folder, state, torch.bfloat16 if bf16 else torch.float32)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights of a checkpoint that :meth:`_save` wrote."""
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        folder = Path(resume_from_checkpoint)
        if self._settings.training == "lora":
            adapters, parameters = load_file(folder / ADAPTERS_FILE), adapter_weights(target.state_dict())
            if {n: w.shape for n, w in adapters.items()} != {n: w.shape for n, w in parameters.items()}:
                raise VLMCheckpointError(f"{folder / ADAPTERS_FILE} holds adapters of another shape or model")
            with torch.no_grad():
                for name, weight in adapters.items():
                    _fill(parameters[name], weight)
        else:
            load_weights(target, folder)


def _gathered(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """A state dict with whole tensors; all processes take part in gathering those that are still divided."""
    whole: dict[str, Tensor] = {}
    for name, weight in state.items():
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        if keep:
            whole[name] = weight
    return whole


class _Epochs(TrainerCallback):
    """Tells the order of samples which epoch begins; the Trainer's own way does not reach a resumed loader."""

    def __init__(self, batches: LengthGroupedBatches, accumulation: int) -> None:
        self._batches = batches
        self._steps = -(-len(batches) // accumulation)

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._batches.set_epoch(state.global_step // self._steps)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint of either layout into a built model, file by file.

    Raises:
        VLMCheckpointError: for weights that do not fit.
    """
    tensors = stored_tensors(folder)
    destinations: dict[str, Tensor] = model.state_dict()
    sources = {name: native_names(name, with_head=True) for name in tensors}
    filled = {native for names in sources.values() for native in names}
    missing = sorted(destinations.keys() - filled - {"lm_head.weight"})
    if missing or not filled <= destinations.keys():
        raise VLMCheckpointError(
            f"{folder} is no checkpoint of this model: missing {missing[:8]}, unexpected "
            f"{sorted(filled - destinations.keys())[:8]}"
        )
    with torch.no_grad():
        for file in dict.fromkeys(tensor.file for tensor in tensors.values()):
            with safe_open(file, framework="pt", device="cpu") as stream:
                for name in stream.keys():  # noqa: SIM118 - no mapping
                    parts = stream.get_tensor(name).chunk(len(sources[name]))
                    for native, part in zip(sources[name], parts, strict=True):
                        _fill(destinations[native], part)


def _fill(destination: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter, or this process's part of it into one that is divided (FSDP2)."""
    if isinstance(destination, DTensor):
        whole = whole.to(destination.device, destination.dtype)
        # Every process has read the file: nothing needs to be sent.
        whole = distribute_tensor(whole, destination.device_mesh, destination.placements, src_data_rank=None)
    destination.copy_(whole)


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run; one that was being written when the run stopped is passed over."""
    found = sorted(
        (path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )
    for path in reversed(found):
        if (path / TRAINER_STATE).is_file():  # written last
            return path
        logger.warning("%s is not whole (no %s): passed over", path, TRAINER_STATE)
    return None
