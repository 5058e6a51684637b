"""Runs of the labelling command for tests: its arguments, its files, and a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from label_server import ChatServer

REPOSITORY = Path(__file__).parents[2]
KEY = "sk-a-very-secret-key"
FAMILIES = 9


def run_arguments(folder: Path, server: str, *more: str) -> list[str]:
    """Arguments of ``run`` on the scenes in a folder."""
    arguments = [
        "run",
        str(folder / "records.jsonl"),
        "--data-root",
        str(folder),
        "--output",
        str(folder / "out.jsonl"),
    ]
    return [*arguments, "--base-url", server, "--model", "tiny", "--patience", "2", "--timeout", "5", *more]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The log of answers."""
    return read_lines(folder / "out.jsonl.answers.jsonl")


def start_run(folder: Path, server: ChatServer, *more: str) -> subprocess.Popen[str]:
    """``run`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "navsim_recogdrive.pretraining.labelling", *run_arguments(folder, server.url, *more)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for up to a minute."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come to pass within a minute")


def distinct(server: ChatServer) -> int:
    """How many different requests came."""
    return len({json.dumps(body, sort_keys=True) for body in server.asked})
