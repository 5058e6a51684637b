"""Checkpoint files that are whole whenever the writer is killed, and that are read as data only."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchCheckpointIO

PARTIAL = ".partial"
"""End of the name of a file that is being written; what a killed run leaves is removed by the next."""

ABANDONED_S = 24 * 3600
"""Age of a partial file of another machine from which on its writer is taken for dead."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's writer, but under another name beside the file that is replaced at the end, and synced to disk.

    Lightning's own writes to the folder for temporary files and moves from there, which is a copy where that is another
    file system: killed in the middle, it leaves half a file under the checkpoint's name. Reading takes tensors and
    plain values only, whatever is asked for. The other name is that of the process, so that two runs in one folder do
    not write into each other's file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, or leave what was there."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read with ``torch.load(weights_only=True)``."""
        checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes have left of ``path``."""
    start = f".{path.name}."
    for partial in path.parent.iterdir():
        if not (partial.name.startswith(start) and partial.name.endswith(PARTIAL)):
            continue
        host, _, process = partial.name[len(start) : -len(PARTIAL)].rpartition(".")
        if _is_dead(partial, process) if host == socket.gethostname() else _is_old(partial):
            partial.unlink(missing_ok=True)


def _is_dead(partial: Path, process: str) -> bool:
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # of another user
    return False


def _is_old(partial: Path) -> bool:
    try:
        return time.time() - partial.stat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False


class AtomicCheckpoints(pl.Callback):
    """Gives the run an :class:`AtomicCheckpointIO`, unless its strategy or its user has another than the common one."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the first file is read or written."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
