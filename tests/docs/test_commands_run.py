"""The blocks that the pages mark ``run: world``, run as they are written."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, REPOSITORY, Block, shell_blocks

pytestmark = pytest.mark.navsim

WALKTHROUGH = REPOSITORY / "docs" / "walkthrough.md"
RUN = [block for block in shell_blocks() if block.mark == "run"]
OTHERS = sorted({block.page for block in RUN if block.page != WALKTHROUGH}, key=PAGES.index)

# What a machine may have set that decides for the scripts.
DECIDING = ("SLURM_", "MASTER_", "NNODES", "NODE_RANK", "CUDA_", "SPLIT", "AGENT", "CHECKPOINT", "CACHE_", "EXPERIMENT")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Desk:
    """A folder like a checkout, and the variables that a reader has set so far."""

    def __init__(self, folder: Path) -> None:
        import navsim

        self.folder = folder
        for name in ("scripts", "benchmarks", "docs", "navsim_recogdrive", "hydra_plugins", "setup.py"):
            (folder / name).symlink_to(REPOSITORY / name)
        python = Path(sys.executable)
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} "$@"\n')
        (folder / "bin" / "python").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DECIDING)}
        self.variables = {
            **kept,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", sys.prefix),  # scripts then make no environment
            "PYTHONPATH": os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), str(REPOSITORY)) if path),
            "NAVSIM_DEVKIT_ROOT": str(Path(navsim.__file__).parents[1]),
            "MASTER_PORT": str(free_port()),  # other tests may train at the same time
        }

    def run(self, blocks: list[Block]) -> str:
        """Run the blocks of a page one after the other in one shell; what they export stays for the next page."""
        after = self.folder / "variables"
        program = ["set -euo pipefail"]
        for block in blocks:
            program.append(f"echo {shlex.quote(f'@@ {block.where}')}")
            program += [f"export {setting}" for setting in block.note.split()[1:]]
            program.append(block.text)
        program.append(f"env -0 >{shlex.quote(str(after))}")
        done = subprocess.run(
            ["bash", "-c", "\n".join(program)],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            where = [line for line in done.stdout.splitlines() if line.startswith("@@")][-1]
            pytest.fail(f"status {done.returncode} in {where[3:]}:\n{done.stdout[-5000:]}")
        self.variables = dict(entry.split("=", 1) for entry in after.read_text().split("\0") if entry)
        return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, str]:
    """Someone who has done the walkthrough, and what it printed."""
    desk = Desk(tmp_path_factory.mktemp("checkout"))
    output = desk.run([block for block in RUN if block.page == WALKTHROUGH])
    return desk, output


def test_walkthrough(walked: tuple[Desk, str]) -> None:
    desk, output = walked
    results = desk.folder / "outputs" / "try" / "exp"
    assert "recogdrive_tiny on test" in output, "no table of scores"
    assert "valid: 0 errors" in output, "no check of the submission"
    for experiment in ("training_recogdrive_tiny", "training_recogdrive_tiny_rl"):
        assert list(results.glob(f"{experiment}/**/last.ckpt")), experiment
    assert list(results.glob("submission_*/**/submission.pkl"))


@pytest.mark.parametrize("page", OTHERS, ids=[page.name for page in OTHERS])
def test_page(page: Path, walked: tuple[Desk, str]) -> None:
    desk, _ = walked
    before = dict(desk.variables)
    try:
        assert desk.run([block for block in RUN if block.page == page])
    finally:
        desk.variables = before
