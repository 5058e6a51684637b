"""Writes what the evaluation report can group scenes by: the log, driving command and speed of every frame of a split.

    python -m navsim_recogdrive.agents.scene_facts LOG_FOLDER scenes.csv

LOG_FOLDER is one of NAVSIM's: ``OPENSCENE_DATA_ROOT/navsim_logs/test``. Its pickles are read as NAVSIM reads them, so
they must be ones that you trust.
"""

from __future__ import annotations

import argparse
import csv
import math
import pickle
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navsim_recogdrive.observation import DRIVING_COMMANDS
from navsim_recogdrive.report.scene_facts import COLUMNS


def facts_of_log(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Token, log name, driving command and speed (m/s) of every frame of a log pickle.

    Raises:
        ValueError: if the file is no log, naming it.
    """
    try:
        with path.open("rb") as file:
            frames = pickle.load(file)
        for frame in frames:
            speed = math.hypot(*frame["ego_dynamic_state"][:2])
            yield frame["token"], frame["log_name"], _command(frame["driving_command"]), f"{speed:.3f}"
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no log of NAVSIM ({type(error).__name__}: {error})") from error


def _command(one_hot: Any) -> str:
    values = np.asarray(one_hot)
    return DRIVING_COMMANDS[int(values.argmax())] if values.any() else DRIVING_COMMANDS[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m navsim_recogdrive.agents.scene_facts",
        description="Write log, driving command and speed of all frames of NAVSIM's logs, for the evaluation report.",
    )
    parser.add_argument("logs", type=Path, metavar="LOG_FOLDER", help="OPENSCENE_DATA_ROOT/navsim_logs/SPLIT")
    parser.add_argument("output", type=Path, metavar="scenes.csv")
    options = parser.parse_args(arguments)
    paths = sorted(options.logs.glob("*.pkl"))
    try:
        if not paths:
            raise ValueError(f"{options.logs} holds no log (*.pkl); expected OPENSCENE_DATA_ROOT/navsim_logs/SPLIT")
        rows = [facts for path in paths for facts in facts_of_log(path)]
        with options.output.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {len(rows)} frames of {len(paths)} logs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
