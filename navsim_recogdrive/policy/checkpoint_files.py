"""Checkpoint files that are whole whenever the writer is killed, and that are read as data only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchCheckpointIO

PARTIAL = ".partial"
"""End of the name of a file that is being written; what a killed run leaves is overwritten by the next."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's writer, but under another name beside the file that is replaced at the end, and synced to disk.

    Lightning's own writes to the folder for temporary files and moves from there, which is a copy where that is another
    file system: killed in the middle, it leaves half a file under the checkpoint's name. Reading takes tensors and
    plain values only, whatever is asked for.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, or leave what was there."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}{PARTIAL}")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read with ``torch.load(weights_only=True)``."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


class AtomicCheckpoints(pl.Callback):
    """Gives the run an :class:`AtomicCheckpointIO`, unless its strategy or its user has another than the common one."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the first file is read or written."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
