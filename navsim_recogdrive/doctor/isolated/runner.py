"""Runs steps in a process of their own; one that crashes or hangs is told apart, and the others still run."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

_LAST_LINES = 3


@dataclass(frozen=True)
class StepResult:
    """How a step ended.

    Attributes:
        value: what it returned; ``None`` if it did not get that far.
        error: why it did not, as ``TypeOfError: message``; empty if it did.
    """

    value: Any = None
    error: str = ""


def run_steps(
    steps: Sequence[str],
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    search_path: Sequence[str],
    time_limit_s: float,
) -> dict[str, StepResult]:
    """Results of ``steps`` by name.

    Args:
        steps: in order; a later one sees what the earlier ones returned.
        parameters: plain values that all steps see.
        environment: of the process.
        search_path: its ``sys.path`` begins with these.
        time_limit_s: for each step.
    """
    results: dict[str, StepResult] = {}
    while len(results) < len(steps):
        before = len(results)
        remaining = [step for step in steps if step not in results]
        _run_process(remaining, parameters, environment, search_path, time_limit_s, results)
        if len(results) == before:  # it did not even begin the first step
            results[remaining[0]] = StepResult(error="the process for this step did not start")
    return results


def _run_process(
    steps: Sequence[str],
    parameters: Mapping[str, Any],
    environment: Mapping[str, str],
    search_path: Sequence[str],
    time_limit_s: float,
    results: dict[str, StepResult],
) -> None:
    """Run ``steps`` until they are done or one ends the process, which then gets the blame."""
    known = {name: result.value for name, result in results.items() if not result.error}
    task = json.dumps({"steps": list(steps), "parameters": dict(parameters), "results": known})
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "navsim_recogdrive.doctor.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environment, "PYTHONPATH": os.pathsep.join(path for path in search_path if path)},
            start_new_session=True,  # so that what it started ends with it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True).start()
        current, failure = None, ""
        try:
            process.stdin.write(task)
            process.stdin.close()
            while (line := lines.get(timeout=time_limit_s)) is not None:
                message = json.loads(line)
                if "begin" in message:
                    current = message["begin"]
                else:
                    results[message["end"]] = StepResult(message["value"], message["error"])
                    current = None
        except queue.Empty:
            failure = f"TimeoutError: no answer after {time_limit_s:g} s"
        except (OSError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            status = _end(process)
        if current is not None:
            results[current] = StepResult(error=failure or _how_it_ended(status, errors))


def _forward(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> int:
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _how_it_ended(status: int, errors: IO[bytes]) -> str:
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    how = f"by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"with status {status}"
    return f"the process ended {how}" + (": " + " | ".join(last) if last else "")
