"""Training through NAVSIM's runner under ``training_probe.py``, and what its ranks noted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from runners import Runners

PROBE = str(Path(__file__).parent / "training_probe.py")


class Observed:
    """Runs ``run_training.py`` in ``ranks`` processes; ``NAME`` of the notes is that of the experiment.

    Args:
        runners: NAVSIM's scripts.
        ranks: 1, or more through torchrun.
        arguments: of every run.
    """

    def __init__(self, runners: Runners, ranks: int, arguments: list[str]) -> None:
        self._runners = runners
        self._ranks = ranks
        self._arguments = arguments
        self.output = ""

    def train(self, name: str, *overrides: str, signal: str | None = None) -> list[list[dict[str, Any]]]:
        """The lines that each rank noted in this run.

        Args:
            name: of the experiment.
            overrides: of this run alone.
            signal: ``RANK:BATCH:SIGNAL``, which ends the run.
        """
        notes = self._runners.experiments / f"{name}.notes"
        notes.parent.mkdir(parents=True, exist_ok=True)
        files = [Path(f"{notes}.{rank}") for rank in range(self._ranks)]
        for file in files:
            file.unlink(missing_ok=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self._ranks}"]
        prefix = (sys.executable, *(launcher if self._ranks > 1 else []), PROBE, str(notes))
        self._runners.environment["PROBE_SIGNAL"] = signal or ""
        self.output = self._runners.run(
            "run_training.py",
            *self._arguments,
            f"experiment_name={name}",
            *overrides,
            prefix=prefix,
            expect_failure=signal is not None,
        )
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def batches(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The training batches, with the tokens and the loss of each."""
    return [line for line in notes if "loss" in line]


def final(notes: list[dict[str, Any]]) -> dict[str, Any]:
    """How the run ended: its weights, or its exit status and step."""
    assert "loss" not in notes[-1], "the run was killed"
    return notes[-1]
