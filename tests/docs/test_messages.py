"""The messages that docs/troubleshooting.md explains are those of the code."""

from __future__ import annotations

import ast
import re

import pytest
from pages import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
NOT_OURS = ("(NAVSIM", "(Hydra)", "(torch)", "(torchvision)", "(Pillow)", "(others)")


def messages() -> list[str]:
    """What the first column quotes, but for messages that name another package as theirs."""
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [span for row in rows if not any(name in row for name in NOT_OURS) for span in re.findall(r"`([^`]+)`", row)]


@pytest.fixture(scope="module")
def texts() -> str:
    """All texts of the package, values filled in left out, and of the scripts."""
    found = []
    for path in sorted((REPOSITORY / "navsim_recogdrive").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    found += [path.read_text().replace("$name", "\0") for path in (REPOSITORY / "scripts").rglob("*.sh")]
    return "\n".join(found)


def test_there_are_messages() -> None:
    assert len(messages()) > 60


@pytest.mark.parametrize("message", messages())
def test_message_is_in_the_code(message: str, texts: str) -> None:
    """Each part of it, between what differs from case to case."""
    for part in re.split(r"\.\.\.|\bN\b", message):
        assert part.strip() in texts, f"no error says {part.strip()!r}"
