"""What the agent says where NAVSIM is absent, or where PyPI's unrelated ``navsim`` sits in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def _import_agent(prologue: str) -> str:
    path = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})"
    code = f"{path}\n{prologue}\nimport navsim_recogdrive.agents.recogdrive_agent"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr


def test_absent() -> None:
    message = _import_agent("sys.modules['navsim'] = None")
    assert "NavsimNotUsable: NAVSIM is not installed in this environment" in message
    assert "requirements/devkits.txt" in message


def test_another_project_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "navsim").mkdir()
    (tmp_path / "navsim" / "__init__.py").write_text("")
    message = _import_agent(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert "is not the autonomous-driving benchmark NAVSIM" in message
    assert "pip uninstall navsim" in message


def test_nuplan_missing(tmp_path: Path) -> None:
    (tmp_path / "navsim" / "agents").mkdir(parents=True)
    for name in ("navsim/__init__.py", "navsim/agents/__init__.py", "navsim/agents/abstract_agent.py"):
        (tmp_path / name).write_text("")
    message = _import_agent(f"sys.path.insert(0, {str(tmp_path)!r}); sys.modules['nuplan'] = None")
    assert "nuplan-devkit, which it needs, is not" in message
