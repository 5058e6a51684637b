"""Python programs started from a process that has imported the large libraries before: half of a short run is imports.

A program runs in a process of its own, forked for it, as ``__main__`` and with the environment, folder and standard
streams given. Only what does not depend on the environment is imported beforehand; NAVSIM and nuPlan do.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_LIBRARIES = ("torch", "pytorch_lightning", "transformers", "scipy.signal", "pandas", "geopandas", "cv2", "hydra")


class PreloadedPython:
    """Starts the process with the libraries when the first program is run; it ends with this one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, words: Sequence[str], cwd: Path, environment: dict[str, str]) -> tuple[int, str]:
        """Status and output (both streams) of ``python WORDS``; the first word is a file."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
            )
            atexit.register(self._server.terminate)
        with tempfile.NamedTemporaryFile("r") as output:
            job = {"words": list(words), "cwd": str(cwd), "environment": environment, "output": output.name}
            _pipe(self._server.stdin).write(json.dumps(job) + "\n")
            _pipe(self._server.stdin).flush()
            answer = _pipe(self._server.stdout).readline()
            assert answer, f"the process with the libraries has ended with {self._server.wait()}"
            return int(answer), output.read()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _serve() -> dict[str, Any] | None:
    """The job of a forked process; ``None`` in the process that forks, at its end."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        program = os.fork()
        if program == 0:
            job: dict[str, Any] = json.loads(line)
            return job
        _, status = os.waitpid(program, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _become(job: dict[str, Any]) -> None:
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(job["output"], os.O_WRONLY | os.O_APPEND)
    for descriptor, stream in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__" and (found := _serve()) is not None:
    _become(found)
    runpy.run_path(sys.argv[0], run_name="__main__")
