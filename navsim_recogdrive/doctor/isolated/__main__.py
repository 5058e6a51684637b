"""The other process: reads steps as JSON from standard input, runs them, writes a line before and after each."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

_HOMES = {
    "import": "imports",
    "hydra": "registration",
    "navsim": "devkit",
    "settings": "settings",
    "vlm": "vlm",
    "checkpoint": "planner_checkpoint",
    "cache": "feature_cache",
    "metric_cache": "metric_cache",
}
"""Module of this package with the function ``run`` of a step; ``import NAME`` is the step ``import`` with ``NAME``."""


def main() -> None:
    """Run what standard input asks for."""
    task = json.load(sys.stdin)
    results: dict[str, Any] = task["results"]
    # Packages print what they like: their standard output becomes standard error, the real one is for the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for step in task["steps"]:
        print(json.dumps({"begin": step}), file=answers)
        kind, _, argument = step.partition(" ")
        value, error = None, ""
        try:
            module = importlib.import_module(f"navsim_recogdrive.doctor.isolated.{_HOMES[kind]}")
            value = module.run(task["parameters"], results, argument)
            results[step] = value
        except (Exception, SystemExit) as caught:  # whatever a broken package raises is what is to be told
            error = f"{type(caught).__name__}: {caught}"
        print(json.dumps({"end": step, "value": value, "error": error}, default=str), file=answers)
    answers.flush()
    os._exit(0)  # half-imported packages may hang or crash at a regular exit


if __name__ == "__main__":
    main()
