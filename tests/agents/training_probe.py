"""NAVSIM's unmodified ``run_training.py`` under observation: ``training_probe.py NOTES SCRIPT OVERRIDES...``.

Every rank writes a line per training batch into ``NOTES.RANK`` (tokens and loss, to the last bit) and at the end one
with a digest of its weights. ``PROBE_SIGNAL=RANK:BATCH:SIGNAL`` sends that rank a signal inside its step, after
so many batches of this process.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from navsim_recogdrive.agents.recogdrive_agent import ReCogDriveAgent


def main(notes: str, script: str) -> None:
    rank = int(os.environ.get("RANK", 0))
    lines = Path(f"{notes}.{rank}").open("a", buffering=1)  # noqa: SIM115 - for as long as the process lives
    batches = 0
    compute_loss, fit = ReCogDriveAgent.compute_loss, pl.Trainer.fit

    def noting(agent: ReCogDriveAgent, features: Any, targets: Any, predictions: Any) -> Any:
        nonlocal batches
        loss = compute_loss(agent, features, targets, predictions)
        if agent.training:
            batches += 1
            lines.write(json.dumps({"tokens": targets["token"], "loss": float(loss).hex()}) + "\n")
            asked = os.environ.get("PROBE_SIGNAL", "").split(":")
            if asked[:2] == [str(rank), str(batches)]:
                os.kill(os.getpid(), signal.Signals[asked[2]])
        return loss

    def fitting(trainer: pl.Trainer, model: Any, **arguments: Any) -> None:
        try:
            fit(trainer, model, **arguments)
        except SystemExit as end:
            lines.write(json.dumps({"exit": end.code, "step": trainer.global_step}) + "\n")
            raise
        digest = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        lines.write(json.dumps({"weights": digest.hexdigest()}) + "\n")

    ReCogDriveAgent.compute_loss = noting
    pl.Trainer.fit = fitting
    sys.argv = [script, *sys.argv[3:]]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:3])
